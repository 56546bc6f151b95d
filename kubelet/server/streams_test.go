package server

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"google.golang.org/grpc"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"

	"github.com/keelson/keelson/libs/serve"
	"github.com/keelson/keelson/libs/testkit"
)

// streaming is a runtime's streaming server that speaks SPDY v4 only. Its command answers
// "out:" and what it reads, "err" on stderr, the sizes it is told, and exits with a code.
// The command "stall" reads nothing until the test ends.
type streaming struct{ t *testing.T }

func (s streaming) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if _, err := httpstream.Handshake(r, w, []string{"v4.channel.k8s.io"}); err != nil {
		s.t.Error(err)
		return
	}
	q := r.URL.Query()
	want := 1 // the error stream
	for _, name := range []string{"i", "o", "e", "t"} {
		if q.Get(name) == "true" {
			want++
		}
	}
	arrived := make(chan httpstream.Stream, 8)
	conn := spdy.NewResponseUpgrader().UpgradeResponse(w, r, func(stream httpstream.Stream, replied <-chan struct{}) error {
		go func() { <-replied; arrived <- stream }()
		return nil
	})
	if conn == nil {
		return
	}
	defer conn.Close()
	streams := map[string]httpstream.Stream{}
	for range want {
		select {
		case stream := <-arrived:
			streams[stream.Headers().Get(corev1.StreamType)] = stream
		case <-time.After(5 * time.Second):
			s.t.Errorf("streams: %v, want %d", streams, want)
			return
		}
	}
	if q.Get("code") == "stall" {
		<-s.t.Context().Done()
		return
	}
	if resize := streams["resize"]; resize != nil {
		var size remotecommand.TerminalSize
		_ = json.NewDecoder(resize).Decode(&size)
		fmt.Fprintf(streams["stdout"], "%dx%d ", size.Width, size.Height)
	}
	if stdin := streams["stdin"]; stdin != nil {
		if q.Get("t") == "true" {
			buf := make([]byte, 5)
			_, _ = io.ReadFull(stdin, buf)
			fmt.Fprintf(streams["stdout"], "out:%s", buf)
		} else {
			data, _ := io.ReadAll(stdin)
			fmt.Fprintf(streams["stdout"], "out:%s", data)
		}
	}
	if e := streams["stderr"]; e != nil {
		fmt.Fprint(e, "err")
	}
	status := &metav1.Status{Status: metav1.StatusSuccess}
	if code := q.Get("code"); code != "" {
		status = &metav1.Status{Status: metav1.StatusFailure, Reason: "NonZeroExitCode",
			Details: &metav1.StatusDetails{Causes: []metav1.StatusCause{{Type: "ExitCode", Message: code}}}}
	}
	data, _ := json.Marshal(status)
	_, _ = streams["error"].Write(data)
	for _, stream := range streams {
		_ = stream.Close()
	}
	select {
	case <-conn.CloseChan():
	case <-time.After(5 * time.Second):
	}
}

type fakeRuntime struct {
	runtimeapi.RuntimeServiceClient
	url string
}

func (f fakeRuntime) Exec(_ context.Context, r *runtimeapi.ExecRequest, _ ...grpc.CallOption) (*runtimeapi.ExecResponse, error) {
	if r.ContainerId != "id1" {
		return nil, fmt.Errorf("no such container %s", r.ContainerId)
	}
	q := url.Values{"i": {fmt.Sprint(r.Stdin)}, "o": {fmt.Sprint(r.Stdout)}, "e": {fmt.Sprint(r.Stderr)}, "t": {fmt.Sprint(r.Tty)}}
	if len(r.Cmd) == 2 && r.Cmd[0] == "exit" {
		q.Set("code", r.Cmd[1])
	}
	return &runtimeapi.ExecResponse{Url: f.url + "/exec/token?" + q.Encode()}, nil
}

func (f fakeRuntime) ContainerStatus(context.Context, *runtimeapi.ContainerStatusRequest, ...grpc.CallOption) (*runtimeapi.ContainerStatusResponse, error) {
	return &runtimeapi.ContainerStatusResponse{Status: &runtimeapi.ContainerStatus{State: runtimeapi.ContainerState_CONTAINER_EXITED}}, nil
}

// onePod is ns/web with a container c, whose log is at path.
type onePod struct{ path string }

