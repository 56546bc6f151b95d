// Package pki makes and renews the certificates of a Keelson machine: one CA for the
// cluster, one for the front proxy, the service accounts' signing key, and a
// certificate for each daemon.
//
// Main call: Ensure, which is idempotent: it makes what is missing, renews what nears
// its end, and reissues what no longer says what it should (a new address, another
// name); everything else is left byte for byte as it was. A CA is never replaced: that
// would cut off every machine of the cluster; an unusable one is an error that says so.
//
// Promises: private keys are readable by root only; a certificate is written after its
// key, so a crash between the two is mended by the next call. Keys are ECDSA P-256.
// Time is an argument.
//
// Source of names and groups: the Kubernetes documentation, "PKI certificates and
// requirements".
package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"time"
)

const (
	caLife   = 10 * 365 * 24 * time.Hour
	leafLife = 365 * 24 * time.Hour
	// A leaf is renewed when less than this is left of it.
	renewBefore = leafLife / 3
)

// Want describes one certificate.
type Want struct {
	Name   string // file name without suffix, may hold a directory: etcd/server
	CA     string // the CA's file name
	User   string // common name: the user the API sees
	Groups []string
	Names  []string // DNS names and addresses; non-empty makes it a server's certificate
	Client bool     // also a client's certificate
}

// Result says what one call of Ensure did; both lists are names in order.
type Result struct {
	Made    []string
	Renewed []string
}

// Ensure makes the certificates in dir what want says.
// The CAs named in want are made first; where a CA's key is absent but its
// certificate is there (a machine that joined), leaves must exist and be valid.
func Ensure(dir string, want []Want, now time.Time) (Result, error) {
	var r Result
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return r, err
	}
	cas := map[string]*authority{}
	for _, w := range want {
		if cas[w.CA] != nil {
			continue
		}
		ca, made, err := ensureCA(dir, w.CA, now)
		if err != nil {
			return r, err
		}
		if made {
			r.Made = append(r.Made, w.CA)
		}
		cas[w.CA] = ca
	}
	for _, w := range want {
		why, err := stale(dir, w, cas[w.CA], now)
		if err != nil {
			return r, err
		}
		if why == "" {
			continue
		}
		ca := cas[w.CA]
		if ca.key == nil {
			return r, fmt.Errorf("certificate %s: %s, and this machine does not hold the CA's key; make a new bundle on the control plane with `keelson node-bundle`",
				filepath.Join(dir, w.Name+".crt"), why)
		}
		if err := issue(dir, w, ca, now); err != nil {
			return r, fmt.Errorf("make certificate %s: %w", w.Name, err)
		}
		if why == missing {
			r.Made = append(r.Made, w.Name)
		} else {
			r.Renewed = append(r.Renewed, w.Name)
		}
	}
	return r, nil
}

// EnsureSigningKey makes the pair that signs service-account tokens: sa.key and sa.pub.
func EnsureSigningKey(dir string) (made bool, err error) {
	keyFile, pubFile := filepath.Join(dir, "sa.key"), filepath.Join(dir, "sa.pub")
	key, err := readKey(keyFile)
	if errors.Is(err, fs.ErrNotExist) {
		if key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
			return false, err
		}
		if err := writeKey(keyFile, key); err != nil {
			return false, err
		}
		made = true
	} else if err != nil {
		return false, fmt.Errorf("%s: %w (without it every service-account token is void; restore it, or `keelson reset` starts anew)", keyFile, err)
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return made, err
	}
	return made, write(pubFile, "PUBLIC KEY", der, 0o644)
}

// Issue makes one certificate without writing it: for bundles of other machines.
func Issue(dir string, w Want, now time.Time) (certPEM, keyPEM []byte, err error) {
	ca, err := readCA(dir, w.CA)
	if err != nil {
		return nil, nil, err
	}
	if ca.key == nil {
		return nil, nil, fmt.Errorf("%s: the CA's key is not on this machine: run this on the control plane", filepath.Join(dir, w.CA+".key"))
	}
	return sign(w, ca, now)
}

