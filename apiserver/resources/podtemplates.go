package resources

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

var podTemplates = Resource[corev1.PodTemplate]{
	Group: "", Version: "v1", Kind: "PodTemplate", Plural: "podtemplates",
	List: func() runtime.Object { return &corev1.PodTemplateList{} },
}
