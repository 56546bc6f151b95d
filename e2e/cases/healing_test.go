package cases

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Story 5: things break, and the cluster mends itself.
func TestHealing(t *testing.T) {
	s := begin(t, "healing", 15*time.Minute)

	t.Run("a killed container is restarted, with back-off", func(t *testing.T) {
		s := s.sub(t)
		s.apply(`
apiVersion: v1
kind: Pod
metadata: {name: victim}
spec: {terminationGracePeriodSeconds: 1, nodeSelector: {kubernetes.io/hostname: node-2}, containers: [{name: c, image: $BUSYBOX, command: [sh, -c, "sleep 1000000"]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: crasher}
spec: {containers: [{name: c, image: $TEST, args: [exit, "5"]}]}
`)
		s.becomes(30*time.Second, "Running", "get", "pod", "victim", "-o", "jsonpath={.status.phase}")
		s.killContainer(s.pod("victim"), "c")
		s.eventually(30*time.Second, "the container runs again", func() (bool, string) {
			st := s.pod("victim").Status.ContainerStatuses[0]
			return st.RestartCount == 1 && st.State.Running != nil && st.LastTerminationState.Terminated != nil &&
				st.LastTerminationState.Terminated.ExitCode == 137, fmt.Sprintf("%+v", st)
		})
		s.eventually(60*time.Second, "the crashing container is in back-off", func() (bool, string) {
			st := s.pod("crasher").Status.ContainerStatuses
			if len(st) == 0 || st[0].State.Waiting == nil {
				return false, fmt.Sprintf("%+v", st)
			}
			last := st[0].LastTerminationState.Terminated
			return st[0].State.Waiting.Reason == "CrashLoopBackOff" && last != nil && last.ExitCode == 5, fmt.Sprintf("%+v", st)
		})
		s.says(s.kubectl("get", "pod", "crasher"), "CrashLoopBackOff")
		s.kubectl("delete", "pod", "crasher", "victim", "--wait=false")
	})

	t.Run("probes", func(t *testing.T) {
		s := s.sub(t)
		s.apply(`
apiVersion: v1
kind: Pod
metadata: {name: probed, labels: {app: probed}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: c
    image: $TEST
    livenessProbe: {httpGet: {path: /healthy, port: 8080}, periodSeconds: 1, failureThreshold: 2}
    readinessProbe: {httpGet: {path: /ready, port: 8080}, periodSeconds: 1, failureThreshold: 1}
---
apiVersion: v1
kind: Service
metadata: {name: probed}
spec: {selector: {app: probed}, ports: [{port: 80, targetPort: 8080}]}
`)
		s.running(30*time.Second, "app=probed", 1)
		slice := func(want bool) (time.Time, bool, string) { // when an endpoint became want
			l, err := cluster.Client.DiscoveryV1().EndpointSlices(s.ns).List(s.ctx, metav1.ListOptions{LabelSelector: "kubernetes.io/service-name=probed"})
			if err != nil {
				return time.Time{}, false, err.Error()
			}
			for _, sl := range l.Items {
				for _, e := range sl.Endpoints {
					if e.Conditions.Ready != nil && *e.Conditions.Ready == want {
						return time.Now(), true, ""
					}
				}
			}
			return time.Time{}, false, fmt.Sprint(l.Items)
		}
		s.eventually(10*time.Second, "the endpoint is ready", func() (bool, string) { _, ok, seen := slice(true); return ok, seen })
		delay := s.endpointDelay(func() { s.kubectl("exec", "probed", "--", "touch", "/tmp/unready") })
		if delay > time.Second {
			t.Errorf("the endpoint followed its pod's readiness after %s; want at most 1 s", delay)
		}
		if n := s.pod("probed").Status.ContainerStatuses[0].RestartCount; n != 0 {
			t.Errorf("a failing readiness probe restarted the container %d times", n)
		}
		s.kubectl("exec", "probed", "--", "rm", "/tmp/unready")
		s.eventually(10*time.Second, "the endpoint is ready again", func() (bool, string) { _, ok, seen := slice(true); return ok, seen })
		s.kubectl("exec", "probed", "--", "touch", "/tmp/unhealthy")
		s.eventually(30*time.Second, "the liveness probe has the container restarted", func() (bool, string) {
			st := s.pod("probed").Status.ContainerStatuses[0]
			return st.RestartCount == 1 && st.Ready, fmt.Sprintf("%+v", st)
		})
		s.eventually(20*time.Second, "events tell why", func() (bool, string) {
			out := s.kubectl("get", "events")
			return strings.Contains(out, "Liveness probe failed") && strings.Contains(out, "Unhealthy") && strings.Contains(out, "Killing"), out
		})
	})

	t.Run("a deleted pod is replaced", func(t *testing.T) {
		s := s.sub(t)
		s.kubectl("create", "deployment", "web", "--image", fill("$TEST"), "--replicas", "2")
		old := s.running(40*time.Second, "app=web", 2)
		s.kubectl("delete", "pod", old[0].Name)
		for _, p := range s.running(40*time.Second, "app=web", 2) {
			if p.Name == old[0].Name {
				t.Errorf("%s is still there", p.Name)
			}
		}
	})

	t.Run("kubelet away for 30 s", func(t *testing.T) {
		s := s.sub(t)
		before := s.containers()
		for _, m := range cluster.Nodes {
			if err := m.Kill(s.ctx, "kubelet"); err != nil {
				t.Fatal(err)
			}
			if err := m.Stop(s.ctx, "kubelet"); err != nil {
				t.Fatal(err)
			}
		}
		pause(s.ctx, 30*time.Second) // the story is about this time, so it has to pass
		for _, m := range cluster.Nodes {
			if err := m.Start(s.ctx, "kubelet"); err != nil {
				t.Fatal(err)
			}
		}
		s.everyNode(60 * time.Second)
		s.kubectl("create", "deployment", "after", "--image", fill("$TEST"), "--replicas", "2")
		s.running(40*time.Second, "app=after", 2) // both kubelets work again
		if after := s.containers(); !contains(after, before) {
			t.Errorf("containers changed while the kubelets were away:\nbefore %v\nafter  %v", before, after)
		}
		s.kubectl("delete", "deployment", "after")
	})

	t.Run("apiserver killed under writes", func(t *testing.T) {
		s := s.sub(t)
		s.apply(client("outsider", "node-2"))
		s.running(30*time.Second, "role=client", 1)
		s.kubectl("expose", "deployment", "web", "--port", "80", "--target-port", "8080")
		s.eventually(15*time.Second, "the service answers", func() (bool, string) {
			out, err := s.try("exec", "outsider", "--", "/testprogram", "get", "http://web")
			return err == nil, out
		})
		before := s.containers()
		// The load runs on the machine, in the pod's network: exec would break with the API.
		pod := s.pod("outsider")
		result := make(chan string, 1)
		netns := s.podCommand(pod, "load", "http://web."+s.ns+".svc.cluster.local/", "20", "15")
		go func() {
			out, err := netns.CombinedOutput()
			result <- fmt.Sprintf("%serr=%v", out, err)
		}()
		var mu sync.Mutex
		var acknowledged []string
		ctx, cancel := context.WithCancel(s.ctx)
		var writers sync.WaitGroup
		for w := range 4 {
			writers.Go(func() {
				for i := 0; ctx.Err() == nil; i++ {
					name := fmt.Sprintf("write-%d-%d", w, i)
					cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"load": "writes"}}, Data: map[string]string{"k": name}}
					if _, err := cluster.Client.CoreV1().ConfigMaps(s.ns).Create(ctx, cm, metav1.CreateOptions{}); err == nil {
						mu.Lock()
						acknowledged = append(acknowledged, name)
						mu.Unlock()
					}
				}
			})
		}
		count := func() int { mu.Lock(); defer mu.Unlock(); return len(acknowledged) }
		s.eventually(20*time.Second, "writes are acknowledged", func() (bool, string) { n := count(); return n > 100, fmt.Sprint(n) })
		if err := cluster.Nodes[0].Kill(s.ctx, "apiserver"); err != nil {
			t.Fatal(err)
		}
		at := count()
		s.eventually(60*time.Second, "writes go on after the restart", func() (bool, string) { n := count(); return n > at+100, fmt.Sprint(n, " of ", at) })
		cancel()
		writers.Wait()
		list, err := cluster.Client.CoreV1().ConfigMaps(s.ns).List(s.ctx, metav1.ListOptions{LabelSelector: "load=writes"})
		if err != nil {
			t.Fatal(err)
		}
		there := map[string]bool{}
		for _, cm := range list.Items {
			there[cm.Name] = cm.Data["k"] == cm.Name
		}
		for _, name := range acknowledged {
			if !there[name] {
				t.Errorf("write %s was acknowledged and is lost", name)
			}
		}
		got := <-result
		if !strings.Contains(got, "failures 0\n") || !strings.Contains(got, "err=<nil>") {
			t.Errorf("service and DNS did not go on without the API:\n%s", got)
		}
		s.everyNode(60 * time.Second)
		if after := s.containers(); !contains(after, before) {
			t.Errorf("containers changed when the apiserver died:\nbefore %v\nafter  %v", before, after)
		}
	})

	t.Run("a standby takes over", func(t *testing.T) {
		s := s.sub(t)
		first, second := cluster.Nodes[0], cluster.Nodes[1]
		for _, daemon := range []string{"scheduler", "controller-manager"} {
			s.standby(daemon)
		}
		for _, daemon := range []string{"scheduler", "controller-manager"} {
			if err := first.Kill(s.ctx, daemon); err != nil {
				t.Fatal(err)
			}
			if err := first.Stop(s.ctx, daemon); err != nil {
				t.Fatal(err)
			}
		}
		s.kubectl("create", "deployment", "standby", "--image", fill("$TEST"), "--replicas", "2")
		began := time.Now()
		s.running(60*time.Second, "app=standby", 2)
		t.Logf("with the leaders killed, a new deployment was ready after %s (on %s)", time.Since(began).Round(100*time.Millisecond), second.Name)
		if err := first.Start(s.ctx, "scheduler", "controller-manager"); err != nil {
			t.Fatal(err)
		}
		s.kubectl("delete", "deployment", "standby")
	})

	t.Run("a node cut from the network", func(t *testing.T) {
		s := s.sub(t)
		s.everyNode(60 * time.Second)
		s.apply(`
apiVersion: apps/v1
kind: Deployment
metadata: {name: mobile}
spec:
  replicas: 4
  selector: {matchLabels: {app: mobile}}
  template:
    metadata: {labels: {app: mobile}}
    spec:
      terminationGracePeriodSeconds: 1
      tolerations:
      - {key: node.kubernetes.io/not-ready, operator: Exists, effect: NoExecute, tolerationSeconds: 5}
      - {key: node.kubernetes.io/unreachable, operator: Exists, effect: NoExecute, tolerationSeconds: 5}
      containers: [{name: c, image: $TEST}]
`)
		s.running(60*time.Second, "app=mobile", 4)
		lost := cluster.Nodes[1]
		if err := lost.Cut(); err != nil {
			t.Fatal(err)
		}
		healed := false
		defer func() {
			if !healed {
				_ = lost.Heal()
			}
		}()
		took := s.eventually(90*time.Second, "the node is NotReady", func() (bool, string) {
			out := s.kubectl("get", "node", lost.Name, "-o", `jsonpath={.status.conditions[?(@.type=="Ready")].status} {.spec.taints[*].key}`)
			return strings.HasPrefix(out, "Unknown") && strings.Contains(out, "node.kubernetes.io/unreachable"), out
		})
		t.Logf("the node was NotReady after %s", took.Round(time.Second))
		s.eventually(60*time.Second, "four pods are ready on the other node", func() (bool, string) {
			n, seen := 0, ""
			for _, p := range s.pods("app=mobile") {
				seen += fmt.Sprintf("%s on %s ready=%t deleted=%t; ", p.Name, p.Spec.NodeName, ready(&p), p.DeletionTimestamp != nil)
				if p.Spec.NodeName != lost.Name && ready(&p) {
					n++
				}
			}
			return n == 4, seen
		})
		if err := lost.Heal(); err != nil {
			t.Fatal(err)
		}
		healed = true
		s.everyNode(60 * time.Second)
		s.eventually(60*time.Second, "the old pods are gone", func() (bool, string) {
			pods := s.pods("app=mobile")
			seen := ""
			for _, p := range pods {
				seen += p.Name + " on " + p.Spec.NodeName + "; "
			}
			return len(pods) == 4, seen
		})
		s.eventually(30*time.Second, "no taint is left", func() (bool, string) {
			out := s.kubectl("get", "node", lost.Name, "-o", "jsonpath={.spec.taints}")
			return out == "", out
		})
	})

	t.Run("the whole cluster stopped and started", func(t *testing.T) {
		s := s.sub(t)
		s.kubectl("delete", "pod", "probed", "--ignore-not-found")
		s.apply(`
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: state}
spec:
  serviceName: state
  replicas: 2
  selector: {matchLabels: {app: state}}
  template:
    metadata: {labels: {app: state}}
    spec: {terminationGracePeriodSeconds: 1, containers: [{name: c, image: $TEST}]}
`)
		s.running(40*time.Second, "app=state", 2)
		uids := map[string]string{}
		for _, p := range s.pods("") {
			if p.DeletionTimestamp == nil {
				uids[p.Name] = string(p.UID)
			}
		}
		for _, i := range []int{1, 0} {
			if _, err := cluster.Nodes[i].Keelson(s.ctx, "down"); err != nil {
				t.Fatal(err)
			}
		}
		for _, m := range cluster.Nodes {
			out, err := m.Up(s.ctx)
			if err != nil {
				t.Fatal(err)
			}
			t.Log(out)
		}
		s.everyNode(60 * time.Second)
		s.running(90*time.Second, "app=state", 2)
		s.running(90*time.Second, "app=web", 2)
		s.running(90*time.Second, "app=mobile", 4)
		for _, p := range s.pods("app=state") {
			if uids[p.Name] != string(p.UID) {
				t.Errorf("%s is another pod than before", p.Name)
			}
		}
		s.eventually(30*time.Second, "the service answers", func() (bool, string) {
			out, err := s.try("exec", "state-0", "--", "/testprogram", "get", "http://web")
			return err == nil, out
		})
	})
}

