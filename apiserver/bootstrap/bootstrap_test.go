package bootstrap

import (
	"context"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/keelson/keelson/apiserver/resources"
)

// held is an API of one object.
type held struct {
	obj    resources.Object
	writes int
}

func (h *held) Get(context.Context, schema.GroupResource, string, string) (resources.Object, error) {
	if h.obj == nil {
		return nil, apierrors.NewNotFound(schema.GroupResource{}, "")
	}
	return h.obj, nil
}

func (h *held) Create(_ context.Context, _ schema.GroupResource, obj resources.Object) error {
	h.obj = obj
	h.writes++
	return nil
}

func (h *held) Update(_ context.Context, _ schema.GroupResource, _, _, _ string, change func(resources.Object) (resources.Object, error)) error {
	next, err := change(h.obj)
	if next != h.obj {
		h.obj = next
		h.writes++
	}
	return err
}

// What says since when uses of tokens are noted is made once; a day that cannot be read is today, as nothing older is known.
func TestTokenTracking(t *testing.T) {
	h := &held{}
	now := time.Date(2026, 3, 4, 23, 0, 0, 0, time.FixedZone("", -7200)) // 5 March in UTC
	pass := func() {
		t.Helper()
		create := func(gr schema.GroupResource, obj resources.Object) error {
			if h.obj != nil {
				return nil
			}
			return h.Create(t.Context(), gr, obj)
		}
		if err := ensureTokenTracking(t.Context(), h, create, now); err != nil {
			t.Fatal(err)
		}
	}
	since := func() string { return h.obj.(*corev1.ConfigMap).Data["since"] }
	pass()
	if since() != "2026-03-05" || h.writes != 1 || h.obj.GetNamespace() != "kube-system" || h.obj.GetName() != "kube-apiserver-legacy-service-account-token-tracking" {
		t.Errorf("%+v after %d writes", h.obj, h.writes)
	}
	now = now.AddDate(0, 1, 0)
	pass()
	if since() != "2026-03-05" || h.writes != 1 {
		t.Errorf("a month later: %s, %d writes", since(), h.writes)
	}
	for _, data := range []map[string]string{nil, {"since": "yesterday"}} {
		h.obj.(*corev1.ConfigMap).Data = data
		if pass(); since() != "2026-04-05" {
			t.Errorf("of %v: %s", data, since())
		}
	}
}
