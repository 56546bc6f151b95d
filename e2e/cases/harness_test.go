package cases

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/keelson/keelson/e2e/images"
	"github.com/keelson/keelson/e2e/lab"
)

var (
	cluster  *lab.Cluster
	binaries string
	archive  string // the test images
	program  string // the test program, for use on the machines themselves
)

func TestMain(m *testing.M) {
	os.Exit(run(m))
}

func run(m *testing.M) (code int) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	binaries = os.Getenv("KEELSON_BIN")
	if binaries == "" {
		here, err := filepath.Abs("../../bin")
		if err != nil {
			panic(err)
		}
		binaries = here
	}
	dir, err := os.MkdirTemp("/var/tmp", "keelson-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	if archive, err = images.Archive(ctx, dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	program = filepath.Join(dir, "testprogram")
	cluster, err = lab.Start(ctx, lab.Options{Prefix: os.Getenv("KEELSON_LAB_PREFIX"), Subnet: os.Getenv("KEELSON_LAB_SUBNET"), Bin: binaries, Log: func(f string, a ...any) { fmt.Printf(f+"\n", a...) }}, 2, []string{archive})
	if cluster != nil {
		defer func() {
			if code != 0 {
				to := filepath.Join("..", "logs", time.Now().Format("20060102-150405"))
				if err := cluster.SaveLogs(to); err != nil {
					fmt.Fprintln(os.Stderr, err)
				}
				fmt.Fprintln(os.Stderr, "the machines' logs are in e2e/logs/"+filepath.Base(to))
			}
			if err := cluster.Close(); err != nil {
				fmt.Fprintln(os.Stderr, "the lab could not be removed:", err)
				code = 1
			}
		}()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "the lab cluster does not come up:", err)
		return 1
	}
	return m.Run()
}

// A story is one test in a namespace of its own.
type story struct {
	*testing.T
	ns  string
	ctx context.Context
}

// begin makes the story's namespace; it goes with the test. limit bounds the story.
func begin(t *testing.T, name string, limit time.Duration) *story {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	t.Cleanup(cancel)
	s := &story{T: t, ns: name, ctx: ctx}
	_, err := cluster.Client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatalf("create namespace %s: %v", name, err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 90*time.Second)
		defer cancel()
		after := &story{T: t, ns: name, ctx: ctx}
		if t.Failed() {
			for _, what := range [][]string{{"get", "pods,rs,deploy,sts,ds,jobs,svc,endpointslices", "-o", "wide"}, {"get", "events", "--sort-by=.lastTimestamp"}} {
				out, _ := after.try(what...)
				t.Logf("kubectl %s:\n%s", strings.Join(what, " "), out)
			}
		}
		if err := cluster.Client.CoreV1().Namespaces().Delete(ctx, name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
			t.Errorf("delete namespace %s: %v", name, err)
		}
		// What a story leaves running would disturb the next one's measurements.
		after.eventually(80*time.Second, "the namespace is gone", func() (bool, string) {
			ns, err := cluster.Client.CoreV1().Namespaces().Get(ctx, name, metav1.GetOptions{})
			if apierrors.IsNotFound(err) {
				return true, ""
			}
			if err != nil {
				return false, err.Error()
			}
			return false, fmt.Sprint(ns.Status)
		})
	})
	s.eventually(20*time.Second, "the namespace has its service account", func() (bool, string) {
		_, err := cluster.Client.CoreV1().ServiceAccounts(name).Get(ctx, "default", metav1.GetOptions{})
		return err == nil, fmt.Sprint(err)
	})
	return s
}

// command is kubectl in the story's namespace.
func (s *story) command(args ...string) *exec.Cmd {
	cmd := exec.CommandContext(s.ctx, filepath.Join(binaries, "keelson"), append([]string{"kubectl", "--kubeconfig", cluster.Kubeconfig, "-n", s.ns}, args...)...)
	cmd.WaitDelay = 2 * time.Second
	return cmd
}

// try runs kubectl and returns all it printed.
func (s *story) try(args ...string) (string, error) {
	var out bytes.Buffer
	cmd := s.command(args...)
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	return out.String(), err
}

