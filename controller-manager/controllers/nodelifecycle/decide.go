// Package nodelifecycle watches over nodes: a node that has stopped reporting is
// marked unknown, its taints say what its conditions are, and its pods are marked
// not ready, so that traffic goes elsewhere at once and pods follow after their
// toleration (package tainteviction).
//
// [Health], [Conditions] and [Taints] decide and are pure. A node's silence is
// measured by our own clock from the last change that we saw, never by the node's.
//
// Source: Kubernetes documentation, "Nodes: heartbeats, node controller"; "Taint
// based evictions".
package nodelifecycle

import (
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Sign is the last sign of life of a node.
type Sign struct {
	Beat  metav1.Time      // the Ready condition's heartbeat
	Renew metav1.MicroTime // the lease's
	Seen  time.Time        // when we saw either change, by our clock
}

// Next returns the sign after a look: Seen moves when anything has changed.
func (s Sign) Next(node *corev1.Node, renew *metav1.MicroTime, now time.Time) Sign {
	n := s
	if c := condition(node, corev1.NodeReady); c != nil && c.LastHeartbeatTime != s.Beat {
		n.Beat, n.Seen = c.LastHeartbeatTime, now
	}
	if renew != nil && !renew.Equal(&s.Renew) {
		n.Renew, n.Seen = *renew, now
	}
	if n.Seen.IsZero() {
		n.Seen = now
	}
	return n
}

// Silent reports whether the node has given no sign for grace, and when it will have.
func (s Sign) Silent(grace time.Duration, now time.Time) (bool, time.Time) {
	until := s.Seen.Add(grace)
	return !now.Before(until), until
}

func condition(n *corev1.Node, kind corev1.NodeConditionType) *corev1.NodeCondition {
	for i := range n.Status.Conditions {
		if n.Status.Conditions[i].Type == kind {
			return &n.Status.Conditions[i]
		}
	}
	return nil
}

// reported are the conditions that a kubelet keeps, which become unknown with it.
var reported = []corev1.NodeConditionType{corev1.NodeReady, corev1.NodeMemoryPressure, corev1.NodeDiskPressure, corev1.NodePIDPressure}

// Unknown returns the conditions of a silent node; false when they say so already.
func Unknown(n *corev1.Node, now metav1.Time) ([]corev1.NodeCondition, bool) {
	out, changed := slices.Clone(n.Status.Conditions), false
	for _, kind := range reported {
		i := slices.IndexFunc(out, func(c corev1.NodeCondition) bool { return c.Type == kind })
		if i < 0 {
			out = append(out, corev1.NodeCondition{
				Type: kind, Status: corev1.ConditionUnknown, Reason: "NodeStatusNeverUpdated", Message: "Kubelet never posted node status.",
				LastHeartbeatTime: n.CreationTimestamp, LastTransitionTime: now,
			})
			changed = true
			continue
		}
		if out[i].Status == corev1.ConditionUnknown {
			continue
		}
		out[i].Status, out[i].Reason, out[i].Message = corev1.ConditionUnknown, "NodeStatusUnknown", "Kubelet stopped posting node status."
		out[i].LastTransitionTime = now
		changed = true
	}
	return out, changed
}

// ours are the taints that this controller keeps, by key and effect.
var ours = map[corev1.Taint]bool{
	{Key: corev1.TaintNodeNotReady, Effect: corev1.TaintEffectNoSchedule}:           true,
	{Key: corev1.TaintNodeNotReady, Effect: corev1.TaintEffectNoExecute}:            true,
	{Key: corev1.TaintNodeUnreachable, Effect: corev1.TaintEffectNoSchedule}:        true,
	{Key: corev1.TaintNodeUnreachable, Effect: corev1.TaintEffectNoExecute}:         true,
	{Key: corev1.TaintNodeUnschedulable, Effect: corev1.TaintEffectNoSchedule}:      true,
	{Key: corev1.TaintNodeMemoryPressure, Effect: corev1.TaintEffectNoSchedule}:     true,
	{Key: corev1.TaintNodeDiskPressure, Effect: corev1.TaintEffectNoSchedule}:       true,
	{Key: corev1.TaintNodePIDPressure, Effect: corev1.TaintEffectNoSchedule}:        true,
	{Key: corev1.TaintNodeNetworkUnavailable, Effect: corev1.TaintEffectNoSchedule}: true,
}

// Taints returns the taints that the node's conditions ask for, beside those of
// others, which stay. evict allows the NoExecute taint to be added now: it is
// withheld while too many nodes fail at once. late is true when it is withheld.
func Taints(n *corev1.Node, evict bool, now metav1.Time) (taints []corev1.Taint, changed, late bool) {
	want := map[corev1.Taint]bool{}
	add := func(key string, effects ...corev1.TaintEffect) {
		for _, e := range effects {
			want[corev1.Taint{Key: key, Effect: e}] = true
		}
	}
	if c := condition(n, corev1.NodeReady); c != nil {
		switch c.Status {
		case corev1.ConditionFalse:
			add(corev1.TaintNodeNotReady, corev1.TaintEffectNoSchedule, corev1.TaintEffectNoExecute)
		case corev1.ConditionUnknown:
			add(corev1.TaintNodeUnreachable, corev1.TaintEffectNoSchedule, corev1.TaintEffectNoExecute)
		}
	} else {
		add(corev1.TaintNodeNotReady, corev1.TaintEffectNoSchedule)
	}
	for kind, key := range map[corev1.NodeConditionType]string{
		corev1.NodeMemoryPressure: corev1.TaintNodeMemoryPressure, corev1.NodeDiskPressure: corev1.TaintNodeDiskPressure,
		corev1.NodePIDPressure: corev1.TaintNodePIDPressure, corev1.NodeNetworkUnavailable: corev1.TaintNodeNetworkUnavailable,
	} {
		if c := condition(n, kind); c != nil && c.Status == corev1.ConditionTrue {
			add(key, corev1.TaintEffectNoSchedule)
		}
	}
	if n.Spec.Unschedulable {
		add(corev1.TaintNodeUnschedulable, corev1.TaintEffectNoSchedule)
	}
	for _, t := range n.Spec.Taints {
		k := corev1.Taint{Key: t.Key, Effect: t.Effect}
		if ours[k] && !want[k] {
			changed = true
			continue
		}
		taints = append(taints, t)
		delete(want, k)
	}
	var missing []corev1.Taint
	for k := range want {
		if k.Effect == corev1.TaintEffectNoExecute {
			if !evict {
				late = true
				continue
			}
			k.TimeAdded = &now
		}
		missing = append(missing, k)
	}
	slices.SortFunc(missing, func(a, b corev1.Taint) int {
		return slices.Compare([]string{a.Key, string(a.Effect)}, []string{b.Key, string(b.Effect)})
	})
	return append(taints, missing...), changed || len(missing) > 0, late
}

// Ready reports whether the node says that it is.
func Ready(n *corev1.Node) bool {
	c := condition(n, corev1.NodeReady)
	return c != nil && c.Status == corev1.ConditionTrue
}

// Calm decides how many nodes a second may be evicted in a zone: the full rate while
// most nodes are well, a tenth while many are not and the zone is large, none when it
// is small or nobody is well: then the fault is more likely ours.
func Calm(ready, notReady int, rate float64) float64 {
	const unhealthy, large = 0.55, 50
	switch {
	case ready == 0 && notReady > 0:
		return 0
	case notReady > 2 && float64(notReady)/float64(ready+notReady) >= unhealthy:
		if ready+notReady > large {
			return rate / 10
		}
		return 0
	}
	return rate
}

// NotReadyPod returns the pod's conditions when its node is gone: not ready; false when they say so already.
func NotReadyPod(p *corev1.Pod, now metav1.Time) ([]corev1.PodCondition, bool) {
	for i := range p.Status.Conditions {
		if c := &p.Status.Conditions[i]; c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue {
			out := slices.Clone(p.Status.Conditions)
			out[i].Status, out[i].LastTransitionTime = corev1.ConditionFalse, now
			return out, true
		}
	}
	return nil, false
}
