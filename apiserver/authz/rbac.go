package authz

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/keelson/keelson/apiserver/authn"
	"github.com/keelson/keelson/apiserver/resources"
)

// Resources that RBAC reads.
var (
	grRoles               = schema.GroupResource{Group: rbacv1.GroupName, Resource: "roles"}
	grRoleBindings        = schema.GroupResource{Group: rbacv1.GroupName, Resource: "rolebindings"}
	grClusterRoles        = schema.GroupResource{Group: rbacv1.GroupName, Resource: "clusterroles"}
	grClusterRoleBindings = schema.GroupResource{Group: rbacv1.GroupName, Resource: "clusterrolebindings"}
)

// RBACResources are the resources whose changes make an RBAC answer change.
var RBACResources = []schema.GroupResource{grRoles, grRoleBindings, grClusterRoles, grClusterRoleBindings}

// RBAC authorizes by roles and bindings. It keeps an index of grants by subject
// and builds it again when a role or binding has changed since.
type RBAC struct {
	Read resources.Reader
	// Changed returns the revision at which any of RBACResources changed last.
	Changed func() int64

	build sync.Mutex // one builder at a time
	index atomic.Pointer[grants]
}

// grant is one binding as its subjects see it. namespace is empty for the whole cluster.
type grant struct {
	namespace string
	rules     []rbacv1.PolicyRule
	binding   string // for the reason: `ClusterRoleBinding "x" of ClusterRole "y"`
	missing   string // what is wrong with a binding of a role that does not exist; then there are no rules
}

type grants struct {
	rev     int64
	byUser  map[string][]grant
	byGroup map[string][]grant
}

func (r *RBAC) current() (*grants, error) {
	rev := r.Changed()
	if g := r.index.Load(); g != nil && g.rev == rev {
		return g, nil
	}
	r.build.Lock()
	defer r.build.Unlock()
	rev = r.Changed()
	if g := r.index.Load(); g != nil && g.rev == rev {
		return g, nil
	}
	g, err := buildGrants(r.Read)
	if err != nil {
		return nil, err
	}
	g.rev = rev
	r.index.Store(g)
	return g, nil
}

func buildGrants(read resources.Reader) (*grants, error) {
	g := &grants{byUser: map[string][]grant{}, byGroup: map[string][]grant{}}
	add := func(namespace, kind, name string, ref rbacv1.RoleRef, subjects []rbacv1.Subject) error {
		rules, err := roleRules(read, namespace, ref)
		if err != nil {
			return err
		}
		missing := ""
		if rules == nil {
			missing = fmt.Sprintf("%s.%s %q not found", strings.ToLower(ref.Kind), rbacv1.GroupName, ref.Name)
		}
		desc := fmt.Sprintf("%s %q of %s %q", kind, name, ref.Kind, ref.Name)
		if namespace != "" {
			desc = fmt.Sprintf("%s %q of %s %q", kind, name+"/"+namespace, ref.Kind, ref.Name)
		}
		gr := grant{namespace: namespace, rules: rules, binding: desc, missing: missing}
		for _, s := range subjects {
			switch s.Kind {
			case rbacv1.UserKind:
				g.byUser[s.Name] = append(g.byUser[s.Name], gr)
			case rbacv1.GroupKind:
				g.byGroup[s.Name] = append(g.byGroup[s.Name], gr)
			case rbacv1.ServiceAccountKind:
				ns := s.Namespace
				if ns == "" {
					ns = namespace
				}
				if ns != "" {
					u := authn.ServiceAccountName(ns, s.Name)
					g.byUser[u] = append(g.byUser[u], gr)
				}
			}
		}
		return nil
	}
	var failed error
	err := read.Each(grClusterRoleBindings, "", func(o resources.Object) bool {
		if b, ok := o.(*rbacv1.ClusterRoleBinding); ok {
			failed = add("", "ClusterRoleBinding", b.Name, b.RoleRef, b.Subjects)
		}
		return failed == nil
	})
	if err == nil && failed == nil {
		err = read.Each(grRoleBindings, "", func(o resources.Object) bool {
			if b, ok := o.(*rbacv1.RoleBinding); ok {
				failed = add(b.Namespace, "RoleBinding", b.Name, b.RoleRef, b.Subjects)
			}
			return failed == nil
		})
	}
	if err != nil {
		return nil, err
	}
	return g, failed
}

