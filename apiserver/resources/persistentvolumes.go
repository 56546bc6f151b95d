package resources

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

var persistentVolumes = Resource[corev1.PersistentVolume]{
	Group: "", Version: "v1", Kind: "PersistentVolume", Plural: "persistentvolumes",
	Short:        []string{"pv"},
	Scope:        Cluster,
	List:         func() runtime.Object { return &corev1.PersistentVolumeList{} },
	NoGeneration: true,
	Status:       &Part[corev1.PersistentVolume]{},
}