// kubectl runs kubectl, which must succeed, and returns its standard output.
func (s *story) kubectl(args ...string) string {
	s.Helper()
	var out, errOut bytes.Buffer
	cmd := s.command(args...)
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil {
		s.Fatalf("kubectl %s: %v\n%s%s", strings.Join(args, " "), err, out.String(), errOut.String())
	}
	return out.String()
}

// refused runs kubectl, which must fail, and say each of words.
func (s *story) refused(words []string, args ...string) {
	s.Helper()
	out, err := s.try(args...)
	if err == nil {
		s.Errorf("kubectl %s: succeeded, want a refusal\n%s", strings.Join(args, " "), out)
		return
	}
	s.says(out, words...)
}

// says checks that text holds each of words.
func (s *story) says(text string, words ...string) {
	s.Helper()
	for _, w := range words {
		if !strings.Contains(text, w) {
			s.Errorf("want %q in:\n%s", w, text)
		}
	}
}

// apply applies manifests; "$TEST" and its like stand for the images.
func (s *story) apply(manifest string, args ...string) string {
	s.Helper()
	out, err := s.tryApply(manifest, args...)
	if err != nil {
		s.Fatalf("kubectl apply: %v\n%s\n%s", err, out, manifest)
	}
	return out
}

func (s *story) tryApply(manifest string, args ...string) (string, error) {
	return s.stdin(fill(manifest), append([]string{"apply", "-f", "-"}, args...)...)
}

func (s *story) stdin(in string, args ...string) (string, error) {
	var out bytes.Buffer
	cmd := s.command(args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(in), &out, &out
	err := cmd.Run()
	return out.String(), err
}

func fill(manifest string) string {
	return strings.NewReplacer("$TEST2", images.Test2, "$TEST", images.Test, "$BUSYBOX", images.Busybox).Replace(manifest)
}

// eventually waits until ok is true, at most limit; seen is what was seen instead.
func (s *story) eventually(limit time.Duration, what string, look func() (ok bool, seen string)) time.Duration {
	s.Helper()
	began := time.Now()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		ok, seen := look()
		if ok {
			return time.Since(began)
		}
		if time.Since(began) > limit {
			s.Fatalf("not within %s: %s; last seen: %s", limit, what, seen)
		}
		select {
		case <-tick.C:
		case <-s.ctx.Done():
			s.Fatalf("the story ran out of time waiting until %s; last seen: %s", what, seen)
		}
	}
}

// becomes waits until kubectl prints want.
func (s *story) becomes(limit time.Duration, want string, args ...string) {
	s.Helper()
	s.eventually(limit, fmt.Sprintf("kubectl %s prints %q", strings.Join(args, " "), want), func() (bool, string) {
		out, err := s.try(args...)
		return err == nil && strings.TrimSpace(out) == want, out
	})
}

// pods returns the story's pods with a label.
func (s *story) pods(selector string) []corev1.Pod {
	s.Helper()
	list, err := cluster.Client.CoreV1().Pods(s.ns).List(s.ctx, metav1.ListOptions{LabelSelector: selector})
	if err != nil {
		s.Fatalf("list pods %s: %v", selector, err)
	}
	return list.Items
}

// running waits until exactly n pods with the label exist and all are ready.
func (s *story) running(limit time.Duration, selector string, n int) []corev1.Pod {
	s.Helper()
	var pods []corev1.Pod
	s.eventually(limit, fmt.Sprintf("%d pods %s are ready", n, selector), func() (bool, string) {
		pods = s.pods(selector)
		seen, good := "", 0
		for _, p := range pods {
			seen += fmt.Sprintf("%s %s ready=%t %s; ", p.Name, p.Status.Phase, ready(&p), waiting(&p))
			if ready(&p) && p.DeletionTimestamp == nil {
				good++
			}
		}
		return len(pods) == n && good == n, fmt.Sprintf("%d pods: %s", len(pods), seen)
	})
	return pods
}

