package cases

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	daemonconfig "github.com/keelson/keelson/libs/config"
)

// Story 9: bad input of every kind gets a clear answer, and nothing dies of it.
func TestBadInput(t *testing.T) {
	s := begin(t, "badinput", 6*time.Minute)
	pidsBefore := daemons(s)

	t.Run("manifests", func(t *testing.T) {
		s := s.sub(t)
		for _, c := range []struct {
			name, manifest string
			says           []string
		}{
			{"unknown field", "{apiVersion: v1, kind: Pod, metadata: {name: x}, spec: {containers: [{name: c, image: i, imagee: j}]}}",
				[]string{`strict decoding error: unknown field "spec.containers[0].imagee"`}},
			{"wrong type", "{apiVersion: apps/v1, kind: Deployment, metadata: {name: x}, spec: {replicas: many}}",
				[]string{"replicas"}},
			{"invalid name", "{apiVersion: v1, kind: ConfigMap, metadata: {name: Not_Valid}}",
				[]string{`The ConfigMap "Not_Valid" is invalid: metadata.name: Invalid value: "Not_Valid"`, "a lowercase RFC 1123 subdomain"}},
			{"missing parts", "{apiVersion: v1, kind: Pod, metadata: {name: x}, spec: {containers: [{name: c}]}}",
				[]string{`The Pod "x" is invalid`, "spec.containers[0].image: Required value"}},
			{"no containers", "{apiVersion: v1, kind: Pod, metadata: {name: x}, spec: {containers: []}}",
				[]string{"spec.containers: Required value"}},
			{"dangling volume", "{apiVersion: v1, kind: Pod, metadata: {name: x}, spec: {containers: [{name: c, image: i, volumeMounts: [{name: v, mountPath: /v}]}]}}",
				[]string{`spec.containers[0].volumeMounts[0].name: Not found: "v"`}},
			{"selector does not match", "{apiVersion: apps/v1, kind: Deployment, metadata: {name: x}, spec: {selector: {matchLabels: {a: b}}, template: {metadata: {labels: {a: c}}, spec: {containers: [{name: c, image: i}]}}}}",
				[]string{"`selector` does not match template `labels`"}},
			{"bad port", "{apiVersion: v1, kind: Service, metadata: {name: x}, spec: {ports: [{port: 70000}]}}",
				[]string{"spec.ports[0].port: Invalid value: 70000: must be between 1 and 65535, inclusive"}},
			{"unknown kind", "{apiVersion: v1, kind: Pot, metadata: {name: x}}", []string{`no matches for kind "Pot" in version "v1"`}},
			{"other namespace", "{apiVersion: v1, kind: ConfigMap, metadata: {name: x, namespace: absent}}", []string{`namespaces "absent" not found`}},
			{"limit below request", "{apiVersion: v1, kind: Pod, metadata: {name: x}, spec: {containers: [{name: c, image: i, resources: {requests: {memory: 2Gi}, limits: {memory: 1Gi}}}]}}",
				[]string{"spec.containers[0].resources.requests: Invalid value", "must be less than or equal to memory limit of 1Gi"}},
			{"bad cron", "{apiVersion: batch/v1, kind: CronJob, metadata: {name: x}, spec: {schedule: soon, jobTemplate: {spec: {template: {spec: {restartPolicy: Never, containers: [{name: c, image: i}]}}}}}}",
				[]string{`spec.schedule: Invalid value: "soon"`}},
		} {
			args := []string{"apply", "-f", "-"}
			if out, err := func() (string, error) {
				if c.name == "other namespace" {
					return cmdWithoutNamespace(s, c.manifest)
				}
				return s.stdin(c.manifest, args...)
			}(); err == nil {
				t.Errorf("%s: accepted:\n%s", c.name, out)
			} else {
				s.says(out, c.says...)
			}
		}
	})

	t.Run("immutable changes and stale versions", func(t *testing.T) {
		s := s.sub(t)
		s.apply(web("fixed", 0))
		s.refused([]string{"spec.selector: Invalid value", "field is immutable"}, "patch", "deployment", "fixed", "--type", "merge", "-p",
			`{"spec":{"selector":{"matchLabels":{"app":"other"}},"template":{"metadata":{"labels":{"app":"other"}}}}}`)
		s.refused([]string{"clusterIP", "Invalid value"}, "patch", "service", "fixed", "-p", `{"spec":{"clusterIP":"10.96.77.77"}}`)
		s.apply(client("fixed-pod", "node-1"))
		s.refused([]string{"Forbidden: pod updates may not change fields other than"}, "patch", "pod", "fixed-pod", "-p", `{"spec":{"containers":[{"name":"c","args":["x"]}]}}`)
		s.apply("{apiVersion: v1, kind: ConfigMap, metadata: {name: sealed}, immutable: true, data: {a: b}}")
		s.refused([]string{"field is immutable when `immutable` is set"}, "patch", "configmap", "sealed", "-p", `{"data":{"a":"c"}}`)
		cm, err := cluster.Client.CoreV1().ConfigMaps(s.ns).Create(s.ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "stale"}}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		s.kubectl("label", "configmap", "stale", "a=b")
		if _, err := cluster.Client.CoreV1().ConfigMaps(s.ns).Update(s.ctx, cm, metav1.UpdateOptions{}); !apierrors.IsConflict(err) {
			t.Errorf("an update with an old resourceVersion: %v; want a conflict", err)
		}
		if _, err := cluster.Client.CoreV1().ConfigMaps(s.ns).List(s.ctx, metav1.ListOptions{ResourceVersion: "garbage"}); !apierrors.IsBadRequest(err) && !apierrors.IsInvalid(err) {
			t.Errorf("a garbage resourceVersion: %v; want 400", err)
		}
		if w, err := cluster.Client.CoreV1().ConfigMaps(s.ns).Watch(s.ctx, metav1.ListOptions{ResourceVersion: "1"}); err == nil {
			ev := <-w.ResultChan()
			w.Stop()
			if st, ok := ev.Object.(*metav1.Status); ok && st.Code != http.StatusGone {
				t.Errorf("a watch from the distant past: %+v; want 410 or the events", st)
			}
		} else if !apierrors.IsResourceExpired(err) && !apierrors.IsGone(err) {
			t.Errorf("a watch from the distant past: %v", err)
		}
	})

	t.Run("bodies", func(t *testing.T) {
		s := s.sub(t)
		hc, err := rest.HTTPClientFor(cluster.Config)
		if err != nil {
			t.Fatal(err)
		}
		base := cluster.Config.Host + "/api/v1/namespaces/" + s.ns + "/configmaps"
		post := func(contentType string, body []byte) (int, string) {
			t.Helper()
			ctx, cancel := context.WithTimeout(s.ctx, 30*time.Second)
			defer cancel()
			req, err := http.NewRequestWithContext(ctx, http.MethodPost, base, bytes.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Content-Type", contentType)
			resp, err := hc.Do(req)
			if err != nil {
				return 0, err.Error()
			}
			defer resp.Body.Close()
			b, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
			return resp.StatusCode, string(b)
		}
		for _, c := range []struct {
			name, contentType, body string
			codes                   []int
		}{
			{"wrong content type", "text/html", "<html>", []int{415}},
			{"truncated JSON", "application/json", `{"apiVersion":"v1","kind":"ConfigMap"`, []int{400}},
			{"no body", "application/json", "", []int{400}},
			{"another kind", "application/json", `{"apiVersion":"v1","kind":"Secret","metadata":{"name":"x"}}`, []int{400}},
			{"a list for an object", "application/json", `[1,2,3]`, []int{400}},
			{"deep nesting", "application/json", `{"apiVersion":"v1","kind":"ConfigMap","x":` + strings.Repeat("[", 100000) + strings.Repeat("]", 100000) + "}", []int{400}},
			{"garbage as protobuf", "application/vnd.kubernetes.protobuf", "k8s\x00garbage", []int{400}},
			{"a YAML bomb", "application/yaml", yamlBomb(), []int{400, 413}},
			{"over 1.5 MiB", "application/json", `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"big"},"data":{"a":"` + strings.Repeat("x", 1600*1024) + `"}}`, []int{413, 422}},
			{"over 3 MiB", "application/json", `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"big"},"data":{"a":"` + strings.Repeat("x", 4<<20) + `"}}`, []int{413}},
		} {
			began := time.Now()
			code, body := post(c.contentType, []byte(c.body))
			good := false
			for _, want := range c.codes {
				good = good || code == want
			}
			if !good {
				t.Errorf("%s: status %d, want %v: %.300s", c.name, code, c.codes, body)
			}
			if took := time.Since(began); took > 10*time.Second {
				t.Errorf("%s: the answer took %s", c.name, took)
			}
			if good && !strings.Contains(body, `"kind":"Status"`) && !strings.Contains(body, "Status") {
				t.Errorf("%s: the answer is no Status: %.200s", c.name, body)
			}
		}
		s.refused([]string{"the server could not find the requested resource"}, "get", "--raw", "/apis/none/v1/things")
	})

	t.Run("garbage on every port", func(t *testing.T) {
		s := s.sub(t)
		junk := make([]byte, 64<<10)
		if _, err := rand.Read(junk); err != nil {
			t.Fatal(err)
		}
		for _, m := range cluster.Nodes {
			for _, port := range []int{6443, 2379, 2380, 10250, 10256} {
				if m != cluster.Nodes[0] && port < 10000 {
					continue
				}
				for _, send := range [][]byte{junk, []byte("GET / HTTP/1.1\r\n\r\n"), []byte(strings.Repeat("A", 100000)), {}} {
					c, err := net.DialTimeout("tcp", fmt.Sprintf("%s:%d", m.Address, port), 2*time.Second)
					if err != nil {
						if port != 2379 && port != 2380 { // etcd may listen on the loopback only
							t.Errorf("%s:%d: %v", m.Name, port, err)
						}
						break
					}
					_ = c.SetDeadline(time.Now().Add(500 * time.Millisecond))
					_, _ = c.Write(send)
					_, _ = io.Copy(io.Discard, c)
					c.Close()
				}
			}
		}
		s.kubectl("get", "--raw", "/readyz")
	})

	t.Run("flags and files", func(t *testing.T) {
		s := s.sub(t)
		m := cluster.Nodes[0]
		broken := filepath.Join(m.Path("var/log"), "broken.yaml")
		if err := os.WriteFile(broken, []byte("nonsense: 1\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		for _, daemon := range []string{"apiserver", "scheduler", "controller-manager", "kubelet", "kube-proxy"} {
			bin := filepath.Join(binaries, daemon)
			for _, c := range []struct{ arg, says string }{
				{"--no-such-flag", "no-such-flag"}, {"--config=/var/log/broken.yaml", "nonsense"}, {"--config=/absent.yaml", "/absent.yaml"},
			} {
				ctx, cancel := context.WithTimeout(s.ctx, 10*time.Second)
				cmd := m.Command(ctx, bin, c.arg)
				out, err := cmd.CombinedOutput()
				cancel()
				if code := exitCode(err); code != daemonconfig.ExitUsage {
					t.Errorf("%s %s: exit code %d, want %d\n%s", daemon, c.arg, code, daemonconfig.ExitUsage, out)
				}
				if !strings.Contains(string(out), c.says) || strings.Contains(string(out), "goroutine ") {
					t.Errorf("%s %s does not name %q, or panics:\n%s", daemon, c.arg, c.says, out)
				}
			}
		}
		ctx, cancel := context.WithTimeout(s.ctx, 10*time.Second)
		defer cancel()
		for args, says := range map[string]string{
			"up --address 0.0.0.0": "address", "up --pod-cidr 10.96.0.0/12": "pod-cidr", "up --wat": "unknown flag", "node-bundle": "arg", "wat": "unknown command",
			"images load /absent.tar": "/absent.tar", "node-bundle node-9": "--address", "up --node /absent.tar": "/absent.tar", "service stop nothing": "",
		} {
			out, err := m.Keelson(ctx, strings.Fields(args)...)
			if says == "" {
				continue // only must not hang or break anything
			}
			if err == nil || !strings.Contains(err.Error(), says) || strings.Contains(err.Error(), "goroutine ") {
				t.Errorf("keelson %s: want a refusal that names %q: %v\n%s", args, says, err, out)
			}
		}
	})

	t.Run("a machine that is not ready for it", func(t *testing.T) {
		s := s.sub(t)
		m, err := cluster.Machine(s.ctx, "bad", 60)
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := m.PowerOff(); err != nil {
				t.Error(err)
			}
		}()
		up := func(args ...string) string {
			t.Helper()
			ctx, cancel := context.WithTimeout(s.ctx, 90*time.Second)
			defer cancel()
			_, err := m.Up(ctx, args...)
			if err == nil {
				t.Errorf("keelson up %v succeeded", args)
				return ""
			}
			if _, err := m.Keelson(ctx, "reset", "--yes"); err != nil {
				t.Errorf("reset after a failed up: %v", err)
			}
			return err.Error()
		}
		// A port in use.
		ctx, cancel := context.WithCancel(s.ctx)
		squatter := m.Command(ctx, program, "serve", "6443")
		if err := squatter.Start(); err != nil {
			t.Fatal(err)
		}
		s.eventually(10*time.Second, "the squatter listens", func() (bool, string) {
			_, err := m.Exec(s.ctx, program, "get", "http://127.0.0.1:6443/")
			return err == nil, fmt.Sprint(err)
		})
		s.says(up(), "port 6443", "apiserver", "testprogram")
		cancel()
		_ = squatter.Wait()
		// No daemons.
		s.says(up("--binaries", "/var/log"), "not built", "make build")
		// No containerd: the file is hidden in this machine only.
		s.on(m, "mount", "--bind", "/dev/null", "/usr/bin/containerd")
		out := up()
		s.on(m, "umount", "/usr/bin/containerd")
		s.says(out, "containerd")
		// The data of another version.
		for _, data := range []string{"var/lib/keelson/etcd/member/snap", "var/lib/keelson/etcd/member/wal"} {
			if err := os.MkdirAll(m.Path(data), 0o700); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.WriteFile(m.Path("var/lib/keelson/etcd/member/snap/db"), []byte(strings.Repeat("not a database ", 5000)), 0o600); err != nil {
			t.Fatal(err)
		}
		s.says(up(), "apiserver does not start", "etcd")
	})

	// Whatever came, the daemons are the same processes as before.
	s.everyNode(30 * time.Second)
	for name, pid := range daemons(s) {
		if pidsBefore[name] != pid {
			t.Errorf("%s was process %d and is %d: it died of bad input", name, pidsBefore[name], pid)
		}
	}
}

func daemons(s *story) map[string]int {
	s.Helper()
	out := map[string]int{}
	for _, m := range cluster.Nodes {
		for _, d := range []string{"apiserver", "scheduler", "controller-manager", "kubelet", "kube-proxy"} {
			if pid, err := m.PID(d); err == nil {
				out[m.Name+" "+d] = pid
			}
		}
	}
	return out
}

func cmdWithoutNamespace(s *story, manifest string) (string, error) {
	other := *s
	other.ns = "absent"
	return other.stdin(manifest, "apply", "-f", "-")
}

// yamlBomb is small and would grow to gigabytes if aliases were expanded.
func yamlBomb() string {
	var b strings.Builder
	b.WriteString("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: bomb}\ndata:\n  a: &a [\"x\",\"x\",\"x\",\"x\",\"x\",\"x\",\"x\",\"x\",\"x\"]\n")
	for c := 'b'; c <= 'k'; c++ {
		p := string(c - 1)
		fmt.Fprintf(&b, "  %c: &%c [%s]\n", c, c, strings.TrimSuffix(strings.Repeat("*"+p+",", 9), ","))
	}
	return b.String()
}
