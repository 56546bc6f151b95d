package resources

import (
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

var volumeAttachments = Resource[storagev1.VolumeAttachment]{
	Group: "storage.k8s.io", Version: "v1", Kind: "VolumeAttachment", Plural: "volumeattachments",
	Scope:        Cluster,
	Prefix:       "volumeattachments",
	List:         func() runtime.Object { return &storagev1.VolumeAttachmentList{} },
	NoGeneration: true,
	Status:       &Part[storagev1.VolumeAttachment]{},
}
