package resources

import (
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

var csiDrivers = Resource[storagev1.CSIDriver]{
	Group: "storage.k8s.io", Version: "v1", Kind: "CSIDriver", Plural: "csidrivers",
	Scope:  Cluster,
	Prefix: "csidrivers",
	List:   func() runtime.Object { return &storagev1.CSIDriverList{} },
}