// pause lets time pass that the story is about.
func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// containers maps the story's running containers to their IDs and restart counts.
func (s *story) containers() map[string]string {
	s.Helper()
	out := map[string]string{}
	for _, p := range s.pods("") {
		for _, c := range p.Status.ContainerStatuses {
			if c.State.Running != nil {
				out[p.Name+"/"+c.Name] = fmt.Sprintf("%s restarts=%d", c.ContainerID, c.RestartCount)
			}
		}
	}
	return out
}

// contains reports whether all of part is in whole, unchanged.
func contains(whole, part map[string]string) bool {
	for k, v := range part {
		if whole[k] != v {
			return false
		}
	}
	return true
}

// hostPID finds a container's first process as its machine numbers it, through the
// runtime's state.
func (s *story) hostPID(p *corev1.Pod, container string) string {
	s.Helper()
	for _, c := range p.Status.ContainerStatuses {
		if c.Name != container {
			continue
		}
		id := strings.TrimPrefix(c.ContainerID, "containerd://")
		out := s.on(s.nodeOf(p), "ctr", "-a", "/run/keelson/containerd/containerd.sock", "-n", "k8s.io", "tasks", "list")
		m := regexp.MustCompile(`(?m)^` + id + `\s+(\d+)\s`).FindStringSubmatch(out)
		if m == nil {
			s.Fatalf("container %s of %s is not among the runtime's tasks:\n%s", container, p.Name, out)
		}
		return m[1]
	}
	s.Fatalf("%s has no container %s", p.Name, container)
	return ""
}

