package resources

import (
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

var clusterRoleBindings = Resource[rbacv1.ClusterRoleBinding]{
	Group: "rbac.authorization.k8s.io", Version: "v1", Kind: "ClusterRoleBinding", Plural: "clusterrolebindings",
	Scope:        Cluster,
	Prefix:       "clusterrolebindings",
	List:         func() runtime.Object { return &rbacv1.ClusterRoleBindingList{} },
	NoGeneration: true,
	Name:         PathSegment,
}
