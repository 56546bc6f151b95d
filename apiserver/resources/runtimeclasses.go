package resources

import (
	nodev1 "k8s.io/api/node/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

var runtimeClasses = Resource[nodev1.RuntimeClass]{
	Group: "node.k8s.io", Version: "v1", Kind: "RuntimeClass", Plural: "runtimeclasses",
	Scope:        Cluster,
	Prefix:       "runtimeclasses",
	List:         func() runtime.Object { return &nodev1.RuntimeClassList{} },
	NoGeneration: true,
}
