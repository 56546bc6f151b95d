package resources

import (
	admissionv1 "k8s.io/api/admissionregistration/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

var mutatingAdmissionPolicyBindings = Resource[admissionv1.MutatingAdmissionPolicyBinding]{
	Group: "admissionregistration.k8s.io", Version: "v1", Kind: "MutatingAdmissionPolicyBinding", Plural: "mutatingadmissionpolicybindings",
	Categories: []string{"api-extensions"},
	Scope:      Cluster,
	Prefix:     "mutatingadmissionpolicybindings",
	List:       func() runtime.Object { return &admissionv1.MutatingAdmissionPolicyBindingList{} },
}
