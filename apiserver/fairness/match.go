package fairness

import (
	"reflect"
	"slices"
	"strings"

	flowcontrolv1 "k8s.io/api/flowcontrol/v1"

	"github.com/keelson/keelson/apiserver/authz"
)

// rule is one entry of a FlowSchema's rules.
type rule struct {
	users, groups []string // "*" for all
	accounts      []account
	resource      []flowcontrolv1.ResourcePolicyRule
	plain         []flowcontrolv1.NonResourcePolicyRule
}

// account is a service account by the beginning, or the whole, of its user name.
type account struct {
	name  string // "system:serviceaccount:<namespace>:" and the name
	whole bool
}

func compile(s *flowcontrolv1.FlowSchema) []rule {
	out := make([]rule, 0, len(s.Spec.Rules))
	for _, r := range s.Spec.Rules {
		c := rule{resource: r.ResourceRules, plain: r.NonResourceRules}
		for _, sub := range r.Subjects {
			switch {
			case sub.Kind == flowcontrolv1.SubjectKindUser && sub.User != nil:
				c.users = append(c.users, sub.User.Name)
			case sub.Kind == flowcontrolv1.SubjectKindGroup && sub.Group != nil:
				c.groups = append(c.groups, sub.Group.Name)
			case sub.Kind == flowcontrolv1.SubjectKindServiceAccount && sub.ServiceAccount != nil:
				a := account{name: "system:serviceaccount:" + sub.ServiceAccount.Namespace + ":"}
				if n := sub.ServiceAccount.Name; n != flowcontrolv1.NameAll {
					a.name, a.whole = a.name+n, true
				}
				c.accounts = append(c.accounts, a)
			}
		}
		out = append(out, c)
	}
	return out
}

func sameRules(a, b []rule) bool { return reflect.DeepEqual(a, b) }

// classify returns the first flow that matches. The last is catch-all, which every user
// matches who is authenticated or anonymous; it takes whoever is neither as well.
//
// Source: Kubernetes API reference, FlowSchema.
func classify(flows []*flow, a *authz.Attributes) *flow {
	for _, f := range flows {
		for i := range f.rules {
			if r := &f.rules[i]; r.subject(a) && r.asks(a) {
				return f
			}
		}
	}
	for _, f := range flows {
		if f.name == flowcontrolv1.FlowSchemaNameCatchAll {
			return f
		}
	}
	return flows[len(flows)-1]
}

func (r *rule) subject(a *authz.Attributes) bool {
	for _, u := range r.users {
		if u == flowcontrolv1.NameAll || u == a.User.Name {
			return true
		}
	}
	for _, g := range r.groups {
		if g == flowcontrolv1.NameAll || slices.Contains(a.User.Groups, g) {
			return true
		}
	}
	for i := range r.accounts {
		if s := &r.accounts[i]; s.whole && s.name == a.User.Name || !s.whole && strings.HasPrefix(a.User.Name, s.name) {
			return true
		}
	}
	return false
}

func (r *rule) asks(a *authz.Attributes) bool {
	if !a.Resource {
		for i := range r.plain {
			if p := &r.plain[i]; among(p.Verbs, a.Verb) && onPath(p.NonResourceURLs, a.Path) {
				return true
			}
		}
		return false
	}
	for i := range r.resource {
		p := &r.resource[i]
		if !among(p.Verbs, a.Verb) || !among(p.APIGroups, a.Group) || !amongResources(p.Resources, a.Plural, a.Subresource) {
			continue
		}
		if a.Namespace == "" && p.ClusterScope || a.Namespace != "" && among(p.Namespaces, a.Namespace) {
			return true
		}
	}
	return false
}

// among: "*" stands alone in its list.
func among(list []string, s string) bool {
	return len(list) == 1 && list[0] == "*" || slices.Contains(list, s)
}

func amongResources(list []string, plural, sub string) bool {
	if sub == "" {
		return among(list, plural)
	}
	for _, s := range list {
		if s == "*" || len(s) == len(plural)+1+len(sub) && strings.HasPrefix(s, plural) && s[len(plural)] == '/' && strings.HasSuffix(s, sub) {
			return true
		}
	}
	return false
}

// onPath: an entry stands for itself and for all that lies below it.
func onPath(list []string, path string) bool {
	for _, p := range list {
		if p == flowcontrolv1.NonResourceAll || p == path {
			return true
		}
		if dir := strings.TrimSuffix(strings.TrimSuffix(p, "*"), "/"); len(path) > len(dir) && path[len(dir)] == '/' && strings.HasPrefix(path, dir) {
			return true
		}
	}
	return false
}
