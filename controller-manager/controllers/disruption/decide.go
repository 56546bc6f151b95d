// Package disruption keeps the status of PodDisruptionBudgets, by which evictions
// are allowed or refused, and clears the DisruptionTarget condition of pods whose
// announced disruption did not come.
//
// [Decide] is pure. How many pods an owner wants comes in as a function; apply.go
// finds it, has the writes and the table row.
//
// It owns all of a budget's status except the entries of disruptedPods, which the
// eviction subresource adds and this controller removes.
//
// Source: Kubernetes documentation, "Disruptions" and "Specifying a Disruption
// Budget for your Application".
package disruption

import (
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/keelson/keelson/controller-manager/podset"
)

// patience is how long a disruption that was granted or announced may take.
const patience = 2 * time.Minute

// Decision is what one pass wants done.
type Decision struct {
	Status    policyv1.PodDisruptionBudgetStatus
	Unmanaged []string      // pods without an owner that a percentage cannot count
	Stuck     []*corev1.Pod // their eviction was granted and did not happen
	Again     time.Time
}

// Decide counts the pods that the budget selects. wanted gives the number of pods
// that an owner asks for.
func Decide(b *policyv1.PodDisruptionBudget, pods []*corev1.Pod, wanted func(ref *metav1.OwnerReference) (int32, error), now time.Time) (Decision, error) {
	var d Decision
	expected, least, err := d.expect(b, pods, wanted)
	if err != nil {
		return d, err
	}
	disrupted := map[string]metav1.Time{}
	var healthy int32
	for _, p := range pods {
		if p.DeletionTimestamp != nil {
			continue
		}
		if at, ok := b.Status.DisruptedPods[p.Name]; ok {
			if end := at.Add(patience); end.Before(now) {
				d.Stuck = append(d.Stuck, p)
			} else {
				disrupted[p.Name] = at
				d.Again = podset.Sooner(d.Again, end.Add(time.Second))
				continue
			}
		}
		if podset.Ready(p) {
			healthy++
		}
	}
	allowed := max(0, healthy-least)
	if expected <= 0 {
		allowed = 0
	}
	d.Status = policyv1.PodDisruptionBudgetStatus{
		ObservedGeneration: b.Generation, CurrentHealthy: healthy, DesiredHealthy: least, ExpectedPods: expected,
		DisruptionsAllowed: allowed, DisruptedPods: disrupted,
		Conditions: append([]metav1.Condition(nil), b.Status.Conditions...),
	}
	c := metav1.Condition{Type: policyv1.DisruptionAllowedCondition, Status: metav1.ConditionFalse, Reason: policyv1.InsufficientPodsReason}
	if allowed > 0 {
		c.Status, c.Reason = metav1.ConditionTrue, policyv1.SufficientPodsReason
	}
	c.ObservedGeneration, c.LastTransitionTime = b.Generation, metav1.NewTime(now)
	meta.SetStatusCondition(&d.Status.Conditions, c)
	return d, nil
}

// expect is how many pods there should be, and how many must stay healthy.
func (d *Decision) expect(b *policyv1.PodDisruptionBudget, pods []*corev1.Pod, wanted func(*metav1.OwnerReference) (int32, error)) (expected, least int32, err error) {
	limit := b.Spec.MaxUnavailable
	if limit == nil {
		limit = b.Spec.MinAvailable
	}
	switch {
	case limit == nil:
		return 0, 0, nil
	case limit == b.Spec.MinAvailable && limit.Type == intstr.Int:
		return int32(len(pods)), limit.IntVal, nil
	}
	seen := map[types.UID]bool{}
	for _, p := range pods {
		ref := metav1.GetControllerOfNoCopy(p)
		if ref == nil {
			d.Unmanaged = append(d.Unmanaged, p.Name)
			continue
		}
		if seen[ref.UID] {
			continue
		}
		seen[ref.UID] = true
		n, err := wanted(ref)
		if err != nil {
			return 0, 0, fmt.Errorf("pod %s: %w", p.Name, err)
		}
		expected += n
	}
	n, err := intstr.GetScaledValueFromIntOrPercent(limit, int(expected), true)
	if err != nil {
		return 0, 0, err
	}
	if limit == b.Spec.MaxUnavailable {
		return expected, max(0, expected-int32(n)), nil
	}
	return expected, int32(n), nil
}

// Failed is the status when the numbers cannot be had: no disruption is allowed.
func Failed(b *policyv1.PodDisruptionBudget, err error, now time.Time) policyv1.PodDisruptionBudgetStatus {
	s := *b.Status.DeepCopy()
	s.DisruptionsAllowed = 0
	meta.SetStatusCondition(&s.Conditions, metav1.Condition{
		Type: policyv1.DisruptionAllowedCondition, Status: metav1.ConditionFalse, Reason: policyv1.SyncFailedReason, Message: err.Error(),
		ObservedGeneration: s.ObservedGeneration, LastTransitionTime: metav1.NewTime(now),
	})
	return s
}

// stale says that a pod was announced to be disrupted, lives on, and from when the
// announcement is to be taken back. The kubelet's own announcements are its own.
func stale(p *corev1.Pod) (from time.Time, ok bool) {
	if p.DeletionTimestamp != nil || podset.Ended(p) {
		return time.Time{}, false
	}
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.DisruptionTarget && c.Status == corev1.ConditionTrue && c.Reason != corev1.PodReasonTerminationByKubelet {
			return c.LastTransitionTime.Add(patience), true
		}
	}
	return time.Time{}, false
}
