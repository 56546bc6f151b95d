package resources

import (
	flowcontrolv1 "k8s.io/api/flowcontrol/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

var priorityLevelConfigurations = Resource[flowcontrolv1.PriorityLevelConfiguration]{
	Group: "flowcontrol.apiserver.k8s.io", Version: "v1", Kind: "PriorityLevelConfiguration", Plural: "prioritylevelconfigurations",
	Scope:  Cluster,
	Prefix: "prioritylevelconfigurations",
	List:   func() runtime.Object { return &flowcontrolv1.PriorityLevelConfigurationList{} },
	Status: &Part[flowcontrolv1.PriorityLevelConfiguration]{},
}
