package volumes

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
)

var secret = Type{
	Plugin:   "kubernetes.io~secret",
	InMemory: true,
	Match:    func(q *request) bool { return q.volume.Secret != nil },
	Content: func(ctx context.Context, q *request) (payload, time.Time, error) {
		s := q.volume.Secret
		p, err := q.secretFiles(ctx, s.SecretName, s.Items, mode(s.DefaultMode), yes(s.Optional))
		return p, time.Time{}, err
	},
}

// secretFiles are the files that a Secret stands for: all keys, or those of items.
func (q *request) secretFiles(ctx context.Context, name string, items []corev1.KeyToPath, defaultMode int32, optional bool) (payload, error) {
	object, err := q.manager.objects.Secret(ctx, types.NamespacedName{Namespace: q.pod.Namespace, Name: name})
	if optional && apierrors.IsNotFound(err) {
		return payload{}, nil
	}
	if err != nil {
		return nil, err
	}
	p := payload{}
	if len(items) == 0 {
		for key, data := range object.Data {
			p[key] = file{data: data, mode: defaultMode}
		}
		return p, nil
	}
	for _, item := range items {
		data, ok := object.Data[item.Key]
		switch {
		case ok:
			p[item.Path] = file{data: data, mode: itemMode(item, defaultMode)}
		case !optional:
			return nil, fmt.Errorf("references non-existent secret key: %s", item.Key)
		}
	}
	return p, nil
}
