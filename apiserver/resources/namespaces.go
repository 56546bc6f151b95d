package resources

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

var namespaces = Resource[corev1.Namespace]{
	Group: "", Version: "v1", Kind: "Namespace", Plural: "namespaces",
	Short:  []string{"ns"},
	Scope:  Cluster,
	Verbs:  []string{"create", "delete", "get", "list", "patch", "update", "watch"},
	List:   func() runtime.Object { return &corev1.NamespaceList{} },
	Status: &Part[corev1.Namespace]{},
	Parts:  map[string]Part[corev1.Namespace]{"finalize": {}},
}
