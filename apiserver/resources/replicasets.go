package resources

import (
	appsv1 "k8s.io/api/apps/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

var replicaSets = Resource[appsv1.ReplicaSet]{
	Group: "apps", Version: "v1", Kind: "ReplicaSet", Plural: "replicasets",
	Short:      []string{"rs"},
	Categories: []string{"all"},
	Prefix:     "replicasets",
	List:       func() runtime.Object { return &appsv1.ReplicaSetList{} },
	Status:     &Part[appsv1.ReplicaSet]{},
	Subs: []Sub{
		{Name: "scale", Verbs: []string{"get", "patch", "update"}, Kind: schema.GroupVersionKind{Group: "autoscaling", Version: "v1", Kind: "Scale"}},
	},
}
