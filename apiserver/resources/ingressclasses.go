package resources

import (
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

var ingressClasses = Resource[networkingv1.IngressClass]{
	Group: "networking.k8s.io", Version: "v1", Kind: "IngressClass", Plural: "ingressclasses",
	Scope:  Cluster,
	Prefix: "ingressclasses",
	List:   func() runtime.Object { return &networkingv1.IngressClassList{} },
}