// roleRules returns the rules of a role, and nil of one that does not exist: it grants nothing.
func roleRules(read resources.Reader, namespace string, ref rbacv1.RoleRef) ([]rbacv1.PolicyRule, error) {
	if ref.Kind == "ClusterRole" {
		role, err := resources.Lookup[rbacv1.ClusterRole](read, grClusterRoles, "", ref.Name)
		if err != nil || role == nil {
			return nil, err
		}
		return known(role.Rules), nil
	}
	role, err := resources.Lookup[rbacv1.Role](read, grRoles, namespace, ref.Name)
	if err != nil || role == nil {
		return nil, err
	}
	return known(role.Rules), nil
}

// known tells the rules of a role that gives nothing from those of none.
func known(rules []rbacv1.PolicyRule) []rbacv1.PolicyRule {
	if rules == nil {
		return []rbacv1.PolicyRule{}
	}
	return rules
}

// each calls yield for every grant of the user that applies in namespace until it returns false.
func (g *grants) each(u *authn.User, namespace string, yield func(gr *grant, subject string) bool) {
	visit := func(list []grant, kind, name string) bool {
		for i := range list {
			if list[i].namespace == "" || list[i].namespace == namespace {
				if !yield(&list[i], kind+" \""+name+"\"") {
					return false
				}
			}
		}
		return true
	}
	if list := g.byUser[u.Name]; len(list) > 0 && !visit(list, "User", u.Name) {
		return
	}
	for _, group := range u.Groups {
		if list := g.byGroup[group]; len(list) > 0 && !visit(list, "Group", group) {
			return
		}
	}
}

// Authorize allows what any grant of the caller allows. A refusal says which of its roles are missing.
func (r *RBAC) Authorize(_ context.Context, a Attributes) (Decision, string, error) {
	g, err := r.current()
	if err != nil {
		return NoOpinion, "", err
	}
	decision, reason := NoOpinion, ""
	var missing []string
	g.each(a.User, a.Namespace, func(gr *grant, subject string) bool {
		if gr.missing != "" && !slices.Contains(missing, gr.missing) {
			missing = append(missing, gr.missing)
		}
		for i := range gr.rules {
			if Allows(&gr.rules[i], &a) {
				decision, reason = Allow, "RBAC: allowed by "+gr.binding+" to "+subject
				return false
			}
		}
		return true
	})
	if decision != Allow && len(missing) > 0 {
		reason = "RBAC: " + together(missing)
	}
	return decision, reason, nil
}

func together(faults []string) string {
	if len(faults) < 2 {
		return strings.Join(faults, "")
	}
	return "[" + strings.Join(faults, ", ") + "]"
}

// Rules lists what the caller may do in a namespace, for SelfSubjectRulesReview and the escalation check.
// missing says which roles that are bound to the caller do not exist; empty: none.
func (r *RBAC) Rules(u *authn.User, namespace string) (rules []rbacv1.PolicyRule, missing string, err error) {
	g, err := r.current()
	if err != nil {
		return nil, "", err
	}
	var faults []string
	g.each(u, namespace, func(gr *grant, _ string) bool {
		rules = append(rules, gr.rules...)
		if gr.missing != "" && !slices.Contains(faults, gr.missing) {
			faults = append(faults, gr.missing)
		}
		return true
	})
	return rules, together(faults), nil
}

// RoleRules returns the rules that a role reference stands for.
func (r *RBAC) RoleRules(namespace string, ref rbacv1.RoleRef) ([]rbacv1.PolicyRule, error) {
	return roleRules(r.Read, namespace, ref)
}