func ready(p *corev1.Pod) bool {
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// waiting says what the pod's containers wait for.
func waiting(p *corev1.Pod) string {
	for _, c := range p.Status.ContainerStatuses {
		if c.State.Waiting != nil {
			return c.State.Waiting.Reason + " " + c.State.Waiting.Message
		}
	}
	for _, c := range p.Status.Conditions {
		if c.Status != corev1.ConditionTrue && c.Message != "" {
			return c.Message
		}
	}
	return ""
}

func (s *story) pod(name string) *corev1.Pod {
	s.Helper()
	p, err := cluster.Client.CoreV1().Pods(s.ns).Get(s.ctx, name, metav1.GetOptions{})
	if err != nil {
		s.Fatalf("get pod %s: %v", name, err)
	}
	return p
}

// ended waits until a pod has run to its end and returns its phase and log.
func (s *story) ended(limit time.Duration, name string) (phase corev1.PodPhase, log string) {
	s.Helper()
	s.eventually(limit, "pod "+name+" has ended", func() (bool, string) {
		p := s.pod(name)
		phase = p.Status.Phase
		return phase == corev1.PodSucceeded || phase == corev1.PodFailed, string(phase) + " " + waiting(p)
	})
	return phase, s.kubectl("logs", name)
}

// nodeOf returns the machine that a pod is on.
func (s *story) nodeOf(p *corev1.Pod) *lab.Machine {
	s.Helper()
	for _, m := range cluster.Nodes {
		if m.Name == p.Spec.NodeName {
			return m
		}
	}
	s.Fatalf("pod %s is on %q, which is no machine of the lab", p.Name, p.Spec.NodeName)
	return nil
}

// on runs a program on a machine; it must succeed.
func (s *story) on(m *lab.Machine, args ...string) string {
	s.Helper()
	out, err := m.Exec(s.ctx, args...)
	if err != nil {
		s.Fatal(err)
	}
	return out
}

// everyNode waits until all machines are Ready.
func (s *story) everyNode(limit time.Duration) {
	s.Helper()
	s.eventually(limit, "all nodes are Ready", func() (bool, string) {
		list, err := cluster.Client.CoreV1().Nodes().List(s.ctx, metav1.ListOptions{})
		if err != nil {
			return false, err.Error()
		}
		good, seen := 0, ""
		for _, n := range list.Items {
			for _, c := range n.Status.Conditions {
				if c.Type == corev1.NodeReady {
					seen += fmt.Sprintf("%s %s (%s); ", n.Name, c.Status, c.Reason)
					if c.Status == corev1.ConditionTrue {
						good++
					}
				}
			}
		}
		return good == len(cluster.Nodes), seen
	})
}

// web is a Deployment of the test server with a Service of the same name.
func web(name string, replicas int) string {
	return fmt.Sprintf(`
apiVersion: apps/v1
kind: Deployment
metadata: {name: %[1]s}
spec:
  replicas: %[2]d
  selector: {matchLabels: {app: %[1]s}}
  template:
    metadata: {labels: {app: %[1]s}}
    spec:
      terminationGracePeriodSeconds: 10
      topologySpreadConstraints:
      - {maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: ScheduleAnyway, labelSelector: {matchLabels: {app: %[1]s}}}
      containers:
      - name: web
        image: $TEST
        args: [serve, "8080", "3"]
        ports: [{name: http, containerPort: 8080}]
        readinessProbe: {httpGet: {path: /ready, port: http}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: %[1]s}
spec:
  selector: {app: %[1]s}
  ports: [{name: http, port: 80, targetPort: http}]
`, name, replicas)
}

// client is a pod that sleeps on a machine, to run the test program in.
func client(name, node string) string {
	return fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: %s, labels: {role: client}}
spec:
  nodeSelector: {kubernetes.io/hostname: %s}
  terminationGracePeriodSeconds: 1
  containers: [{name: c, image: $TEST, args: [sleep]}]
`, name, node)
}

// in runs the test program in a pod; it must succeed.
func (s *story) in(pod string, args ...string) string {
	s.Helper()
	return s.kubectl(append([]string{"exec", pod, "--", "/testprogram"}, args...)...)
}
