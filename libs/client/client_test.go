package client

import (
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
)

const kubeconfig = `apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "https://127.0.0.1:1"}}]
contexts: [{name: c, context: {cluster: c, user: u}}]
users: [{name: u, user: {token: t}}]
current-context: c
`

func TestREST(t *testing.T) {
	path := filepath.Join(t.TempDir(), "k")
	if err := os.WriteFile(path, []byte(kubeconfig), 0o600); err != nil {
		t.Fatal(err)
	}
	rc, err := REST(Config{Kubeconfig: path}, "keelson-test")
	if err != nil {
		t.Fatal(err)
	}
	if rc.Host != "https://127.0.0.1:1" || rc.QPS != -1 || !strings.HasPrefix(rc.UserAgent, "keelson-test/v1.36") || rc.ContentType != "application/vnd.kubernetes.protobuf" {
		t.Errorf("%+v", rc)
	}
	for name, content := range map[string]string{"missing": "", "broken": "{"} {
		p := filepath.Join(t.TempDir(), name)
		if content != "" {
			if err := os.WriteFile(p, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := REST(Config{Kubeconfig: p}, "x"); err == nil || !strings.Contains(err.Error(), p) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if errs := (Config{QPS: 5}).Validate(); len(errs) != 1 {
		t.Errorf("a rate without a burst: %v", errs)
	}
}

func TestCertificateEnds(t *testing.T) {
	server := httptest.NewTLSServer(http.NotFoundHandler())
	defer server.Close()
	leaf := server.Certificate()
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf.Raw})
	path := filepath.Join(t.TempDir(), "client.crt")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, rc := range map[string]*rest.Config{"data": {TLSClientConfig: rest.TLSClientConfig{CertData: text}}, "file": {TLSClientConfig: rest.TLSClientConfig{CertFile: path}}} {
		if at, ok := CertificateEnds(rc); !ok || !at.Equal(leaf.NotAfter) {
			t.Errorf("%s: %v %v, want %v", name, at, ok, leaf.NotAfter)
		}
	}
	for name, rc := range map[string]*rest.Config{"no configuration": nil, "a token": {BearerToken: "t"},
		"no file": {TLSClientConfig: rest.TLSClientConfig{CertFile: path + "x"}}, "no certificate": {TLSClientConfig: rest.TLSClientConfig{CertData: []byte("x")}}} {
		if at, ok := CertificateEnds(rc); ok {
			t.Errorf("%s: it ends %v", name, at)
		}
	}
}

func TestRequestsAreCounted(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) }))
	m := NewMetrics()
	api, _, err := New(Config{Master: server.URL, Metrics: m}, "keelson-test")
	if err != nil {
		t.Fatal(err)
	}
	host := strings.TrimPrefix(server.URL, "http://")
	ask := func() {
		if _, err := api.CoreV1().Nodes().Get(t.Context(), "n", metav1.GetOptions{}); err == nil {
			t.Error("the server refuses, and there is no error")
		}
	}
	ask()
	ask()
	server.Close()
	ask()
	want := `
# HELP rest_client_requests_total Requests sent, by status code, method and host.
# TYPE rest_client_requests_total counter
rest_client_requests_total{code="403",host="HOST",method="GET"} 2
rest_client_requests_total{code="<error>",host="HOST",method="GET"} 1
`
	if err := testutil.CollectAndCompare(m, strings.NewReader(strings.ReplaceAll(want, "HOST", host)), "rest_client_requests_total"); err != nil {
		t.Error(err)
	}
	if n := testutil.CollectAndCount(m, "rest_client_request_duration_seconds"); n != 1 {
		t.Errorf("%d series of durations, want 1", n)
	}
}
