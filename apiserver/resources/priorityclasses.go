package resources

import (
	schedulingv1 "k8s.io/api/scheduling/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

var priorityClasses = Resource[schedulingv1.PriorityClass]{
	Group: "scheduling.k8s.io", Version: "v1", Kind: "PriorityClass", Plural: "priorityclasses",
	Short:  []string{"pc"},
	Scope:  Cluster,
	Prefix: "priorityclasses",
	List:   func() runtime.Object { return &schedulingv1.PriorityClassList{} },
}
