package resources

import (
	coordinationv1 "k8s.io/api/coordination/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

var leases = Resource[coordinationv1.Lease]{
	Group: "coordination.k8s.io", Version: "v1", Kind: "Lease", Plural: "leases",
	Prefix:       "leases",
	List:         func() runtime.Object { return &coordinationv1.LeaseList{} },
	NoGeneration: true,
}
