package resources

import (
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

var endpointSlices = Resource[discoveryv1.EndpointSlice]{
	Group: "discovery.k8s.io", Version: "v1", Kind: "EndpointSlice", Plural: "endpointslices",
	Prefix: "endpointslices",
	List:   func() runtime.Object { return &discoveryv1.EndpointSliceList{} },
}
