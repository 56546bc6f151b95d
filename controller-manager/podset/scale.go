package podset

import (
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// Scale says what brings the number of active pods to want: pods to create, or
// which pods to delete.
func Scale(want int, active, family []*corev1.Pod, now time.Time) (create int, remove []*corev1.Pod) {
	switch d := want - len(active); {
	case d > 0:
		return d, nil
	case d < 0:
		return 0, Surplus(active, family, -d, now)
	}
	return 0, nil
}

// ReplicaFailure returns the reason and message of a ReplicaFailure condition
// after a failed attempt to bring have pods to want.
func ReplicaFailure(want, have int, err error) (reason, message string) {
	switch {
	case have < want:
		reason = "FailedCreate"
	case have > want:
		reason = "FailedDelete"
	}
	return reason, err.Error()
}

// Line is one step of a decision as text, for logs, golden files and plan.
func Line(verb, kind, name string) string { return fmt.Sprintf("%s %s %s", verb, kind, name) }
