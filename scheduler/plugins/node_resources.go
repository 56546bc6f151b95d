package plugins

import (
	"math"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/keelson/keelson/scheduler/framework"
)

// nodeResourcesFit refuses nodes that have too little left of what the pod asks for, and prefers those
// with the most left of CPU and memory (LeastAllocated, weight 1 each).
func nodeResourcesFit(_ *framework.Args, p *framework.Pod) framework.Local {
	extended := make([]corev1.ResourceName, 0, len(p.Requests.Extended))
	for name, n := range p.Requests.Extended {
		if n > 0 {
			extended = append(extended, name)
		}
	}
	slices.Sort(extended)
	var memo []*framework.Refusal // the few different refusals of one class, shared by its nodes
	refuse := func(short []shortage) *framework.Refusal {
		for _, r := range memo {
			if sameShortage(r, short) {
				return r
			}
		}
		r := &framework.Refusal{Plugin: "NodeResourcesFit"}
		for _, s := range short {
			r.Reasons = append(r.Reasons, s.reason)
			r.Final = r.Final || s.final
		}
		memo = append(memo, r)
		return r
	}
	return framework.Local{
		Filter: func(n *framework.Node) *framework.Refusal {
			var buffer [4]shortage
			short := shortages(buffer[:0], p.Requests, n, extended)
			if len(short) == 0 {
				return nil
			}
			return refuse(short)
		},
		Score: func(n *framework.Node) int64 {
			var sum, weights int64
			for _, r := range [...][3]int64{
				{n.Scored.MilliCPU, p.Scored.MilliCPU, n.Allocatable.MilliCPU},
				{n.Scored.MemoryBytes, p.Scored.MemoryBytes, n.Allocatable.MemoryBytes},
			} {
				used, capacity := r[0]+r[1], r[2]
				if capacity == 0 {
					continue
				}
				weights++
				if used <= capacity {
					sum += (capacity - used) * framework.MaxScore / capacity
				}
			}
			if weights == 0 {
				return 0
			}
			return sum / weights
		},
	}
}

type shortage struct {
	reason string
	final  bool // more than the whole node has
}

func sameShortage(r *framework.Refusal, short []shortage) bool {
	if len(r.Reasons) != len(short) {
		return false
	}
	final := false
	for i, s := range short {
		if r.Reasons[i] != s.reason {
			return false
		}
		final = final || s.final
	}
	return r.Final == final
}

func shortages(out []shortage, want framework.Amounts, n *framework.Node, extended []corev1.ResourceName) []shortage {
	if int64(len(n.Pods))+1 > n.Allocatable.Pods {
		out = append(out, shortage{"Too many pods", false})
	}
	check := func(want, used, capacity int64, reason string) {
		if want > 0 && want > capacity-used {
			out = append(out, shortage{reason, want > capacity})
		}
	}
	check(want.MilliCPU, n.Requested.MilliCPU, n.Allocatable.MilliCPU, "Insufficient cpu")
	check(want.MemoryBytes, n.Requested.MemoryBytes, n.Allocatable.MemoryBytes, "Insufficient memory")
	check(want.EphemeralBytes, n.Requested.EphemeralBytes, n.Allocatable.EphemeralBytes, "Insufficient ephemeral-storage")
	for _, name := range extended {
		check(want.Extended[name], n.Requested.Extended[name], n.Allocatable.Extended[name], "Insufficient "+string(name))
	}
	return out
}

// resourcesFreed looks only at the node of the event: it could take the pod now, or could not.
func resourcesFreed(e *framework.Event, p *framework.Pod) bool {
	if e.Node == nil {
		return true
	}
	var extended []corev1.ResourceName
	for name := range p.Requests.Extended {
		extended = append(extended, name)
	}
	return len(shortages(nil, p.Requests, e.Node.Facing(p), extended)) == 0
}

// balancedAllocation prefers nodes whose use of CPU and memory the pod brings closer together. A pod that
// asks for nothing has no say.
func balancedAllocation(_ *framework.Args, p *framework.Pod) framework.Local {
	if p.Requests.MilliCPU == 0 && p.Requests.MemoryBytes == 0 {
		return framework.Local{}
	}
	return framework.Local{Score: func(n *framework.Node) int64 {
		without := balance(n.Requested.MilliCPU, n.Requested.MemoryBytes, n.Allocatable)
		with := balance(n.Requested.MilliCPU+p.Requests.MilliCPU, n.Requested.MemoryBytes+p.Requests.MemoryBytes, n.Allocatable)
		return framework.MaxScore/2 + (framework.MaxScore/2+with-without)/2
	}}
}

// balance is 100 when the same part of CPU and memory is used, and 50 when they are as far apart as can be.
func balance(milliCPU, memoryBytes int64, of framework.Amounts) int64 {
	if of.MilliCPU == 0 || of.MemoryBytes == 0 {
		return framework.MaxScore
	}
	cpu := min(float64(milliCPU)/float64(of.MilliCPU), 1)
	memory := min(float64(memoryBytes)/float64(of.MemoryBytes), 1)
	return int64((1 - math.Abs((cpu-memory)/2)) * framework.MaxScore)
}
