package volumes

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
)

var configMap = Type{
	Plugin: "kubernetes.io~configmap",
	Match:  func(q *request) bool { return q.volume.ConfigMap != nil },
	Content: func(ctx context.Context, q *request) (payload, time.Time, error) {
		s := q.volume.ConfigMap
		p, err := q.configMapFiles(ctx, s.Name, s.Items, mode(s.DefaultMode), yes(s.Optional))
		return p, time.Time{}, err
	},
}

// configMapFiles are the files that a ConfigMap stands for: all keys, or those of items.
func (q *request) configMapFiles(ctx context.Context, name string, items []corev1.KeyToPath, defaultMode int32, optional bool) (payload, error) {
	object, err := q.manager.objects.ConfigMap(ctx, types.NamespacedName{Namespace: q.pod.Namespace, Name: name})
	if optional && apierrors.IsNotFound(err) {
		return payload{}, nil
	}
	if err != nil {
		return nil, err
	}
	p := payload{}
	if len(items) == 0 {
		for key, data := range object.Data {
			p[key] = file{data: []byte(data), mode: defaultMode}
		}
		for key, data := range object.BinaryData {
			p[key] = file{data: data, mode: defaultMode}
		}
		return p, nil
	}
	for _, item := range items {
		data, ok := object.BinaryData[item.Key]
		if text, isText := object.Data[item.Key]; isText {
			data, ok = []byte(text), true
		}
		switch {
		case ok:
			p[item.Path] = file{data: data, mode: itemMode(item, defaultMode)}
		case !optional:
			return nil, fmt.Errorf("configmap references non-existent config key: %s", item.Key)
		}
	}
	return p, nil
}

func itemMode(item corev1.KeyToPath, otherwise int32) int32 {
	if item.Mode != nil {
		return *item.Mode
	}
	return otherwise
}

// mode is a defaultMode field; objects that were never defaulted (static pods) have none.
func mode(m *int32) int32 {
	if m == nil {
		return 0o644
	}
	return *m
}

func yes(b *bool) bool { return b != nil && *b }
