package resources

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

var componentStatuses = Resource[corev1.ComponentStatus]{
	Group: "", Version: "v1", Kind: "ComponentStatus", Plural: "componentstatuses",
	Short:        []string{"cs"},
	Scope:        Cluster,
	Verbs:        []string{"get", "list"},
	List:         func() runtime.Object { return &corev1.ComponentStatusList{} },
	NoGeneration: true,
}
