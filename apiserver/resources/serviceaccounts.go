package resources

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

var serviceAccounts = Resource[corev1.ServiceAccount]{
	Group: "", Version: "v1", Kind: "ServiceAccount", Plural: "serviceaccounts", WholeMeta: true, Short: []string{"sa"}, NoGeneration: true,
	List: listOf[corev1.ServiceAccountList],
	Main: Part[corev1.ServiceAccount]{Prepare: func(_ *Request, a, _ *corev1.ServiceAccount) {
		for i := range a.Secrets { // of the reference only the name means anything
			a.Secrets[i] = corev1.ObjectReference{Name: a.Secrets[i].Name}
		}
	}},
	Subs: []Sub{{
		Name: "token", Verbs: []string{"create"},
		Kind: schema.GroupVersionKind{Group: "authentication.k8s.io", Version: "v1", Kind: "TokenRequest"},
	}},
	Columns: []Column[corev1.ServiceAccount]{ageColumn[corev1.ServiceAccount]()},
}
