package admission

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	rbacv1 "k8s.io/api/rbac/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/keelson/keelson/apiserver/authn"
	"github.com/keelson/keelson/apiserver/authz"
)

// rbacEscalation keeps callers from giving anybody, themselves included, rights
// that they do not have, unless they hold the "escalate" or "bind" verb.
//
// Source: Kubernetes documentation, "Privilege escalation prevention and bootstrapping".
func rbacEscalation(cfg Config) Plugin {
	may := func(ctx context.Context, a *Attributes, verb string, gr schema.GroupResource, namespace, name string) bool {
		d, _, _ := cfg.Authorizer.Authorize(ctx, authz.Attributes{
			User: a.User, Verb: verb, Resource: true, Group: gr.Group, Version: "v1", Plural: gr.Resource, Namespace: namespace, Name: name,
		})
		return d == authz.Allow
	}
	covered := func(a *Attributes, namespace string, want []rbacv1.PolicyRule) error {
		have, unknown, err := cfg.RBAC.Rules(a.User, namespace)
		if err != nil {
			return err
		}
		missing := authz.Covers(have, want)
		if len(missing) == 0 {
			return nil
		}
		lines := make([]string, 0, len(missing))
		for _, m := range missing {
			lines = append(lines, compact(m))
		}
		slices.Sort(lines)
		text := fmt.Sprintf("user %q (groups=%q) is attempting to grant RBAC permissions not currently held:\n%s",
			a.User.Name, a.User.Groups, strings.Join(lines, "\n"))
		if unknown != "" {
			text += "; resolution errors: [" + unknown + "]"
		}
		return forbid(a, errors.New(text))
	}
	return Plugin{Name: "RBACEscalation", Validate: func(ctx context.Context, a *Attributes) (func(), error) {
		if cfg.RBAC == nil || a.Row.Group != rbacv1.GroupName || a.Subresource != "" || a.Operation == Delete ||
			a.User == nil || a.User.In(authn.GroupMasters) {
			return nil, nil
		}
		switch o := a.Object.(type) {
		case *rbacv1.Role:
			if old, ok := a.Old.(*rbacv1.Role); ok && apiequality.Semantic.DeepEqual(old.Rules, o.Rules) {
				return nil, nil
			}
			if may(ctx, a, "escalate", grRoles, a.Namespace, o.Name) {
				return nil, nil
			}
			return nil, covered(a, a.Namespace, o.Rules)
		case *rbacv1.ClusterRole:
			if old, ok := a.Old.(*rbacv1.ClusterRole); ok && apiequality.Semantic.DeepEqual(old.Rules, o.Rules) &&
				apiequality.Semantic.DeepEqual(old.AggregationRule, o.AggregationRule) {
				return nil, nil
			}
			if may(ctx, a, "escalate", grClusterRoles, "", o.Name) {
				return nil, nil
			}
			if o.AggregationRule != nil { // the rules will come from elsewhere: only who has everything may
				everything := []rbacv1.PolicyRule{
					{Verbs: []string{"*"}, APIGroups: []string{"*"}, Resources: []string{"*"}},
					{Verbs: []string{"*"}, NonResourceURLs: []string{"*"}},
				}
				if err := covered(a, "", everything); err != nil {
					return nil, err
				}
			}
			return nil, covered(a, "", o.Rules)
		case *rbacv1.RoleBinding:
			if old, ok := a.Old.(*rbacv1.RoleBinding); ok && old.RoleRef == o.RoleRef && apiequality.Semantic.DeepEqual(old.Subjects, o.Subjects) {
				return nil, nil
			}
			return nil, mayBind(ctx, a, cfg, may, covered, a.Namespace, o.RoleRef)
		case *rbacv1.ClusterRoleBinding:
			if old, ok := a.Old.(*rbacv1.ClusterRoleBinding); ok && old.RoleRef == o.RoleRef && apiequality.Semantic.DeepEqual(old.Subjects, o.Subjects) {
				return nil, nil
			}
			return nil, mayBind(ctx, a, cfg, may, covered, "", o.RoleRef)
		}
		return nil, nil
	}}
}

func mayBind(ctx context.Context, a *Attributes, cfg Config,
	may func(context.Context, *Attributes, string, schema.GroupResource, string, string) bool,
	covered func(*Attributes, string, []rbacv1.PolicyRule) error, namespace string, ref rbacv1.RoleRef) error {
	gr, where := grClusterRoles, ""
	if ref.Kind == "Role" {
		gr, where = grRoles, namespace
	}
	if may(ctx, a, "bind", gr, namespace, ref.Name) {
		return nil
	}
	rules, err := cfg.RBAC.RoleRules(where, ref)
	if err != nil {
		return err
	}
	if rules == nil { // nothing is known of what the role will give
		obj, err := cfg.Read.Get(gr, where, ref.Name)
		if err != nil {
			return err
		}
		if obj == nil {
			return forbid(a, fmt.Errorf("role %s %q not found, and user %q may not bind it unseen", ref.Kind, ref.Name, a.User.Name))
		}
	}
	return covered(a, namespace, rules)
}

// compact prints a rule as upstream's messages do.
func compact(r rbacv1.PolicyRule) string {
	var parts []string
	add := func(name string, list []string) {
		if len(list) > 0 {
			parts = append(parts, fmt.Sprintf("%s:%q", name, list))
		}
	}
	add("APIGroups", r.APIGroups)
	add("Resources", r.Resources)
	add("ResourceNames", r.ResourceNames)
	add("NonResourceURLs", r.NonResourceURLs)
	add("Verbs", r.Verbs)
	return "{" + strings.Join(parts, ", ") + "}"
}
