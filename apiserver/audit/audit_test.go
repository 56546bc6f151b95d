package audit

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	auditv1 "k8s.io/apiserver/pkg/apis/audit/v1"

	"github.com/keelson/keelson/apiserver/authn"
)

const head = "apiVersion: audit.k8s.io/v1\nkind: Policy\n"

func policy(t *testing.T, rules string) *Policy {
	t.Helper()
	p, err := ReadPolicy([]byte(head + rules))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestPolicy(t *testing.T) {
	p := policy(t, `
omitStages: [RequestReceived]
rules:
- {level: None, users: ["system:kube-proxy"], verbs: [watch]}
- {level: None, userGroups: ["system:nodes"], verbs: [get], resources: [{group: "", resources: [nodes]}]}
- {level: Metadata, omitStages: [ResponseStarted], resources: [{group: "", resources: [secrets, "pods/log", "*/status"]}]}
- {level: Request, omitManagedFields: true, namespaces: [kube-system], resources: [{group: apps, resources: ["deployments/*"], resourceNames: [a]}]}
- {level: RequestResponse, resources: [{group: apps}]}
- {level: None, nonResourceURLs: ["/healthz*", /version]}
- {level: Metadata, nonResourceURLs: ["*"]}
`)
	pod := func(plural, sub, group, ns, name string) Subject {
		return Subject{User: &authn.User{Name: "alice", Groups: []string{"devs"}}, Verb: "get", Resource: true, Group: group, Plural: plural, Subresource: sub, Namespace: ns, Name: name}
	}
	node := pod("nodes", "", "", "", "n")
	node.User = &authn.User{Name: "system:node:n", Groups: []string{"system:nodes"}}
	proxy := pod("services", "", "", "", "")
	proxy.User, proxy.Verb = &authn.User{Name: "system:kube-proxy"}, "watch"
	for _, c := range []struct {
		name string
		s    Subject
		want auditv1.Level
	}{
		{"a user and a verb", proxy, "None"},
		{"a group and a resource", node, "None"},
		{"a resource", pod("secrets", "", "", "d", "s"), "Metadata"},
		{"a subresource", pod("pods", "log", "", "d", "p"), "Metadata"},
		{"a subresource of all", pod("pods", "status", "", "d", "p"), "Metadata"},
		{"not the resource itself", pod("pods", "", "", "d", "p"), "None"},
		{"all subresources of one object", pod("deployments", "scale", "apps", "kube-system", "a"), "Request"},
		{"the object itself too", pod("deployments", "", "apps", "kube-system", "a"), "Request"},
		{"another name: the next rule", pod("deployments", "scale", "apps", "kube-system", "b"), "RequestResponse"},
		{"another namespace: the next rule", pod("deployments", "scale", "apps", "d", "a"), "RequestResponse"},
		{"a path", Subject{Path: "/version"}, "None"},
		{"a path below", Subject{Path: "/healthz/etcd"}, "None"},
		{"any path", Subject{Path: "/metrics"}, "Metadata"},
	} {
		if got := p.Decide(c.s); got.Level != c.want {
			t.Errorf("%s: got %s, want %s", c.name, got.Level, c.want)
		}
	}
	if d := p.Decide(pod("secrets", "", "", "d", "s")); len(d.Omit) != 2 || d.OmitManagedFields {
		t.Errorf("stages omitted by rule and policy: %+v", d)
	}
	if d := p.Decide(pod("deployments", "", "apps", "kube-system", "a")); !d.OmitManagedFields {
		t.Errorf("managed fields: %+v", d)
	}
	for want, text := range map[string]string{
		"has no rules":          head,
		"not audit.k8s.io/v1":   "apiVersion: v1\nkind: Policy\nrules: [{level: None}]\n",
		"unknown field":         head + "rules: [{level: None, who: me}]\n",
		"rules[0].level":        head + "rules: [{level: All}]\n",
		"omitStages[0]":         head + "omitStages: [Never]\nrules: [{level: None}]\n",
		"begin with a '/'":      head + "rules: [{level: None, nonResourceURLs: [version]}]\n",
		"final character":       head + "rules: [{level: None, nonResourceURLs: ['/a*/b']}]\n",
		"regular resources":     head + "rules: [{level: None, nonResourceURLs: [/a], namespaces: [a]}]\n",
		"at least one resource": head + "rules: [{level: None, resources: [{group: apps, resourceNames: [a]}]}]\n",
	} {
		if _, err := ReadPolicy([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q, got %v", want, err)
		}
	}
}

// kept is a backend that remembers.
type kept struct {
	mu     sync.Mutex
	events []*auditv1.Event
	refuse bool
}

func (k *kept) Send(ev *auditv1.Event) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.refuse {
		return false
	}
	k.events = append(k.events, ev)
	return true
}

func (k *kept) Run(context.Context) error { return nil }

func TestRecord(t *testing.T) {
	k := &kept{}
	a := New(Config{Policy: policy(t, "rules: [{level: RequestResponse, omitManagedFields: true}]"), Backends: []Backend{k}, Readable: func(_ string, b []byte) []byte { return b }})
	r := httptest.NewRequest("POST", "/api/v1/namespaces/d/pods?x=y", strings.NewReader(`{"metadata":{"name":"p","managedFields":[]}}`))
	r.Header.Set("X-Forwarded-For", "192.0.2.7, nonsense")
	r.Header.Set("Accept-Encoding", "gzip")
	r, rec, err := a.Begin(r, "id", Subject{User: &authn.User{Name: "alice"}, Verb: "create", Resource: true, Version: "v1", Plural: "pods", Namespace: "d"}, false, time.Now())
	if err != nil || From(r.Context()) != rec || r.Header.Get("Accept-Encoding") != "" {
		t.Fatalf("begin: %v", err)
	}
	if _, err := io.ReadAll(r.Body); err != nil {
		t.Fatal(err)
	}
	rec.Impersonated(&authn.User{Name: "bob"}, "impersonate:user-info")
	rec.Annotate("a", "1")
	rec.Annotate("a", "2")
	rec.Answering(201, "application/json", false)
	rec.Answered([]byte(`{"kind":"Pod",`))
	rec.Answered([]byte(`"metadata":{"managedFields":[{}]}}`))
	rec.End(nil, false)
	if len(k.events) != 2 || k.events[0].Stage != "RequestReceived" || k.events[1].Stage != "ResponseComplete" {
		t.Fatalf("stages: %+v", k.events)
	}
	line, err := json.Marshal(k.events[1])
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`"kind":"Event","apiVersion":"audit.k8s.io/v1","level":"RequestResponse","auditID":"id","stage":"ResponseComplete","requestURI":"/api/v1/namespaces/d/pods?x=y","verb":"create","user":{"username":"alice"}`,
		`"impersonatedUser":{"username":"bob"}`, `"authenticationMetadata":{"impersonationConstraint":"impersonate:user-info"}`, `"sourceIPs":["192.0.2.7","192.0.2.1"]`, `"objectRef":{"resource":"pods","namespace":"d","apiVersion":"v1"}`,
		`"responseStatus":{"metadata":{},"code":201}`, `"requestObject":{"metadata":{"name":"p"}}`, `"responseObject":{"kind":"Pod","metadata":{}}`, `"annotations":{"a":"1"}`,
	} {
		if !strings.Contains(string(line), want) {
			t.Errorf("the line has no %s:\n%s", want, line)
		}
	}
	// What cannot be recorded is refused where it must be.
	k.refuse = true
	strict := New(Config{Policy: policy(t, "rules: [{level: Metadata}]"), Backends: []Backend{k}, Strict: true})
	if _, _, err := strict.Begin(r, "id", Subject{}, false, time.Now()); err == nil {
		t.Error("a request that could not be recorded was let in")
	}
	// Nothing asked for, nothing done.
	none := New(Config{Policy: policy(t, "rules: [{level: None}]"), Backends: []Backend{k}, Strict: true})
	if _, rec, err := none.Begin(r, "id", Subject{}, false, time.Now()); rec != nil || err != nil {
		t.Errorf("level None: %v, %v", rec, err)
	}
	var nobody *Auditor
	_, rec, _ = nobody.Begin(r, "id", Subject{}, false, time.Now())
	rec.Answering(200, "", true)
	rec.End(nil, true)
}

