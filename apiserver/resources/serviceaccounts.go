package resources

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

var serviceAccounts = Resource[corev1.ServiceAccount]{
	Group: "", Version: "v1", Kind: "ServiceAccount", Plural: "serviceaccounts",
	Short:        []string{"sa"},
	List:         func() runtime.Object { return &corev1.ServiceAccountList{} },
	NoGeneration: true,
	Subs: []Sub{
		{Name: "token", Verbs: []string{"create"}, Kind: schema.GroupVersionKind{Group: "authentication.k8s.io", Version: "v1", Kind: "TokenRequest"}},
	},
}
