package authz_test

import (
	"context"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	resourcev1 "k8s.io/api/resource/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"

	"github.com/keelson/keelson/apiserver/authn"
	"github.com/keelson/keelson/apiserver/authz"
	"github.com/keelson/keelson/apiserver/readertest"
	"github.com/keelson/keelson/apiserver/resources"
)

func rule(verbs, groups, res string, names ...string) rbacv1.PolicyRule {
	return rbacv1.PolicyRule{Verbs: strings.Split(verbs, ","), APIGroups: strings.Split(groups, ","), Resources: strings.Split(res, ","), ResourceNames: names}
}

func TestAllows(t *testing.T) {
	ask := func(verb, group, plural, sub, name string) authz.Attributes {
		return authz.Attributes{Verb: verb, Resource: true, Group: group, Plural: plural, Subresource: sub, Name: name}
	}
	for _, c := range []struct {
		text string
		rule rbacv1.PolicyRule
		ask  authz.Attributes
		want bool
	}{
		{"the verb and resource named", rule("get", "", "pods"), ask("get", "", "pods", "", "a"), true},
		{"another verb", rule("get", "", "pods"), ask("list", "", "pods", "", ""), false},
		{"another group", rule("get", "apps", "pods"), ask("get", "", "pods", "", "a"), false},
		{"everything", rule("*", "*", "*"), ask("delete", "x", "y", "z", "a"), true},
		{"a resource does not include its subresources", rule("get", "", "pods"), ask("get", "", "pods", "log", "a"), false},
		{"a subresource of its own", rule("get", "", "pods/log"), ask("get", "", "pods", "log", "a"), true},
		{"a subresource of any resource", rule("update", "*", "*/scale"), ask("update", "apps", "deployments", "scale", "a"), true},
		{"the name given", rule("get", "", "secrets", "a"), ask("get", "", "secrets", "", "a"), true},
		{"another name", rule("get", "", "secrets", "a"), ask("get", "", "secrets", "", "b"), false},
		{"a name never allows create", rule("create", "", "secrets", "a"), ask("create", "", "secrets", "", ""), false},
		{"a path below", rbacv1.PolicyRule{Verbs: []string{"get"}, NonResourceURLs: []string{"/api/*"}}, authz.Attributes{Verb: "get", Path: "/api/v1"}, true},
		{"a path beside", rbacv1.PolicyRule{Verbs: []string{"get"}, NonResourceURLs: []string{"/api/*"}}, authz.Attributes{Verb: "get", Path: "/apis"}, false},
	} {
		if got := authz.Allows(&c.rule, &c.ask); got != c.want {
			t.Errorf("%s: rule %v, asked %+v: got %v, want %v", c.text, c.rule, c.ask, got, c.want)
		}
	}
}

func TestCovers(t *testing.T) {
	for _, c := range []struct {
		text       string
		have, want []rbacv1.PolicyRule
		missing    int
	}{
		{"the same", []rbacv1.PolicyRule{rule("get,list", "", "pods")}, []rbacv1.PolicyRule{rule("get", "", "pods")}, 0},
		{"two halves make a whole", []rbacv1.PolicyRule{rule("get", "", "pods"), rule("list", "", "pods")}, []rbacv1.PolicyRule{rule("get,list", "", "pods")}, 0},
		{"one verb too many", []rbacv1.PolicyRule{rule("get", "", "pods")}, []rbacv1.PolicyRule{rule("get,delete", "", "pods")}, 1},
		{"a name does not cover all names", []rbacv1.PolicyRule{rule("get", "", "pods", "a")}, []rbacv1.PolicyRule{rule("get", "", "pods")}, 1},
		{"all names cover a name", []rbacv1.PolicyRule{rule("get", "", "pods")}, []rbacv1.PolicyRule{rule("get", "", "pods", "a")}, 0},
		{"a star covers subresources", []rbacv1.PolicyRule{rule("*", "*", "*")}, []rbacv1.PolicyRule{rule("get", "apps", "deployments/scale")}, 0},
		{"nothing covers a star but a star", []rbacv1.PolicyRule{rule("get,list,watch,create", "", "pods")}, []rbacv1.PolicyRule{rule("*", "", "pods")}, 1},
	} {
		if got := authz.Covers(c.have, c.want); len(got) != c.missing {
			t.Errorf("%s: missing %v, want %d rules", c.text, got, c.missing)
		}
	}
}

