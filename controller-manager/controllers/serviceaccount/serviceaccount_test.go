package serviceaccount

import (
	"context"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kruntime "k8s.io/apimachinery/pkg/runtime"

	"github.com/keelson/keelson/controller-manager/ctrltest"
	"github.com/keelson/keelson/controller-manager/runtime"
)

func TestEveryNamespaceHasItsAccount(t *testing.T) {
	ending := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "ending"}, Status: corev1.NamespaceStatus{Phase: corev1.NamespaceTerminating}}
	ctrltest.Test(t, []runtime.Row{Row}, []kruntime.Object{&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "a"}}, ending}, func(t *testing.T, h *ctrltest.Harness) {
		if w := h.Writes(); w != "create serviceaccounts default" {
			t.Fatalf("one account, none for a namespace that ends: %q", w)
		}
		if err := h.Client.CoreV1().ServiceAccounts("a").Delete(context.Background(), "default", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		h.Rest()
		if w := h.Writes(); w != "create serviceaccounts default\ndelete serviceaccounts default" {
			t.Errorf("a deleted account comes back: %q", w)
		}
	})
}
