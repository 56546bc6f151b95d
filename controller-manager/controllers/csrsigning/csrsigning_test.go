package csrsigning

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kruntime "k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/util/cert"
	"k8s.io/client-go/util/keyutil"

	"github.com/keelson/keelson/controller-manager/ctrltest"
	"github.com/keelson/keelson/controller-manager/runtime"
)

var (
	start = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)
	key   = ctrltest.Must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
)

type change func(*x509.CertificateRequest, *certificatesv1.CertificateSigningRequest)

func request(name, signer, cn, org, usages string, changes ...change) *certificatesv1.CertificateSigningRequest {
	req := &x509.CertificateRequest{Subject: pkix.Name{CommonName: cn, Organization: []string{org}}}
	csr := &certificatesv1.CertificateSigningRequest{ObjectMeta: metav1.ObjectMeta{Name: name, CreationTimestamp: metav1.NewTime(start)}, Spec: certificatesv1.CertificateSigningRequestSpec{SignerName: signer}}
	for _, u := range strings.Split(usages, ",") {
		csr.Spec.Usages = append(csr.Spec.Usages, certificatesv1.KeyUsage(u))
	}
	for _, f := range changes {
		f(req, csr)
	}
	csr.Spec.Request = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: ctrltest.Must(x509.CreateCertificateRequest(rand.Reader, req, key))})
	return csr
}

func is(kind certificatesv1.RequestConditionType) change {
	return func(_ *x509.CertificateRequest, c *certificatesv1.CertificateSigningRequest) {
		c.Status.Conditions = append(c.Status.Conditions, certificatesv1.CertificateSigningRequestCondition{Type: kind, Status: corev1.ConditionTrue, LastUpdateTime: metav1.NewTime(start)})
	}
}

func named(dns string) change {
	return func(r *x509.CertificateRequest, _ *certificatesv1.CertificateSigningRequest) {
		r.DNSNames = []string{dns}
	}
}

func lasting(seconds int32) change {
	return func(_ *x509.CertificateRequest, c *certificatesv1.CertificateSigningRequest) {
		c.Spec.ExpirationSeconds = &seconds
	}
}

const (
	kubelet = certificatesv1.KubeAPIServerClientKubeletSignerName
	serving = certificatesv1.KubeletServingSignerName
	client  = certificatesv1.KubeAPIServerClientSignerName
	auth    = "client auth,digital signature"
	server  = "server auth,digital signature,key encipherment"
)

