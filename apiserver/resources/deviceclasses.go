package resources

import (
	resourcev1 "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

var deviceClasses = Resource[resourcev1.DeviceClass]{
	Group: "resource.k8s.io", Version: "v1", Kind: "DeviceClass", Plural: "deviceclasses",
	Scope:  Cluster,
	Prefix: "deviceclasses",
	List:   func() runtime.Object { return &resourcev1.DeviceClassList{} },
}
