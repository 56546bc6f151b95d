package resources

import (
	crdv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

var customResourceDefinitions = Resource[crdv1.CustomResourceDefinition]{
	Group: "apiextensions.k8s.io", Version: "v1", Kind: "CustomResourceDefinition", Plural: "customresourcedefinitions",
	Short:      []string{"crd", "crds"},
	Categories: []string{"api-extensions"},
	Scope:      Cluster,
	Prefix:     "apiextensions.k8s.io/customresourcedefinitions",
	List:       func() runtime.Object { return &crdv1.CustomResourceDefinitionList{} },
	Status:     &Part[crdv1.CustomResourceDefinition]{},
}
