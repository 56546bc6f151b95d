package clusterroleaggregation

import (
	"context"
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kruntime "k8s.io/apimachinery/pkg/runtime"

	"github.com/keelson/keelson/controller-manager/ctrltest"
	"github.com/keelson/keelson/controller-manager/runtime"
)

func role(name, label, selects string, resources ...string) *rbacv1.ClusterRole {
	r := &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"to": label}}}
	for _, res := range resources {
		r.Rules = append(r.Rules, rbacv1.PolicyRule{Verbs: []string{"get"}, Resources: []string{res}, APIGroups: []string{""}})
	}
	if selects != "" {
		r.AggregationRule = &rbacv1.AggregationRule{ClusterRoleSelectors: []metav1.LabelSelector{{MatchLabels: map[string]string{"to": selects}}}}
	}
	return r
}

func TestAggregation(t *testing.T) {
	ctx := context.Background()
	objects := []kruntime.Object{role("admin", "", "admin", "stale"), role("edit", "admin", "edit"), role("b", "edit", "", "pods", "secrets"), role("a", "edit", "", "pods"), role("other", "", "", "nodes")}
	ctrltest.Test(t, []runtime.Row{Row}, objects, func(t *testing.T, h *ctrltest.Harness) {
		api := h.Client.RbacV1().ClusterRoles()
		rules := func(name string) (all []string) {
			for _, r := range ctrltest.Must(api.Get(ctx, name, metav1.GetOptions{})).Rules {
				all = append(all, r.Resources...)
			}
			return all
		}
		for _, name := range []string{"edit", "admin"} { // admin by way of edit
			if got := rules(name); len(got) != 2 || got[0] != "pods" || got[1] != "secrets" {
				t.Errorf("%s: each rule once: %v", name, got)
			}
		}
		h.Writes()
		h.Rest()
		if w := h.Writes(); w != "" {
			t.Errorf("at rest: %s", w)
		}
		if err := api.Delete(ctx, "b", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		h.Rest()
		if got := rules("admin"); len(got) != 1 {
			t.Errorf("what is not granted any more goes: %v", got)
		}
	})
}