func TestRBAC(t *testing.T) {
	role := &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "reader"}, Rules: []rbacv1.PolicyRule{rule("get", "", "pods")}}
	tree := readertest.New(role,
		&rbacv1.RoleBinding{
			ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "b"}, RoleRef: rbacv1.RoleRef{Kind: "ClusterRole", Name: "reader"},
			Subjects: []rbacv1.Subject{{Kind: "User", Name: "eve"}, {Kind: "ServiceAccount", Name: "bot"}},
		})
	rev := int64(1)
	z := &authz.RBAC{Read: tree, Changed: func() int64 { return rev }}
	may := func(user, namespace string) bool {
		d, _, err := z.Authorize(context.Background(), authz.Attributes{
			User: &authn.User{Name: user}, Verb: "get", Resource: true, Plural: "pods", Namespace: namespace, Name: "x"})
		if err != nil {
			t.Fatal(err)
		}
		return d == authz.Allow
	}
	for _, c := range []struct {
		user, namespace string
		want            bool
	}{
		{"eve", "a", true}, {"eve", "other", false}, {"eve", "", false}, {"bob", "a", false},
		{"system:serviceaccount:a:bot", "a", true}, {"system:serviceaccount:other:bot", "a", false},
	} {
		if got := may(c.user, c.namespace); got != c.want {
			t.Errorf("%s in %q: got %v, want %v", c.user, c.namespace, got, c.want)
		}
	}
	empty := role.DeepCopy()
	empty.Rules = nil
	tree.Put(empty)
	rev++
	if may("eve", "a") {
		t.Error("a rule that was taken away still allows")
	}
}

// A refusal says which roles the asker is bound to that do not exist. What allows has no need to.
func TestMissingRoles(t *testing.T) {
	bind := func(name, kind, role string) *rbacv1.RoleBinding {
		return &rbacv1.RoleBinding{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: name},
			RoleRef: rbacv1.RoleRef{Kind: kind, Name: role}, Subjects: []rbacv1.Subject{{Kind: "User", Name: "eve"}}}
	}
	z := &authz.RBAC{Changed: func() int64 { return 1 }, Read: readertest.New(
		&rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "reader"}, Rules: []rbacv1.PolicyRule{rule("get", "", "pods")}},
		&rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "empty"}},
		bind("1", "Role", "gone"), bind("2", "ClusterRole", "never"), bind("3", "Role", "gone"), bind("4", "Role", "reader"), bind("5", "Role", "empty"),
		&rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: "all"}, RoleRef: rbacv1.RoleRef{Kind: "ClusterRole", Name: "far"}, Subjects: []rbacv1.Subject{{Kind: "Group", Name: "g"}}},
	)}
	const gone, never, far = `role.rbac.authorization.k8s.io "gone" not found`, `clusterrole.rbac.authorization.k8s.io "never" not found`, `clusterrole.rbac.authorization.k8s.io "far" not found`
	for _, c := range []struct {
		user                  authn.User
		verb, namespace, want string
	}{
		{authn.User{Name: "eve"}, "list", "a", "RBAC: [" + gone + ", " + never + "]"},
		{authn.User{Name: "eve"}, "list", "b", ""},
		{authn.User{Name: "bob", Groups: []string{"g"}}, "get", "b", "RBAC: " + far},
		{authn.User{Name: "eve"}, "get", "a", `RBAC: allowed by RoleBinding "4/a" of Role "reader" to User "eve"`},
	} {
		_, reason, err := z.Authorize(context.Background(), authz.Attributes{User: &c.user, Verb: c.verb, Resource: true, Plural: "pods", Namespace: c.namespace})
		if err != nil || reason != c.want {
			t.Errorf("%s %s in %s: %q, %v; want %q", c.user.Name, c.verb, c.namespace, reason, err, c.want)
		}
	}
}