func (o onePod) Pods() []*corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "web", UID: "u"}}
	p.Spec.Containers = []corev1.Container{{Name: "c"}, {Name: "waits"}}
	p.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "waits", State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "ImagePullBackOff"}}}}
	return []*corev1.Pod{p}
}

func (o onePod) Pod(namespace, name string, _ types.UID) (*corev1.Pod, bool) {
	return o.Pods()[0], namespace == "ns" && name == "web"
}

func (o onePod) Container(_ types.UID, name string, previous bool) (Container, bool) {
	return Container{ID: "id1", Running: true, LogPath: o.path}, name == "c" && !previous
}
func (o onePod) Sandbox(types.UID) (string, bool) { return "s1", true }

// start serves a kubelet with the pod above, open to everybody.
func start(t *testing.T) (address string) {
	runtime := http.NewServeMux()
	runtime.Handle("/exec/", streaming{t})
	runtime.Handle("/portforward/", forwarding(t))
	commands := httptest.NewServer(runtime)
	t.Cleanup(commands.Close)
	path := filepath.Join(t.TempDir(), "0.log")
	if err := os.WriteFile(path, []byte(sample), 0o600); err != nil {
		t.Fatal(err)
	}
	l := httptest.NewUnstartedServer(nil)
	address = "https://" + l.Listener.Addr().String()
	s, err := New(Options{Listener: l.Listener},
		Surroundings{NodeName: "n", Pods: onePod{path}, Runtime: fakeRuntime{url: commands.URL}, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	s.pingEvery = 20 * time.Millisecond
	s.Authorize(func(r *http.Request) error {
		if r.Header.Get("X-Nobody") != "" {
			return serve.ErrUnauthenticated
		}
		return nil
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return address
}

func TestExec(t *testing.T) {
	address := start(t)
	config := &rest.Config{Host: address, TLSClientConfig: rest.TLSClientConfig{Insecure: true}}
	for name, client := range map[string]func(u *url.URL) (remotecommand.Executor, error){
		"SPDY": func(u *url.URL) (remotecommand.Executor, error) {
			return remotecommand.NewSPDYExecutor(config, "POST", u)
		},
		"WebSocket": func(u *url.URL) (remotecommand.Executor, error) {
			return remotecommand.NewWebSocketExecutor(config, "GET", u.String())
		},
	} {
		t.Run(name, func(t *testing.T) {
			run := func(query, stdin string, size *remotecommand.TerminalSize) (string, string, error) {
				u, _ := url.Parse(address + "/exec/ns/web/c?" + query)
				e, err := client(u)
				if err != nil {
					t.Fatal(err)
				}
				var out, errs strings.Builder
				o := remotecommand.StreamOptions{Stdout: &out, Tty: size != nil}
				if strings.Contains(query, "input=1") {
					o.Stdin = strings.NewReader(stdin)
				}
				if strings.Contains(query, "error=1") {
					o.Stderr = &errs
				}
				if size != nil {
					q := make(sizeQueue, 1)
					q.put(*size)
					o.TerminalSizeQueue = q
				}
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				defer cancel()
				err = e.StreamWithContext(ctx, o)
				return out.String(), errs.String(), err
			}
			out, errs, err := run("command=cat&input=1&output=1&error=1", "hello", nil)
			if out != "out:hello" || errs != "err" || err != nil {
				t.Errorf("cat: %q %q %v", out, errs, err)
			}
			big := strings.Repeat("0123456789abcdef", 1<<16)
			if out, _, err = run("command=cat&input=1&output=1&error=1", big, nil); out != "out:"+big || err != nil {
				t.Errorf("1 MiB: %d bytes, %v", len(out), err)
			}
			if _, _, err = run("command=exit&command=7&output=1&error=1", "", nil); err == nil || err.Error() != "command terminated with exit code 7" {
				t.Errorf("exit 7: %v", err)
			}
			out, _, err = run("command=sh&input=1&output=1&tty=1", "hello", &remotecommand.TerminalSize{Width: 80, Height: 24})
			if out != "80x24 out:hello" || err != nil {
				t.Errorf("terminal: %q %v", out, err)
			}
		})
	}
}

// A client that goes away without a word ends its command's streams, also while the command takes no
// input, so that nothing is read from the client.
func TestClientThatVanishes(t *testing.T) {
	address := start(t)
	d := websocket.Dialer{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, Subprotocols: []string{"v5.channel.k8s.io"}}
	ws, _, err := d.Dial("wss"+strings.TrimPrefix(address, "https")+"/exec/ns/web/c?command=exit&command=stall&input=1&output=1", nil)
	if err != nil {
		t.Fatal(err)
	}
	// Until nothing goes any more: every buffer on the way is full.
	block := make([]byte, 1<<20)
	for i := 0; ; i++ {
		_ = ws.SetWriteDeadline(time.Now().Add(500 * time.Millisecond))
		if err := ws.WriteMessage(websocket.BinaryMessage, block); err != nil {
			break
		}
		if i == 1000 {
			t.Fatal("a gigabyte went into a command that reads nothing")
		}
	}
	_ = ws.NetConn().(*tls.Conn).NetConn().Close()
	stacks := make([]byte, 4<<20)
	testkit.Eventually(t, 20*time.Second, func() (bool, string) {
		all := string(stacks[:runtime.Stack(stacks, true)])
		return !strings.Contains(all, "(*Server).bridge"), "the client is gone, and its stream goes on:\n" + all
	})
}

func TestBadRequests(t *testing.T) {
	address := start(t)
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	get := func(method, path string, header ...string) (int, string) {
		req, _ := http.NewRequest(method, address+path, nil)
		for i := 0; i < len(header); i += 2 {
			req.Header.Set(header[i], header[i+1])
		}
		res, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		body, _ := io.ReadAll(res.Body)
		return res.StatusCode, string(body)
	}
	for _, row := range []struct {
		method, path string
		code         int
		body         string
	}{
		{"GET", "/containerLogs/ns/web/c", 200, "one\noops\ntwo-and-a-half\n\nfive\n"},
		{"GET", "/containerLogs/ns/web/c?follow=true", 200, "one\noops\ntwo-and-a-half\n\nfive\n"},
		{"GET", "/containerLogs/ns/web/c?previous=true", 400, `previous terminated container "c" in pod "web" not found`},
		{"GET", "/containerLogs/ns/web/waits", 400, `container "waits" in pod "web" is waiting to start: trying and failing to pull image`},
		{"GET", "/containerLogs/ns/web/x", 404, `container "x" not found in pod "web"`},
		{"GET", "/containerLogs/ns/none/c", 404, `pod "none" does not exist`},
		{"POST", "/exec/ns/web/c?command=x", 400, "you must specify at least 1 of stdin, stdout, stderr"},
		{"POST", "/exec/ns/web/x?command=x&output=1", 404, `container not found ("x")`},
		{"POST", "/portForward/ns/web?port=99999", 400, "want a number from 1 to 65535"},
		{"GET", "/pods", 200, `"kind":"PodList"`},
		{"GET", "/nothing", 404, "not found"},
	} {
		if code, body := get(row.method, row.path); code != row.code || !strings.Contains(body, row.body) {
			t.Errorf("%s %s: %d %q, want %d %q", row.method, row.path, code, body, row.code, row.body)
		}
	}
	for _, path := range []string{"/pods", "/healthz", "/healthz/ping", "/livez", "/readyz"} {
		if code, _ := get("GET", path, "X-Nobody", "1"); code != 401 {
			t.Errorf("%s to nobody: %d, want 401", path, code)
		}
	}
	// A WebSocket that speaks nothing we know is refused before any command runs.
	d := websocket.Dialer{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, Subprotocols: []string{"nonsense"}}
	_, res, err := d.Dial("wss"+strings.TrimPrefix(address, "https")+"/exec/ns/web/c?command=cat&output=1", nil)
	if err == nil || res == nil || res.StatusCode != http.StatusBadRequest {
		t.Errorf("unknown subprotocol: %v %v", res, err)
	}
}

func TestSubresources(t *testing.T) {
	for path, want := range map[string]string{
		"/stats/summary": "stats", "/metrics": "metrics", "/metrics/cadvisor": "metrics", "/logs/x": "log", "/pods": "pods proxy",
		"/runningpods/": "pods proxy", "/configz": "configz proxy", "/healthz/ping": "healthz proxy",
		"/exec/ns/p/c": "proxy", "/containerLogs/ns/p/c": "proxy", "/debug/pprof/": "proxy", "/statsx": "proxy",
	} {
		if got := strings.Join(subresources(path), " "); got != want {
			t.Errorf("%s: %q, want %q", path, got, want)
		}
	}
}
