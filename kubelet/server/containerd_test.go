package server

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/keelson/keelson/kubelet/cri"
)

// real is one pod in a real runtime.
type real struct {
	pod              *corev1.Pod
	sandbox, id, log string
}

func (r real) Pods() []*corev1.Pod                                 { return []*corev1.Pod{r.pod} }
func (r real) Pod(_, name string, _ types.UID) (*corev1.Pod, bool) { return r.pod, name == r.pod.Name }
func (r real) Sandbox(types.UID) (string, bool)                    { return r.sandbox, true }
func (r real) Container(types.UID, string, bool) (Container, bool) {
	return Container{ID: r.id, Running: true, LogPath: r.log}, true
}

// TestContainerd runs against a real runtime, when KEELSON_TEST_CRI names its socket and
// KEELSON_TEST_IMAGE an image with busybox. It must run in the runtime's network namespace.
func TestContainerd(t *testing.T) {
	socket, image := os.Getenv("KEELSON_TEST_CRI"), os.Getenv("KEELSON_TEST_IMAGE")
	if socket == "" || image == "" {
		t.Skip("KEELSON_TEST_CRI and KEELSON_TEST_IMAGE are not set")
	}
	rt, err := cri.Dial(socket, "", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer rt.Close()
	ctx := t.Context()
	logs := t.TempDir()
	labels := map[string]string{labelPodName: "web", labelPodNamespace: "ns", labelPodUID: "u", labelContainer: "c"}
	config := &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: "web", Namespace: "ns", Uid: fmt.Sprint(time.Now().UnixNano())}, Labels: labels, LogDirectory: logs,
		Linux: &runtimeapi.LinuxPodSandboxConfig{},
	}
	sandbox, err := rt.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: config})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		_, _ = rt.StopPodSandbox(context.Background(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: sandbox.PodSandboxId})
		_, _ = rt.RemovePodSandbox(context.Background(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: sandbox.PodSandboxId})
	}()
	made, err := rt.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: sandbox.PodSandboxId, SandboxConfig: config, Config: &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: "c"}, Labels: labels, LogPath: "0.log", Image: &runtimeapi.ImageSpec{Image: image},
		Command: []string{"sh", "-c", "echo started; while true; do echo pong | nc -l -p 8080; done"},
	}})
	if err == nil {
		_, err = rt.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: made.ContainerId})
	}
	if err != nil {
		t.Fatal(err)
	}
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "web", UID: "u"}}
	pod.Spec.Containers = []corev1.Container{{Name: "c"}}
	pods := real{pod, sandbox.PodSandboxId, made.ContainerId, filepath.Join(logs, "0.log")}

	l := httptest.NewUnstartedServer(nil).Listener
	address := "https://" + l.Addr().String()
	log := slog.New(slog.DiscardHandler)
	stats := NewStats(StatsOptions{NodeName: "n", Root: t.TempDir(), PodLogs: logs, Runtime: rt, Images: rt, Pods: pods, Log: log})
	s, err := New(Options{Listener: l},
		Surroundings{NodeName: "n", Pods: pods, Stats: stats, Runtime: rt, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	s.Authorize(func(*http.Request) error { return nil })
	sctx, cancel := context.WithCancel(ctx)
	done := make(chan error)
	go func() { done <- s.Run(sctx) }()
	defer func() { cancel(); <-done }()
	client := &rest.Config{Host: address, TLSClientConfig: rest.TLSClientConfig{Insecure: true}}

	for name, executor := range map[string]func(u *url.URL) (remotecommand.Executor, error){
		"SPDY": func(u *url.URL) (remotecommand.Executor, error) {
			return remotecommand.NewSPDYExecutor(client, "POST", u)
		},
		"WebSocket": func(u *url.URL) (remotecommand.Executor, error) {
			return remotecommand.NewWebSocketExecutor(client, "GET", u.String())
		},
	} {
		t.Run("exec over "+name, func(t *testing.T) {
			run := func(o remotecommand.StreamOptions, command ...string) error {
				q := url.Values{"command": command, "output": {"1"}}
				if o.Stdin != nil {
					q.Set("input", "1")
				}
				if o.Stderr != nil {
					q.Set("error", "1")
				}
				if o.Tty {
					q.Set("tty", "1")
				}
				u, _ := url.Parse(address + "/exec/ns/web/c?" + q.Encode())
				e, err := executor(u)
				if err != nil {
					t.Fatal(err)
				}
				ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
				defer cancel()
				return e.StreamWithContext(ctx, o)
			}
			var out, errs bytes.Buffer
			if err := run(remotecommand.StreamOptions{Stdin: strings.NewReader("through"), Stdout: &out, Stderr: &errs}, "sh", "-c", "cat; echo no >&2; exit 3"); err == nil ||
				err.Error() != "command terminated with exit code 3" || out.String() != "through" || errs.String() != "no\n" {
				t.Errorf("%q %q %v", out.String(), errs.String(), err)
			}
			out.Reset()
			big := strings.Repeat("0123456789abcdef", 1<<17)
			if err := run(remotecommand.StreamOptions{Stdin: strings.NewReader(big), Stdout: &out, Stderr: &errs}, "cat"); err != nil || out.String() != big {
				t.Errorf("2 MiB: %d bytes back, %v", out.Len(), err)
			}
			out.Reset()
			sizes := make(sizeQueue, 1)
			sizes.put(remotecommand.TerminalSize{Width: 123, Height: 45})
			open, closed := io.Pipe() // an input that ends would hang the terminal up
			defer closed.Close()
			err := run(remotecommand.StreamOptions{Stdin: open, Stdout: &out, Tty: true, TerminalSizeQueue: sizes}, "sh", "-c",
				"for i in 1 2 3 4 5 6 7 8 9; do busybox stty size 2>/dev/null | grep -q 45 && break; sleep 0.1; done; busybox stty size")
			if err != nil || strings.TrimSpace(out.String()) != "45 123" {
				t.Errorf("terminal: %q %v", out.String(), err)
			}
		})
	}
	forward, _ := url.Parse(address + "/portForward/ns/web")
	transport, upgrader, err := spdy.RoundTripperFor(client)
	if err != nil {
		t.Fatal(err)
	}
	tunnel, err := portforward.NewSPDYOverWebsocketDialer(forward, client)
	if err != nil {
		t.Fatal(err)
	}
	overSPDY := spdy.NewDialer(upgrader, &http.Client{Transport: transport}, "POST", forward)
	for name, start := range map[string]func(stop, ready chan struct{}) (*portforward.PortForwarder, error){
		"SPDY": func(stop, ready chan struct{}) (*portforward.PortForwarder, error) {
			return portforward.NewOnAddresses(overSPDY, []string{"127.0.0.1"}, []string{":8080"}, stop, ready, io.Discard, io.Discard)
		},
		"WebSocket": func(stop, ready chan struct{}) (*portforward.PortForwarder, error) {
			return portforward.NewOnAddresses(tunnel, []string{"127.0.0.1"}, []string{":8080"}, stop, ready, io.Discard, io.Discard)
		},
	} {
		t.Run("port-forward over "+name, func(t *testing.T) {
			stop, ready, ended := make(chan struct{}), make(chan struct{}), make(chan error, 1)
			f, err := start(stop, ready)
			if err != nil {
				t.Fatal(err)
			}
			go func() { ended <- f.ForwardPorts() }()
			defer func() { close(stop); <-ended }()
			select {
			case <-ready:
			case err := <-ended:
				ended <- err
				t.Fatal(err)
			}
			ports, _ := f.GetPorts()
			var got []byte
			for end := time.Now().Add(10 * time.Second); time.Now().Before(end) && string(got) != "pong\n"; time.Sleep(50 * time.Millisecond) {
				conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", ports[0].Local))
				if err != nil {
					t.Fatal(err)
				}
				_ = conn.SetDeadline(time.Now().Add(3 * time.Second))
				got, _ = io.ReadAll(conn)
				conn.Close()
			}
			if string(got) != "pong\n" {
				t.Errorf("got %q", got)
			}
		})
	}
	web := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	for path, want := range map[string]string{
		"/containerLogs/ns/web/c?tailLines=1": "started\n",
		"/runningpods/":                       `"name":"web"`,
		"/stats/summary":                      `"workingSetBytes"`,
		"/metrics/resource":                   `container_memory_working_set_bytes{container="c",namespace="ns",pod="web"}`,
		"/metrics/cadvisor":                   `container_cpu_usage_seconds_total{container="c",cpu="total",namespace="ns",pod="web"}`,
	} {
		res, err := web.Get(address + path)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(res.Body)
		res.Body.Close()
		if res.StatusCode != 200 || !strings.Contains(string(body), want) {
			t.Errorf("%s: %d %s, want %s", path, res.StatusCode, body, want)
		}
	}
}
