package patch

import (
	"encoding/json"
	"strings"

	kjson "sigs.k8s.io/json"

	"github.com/keelson/keelson/apiserver/resources"
)

// Tagged returns a copy of current with the labels and annotations that a merge patch (or a strategic one) sets and
// removes, when it does nothing else: many do, and no part of the object needs to become JSON for it.
//
// ok is false when Merge, or Strategic, must look at the patch.
func Tagged(current resources.Object, patch []byte) (obj resources.Object, ok bool) {
	var p struct {
		Metadata struct {
			Labels      json.RawMessage `json:"labels"`
			Annotations json.RawMessage `json:"annotations"`
		} `json:"metadata"`
	}
	if strict, err := kjson.UnmarshalStrict(patch, &p); err != nil || len(strict) > 0 {
		return nil, false
	}
	labels, ok := tags(p.Metadata.Labels)
	if !ok {
		return nil, false
	}
	annotations, ok := tags(p.Metadata.Annotations)
	if !ok || labels == nil && annotations == nil {
		return nil, false
	}
	obj = current.DeepCopyObject().(resources.Object)
	if labels != nil {
		obj.SetLabels(tag(obj.GetLabels(), labels))
	}
	if annotations != nil {
		obj.SetAnnotations(tag(obj.GetAnnotations(), annotations))
	}
	return obj, true
}

// tags reads what a patch says of labels or annotations; nil is nothing. ok is false when that is a directive, or a fault.
func tags(text json.RawMessage) (changes map[string]*string, ok bool) {
	if text == nil {
		return nil, true
	}
	strict, err := kjson.UnmarshalStrict(text, &changes, kjson.DisallowDuplicateFields)
	if err != nil || len(strict) > 0 || changes == nil {
		return nil, false
	}
	for key := range changes {
		if strings.HasPrefix(key, "$") {
			return nil, false
		}
	}
	return changes, true
}

func tag(now map[string]string, changes map[string]*string) map[string]string {
	if now == nil {
		now = make(map[string]string, len(changes))
	}
	for key, value := range changes {
		if value == nil {
			delete(now, key)
		} else {
			now[key] = *value
		}
	}
	return now
}
