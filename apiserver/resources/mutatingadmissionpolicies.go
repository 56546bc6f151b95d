package resources

import (
	admissionv1 "k8s.io/api/admissionregistration/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

var mutatingAdmissionPolicies = Resource[admissionv1.MutatingAdmissionPolicy]{
	Group: "admissionregistration.k8s.io", Version: "v1", Kind: "MutatingAdmissionPolicy", Plural: "mutatingadmissionpolicies",
	Categories: []string{"api-extensions"},
	Scope:      Cluster,
	Prefix:     "mutatingadmissionpolicies",
	List:       func() runtime.Object { return &admissionv1.MutatingAdmissionPolicyList{} },
}
