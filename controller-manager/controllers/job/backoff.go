package job

import (
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/keelson/keelson/controller-manager/podset"
)

const (
	backoffFirst = 10 * time.Second
	backoffMost  = 10 * time.Minute
)

// Streak is how often pods of a job have failed since the last one succeeded.
type Streak struct {
	Failures int
	Last     time.Time // end of the last failed pod
}

// after is the streak with newly ended pods.
func (s Streak) after(succeeded, failed []*corev1.Pod) Streak {
	if len(succeeded) > 0 {
		s = Streak{}
		best := slices.MaxFunc(succeeded, byEnd)
		failed = slices.DeleteFunc(slices.Clone(failed), func(p *corev1.Pod) bool { return !endOf(p).After(endOf(best)) })
	}
	if len(failed) > 0 {
		s.Failures += len(failed)
		s.Last = endOf(slices.MaxFunc(failed, byEnd))
	}
	return s
}

// wait is how long no new pod should be made: 10 s after a failure, doubled with
// each further one, at most 10 min.
func (s Streak) wait(now time.Time) time.Duration {
	if s.Failures == 0 {
		return 0
	}
	d := backoffFirst
	for i := 1; i < s.Failures && d < backoffMost; i++ {
		d *= 2
	}
	return max(0, min(d, backoffMost)-now.Sub(s.Last))
}

func byEnd(a, b *corev1.Pod) int { return endOf(a).Compare(endOf(b)) }

// endOf is when a pod ended: the last of its containers; where that is not known,
// when it stopped being ready, or was deleted, or was created.
func endOf(p *corev1.Pod) time.Time {
	var last time.Time
	known := true
	look := func(list []corev1.ContainerStatus, only func(string) bool) {
		for _, s := range list {
			if only != nil && !only(s.Name) {
				continue
			}
			t := s.State.Terminated
			if t == nil || t.FinishedAt.IsZero() {
				known = false
				return
			}
			if t.FinishedAt.After(last) {
				last = t.FinishedAt.Time
			}
		}
	}
	look(p.Status.ContainerStatuses, nil)
	look(p.Status.InitContainerStatuses, func(name string) bool {
		return slices.ContainsFunc(p.Spec.InitContainers, func(c corev1.Container) bool {
			return c.Name == name && c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
		})
	})
	if known && !last.IsZero() {
		return last
	}
	if c := podset.ReadyCondition(p); c != nil && c.Status == corev1.ConditionFalse && !c.LastTransitionTime.IsZero() {
		return c.LastTransitionTime.Time
	}
	if p.DeletionTimestamp != nil {
		grace := int64(0)
		if p.DeletionGracePeriodSeconds != nil {
			grace = *p.DeletionGracePeriodSeconds
		}
		return p.DeletionTimestamp.Add(-time.Duration(grace) * time.Second)
	}
	return p.CreationTimestamp.Time
}
