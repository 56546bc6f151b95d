package resources

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

var persistentVolumeClaims = Resource[corev1.PersistentVolumeClaim]{
	Group: "", Version: "v1", Kind: "PersistentVolumeClaim", Plural: "persistentvolumeclaims",
	Short:        []string{"pvc"},
	List:         func() runtime.Object { return &corev1.PersistentVolumeClaimList{} },
	NoGeneration: true,
	Status:       &Part[corev1.PersistentVolumeClaim]{},
}
