package resources

import (
	appsv1 "k8s.io/api/apps/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

var daemonSets = Resource[appsv1.DaemonSet]{
	Group: "apps", Version: "v1", Kind: "DaemonSet", Plural: "daemonsets",
	Short:      []string{"ds"},
	Categories: []string{"all"},
	Prefix:     "daemonsets",
	List:       func() runtime.Object { return &appsv1.DaemonSetList{} },
	Status:     &Part[appsv1.DaemonSet]{},
}
