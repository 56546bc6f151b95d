// Package csrsigning signs approved certificate requests of the signers that the
// cluster itself stands for, and, as a controller of its own, forgets old requests.
//
// [Template] decides what a certificate says, [Expires] how long a request stays;
// both are pure.
// Source: Kubernetes documentation, "Certificate Signing Requests", Kubernetes signers.
package csrsigning

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/keelson/keelson/controller-manager/runtime"
	"github.com/keelson/keelson/libs/informer"
)

var signers = []string{
	certificatesv1.KubeAPIServerClientSignerName, certificatesv1.KubeAPIServerClientKubeletSignerName,
	certificatesv1.KubeletServingSignerName, "kubernetes.io/legacy-unknown",
}

// Row and Cleaner are the table's lines.
var (
	Row = runtime.Row{
		Name:   "certificatesigningrequest-signing-controller",
		Reads:  []string{"certificatesigningrequests.certificates.k8s.io"},
		Writes: []string{"certificatesigningrequests.certificates.k8s.io/status"},
		Extra:  []rbacv1.PolicyRule{{APIGroups: []string{"certificates.k8s.io"}, Resources: []string{"signers"}, ResourceNames: signers, Verbs: []string{"sign"}}},
		New:    build,
	}
	Cleaner = runtime.Row{
		Name:   "certificatesigningrequest-cleaner-controller",
		Reads:  []string{"certificatesigningrequests.certificates.k8s.io"},
		Writes: []string{"delete certificatesigningrequests.certificates.k8s.io"},
		New:    buildCleaner,
	}
)

const (
	backdate = 5 * time.Minute // clocks of other machines may be behind
	minLife  = 10 * time.Minute
	short    = 8 * time.Hour // lives below this are not shortened by the backdating
	// How long requests stay: issued or refused ones, and those that wait for an answer or a signer.
	keepDone, keepPending = time.Hour, 24 * time.Hour
)

// errExpired: the fault is the cluster's, not the request's.
var errExpired = errors.New("the signing certificate has expired")

// Template returns the certificate to sign, or why the request does not fit its
// signer. life is the longest that the cluster gives.
func Template(csr *certificatesv1.CertificateSigningRequest, life time.Duration, now time.Time, ca *x509.Certificate) (*x509.Certificate, error) {
	block, _ := pem.Decode(csr.Spec.Request)
	if block == nil {
		return nil, errors.New("spec.request holds no PEM block")
	}
	req, err := x509.ParseCertificateRequest(block.Bytes)
	if err == nil {
		err = req.CheckSignature()
	}
	if err != nil {
		return nil, fmt.Errorf("spec.request: %w", err)
	}
	if err := fits(csr.Spec.SignerName, req, csr.Spec.Usages); err != nil {
		return nil, err
	}
	if s := csr.Spec.ExpirationSeconds; s != nil {
		life = min(life, max(time.Duration(*s)*time.Second, minLife))
	}
	t := &x509.Certificate{
		Subject: req.Subject, DNSNames: req.DNSNames, IPAddresses: req.IPAddresses, EmailAddresses: req.EmailAddresses, URIs: req.URIs,
		PublicKey: req.PublicKey, PublicKeyAlgorithm: req.PublicKeyAlgorithm, BasicConstraintsValid: true,
		NotBefore: now.Add(-backdate), NotAfter: now.Add(life - backdate),
	}
	if life < short {
		t.NotAfter = now.Add(life)
	}
	if t.NotAfter.After(ca.NotAfter) {
		t.NotAfter = ca.NotAfter
	}
	if !now.Before(ca.NotAfter) {
		return nil, errExpired
	}
	for _, u := range csr.Spec.Usages {
		if k, ok := keyUsages[u]; ok {
			t.KeyUsage |= k
		} else if x, ok := extKeyUsages[u]; ok {
			t.ExtKeyUsage = append(t.ExtKeyUsage, x)
		} else {
			return nil, fmt.Errorf("unrecognized usage %q", u)
		}
	}
	return t, nil
}

