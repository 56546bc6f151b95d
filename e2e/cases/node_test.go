package cases

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Static pods: an administrator puts a manifest on a node's disk, changes it, and takes it away again.
func TestStaticPods(t *testing.T) {
	s := begin(t, "static", 2*time.Minute)
	m := cluster.Nodes[len(cluster.Nodes)-1]
	file := m.Path("etc/keelson/manifests/beside.yaml")
	broken := m.Path("etc/keelson/manifests/broken.yaml")
	t.Cleanup(func() { os.Remove(file); os.Remove(broken) })
	put := func(path, text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	manifest := func(argument string) string {
		return fill(fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: beside, namespace: static, labels: {app: beside}}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: c, image: $TEST, args: %s}]
`, argument))
	}
	name := "beside-" + m.Name
	mirror := func() *corev1.Pod {
		p, err := cluster.Client.CoreV1().Pods(s.ns).Get(s.ctx, name, metav1.GetOptions{})
		if err != nil {
			return &corev1.Pod{}
		}
		return p
	}
	container := func(p *corev1.Pod) string {
		if len(p.Status.ContainerStatuses) == 0 {
			return ""
		}
		return p.Status.ContainerStatuses[0].ContainerID
	}

	put(broken, "apiVersion: v1\nkind: Pod\nmetadata: {name")
	put(file, manifest(`[tick]`))
	var first *corev1.Pod
	s.eventually(20*time.Second, "the static pod is shown and ready", func() (bool, string) {
		first = mirror()
		return ready(first), fmt.Sprint(first.Status)
	})
	a := first.Annotations
	if a["kubernetes.io/config.source"] != "file" || a["kubernetes.io/config.hash"] == "" || a["kubernetes.io/config.mirror"] != a["kubernetes.io/config.hash"] {
		t.Errorf("annotations %v", a)
	}
	if len(first.OwnerReferences) != 1 || first.OwnerReferences[0].Kind != "Node" || first.OwnerReferences[0].Name != m.Name {
		t.Errorf("owners %v, want the node", first.OwnerReferences)
	}
	s.says(s.kubectl("logs", name), "tick 0")

	// Deleting the mirror deletes nothing on the node.
	s.kubectl("delete", "pod", name, "--wait=false")
	s.eventually(10*time.Second, "there is another mirror of the same container", func() (bool, string) {
		p := mirror()
		return p.UID != "" && p.UID != first.UID && container(p) == container(first), string(p.UID) + " " + container(p)
	})

	// A kubelet that starts anew finds the pod again.
	if err := m.Kill(s.ctx, "kubelet"); err != nil {
		t.Fatal(err)
	}
	s.eventually(30*time.Second, "the kubelet is back, with the same container", func() (bool, string) {
		out, err := s.try("exec", name, "--", "/testprogram", "env", "HOSTNAME")
		return err == nil && strings.TrimSpace(out) == name, out
	})
	if p := mirror(); container(p) != container(first) || p.Status.ContainerStatuses[0].RestartCount != 0 {
		t.Errorf("the container is %s with %d restarts, was %s", container(p), p.Status.ContainerStatuses[0].RestartCount, container(first))
	}

	// Another manifest is another pod; a manifest that is wrong changes nothing.
	put(file, manifest(`[serve, "8080"]`))
	s.eventually(20*time.Second, "the new pod is shown and ready", func() (bool, string) {
		p := mirror()
		return ready(p) && len(p.Spec.Containers) == 1 && p.Spec.Containers[0].Args[0] == "serve" && container(p) != container(first), fmt.Sprint(p.Status)
	})
	second := container(mirror())
	put(file, "is being written")
	s.eventually(10*time.Second, "the log names the file", func() (bool, string) {
		out, err := m.Exec(s.ctx, "sh", "-c", "cat /var/log/keelson/kubelet*.log | grep -c 'manifest is not valid.*beside.yaml'")
		return err == nil && strings.TrimSpace(out) != "0", out
	})
	if got := container(mirror()); got != second {
		t.Errorf("a manifest that is wrong has changed the container from %s to %s", second, got)
	}

	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	s.eventually(20*time.Second, "mirror and container are gone", func() (bool, string) {
		_, err := cluster.Client.CoreV1().Pods(s.ns).Get(s.ctx, name, metav1.GetOptions{})
		out := s.on(m, "sh", "-c", "ls /var/log/pods | grep static_ || true")
		return apierrors.IsNotFound(err) && strings.TrimSpace(out) == "", fmt.Sprint(err, out)
	})
}

// A critical pod that finds no room on its node takes it from pods that are not, and they say so.
func TestRoomForCriticalPods(t *testing.T) {
	s := begin(t, "critical", 2*time.Minute)
	m := cluster.Nodes[len(cluster.Nodes)-1]
	file := m.Path("etc/keelson/manifests/needed.yaml")
	t.Cleanup(func() { os.Remove(file) })
	node, err := cluster.Client.CoreV1().Nodes().Get(s.ctx, m.Name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	s.apply(fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: large}
spec:
  nodeName: %s
  terminationGracePeriodSeconds: 1
  containers: [{name: c, image: $TEST, args: [tick], resources: {requests: {cpu: %dm}}}]
---
apiVersion: v1
kind: Pod
metadata: {name: small}
spec:
  nodeName: %[1]s
  terminationGracePeriodSeconds: 1
  containers: [{name: c, image: $TEST, args: [tick]}]
`, m.Name, node.Status.Allocatable.Cpu().MilliValue()-100))
	s.running(20*time.Second, "", 2)
	if err := os.WriteFile(file, []byte(fill(`
apiVersion: v1
kind: Pod
metadata: {name: needed, namespace: critical}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: c, image: $TEST, args: [tick], resources: {requests: {cpu: 500m}}}]
`)), 0o600); err != nil {
		t.Fatal(err)
	}
	s.eventually(30*time.Second, "the critical pod is ready", func() (bool, string) {
		p, err := cluster.Client.CoreV1().Pods(s.ns).Get(s.ctx, "needed-"+m.Name, metav1.GetOptions{})
		return err == nil && ready(p), fmt.Sprint(err, p)
	})
	ended, err := cluster.Client.CoreV1().Pods(s.ns).Get(s.ctx, "large", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	disrupted := false
	for _, c := range ended.Status.Conditions {
		disrupted = disrupted || c.Type == corev1.DisruptionTarget && c.Status == corev1.ConditionTrue && c.Reason == corev1.PodReasonTerminationByKubelet
	}
	if ended.Status.Phase != corev1.PodFailed || ended.Status.Reason != "Preempting" || !disrupted {
		t.Errorf("the pod that made room: %v", ended.Status)
	}
	s.says(s.kubectl("get", "events", "--field-selector=involvedObject.name=large"), "Preempted in order to admit critical pod")
	if p, err := cluster.Client.CoreV1().Pods(s.ns).Get(s.ctx, "small", metav1.GetOptions{}); err != nil || p.Status.Phase != corev1.PodRunning {
		t.Errorf("a pod that had nothing to give: %v %v", p, err)
	}
}

