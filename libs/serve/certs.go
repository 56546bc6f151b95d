package serve

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"sync"
	"time"
)

// files notices that any of its files has changed since the last look. It looks at most once a second.
type files struct {
	paths []string
	next  time.Time
	state []fileState
}

type fileState struct {
	modified time.Time
	bytes    int64
}

func (f *files) changed(now time.Time) bool {
	if now.Before(f.next) {
		return false
	}
	f.next = now.Add(time.Second)
	state := make([]fileState, len(f.paths))
	for i, p := range f.paths {
		if info, err := os.Stat(p); err == nil {
			state[i] = fileState{info.ModTime(), info.Size()}
		}
	}
	differs := f.state == nil
	for i := range f.state {
		differs = differs || f.state[i] != state[i]
	}
	f.state = state
	return differs
}

// certificate is the serving certificate: from files, or made in memory.
type certificate struct {
	certFile, keyFile string

	mu    sync.Mutex // guards the fields below
	files files
	cert  *tls.Certificate
}

func newCertificate(certFile, keyFile string) (*certificate, error) {
	c := &certificate{certFile: certFile, keyFile: keyFile, files: files{paths: []string{certFile, keyFile}}}
	if certFile == "" {
		cert, err := selfSigned(time.Now())
		if err != nil {
			return nil, fmt.Errorf("make a serving certificate: %w", err)
		}
		c.cert = cert
		return c, nil
	}
	_, err := c.get()
	return c, err
}

// get reads the files again when they have changed. A pair that does not fit (only one of the two is
// new so far) leaves the old one in use.
func (c *certificate) get() (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.certFile == "" || !c.files.changed(time.Now()) {
		return c.cert, nil
	}
	cert, err := tls.LoadX509KeyPair(c.certFile, c.keyFile)
	if err != nil && c.cert == nil {
		return nil, fmt.Errorf("serving certificate %s with key %s: %w", c.certFile, c.keyFile, err)
	}
	if err == nil {
		c.cert = &cert
	}
	return c.cert, nil
}

// CertificateEnds is when the serving certificate ends; false when it was made in memory, or there is none.
func (s *Server) CertificateEnds() (time.Time, bool) {
	if s.certs == nil || s.certs.certFile == "" {
		return time.Time{}, false
	}
	c, err := s.certs.get()
	if err != nil || c.Leaf == nil {
		return time.Time{}, false
	}
	return c.Leaf.NotAfter, true
}

func selfSigned(now time.Time) (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	host, err := os.Hostname()
	if err != nil {
		host = "localhost"
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(now.UnixNano()),
		Subject:      pkix.Name{CommonName: host},
		NotBefore:    now.Add(-time.Hour),
		NotAfter:     now.AddDate(1, 0, 0),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames:     []string{host, "localhost"},
		IPAddresses:  []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, err
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}

// authorities are the CA certificates that admit clients.
type authorities struct {
	file string

	mu    sync.Mutex // guards the fields below
	files files
	pool  *x509.CertPool
}

func newAuthorities(file string) (*authorities, error) {
	a := &authorities{file: file, files: files{paths: []string{file}}}
	if file == "" {
		return a, nil
	}
	_, err := a.get()
	return a, err
}

func (a *authorities) get() (*x509.CertPool, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.file == "" || !a.files.changed(time.Now()) {
		return a.pool, nil
	}
	data, err := os.ReadFile(a.file)
	pool := x509.NewCertPool()
	if err == nil && !pool.AppendCertsFromPEM(data) {
		err = errors.New("no certificate in it")
	}
	if err != nil && a.pool == nil {
		return nil, fmt.Errorf("client CA file %s: %w", a.file, err)
	}
	if err == nil {
		a.pool = pool
	}
	return a.pool, nil
}

// verify gives the certificate that the caller proved to hold, if the CA signed it for a client.
func (a *authorities) verify(r *http.Request) (*x509.Certificate, error) {
	if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
		return nil, ErrUnauthenticated
	}
	pool, err := a.get()
	if err != nil || pool == nil {
		return nil, ErrUnauthenticated
	}
	leaf := r.TLS.PeerCertificates[0]
	between := x509.NewCertPool()
	for _, c := range r.TLS.PeerCertificates[1:] {
		between.AddCert(c)
	}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: pool, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		return nil, fmt.Errorf("%w: client certificate: %v", ErrUnauthenticated, err)
	}
	return leaf, nil
}