// fits holds a request to the rules of its signer.
func fits(signer string, req *x509.CertificateRequest, usages []certificatesv1.KeyUsage) error {
	only := func(must certificatesv1.KeyUsage) error {
		if !slices.Contains(usages, must) {
			return fmt.Errorf("usages did not contain %s", must)
		}
		for _, u := range usages {
			if u != must && u != certificatesv1.UsageDigitalSignature && u != certificatesv1.UsageKeyEncipherment {
				return fmt.Errorf("usage %q is not permitted for signer %s", u, signer)
			}
		}
		return nil
	}
	signature := func() error {
		if !slices.Contains(usages, certificatesv1.UsageDigitalSignature) {
			return errors.New("usages did not contain digital signature")
		}
		return nil
	}
	node := func() error {
		if !slices.Equal(req.Subject.Organization, []string{"system:nodes"}) {
			return errors.New("subject organization is not system:nodes")
		}
		if !strings.HasPrefix(req.Subject.CommonName, "system:node:") {
			return errors.New("subject common name does not begin with system:node:")
		}
		return nil
	}
	switch signer {
	case certificatesv1.KubeAPIServerClientSignerName:
		return only(certificatesv1.UsageClientAuth)
	case certificatesv1.KubeAPIServerClientKubeletSignerName:
		if len(req.DNSNames)+len(req.IPAddresses)+len(req.EmailAddresses)+len(req.URIs) > 0 {
			return errors.New("subject alternative names are not permitted")
		}
		return errors.Join(node(), signature(), only(certificatesv1.UsageClientAuth))
	case certificatesv1.KubeletServingSignerName:
		if len(req.DNSNames)+len(req.IPAddresses) == 0 {
			return errors.New("at least one DNS or IP subjectAltName is required")
		}
		if len(req.EmailAddresses)+len(req.URIs) > 0 {
			return errors.New("email and URI subjectAltNames are not permitted")
		}
		return errors.Join(node(), signature(), only(certificatesv1.UsageServerAuth))
	}
	return nil
}

var keyUsages = map[certificatesv1.KeyUsage]x509.KeyUsage{
	certificatesv1.UsageSigning: x509.KeyUsageDigitalSignature, certificatesv1.UsageDigitalSignature: x509.KeyUsageDigitalSignature,
	certificatesv1.UsageContentCommitment: x509.KeyUsageContentCommitment, certificatesv1.UsageKeyEncipherment: x509.KeyUsageKeyEncipherment,
	certificatesv1.UsageKeyAgreement: x509.KeyUsageKeyAgreement, certificatesv1.UsageDataEncipherment: x509.KeyUsageDataEncipherment,
	certificatesv1.UsageCertSign: x509.KeyUsageCertSign, certificatesv1.UsageCRLSign: x509.KeyUsageCRLSign,
	certificatesv1.UsageEncipherOnly: x509.KeyUsageEncipherOnly, certificatesv1.UsageDecipherOnly: x509.KeyUsageDecipherOnly,
}

var extKeyUsages = map[certificatesv1.KeyUsage]x509.ExtKeyUsage{
	certificatesv1.UsageAny: x509.ExtKeyUsageAny, certificatesv1.UsageServerAuth: x509.ExtKeyUsageServerAuth,
	certificatesv1.UsageClientAuth: x509.ExtKeyUsageClientAuth, certificatesv1.UsageCodeSigning: x509.ExtKeyUsageCodeSigning,
	certificatesv1.UsageEmailProtection: x509.ExtKeyUsageEmailProtection, certificatesv1.UsageSMIME: x509.ExtKeyUsageEmailProtection,
	certificatesv1.UsageIPsecEndSystem: x509.ExtKeyUsageIPSECEndSystem, certificatesv1.UsageIPsecTunnel: x509.ExtKeyUsageIPSECTunnel,
	certificatesv1.UsageIPsecUser: x509.ExtKeyUsageIPSECUser, certificatesv1.UsageTimestamping: x509.ExtKeyUsageTimeStamping,
	certificatesv1.UsageOCSPSigning: x509.ExtKeyUsageOCSPSigning, certificatesv1.UsageMicrosoftSGC: x509.ExtKeyUsageMicrosoftServerGatedCrypto,
	certificatesv1.UsageNetscapeSGC: x509.ExtKeyUsageNetscapeServerGatedCrypto,
}

type controller struct {
	requests          *informer.Cache[*certificatesv1.CertificateSigningRequest]
	client            kubernetes.Interface
	certFile, keyFile string
	life              time.Duration
}

func build(e *runtime.Env) error {
	s := e.Settings()
	c := &controller{
		requests: runtime.Read[*certificatesv1.CertificateSigningRequest](e), client: e.Client(),
		certFile: s.SigningCertFile, keyFile: s.SigningKeyFile, life: s.SigningDuration.Duration,
	}
	if c.certFile != "" {
		if _, _, err := c.authority(); err != nil {
			return err
		}
	}
	q := e.Keyed("", 2, c.pass)
	runtime.On(q, c.requests, runtime.Self[*certificatesv1.CertificateSigningRequest])
	return nil
}

// authority reads the CA: its files may be renewed while we run.
func (c *controller) authority() (*x509.Certificate, crypto.Signer, error) {
	pair, err := tls.LoadX509KeyPair(c.certFile, c.keyFile)
	if err != nil {
		return nil, nil, fmt.Errorf("--cluster-signing-cert-file %s, --cluster-signing-key-file %s: %w", c.certFile, c.keyFile, err)
	}
	key, ok := pair.PrivateKey.(crypto.Signer)
	if !ok {
		return nil, nil, fmt.Errorf("%s: a %T cannot sign", c.keyFile, pair.PrivateKey)
	}
	return pair.Leaf, key, nil
}

