package resources

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

var secrets = Resource[corev1.Secret]{
	Group: "", Version: "v1", Kind: "Secret", Plural: "secrets",
	List:         func() runtime.Object { return &corev1.SecretList{} },
	NoGeneration: true,
}
