package disruption

import (
	"context"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kruntime "k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"

	"github.com/keelson/keelson/controller-manager/controllers/replicaset"
	"github.com/keelson/keelson/controller-manager/ctrltest"
	"github.com/keelson/keelson/controller-manager/runtime"
)

func budget(change func(*policyv1.PodDisruptionBudgetSpec)) *policyv1.PodDisruptionBudget {
	b := &policyv1.PodDisruptionBudget{ObjectMeta: metav1.ObjectMeta{Name: "b", Namespace: "ns"},
		Spec: policyv1.PodDisruptionBudgetSpec{Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}}}}
	change(&b.Spec)
	return b
}

func pods(n, ready int) []*corev1.Pod {
	var l []*corev1.Pod
	for i := range n {
		s := corev1.ConditionFalse
		if i < ready {
			s = corev1.ConditionTrue
		}
		l = append(l, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: string(rune('a' + i)), OwnerReferences: []metav1.OwnerReference{{UID: "o", Controller: ptr.To(true)}}},
			Status: corev1.PodStatus{Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: s}}}})
	}
	return l
}

func TestDecide(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	number, percent := func(n int) *intstr.IntOrString { return ptr.To(intstr.FromInt(n)) }, func(s string) *intstr.IntOrString { return ptr.To(intstr.FromString(s)) }
	for _, r := range []struct {
		name                     string
		min, max                 *intstr.IntOrString
		pods, ready, wanted      int
		expected, least, allowed int32
	}{
		{"three of four must stay", number(3), nil, 4, 4, 4, 4, 3, 1},
		{"one is sick already", number(3), nil, 4, 3, 4, 4, 3, 0},
		{"half must stay, rounded up", percent("50%"), nil, 5, 5, 5, 5, 3, 2},
		{"one may be missing, of what the owner wants", nil, number(1), 3, 3, 4, 4, 3, 0},
		{"a quarter may be missing", nil, percent("25%"), 4, 4, 4, 4, 3, 1},
		{"more may be missing than there are", nil, number(9), 2, 2, 2, 2, 0, 2},
	} {
		b := budget(func(s *policyv1.PodDisruptionBudgetSpec) { s.MinAvailable, s.MaxUnavailable = r.min, r.max })
		d, err := Decide(b, pods(r.pods, r.ready), func(*metav1.OwnerReference) (int32, error) { return int32(r.wanted), nil }, now)
		if s := d.Status; err != nil || s.ExpectedPods != r.expected || s.DesiredHealthy != r.least || s.DisruptionsAllowed != r.allowed {
			t.Errorf("%s: expected %d least %d allowed %d, %v", r.name, s.ExpectedPods, s.DesiredHealthy, s.DisruptionsAllowed, err)
		}
	}
	b := budget(func(s *policyv1.PodDisruptionBudgetSpec) { s.MinAvailable = number(1) })
	b.Status.DisruptedPods = map[string]metav1.Time{"a": {Time: now.Add(-time.Minute)}, "b": {Time: now.Add(-time.Hour)}, "gone": {Time: now}}
	d, _ := Decide(b, pods(3, 3), nil, now)
	if s := d.Status; s.CurrentHealthy != 2 || s.DisruptionsAllowed != 1 || len(s.DisruptedPods) != 1 || len(d.Stuck) != 1 {
		t.Errorf("granted evictions count as gone for two minutes: %+v", s)
	}
}

func TestFollowsPods(t *testing.T) {
	l := map[string]string{"app": "web"}
	set := &appsv1.ReplicaSet{ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "ns"}, Spec: appsv1.ReplicaSetSpec{Replicas: ptr.To(int32(3)),
		Selector: &metav1.LabelSelector{MatchLabels: l}, Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: l}}}}
	b := budget(func(s *policyv1.PodDisruptionBudgetSpec) { s.MaxUnavailable = ptr.To(intstr.FromInt32(1)) })
	ctrltest.Test(t, []runtime.Row{Row, replicaset.Row}, []kruntime.Object{set, b}, func(t *testing.T, h *ctrltest.Harness) {
		allowed := func() int32 {
			return ctrltest.Must(h.Client.PolicyV1().PodDisruptionBudgets("ns").Get(context.Background(), "b", metav1.GetOptions{})).Status.DisruptionsAllowed
		}
		if n := allowed(); n != 0 {
			t.Errorf("no pod is ready, %d may go", n)
		}
		h.Serve("ns")
		h.Rest()
		if n := allowed(); n != 1 {
			t.Errorf("all pods are ready, %d may go", n)
		}
	})
}