func (s *story) killContainer(p *corev1.Pod, container string) {
	s.Helper()
	s.on(s.nodeOf(p), "kill", "-KILL", s.hostPID(p, container))
}

// podCommand runs the test program in a pod's network and files without the API's help.
func (s *story) podCommand(p *corev1.Pod, args ...string) *exec.Cmd {
	s.Helper()
	pid := s.hostPID(p, p.Spec.Containers[0].Name)
	return s.nodeOf(p).Command(s.ctx, append([]string{"nsenter", "-t", pid, "-n", "-m", "--", "/testprogram"}, args...)...)
}

// endpointDelay makes a pod unready by f and returns the time from the pod's status
// saying so to its endpoint saying so, both seen by watches.
func (s *story) endpointDelay(f func()) time.Duration {
	s.Helper()
	pods, err := cluster.Client.CoreV1().Pods(s.ns).Watch(s.ctx, metav1.ListOptions{LabelSelector: "app=probed"})
	if err != nil {
		s.Fatal(err)
	}
	defer pods.Stop()
	slices, err := cluster.Client.DiscoveryV1().EndpointSlices(s.ns).Watch(s.ctx, metav1.ListOptions{LabelSelector: "kubernetes.io/service-name=probed"})
	if err != nil {
		s.Fatal(err)
	}
	defer slices.Stop()
	f()
	var podAt, sliceAt time.Time
	limit := time.After(15 * time.Second)
	for podAt.IsZero() || sliceAt.IsZero() {
		select {
		case ev := <-pods.ResultChan():
			if p, ok := ev.Object.(*corev1.Pod); ok && !ready(p) && podAt.IsZero() {
				podAt = time.Now()
			}
		case ev := <-slices.ResultChan():
			if sl, ok := ev.Object.(*discoveryv1.EndpointSlice); ok && len(sl.Endpoints) == 1 && sl.Endpoints[0].Conditions.Ready != nil && !*sl.Endpoints[0].Conditions.Ready && sliceAt.IsZero() {
				sliceAt = time.Now()
			}
		case <-limit:
			s.Fatalf("not within 15 s: pod unready seen=%t, endpoint unready seen=%t", !podAt.IsZero(), !sliceAt.IsZero())
		}
	}
	return max(0, sliceAt.Sub(podAt))
}

