package resources

import (
	admissionv1 "k8s.io/api/admissionregistration/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

var validatingAdmissionPolicyBindings = Resource[admissionv1.ValidatingAdmissionPolicyBinding]{
	Group: "admissionregistration.k8s.io", Version: "v1", Kind: "ValidatingAdmissionPolicyBinding", Plural: "validatingadmissionpolicybindings",
	Categories: []string{"api-extensions"},
	Scope:      Cluster,
	Prefix:     "validatingadmissionpolicybindings",
	List:       func() runtime.Object { return &admissionv1.ValidatingAdmissionPolicyBindingList{} },
}
