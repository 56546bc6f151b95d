package resources

import (
	admissionv1 "k8s.io/api/admissionregistration/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

var validatingAdmissionPolicies = Resource[admissionv1.ValidatingAdmissionPolicy]{
	Group: "admissionregistration.k8s.io", Version: "v1", Kind: "ValidatingAdmissionPolicy", Plural: "validatingadmissionpolicies",
	Categories: []string{"api-extensions"},
	Scope:      Cluster,
	Prefix:     "validatingadmissionpolicies",
	List:       func() runtime.Object { return &admissionv1.ValidatingAdmissionPolicyList{} },
	Status:     &Part[admissionv1.ValidatingAdmissionPolicy]{},
}
