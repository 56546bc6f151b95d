package resources

import (
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

var csiNodes = Resource[storagev1.CSINode]{
	Group: "storage.k8s.io", Version: "v1", Kind: "CSINode", Plural: "csinodes",
	Scope:        Cluster,
	Prefix:       "csinodes",
	List:         func() runtime.Object { return &storagev1.CSINodeList{} },
	NoGeneration: true,
}
