package tainteviction

import (
	"context"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kruntime "k8s.io/apimachinery/pkg/runtime"

	"github.com/keelson/keelson/controller-manager/ctrltest"
	"github.com/keelson/keelson/controller-manager/runtime"
)

var start = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

func taint(key string, added ...time.Time) corev1.Taint {
	t := corev1.Taint{Key: key, Effect: corev1.TaintEffectNoExecute}
	if len(added) > 0 {
		at := metav1.NewTime(added[0])
		t.TimeAdded = &at
	}
	return t
}

func tolerates(key string, seconds ...int64) corev1.Toleration {
	t := corev1.Toleration{Key: key, Operator: corev1.TolerationOpExists}
	if len(seconds) > 0 {
		t.TolerationSeconds = &seconds[0]
	}
	return t
}

func pod(name string, tolerations ...corev1.Toleration) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name}, Spec: corev1.PodSpec{NodeName: "n", Tolerations: tolerations}, Status: corev1.PodStatus{Phase: corev1.PodRunning}}
}

func TestDecide(t *testing.T) {
	never := time.Duration(-1)
	for _, c := range []struct {
		name   string
		pod    *corev1.Pod
		taints []corev1.Taint
		want   time.Duration // after start
	}{
		{"no taint", pod("a"), nil, never},
		{"not tolerated", pod("a"), []corev1.Taint{taint("x", start)}, 0},
		{"only scheduling", pod("a"), []corev1.Taint{{Key: "x", Effect: corev1.TaintEffectNoSchedule}}, never},
		{"tolerated for ever", pod("a", tolerates("x")), []corev1.Taint{taint("x", start)}, never},
		{"tolerated for a minute", pod("a", tolerates("x", 60)), []corev1.Taint{taint("x", start)}, time.Minute},
		{"the shortest of two", pod("a", tolerates("x", 60), tolerates("x", 30), tolerates("x")), []corev1.Taint{taint("x", start)}, 30 * time.Second},
		{"not at all, below zero", pod("a", tolerates("x", -5)), []corev1.Taint{taint("x", start)}, 0},
		{"one of two not tolerated", pod("a", tolerates("x")), []corev1.Taint{taint("x", start), taint("y", start)}, 0},
		{"a taint without a time", pod("a", tolerates("x", 60)), []corev1.Taint{taint("x")}, 2 * time.Minute},
	} {
		got := Decide(c.pod, c.taints, func(*corev1.Taint) time.Time { return start.Add(time.Minute) })
		if c.want == never && !got.IsZero() || c.want != never && got.Sub(start) != c.want {
			t.Errorf("%s: want %s, got %s", c.name, c.want, got)
		}
	}
}

func TestEviction(t *testing.T) {
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}}
	ctrltest.Test(t, []runtime.Row{Row}, []kruntime.Object{node, pod("leaves"), pod("waits", tolerates("x", 60)), pod("saved", tolerates("x", 90)), pod("stays", tolerates("x"))}, func(t *testing.T, h *ctrltest.Harness) {
		api := h.Client.CoreV1().Nodes()
		set := func(taints ...corev1.Taint) {
			n := ctrltest.Must(api.Get(context.Background(), "n", metav1.GetOptions{}))
			n.Spec.Taints = taints
			ctrltest.Must(api.Update(context.Background(), n, metav1.UpdateOptions{}))
			h.Writes()
			h.Rest()
		}
		set(taint("x")) // as kubectl writes it: without a time
		if w := h.Writes(); w != "delete pods leaves" {
			t.Fatalf("at once: %q", w)
		}
		for _, p := range h.Pods("ns") {
			if p.Name == "leaves" && (len(p.Status.Conditions) != 1 || p.Status.Conditions[0].Reason != "DeletionByTaintManager") {
				t.Errorf("the pod says why: %+v", p.Status.Conditions)
			}
		}
		h.After(time.Minute)
		if w := h.Writes(); w != "delete pods waits" {
			t.Errorf("when its time is over: %q", w)
		}
		set()
		h.After(time.Hour)
		if w := h.Writes(); w != "" {
			t.Errorf("the taint is gone, nobody has to leave: %q", w)
		}
		set(taint("x"))
		h.After(80 * time.Second)
		if w := h.Writes(); w != "" {
			t.Errorf("a taint that comes again counts from then on: %q", w)
		}
	})
}
