package actions

import (
	"strings"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/keelson/keelson/apiserver/authn"
	"github.com/keelson/keelson/apiserver/authz"
	"github.com/keelson/keelson/apiserver/readertest"
)

// What a caller may do is told with what could not be found out: roles that it is bound to and that do not
// exist, and what only the node authorizer knows.
func TestRulesReview(t *testing.T) {
	bind := func(name, role string) *rbacv1.RoleBinding {
		return &rbacv1.RoleBinding{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: name},
			RoleRef: rbacv1.RoleRef{Kind: "Role", Name: role}, Subjects: []rbacv1.Subject{{Kind: "User", Name: "eve"}, {Kind: "User", Name: "system:node:n"}}}
	}
	a := &Actions{Config: Config{Node: true, RBAC: &authz.RBAC{Changed: func() int64 { return 1 }, Read: readertest.New(
		&rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "reader"}, Rules: []rbacv1.PolicyRule{{Verbs: []string{"get"}, APIGroups: []string{""}, Resources: []string{"pods"}}}},
		bind("1", "gone"), bind("2", "reader"), bind("3", "never"), bind("4", "gone"),
	)}}}
	const gone, never = `role.rbac.authorization.k8s.io "gone" not found`, `role.rbac.authorization.k8s.io "never" not found`
	const node = "node authorizer does not support user rule resolution"
	for _, c := range []struct {
		user       authn.User
		namespace  string
		rules      int
		incomplete bool
		fault      string
	}{
		{authn.User{Name: "eve"}, "a", 1, false, "[" + gone + ", " + never + "]"},
		{authn.User{Name: "eve"}, "b", 0, false, ""},
		{authn.User{Name: "bob"}, "a", 0, false, ""},
		{authn.User{Name: "system:node:n", Groups: []string{"system:nodes"}}, "a", 1, true, node + ", [" + gone + ", " + never + "]"},
	} {
		got, err := a.SelfSubjectRulesReview(&c.user, &authorizationv1.SelfSubjectRulesReview{Spec: authorizationv1.SelfSubjectRulesReviewSpec{Namespace: c.namespace}})
		if err != nil {
			t.Fatal(err)
		}
		if s := got.Status; len(s.ResourceRules) != c.rules || s.Incomplete != c.incomplete || s.EvaluationError != c.fault {
			t.Errorf("%s in %s: %+v; want %d rules, incomplete %v, %q", c.user.Name, c.namespace, s, c.rules, c.incomplete, c.fault)
		}
	}
	if _, err := a.SelfSubjectRulesReview(&authn.User{Name: "eve"}, &authorizationv1.SelfSubjectRulesReview{}); err == nil || !strings.Contains(err.Error(), "no namespace") {
		t.Errorf("without a namespace: %v", err)
	}
}

// Who one is says nothing of what was sent.
func TestSelfReview(t *testing.T) {
	in := &authenticationv1.SelfSubjectReview{ObjectMeta: metav1.ObjectMeta{Name: "x", ManagedFields: []metav1.ManagedFieldsEntry{{Manager: "m"}}},
		Status: authenticationv1.SelfSubjectReviewStatus{UserInfo: authenticationv1.UserInfo{Username: "root", UID: "7"}}}
	got := (&Actions{}).SelfSubjectReview(&authn.User{Name: "eve", Groups: []string{"g"}}, in)
	if got.Name != "" || got.ManagedFields != nil || got.Status.UserInfo.Username != "eve" || got.Status.UserInfo.UID != "" {
		t.Errorf("%+v", got)
	}
}
