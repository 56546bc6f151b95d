package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/keelson/keelson/e2e/images"
	"github.com/keelson/keelson/e2e/lab"
)

// judge answers readiness probes in the place of a container, so that it is known when a
// probe has failed.
type judge struct {
	mu      sync.Mutex
	healthy bool
	since   time.Time // the first answer since healthy was changed; guarded by mu
}

func (j *judge) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.since.IsZero() {
		j.since = time.Now()
	}
	if !j.healthy {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
}

func (j *judge) turn(healthy bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.healthy, j.since = healthy, time.Time{}
}

func (j *judge) answered() time.Time {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.since
}

// readiness measures how long a probe's answer takes to the pod's status, to its endpoint and to
// the node's rules. The probe's own period is not in it.
func readiness(ctx context.Context, c *lab.Cluster, add adder) error {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	l, err := net.Listen("tcp", c.Subnet+".1:0")
	if err != nil {
		return err
	}
	j := &judge{healthy: true}
	server := &http.Server{Handler: j}
	go func() { _ = server.Serve(l) }() // ends with Close
	defer server.Close()
	if err := serviceAccount(ctx, c); err != nil {
		return err
	}
	grace := int64(1)
	pods, slices := c.Client.CoreV1().Pods("default"), c.Client.DiscoveryV1().EndpointSlices("default")
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "judged", Labels: map[string]string{"app": "judged"}}, Spec: corev1.PodSpec{
		TerminationGracePeriodSeconds: &grace,
		Containers: []corev1.Container{{Name: "c", Image: images.Test, Args: []string{"sleep"},
			ReadinessProbe: &corev1.Probe{PeriodSeconds: 1, FailureThreshold: 1, ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{
				Host: c.Subnet + ".1", Port: intstr.FromInt(l.Addr().(*net.TCPAddr).Port)}}}}}}}
	svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "judged"}, Spec: corev1.ServiceSpec{
		Selector: pod.Labels, Ports: []corev1.ServicePort{{Port: 80, TargetPort: intstr.FromInt(8080)}}}}
	if _, err := c.Client.CoreV1().Services("default").Create(ctx, svc, metav1.CreateOptions{}); err != nil {
		return err
	}
	defer c.Client.CoreV1().Services("default").Delete(context.WithoutCancel(ctx), "judged", metav1.DeleteOptions{})
	podWatch, err := pods.Watch(ctx, metav1.ListOptions{LabelSelector: "app=judged"})
	if err != nil {
		return err
	}
	defer podWatch.Stop()
	sliceWatch, err := slices.Watch(ctx, metav1.ListOptions{LabelSelector: discoveryv1.LabelServiceName + "=judged"})
	if err != nil {
		return err
	}
	defer sliceWatch.Stop()
	if _, err := pods.Create(ctx, pod, metav1.CreateOptions{}); err != nil {
		return err
	}
	defer pods.Delete(context.WithoutCancel(ctx), "judged", metav1.DeleteOptions{})

	ip := ""
	var toPod, toSlice, toRule []time.Duration
	for i := range 21 {
		want := i%2 == 0
		if i > 0 {
			j.turn(want)
		}
		var podAt, sliceAt time.Time
		for podAt.IsZero() || sliceAt.IsZero() {
			select {
			case <-ctx.Done():
				return fmt.Errorf("readiness: turn %d to %t: pod seen %t, endpoint seen %t: %w", i, want, !podAt.IsZero(), !sliceAt.IsZero(), context.Cause(ctx))
			case ev := <-podWatch.ResultChan():
				if p, ok := ev.Object.(*corev1.Pod); ok && podAt.IsZero() && isReady(p) == want && p.Status.PodIP != "" {
					podAt, ip = time.Now(), p.Status.PodIP
				}
			case ev := <-sliceWatch.ResultChan():
				s, ok := ev.Object.(*discoveryv1.EndpointSlice)
				if ok && sliceAt.IsZero() && len(s.Endpoints) == 1 && s.Endpoints[0].Conditions.Ready != nil && *s.Endpoints[0].Conditions.Ready == want {
					sliceAt = time.Now()
				}
			}
		}
		for {
			looked := time.Now()
			rules, err := c.Nodes[0].Exec(ctx, "iptables-save", "-t", "nat")
			if err != nil {
				return err
			}
			if strings.Contains(rules, "--to-destination "+ip+":8080") != want {
				continue
			}
			if at := j.answered(); i > 0 {
				toPod, toSlice, toRule = append(toPod, podAt.Sub(at)), append(toSlice, sliceAt.Sub(at)), append(toRule, looked.Sub(at))
			}
			break
		}
	}
	for _, r := range []struct {
		what string
		d    []time.Duration
	}{{"pod's status", toPod}, {"endpoint", toSlice}, {"rules (by reading them back)", toRule}} {
		m := median(r.d) // sorts
		add("from a probe's answer to the "+r.what, "", "%s median, %s at most", m, r.d[len(r.d)-1].Round(time.Millisecond))
	}
	return nil
}

