package client

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
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
