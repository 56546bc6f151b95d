package plugins

import (
	"math"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"github.com/keelson/keelson/scheduler/framework"
)

var (
	spreadBroken  = open("PodTopologySpread", "node(s) didn't match pod topology spread constraints")
	spreadNoLabel = final("PodTopologySpread", "node(s) didn't match pod topology spread constraints (missing required label)")
)

// systemConstraints hold for pods without constraints of their own that a service or controller selects.
var systemConstraints = []corev1.TopologySpreadConstraint{
	{MaxSkew: 3, TopologyKey: corev1.LabelHostname, WhenUnsatisfiable: corev1.ScheduleAnyway},
	{MaxSkew: 5, TopologyKey: corev1.LabelTopologyZone, WhenUnsatisfiable: corev1.ScheduleAnyway},
}

// spread is one constraint with its counts.
type spread struct {
	maxSkew    int32
	minDomains int32
	domains    *framework.Domains
	counter    *framework.Counter
	self       int32 // 1 when the pod counts itself
	counted    func(slot int) bool
	sum        []int32 // by domain; -1 where no eligible node is
	least      int32   // of sum, over domains that are there
	there      int32   // number of those domains
}

// podTopologySpread keeps the number of matching pods in the domains of a topology within maxSkew of each
// other: strictly (DoNotSchedule) or by score (ScheduleAnyway). Source: KEP-895, KEP-3022, KEP-3094.
func podTopologySpread(a *framework.Args, p *framework.Pod, s *framework.Snapshot, e framework.Eligible) framework.Global {
	constraints, own := p.Spec.TopologySpreadConstraints, true
	var byDefault labels.Selector
	if len(constraints) == 0 {
		own = false
		constraints = a.DefaultConstraints
		if a.DefaultingType != "List" {
			constraints = systemConstraints
		}
		if len(constraints) > 0 {
			byDefault = defaultSelector(p, s)
		}
		if byDefault == nil {
			return framework.Global{}
		}
	}
	var hard, soft []*spread
	for i := range constraints {
		c := &constraints[i]
		of := framework.SpreadSelection(p.Pod, c)
		if !own {
			of = framework.Everything(p.Namespace, byDefault, true)
		}
		sp := &spread{maxSkew: c.MaxSkew, minDomains: 1, domains: s.Counts.Domains(c.TopologyKey), counter: s.Counts.Matching(of)}
		if c.MinDomains != nil {
			sp.minDomains = *c.MinDomains
		}
		if sp.counter.Matches(p, s) {
			sp.self = 1
		}
		sp.counted = included(c, e)
		if c.WhenUnsatisfiable == corev1.DoNotSchedule {
			hard = append(hard, sp)
		} else {
			soft = append(soft, sp)
		}
	}
	var out framework.Global
	if len(hard) > 0 {
		limitTo(hard)
		for _, sp := range hard {
			sp.add(s)
		}
		out.Filter = func(n *framework.Node) *framework.Refusal {
			for _, sp := range hard {
				id := sp.domains.Of[n.Slot]
				if id < 0 {
					return spreadNoLabel
				}
				least := sp.least
				if sp.there < sp.minDomains {
					least = 0
				}
				if max(sp.sum[id], 0)+sp.self-least > sp.maxSkew {
					return spreadBroken
				}
			}
			return nil
		}
		out.Assume = func(slot int, q *framework.Pod, sign int32) {
			for _, sp := range hard {
				if id := sp.domains.Of[slot]; id >= 0 && sp.counted(slot) && sp.counter.Matches(q, s) {
					sp.sum[id] += sign
					sp.settle()
				}
			}
		}
	}
	if len(soft) > 0 {
		if own || a.DefaultingType == "List" {
			limitTo(soft)
		}
		out.Score = func(feasible []*framework.Node, scores []int64) {
			scoreSpread(soft, own || a.DefaultingType == "List", feasible, scores)
		}
	}
	return out
}

// included says which nodes a constraint counts: KEP-3094. By default nodes that the pod's node affinity
// excludes do not count and tainted ones do.
func included(c *corev1.TopologySpreadConstraint, e framework.Eligible) func(slot int) bool {
	var mask uint8
	if c.NodeAffinityPolicy == nil || *c.NodeAffinityPolicy == corev1.NodeInclusionPolicyHonor {
		mask |= framework.AffinityMatches
	}
	if c.NodeTaintsPolicy != nil && *c.NodeTaintsPolicy == corev1.NodeInclusionPolicyHonor {
		mask |= framework.TaintsTolerated
	}
	flags := e.Flags
	return func(slot int) bool { return flags[slot]&mask == mask }
}

