package resources

import (
	certificatesv1 "k8s.io/api/certificates/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

var certificateSigningRequests = Resource[certificatesv1.CertificateSigningRequest]{
	Group: "certificates.k8s.io", Version: "v1", Kind: "CertificateSigningRequest", Plural: "certificatesigningrequests",
	Short:        []string{"csr"},
	Scope:        Cluster,
	Prefix:       "certificatesigningrequests",
	List:         func() runtime.Object { return &certificatesv1.CertificateSigningRequestList{} },
	NoGeneration: true,
	Status:       &Part[certificatesv1.CertificateSigningRequest]{},
	Parts:        map[string]Part[certificatesv1.CertificateSigningRequest]{"approval": {}},
}
