package resources

import (
	appsv1 "k8s.io/api/apps/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

var statefulSets = Resource[appsv1.StatefulSet]{
	Group: "apps", Version: "v1", Kind: "StatefulSet", Plural: "statefulsets",
	Short:      []string{"sts"},
	Categories: []string{"all"},
	Prefix:     "statefulsets",
	List:       func() runtime.Object { return &appsv1.StatefulSetList{} },
	Status:     &Part[appsv1.StatefulSet]{},
	Subs: []Sub{
		{Name: "scale", Verbs: []string{"get", "patch", "update"}, Kind: schema.GroupVersionKind{Group: "autoscaling", Version: "v1", Kind: "Scale"}},
	},
}
