package deployment

import (
	"fmt"
	"math"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	reasonTimedOut  = "ProgressDeadlineExceeded"
	reasonAvailable = "NewReplicaSetAvailable"
)

func hasDeadline(d *appsv1.Deployment) bool {
	return d.Spec.ProgressDeadlineSeconds != nil && *d.Spec.ProgressDeadlineSeconds != math.MaxInt32
}

// counts is the status with numbers and the Available condition.
func (v *view) counts() appsv1.DeploymentStatus {
	all := v.all()
	s := appsv1.DeploymentStatus{
		ObservedGeneration: v.d.Generation,
		Replicas:           sum(all, func(m *member) int32 { return m.set.Status.Replicas }),
		ReadyReplicas:      sum(all, func(m *member) int32 { return m.set.Status.ReadyReplicas }),
		AvailableReplicas:  sum(all, available),
		CollisionCount:     v.d.Status.CollisionCount,
		Conditions:         append([]appsv1.DeploymentCondition(nil), v.d.Status.Conditions...),
	}
	if v.current != nil {
		s.UpdatedReplicas = v.current.set.Status.Replicas
	}
	s.UnavailableReplicas = max(0, sum(all, (*member).replicas)-s.AvailableReplicas)
	s.TerminatingReplicas = terminating(all)
	if s.AvailableReplicas >= v.want-v.maxUnavailable() {
		setCondition(&s, v.condition(appsv1.DeploymentAvailable, corev1.ConditionTrue, "MinimumReplicasAvailable", "Deployment has minimum availability."))
	} else {
		setCondition(&s, v.condition(appsv1.DeploymentAvailable, corev1.ConditionFalse, "MinimumReplicasUnavailable", "Deployment does not have minimum availability."))
	}
	return s
}

// terminating is unknown (nil) while a set's status, written by an older version,
// does not tell.
func terminating(all []*member) *int32 {
	var n int32
	for _, m := range all {
		switch st := m.set.Status; {
		case st.TerminatingReplicas != nil:
			n += *st.TerminatingReplicas
		case st.ObservedGeneration != 0:
			return nil
		}
	}
	return &n
}

// progress adds the Progressing and ReplicaFailure conditions of a roll-out and
// notes when the deadline passes.
func (v *view) progress(s appsv1.DeploymentStatus) appsv1.DeploymentStatus {
	before := condition(v.d.Status, appsv1.DeploymentProgressing)
	if !hasDeadline(v.d) {
		dropCondition(&s, appsv1.DeploymentProgressing)
	} else if !(s.Replicas == s.UpdatedReplicas && before != nil && before.Reason == reasonAvailable) {
		what := fmt.Sprintf("Deployment %q", v.d.Name)
		if v.current != nil {
			what = fmt.Sprintf("ReplicaSet %q", v.current.set.Name)
		}
		switch {
		case complete(v.d, &s):
			setCondition(&s, v.condition(appsv1.DeploymentProgressing, corev1.ConditionTrue, reasonAvailable, what+" has successfully progressed."))
		case progressed(&v.d.Status, &s):
			// The update time moves with every progress: the deadline counts from it.
			c := v.condition(appsv1.DeploymentProgressing, corev1.ConditionTrue, "ReplicaSetUpdated", what+" is progressing.")
			if before != nil && before.Status == corev1.ConditionTrue {
				c.LastTransitionTime = before.LastTransitionTime
			}
			dropCondition(&s, appsv1.DeploymentProgressing)
			setCondition(&s, c)
		case v.timedOut(condition(s, appsv1.DeploymentProgressing)):
			setCondition(&s, v.condition(appsv1.DeploymentProgressing, corev1.ConditionFalse, reasonTimedOut, what+" has timed out progressing."))
		}
		if c := condition(s, appsv1.DeploymentProgressing); c != nil && c.Reason != reasonTimedOut && c.Reason != reasonAvailable {
			v.again = v.deadline(c).Add(time.Second)
		}
	}
	if c := v.failure(); c != nil {
		setCondition(&s, *c)
	} else {
		dropCondition(&s, appsv1.DeploymentReplicaFailure)
	}
	return s
}

func (v *view) deadline(c *appsv1.DeploymentCondition) time.Time {
	return c.LastUpdateTime.Add(time.Duration(*v.d.Spec.ProgressDeadlineSeconds) * time.Second)
}

func (v *view) timedOut(c *appsv1.DeploymentCondition) bool {
	if c == nil || c.Reason == reasonAvailable {
		return false
	}
	return c.Reason == reasonTimedOut || v.deadline(c).Before(v.now)
}

// complete says that all replicas are of the current template and available, and
// nothing else is left.
func complete(d *appsv1.Deployment, s *appsv1.DeploymentStatus) bool {
	want := int32(1)
	if d.Spec.Replicas != nil {
		want = *d.Spec.Replicas
	}
	return s.UpdatedReplicas == want && s.Replicas == want && s.AvailableReplicas == want && s.ObservedGeneration >= d.Generation
}

// progressed says that the roll-out moved on between two states.
func progressed(a, b *appsv1.DeploymentStatus) bool {
	return b.UpdatedReplicas > a.UpdatedReplicas || b.Replicas-b.UpdatedReplicas < a.Replicas-a.UpdatedReplicas ||
		b.ReadyReplicas > a.ReadyReplicas || b.AvailableReplicas > a.AvailableReplicas
}

// failure is the ReplicaFailure condition of the current set, or of any other.
func (v *view) failure() *appsv1.DeploymentCondition {
	list := v.old
	if v.current != nil {
		list = append([]*member{v.current}, v.old...)
	}
	for _, m := range list {
		for _, c := range m.set.Status.Conditions {
			if c.Type == appsv1.ReplicaSetReplicaFailure {
				return &appsv1.DeploymentCondition{
					Type: appsv1.DeploymentReplicaFailure, Status: c.Status, Reason: c.Reason, Message: c.Message,
					LastTransitionTime: c.LastTransitionTime, LastUpdateTime: c.LastTransitionTime,
				}
			}
		}
	}
	return nil
}

func (v *view) condition(t appsv1.DeploymentConditionType, s corev1.ConditionStatus, reason, message string) appsv1.DeploymentCondition {
	at := metav1.NewTime(v.now)
	return appsv1.DeploymentCondition{Type: t, Status: s, Reason: reason, Message: message, LastUpdateTime: at, LastTransitionTime: at}
}

func condition(s appsv1.DeploymentStatus, t appsv1.DeploymentConditionType) *appsv1.DeploymentCondition {
	for i := range s.Conditions {
		if s.Conditions[i].Type == t {
			return &s.Conditions[i]
		}
	}
	return nil
}

// setCondition replaces a condition unless status and reason stay; the transition
// time moves only with the status.
func setCondition(s *appsv1.DeploymentStatus, c appsv1.DeploymentCondition) {
	had := condition(*s, c.Type)
	if had != nil && had.Status == c.Status && had.Reason == c.Reason {
		return
	}
	if had != nil && had.Status == c.Status {
		c.LastTransitionTime = had.LastTransitionTime
	}
	dropCondition(s, c.Type)
	s.Conditions = append(s.Conditions, c)
}

func dropCondition(s *appsv1.DeploymentStatus, t appsv1.DeploymentConditionType) {
	var keep []appsv1.DeploymentCondition
	for _, c := range s.Conditions {
		if c.Type != t {
			keep = append(keep, c)
		}
	}
	s.Conditions = keep
}
