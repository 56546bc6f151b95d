package resources

import (
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

var roleBindings = Resource[rbacv1.RoleBinding]{
	Group: "rbac.authorization.k8s.io", Version: "v1", Kind: "RoleBinding", Plural: "rolebindings",
	Prefix:       "rolebindings",
	List:         func() runtime.Object { return &rbacv1.RoleBindingList{} },
	NoGeneration: true,
	Name:         PathSegment,
}
