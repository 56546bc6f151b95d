package podset

import (
	"cmp"
	"math"
	"slices"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// DeletionCost reads the pod-deletion-cost annotation; unset and unreadable
// values are 0.
//
// Source: Kubernetes documentation, "ReplicaSet", on pod deletion cost.
func DeletionCost(p *corev1.Pod) int32 {
	v := p.Annotations[corev1.PodDeletionCost]
	if v == "" || v[0] == '+' || len(v) > 1 && v[0] == '0' {
		return 0
	}
	n, err := strconv.ParseInt(v, 10, 32)
	if err != nil {
		return 0
	}
	return int32(n)
}

// Surplus returns the n of the active pods that should go first: those that do
// least good now. In this order: not on a node; pending, then unknown; not ready;
// low deletion cost; on a node with many pods of the same family; ready for a
// shorter time; with more restarts; younger. Ages are compared by their
// magnitude (base 2), so that among pods of about one age the choice is spread.
//
// family holds all active pods that stand in for each other, pods among them.
//
// Source: Kubernetes documentation, "ReplicaSet", on scaling down; KEP-2185, KEP-2255.
func Surplus(pods, family []*corev1.Pod, n int, now time.Time) []*corev1.Pod {
	if n >= len(pods) {
		return pods
	}
	if n <= 0 {
		return nil
	}
	perNode := map[string]int{}
	for _, p := range family {
		if p.Spec.NodeName != "" && Active(p) {
			perNode[p.Spec.NodeName]++
		}
	}
	sorted := slices.Clone(pods)
	slices.SortStableFunc(sorted, func(a, b *corev1.Pod) int { return First(a, b, perNode, now) })
	return sorted[:n]
}

// First compares two pods by which should be deleted first (negative: a).
func First(a, b *corev1.Pod, perNode map[string]int, now time.Time) int {
	if c := boolFirst(a.Spec.NodeName == "", b.Spec.NodeName == ""); c != 0 {
		return c
	}
	if c := cmp.Compare(phaseRank(a), phaseRank(b)); c != 0 {
		return c
	}
	if c := boolFirst(!Ready(a), !Ready(b)); c != 0 {
		return c
	}
	if c := cmp.Compare(DeletionCost(a), DeletionCost(b)); c != 0 {
		return c
	}
	if c := cmp.Compare(perNode[b.Spec.NodeName], perNode[a.Spec.NodeName]); c != 0 {
		return c
	}
	if Ready(a) && Ready(b) {
		at, bt := ReadyCondition(a).LastTransitionTime.Time, ReadyCondition(b).LastTransitionTime.Time
		if !at.Equal(bt) {
			return younger(a, b, at, bt, now)
		}
	}
	if c := cmp.Compare(restarts(b.Status.ContainerStatuses), restarts(a.Status.ContainerStatuses)); c != 0 {
		return c
	}
	if c := cmp.Compare(restarts(b.Status.InitContainerStatuses), restarts(a.Status.InitContainerStatuses)); c != 0 {
		return c
	}
	if !a.CreationTimestamp.Equal(&b.CreationTimestamp) {
		return younger(a, b, a.CreationTimestamp.Time, b.CreationTimestamp.Time, now)
	}
	return cmp.Compare(a.Name, b.Name)
}

func younger(a, b *corev1.Pod, at, bt, now time.Time) int {
	if at.IsZero() != bt.IsZero() {
		return boolFirst(at.IsZero(), bt.IsZero())
	}
	if c := cmp.Compare(magnitude(now.Sub(at)), magnitude(now.Sub(bt))); c != 0 {
		return c
	}
	return cmp.Compare(a.UID, b.UID)
}

func magnitude(d time.Duration) int {
	if d <= 0 {
		return -1
	}
	return int(math.Log2(float64(d)))
}

func boolFirst(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return -1
	}
	return 1
}

func phaseRank(p *corev1.Pod) int {
	switch p.Status.Phase {
	case corev1.PodPending, "":
		return 0
	case corev1.PodRunning:
		return 2
	}
	return 1
}

func restarts(list []corev1.ContainerStatus) int32 {
	var most int32
	for _, s := range list {
		most = max(most, s.RestartCount)
	}
	return most
}
