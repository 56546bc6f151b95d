package resources

import (
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

var volumeAttributesClasses = Resource[storagev1.VolumeAttributesClass]{
	Group: "storage.k8s.io", Version: "v1", Kind: "VolumeAttributesClass", Plural: "volumeattributesclasses",
	Short:        []string{"vac"},
	Scope:        Cluster,
	Prefix:       "volumeattributesclasses",
	List:         func() runtime.Object { return &storagev1.VolumeAttributesClassList{} },
	NoGeneration: true,
}