func TestTemplate(t *testing.T) {
	ca := &x509.Certificate{NotAfter: start.Add(100 * time.Hour)}
	for _, c := range []struct {
		name  string
		csr   *certificatesv1.CertificateSigningRequest
		fault string
		life  time.Duration // until NotAfter
	}{
		{"a kubelet's", request("a", kubelet, "system:node:n", "system:nodes", auth), "", 48*time.Hour - backdate},
		{"a short one", request("a", kubelet, "system:node:n", "system:nodes", auth, lasting(3600)), "", time.Hour},
		{"shorter than allowed", request("a", kubelet, "system:node:n", "system:nodes", auth, lasting(60)), "", 10 * time.Minute},
		{"a kubelet's with a name", request("a", kubelet, "system:node:n", "system:nodes", auth, named("x")), "alternative names", 0},
		{"a kubelet's in the wrong group", request("a", kubelet, "system:node:n", "system:masters", auth), "organization", 0},
		{"a kubelet's that signs nothing", request("a", kubelet, "system:node:n", "system:nodes", "client auth"), "digital signature", 0},
		{"serving", request("a", serving, "system:node:n", "system:nodes", server, named("n")), "", 48*time.Hour - backdate},
		{"serving nobody", request("a", serving, "system:node:n", "system:nodes", server), "subjectAltName", 0},
		{"serving as a client", request("a", serving, "system:node:n", "system:nodes", auth, named("n")), "server auth", 0},
		{"a user's", request("a", client, "jane", "dev", "client auth"), "", 48*time.Hour - backdate},
		{"a user's that serves", request("a", client, "jane", "dev", "client auth,server auth"), "not permitted", 0},
		{"a user's that certifies", request("a", client, "jane", "dev", "client auth,cert sign"), "not permitted", 0},
		{"an unknown usage", request("a", "kubernetes.io/legacy-unknown", "x", "y", "magic"), "unrecognized usage", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := Template(c.csr, 48*time.Hour, start, ca)
			if c.fault != "" {
				if err == nil || !strings.Contains(err.Error(), c.fault) {
					t.Errorf("want a fault about %q, got %v", c.fault, err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got.IsCA || got.NotAfter.Sub(start) != c.life || start.Sub(got.NotBefore) != backdate {
				t.Errorf("from %s to %s, CA: %v", got.NotBefore, got.NotAfter, got.IsCA)
			}
		})
	}
	if got, _ := Template(request("a", client, "jane", "dev", "client auth"), 1000*time.Hour, start, ca); !got.NotAfter.Equal(ca.NotAfter) {
		t.Errorf("a certificate does not outlive its CA: %s", got.NotAfter)
	}
}

func TestExpires(t *testing.T) {
	issued := func(_ *x509.CertificateRequest, c *certificatesv1.CertificateSigningRequest) {
		c.Status.Certificate = []byte("x")
	}
	for name, c := range map[string]struct {
		changes []change
		want    time.Duration
	}{
		"unanswered":           {nil, 24 * time.Hour},
		"denied":               {[]change{is(certificatesv1.CertificateDenied)}, time.Hour},
		"approved, not issued": {[]change{is(certificatesv1.CertificateApproved)}, 24 * time.Hour},
		"issued":               {[]change{is(certificatesv1.CertificateApproved), issued}, time.Hour},
		"failed":               {[]change{is(certificatesv1.CertificateApproved), is(certificatesv1.CertificateFailed)}, time.Hour},
	} {
		if at, ok := Expires(request("a", client, "x", "y", "client auth", c.changes...)); !ok || at.Sub(start) != c.want {
			t.Errorf("%s: want %s, got %s (%v)", name, c.want, at.Sub(start), ok)
		}
	}
}

func TestSigning(t *testing.T) {
	dir := t.TempDir()
	ca := ctrltest.Must(cert.NewSelfSignedCACert(cert.Config{CommonName: "ca", NotBefore: start.Add(-time.Hour)}, key))
	settings := runtime.DefaultSettings()
	settings.SigningCertFile, settings.SigningKeyFile = filepath.Join(dir, "ca.crt"), filepath.Join(dir, "ca.key")
	for file, data := range map[string][]byte{settings.SigningCertFile: ctrltest.Must(cert.EncodeCertificates(ca)), settings.SigningKeyFile: ctrltest.Must(keyutil.MarshalPrivateKeyToPEM(key))} {
		if err := os.WriteFile(file, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	approved := is(certificatesv1.CertificateApproved)
	objects := []kruntime.Object{
		request("good", kubelet, "system:node:n", "system:nodes", auth, approved), request("bad", kubelet, "mallory", "system:nodes", auth, approved),
		request("waits", kubelet, "system:node:n", "system:nodes", auth), request("denied", kubelet, "system:node:n", "system:nodes", auth, approved, is(certificatesv1.CertificateDenied)),
		request("foreign", "example.com/signer", "x", "y", auth, approved),
	}
	ctrltest.TestWith(t, settings, []runtime.Row{Row, Cleaner}, objects, func(t *testing.T, h *ctrltest.Harness) {
		api := h.Client.CertificatesV1().CertificateSigningRequests()
		for name, want := range map[string]string{"good": "certificate", "bad": "failed", "waits": "", "denied": "", "foreign": ""} {
			csr := ctrltest.Must(api.Get(context.Background(), name, metav1.GetOptions{}))
			got := ""
			if len(csr.Status.Certificate) > 0 {
				got = "certificate"
			}
			if condition(csr, certificatesv1.CertificateFailed) {
				got = "failed"
			}
			if got != want {
				t.Errorf("%s: want %q, got %q (%+v)", name, want, got, csr.Status.Conditions)
			}
		}
		good := ctrltest.Must(cert.ParseCertsPEM(ctrltest.Must(api.Get(context.Background(), "good", metav1.GetOptions{})).Status.Certificate))[0]
		if err := good.CheckSignatureFrom(ca); err != nil || good.Subject.CommonName != "system:node:n" {
			t.Errorf("signed by the CA for its subject: %v, %s", err, good.Subject)
		}
		h.Writes()
		h.After(61 * time.Minute)
		if w := h.Writes(); w != "delete certificatesigningrequests bad\ndelete certificatesigningrequests denied\ndelete certificatesigningrequests good" {
			t.Errorf("answered requests go after an hour:\n%s", w)
		}
	})
}