func running(t *testing.T, b Backend) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- b.Run(ctx) }()
	return func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// Lines are whole and in order, files are rotated, and what waits at the end is written.
func TestLog(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "audit.log")
	lost := NewErrors(nil)
	l := NewLog(LogConfig{Path: path, MaxSizeMB: 1, Errors: lost, Log: slog.New(slog.DiscardHandler)})
	ev := &auditv1.Event{AuditID: "x", RequestURI: "/" + strings.Repeat("a", 4096)}
	const n = 600 // 2.5 MB
	for range n {
		if !l.Send(ev) {
			t.Fatal("a line was lost while there was room")
		}
	}
	running(t, l)()
	files, err := filepath.Glob(filepath.Join(dir, "audit*.log"))
	if err != nil || len(files) < 3 {
		t.Fatalf("files: %v, %v", files, err)
	}
	lines := 0
	for _, f := range files {
		file, err := os.Open(f)
		if err != nil {
			t.Fatal(err)
		}
		for s := bufio.NewScanner(file); s.Scan(); lines++ {
			var got auditv1.Event
			if err := json.Unmarshal(s.Bytes(), &got); err != nil || got.AuditID != "x" {
				t.Fatalf("%s: %v: %.100s", f, err, s.Bytes())
			}
		}
		file.Close()
	}
	if lines != n {
		t.Errorf("%d lines of %d", lines, n)
	}
}