// NotAfter is the end of a certificate's life.
func NotAfter(file string) (time.Time, error) {
	c, err := readCert(file)
	if err != nil {
		return time.Time{}, err
	}
	return c.NotAfter, nil
}

type authority struct {
	cert *x509.Certificate
	key  crypto.Signer // nil on machines that only joined
}

func readCA(dir, name string) (*authority, error) {
	cert, err := readCert(filepath.Join(dir, name+".crt"))
	if err != nil {
		return nil, err
	}
	key, err := readKey(filepath.Join(dir, name+".key"))
	if errors.Is(err, fs.ErrNotExist) {
		return &authority{cert: cert}, nil
	}
	if err != nil {
		return nil, err
	}
	if pub, ok := cert.PublicKey.(*ecdsa.PublicKey); ok && !pub.Equal(key.Public()) {
		return nil, fmt.Errorf("%s and its key do not belong together", filepath.Join(dir, name+".crt"))
	}
	return &authority{cert, key}, nil
}

func ensureCA(dir, name string, now time.Time) (*authority, bool, error) {
	ca, err := readCA(dir, name)
	if err == nil {
		if now.After(ca.cert.NotAfter) {
			return nil, false, fmt.Errorf("%s ended on %s: the cluster needs a new CA; `keelson reset` starts anew",
				filepath.Join(dir, name+".crt"), ca.cert.NotAfter.Format(time.DateOnly))
		}
		return ca, false, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, false, err
	}
	key, err := readKey(filepath.Join(dir, name+".key"))
	if errors.Is(err, fs.ErrNotExist) {
		if key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err == nil {
			err = writeKey(filepath.Join(dir, name+".key"), key)
		}
	}
	if err != nil {
		return nil, false, err
	}
	serial, err := newSerial()
	if err != nil {
		return nil, false, err
	}
	common := map[string]string{"ca": "keelson", "front-proxy-ca": "front-proxy-ca", "etcd/ca": "etcd-ca"}[name]
	if common == "" {
		common = name
	}
	t := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: common},
		NotBefore: now.Add(-5 * time.Minute), NotAfter: now.Add(caLife),
		IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature | x509.KeyUsageCRLSign,
		DNSNames: []string{common},
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return nil, false, err
	}
	if err := write(filepath.Join(dir, name+".crt"), "CERTIFICATE", der, 0o644); err != nil {
		return nil, false, err
	}
	cert, err := x509.ParseCertificate(der)
	return &authority{cert, key}, true, err
}

const missing = "it does not exist"

// stale says why the certificate must be issued again, "" when it need not.
func stale(dir string, w Want, ca *authority, now time.Time) (string, error) {
	certFile := filepath.Join(dir, w.Name+".crt")
	cert, err := readCert(certFile)
	if errors.Is(err, fs.ErrNotExist) {
		return missing, nil
	}
	if err != nil {
		return "it cannot be read: " + err.Error(), nil
	}
	key, err := readKey(filepath.Join(dir, w.Name+".key"))
	if errors.Is(err, fs.ErrNotExist) {
		return "its key is missing", nil
	}
	if err != nil {
		return "its key cannot be read: " + err.Error(), nil
	}
	if pub, ok := cert.PublicKey.(*ecdsa.PublicKey); ok && !pub.Equal(key.Public()) {
		return "its key is another one's", nil
	}
	if err := cert.CheckSignatureFrom(ca.cert); err != nil {
		return "another CA signed it", nil
	}
	if left := cert.NotAfter.Sub(now); left < renewBefore && (ca.key != nil || left <= 0) {
		return fmt.Sprintf("it ends on %s", cert.NotAfter.Format(time.DateOnly)), nil
	}
	dns, ips := split(w.Names)
	if cert.Subject.CommonName != w.User || !sameSet(cert.Subject.Organization, w.Groups) ||
		!sameSet(cert.DNSNames, dns) || !sameSet(texts(cert.IPAddresses), texts(ips)) {
		return "it names others than it should", nil
	}
	return "", nil
}

