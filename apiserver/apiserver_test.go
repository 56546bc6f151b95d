package apiserver

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/keelson/keelson/apiserver/store/memory"
	"github.com/keelson/keelson/libs/config"
)

// pki makes an authority, a serving certificate and client certificates in dir.
type pki struct {
	dir string
	ca  *x509.Certificate
	key *ecdsa.PrivateKey
}

func newPKI(t *testing.T) *pki {
	t.Helper()
	p := &pki{dir: t.TempDir()}
	p.ca, p.key = p.make(t, "ca", &x509.Certificate{
		Subject: pkix.Name{CommonName: "ca"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	})
	return p
}

func (p *pki) file(name string) string { return filepath.Join(p.dir, name) }

func (p *pki) make(t *testing.T, name string, c *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c.SerialNumber = big.NewInt(time.Now().UnixNano())
	c.NotBefore, c.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	parent, signer := c, key
	if p.ca != nil {
		parent, signer = p.ca, p.key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	kb, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for file, block := range map[string]*pem.Block{name + ".crt": {Type: "CERTIFICATE", Bytes: der}, name + ".key": {Type: "EC PRIVATE KEY", Bytes: kb}} {
		if err := os.WriteFile(p.file(file), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	out, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return out, key
}

func (p *pki) client(t *testing.T, user string, groups ...string) *http.Client {
	t.Helper()
	pool := x509.NewCertPool()
	pool.AddCert(p.ca)
	c := &tls.Config{RootCAs: pool}
	if user != "" {
		p.make(t, "user-"+user, &x509.Certificate{
			Subject: pkix.Name{CommonName: user, Organization: groups}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		})
		pair, err := tls.LoadX509KeyPair(p.file("user-"+user+".crt"), p.file("user-"+user+".key"))
		if err != nil {
			t.Fatal(err)
		}
		c.Certificates = []tls.Certificate{pair}
	}
	return &http.Client{Transport: &http.Transport{TLSClientConfig: c, ForceAttemptHTTP2: true}, Timeout: 20 * time.Second}
}

func call(t *testing.T, c *http.Client, method, url, body string, headers ...string) (int, map[string]any) {
	t.Helper()
	r, err := http.NewRequest(method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	for i := 0; i+1 < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	resp, err := c.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]any{}
	if json.Unmarshal(b, &out) != nil {
		out["text"] = string(b)
	}
	return resp.StatusCode, out
}

// running starts a server and returns when it is ready; stop waits for its end.
func running(t *testing.T, cfg Config, probe *http.Client) (stop func()) {
	t.Helper()
	if errs := cfg.Validate(); len(errs) > 0 {
		t.Fatal(errs.ToAggregate())
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Run(ctx, cfg, slog.New(slog.DiscardHandler)) }()
	for end := time.Now().Add(time.Minute); ; {
		resp, err := probe.Get(fmt.Sprintf("https://127.0.0.1:%d/readyz", cfg.Port))
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode == 200 {
				break
			}
		}
		select {
		case err := <-done:
			t.Fatalf("server ended: %v", err)
		case <-time.After(20 * time.Millisecond):
		}
		if time.Now().After(end) {
			t.Fatalf("not ready: %v", err)
		}
	}
	return func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("server ended with %v", err)
			}
		case <-time.After(time.Minute):
			t.Error("server does not end")
		}
	}
}

// serving is a configuration for loopback, with certificates of p.
func serving(t *testing.T, p *pki, port int) Config {
	t.Helper()
	p.make(t, "server", &x509.Certificate{Subject: pkix.Name{CommonName: "server"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}})
	cfg := Default()
	cfg.BindAddress, cfg.Port = "127.0.0.1", port
	cfg.TLSCertFile, cfg.TLSPrivateKeyFile, cfg.ClientCAFile = p.file("server.crt"), p.file("server.key"), p.file("ca.crt")
	cfg.ServiceAccountSigningKey = p.file("server.key")
	cfg.EndpointReconcile = "none" // a loopback address is no endpoint
	cfg.Etcd.DataDir = t.TempDir()
	return cfg
}

