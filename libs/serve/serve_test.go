package serve

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	k8stesting "k8s.io/client-go/testing"

	"github.com/keelson/keelson/libs/log"
	"github.com/keelson/keelson/libs/testkit"
)

// pki writes a CA with a serving pair into dir, and returns a client certificate that the CA signed.
func pki(t *testing.T, dir string) tls.Certificate {
	t.Helper()
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ca"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	write := func(name, kind string, der []byte) []byte {
		data := pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
		return data
	}
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, &caKey.PublicKey, caKey)
	if err != nil {
		t.Fatal(err)
	}
	write("ca.crt", "CERTIFICATE", caDER)
	sign := func(name string, use x509.ExtKeyUsage) tls.Certificate {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		c := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name, Organization: []string{"system:masters"}}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{use}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
		der, err := x509.CreateCertificate(rand.Reader, c, ca, &key.PublicKey, caKey)
		if err != nil {
			t.Fatal(err)
		}
		keyDER, err := x509.MarshalECPrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		pair, err := tls.X509KeyPair(write(name+".crt", "CERTIFICATE", der), write(name+".key", "EC PRIVATE KEY", keyDER))
		if err != nil {
			t.Fatal(err)
		}
		return pair
	}
	sign("server", x509.ExtKeyUsageServerAuth)
	return sign("client", x509.ExtKeyUsageClientAuth)
}

func start(t *testing.T, cfg Config) (*Server, func() error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	cfg.Listener = l
	s, err := New(cfg, log.Discard())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	testkit.Eventually(t, 5*time.Second, func() (bool, string) { return s.Addr() != "", "not listening" })
	return s, func() error { cancel(); return <-done }
}

func get(t *testing.T, c *http.Client, url string) (int, string, *http.Response) {
	t.Helper()
	resp, err := c.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body), resp
}

func httpClient(certs ...tls.Certificate) *http.Client {
	return &http.Client{Transport: &http.Transport{ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true, Certificates: certs}}}
}

func TestHealthIsOpenAndTheRestIsNot(t *testing.T) {
	dir := t.TempDir()
	cert := pki(t, dir)
	s, stop := start(t, Config{
		TLSCertFile: filepath.Join(dir, "server.crt"), TLSPrivateKeyFile: filepath.Join(dir, "server.key"), ClientCAFile: filepath.Join(dir, "ca.crt"),
	})
	var ready atomic.Bool
	s.Check("sync", func() error {
		if !ready.Load() {
			return errors.New("not yet")
		}
		return nil
	})
	s.Check("poststarthook/rbac/roles", func() error {
		if !ready.Load() {
			return errors.New("not yet")
		}
		return nil
	})
	s.Debug("queue", func() any { return map[string]int{"active": 3} })
	s.Configz("test", struct {
		Port int `yaml:"securePort"`
	}{7})
	url := "https://" + s.Addr()
	nobody, somebody := httpClient(), httpClient(cert)
	defer nobody.CloseIdleConnections()
	defer somebody.CloseIdleConnections()

	check := func(c *http.Client, path string, code int, parts ...string) *http.Response {
		t.Helper()
		got, body, resp := get(t, c, url+path)
		if got != code {
			t.Errorf("%s: code %d, want %d: %s", path, got, code, body)
		}
		for _, p := range parts {
			if !strings.Contains(body, p) {
				t.Errorf("%s: no %q in:\n%s", path, p, body)
			}
		}
		return resp
	}
	check(nobody, "/livez", 200, "ok")
	if at, ok := s.CertificateEnds(); !ok || at.Before(time.Now()) {
		t.Errorf("the certificate ends %v (known: %v)", at, ok)
	}
	check(nobody, "/readyz", 500, "[+]ping ok", "[-]sync failed: reason withheld", "readyz check failed")
	check(nobody, "/readyz?exclude=sync&exclude=poststarthook/rbac/roles", 200, "ok")
	check(nobody, "/readyz?exclude=sync&exclude=other&exclude=poststarthook/rbac/roles&verbose", 200, "[+]sync excluded: ok", `warn: some health checks cannot be excluded: no matches for "other"`)
	check(nobody, "/readyz/ping", 200, "ok")
	check(nobody, "/readyz/poststarthook/rbac/roles", 500, "internal server error: reason withheld\n")
	check(somebody, "/readyz/poststarthook/rbac/roles", 500, "internal server error: not yet\n")
	check(nobody, "/readyz/poststarthook/rbac", 404)
	check(nobody, "/readyz/", 404)
	check(nobody, "/readyz/nothing", 404)
	ready.Store(true)
	check(nobody, "/readyz?verbose", 200, "[+]ping ok\n[+]sync ok\n[+]poststarthook/rbac/roles ok\n[+]shutdown ok\nreadyz check passed\n")
	check(nobody, "/readyz/poststarthook/rbac/roles?verbose", 200, "ok")
	check(nobody, "/metrics", 401)
	check(nobody, "/debug/queue", 401)
	check(nobody, "/metrics/slis", 401)
	check(somebody, "/metrics", 200, "go_goroutines", "process_cpu_seconds_total", "process_start_time_seconds", "kubernetes_build_info{", `git_version="v1.36`)
	check(somebody, "/metrics/slis", 200, `kubernetes_healthcheck{name="sync",type="readyz"} 1`, `kubernetes_healthchecks_total{name="sync",status="error",type="readyz"} `,
		`kubernetes_healthchecks_total{name="sync",status="success",type="readyz"} `, `kubernetes_healthcheck{name="ping",type="livez"} 1`)
	check(somebody, "/configz", 200, `"securePort": 7`)
	check(somebody, "/debug/queue", 200, `"active": 3`)
	check(somebody, "/debug/", 200, `"queue"`, `"pprof/"`)
	check(somebody, "/debug/pprof/cmdline", 200)
	if r := check(somebody, "/debug/none", 404); r.ProtoMajor != 2 {
		t.Errorf("protocol %s, want HTTP/2", r.Proto)
	}
	old := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS11}}}
	if _, err := old.Get(url + "/livez"); err == nil {
		t.Error("TLS 1.1 was accepted")
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}

