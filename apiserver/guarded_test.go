package apiserver

import (
	"bufio"
	"context"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	auditv1 "k8s.io/apiserver/pkg/apis/audit/v1"

	"github.com/keelson/keelson/apiserver/store/etcdstore"
)

// A server that encrypts and records: etcd has no secret in plain text, clients read it, the same
// secret written again takes the newest key, and the audit file says who did what.
func TestEncryptedAndRecorded(t *testing.T) {
	p := newPKI(t)
	p.make(t, "server", &x509.Certificate{Subject: pkix.Name{CommonName: "server"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}})
	const etcdAt = "http://127.0.0.1:25091"
	cfg := Default()
	cfg.BindAddress, cfg.Port = "127.0.0.1", 25090
	cfg.TLSCertFile, cfg.TLSPrivateKeyFile, cfg.ClientCAFile = p.file("server.crt"), p.file("server.key"), p.file("ca.crt")
	cfg.ServiceAccountSigningKey = p.file("server.key")
	cfg.EndpointReconcile = "none"
	cfg.Etcd.DataDir, cfg.Etcd.ListenClients = t.TempDir(), []string{etcdAt}
	dir := t.TempDir()
	cfg.EncryptionConfig, cfg.AuditPolicyFile, cfg.AuditLogPath = filepath.Join(dir, "enc.yaml"), filepath.Join(dir, "policy.yaml"), filepath.Join(dir, "audit.log")
	key := func(name, with string) string {
		return fmt.Sprintf("{aesgcm: {keys: [{name: %s, secret: %s}]}}", name, base64.StdEncoding.EncodeToString([]byte(strings.Repeat(with, 32))))
	}
	write := func(file, text string) {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	encryption := func(providers string) {
		write(cfg.EncryptionConfig, "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n- resources: [secrets]\n  providers: ["+providers+"]\n")
	}
	write(cfg.AuditPolicyFile, `apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- {level: Metadata, resources: [{group: "", resources: [secrets]}]}
- {level: RequestResponse, omitManagedFields: true, namespaces: [default], resources: [{group: "", resources: [configmaps]}]}
- {level: None}
`)
	if errs := cfg.Validate(); len(errs) > 0 {
		t.Fatal(errs.ToAggregate())
	}
	admin, bob, dora := p.client(t, "admin", "system:masters"), p.client(t, "bob"), p.client(t, "dora")
	start := func() (stop func()) {
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- Run(ctx, cfg, slog.New(slog.DiscardHandler)) }()
		until(t, 2*time.Minute, "ready", ready(admin, &member{url: "https://127.0.0.1:25090"}))
		return func() {
			admin.CloseIdleConnections()
			cancel()
			if err := <-done; err != nil {
				t.Errorf("end: %v", err)
			}
		}
	}
	const url = "https://127.0.0.1:25090/api/v1/namespaces/default/"
	inEtcd := func() string {
		raw, end, err := etcdstore.Dial(etcdstore.Remote{Servers: []string{etcdAt}}, "/registry")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = end() }()
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		kv, err := raw.Get(ctx, "secrets/default/s")
		if err != nil || kv == nil {
			t.Fatalf("read etcd: %v, %v", kv, err)
		}
		return string(kv.Value)
	}
	readable := func() {
		t.Helper()
		code, s := call(t, admin, "GET", url+"secrets/s", "")
		if data, _ := s["data"].(map[string]any); code != 200 || data["password"] != "aHVudGVyMg==" {
			t.Fatalf("read the secret: %d %v", code, s)
		}
	}
	const body = `{"metadata":{"name":"s"},"stringData":{"password":"hunter2"}}`

	encryption(key("k1", "1"))
	stop := start()
	if code, s := call(t, admin, "POST", url+"secrets", body); code != 201 {
		t.Fatalf("create: %d %v", code, s)
	}
	readable()
	if got := inEtcd(); !strings.HasPrefix(got, "k8s:enc:aesgcm:v1:k1:") || strings.Contains(got, "hunter2") {
		t.Errorf("etcd has %.80q", got)
	}
	if code, s := call(t, bob, "GET", url+"secrets/s", ""); code != 403 {
		t.Errorf("bob: %d %v", code, s)
	}
	// Dora may look at secrets as somebody else, and only that; the somebody may not.
	const rbac = "https://127.0.0.1:25090/apis/rbac.authorization.k8s.io/v1/"
	for path, body := range map[string]string{
		"clusterroles": `{"metadata":{"name":"as-others"},"rules":[{"verbs":["impersonate:user-info"],"apiGroups":["authentication.k8s.io"],"resources":["users"],"resourceNames":["carol"]},
			{"verbs":["impersonate-on:user-info:get"],"apiGroups":[""],"resources":["secrets"]}]}`,
		"clusterrolebindings": `{"metadata":{"name":"as-others"},"roleRef":{"apiGroup":"rbac.authorization.k8s.io","kind":"ClusterRole","name":"as-others"},
			"subjects":[{"apiGroup":"rbac.authorization.k8s.io","kind":"User","name":"dora"}]}`,
	} {
		if code, s := call(t, admin, "POST", rbac+path, body); code != 201 {
			t.Fatalf("%s: %d %v", path, code, s)
		}
	}
	for as, want := range map[string]string{
		"carol": `secrets "s" is forbidden: User "carol" cannot get resource "secrets" in API group "" in the namespace "default"`,
		"eve":   `users.authentication.k8s.io "eve" is forbidden: User "dora" cannot impersonate:user-info resource "users" in API group "authentication.k8s.io" at the cluster scope`,
	} {
		until(t, 20*time.Second, "dora as "+as, func() error {
			if code, s := call(t, dora, "GET", url+"secrets/s", "", "Impersonate-User", as); code != 403 || s["message"] != want {
				return fmt.Errorf("%d %v", code, s)
			}
			return nil
		})
	}
	if code, s := call(t, admin, "POST", url+"configmaps", `{"metadata":{"name":"c"},"data":{"a":"b"}}`); code != 201 {
		t.Errorf("config map: %d %v", code, s)
	}
	stop()

	encryption(key("k2", "2") + ", " + key("k1", "1"))
	stop = start()
	readable()
	if got := inEtcd(); !strings.HasPrefix(got, "k8s:enc:aesgcm:v1:k1:") {
		t.Errorf("before it is written again etcd has %.80q", got)
	}
	_, same := call(t, admin, "GET", url+"secrets/s", "")
	text, err := json.Marshal(same)
	if err != nil {
		t.Fatal(err)
	}
	if code, s := call(t, admin, "PUT", url+"secrets/s", string(text)); code != 200 {
		t.Fatalf("write the same again: %d %v", code, s)
	}
	if got := inEtcd(); !strings.HasPrefix(got, "k8s:enc:aesgcm:v1:k2:") {
		t.Errorf("after it was written again etcd has %.80q", got)
	}
	readable()
	stop()

	lines, err := os.Open(cfg.AuditLogPath)
	if err != nil {
		t.Fatal(err)
	}
	defer lines.Close()
	found := map[string]auditv1.Event{}
	for s := bufio.NewScanner(lines); s.Scan(); {
		if strings.Contains(s.Text(), "aHVudGVyMg==") || strings.Contains(s.Text(), "hunter2") {
			t.Errorf("the audit file has the secret: %s", s.Text())
		}
		var ev auditv1.Event
		if err := json.Unmarshal(s.Bytes(), &ev); err != nil {
			t.Fatalf("line %q: %v", s.Text(), err)
		}
		if ev.ObjectRef.Resource == "configmaps" && ev.ObjectRef.Name != "c" {
			continue
		}
		what := ev.User.Username + " " + ev.Verb + " " + ev.ObjectRef.Resource
		if ev.ImpersonatedUser != nil {
			what += " as " + ev.ImpersonatedUser.Username
		}
		found[what] = ev
	}
	created, denied, full := found["admin create secrets"], found["bob get secrets"], found["admin create configmaps"]
	if created.Level != "Metadata" || created.Stage != "ResponseComplete" || created.ObjectRef == nil || created.ObjectRef.Name != "s" ||
		created.ResponseStatus.Code != 201 || created.RequestObject != nil || created.Annotations["authorization.k8s.io/decision"] != "allow" {
		t.Errorf("creation of the secret: %+v", created)
	}
	if denied.ResponseStatus == nil || denied.ResponseStatus.Code != 403 || denied.ResponseStatus.Reason != "Forbidden" || denied.Annotations["authorization.k8s.io/decision"] != "forbid" {
		t.Errorf("bob's attempt: %+v", denied)
	}
	if as := found["dora get secrets as carol"]; as.AuthenticationMetadata == nil || as.AuthenticationMetadata.ImpersonationConstraint != "impersonate:user-info" || as.ResponseStatus.Code != 403 {
		t.Errorf("dora's attempt as carol: %+v", as)
	}
	if full.RequestObject == nil || full.ResponseObject == nil || !strings.Contains(string(full.ResponseObject.Raw), `"data":{"a":"b"}`) || strings.Contains(string(full.ResponseObject.Raw), "managedFields") {
		t.Errorf("the config map: %+v", full)
	}
}
