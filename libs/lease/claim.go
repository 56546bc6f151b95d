package lease

import (
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// claim is what one copy knows of the lease. Its methods are the rules of the election; they
// read no clock and write nothing.
//
// Safety rests on two facts. A holder leads until start(last renewal) + RenewDeadline, by its own
// clock. A standby takes the lease at the earliest at seen(last renewal) + the duration that
// stands in the lease, by its own clock, and only if the lease is still in the state that it
// saw (the API server compares resourceVersion). Since start ≤ written ≤ seen and RenewDeadline <
// duration, the terms of two holders do not overlap, whatever the clocks show.
type claim struct {
	id    string
	lease *coordinationv1.Lease // newest known state; nil when there is none
	since time.Time             // when this state was first seen
}

// see takes in a state of the lease. Metadata that somebody else has changed is no renewal, but
// what is written must name the newest resourceVersion.
func (c *claim) see(l *coordinationv1.Lease, now time.Time) {
	if l == nil || c.lease == nil || holder(l) != holder(c.lease) || !sameTime(l.Spec.RenewTime, c.lease.Spec.RenewTime) {
		c.since = now
	}
	c.lease = l
}

func holder(l *coordinationv1.Lease) string {
	if l == nil || l.Spec.HolderIdentity == nil {
		return ""
	}
	return *l.Spec.HolderIdentity
}

func sameTime(a, b *metav1.MicroTime) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.Equal(b)
}

// claimedFor is the duration that stands in a lease.
func claimedFor(l *coordinationv1.Lease) time.Duration {
	if l.Spec.LeaseDurationSeconds == nil {
		return 0
	}
	return time.Duration(*l.Spec.LeaseDurationSeconds) * time.Second
}

// free is when this copy may take the lease; zero means now.
func (c *claim) free() time.Time {
	if h := holder(c.lease); h == "" || h == c.id || claimedFor(c.lease) == 0 {
		return time.Time{}
	}
	return c.since.Add(claimedFor(c.lease))
}

// taken is the lease to write in order to take or renew it.
//
// Source: the fields of client-go's LeaderElectionRecord as its LeaseLock stores them; the number
// of transitions grows whenever the holder changes.
func (c *claim) taken(name, namespace string, duration time.Duration, now time.Time) *coordinationv1.Lease {
	l := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: namespace}}
	transitions := int32(0)
	acquired := metav1.NewMicroTime(now)
	if c.lease != nil {
		l = c.lease.DeepCopy()
		if l.Spec.LeaseTransitions != nil {
			transitions = *l.Spec.LeaseTransitions
		}
		if holder(c.lease) != c.id {
			transitions++
		} else if l.Spec.AcquireTime != nil {
			acquired = *l.Spec.AcquireTime
		}
	}
	seconds := int32(duration / time.Second)
	renewed := metav1.NewMicroTime(now)
	l.Spec.HolderIdentity, l.Spec.LeaseDurationSeconds = &c.id, &seconds
	l.Spec.AcquireTime, l.Spec.RenewTime, l.Spec.LeaseTransitions = &acquired, &renewed, &transitions
	return l
}

// released is the lease to write in order to give it back. The duration stays valid for the API:
// it must be positive.
func (c *claim) released(now time.Time) *coordinationv1.Lease {
	l := c.lease.DeepCopy()
	nobody, second, at := "", int32(1), metav1.NewMicroTime(now)
	l.Spec.HolderIdentity, l.Spec.LeaseDurationSeconds, l.Spec.RenewTime, l.Spec.AcquireTime = &nobody, &second, &at, &at
	return l
}
