package resources

import (
	resourcev1 "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

var resourceClaimTemplates = Resource[resourcev1.ResourceClaimTemplate]{
	Group: "resource.k8s.io", Version: "v1", Kind: "ResourceClaimTemplate", Plural: "resourceclaimtemplates",
	Prefix:       "resourceclaimtemplates",
	List:         func() runtime.Object { return &resourcev1.ResourceClaimTemplateList{} },
	NoGeneration: true,
}