// limitTo makes each constraint count only nodes that have the topology keys of all of them.
func limitTo(all []*spread) {
	if len(all) < 2 {
		return
	}
	for _, sp := range all {
		inner := sp.counted
		sp.counted = func(slot int) bool {
			for _, other := range all {
				if other.domains.Of[slot] < 0 {
					return false
				}
			}
			return inner(slot)
		}
	}
}

// add counts by domain. One pass over the nodes; no pod is looked at.
func (sp *spread) add(s *framework.Snapshot) {
	sp.sum = make([]int32, sp.domains.N)
	for i := range sp.sum {
		sp.sum[i] = -1
	}
	for slot, g := range s.Generations {
		if g == 0 {
			continue
		}
		id := sp.domains.Of[slot]
		if id < 0 || !sp.counted(slot) {
			continue
		}
		if sp.sum[id] < 0 {
			sp.sum[id] = 0
		}
		sp.sum[id] += sp.counter.PerNode[slot]
	}
	sp.settle()
}

func (sp *spread) settle() {
	sp.least, sp.there = math.MaxInt32, 0
	for _, n := range sp.sum {
		if n >= 0 {
			sp.there++
			sp.least = min(sp.least, n)
		}
	}
	if sp.there == 0 {
		sp.least = 0
	}
}

// scoreSpread prefers domains with fewer matching pods; domains of a key with many values weigh more,
// by log(values + 2).
func scoreSpread(soft []*spread, allKeys bool, feasible []*framework.Node, scores []int64) {
	ignored := make([]bool, len(feasible))
	live := 0
	for i, n := range feasible {
		if allKeys {
			for _, sp := range soft {
				ignored[i] = ignored[i] || sp.domains.Of[n.Slot] < 0
			}
		}
		if !ignored[i] {
			live++
		}
	}
	raw := make([]float64, len(feasible))
	for _, sp := range soft {
		perHost := sp.domains.Key == corev1.LabelHostname
		values := live
		var sum []int32
		if !perHost {
			present := make([]bool, sp.domains.N)
			values = 0
			for i, n := range feasible {
				if id := sp.domains.Of[n.Slot]; id >= 0 && !ignored[i] && !present[id] {
					present[id] = true
					values++
				}
			}
			sum = sp.domains.Sum(sp.counter.PerNode, sp.counted)
		}
		weight := math.Log(float64(values + 2))
		for i, n := range feasible {
			id := sp.domains.Of[n.Slot]
			if id < 0 || ignored[i] {
				continue
			}
			count := sp.counter.PerNode[n.Slot]
			if !perHost {
				count = sum[id]
			}
			raw[i] += float64(count)*weight + float64(sp.maxSkew-1)
		}
	}
	least, most := int64(math.MaxInt64), int64(0)
	for i := range feasible {
		if ignored[i] {
			continue
		}
		scores[i] = int64(math.Round(raw[i]))
		least, most = min(least, scores[i]), max(most, scores[i])
	}
	for i := range scores {
		switch {
		case ignored[i]:
			scores[i] = 0
		case most == 0:
			scores[i] = framework.MaxScore
		default:
			scores[i] = framework.MaxScore * (most + least - scores[i]) / most
		}
	}
}

// defaultSelector is what the default constraints count by: the selectors of the services that select the
// pod and of the controller that owns it, together. nil when there are none.
func defaultSelector(p *framework.Pod, s *framework.Snapshot) labels.Selector {
	together := labels.Set{}
	for key, sel := range s.Owners.Services {
		if key.Namespace == p.Namespace && len(sel) > 0 && sel.AsSelectorPreValidated().Matches(labels.Set(p.Labels)) {
			for k, v := range sel {
				together[k] = v
			}
		}
	}
	var out labels.Selector
	if len(together) > 0 {
		out = labels.NewSelector()
		if requirements, ok := together.AsSelector().Requirements(); ok {
			out = out.Add(requirements...)
		}
	}
	if owner := metav1.GetControllerOf(p.Pod); owner != nil {
		if sel := s.Owners.ByUID[types.UID(owner.UID)]; sel != nil {
			if requirements, ok := sel.Requirements(); ok && len(requirements) > 0 {
				if out == nil {
					out = labels.NewSelector()
				}
				out = out.Add(requirements...)
			}
		}
	}
	return out
}

func spreadMayChange(e *framework.Event, p *framework.Pod) bool {
	if e.Pod == nil || e.Kind&framework.AnyNode != 0 {
		return true
	}
	if e.Pod.Namespace != p.Namespace {
		return false
	}
	return e.Kind&framework.PodChanged != 0 || slices.ContainsFunc(p.Spec.TopologySpreadConstraints, func(c corev1.TopologySpreadConstraint) bool {
		of := framework.SpreadSelection(p.Pod, &c)
		return of.Labels.Matches(labels.Set(e.Pod.Labels))
	})
}
