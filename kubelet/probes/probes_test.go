package probes

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/tools/record"
)

// A history is a word of outcomes (+ passed, - failed, ? unknown); the verdict after
// each is written beneath it, with ! once it is held.
func TestCount(t *testing.T) {
	for _, row := range []struct {
		kind             Kind
		failure, success int32
		history, want    string
	}{
		{Liveness, 3, 1, "--+---+", "+ + + + + -! -!"},
		{Liveness, 1, 1, "?-", "+ -!"},
		{Readiness, 2, 2, "+++--+?+", "- + + + - - - +"},
		{Readiness, 0, 0, "+--+-", "+ + + + +"},
		{Readiness, 3, 1, "-+---", "- + + + -"},
		{Startup, 3, 1, "--+--", "? ? +! +! +!"},
		{Startup, 2, 1, "--+", "? -! -!"},
	} {
		c, got := Begin(row.kind), []string{}
		spec := &corev1.Probe{FailureThreshold: row.failure, SuccessThreshold: row.success}
		for _, outcome := range row.history {
			c = c.Observe(row.kind, map[rune]Result{'+': Passed, '-': Failed, '?': Unknown}[outcome], spec)
			word := map[Result]string{Passed: "+", Failed: "-", Unknown: "?"}[c.Verdict]
			if c.Held {
				word += "!"
			}
			got = append(got, word)
		}
		if strings.Join(got, " ") != row.want {
			t.Errorf("%s, thresholds %d/%d, %s: got %v, want %v", row.kind, row.failure, row.success, row.history, got, row.want)
		}
	}
}

func TestExpand(t *testing.T) {
	env := map[string]string{"A": "x", "B": "$(A)"}
	for in, want := range map[string]string{
		"plain": "plain", "$(A)": "x", "$$(A)": "$(A)", "$(A)-$(B)": "x-$(A)", "$(C)": "$(C)", "$A": "$A", "$(": "$(", "a$": "a$",
	} {
		if got := expand(in, env); got != want {
			t.Errorf("expand(%q) = %q, want %q", in, got, want)
		}
	}
}

func pod(c corev1.Container) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "p", UID: "u1"}}
	p.Spec.Containers = []corev1.Container{c}
	p.Status.PodIP = "127.0.0.1"
	return p
}

func TestChecks(t *testing.T) {
	mux := http.NewServeMux()
	mux.HandleFunc("/ok", func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("User-Agent") != userAgent || r.Header.Get("Accept") != "*/*" {
			w.WriteHeader(500)
		}
	})
	mux.HandleFunc("/host", func(w http.ResponseWriter, r *http.Request) {
		if r.Host != "example.org" || len(r.Header["Accept"]) != 0 {
			w.WriteHeader(500)
		}
	})
	mux.HandleFunc("/bad", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(503) })
	mux.HandleFunc("/slow", func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	mux.HandleFunc("/here", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/bad", http.StatusFound) })
	mux.HandleFunc("/away", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "http://away.example.org/", http.StatusFound)
	})
	plain, secure := httptest.NewServer(mux), httptest.NewTLSServer(mux)
	defer plain.Close()
	defer secure.Close()
	portOf := func(a net.Addr) int { return a.(*net.TCPAddr).Port }
	web := intstr.FromInt(portOf(plain.Listener.Addr()))

	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer()
	h := health.NewServer()
	h.SetServingStatus("down", grpc_health_v1.HealthCheckResponse_NOT_SERVING)
	grpc_health_v1.RegisterHealthServer(g, h)
	go g.Serve(l)
	defer g.Stop()
	unused, _ := net.Listen("tcp", "127.0.0.1:0")
	closed := portOf(unused.Addr())
	unused.Close()

	m := New(func(_ context.Context, id string, command []string, timeout time.Duration) ([]byte, int, error) {
		switch command[0] {
		case "true":
			return []byte(command[1]), 0, nil
		case "false":
			return []byte("no"), 1, nil
		case "hang":
			return nil, 0, fmt.Errorf("exec: %w", context.DeadlineExceeded)
		}
		return nil, 0, fmt.Errorf("runtime is gone")
	}, nil, nil, nil)
	get := func(path string, headers ...corev1.HTTPHeader) corev1.ProbeHandler {
		return corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: path, Port: web, HTTPHeaders: headers}}
	}
	run := func(command ...string) corev1.ProbeHandler {
		return corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: command}}
	}
	health := func(port int, service string) corev1.ProbeHandler {
		return corev1.ProbeHandler{GRPC: &corev1.GRPCAction{Port: int32(port), Service: &service}}
	}
	for name, row := range map[string]struct {
		handler corev1.ProbeHandler
		want    attempt
	}{
		"http":           {get("/ok"), attempt{Outcome: Passed}},
		"http host":      {get("/host", corev1.HTTPHeader{Name: "Host", Value: "example.org"}, corev1.HTTPHeader{Name: "Accept"}), attempt{Outcome: Passed}},
		"http 503":       {get("/bad"), attempt{Outcome: Failed, Message: "HTTP probe failed with statuscode: 503"}},
		"http timeout":   {get("/slow"), attempt{Outcome: Failed, Message: "(Client.Timeout exceeded while awaiting headers)"}},
		"redirect":       {get("/here"), attempt{Outcome: Failed, Message: "HTTP probe failed with statuscode: 503"}},
		"redirect away":  {get("/away"), attempt{Outcome: Passed, Warning: true, Message: "Probe terminated redirects, Response body: "}},
		"https":          {corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/ok", Scheme: "HTTPS", Port: intstr.FromInt(portOf(secure.Listener.Addr()))}}, attempt{Outcome: Passed}},
		"named port":     {corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromString("web")}}, attempt{Outcome: Passed}},
		"unknown port":   {corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromString("nope")}}, attempt{Message: "couldn't find port"}},
		"tcp closed":     {corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt(closed)}}, attempt{Outcome: Failed, Message: "connection refused"}},
		"grpc":           {health(portOf(l.Addr()), ""), attempt{Outcome: Passed, Message: "service healthy"}},
		"grpc down":      {health(portOf(l.Addr()), "down"), attempt{Outcome: Failed, Message: `service unhealthy (responded with "NOT_SERVING")`}},
		"grpc no server": {health(closed, ""), attempt{Outcome: Failed, Message: "timeout: failed to connect service"}},
		"exec":           {run("true", "$(WHO)"), attempt{Outcome: Passed, Message: "me"}},
		"exec fails":     {run("false"), attempt{Outcome: Failed, Message: "no"}},
		"exec hangs":     {run("hang"), attempt{Outcome: Failed, Message: `command timed out: "hang" timed out after 1s`}},
		"exec error":     {run("?"), attempt{Message: "runtime is gone"}},
	} {
		t.Run(name, func(t *testing.T) {
			c := &corev1.Container{Name: "c", Env: []corev1.EnvVar{{Name: "WHO", Value: "me"}},
				Ports: []corev1.ContainerPort{{Name: "web", ContainerPort: int32(web.IntValue())}}}
			got := m.check(t.Context(), question{ID: "id", IP: "127.0.0.1", Container: c, Spec: &corev1.Probe{ProbeHandler: row.handler, TimeoutSeconds: 1}})
			if got.Outcome != row.want.Outcome || got.Warning != row.want.Warning || !strings.Contains(got.Message, row.want.Message) {
				t.Errorf("got %+v, want %+v", got, row.want)
			}
		})
	}
}

