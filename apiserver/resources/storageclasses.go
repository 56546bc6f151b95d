package resources

import (
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

var storageClasses = Resource[storagev1.StorageClass]{
	Group: "storage.k8s.io", Version: "v1", Kind: "StorageClass", Plural: "storageclasses",
	Short:        []string{"sc"},
	Scope:        Cluster,
	Prefix:       "storageclasses",
	List:         func() runtime.Object { return &storagev1.StorageClassList{} },
	NoGeneration: true,
}
