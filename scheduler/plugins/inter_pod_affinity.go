package plugins

import (
	"math"
	"slices"

	"k8s.io/apimachinery/pkg/labels"

	"github.com/keelson/keelson/scheduler/framework"
)

var (
	affinityMissing    = final("InterPodAffinity", "node(s) didn't match pod affinity rules")
	antiAffinityBroken = open("InterPodAffinity", "node(s) didn't match pod anti-affinity rules")
	antiAffinityOthers = open("InterPodAffinity", "node(s) didn't satisfy existing pods anti-affinity rules")
)

// byDomain is a number for each domain of one topology key.
type byDomain struct {
	domains *framework.Domains
	sum     []int32
	matches func(q *framework.Pod) bool // whether q counts, for what-ifs
}

func (b *byDomain) at(slot int) int32 {
	if id := b.domains.Of[slot]; id >= 0 {
		return b.sum[id]
	}
	return 0
}

// interPodAffinity places pods near or away from others, by the pod's own terms and by those of the pods
// that are there: required anti-affinity and all preferences work in both directions.
func interPodAffinity(a *framework.Args, p *framework.Pod, s *framework.Snapshot, _ framework.Eligible) framework.Global {
	var out framework.Global
	var near, away, barred []byDomain
	var nearTotal int64
	selfNear := true

	if len(p.Affinity) > 0 {
		// A pod counts for affinity only when it matches all terms at once.
		of := make([]framework.Selection, len(p.Affinity))
		for i := range p.Affinity {
			of[i] = p.Affinity[i].Of
		}
		counter := s.Counts.Matching(of...)
		selfNear = counter.Matches(p, s)
		for i := range p.Affinity {
			d := s.Counts.Domains(p.Affinity[i].TopologyKey)
			b := byDomain{domains: d, sum: d.Sum(counter.PerNode, nil), matches: func(q *framework.Pod) bool { return counter.Matches(q, s) }}
			for _, n := range b.sum {
				nearTotal += int64(n)
			}
			near = append(near, b)
		}
	}
	for i := range p.AntiAffinity {
		t := &p.AntiAffinity[i]
		counter := s.Counts.Matching(t.Of)
		if d := s.Counts.Domains(t.TopologyKey); counter.Total > 0 || d != nil {
			away = append(away, byDomain{domains: d, sum: d.Sum(counter.PerNode, nil), matches: func(q *framework.Pod) bool { return counter.Matches(q, s) }})
		}
	}
	var owned []*framework.Owned
	s.Counts.OwnedBy(p, func(o *framework.Owned) { owned = append(owned, o) })
	for _, o := range owned {
		if o.Kind != framework.RequiresAntiAffinity {
			continue
		}
		d := s.Counts.Domains(o.Term.TopologyKey)
		key := o.Term.Key
		barred = append(barred, byDomain{domains: d, sum: d.Sum(o.PerNode, nil), matches: func(q *framework.Pod) bool {
			return slices.ContainsFunc(q.AntiAffinity, func(t framework.Term) bool { return t.Key == key })
		}})
	}
	if len(near)+len(away)+len(barred) > 0 {
		out.Filter = func(n *framework.Node) *framework.Refusal {
			found := true
			for i := range near {
				if near[i].domains.Of[n.Slot] < 0 {
					return affinityMissing
				}
				found = found && near[i].at(n.Slot) > 0
			}
			// The first of a group that wants to be together may go anywhere.
			if !found && !(nearTotal == 0 && selfNear) {
				return affinityMissing
			}
			for i := range away {
				if away[i].at(n.Slot) > 0 {
					return antiAffinityBroken
				}
			}
			for i := range barred {
				if barred[i].at(n.Slot) > 0 {
					return antiAffinityOthers
				}
			}
			return nil
		}
		out.Assume = func(slot int, q *framework.Pod, sign int32) {
			change := func(list []byDomain, total *int64) {
				for i := range list {
					if id := list[i].domains.Of[slot]; id >= 0 && list[i].matches(q) {
						list[i].sum[id] += sign
						*total += int64(sign)
					}
				}
			}
			var ignored int64
			change(near, &nearTotal)
			change(away, &ignored)
			change(barred, &ignored)
		}
	}
	out.Score = affinityScore(a, p, s, owned)
	return out
}

// affinityScore adds up weights: for each preferred term of the pod, those of the pods that match it in
// the node's domain; for each pod in the domain, those of its terms that the pod matches.
func affinityScore(a *framework.Args, p *framework.Pod, s *framework.Snapshot, owned []*framework.Owned) func([]*framework.Node, []int64) {
	type part struct {
		domains *framework.Domains
		sum     []int32
		weight  int64
	}
	var parts []part
	for sign, terms := range map[int64][]framework.Term{1: p.PreferredAffinity, -1: p.PreferredAntiAffinity} {
		for i := range terms {
			counter := s.Counts.Matching(terms[i].Of)
			if counter.Total == 0 {
				continue
			}
			d := s.Counts.Domains(terms[i].TopologyKey)
			parts = append(parts, part{d, d.Sum(counter.PerNode, nil), sign * terms[i].Weight})
		}
	}
	prefers := len(p.PreferredAffinity)+len(p.PreferredAntiAffinity) > 0
	if prefers || !a.IgnorePreferredTermsOfExistingPods {
		for _, o := range owned {
			weight := o.Term.Weight
			switch o.Kind {
			case framework.RequiresAffinity:
				weight = a.HardPodAffinityWeight
			case framework.PrefersAntiAffinity:
				weight = -weight
			case framework.RequiresAntiAffinity:
				weight = 0
			}
			if weight != 0 {
				d := s.Counts.Domains(o.Term.TopologyKey)
				parts = append(parts, part{d, d.Sum(o.PerNode, nil), weight})
			}
		}
	}
	if len(parts) == 0 {
		return nil
	}
	return func(feasible []*framework.Node, scores []int64) {
		least, most := int64(math.MaxInt64), int64(math.MinInt64)
		for i, n := range feasible {
			var sum int64
			for _, pt := range parts {
				if id := pt.domains.Of[n.Slot]; id >= 0 {
					sum += int64(pt.sum[id]) * pt.weight
				}
			}
			scores[i] = sum
			least, most = min(least, sum), max(most, sum)
		}
		for i := range scores {
			if most == least {
				scores[i] = 0
				continue
			}
			scores[i] = int64(framework.MaxScore * (float64(scores[i]-least) / float64(most-least)))
		}
	}
}

func affinityMayChange(e *framework.Event, p *framework.Pod) bool {
	if e.Pod == nil || e.Kind&(framework.AnyNode|framework.NamespaceChanged) != 0 {
		return true
	}
	matches := func(terms []framework.Term, labelsOf *framework.Pod) bool {
		return slices.ContainsFunc(terms, func(t framework.Term) bool { return t.Of.Labels.Matches(labels.Set(labelsOf.Labels)) })
	}
	switch {
	case e.Kind&framework.PodChanged != 0:
		return true
	case e.Kind&framework.PodPlaced != 0:
		return matches(p.Affinity, e.Pod)
	}
	return matches(p.AntiAffinity, e.Pod) || matches(e.Pod.AntiAffinity, p)
}