// The whole server over TLS: who may what, a write that outlives a restart, an end in order.
func TestServer(t *testing.T) {
	p := newPKI(t)
	cfg := serving(t, p, 25050)
	url := fmt.Sprintf("https://127.0.0.1:%d", cfg.Port)
	admin, bob, nobody := p.client(t, "admin", "system:masters"), p.client(t, "bob"), p.client(t, "")
	start := func() (stop func()) {
		end := running(t, cfg, nobody)
		return func() {
			end()
			for _, c := range []*http.Client{admin, bob, nobody} {
				c.CloseIdleConnections()
			}
		}
	}
	stop := start()
	for _, row := range []struct {
		who          string
		client       *http.Client
		method, path string
		headers      []string
		want         int
		message      string
	}{
		{"anybody reads health", nobody, "GET", "/livez", nil, 200, ""},
		{"anybody reads the version", nobody, "GET", "/version", nil, 200, ""},
		{"nobody reads nothing else", nobody, "GET", "/api/v1/pods", nil, 403, `pods is forbidden: User "system:anonymous" cannot list resource "pods" in API group "" at the cluster scope`},
		{"a bad token is refused", nobody, "GET", "/version", []string{"Authorization", "Bearer nonsense"}, 401, "Unauthorized"},
		{"bob may not read metrics", bob, "GET", "/metrics", nil, 403, `forbidden: User "bob" cannot get path "/metrics"`},
		{"bob may not list pods", bob, "GET", "/api/v1/namespaces/default/pods", nil, 403, `pods is forbidden: User "bob" cannot list resource "pods" in API group "" in the namespace "default"`},
		{"bob discovers", bob, "GET", "/apis", nil, 200, ""},
		{"admin reads metrics", admin, "GET", "/metrics", nil, 200, ""},
		{"admin reads the rooms", admin, "GET", "/debug/watchcache", nil, 200, ""},
		{"admin acts as bob", admin, "GET", "/api/v1/nodes", []string{"Impersonate-User", "bob"}, 403, `nodes is forbidden: User "bob" cannot list resource "nodes" in API group "" at the cluster scope`},
		{"bob may not act as admin", bob, "GET", "/api/v1/nodes", []string{"Impersonate-User", "admin"}, 403, `nodes is forbidden: User "bob" cannot impersonate-on:user-info:list resource "nodes" in API group "" at the cluster scope`},
		{"admin lists the paths", admin, "GET", "/", nil, 200, ""},
		{"no such path", admin, "GET", "/nothing", nil, 404, ""},
		{"a timeout that is none", nobody, "GET", "/version?timeout=soon", nil, 400, `invalid timeout specified in the request URL - time: invalid duration "soon"`},
		{"a timeout longer than the server's", nobody, "GET", "/version?timeout=1h", nil, 200, ""},
		{"health is told whatever the method", admin, "POST", "/readyz", nil, 200, ""},
		{"metrics too", admin, "POST", "/metrics", nil, 200, ""},
		{"no redirection to a path of other rules", admin, "GET", "//api", nil, 404, ""},
		{"none below health either", admin, "GET", "/healthz//etcd", nil, 404, ""},
		{"the version has one form", admin, "GET", "/version", []string{"Accept", "text/html"}, 406, "406: Not Acceptable\n\nAvailable representations: application/json"},
		{"the status page as an object", admin, "GET", "/statusz", []string{"Accept", "text/html, application/json;as=Statusz;v=v1beta1;g=config.k8s.io"}, 200, ""},
		{"the flags have no plain JSON", admin, "GET", "/flagz", []string{"Accept", "application/json"}, 406, "only the following media types are accepted: application/json, application/yaml, text/plain"},
		{"bob may not read the flags", bob, "GET", "/flagz", nil, 403, `forbidden: User "bob" cannot get path "/flagz"`},
		{"the version can only be read", admin, "POST", "/version", nil, 405, "the server does not allow this method on the requested resource"},
	} {
		code, got := call(t, row.client, row.method, url+row.path, "", row.headers...)
		if code != row.want || (row.message != "" && got["message"] != row.message) {
			t.Errorf("%s: got %d %v, want %d %q", row.who, code, got, row.want, row.message)
		}
	}
	for _, row := range []struct {
		kind, body, want string // want: part of the answer
	}{
		{"authorization.k8s.io/v1/selfsubjectrulesreviews", `{"spec":{"namespace":"default"}}`, `"resourceRules":[{"apiGroups":["*"],"resources":["*"],"verbs":["*"]},{"apiGroups":["authorization.k8s.io"]`},
		{"authorization.k8s.io/v1/subjectaccessreviews", `{"spec":{"user":"system:node:n","groups":["system:nodes"],"resourceAttributes":{"verb":"list","resource":"pods"}}}`, `"reason":"can only list/watch pods with spec.nodeName field selector"`},
		{"authorization.k8s.io/v1/subjectaccessreviews", `{"spec":{"user":"system:node:n","groups":["system:nodes"],"resourceAttributes":{"verb":"list","resource":"pods","fieldSelector":{"requirements":[{"key":"spec.nodeName","operator":"In","values":["n"]}]}}}}`, `"status":{"allowed":true}`},
		{"authorization.k8s.io/v1/subjectaccessreviews", `{"spec":{"user":"bob","resourceAttributes":{"verb":"list","resource":"pods","labelSelector":{"rawSelector":"a b c"}}}}`, `"evaluationError":"spec.resourceAttributes.labelSelector ignored due to parse error"`},
		{"authorization.k8s.io/v1/subjectaccessreviews", `{"spec":{"user":"u"}}`, `"message":".authorization.k8s.io \"\" is invalid: spec.resourceAttributes: Invalid value: null: exactly one of`},
		{"authentication.k8s.io/v1/tokenreviews", `{"spec":{"token":"x"}}`, `"error":"invalid bearer token"`},
		{"authentication.k8s.io/v1/tokenreviews", `{"spec":{"token":"x"}}`, `"fieldsV1":{"f:spec":{"f:token":{}}}`},
	} {
		_, got := call(t, admin, "POST", url+"/apis/"+row.kind, row.body)
		if text, _ := json.Marshal(got); !strings.Contains(string(text), row.want) {
			t.Errorf("%s %s: %s lacks %s", row.kind, row.body, text, row.want)
		}
	}
	// What upstream's server prints, less what this one does not have (upstream v1.36.2, run once).
	const first = "[+]ping ok\n[+]log ok\n[+]etcd ok\n"
	const hooks = `[+]poststarthook/start-apiserver-admission-initializer ok
[+]poststarthook/generic-apiserver-start-informers ok
[+]poststarthook/priority-and-fairness-config-consumer ok
[+]poststarthook/priority-and-fairness-filter ok
[+]poststarthook/storage-object-count-tracker-hook ok
[+]poststarthook/start-apiextensions-informers ok
[+]poststarthook/start-apiextensions-controllers ok
[+]poststarthook/crd-informer-synced ok
[+]poststarthook/start-system-namespaces-controller ok
[+]poststarthook/start-cluster-authentication-info-controller ok
[+]poststarthook/storage-readiness ok
[+]poststarthook/start-legacy-token-tracking-controller ok
[+]poststarthook/start-service-ip-repair-controllers ok
[+]poststarthook/rbac/bootstrap-roles ok
[+]poststarthook/scheduling/bootstrap-system-priority-classes ok
[+]poststarthook/priority-and-fairness-config-producer ok
[+]poststarthook/bootstrap-controller ok
[+]poststarthook/start-kubernetes-service-cidr-controller ok
[+]poststarthook/start-kube-aggregator-informers ok
[+]poststarthook/apiservice-status-local-available-controller ok
[+]poststarthook/apiservice-status-remote-available-controller ok
[+]poststarthook/apiservice-registration-controller ok
[+]poststarthook/apiservice-wait-for-first-sync ok
[+]poststarthook/apiservice-discovery-controller ok
[+]poststarthook/kube-apiserver-autoregistration ok
[+]autoregister-completion ok
[+]poststarthook/apiservice-openapi-controller ok
[+]poststarthook/apiservice-openapiv3-controller ok
`
	for path, want := range map[string]string{
		"/livez?verbose":   first + hooks + "livez check passed\n",
		"/healthz?verbose": first + hooks + "healthz check passed\n",
		"/readyz?verbose":  first + "[+]etcd-readiness ok\n[+]informer-sync ok\n" + hooks + "[+]shutdown ok\nreadyz check passed\n",
		"/readyz/poststarthook/rbac/bootstrap-roles": "ok",
	} {
		if got := read(t, admin, url+path); got != want {
			t.Errorf("%s:\n%s\nwant:\n%s", path, got, want)
		}
	}
	if got := read(t, admin, url+"/"); !strings.Contains(got, "\n    \"/healthz/poststarthook/rbac/bootstrap-roles\",\n") || strings.Contains(got, "/livez/informer-sync") {
		t.Errorf("the paths do not name the checks as they are: %s", got)
	}
	code, got := call(t, admin, "POST", url+"/api/v1/namespaces/default/configmaps", `{"metadata":{"name":"kept"},"data":{"a":"b"}}`)
	if code != 201 {
		t.Fatalf("create: %d %v", code, got)
	}
	rev := got["metadata"].(map[string]any)["resourceVersion"]
	shown := read(t, admin, url+"/metrics")
	for _, series := range []string{
		`authentication_attempts{result="success"}`, `authentication_attempts{result="error"}`, `authenticated_user_requests{username="admin"}`,
		`authorization_attempts_total{result="no-opinion"}`, `apiserver_tls_handshake_errors_total`, `apiserver_client_certificate_expiration_seconds_count`,
		`etcd_request_duration_seconds_count{group="",operation="create",resource="configmaps"}`,
		`apiserver_admission_controller_admission_duration_seconds_count{name="NamespaceLifecycle",operation="CREATE",rejected="false",type="admit"}`,
		`apiserver_admission_step_admission_duration_seconds_count{operation="CREATE",rejected="false",type="admit"}`,
	} {
		if !strings.Contains(shown, "\n"+series+" ") {
			t.Errorf("/metrics does not show %s", series)
		}
	}
	for path, want := range map[string]string{"/statusz": "Binary version", "/flagz": "\nsecure-port"} {
		if got := read(t, admin, url+path); !strings.HasPrefix(got, "\napiserver "+path[1:]+"\nWarning: ") || !strings.Contains(got, want) {
			t.Errorf("%s: %s", path, got)
		}
	}
	keys, err := admin.Get(url + "/openid/v1/jwks")
	if err != nil {
		t.Fatal(err)
	}
	keys.Body.Close()
	if got := keys.Header.Get("Cache-Control"); got != "public, max-age=3600" {
		t.Errorf("the issuer's keys may be kept: Cache-Control %q", got)
	}
	// A watch is open while the server ends.
	watch, err := admin.Get(url + "/api/v1/configmaps?watch=true")
	if err != nil {
		t.Fatal(err)
	}
	stop()
	if _, err := io.Copy(io.Discard, watch.Body); err != nil && !errors.Is(err, io.EOF) {
		t.Logf("the watch ended with %v", err)
	}
	watch.Body.Close()

	stop = start()
	defer stop()
	code, got = call(t, admin, "GET", url+"/api/v1/namespaces/default/configmaps/kept", "")
	if code != 200 || got["metadata"].(map[string]any)["resourceVersion"] != rev {
		t.Fatalf("after the restart: %d %v, want revision %v", code, got, rev)
	}
}

