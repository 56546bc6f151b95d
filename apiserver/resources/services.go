package resources

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

func services(cfg Config) Resource[corev1.Service] {
	return Resource[corev1.Service]{
		Group: "", Version: "v1", Kind: "Service", Plural: "services",
		Short:      []string{"svc"},
		Categories: []string{"all"},
		Prefix:     "services/specs",
		List:       func() runtime.Object { return &corev1.ServiceList{} },
		Status:     &Part[corev1.Service]{},
		Subs: []Sub{
			{Name: "proxy", Verbs: []string{"create", "delete", "get", "patch", "update"}, Kind: schema.GroupVersionKind{Group: "", Version: "v1", Kind: "ServiceProxyOptions"}},
		},
	}
}
