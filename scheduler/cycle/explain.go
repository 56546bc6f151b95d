package cycle

import (
	"fmt"
	"slices"
	"strings"

	"github.com/keelson/keelson/scheduler/framework"
)

// explain puts the refusals of all nodes into one sentence, and looks whether preemption would help.
func (c *Cycle) explain(k *class, s *framework.Snapshot, p *framework.Pod, slots []int, seed uint64) Outcome {
	counts := map[*framework.Refusal]int{}
	look := func(slot int) {
		if r := c.refusals[slot]; r != nil {
			counts[r]++
		}
	}
	looked := s.Live
	if slots != nil {
		looked = len(slots)
		for _, slot := range slots {
			look(slot)
		}
	} else {
		for slot, n := range s.Nodes {
			if n != nil {
				look(slot)
			}
		}
	}
	reasons := map[string]int{}
	var refusers []string
	for r, n := range counts {
		for _, reason := range r.Reasons {
			reasons[reason] += n
		}
		if !slices.Contains(refusers, r.Plugin) {
			refusers = append(refusers, r.Plugin)
		}
	}
	if looked < s.Live {
		reasons[fmt.Sprintf("node(s) didn't satisfy plugin(s) [%s]", strings.Join(k.names, " "))] += s.Live - looked
		for _, name := range k.names {
			if !slices.Contains(refusers, name) {
				refusers = append(refusers, name)
			}
		}
	}
	slices.Sort(refusers)
	out := Outcome{Refusers: refusers}
	var why string
	out.Preempt, why = c.preempt(k, s, p, slots, seed)
	out.Message = sentence(s.Live, reasons)
	if why != "" {
		out.Message += " preemption: " + why
	}
	return out
}

// sentence is upstream's form: "0/3 nodes are available: 1 Insufficient cpu, 2 node(s) were unschedulable."
func sentence(nodes int, reasons map[string]int) string {
	parts := make([]string, 0, len(reasons))
	for reason, n := range reasons {
		parts = append(parts, fmt.Sprintf("%d %s", n, reason))
	}
	slices.Sort(parts)
	out := fmt.Sprintf("0/%d nodes are available:", nodes)
	if len(parts) > 0 {
		out += " " + strings.Join(parts, ", ") + "."
	}
	return out
}
