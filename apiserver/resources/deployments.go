package resources

import (
	appsv1 "k8s.io/api/apps/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

var deployments = Resource[appsv1.Deployment]{
	Group: "apps", Version: "v1", Kind: "Deployment", Plural: "deployments",
	Short:      []string{"deploy"},
	Categories: []string{"all"},
	Prefix:     "deployments",
	List:       func() runtime.Object { return &appsv1.DeploymentList{} },
	Status:     &Part[appsv1.Deployment]{},
	Subs: []Sub{
		{Name: "scale", Verbs: []string{"get", "patch", "update"}, Kind: schema.GroupVersionKind{Group: "autoscaling", Version: "v1", Kind: "Scale"}},
	},
}
