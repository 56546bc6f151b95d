package resources

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

var configMaps = Resource[corev1.ConfigMap]{
	Group: "", Version: "v1", Kind: "ConfigMap", Plural: "configmaps",
	Short:        []string{"cm"},
	List:         func() runtime.Object { return &corev1.ConfigMapList{} },
	NoGeneration: true,
}
