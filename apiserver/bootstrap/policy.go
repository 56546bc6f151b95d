package bootstrap

import (
	_ "embed"
	"fmt"
	"strings"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// policyText lists the default roles and bindings. A line that starts in the
// first column opens an object; indented lines are its rules or subjects:
//
//	clusterrole NAME [label=value ...]
//	  aggregate label=value                    rules are those of the roles with that label
//	  VERBS GROUPS RESOURCES [NAMES]           lists are joined by commas; "core" is the group ""
//	  VERBS path PATHS
//	clusterrolebinding NAME ClusterRole/ROLE
//	  User|Group|ServiceAccount [NAMESPACE/]NAME
//	role NAMESPACE/NAME ... , rolebinding NAMESPACE/NAME Role/ROLE ...
//
// Source: Kubernetes documentation, "Default roles and role bindings", as a v1.36 cluster has them.
//
//go:embed policy.txt
var policyText string

// Policy is a set of roles and bindings.
type Policy struct {
	ClusterRoles        []*rbacv1.ClusterRole
	ClusterRoleBindings []*rbacv1.ClusterRoleBinding
	Roles               []*rbacv1.Role
	RoleBindings        []*rbacv1.RoleBinding
}

const (
	autoUpdate       = "rbac.authorization.kubernetes.io/autoupdate"
	controllerPrefix = "system:controller:"
	controllerUser   = "system:kube-controller-manager"
)

// DefaultPolicy is the policy of a new cluster. All controllers run as one
// user here, who is therefore bound to each controller's role beside the
// service account that upstream's controllers use.
func DefaultPolicy() (*Policy, error) {
	p, err := parsePolicy(policyText)
	if err != nil {
		return nil, err
	}
	one := rbacv1.Subject{APIGroup: rbacv1.GroupName, Kind: rbacv1.UserKind, Name: controllerUser}
	for _, b := range p.ClusterRoleBindings {
		if strings.HasPrefix(b.Name, controllerPrefix) {
			b.Subjects = append(b.Subjects, one)
		}
	}
	for _, b := range p.RoleBindings {
		if strings.HasPrefix(b.Name, controllerPrefix) {
			b.Subjects = append(b.Subjects, one)
		}
	}
	return p, nil
}

// NodeRules are the rules of system:node, which the node authorizer applies.
func (p *Policy) NodeRules() []rbacv1.PolicyRule {
	for _, r := range p.ClusterRoles {
		if r.Name == "system:node" {
			return r.Rules
		}
	}
	return nil
}

func parsePolicy(text string) (*Policy, error) {
	p := &Policy{}
	var addRule func(f []string) error
	for n, line := range strings.Split(text, "\n") {
		f := strings.Fields(line)
		if len(f) == 0 || strings.HasPrefix(f[0], "#") {
			continue
		}
		var err error
		if line[0] == ' ' {
			if addRule == nil {
				err = fmt.Errorf("a rule before any object")
			} else {
				err = addRule(f)
			}
		} else {
			addRule, err = p.open(f)
		}
		if err != nil {
			return nil, fmt.Errorf("default policy, line %d %q: %w", n+1, line, err)
		}
	}
	p.aggregate()
	return p, nil
}

// open starts an object and returns what to do with its lines.
func (p *Policy) open(f []string) (func([]string) error, error) {
	if len(f) < 2 {
		return nil, fmt.Errorf("a name is missing")
	}
	meta := metav1.ObjectMeta{
		Name: f[1], Annotations: map[string]string{autoUpdate: "true"},
		Labels: map[string]string{"kubernetes.io/bootstrapping": "rbac-defaults"},
	}
	if f[0] == "role" || f[0] == "rolebinding" {
		ns, name, ok := strings.Cut(f[1], "/")
		if !ok {
			return nil, fmt.Errorf("a namespace is missing")
		}
		meta.Namespace, meta.Name = ns, name
	}
	switch f[0] {
	case "clusterrole", "role":
		for _, l := range f[2:] {
			k, v, ok := strings.Cut(l, "=")
			if !ok {
				return nil, fmt.Errorf("%q is not label=value", l)
			}
			meta.Labels[k] = v
		}
		if f[0] == "role" {
			r := &rbacv1.Role{ObjectMeta: meta}
			p.Roles = append(p.Roles, r)
			return func(f []string) (err error) { r.Rules, err = appendRule(r.Rules, f); return err }, nil
		}
		r := &rbacv1.ClusterRole{ObjectMeta: meta}
		p.ClusterRoles = append(p.ClusterRoles, r)
		return func(f []string) (err error) {
			if f[0] == "aggregate" && len(f) == 2 {
				k, v, _ := strings.Cut(f[1], "=")
				if r.AggregationRule == nil {
					r.AggregationRule = &rbacv1.AggregationRule{}
				}
				r.AggregationRule.ClusterRoleSelectors = append(r.AggregationRule.ClusterRoleSelectors,
					metav1.LabelSelector{MatchLabels: map[string]string{k: v}})
				return nil
			}
			r.Rules, err = appendRule(r.Rules, f)
			return err
		}, nil
	case "clusterrolebinding", "rolebinding":
		if len(f) != 3 {
			return nil, fmt.Errorf("the role is missing")
		}
		kind, role, ok := strings.Cut(f[2], "/")
		if !ok {
			return nil, fmt.Errorf("%q is not Kind/name", f[2])
		}
		ref := rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: kind, Name: role}
		if f[0] == "rolebinding" {
			b := &rbacv1.RoleBinding{ObjectMeta: meta, RoleRef: ref}
			p.RoleBindings = append(p.RoleBindings, b)
			return func(f []string) (err error) { b.Subjects, err = appendSubject(b.Subjects, f); return err }, nil
		}
		b := &rbacv1.ClusterRoleBinding{ObjectMeta: meta, RoleRef: ref}
		p.ClusterRoleBindings = append(p.ClusterRoleBindings, b)
		return func(f []string) (err error) { b.Subjects, err = appendSubject(b.Subjects, f); return err }, nil
	}
	return nil, fmt.Errorf("unknown kind %q", f[0])
}

