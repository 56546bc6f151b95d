package resources

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

var endpoints = Resource[corev1.Endpoints]{
	Group: "", Version: "v1", Kind: "Endpoints", Plural: "endpoints",
	Singular:     "endpoints",
	Short:        []string{"ep"},
	Prefix:       "services/endpoints",
	List:         func() runtime.Object { return &corev1.EndpointsList{} },
	NoGeneration: true,
}
