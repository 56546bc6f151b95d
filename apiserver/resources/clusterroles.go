package resources

import (
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

var clusterRoles = Resource[rbacv1.ClusterRole]{
	Group: "rbac.authorization.k8s.io", Version: "v1", Kind: "ClusterRole", Plural: "clusterroles",
	Scope:        Cluster,
	Prefix:       "clusterroles",
	List:         func() runtime.Object { return &rbacv1.ClusterRoleList{} },
	NoGeneration: true,
	Name:         PathSegment,
}