// A backend that hangs costs events, not requests.
func TestLogIsFull(t *testing.T) {
	lost := NewErrors(nil)
	l := NewLog(LogConfig{Path: "-", Buffer: 2, Errors: lost})
	for i := range 5 {
		if got := l.Send(&auditv1.Event{}); got != (i < 2) {
			t.Errorf("event %d: %v", i, got)
		}
	}
	waits := NewLog(LogConfig{Path: "-", Buffer: 2, Wait: true, Errors: lost})
	if waits.Send(&auditv1.Event{}) {
		t.Error("nobody has written it")
	}
	if got := testutil.ToFloat64(lost.WithLabelValues("log")); got != 4 {
		t.Errorf("%v events counted as lost, want 4", got)
	}
}

func TestWebhook(t *testing.T) {
	got := make(chan auditv1.EventList, 10)
	fail := true
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if fail {
			fail = false
			http.Error(w, "not now", http.StatusServiceUnavailable)
			return
		}
		var list auditv1.EventList
		if err := json.NewDecoder(r.Body).Decode(&list); err != nil {
			t.Error(err)
		}
		got <- list
	}))
	defer srv.Close()
	file := filepath.Join(t.TempDir(), "kubeconfig")
	text := "apiVersion: v1\nkind: Config\nclusters: [{name: a, cluster: {server: '" + srv.URL + "'}}]\ncontexts: [{name: a, context: {cluster: a}}]\ncurrent-context: a\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	w, err := NewWebhook(WebhookConfig{File: file, Batch: 2, Backoff: time.Millisecond, Errors: NewErrors(prometheus.NewRegistry()), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	stop := running(t, w)
	for range 3 {
		w.Send(&auditv1.Event{AuditID: "x"})
	}
	if list := <-got; len(list.Items) != 2 || list.Kind != "EventList" || list.Items[0].AuditID != "x" {
		t.Errorf("first call: %+v", list)
	}
	stop()
	if list := <-got; len(list.Items) != 1 {
		t.Errorf("last call: %+v", list)
	}
}
