package resources

import (
	resourcev1 "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

var resourceClaims = Resource[resourcev1.ResourceClaim]{
	Group: "resource.k8s.io", Version: "v1", Kind: "ResourceClaim", Plural: "resourceclaims",
	Prefix:       "resourceclaims",
	List:         func() runtime.Object { return &resourcev1.ResourceClaimList{} },
	NoGeneration: true,
	Status:       &Part[resourcev1.ResourceClaim]{},
}
