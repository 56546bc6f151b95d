package resources

import (
	resourcev1 "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

var resourceSlices = Resource[resourcev1.ResourceSlice]{
	Group: "resource.k8s.io", Version: "v1", Kind: "ResourceSlice", Plural: "resourceslices",
	Scope:  Cluster,
	Prefix: "resourceslices",
	List:   func() runtime.Object { return &resourcev1.ResourceSliceList{} },
}
