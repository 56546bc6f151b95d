package namespace

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kruntime "k8s.io/apimachinery/pkg/runtime"

	"github.com/keelson/keelson/controller-manager/ctrltest"
	"github.com/keelson/keelson/controller-manager/runtime"
)

var ctx = context.Background()

func space(name string) *corev1.Namespace {
	return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.NamespaceSpec{Finalizers: []corev1.FinalizerName{corev1.FinalizerKubernetes}}, Status: corev1.NamespaceStatus{Phase: corev1.NamespaceActive}}
}

func in(ns, name string) metav1.ObjectMeta { return metav1.ObjectMeta{Namespace: ns, Name: name} }

func TestNamespaceIsEmptiedPodsFirst(t *testing.T) {
	objects := []kruntime.Object{
		space("ns"), space("other"),
		&corev1.ConfigMap{ObjectMeta: in("ns", "a")}, &corev1.Secret{ObjectMeta: in("ns", "b")}, &corev1.ConfigMap{ObjectMeta: in("other", "keep")},
		&corev1.Pod{ObjectMeta: in("ns", "p"), Spec: corev1.PodSpec{NodeName: "n"}, Status: corev1.PodStatus{Phase: corev1.PodRunning}},
	}
	ctrltest.Test(t, []runtime.Row{Row}, objects, func(t *testing.T, h *ctrltest.Harness) {
		if w := h.Writes(true); w != "" {
			t.Fatalf("nothing is deleted yet:\n%s", w)
		}
		api := h.Client.CoreV1().Namespaces()
		if err := api.Delete(ctx, "ns", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		h.After(10 * time.Second)
		if w := h.Writes(); !strings.Contains(w, "delete pods p") || strings.Contains(w, "delete configmaps") || strings.Contains(w, "delete secrets") {
			t.Errorf("while the pod runs, what it may need stays:\n%s", w)
		}
		ns := ctrltest.Must(api.Get(ctx, "ns", metav1.GetOptions{}))
		if ns.Status.Phase != corev1.NamespaceTerminating || !slices.ContainsFunc(ns.Status.Conditions, func(c corev1.NamespaceCondition) bool {
			return c.Type == corev1.NamespaceContentRemaining && c.Status == corev1.ConditionTrue && c.Reason == "SomeResourcesRemain" && c.Message == "Some resources are remaining: pods has 1 resource instances"
		}) {
			t.Errorf("phase and conditions tell why it waits: %+v", ns.Status)
		}
		h.Kill("ns")
		h.After(10 * time.Second)
		if w := h.Writes(); !strings.Contains(w, "delete configmaps a") || !strings.Contains(w, "delete secrets b") || strings.Contains(w, "keep") {
			t.Errorf("then everything goes, and nothing of another namespace:\n%s", w)
		}
		if _, err := api.Get(ctx, "ns", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
			t.Errorf("the empty namespace is gone: %v", err)
		}
	})
}

func TestFinalizersHoldANamespace(t *testing.T) {
	held := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "a", Finalizers: []string{"example.com/wait"}}}
	ctrltest.Test(t, []runtime.Row{Row}, []kruntime.Object{space("ns"), held}, func(t *testing.T, h *ctrltest.Harness) {
		if err := h.Client.CoreV1().Namespaces().Delete(ctx, "ns", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		h.After(time.Minute)
		ns := ctrltest.Must(h.Client.CoreV1().Namespaces().Get(ctx, "ns", metav1.GetOptions{}))
		if !slices.ContainsFunc(ns.Status.Conditions, func(c corev1.NamespaceCondition) bool {
			return c.Type == corev1.NamespaceFinalizersRemaining && c.Status == corev1.ConditionTrue && strings.Contains(c.Message, "example.com/wait in 1 resource instances")
		}) {
			t.Errorf("conditions: %+v", ns.Status.Conditions)
		}
		h.Writes(true)
		h.After(time.Minute)
		if w := strings.Count(h.Writes(true), "\n") + 1; w > 20 {
			t.Errorf("%d writes in a minute of waiting", w)
		}
	})
}
