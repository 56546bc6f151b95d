package resources

import (
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

var roles = Resource[rbacv1.Role]{
	Group: "rbac.authorization.k8s.io", Version: "v1", Kind: "Role", Plural: "roles",
	Prefix:       "roles",
	List:         func() runtime.Object { return &rbacv1.RoleList{} },
	NoGeneration: true,
	Name:         PathSegment,
}
