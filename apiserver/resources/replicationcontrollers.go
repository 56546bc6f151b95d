package resources

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

var replicationControllers = Resource[corev1.ReplicationController]{
	Group: "", Version: "v1", Kind: "ReplicationController", Plural: "replicationcontrollers",
	Short:      []string{"rc"},
	Categories: []string{"all"},
	Prefix:     "controllers",
	List:       func() runtime.Object { return &corev1.ReplicationControllerList{} },
	Status:     &Part[corev1.ReplicationController]{},
	Subs: []Sub{
		{Name: "scale", Verbs: []string{"get", "patch", "update"}, Kind: schema.GroupVersionKind{Group: "autoscaling", Version: "v1", Kind: "Scale"}},
	},
}