func condition(csr *certificatesv1.CertificateSigningRequest, kind certificatesv1.RequestConditionType) bool {
	return slices.ContainsFunc(csr.Status.Conditions, func(c certificatesv1.CertificateSigningRequestCondition) bool {
		return c.Type == kind && c.Status != corev1.ConditionFalse
	})
}

// Expires is when a request may be forgotten; false when it has no such time yet.
func Expires(csr *certificatesv1.CertificateSigningRequest) (time.Time, bool) {
	if len(csr.Status.Conditions) == 0 {
		return csr.CreationTimestamp.Add(keepPending), true
	}
	issued := len(csr.Status.Certificate) > 0
	var at time.Time
	sooner := func(t time.Time) {
		if at.IsZero() || t.Before(at) {
			at = t
		}
	}
	for _, c := range csr.Status.Conditions {
		switch {
		case c.Type == certificatesv1.CertificateApproved && issued:
			if end, ok := end(csr.Status.Certificate); ok {
				sooner(end)
			}
			fallthrough
		case c.Type == certificatesv1.CertificateDenied, c.Type == certificatesv1.CertificateFailed:
			if !c.LastUpdateTime.IsZero() {
				sooner(c.LastUpdateTime.Add(keepDone))
			}
		case c.Type == certificatesv1.CertificateApproved && !c.LastUpdateTime.IsZero():
			sooner(c.LastUpdateTime.Add(keepPending))
		}
	}
	return at, !at.IsZero()
}

// end is the last moment of the first of some certificates.
func end(data []byte) (time.Time, bool) {
	block, _ := pem.Decode(data)
	if block == nil {
		return time.Time{}, false
	}
	certs, err := x509.ParseCertificates(block.Bytes)
	if err != nil || len(certs) == 0 {
		return time.Time{}, false
	}
	return certs[0].NotAfter, true
}

type cleaner struct {
	requests *informer.Cache[*certificatesv1.CertificateSigningRequest]
	client   kubernetes.Interface
}

func buildCleaner(e *runtime.Env) error {
	c := &cleaner{requests: runtime.Read[*certificatesv1.CertificateSigningRequest](e), client: e.Client()}
	q := e.Keyed("", 1, c.pass)
	runtime.On(q, c.requests, runtime.Self[*certificatesv1.CertificateSigningRequest])
	return nil
}

func (c *cleaner) pass(ctx context.Context, p *runtime.Pass) (runtime.Result, error) {
	csr, ok := c.requests.Get(p.Key)
	if !ok || csr.DeletionTimestamp != nil {
		return runtime.Result{}, nil
	}
	at, ok := Expires(csr)
	if !ok {
		return runtime.Result{}, nil
	}
	if p.Now.After(at) {
		p.Note("forget an old request")
		return runtime.Result{}, runtime.Delete(ctx, p, c.client.CertificatesV1().CertificateSigningRequests(), csr)
	}
	return runtime.Result{Again: at.Add(time.Millisecond)}, nil
}

func (c *controller) pass(ctx context.Context, p *runtime.Pass) (runtime.Result, error) {
	csr, ok := c.requests.Get(p.Key)
	if !ok {
		return runtime.Result{}, nil
	}
	api := c.client.CertificatesV1().CertificateSigningRequests()
	if c.certFile == "" || len(csr.Status.Certificate) > 0 || !condition(csr, certificatesv1.CertificateApproved) ||
		condition(csr, certificatesv1.CertificateDenied) || condition(csr, certificatesv1.CertificateFailed) || !slices.Contains(signers, csr.Spec.SignerName) {
		return runtime.Result{}, nil
	}
	ca, key, err := c.authority()
	if err != nil {
		return runtime.Result{}, err
	}
	out := csr.DeepCopy()
	t, err := Template(csr, c.life, p.Now, ca)
	if errors.Is(err, errExpired) {
		return runtime.Result{}, fmt.Errorf("--cluster-signing-cert-file %s: %w", c.certFile, err)
	}
	if err != nil {
		p.Note("refuse: %v", err)
		out.Status.Conditions = append(out.Status.Conditions, certificatesv1.CertificateSigningRequestCondition{
			Type: certificatesv1.CertificateFailed, Status: corev1.ConditionTrue, Reason: "SignerValidationFailure", Message: err.Error(),
			LastUpdateTime: metav1.NewTime(p.Now), LastTransitionTime: metav1.NewTime(p.Now),
		})
	} else {
		p.Note("sign for %s", t.Subject)
		if t.SerialNumber, err = rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127)); err != nil {
			return runtime.Result{}, err
		}
		der, err := x509.CreateCertificate(rand.Reader, t, ca, t.PublicKey, key)
		if err != nil {
			return runtime.Result{}, fmt.Errorf("sign: %w", err)
		}
		out.Status.Certificate = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	}
	_, err = runtime.UpdateStatus(ctx, p, api, out)
	if apierrors.IsNotFound(err) {
		err = nil
	}
	return runtime.Result{}, err
}
