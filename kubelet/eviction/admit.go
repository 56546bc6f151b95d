package eviction

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Rejection is why a pod may not run on this node: status.reason and status.message
// of the pod that is put to phase Failed.
type Rejection struct{ Reason, Message string }

// Evictor ends pods; implemented by worker.Pool.
type Evictor interface {
	// Evict puts the pod to phase Failed with reason Evicted and the message, adds
	// the conditions (DisruptionTarget, reason TerminationByKubelet) and stops its
	// containers with the grace period given (0: kill). It returns when the
	// containers are gone or after a minute.
	Evict(uid types.UID, message string, gracePeriodSeconds int64, conditions ...corev1.PodCondition) error
	// Pods are the pods with their newest status. Shared: read-only.
	Pods() []*corev1.Pod
}
