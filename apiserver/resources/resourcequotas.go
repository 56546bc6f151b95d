package resources

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

var resourceQuotas = Resource[corev1.ResourceQuota]{
	Group: "", Version: "v1", Kind: "ResourceQuota", Plural: "resourcequotas",
	Short:        []string{"quota"},
	List:         func() runtime.Object { return &corev1.ResourceQuotaList{} },
	NoGeneration: true,
	Status:       &Part[corev1.ResourceQuota]{},
}
