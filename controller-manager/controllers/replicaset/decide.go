// Package replicaset keeps the number of a ReplicaSet's pods at its replicas.
//
// [Decide] says how many pods to create or which to delete; [Status] says what the
// status should be. Both are pure. apply.go carries it out and holds the table row.
// The replicationcontroller package uses both for ReplicationControllers.
//
// Source: Kubernetes API reference and documentation, "ReplicaSet".
package replicaset

import (
	"fmt"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/keelson/keelson/controller-manager/podset"
)

// Decision is what one pass wants done. At most one of Create and Delete is set.
type Decision struct {
	Create int
	Delete []*corev1.Pod
}

// Lines are the decision's steps as text.
func (d Decision) Lines() []string {
	var l []string
	if d.Create > 0 {
		l = append(l, fmt.Sprintf("create %d pods", d.Create))
	}
	for _, p := range d.Delete {
		l = append(l, "delete pod "+p.Name)
	}
	return l
}

// Decide compares the pods with what the set wants. pods are the set's own; family
// are the pods of all sets of the same Deployment, and weigh in which pods go.
func Decide(set *appsv1.ReplicaSet, pods, family []*corev1.Pod, now time.Time) Decision {
	if set.DeletionTimestamp != nil {
		return Decision{}
	}
	var d Decision
	d.Create, d.Delete = podset.Scale(Want(set), podset.ActiveOnly(pods), family, now)
	return d
}

// Want is the number of pods the set asks for.
func Want(set *appsv1.ReplicaSet) int {
	if set.Spec.Replicas == nil {
		return 1
	}
	return int(*set.Spec.Replicas)
}

// Status is the status that the set should have. fault is the error of the last
// attempt to create or delete, nil when it went well. next is when the status
// changes by time alone.
func Status(set *appsv1.ReplicaSet, pods []*corev1.Pod, fault error, now time.Time) (status appsv1.ReplicaSetStatus, next time.Time) {
	n := podset.Count(pods, set.Spec.Template.Labels, podset.Seconds(set.Spec.MinReadySeconds), now)
	status = *set.Status.DeepCopy()
	status.ObservedGeneration = set.Generation
	status.Replicas, status.FullyLabeledReplicas = n.Replicas, n.FullyLabeled
	status.ReadyReplicas, status.AvailableReplicas = n.Ready, n.Available
	status.TerminatingReplicas = &n.Terminating

	at := -1
	for i, c := range status.Conditions {
		if c.Type == appsv1.ReplicaSetReplicaFailure {
			at = i
		}
	}
	switch {
	case fault != nil && at < 0:
		reason, message := podset.ReplicaFailure(Want(set), int(n.Replicas), fault)
		status.Conditions = append(status.Conditions, appsv1.ReplicaSetCondition{
			Type: appsv1.ReplicaSetReplicaFailure, Status: corev1.ConditionTrue,
			LastTransitionTime: metav1.NewTime(now), Reason: reason, Message: message,
		})
	case fault == nil && at >= 0:
		status.Conditions = append(status.Conditions[:at:at], status.Conditions[at+1:]...)
		if len(status.Conditions) == 0 {
			status.Conditions = nil
		}
	}
	return status, n.Next
}
