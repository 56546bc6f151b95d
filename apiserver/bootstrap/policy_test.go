package bootstrap

import (
	"strings"
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"

	"github.com/keelson/keelson/apiserver/authz"
)

func TestDefaultPolicy(t *testing.T) {
	p, err := DefaultPolicy()
	if err != nil {
		t.Fatal(err)
	}
	roles := map[string]*rbacv1.ClusterRole{}
	for _, r := range p.ClusterRoles {
		roles[r.Name] = r
	}
	for _, b := range p.ClusterRoleBindings {
		if roles[b.RoleRef.Name] == nil {
			t.Errorf("binding %s names the role %s, which is not in the policy", b.Name, b.RoleRef.Name)
		}
	}
	may := func(role, verb, group, plural string) bool {
		for i := range roles[role].Rules {
			if authz.Allows(&roles[role].Rules[i], &authz.Attributes{Verb: verb, Resource: true, Group: group, Plural: plural}) {
				return true
			}
		}
		return false
	}
	for _, c := range []struct {
		role, verb, group, plural string
		want                      bool
	}{
		{"view", "get", "", "pods", true},
		{"view", "delete", "", "pods", false},
		{"view", "get", "", "secrets", false},
		{"edit", "delete", "", "pods", true},
		{"edit", "create", "rbac.authorization.k8s.io", "rolebindings", false},
		{"admin", "create", "rbac.authorization.k8s.io", "rolebindings", true},
		{"admin", "get", "", "pods", true},
		{"cluster-admin", "escalate", "anything", "at-all", true},
	} {
		if got := may(c.role, c.verb, c.group, c.plural); got != c.want {
			t.Errorf("%s may %s %s.%s: got %v, want %v", c.role, c.verb, c.plural, c.group, got, c.want)
		}
	}
	if len(p.NodeRules()) == 0 {
		t.Error("system:node has no rules")
	}
}

func TestParsePolicyNamesTheLine(t *testing.T) {
	for text, want := range map[string]string{
		"  get core pods":               "line 1",
		"clusterrole a\n  get core":     "line 2",
		"rolebinding a/b":               "the role is missing",
		"thing x":                       `unknown kind "thing"`,
		"role onlyname":                 "a namespace is missing",
		"clusterrolebinding a R/b\n  X": "two columns",
	} {
		_, err := parsePolicy(text)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("parsePolicy(%q) = %v, want an error with %q", text, err, want)
		}
	}
}