// A server that has done nothing yet passes no check of what it does at the start.
func TestChecksFailBeforeTheStart(t *testing.T) {
	p := newPKI(t)
	s, err := newServer(serving(t, p, 0), slog.New(slog.DiscardHandler), memory.New(), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range s.checks() {
		switch c.name {
		case "log", "etcd", "etcd-readiness": // nothing has gone wrong
			if err := c.f(); err != nil {
				t.Errorf("%s: %v", c.name, err)
			}
		default:
			if c.f() == nil {
				t.Errorf("%s passes before anything was done", c.name)
			}
		}
	}
}

func TestValidateNamesEveryFault(t *testing.T) {
	cfg := Default()
	cfg.Port, cfg.ServiceClusterIPRange, cfg.ServiceNodePortRange = -1, "10.96.0.1/16", "9-x"
	cfg.AuthorizationMode, cfg.EnableAdmissionPlugins = []string{"Magic"}, []string{"NoSuchPlugin"}
	cfg.EtcdServers, cfg.RequestTimeout.Duration = []string{"nowhere"}, 0
	text := cfg.Validate().ToAggregate().Error()
	for _, want := range []string{"securePort", "serviceClusterIPRange", "serviceNodePortRange", "authorizationMode[0]", "enableAdmissionPlugins[0]", "etcdServers[0]", "requestTimeout"} {
		if !strings.Contains(text, want) {
			t.Errorf("no word about %s in: %s", want, text)
		}
	}
	if errs := Default().Validate(); len(errs) > 0 {
		t.Errorf("the default configuration is at fault: %v", errs)
	}
	if _, _, err := config.Parse("apiserver", "", Default(), nil, []string{"--secure-port=7000", "--etcd-servers=http://a:1,http://b:2"}, io.Discard); err != nil {
		t.Errorf("flags: %v", err)
	}
}

// read is the text that a path answers with.
func read(t *testing.T, client *http.Client, url string) string {
	t.Helper()
	res, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