func TestNode(t *testing.T) {
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "p"},
		Spec: corev1.PodSpec{
			NodeName: "n1", ServiceAccountName: "bot",
			Containers: []corev1.Container{{
				Name:    "c",
				EnvFrom: []corev1.EnvFromSource{{SecretRef: &corev1.SecretEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "env"}}}},
			}},
			Volumes: []corev1.Volume{
				{Name: "s", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "vol"}}},
				{Name: "c", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "claim"}}},
			},
		},
	}
	n1 := "n1"
	tree := readertest.New(pod, &resourcev1.ResourceSlice{ObjectMeta: metav1.ObjectMeta{Name: "s1"}, Spec: resourcev1.ResourceSliceSpec{NodeName: &n1}},
		&corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "claim"}, Spec: corev1.PersistentVolumeClaimSpec{VolumeName: "pv1"}},
		&corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "pv1"}})
	z := &authz.Node{
		Read: tree, Rules: []rbacv1.PolicyRule{rule("get,list,watch", "", "services")},
		Pods: func(node string, yield func(*corev1.Pod) bool) error {
			return tree.Each(corev1.Resource("pods"), "", func(o resources.Object) bool {
				p := o.(*corev1.Pod)
				return p.Spec.NodeName != node || yield(p)
			})
		},
	}
	for _, c := range []struct {
		node, verb, group, plural, sub, namespace, name, where string
		want                                                   bool
	}{
		{"n1", "list", "", "pods", "", "", "", "spec.nodeName=n1", true},
		{"n1", "watch", "", "pods", "", "", "", "spec.nodeName=n1,status.phase!=Failed", true},
		{"n1", "list", "", "pods", "", "", "", "", false},
		{"n1", "list", "", "pods", "", "", "", "spec.nodeName!=n1", false},
		{"n2", "list", "", "pods", "", "", "", "spec.nodeName=n1", false},
		{"n1", "get", "", "pods", "", "ns", "p", "", true},
		{"n2", "get", "", "pods", "", "ns", "p", "", false},
		{"n1", "watch", "", "pods", "", "ns", "p", "metadata.name=p", true},
		{"n1", "list", "", "nodes", "", "", "", "", false},
		{"n1", "watch", "", "nodes", "", "", "n1", "metadata.name=n1", true},
		{"n1", "list", "", "nodes", "", "", "n2", "metadata.name=n2", false},
		{"n1", "create", "resource.k8s.io", "resourceslices", "", "", "", "", true},
		{"n1", "get", "resource.k8s.io", "resourceslices", "", "", "s1", "", true},
		{"n2", "delete", "resource.k8s.io", "resourceslices", "", "", "s1", "", false},
		{"n1", "deletecollection", "resource.k8s.io", "resourceslices", "", "", "", "spec.nodeName=n1", true},
		{"n1", "deletecollection", "resource.k8s.io", "resourceslices", "", "", "", "", false},
		{"n1", "get", "", "secrets", "", "ns", "env", "", true},
		{"n1", "watch", "", "secrets", "", "ns", "vol", "", true},
		{"n1", "get", "", "secrets", "", "other", "env", "", false},
		{"n1", "get", "", "secrets", "", "ns", "else", "", false},
		{"n1", "list", "", "secrets", "", "ns", "", "", false},
		{"n1", "update", "", "secrets", "", "ns", "env", "", false},
		{"n2", "get", "", "secrets", "", "ns", "env", "", false},
		{"n1", "get", "", "persistentvolumes", "", "", "pv1", "", true},
		{"n2", "get", "", "persistentvolumes", "", "", "pv1", "", false},
		{"n1", "create", "", "serviceaccounts", "token", "ns", "bot", "", true},
		{"n2", "create", "", "serviceaccounts", "token", "ns", "bot", "", false},
		{"n1", "update", "coordination.k8s.io", "leases", "", "kube-node-lease", "n1", "", true},
		{"n1", "update", "coordination.k8s.io", "leases", "", "kube-node-lease", "n2", "", false},
		{"n1", "list", "", "services", "", "", "", "", true},
		{"n1", "get", "", "nodes", "", "", "n2", "", false},
	} {
		sel, err := fields.ParseSelector(c.where)
		if err != nil {
			t.Fatal(err)
		}
		d, reason, err := z.Authorize(context.Background(), authz.Attributes{Fields: sel.Requirements(),
			User: &authn.User{Name: "system:node:" + c.node, Groups: []string{authn.GroupNodes}},
			Verb: c.verb, Resource: true, Group: c.group, Plural: c.plural, Subresource: c.sub, Namespace: c.namespace, Name: c.name})
		if err != nil || (d == authz.Allow) != c.want {
			t.Errorf("%+v: got %v (%s) %v, want allowed=%v", c, d, reason, err, c.want)
		}
	}
}
