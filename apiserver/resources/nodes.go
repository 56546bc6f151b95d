package resources

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

var nodes = Resource[corev1.Node]{
	Group: "", Version: "v1", Kind: "Node", Plural: "nodes",
	Short:  []string{"no"},
	Scope:  Cluster,
	Prefix: "minions",
	List:   func() runtime.Object { return &corev1.NodeList{} },
	Status: &Part[corev1.Node]{},
	Subs: []Sub{
		{Name: "proxy", Verbs: []string{"create", "delete", "get", "patch", "update"}, Kind: schema.GroupVersionKind{Group: "", Version: "v1", Kind: "NodeProxyOptions"}},
	},
}
