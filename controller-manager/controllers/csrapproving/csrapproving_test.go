package csrapproving

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"strings"
	"testing"

	certificatesv1 "k8s.io/api/certificates/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	kruntime "k8s.io/apimachinery/pkg/runtime"

	"github.com/keelson/keelson/controller-manager/ctrltest"
	"github.com/keelson/keelson/controller-manager/runtime"
)

var key = ctrltest.Must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))

func request(name, user, org, usages string, dns ...string) *certificatesv1.CertificateSigningRequest {
	der := ctrltest.Must(x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "system:node:n1", Organization: []string{org}}, DNSNames: dns}, key))
	csr := &certificatesv1.CertificateSigningRequest{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: certificatesv1.CertificateSigningRequestSpec{
		Request: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), SignerName: certificatesv1.KubeAPIServerClientKubeletSignerName, Username: user,
	}}
	for _, u := range strings.Split(usages, ",") {
		csr.Spec.Usages = append(csr.Spec.Usages, certificatesv1.KeyUsage(u))
	}
	return csr
}

const good = "client auth,digital signature"

func TestRecognize(t *testing.T) {
	for _, c := range []struct {
		name string
		csr  *certificatesv1.CertificateSigningRequest
		want string
	}{
		{"a machine that joins", request("a", "system:bootstrap:x", "system:nodes", good+",key encipherment"), "nodeclient"},
		{"the node itself", request("a", "system:node:n1", "system:nodes", good), "selfnodeclient nodeclient"},
		{"another organization", request("a", "system:node:n1", "system:masters", good), ""},
		{"a server's usage", request("a", "system:node:n1", "system:nodes", good+",server auth"), ""},
		{"no signatures", request("a", "system:node:n1", "system:nodes", "client auth"), ""},
		{"other names", request("a", "system:node:n1", "system:nodes", good, "example.com"), ""},
	} {
		var got []string
		for _, k := range Recognize(c.csr) {
			got = append(got, k.Permission)
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("%s: want %q, got %q", c.name, c.want, got)
		}
	}
	serving := request("a", "system:node:n1", "system:nodes", good)
	serving.Spec.SignerName = certificatesv1.KubeletServingSignerName
	if Recognize(serving) != nil {
		t.Error("serving certificates are never approved by themselves")
	}
}

func TestApprovalNeedsPermission(t *testing.T) {
	objects := []kruntime.Object{
		request("joins", "system:bootstrap:x", "system:nodes", good), request("self", "system:node:n1", "system:nodes", good), request("stranger", "eve", "system:nodes", good),
	}
	ctrltest.Test(t, []runtime.Row{Row}, nil, func(t *testing.T, h *ctrltest.Harness) {
		h.API.Answer("subjectaccessreviews", func(o *unstructured.Unstructured) {
			user, _, _ := unstructured.NestedString(o.Object, "spec", "user")
			sub, _, _ := unstructured.NestedString(o.Object, "spec", "resourceAttributes", "subresource")
			_ = unstructured.SetNestedField(o.Object, user != "eve" && sub == "nodeclient", "status", "allowed")
		})
		for _, o := range objects {
			h.Add(o)
		}
		h.Rest()
		for name, want := range map[string]int{"joins": 1, "self": 1, "stranger": 0} {
			csr := ctrltest.Must(h.Client.CertificatesV1().CertificateSigningRequests().Get(context.Background(), name, metav1.GetOptions{}))
			if len(csr.Status.Conditions) != want || want == 1 && (csr.Status.Conditions[0].Type != certificatesv1.CertificateApproved || csr.Status.Conditions[0].Reason != "AutoApproved") {
				t.Errorf("%s: %+v", name, csr.Status.Conditions)
			}
		}
	})
}
