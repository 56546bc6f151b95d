package resources

import (
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

var networkPolicies = Resource[networkingv1.NetworkPolicy]{
	Group: "networking.k8s.io", Version: "v1", Kind: "NetworkPolicy", Plural: "networkpolicies",
	Short:  []string{"netpol"},
	Prefix: "networkpolicies",
	List:   func() runtime.Object { return &networkingv1.NetworkPolicyList{} },
}