// standby runs a second scheduler or controller-manager on the second machine, with the
// first one's settings.
func (s *story) standby(daemon string) {
	s.Helper()
	first, second := cluster.Nodes[0], cluster.Nodes[1]
	for _, dir := range []string{"", "pki"} { // what the daemons read; the lab's machines trust each other
		files, err := filepath.Glob(filepath.Join(first.Path("etc/keelson"), dir, "*"))
		if err != nil {
			s.Fatal(err)
		}
		for _, f := range files {
			name := filepath.Base(f)
			if !strings.HasPrefix(name, daemon) && name != "sa.key" && name != "ca.key" {
				continue
			}
			b, err := os.ReadFile(f)
			if err != nil {
				s.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(second.Path("etc/keelson"), dir, name), b, 0o600); err != nil {
				s.Fatal(err)
			}
		}
	}
	// The command line of the running one, as the kernel has it.
	pid, err := first.PID(daemon)
	if err != nil {
		s.Fatal(err)
	}
	args := strings.Split(strings.TrimRight(s.on(first, "cat", fmt.Sprintf("/proc/%d/cmdline", pid)), "\x00"), "\x00")
	ctx, cancel := context.WithCancel(s.ctx)
	cmd := second.Command(ctx, args...)
	out := follow2(cmd)
	if err := cmd.Start(); err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() {
		cancel()
		_ = cmd.Wait()
		if s.Failed() {
			s.Logf("the standby %s printed:\n%s", daemon, out)
		}
	})
	port := map[string]string{"scheduler": "10259", "controller-manager": "10257"}[daemon]
	s.eventually(20*time.Second, "the standby "+daemon+" answers", func() (bool, string) {
		o, err := second.Exec(s.ctx, program, "get", "https://127.0.0.1:"+port+"/healthz")
		return err == nil, o + out.String()
	})
}

// follow2 collects both outputs of a program.
func follow2(cmd *exec.Cmd) *screen {
	out := &screen{}
	cmd.Stdout, cmd.Stderr = out, out
	return out
}

func (s *screen) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(b)
}
