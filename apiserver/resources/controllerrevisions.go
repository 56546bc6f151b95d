package resources

import (
	appsv1 "k8s.io/api/apps/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

var controllerRevisions = Resource[appsv1.ControllerRevision]{
	Group: "apps", Version: "v1", Kind: "ControllerRevision", Plural: "controllerrevisions",
	Prefix:       "controllerrevisions",
	List:         func() runtime.Object { return &appsv1.ControllerRevisionList{} },
	NoGeneration: true,
}
