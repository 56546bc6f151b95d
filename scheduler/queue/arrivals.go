package queue

import (
	"math/bits"

	"github.com/keelson/keelson/scheduler/framework"
)

// cause is why a pod came to a place. The first are the kinds of events, in the order of their bits.
type cause uint8

const (
	causeAdd cause = iota + cause(framework.Kinds)
	causeUpdate
	causeFailure
	causeBackoff
	causeTimeout
	causeForced
	causes
)

// causeNames are upstream's labels where upstream tells the same thing apart. It does not wake pods for
// namespaces, and tells claims, volumes and classes apart.
//
// Source: kube-scheduler 1.36, label event of scheduler_queue_incoming_pods_total.
var causeNames = [causes]string{
	"NodeAdd", "NodeUpdateNodeAllocatable", "NodeUpdateNodeLabel", "NodeUpdateNodeTaint", "NodeUpdateNodeDeclaredFeature",
	"AssignedPodAdd", "AssignedPodUpdate", "AssignedPodDelete", "StorageChange", "NamespaceUpdate", "UnschedulablePodUpdate",
	causeAdd: "UnschedulablePodAdd", causeUpdate: "UnschedulablePodUpdate", causeFailure: "ScheduleAttemptFailure",
	causeBackoff: "BackoffComplete", causeTimeout: "UnschedulableTimeout", causeForced: "ForceActivate",
}

// causeOf is the event's first kind.
func causeOf(e *framework.Event) cause { return cause(bits.TrailingZeros32(uint32(e.Kind))) }

// arrivals counts by place and cause.
type arrivals [InHand][causes]uint64

func (a *arrivals) note(p Place, why cause) { a[p][why]++ }

// Arrival says how many pods have come to a place for one reason since the queue was made.
type Arrival struct {
	Place Place
	Event string
	Pods  uint64
}

// Arrivals are the numbers that are not zero. A gated pod counts as one that came to Unschedulable, as
// upstream counts it.
func (q *Queue) Arrivals() []Arrival {
	var out []Arrival
	sums := map[Arrival]uint64{}
	for p := range q.arrivals {
		for why, n := range q.arrivals[p] {
			if n == 0 {
				continue
			}
			k := Arrival{Place: Place(p), Event: causeNames[why]}
			if k.Place == Gated {
				k.Place = Unschedulable
			}
			sums[k] += n
		}
	}
	for k, n := range sums {
		k.Pods = n
		out = append(out, k)
	}
	return out
}

// Refused counts the unschedulable pods by each plugin that refused them.
func (q *Queue) Refused() map[string]int {
	out := map[string]int{}
	for mask, set := range q.refused {
		for i := range q.table {
			if mask&(1<<i) != 0 {
				out[q.table[i].Name] += len(set)
			}
		}
	}
	return out
}