// A log that grows beyond its size is rotated; somebody who follows it misses nothing.
func TestLogsAcrossRotation(t *testing.T) {
	s := begin(t, "rotation", 3*time.Minute)
	const half = 100_000 // lines of 128 bytes in the file: more than the 10 MiB at which it is rotated
	s.apply(fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: talks}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 1
  containers:
  - name: c
    image: $BUSYBOX
    command: [sh, -c, 'say() { awk "BEGIN { for (i = $1; i < $2; i++) printf \"%%d %%080d\n\", i, i }"; }; say 0 %d; until [ -e /tmp/go ]; do sleep 0.2; done; say %d %d']
`, half, half, 2*half))
	s.running(20*time.Second, "", 1)
	logs := s.command("logs", "-f", "talks")
	out, err := logs.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := logs.Start(); err != nil {
		t.Fatal(err)
	}
	read := make(chan error, 1)
	go func() {
		n := 0
		lines := bufio.NewScanner(out)
		for ; lines.Scan(); n++ {
			if want := fmt.Sprintf("%d %080d", n, n); lines.Text() != want {
				read <- fmt.Errorf("line %d is %.40q", n, lines.Text())
				return
			}
		}
		if n != 2*half {
			read <- fmt.Errorf("%d lines, want %d", n, 2*half)
			return
		}
		read <- lines.Err()
	}()
	p := s.pod("talks")
	dir := fmt.Sprintf("/var/log/pods/%s_talks_%s/c", s.ns, p.UID)
	s.eventually(40*time.Second, "the log is rotated", func() (bool, string) {
		files := s.on(s.nodeOf(p), "ls", dir)
		return strings.Contains(files, "0.log.2"), files
	})
	s.kubectl("exec", "talks", "--", "touch", "/tmp/go")
	select {
	case err := <-read:
		if err != nil {
			t.Error(err)
			logs.Process.Kill() // nobody reads the rest
		}
	case <-s.ctx.Done():
		t.Fatal("the log does not end")
	}
	if err := logs.Wait(); err != nil {
		t.Errorf("kubectl logs -f: %v", err)
	}
	s.says(s.kubectl("logs", "talks", "--tail=1"), fmt.Sprintf("%d 0", 2*half-1))
}

// A pod that asks for more than is free gets it when there is room, without a restart.
func TestResizeWaitsForRoom(t *testing.T) {
	s := begin(t, "resize", 2*time.Minute)
	m := cluster.Nodes[0]
	node, err := cluster.Client.CoreV1().Nodes().Get(s.ctx, m.Name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	all := node.Status.Allocatable.Cpu().MilliValue()
	sized := func(name string, milli int64) string {
		return fmt.Sprintf(`
---
apiVersion: v1
kind: Pod
metadata: {name: %[1]s}
spec:
  nodeSelector: {kubernetes.io/hostname: %[2]s}
  terminationGracePeriodSeconds: 1
  containers: [{name: c, image: $TEST, args: [sleep], resources: {requests: {cpu: %[3]dm}, limits: {cpu: %[3]dm}}}]
`, name, m.Name, milli)
	}
	s.apply(sized("grows", 100) + sized("fills", all-400))
	s.running(20*time.Second, "", 2)
	s.kubectl("patch", "pod", "grows", "--subresource", "resize", "-p", `{"spec":{"containers":[{"name":"c","resources":{"requests":{"cpu":"700m"},"limits":{"cpu":"700m"}}}]}}`)
	const pending = `jsonpath={.status.conditions[?(@.type=="PodResizePending")].reason}`
	s.becomes(10*time.Second, "Deferred", "get", "pod", "grows", "-o", pending)
	s.says(s.kubectl("get", "pod", "grows", "-o", `jsonpath={.status.conditions[?(@.type=="PodResizePending")].message}`), "Node didn't have enough resource: cpu, requested: 700")
	quota := func() string {
		return strings.TrimSpace(s.kubectl("exec", "grows", "--", "sh", "-c", "cat /sys/fs/cgroup/cpu.max 2>/dev/null || cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us"))
	}
	if got := quota(); !strings.HasPrefix(got, "10000") {
		t.Errorf("while it waits the limit is %q, want 10000", got)
	}
	s.kubectl("delete", "pod", "fills")
	s.becomes(20*time.Second, "700m 700m 0", "get", "pod", "grows", "-o",
		"jsonpath={.status.containerStatuses[0].allocatedResources.cpu} {.status.containerStatuses[0].resources.limits.cpu} {.status.containerStatuses[0].restartCount}")
	s.becomes(10*time.Second, "", "get", "pod", "grows", "-o", pending)
	if got := quota(); !strings.HasPrefix(got, "70000") {
		t.Errorf("the limit is %q, want 70000", got)
	}
	var events corev1.EventList
	if err := json.Unmarshal([]byte(s.kubectl("get", "events", "-o", "json")), &events); err != nil {
		t.Fatal(err)
	}
	told := map[string]bool{}
	for _, e := range events.Items {
		told[e.Reason] = true
	}
	for _, reason := range []string{"ResizeDeferred", "ResizeStarted", "ResizeCompleted"} {
		if !told[reason] {
			t.Errorf("no event %s; there are %v", reason, told)
		}
	}
}
