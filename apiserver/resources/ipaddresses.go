package resources

import (
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

var ipAddresses = Resource[networkingv1.IPAddress]{
	Group: "networking.k8s.io", Version: "v1", Kind: "IPAddress", Plural: "ipaddresses",
	Short:        []string{"ip"},
	Scope:        Cluster,
	Prefix:       "ipaddresses",
	List:         func() runtime.Object { return &networkingv1.IPAddressList{} },
	NoGeneration: true,
}
