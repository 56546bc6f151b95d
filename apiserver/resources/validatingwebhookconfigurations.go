package resources

import (
	admissionv1 "k8s.io/api/admissionregistration/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

var validatingWebhookConfigurations = Resource[admissionv1.ValidatingWebhookConfiguration]{
	Group: "admissionregistration.k8s.io", Version: "v1", Kind: "ValidatingWebhookConfiguration", Plural: "validatingwebhookconfigurations",
	Categories: []string{"api-extensions"},
	Scope:      Cluster,
	Prefix:     "validatingwebhookconfigurations",
	List:       func() runtime.Object { return &admissionv1.ValidatingWebhookConfigurationList{} },
}
