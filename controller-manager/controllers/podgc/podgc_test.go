package podgc

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kruntime "k8s.io/apimachinery/pkg/runtime"

	"github.com/keelson/keelson/controller-manager/ctrltest"
	"github.com/keelson/keelson/controller-manager/runtime"
)

var start = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

func pod(name, node string, phase corev1.PodPhase, change ...func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name}, Spec: corev1.PodSpec{NodeName: node}, Status: corev1.PodStatus{Phase: phase}}
	for _, f := range change {
		f(p)
	}
	return p
}

func deleted(p *corev1.Pod) {
	at := metav1.NewTime(start)
	p.DeletionTimestamp = &at
}

func node(name string, ready corev1.ConditionStatus, taints ...string) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}, Status: corev1.NodeStatus{Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: ready}}}}
	for _, t := range taints {
		n.Spec.Taints = append(n.Spec.Taints, corev1.Taint{Key: t, Effect: corev1.TaintEffectNoExecute})
	}
	return n
}

func TestDecide(t *testing.T) {
	old := func(minutes int) func(*corev1.Pod) {
		return func(p *corev1.Pod) {
			p.CreationTimestamp = metav1.NewTime(start.Add(-time.Duration(minutes) * time.Minute))
		}
	}
	out := corev1.TaintNodeOutOfService
	for _, c := range []struct {
		name      string
		pods      []*corev1.Pod
		nodes     []*corev1.Node
		missing   map[string]time.Time
		threshold int
		want      string
	}{
		{name: "nothing to do", pods: []*corev1.Pod{pod("a", "n", "Running"), pod("b", "", "Pending")}, nodes: []*corev1.Node{node("n", "True")}, threshold: 1},
		{name: "deleted before it was placed", pods: []*corev1.Pod{pod("a", "", "Pending", deleted)}, want: "a: it was deleted before it was scheduled"},
		{name: "its node just vanished", pods: []*corev1.Pod{pod("a", "n", "Running")}, missing: map[string]time.Time{"n": start.Add(-39 * time.Second)}},
		{name: "its node is gone", pods: []*corev1.Pod{pod("a", "n", "Running")}, missing: map[string]time.Time{"n": start.Add(-40 * time.Second)}, want: "a: its node is gone"},
		{name: "out of service", pods: []*corev1.Pod{pod("a", "n", "Running", deleted), pod("b", "n", "Running")}, nodes: []*corev1.Node{node("n", "False", out)}, want: "a: its node is out of service"},
		{name: "out of service and yet ready", pods: []*corev1.Pod{pod("a", "n", "Running", deleted)}, nodes: []*corev1.Node{node("n", "True", out)}},
		{name: "too many ended: the oldest", threshold: 2, nodes: []*corev1.Node{node("n", "True")},
			pods: []*corev1.Pod{pod("a", "n", "Failed", old(1)), pod("b", "n", "Succeeded", old(9)), pod("c", "n", "Failed", old(5)), pod("d", "n", "Running", old(20))}, want: "b: too many pods have ended"},
		{name: "no threshold", pods: []*corev1.Pod{pod("a", "n", "Failed")}, nodes: []*corev1.Node{node("n", "True")}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var got []string
			for _, r := range Decide(c.pods, func(name string) *corev1.Node {
				for _, n := range c.nodes {
					if n.Name == name {
						return n
					}
				}
				return nil
			}, c.missing, c.threshold, start) {
				got = append(got, fmt.Sprintf("%s: %s", r.Pod.Name, r.Reason))
			}
			if strings.Join(got, ", ") != c.want {
				t.Errorf("want %q, got %q", c.want, got)
			}
		})
	}
}

func TestPodsOfAVanishedNode(t *testing.T) {
	keep := func(p *corev1.Pod) { p.Finalizers = []string{"batch.kubernetes.io/job-tracking"} }
	ctrltest.Test(t, []runtime.Row{Row}, []kruntime.Object{node("n", "True"), pod("a", "n", "Running", keep), pod("b", "m", "Running")}, func(t *testing.T, h *ctrltest.Harness) {
		h.Writes()
		h.After(2 * time.Minute)
		if w := h.Writes(); w != "delete pods b" {
			t.Fatalf("only the pod whose node is not there: %q", w)
		}
		if err := h.Client.CoreV1().Nodes().Delete(context.Background(), "n", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		h.After(30 * time.Second)
		if p := h.Pods("ns")[0]; p.DeletionTimestamp != nil {
			t.Fatal("too early")
		}
		h.After(time.Minute)
		p := h.Pods("ns")[0]
		if p.DeletionTimestamp == nil || p.Status.Phase != corev1.PodFailed || p.Status.Conditions[0].Reason != "DeletionByPodGC" {
			t.Errorf("it is failed and deleted: %+v", p.Status)
		}
	})
}

func TestUnplacedPodFailsBeforeItGoes(t *testing.T) {
	held := pod("a", "", "Pending", func(p *corev1.Pod) { p.Finalizers = []string{"batch.kubernetes.io/job-tracking"} })
	ctrltest.Test(t, []runtime.Row{Row}, []kruntime.Object{held}, func(t *testing.T, h *ctrltest.Harness) {
		if err := h.Client.CoreV1().Pods("ns").Delete(context.Background(), "a", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		h.Rest()
		if p := h.Pods("ns")[0]; p.Status.Phase != corev1.PodFailed || len(p.Status.Conditions) != 0 {
			t.Errorf("the job that waits for it hears of its end: %+v", p.Status)
		}
	})
}
