package resources

import (
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

var serviceCIDRs = Resource[networkingv1.ServiceCIDR]{
	Group: "networking.k8s.io", Version: "v1", Kind: "ServiceCIDR", Plural: "servicecidrs",
	Scope:        Cluster,
	Prefix:       "servicecidrs",
	List:         func() runtime.Object { return &networkingv1.ServiceCIDRList{} },
	NoGeneration: true,
	Status:       &Part[networkingv1.ServiceCIDR]{},
}