func TestLeadingShowsWhoLeads(t *testing.T) {
	s, err := New(Config{Plain: true}, log.Discard())
	if err != nil {
		t.Fatal(err)
	}
	status := func() float64 {
		families, err := s.Registry().Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range families {
			if f.GetName() == "leader_election_master_status" {
				return f.GetMetric()[0].GetGauge().GetValue()
			}
		}
		return -1
	}
	lead := s.Leading("kube-test", func(context.Context) error {
		if got := status(); got != 1 {
			t.Errorf("while it leads: %v, want 1", got)
		}
		return nil
	})
	for range 2 {
		if got := status(); got != 0 {
			t.Errorf("while it stands by: %v, want 0", got)
		}
		if err := lead(t.Context()); err != nil {
			t.Error(err)
		}
	}
}

func TestDelegatedAsksTheAPIServer(t *testing.T) {
	c := fake.NewClientset()
	asked := 0
	c.PrependReactor("create", "tokenreviews", func(a k8stesting.Action) (bool, runtime.Object, error) {
		asked++
		r := a.(k8stesting.CreateAction).GetObject().(*authenticationv1.TokenReview).DeepCopy()
		if r.Spec.Token != "bad" {
			r.Status = authenticationv1.TokenReviewStatus{Authenticated: true, User: authenticationv1.UserInfo{Username: r.Spec.Token}}
		}
		return true, r, nil
	})
	c.PrependReactor("create", "subjectaccessreviews", func(a k8stesting.Action) (bool, runtime.Object, error) {
		r := a.(k8stesting.CreateAction).GetObject().(*authorizationv1.SubjectAccessReview).DeepCopy()
		r.Status.Allowed = r.Spec.User == "reader" && r.Spec.NonResourceAttributes.Path == "/metrics" && r.Spec.NonResourceAttributes.Verb == "get"
		return true, r, nil
	})
	s, stop := start(t, Config{})
	s.Authorize(Delegated(c, ""))
	for _, row := range []struct {
		token, path string
		code        int
	}{
		{"", "/metrics", 401}, {"bad", "/metrics", 401}, {"reader", "/metrics", 200}, {"reader", "/metrics", 200}, {"reader", "/configz", 403}, {"other", "/metrics", 403},
	} {
		req, _ := http.NewRequest(http.MethodGet, "https://"+s.Addr()+row.path, nil)
		if row.token != "" {
			req.Header.Set("Authorization", "Bearer "+row.token)
		}
		hc := httpClient()
		resp, err := hc.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		hc.CloseIdleConnections()
		if resp.StatusCode != row.code {
			t.Errorf("%+v: got %d", row, resp.StatusCode)
		}
	}
	if asked != 3 {
		t.Errorf("%d token reviews, want one for each token", asked)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}

func TestFaultsAreNamed(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	s, err := New(Config{BindAddress: "127.0.0.1", Port: l.Addr().(*net.TCPAddr).Port}, log.Discard())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Run(t.Context()); err == nil || !strings.Contains(err.Error(), l.Addr().String()) || !strings.Contains(err.Error(), "in use") {
		t.Errorf("port in use: %v", err)
	}
	bad := filepath.Join(t.TempDir(), "bad.crt")
	if err := os.WriteFile(bad, []byte("no PEM"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := New(Config{TLSCertFile: bad, TLSPrivateKeyFile: bad}, log.Discard()); err == nil || !strings.Contains(err.Error(), bad) {
		t.Errorf("bad certificate: %v", err)
	}
	if _, err := New(Config{ClientCAFile: bad}, log.Discard()); err == nil || !strings.Contains(err.Error(), "client CA file "+bad) {
		t.Errorf("bad CA: %v", err)
	}
	if errs := (Config{Port: 70000, BindAddress: "here", TLSCertFile: "x"}).Validate(); len(errs) != 3 {
		t.Errorf("validate: %v", errs)
	}
}

func TestReadinessIsToldToSystemd(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "n")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	t.Setenv("NOTIFY_SOCKET", socket)
	_, stop := start(t, Config{Plain: true})
	read := func() string {
		t.Helper()
		b := make([]byte, 100)
		if err := conn.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
			t.Fatal(err)
		}
		n, err := conn.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		return string(b[:n])
	}
	if got := read(); got != "READY=1" {
		t.Errorf("got %q", got)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
	if got := read(); got != "STOPPING=1" {
		t.Errorf("got %q", got)
	}
}