func isReady(p *corev1.Pod) bool {
	for _, cond := range p.Status.Conditions {
		if cond.Type == corev1.PodReady {
			return cond.Status == corev1.ConditionTrue
		}
	}
	return false
}

// takeover measures how long the scheduler and the controllers are away after SIGKILL of their leader:
// second copies stand by on the same machine, on other ports.
func takeover(ctx context.Context, c *lab.Cluster, add adder) error {
	m := c.Nodes[0]
	for _, d := range []struct{ daemon, lease, port string }{
		{"scheduler", "kube-scheduler", "20259"}, {"controller-manager", "kube-controller-manager", "20257"},
	} {
		var took []time.Duration
		for range 5 {
			t, err := takeoverOnce(ctx, m, c, d.daemon, d.lease, d.port)
			if err != nil {
				return err
			}
			took = append(took, t)
		}
		mid := median(took) // sorts
		add("standby "+d.daemon+" leads after SIGKILL of the leader", "≤ 3 s", "%s median, %s at most", mid, took[len(took)-1].Round(time.Millisecond))
	}
	return nil
}

func takeoverOnce(ctx context.Context, m *lab.Machine, c *lab.Cluster, daemon, lease, port string) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	leases := c.Client.CoordinationV1().Leases("kube-system")
	pid, err := m.PID(daemon)
	if err != nil {
		return 0, err
	}
	host, err := m.HostPID(daemon)
	if err != nil {
		return 0, err
	}
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", host))
	if err != nil {
		return 0, err
	}
	args := strings.Split(strings.TrimRight(string(line), "\x00"), "\x00")
	sctx, stop := context.WithCancel(ctx)
	defer stop()
	standby := m.Command(sctx, append(args, "--secure-port", port)...)
	if err := standby.Start(); err != nil {
		return 0, err
	}
	defer func() { stop(); _ = standby.Wait() }()
	for { // until it answers: its caches are filled
		out, err := m.Exec(ctx, program, "get", "https://127.0.0.1:"+port+"/readyz")
		if err == nil {
			break
		}
		if err := pass(ctx, 100*time.Millisecond); err != nil {
			return 0, fmt.Errorf("the standby %s is not ready: %s: %w", daemon, out, err)
		}
	}
	before, err := leases.Get(ctx, lease, metav1.GetOptions{})
	if err != nil {
		return 0, err
	}
	w, err := leases.Watch(ctx, metav1.ListOptions{FieldSelector: "metadata.name=" + lease, ResourceVersion: before.ResourceVersion})
	if err != nil {
		return 0, err
	}
	defer w.Stop()
	// The supervisor starts the leader again at once; whoever of the two takes over, the lease was without a leader until then.
	began := time.Now()
	if _, err := m.Exec(ctx, "kill", "-KILL", fmt.Sprint(pid)); err != nil {
		return 0, err
	}
	var at time.Time
	for ev := range w.ResultChan() {
		l, ok := ev.Object.(*coordinationv1.Lease)
		if ok && l.Spec.HolderIdentity != nil && *l.Spec.HolderIdentity != *before.Spec.HolderIdentity {
			at = time.Now()
			break
		}
	}
	if at.IsZero() {
		return 0, fmt.Errorf("nobody took over %s: %w", lease, context.Cause(ctx))
	}
	return at.Sub(began), nil
}
