package resources

import (
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

var csiStorageCapacities = Resource[storagev1.CSIStorageCapacity]{
	Group: "storage.k8s.io", Version: "v1", Kind: "CSIStorageCapacity", Plural: "csistoragecapacities",
	Prefix:       "csistoragecapacities",
	List:         func() runtime.Object { return &storagev1.CSIStorageCapacityList{} },
	NoGeneration: true,
}
