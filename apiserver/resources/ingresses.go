package resources

import (
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

var ingresses = Resource[networkingv1.Ingress]{
	Group: "networking.k8s.io", Version: "v1", Kind: "Ingress", Plural: "ingresses",
	Short:  []string{"ing"},
	Prefix: "ingress",
	List:   func() runtime.Object { return &networkingv1.IngressList{} },
	Status: &Part[networkingv1.Ingress]{},
}
