package nodelifecycle

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kruntime "k8s.io/apimachinery/pkg/runtime"

	"github.com/keelson/keelson/controller-manager/ctrltest"
	"github.com/keelson/keelson/controller-manager/runtime"
)

var t0 = time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)

func node(ready corev1.ConditionStatus, taints ...string) *corev1.Node {
	n := &corev1.Node{}
	if ready != "" {
		n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: ready}}
	}
	for _, t := range taints {
		key, effect, _ := strings.Cut(t, ":")
		n.Spec.Taints = append(n.Spec.Taints, corev1.Taint{Key: key, Effect: corev1.TaintEffect(effect)})
	}
	return n
}

func TestTaints(t *testing.T) {
	const (
		notReady    = "node.kubernetes.io/not-ready"
		unreachable = "node.kubernetes.io/unreachable"
	)
	for _, c := range []struct {
		text  string
		node  *corev1.Node
		evict bool
		want  string
		late  bool
	}{
		{"a node that is well", node(corev1.ConditionTrue), true, "", false},
		{"a new node that has become well", node(corev1.ConditionTrue, notReady+":NoSchedule"), true, "", false},
		{"a node that is not well", node(corev1.ConditionFalse), true, notReady + ":NoExecute " + notReady + ":NoSchedule", false},
		{"a silent node", node(corev1.ConditionUnknown), true, unreachable + ":NoExecute " + unreachable + ":NoSchedule", false},
		{"a silent node while many are", node(corev1.ConditionUnknown), false, unreachable + ":NoSchedule", true},
		{"taints of others stay", node(corev1.ConditionTrue, "gpu:NoSchedule", unreachable+":NoExecute"), true, "gpu:NoSchedule", false},
		{"a node that has never reported", node(""), true, notReady + ":NoSchedule", false},
	} {
		taints, _, late := Taints(c.node, c.evict, metav1.NewTime(t0))
		var got []string
		for _, x := range taints {
			got = append(got, x.Key+":"+string(x.Effect))
		}
		slices.Sort(got)
		if strings.Join(got, " ") != c.want || late != c.late {
			t.Errorf("%s: got %v late %v, want %q %v", c.text, got, late, c.want, c.late)
		}
	}
}

func TestSilence(t *testing.T) {
	s := Sign{}.Next(node(corev1.ConditionTrue), nil, t0)
	if silent, until := s.Silent(50*time.Second, t0.Add(49*time.Second)); silent || !until.Equal(t0.Add(50*time.Second)) {
		t.Errorf("after 49 s: silent %v until %v", silent, until)
	}
	renew := metav1.NewMicroTime(t0.Add(-time.Hour)) // the node's clock is behind: only that it moved counts
	s = s.Next(node(corev1.ConditionTrue), &renew, t0.Add(40*time.Second))
	if silent, _ := s.Silent(50*time.Second, t0.Add(80*time.Second)); silent {
		t.Error("a renewed lease is no sign of life")
	}
	s = s.Next(node(corev1.ConditionTrue), &renew, t0.Add(85*time.Second))
	if silent, _ := s.Silent(50*time.Second, t0.Add(90*time.Second)); !silent {
		t.Error("an old lease is a sign of life")
	}
}

func TestCalm(t *testing.T) {
	for _, c := range []struct {
		ready, notReady int
		want            float64
	}{{3, 0, 1}, {2, 1, 1}, {0, 1, 0}, {1, 3, 0}, {20, 80, 0.1}, {90, 10, 1}} {
		if got := Calm(c.ready, c.notReady, 1); got != c.want {
			t.Errorf("%d ready, %d not: rate %v, want %v", c.ready, c.notReady, got, c.want)
		}
	}
}

func TestUnknownOnce(t *testing.T) {
	n := node(corev1.ConditionTrue)
	got, changed := Unknown(n, metav1.NewTime(t0))
	if !changed || len(got) != 4 || got[0].Status != corev1.ConditionUnknown || got[0].Reason != "NodeStatusUnknown" {
		t.Fatalf("got %s", fmt.Sprint(got))
	}
	n.Status.Conditions = got
	if _, changed := Unknown(n, metav1.NewTime(t0.Add(time.Minute))); changed {
		t.Error("an unknown node is marked again")
	}
}

// A node that has said nothing yet has a grace of its own.
func TestNodeThatNeverReports(t *testing.T) {
	settings := runtime.DefaultSettings()
	settings.NodeGrace.Duration, settings.NodeStartupGrace.Duration = time.Hour, time.Minute
	ready := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "ready"}, Status: corev1.NodeStatus{Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}}}
	silent := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "silent"}}
	ctrltest.TestWith(t, settings, []runtime.Row{Row}, []kruntime.Object{ready, silent}, func(t *testing.T, h *ctrltest.Harness) {
		unknown := func() (names []string) {
			for _, name := range []string{"ready", "silent"} {
				n := ctrltest.Must(h.Client.CoreV1().Nodes().Get(context.Background(), name, metav1.GetOptions{}))
				if c := condition(n, corev1.NodeReady); c != nil && c.Status == corev1.ConditionUnknown {
					names = append(names, name)
				}
			}
			return names
		}
		h.After(50 * time.Second)
		if got := unknown(); got != nil {
			t.Errorf("after 50 seconds: %v", got)
		}
		h.After(10 * time.Second)
		if got := unknown(); !slices.Equal(got, []string{"silent"}) {
			t.Errorf("after a minute: %v", got)
		}
		h.After(time.Hour)
		if got := unknown(); !slices.Equal(got, []string{"ready", "silent"}) {
			t.Errorf("after an hour: %v", got)
		}
	})
}
