package authn

import (
	"crypto/x509"
	"fmt"
	"net/http"
	"time"
)

// Certificates authenticates by the client certificate of the TLS connection:
// the common name is the user, each organization a group.
//
// Source: Kubernetes documentation, "X509 client certificates".
type Certificates struct {
	// Roots returns the authorities trusted now; the file behind it may change.
	Roots func() *x509.CertPool
}

// Authenticate verifies the chain for client use at the current time.
func (c Certificates) Authenticate(r *http.Request) (*User, bool, error) {
	if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
		return nil, false, nil
	}
	leaf := r.TLS.PeerCertificates[0]
	opts := x509.VerifyOptions{
		Roots: c.Roots(), Intermediates: x509.NewCertPool(), CurrentTime: time.Now(),
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	for _, i := range r.TLS.PeerCertificates[1:] {
		opts.Intermediates.AddCert(i)
	}
	if _, err := leaf.Verify(opts); err != nil {
		return nil, false, fmt.Errorf("verify client certificate %q (serial %s): %w", leaf.Subject.CommonName, leaf.SerialNumber, err)
	}
	if leaf.Subject.CommonName == "" {
		return nil, false, nil
	}
	return &User{
		Name: leaf.Subject.CommonName, Groups: leaf.Subject.Organization,
		Extra: map[string][]string{"authentication.kubernetes.io/credential-id": {credentialID(leaf)}},
	}, true, nil
}
