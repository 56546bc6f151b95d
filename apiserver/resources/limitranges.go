package resources

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

var limitRanges = Resource[corev1.LimitRange]{
	Group: "", Version: "v1", Kind: "LimitRange", Plural: "limitranges",
	Short:        []string{"limits"},
	List:         func() runtime.Object { return &corev1.LimitRangeList{} },
	NoGeneration: true,
}
