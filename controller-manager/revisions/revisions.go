// Package revisions knows ControllerRevisions: the history of pod templates that
// DaemonSets and StatefulSets keep, and that "kubectl rollout history" and "undo"
// read.
//
// The data of a revision is a strategic merge patch of the owner that replaces its
// template; kubectl applies it as it stands. [Plan] says which revision stands for
// the present template. Everything here is pure.
//
// Source: kubectl 1.36 rollout commands; Kubernetes API reference, ControllerRevision.
package revisions

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kruntime "k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/keelson/keelson/controller-manager/podset"
)

// HashLabel holds a revision's hash.
const HashLabel = "controller.kubernetes.io/hash"

// Data is the stored form of a template: {"spec":{"template":{…,"$patch":"replace"}}}.
func Data(t *corev1.PodTemplateSpec) []byte {
	raw, err := json.Marshal(t)
	if err == nil {
		var m map[string]any
		if err = json.Unmarshal(raw, &m); err == nil {
			m["$patch"] = "replace"
			raw, err = json.Marshal(map[string]any{"spec": map[string]any{"template": m}})
		}
	}
	if err != nil {
		panic(fmt.Sprintf("a pod template that was decoded cannot be encoded: %v", err))
	}
	return raw
}

// Template is the template that a revision stands for.
func Template(r *appsv1.ControllerRevision) (*corev1.PodTemplateSpec, error) {
	var d struct {
		Spec struct {
			Template corev1.PodTemplateSpec `json:"template"`
		} `json:"spec"`
	}
	if err := json.Unmarshal(r.Data.Raw, &d); err != nil {
		return nil, fmt.Errorf("revision %s: %w", r.Name, err)
	}
	return &d.Spec.Template, nil
}

// Is says that a revision stands for the template with this data.
func Is(r *appsv1.ControllerRevision, t *corev1.PodTemplateSpec, data []byte) bool {
	if bytes.Equal(r.Data.Raw, data) {
		return true
	}
	had, err := Template(r)
	return err == nil && equality.Semantic.DeepEqual(had, t)
}

// Sort orders revisions, oldest first: by revision, then age, then name.
func Sort(list []*appsv1.ControllerRevision) {
	podset.ByAge(list)
	slices.SortStableFunc(list, func(a, b *appsv1.ControllerRevision) int {
		switch {
		case a.Revision < b.Revision:
			return -1
		case a.Revision > b.Revision:
			return 1
		}
		return 0
	})
}

// Planned is the answer of [Plan]: exactly one of the three is meant.
type Planned struct {
	Have   *appsv1.ControllerRevision // the newest revision is the template's
	Raise  *appsv1.ControllerRevision // a copy of an older one, with a new number: to be updated
	Create *appsv1.ControllerRevision // there is none: to be created
}

// Plan finds or makes the revision of the template t of owner. list is sorted.
func Plan(owner metav1.Object, gvk schema.GroupVersionKind, t *corev1.PodTemplateSpec, list []*appsv1.ControllerRevision, collisions *int32) Planned {
	data := Data(t)
	next := int64(1)
	if n := len(list); n > 0 {
		next = list[n-1].Revision + 1
		for i := n - 1; i >= 0; i-- {
			if !Is(list[i], t, data) {
				continue
			}
			if i == n-1 {
				return Planned{Have: list[i]}
			}
			c := list[i].DeepCopy()
			c.Revision = next
			return Planned{Raise: c}
		}
	}
	hash := podset.HashBytes(data, collisions)
	labels := map[string]string{}
	for k, v := range t.Labels {
		labels[k] = v
	}
	labels[HashLabel] = hash
	annotations := map[string]string{}
	for k, v := range owner.GetAnnotations() {
		annotations[k] = v
	}
	return Planned{Create: &appsv1.ControllerRevision{
		ObjectMeta: metav1.ObjectMeta{
			Name: Name(owner.GetName(), hash), Namespace: owner.GetNamespace(), Labels: labels, Annotations: annotations,
			OwnerReferences: []metav1.OwnerReference{*podset.Ref(owner, gvk)},
		},
		Data: kruntime.RawExtension{Raw: data}, Revision: next,
	}}
}

// Name is the name of a revision of owner.
func Name(owner, hash string) string {
	if len(owner) > 223 {
		owner = owner[:223]
	}
	return owner + "-" + hash
}

// Surplus are the oldest revisions beyond limit that are not in use. list is
// sorted; a nil limit keeps all.
func Surplus(list []*appsv1.ControllerRevision, limit *int32, inUse func(*appsv1.ControllerRevision) bool) []*appsv1.ControllerRevision {
	if limit == nil {
		return nil
	}
	var idle []*appsv1.ControllerRevision
	for _, r := range list {
		if !inUse(r) {
			idle = append(idle, r)
		}
	}
	return idle[:max(0, len(idle)-int(*limit))]
}