// The life of one container under fake time: what the worker is told, and when.
func TestLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		healthy := func(command string) bool {
			since := time.Since(begin)
			switch command {
			case "startup":
				return since >= 4*time.Second
			case "readiness":
				return since >= 4200*time.Millisecond && since < 30*time.Second
			}
			return since < 60*time.Second
		}
		exec := func(_ context.Context, id string, command []string, _ time.Duration) ([]byte, int, error) {
			if healthy(command[0]) {
				return nil, 0, nil
			}
			return []byte("sick"), 1, nil
		}
		spec := func(what string, period int32) *corev1.Probe {
			return &corev1.Probe{ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{what}}},
				PeriodSeconds: period, FailureThreshold: 3, SuccessThreshold: 1, TimeoutSeconds: 1}
		}
		c := corev1.Container{Name: "c", StartupProbe: spec("startup", 2), LivenessProbe: spec("liveness", 10), ReadinessProbe: spec("readiness", 5)}
		p := pod(c)
		events := record.NewFakeRecorder(100)
		var m *Manager
		var story []string
		tell := func(types.UID) {
			s := m.State("id1")
			line := fmt.Sprintf("%v started=%v ready=%v", time.Since(begin), s.Started, s.Ready)
			if s.Failed != nil {
				line += " failed=" + s.Failed.Kind
			}
			story = append(story, line)
		}
		m = New(exec, events, tell, slog.New(slog.DiscardHandler))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- m.Run(ctx) }()
		if s := m.State("id1"); s.Started || s.Ready {
			t.Errorf("undeclared container: %+v", s)
		}
		m.Set(p, []Target{{Container: &p.Spec.Containers[0], ID: "id1", Started: begin}})
		time.Sleep(100 * time.Second)
		m.Set(p, nil)
		cancel()
		<-done
		want := []string{
			"4s started=true ready=false",
			"4.3s started=true ready=true", // asked at 4 s, 4.1 s and 4.3 s
			"44.3s started=true ready=false",
			"1m24s started=true ready=false failed=liveness",
		}
		if strings.Join(story, "\n") != strings.Join(want, "\n") {
			t.Errorf("got\n%s\nwant\n%s", strings.Join(story, "\n"), strings.Join(want, "\n"))
		}
		close(events.Events)
		first := <-events.Events
		if first != "Warning Unhealthy Startup probe failed: sick" {
			t.Errorf("first event %q", first)
		}
	})
}
