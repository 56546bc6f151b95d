package podset

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

var now = time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)

type option func(*corev1.Pod)

func pod(name string, opts ...option) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID(name), CreationTimestamp: metav1.NewTime(now.Add(-time.Hour))},
		Spec: corev1.PodSpec{NodeName: "n1"}, Status: corev1.PodStatus{Phase: corev1.PodRunning}}
	ready(time.Hour)(p)
	for _, f := range opts {
		f(p)
	}
	return p
}

func ready(since time.Duration) option {
	return func(p *corev1.Pod) {
		p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue, LastTransitionTime: metav1.NewTime(now.Add(-since))}}
	}
}
func unready(p *corev1.Pod) { p.Status.Conditions[0].Status = corev1.ConditionFalse }
func pending(p *corev1.Pod) { p.Status.Phase = corev1.PodPending; unready(p) }
func on(node string) option { return func(p *corev1.Pod) { p.Spec.NodeName = node } }
func cost(c string) option {
	return func(p *corev1.Pod) { p.Annotations = map[string]string{corev1.PodDeletionCost: c} }
}
func restarted(n int32) option {
	return func(p *corev1.Pod) { p.Status.ContainerStatuses = []corev1.ContainerStatus{{RestartCount: n}} }
}
func age(d time.Duration) option {
	return func(p *corev1.Pod) { p.CreationTimestamp = metav1.NewTime(now.Add(-d)) }
}

func TestWhichPodGoesFirst(t *testing.T) {
	neighbour := pod("neighbour", on("n2"))
	for _, r := range []struct {
		name       string
		goes, stay *corev1.Pod
	}{
		{"one that is on no node", pod("z", on(""), pending), pod("a", pending)},
		{"a pending one", pod("z", pending), pod("a", unready)},
		{"one that is not ready", pod("z", unready), pod("a")},
		{"the cheaper one", pod("z", cost("-5")), pod("a", cost("5"))},
		{"cost does not save what is not ready", pod("z", unready, cost("100")), pod("a")},
		{"one beside another of the family", pod("z", on("n2")), pod("a", on("n3"))},
		{"one that became ready lately", pod("z", ready(time.Second)), pod("a", ready(time.Hour))},
		{"of about the same age: by UID", pod("a", ready(60*time.Minute)), pod("b", ready(61*time.Minute))},
		{"one with restarts", pod("z", restarted(3)), pod("a", restarted(1))},
		{"the younger one", pod("z", unready, age(time.Minute)), pod("a", unready, age(time.Hour))},
	} {
		for _, order := range [][]*corev1.Pod{{r.goes, r.stay}, {r.stay, r.goes}} {
			got := Surplus(order, append(order, neighbour), 1, now)
			if len(got) != 1 || got[0] != r.goes {
				t.Errorf("%s: %s goes, want %s", r.name, got[0].Name, r.goes.Name)
			}
		}
	}
}

func TestAvailable(t *testing.T) {
	for _, r := range []struct {
		name string
		pod  *corev1.Pod
		min  time.Duration
		ok   bool
		at   time.Time
	}{
		{"ready long enough", pod("p", ready(10*time.Second)), 10 * time.Second, true, time.Time{}},
		{"ready, not long enough", pod("p", ready(4*time.Second)), 10 * time.Second, false, now.Add(6 * time.Second)},
		{"not ready", pod("p", unready), 0, false, time.Time{}},
		{"no minimum", pod("p", ready(0)), 0, true, time.Time{}},
	} {
		if ok, at := Available(r.pod, r.min, now); ok != r.ok || !at.Equal(r.at) {
			t.Errorf("%s: got %v at %v", r.name, ok, at)
		}
	}
}

func TestHashIsStable(t *testing.T) {
	tpl := &corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"b": "2", "a": "1"}}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "x"}}}}
	first := Hash(tpl, nil)
	for range 20 {
		if got := Hash(tpl.DeepCopy(), nil); got != first {
			t.Fatalf("%s and %s for one template", first, got)
		}
	}
	one := int32(1)
	if Hash(tpl, &one) == first {
		t.Error("a collision count must change the hash")
	}
}

func TestPrefix(t *testing.T) {
	for owner, want := range map[string]string{"web": "web-", "a.b": "a.b-", "bad_name": "bad_name"} {
		if got := Prefix(owner); got != want {
			t.Errorf("%s: want %s, got %s", owner, want, got)
		}
	}
}
