package actions

import (
	"context"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"github.com/keelson/keelson/apiserver/readertest"
	"github.com/keelson/keelson/apiserver/resources"
)

// trial is a writer that changes nothing, and knows whether it was asked to try only.
type trial struct {
	pod     *corev1.Pod
	dry     bool
	removed bool
}

func (w *trial) Update(_ context.Context, rq *resources.Request, _ schema.GroupResource, _, _, _ string, change func(resources.Object) (resources.Object, error)) error {
	w.dry = rq.DryRun
	_, err := change(w.pod)
	return err
}

func (w *trial) Delete(_ context.Context, rq *resources.Request, _ schema.GroupResource, _, _ string, _ *metav1.DeleteOptions) error {
	w.dry, w.removed = rq.DryRun, true
	return nil
}

func runningPod() *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "p", UID: "u", ResourceVersion: "7", Labels: map[string]string{"a": "b"}},
		Status:     corev1.PodStatus{Phase: corev1.PodRunning},
	}
}

func budgetOf(name string) *policyv1.PodDisruptionBudget {
	return &policyv1.PodDisruptionBudget{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name},
		Spec: policyv1.PodDisruptionBudgetSpec{Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"a": "b"}}}}
}

// Source: what a Kubernetes 1.36 API server answered.
func TestEvictionOptions(t *testing.T) {
	for _, c := range []struct {
		text    string
		objects []resources.Object
		dry     bool
		opts    metav1.DeleteOptions
		want    string // "" is evicted
	}{
		{"tried", nil, true, metav1.DeleteOptions{}, ""},
		{"tried by its own options", nil, false, metav1.DeleteOptions{DryRun: []string{"All"}}, ""},
		{"two ways to try", nil, true, metav1.DeleteOptions{DryRun: []string{"X"}}, "Non-matching dry-run options in request and content: [All] and [X]"},
		{"unknown policy", nil, true, metav1.DeleteOptions{PropagationPolicy: ptr.To(metav1.DeletionPropagation("X"))},
			`DeleteOptions.meta.k8s.io "" is invalid: propagationPolicy: Unsupported value: "X": supported values: "Foreground", "Background", "Orphan", "nil"`},
		{"two budgets", []resources.Object{budgetOf("x"), budgetOf("y")}, true, metav1.DeleteOptions{},
			"This pod has more than one PodDisruptionBudget, which the eviction subresource does not support."},
	} {
		pod := runningPod()
		w := &trial{pod: pod}
		a := &Actions{Config{Read: readertest.New(append(c.objects, pod)...), Write: w}}
		err := a.Evict(t.Context(), &resources.Request{DryRun: c.dry, Now: time.Unix(1, 0)}, "ns", "p", &policyv1.Eviction{DeleteOptions: &c.opts})
		switch {
		case c.want == "" && (err != nil || !w.removed || !w.dry):
			t.Errorf("%s: %v, removed %v, tried only %v", c.text, err, w.removed, w.dry)
		case c.want != "" && (err == nil || err.Error() != c.want || w.removed):
			t.Errorf("%s: got %v, want %s", c.text, err, c.want)
		}
	}
}

func TestBindingOfAnotherPod(t *testing.T) {
	const key = `Operation cannot be fulfilled on pods "p": StorageError: invalid object, Code: 4, Key: /registry/pods/ns/p, ResourceVersion: 0, AdditionalErrorMsg: Precondition failed: `
	for _, c := range []struct {
		uid      types.UID
		revision string
		want     string
	}{
		{"other", "", key + "UID in precondition: other, UID in object meta: u"},
		{"u", "6", key + "ResourceVersion in precondition: 6, ResourceVersion in object meta: 7"},
	} {
		pod := runningPod()
		a := &Actions{Config{Read: readertest.New(pod), Write: &trial{pod: pod}}}
		b := &corev1.Binding{ObjectMeta: metav1.ObjectMeta{UID: c.uid, ResourceVersion: c.revision}, Target: corev1.ObjectReference{Name: "n"}}
		if err := a.Bind(t.Context(), &resources.Request{}, "ns", "p", b); err == nil || err.Error() != c.want {
			t.Errorf("got %v, want %s", err, c.want)
		}
	}
}