func appendRule(rules []rbacv1.PolicyRule, f []string) ([]rbacv1.PolicyRule, error) {
	if len(f) < 3 || len(f) > 4 {
		return nil, fmt.Errorf("a rule has three or four columns")
	}
	r := rbacv1.PolicyRule{Verbs: strings.Split(f[0], ",")}
	if f[1] == "path" {
		r.NonResourceURLs = strings.Split(f[2], ",")
		return append(rules, r), nil
	}
	r.APIGroups, r.Resources = strings.Split(f[1], ","), strings.Split(f[2], ",")
	for i, g := range r.APIGroups {
		if g == "core" {
			r.APIGroups[i] = ""
		}
	}
	if len(f) == 4 {
		r.ResourceNames = strings.Split(f[3], ",")
	}
	return append(rules, r), nil
}

func appendSubject(subjects []rbacv1.Subject, f []string) ([]rbacv1.Subject, error) {
	if len(f) != 2 {
		return nil, fmt.Errorf("a subject has two columns")
	}
	s := rbacv1.Subject{Kind: f[0], Name: f[1]}
	if s.Kind == rbacv1.ServiceAccountKind {
		ns, name, ok := strings.Cut(f[1], "/")
		if !ok {
			return nil, fmt.Errorf("a service account needs a namespace")
		}
		s.Namespace, s.Name = ns, name
	} else {
		s.APIGroup = rbacv1.GroupName
	}
	return append(subjects, s), nil
}

// aggregate fills in the rules of aggregated roles, which a controller keeps up
// to date later. Roles aggregate roles (admin has edit, edit has view), so it
// goes on until nothing changes; labels form no cycle.
func (p *Policy) aggregate() {
	for range p.ClusterRoles {
		for _, r := range p.ClusterRoles {
			if r.AggregationRule == nil {
				continue
			}
			var rules []rbacv1.PolicyRule
			for _, sel := range r.AggregationRule.ClusterRoleSelectors {
				for _, from := range p.ClusterRoles {
					if from != r && matches(sel.MatchLabels, from.Labels) {
						rules = append(rules, from.Rules...)
					}
				}
			}
			r.Rules = rules
		}
	}
}

func matches(want, have map[string]string) bool {
	for k, v := range want {
		if have[k] != v {
			return false
		}
	}
	return true
}
