package authn

import (
	"crypto/x509"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// RequestHeader trusts a front proxy, known by its certificate, to say in
// headers who the caller is.
//
// Source: Kubernetes documentation, "Authenticating Proxy".
type RequestHeader struct {
	Roots                       func() *x509.CertPool
	AllowedNames                []string // common names; empty allows all
	UserHeaders, UIDHeaders     []string
	GroupHeaders, ExtraPrefixes []string
}

// Authenticate looks at the headers only when the peer's certificate is the proxy's.
func (h RequestHeader) Authenticate(r *http.Request) (*User, bool, error) {
	if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
		return nil, false, nil
	}
	name := first(r.Header, h.UserHeaders)
	if name == "" {
		return nil, false, nil
	}
	leaf := r.TLS.PeerCertificates[0]
	opts := x509.VerifyOptions{
		Roots: h.Roots(), Intermediates: x509.NewCertPool(), CurrentTime: time.Now(),
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	for _, i := range r.TLS.PeerCertificates[1:] {
		opts.Intermediates.AddCert(i)
	}
	if _, err := leaf.Verify(opts); err != nil {
		return nil, false, nil // not the proxy: another authenticator may know the certificate
	}
	if len(h.AllowedNames) > 0 && !slices.Contains(h.AllowedNames, leaf.Subject.CommonName) {
		return nil, false, fmt.Errorf("front proxy certificate %q is not among --requestheader-allowed-names", leaf.Subject.CommonName)
	}
	u := &User{Name: name, UID: first(r.Header, h.UIDHeaders), Extra: map[string][]string{}}
	for _, g := range h.GroupHeaders {
		u.Groups = append(u.Groups, r.Header.Values(g)...)
	}
	for key, values := range r.Header {
		for _, p := range h.ExtraPrefixes {
			if rest, ok := cutPrefixFold(key, p); ok && rest != "" {
				u.Extra[extraKey(rest)] = values
			}
		}
	}
	return u, true, nil
}

func first(h http.Header, names []string) string {
	for _, n := range names {
		if v := h.Get(n); v != "" {
			return v
		}
	}
	return ""
}

func cutPrefixFold(s, prefix string) (string, bool) {
	if len(s) >= len(prefix) && strings.EqualFold(s[:len(prefix)], prefix) {
		return s[len(prefix):], true
	}
	return s, false
}

// extraKey undoes the percent encoding that header names need, and their case.
func extraKey(s string) string {
	s = strings.ToLower(s)
	if k, err := url.PathUnescape(s); err == nil {
		return k
	}
	return s
}