func issue(dir string, w Want, ca *authority, now time.Time) error {
	cert, key, err := sign(w, ca, now)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, w.Name)), 0o700); err != nil {
		return err
	}
	if err := writeBytes(filepath.Join(dir, w.Name+".key"), key, 0o600); err != nil {
		return err
	}
	return writeBytes(filepath.Join(dir, w.Name+".crt"), cert, 0o644)
}

func sign(w Want, ca *authority, now time.Time) (certPEM, keyPEM []byte, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	serial, err := newSerial()
	if err != nil {
		return nil, nil, err
	}
	dns, ips := split(w.Names)
	end := now.Add(leafLife)
	if end.After(ca.cert.NotAfter) {
		end = ca.cert.NotAfter
	}
	t := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: w.User, Organization: w.Groups},
		NotBefore: now.Add(-5 * time.Minute), NotAfter: end,
		KeyUsage: x509.KeyUsageDigitalSignature, DNSNames: dns, IPAddresses: ips,
	}
	if len(w.Names) > 0 {
		t.ExtKeyUsage = append(t.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	}
	if w.Client {
		t.ExtKeyUsage = append(t.ExtKeyUsage, x509.ExtKeyUsageClientAuth)
	}
	der, err := x509.CreateCertificate(rand.Reader, t, ca.cert, key.Public(), ca.key)
	if err != nil {
		return nil, nil, err
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER}), nil
}

// Fingerprint is a short digest of files' contents; absent files count as empty.
func Fingerprint(files ...string) string {
	h := sha256.New()
	for _, f := range files {
		b, _ := os.ReadFile(f)
		fmt.Fprintf(h, "%s %d\n", f, len(b))
		h.Write(b)
	}
	return fmt.Sprintf("%x", h.Sum(nil)[:8])
}

func newSerial() (*big.Int, error) {
	return rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
}

func split(names []string) (dns []string, ips []net.IP) {
	for _, n := range names {
		if ip := net.ParseIP(n); ip != nil {
			if !slices.Contains(texts(ips), ip.String()) {
				ips = append(ips, ip)
			}
		} else if !slices.Contains(dns, n) {
			dns = append(dns, n)
		}
	}
	return dns, ips
}

func texts(ips []net.IP) []string {
	out := make([]string, len(ips))
	for i, ip := range ips {
		out[i] = ip.String()
	}
	return out
}

func sameSet(a, b []string) bool {
	a, b = slices.Clone(a), slices.Clone(b)
	sort.Strings(a)
	sort.Strings(b)
	return slices.Equal(a, b)
}

func readCert(file string) (*x509.Certificate, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(b)
	if block == nil {
		return nil, fmt.Errorf("%s: no PEM block in it", file)
	}
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return c, nil
}

func readKey(file string) (crypto.Signer, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(b)
	if block == nil {
		return nil, fmt.Errorf("%s: no PEM block in it", file)
	}
	if key, err := x509.ParseECPrivateKey(block.Bytes); err == nil {
		return key, nil
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("%s: a %T cannot sign", file, key)
	}
	return signer, nil
}

func writeKey(file string, key crypto.Signer) error {
	der, err := x509.MarshalECPrivateKey(key.(*ecdsa.PrivateKey))
	if err != nil {
		return err
	}
	return write(file, "EC PRIVATE KEY", der, 0o600)
}

func write(file, kind string, der []byte, mode fs.FileMode) error {
	return writeBytes(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), mode)
}

func writeBytes(file string, b []byte, mode fs.FileMode) error {
	if old, err := os.ReadFile(file); err == nil && string(old) == string(b) {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return err
	}
	tmp := file + ".new"
	if err := os.WriteFile(tmp, b, mode); err != nil {
		return err
	}
	return os.Rename(tmp, file)
}
