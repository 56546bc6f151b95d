package daemonset

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kruntime "k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"

	"github.com/keelson/keelson/controller-manager/ctrltest"
	"github.com/keelson/keelson/controller-manager/runtime"
)

func set(change ...func(*appsv1.DaemonSet)) *appsv1.DaemonSet {
	l := map[string]string{"app": "agent"}
	one := intstr.FromInt32(1)
	s := &appsv1.DaemonSet{
		ObjectMeta: metav1.ObjectMeta{Name: "agent", Namespace: "ns", UID: "ds"},
		Spec: appsv1.DaemonSetSpec{
			Selector:             &metav1.LabelSelector{MatchLabels: l},
			Template:             corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: l}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "a:1"}}}},
			UpdateStrategy:       appsv1.DaemonSetUpdateStrategy{Type: appsv1.RollingUpdateDaemonSetStrategyType, RollingUpdate: &appsv1.RollingUpdateDaemonSet{MaxUnavailable: &one}},
			RevisionHistoryLimit: ptr.To(int32(10)),
		},
	}
	for _, f := range change {
		f(s)
	}
	return s
}

func node(name string, change ...func(*corev1.Node)) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"zone": name}}}
	for _, f := range change {
		f(n)
	}
	return n
}

func tainted(key string, effect corev1.TaintEffect) func(*corev1.Node) {
	return func(n *corev1.Node) { n.Spec.Taints = append(n.Spec.Taints, corev1.Taint{Key: key, Effect: effect}) }
}

// where are the pods by node with their image tags: "n1:1 n2:1".
func where(h *ctrltest.Harness) string {
	var l []string
	for _, p := range h.Pods("ns") {
		s := target(p) + strings.TrimPrefix(p.Spec.Containers[0].Image, "a")
		if p.DeletionTimestamp != nil {
			s = "-" + s
		}
		l = append(l, s)
	}
	slices.Sort(l)
	return strings.Join(l, " ")
}

func step(h *ctrltest.Harness) { h.Step("ns", target) }

func change(h *ctrltest.Harness, f func(*appsv1.DaemonSet)) {
	api := h.Client.AppsV1().DaemonSets("ns")
	s := ctrltest.Must(api.Get(context.Background(), "agent", metav1.GetOptions{}))
	f(s)
	ctrltest.Must(api.Update(context.Background(), s, metav1.UpdateOptions{}))
	h.Rest()
}

func expect(t *testing.T, h *ctrltest.Harness, want, why string) {
	t.Helper()
	if got := where(h); got != want {
		t.Errorf("%s: want %q, got %q", why, want, got)
	}
}

func TestOnePodOnEveryFittingNode(t *testing.T) {
	nodes := []kruntime.Object{
		node("n1"), node("n2"),
		node("cordoned", tainted("node.kubernetes.io/unschedulable", corev1.TaintEffectNoSchedule)),
		node("lost", tainted("node.kubernetes.io/unreachable", corev1.TaintEffectNoExecute)),
		node("gpu", tainted("gpu", corev1.TaintEffectNoSchedule)),
	}
	ctrltest.Test(t, []runtime.Row{Row}, append(nodes, set()), func(t *testing.T, h *ctrltest.Harness) {
		expect(t, h, "cordoned:1 lost:1 n1:1 n2:1", "daemons tolerate a node's own conditions, not other taints")
		step(h)
		s := ctrltest.Must(h.Client.AppsV1().DaemonSets("ns").Get(context.Background(), "agent", metav1.GetOptions{})).Status
		if s.DesiredNumberScheduled != 4 || s.NumberReady != 4 || s.UpdatedNumberScheduled != 4 || s.NumberMisscheduled != 0 {
			t.Errorf("status %+v", s)
		}
		taint := func(effect corev1.TaintEffect) {
			n := ctrltest.Must(h.Client.CoreV1().Nodes().Get(context.Background(), "n2", metav1.GetOptions{}))
			n.Spec.Taints = []corev1.Taint{{Key: "x", Effect: effect}}
			ctrltest.Must(h.Client.CoreV1().Nodes().Update(context.Background(), n, metav1.UpdateOptions{}))
			h.Rest()
		}
		taint(corev1.TaintEffectNoSchedule)
		expect(t, h, "cordoned:1 lost:1 n1:1 n2:1", "NoSchedule lets a pod stay")
		taint(corev1.TaintEffectNoExecute)
		expect(t, h, "-n2:1 cordoned:1 lost:1 n1:1", "NoExecute does not")
		change(h, func(s *appsv1.DaemonSet) { s.Spec.Template.Spec.NodeSelector = map[string]string{"zone": "n1"} })
		if got := where(h); !strings.Contains(got, "n1") || !strings.Contains(got, "-cordoned:1") || !strings.Contains(got, "-lost:1") {
			t.Errorf("a node selector takes pods off other nodes: %s", got)
		}
	})
}

func TestRollingUpdateReplacesOneAtATime(t *testing.T) {
	ctrltest.Test(t, []runtime.Row{Row}, []kruntime.Object{node("n1"), node("n2"), node("n3"), set()}, func(t *testing.T, h *ctrltest.Harness) {
		step(h)
		change(h, func(s *appsv1.DaemonSet) { s.Spec.Template.Spec.Containers[0].Image = "a:2" })
		expect(t, h, "-n1:1 n2:1 n3:1", "one node first")
		step(h)
		step(h)
		expect(t, h, "-n2:1 n1:2 n3:1", "then the next")
		for range 4 {
			step(h)
		}
		expect(t, h, "n1:2 n2:2 n3:2", "done")
	})
}

func TestSurgeStartsBeforeItStops(t *testing.T) {
	ctrltest.Test(t, []runtime.Row{Row}, []kruntime.Object{node("n1"), node("n2"), set(func(s *appsv1.DaemonSet) {
		one, none := intstr.FromInt32(1), intstr.FromInt32(0)
		s.Spec.UpdateStrategy.RollingUpdate = &appsv1.RollingUpdateDaemonSet{MaxSurge: &one, MaxUnavailable: &none}
	})}, func(t *testing.T, h *ctrltest.Harness) {
		step(h)
		change(h, func(s *appsv1.DaemonSet) { s.Spec.Template.Spec.Containers[0].Image = "a:2" })
		expect(t, h, "n1:1 n1:2 n2:1", "the new pod beside the old one")
		step(h)
		expect(t, h, "-n1:1 n1:2 n2:1 n2:2", "the old one goes when the new one serves, and the next node begins")
		for range 3 {
			step(h)
		}
		expect(t, h, "n1:2 n2:2", "done")
	})
}

func TestFailedPodIsReplacedWithPatience(t *testing.T) {
	ctrltest.Test(t, []runtime.Row{Row}, []kruntime.Object{node("n1"), set()}, func(t *testing.T, h *ctrltest.Harness) {
		made := 0
		for range 6 {
			h.Writes()
			h.Phase(h.Pods("ns")[0], corev1.PodFailed)
			h.Rest()
			made += strings.Count(h.Writes(), "create pods")
		}
		if made == 0 || made > 4 {
			t.Errorf("of six failures within 8 s some are waited out: %d new pods", made)
		}
		h.After(time.Minute)
		if p := h.Pods("ns"); len(p) != 1 || p[0].Status.Phase != corev1.PodPending {
			t.Errorf("in the end there is a new pod: %s", fmt.Sprint(where(h)))
		}
	})
}
