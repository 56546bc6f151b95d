package resources

import (
	admissionv1 "k8s.io/api/admissionregistration/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

var mutatingWebhookConfigurations = Resource[admissionv1.MutatingWebhookConfiguration]{
	Group: "admissionregistration.k8s.io", Version: "v1", Kind: "MutatingWebhookConfiguration", Plural: "mutatingwebhookconfigurations",
	Categories: []string{"api-extensions"},
	Scope:      Cluster,
	Prefix:     "mutatingwebhookconfigurations",
	List:       func() runtime.Object { return &admissionv1.MutatingWebhookConfigurationList{} },
}
