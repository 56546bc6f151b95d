// Package clusterroleaggregation fills in the rules of cluster roles that are made
// of others by label (admin, edit and view among them).
package clusterroleaggregation

import (
	"context"
	"slices"
	"strings"

	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"github.com/keelson/keelson/controller-manager/runtime"
	"github.com/keelson/keelson/libs/informer"
)

// Row is this controller's line of the table.
var Row = runtime.Row{
	Name:   "clusterrole-aggregation-controller",
	Reads:  []string{"clusterroles.rbac.authorization.k8s.io"},
	Writes: []string{"update clusterroles.rbac.authorization.k8s.io"},
	Extra: []rbacv1.PolicyRule{{
		APIGroups: []string{rbacv1.GroupName}, Resources: []string{"clusterroles"}, Verbs: []string{"escalate"},
	}},
	New: build,
}

type controller struct {
	roles  *informer.Cache[*rbacv1.ClusterRole]
	client kubernetes.Interface
}

func build(e *runtime.Env) error {
	c := &controller{roles: runtime.Read[*rbacv1.ClusterRole](e), client: e.Client()}
	q := e.Keyed("", 2, c.pass)
	// Any role may be part of any aggregated one.
	runtime.On(q, c.roles, func(informer.Event[*rbacv1.ClusterRole]) []types.NamespacedName {
		var keys []types.NamespacedName
		for _, r := range c.roles.List() {
			if r.AggregationRule != nil {
				keys = append(keys, runtime.KeyOf(r))
			}
		}
		return keys
	})
	return nil
}

func (c *controller) pass(ctx context.Context, p *runtime.Pass) (runtime.Result, error) {
	role, ok := c.roles.Get(p.Key)
	if !ok || role.AggregationRule == nil || role.DeletionTimestamp != nil {
		return runtime.Result{}, nil
	}
	rules, err := Rules(role, c.roles.List())
	if err != nil {
		return runtime.Result{}, runtime.Permanent(err)
	}
	if equality.Semantic.DeepEqual(rules, role.Rules) {
		return runtime.Result{}, nil
	}
	p.Note("set %d rules", len(rules))
	role = role.DeepCopy()
	role.Rules = rules
	_, err = runtime.Update(ctx, p, c.client.RbacV1().ClusterRoles(), role)
	return runtime.Result{}, err
}

// Rules are those of all roles that role selects, in the order of the selectors
// and of names, each once.
func Rules(role *rbacv1.ClusterRole, all []*rbacv1.ClusterRole) ([]rbacv1.PolicyRule, error) {
	sorted := slices.SortedFunc(slices.Values(all), func(a, b *rbacv1.ClusterRole) int { return strings.Compare(a.Name, b.Name) })
	rules := []rbacv1.PolicyRule{}
	for i := range role.AggregationRule.ClusterRoleSelectors {
		sel, err := metav1.LabelSelectorAsSelector(&role.AggregationRule.ClusterRoleSelectors[i])
		if err != nil {
			return nil, err
		}
		for _, r := range sorted {
			if r.Name == role.Name || !sel.Matches(labels.Set(r.Labels)) {
				continue
			}
			for _, rule := range r.Rules {
				if !slices.ContainsFunc(rules, func(have rbacv1.PolicyRule) bool { return equality.Semantic.DeepEqual(have, rule) }) {
					rules = append(rules, rule)
				}
			}
		}
	}
	return rules, nil
}
