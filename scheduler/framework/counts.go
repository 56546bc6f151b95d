package framework

import (
	"k8s.io/apimachinery/pkg/labels"
)

// maxCounters bounds the counts kept for selections; the one that was not asked for longest goes first.
const maxCounters = 512

// Counts knows how many pods match a selection, or carry an affinity term, on each node. It is kept by
// adding and subtracting one pod at a time; only the first question about a selection looks at all pods.
//
// Sums over a topology domain are made by the caller over Domains: one addition a node.
type Counts struct {
	s       *Snapshot
	domains map[string]*Domains
	tick    uint64

	matching map[string]*Counter
	byNeed   map[string]map[*Counter]struct{} // Selection.needs → counters; "" has those without

	owned       map[string]*Owned
	ownedByNeed map[string]map[*Owned]struct{}
}

// Domains gives each value of a topology key a small number.
type Domains struct {
	Key string
	Of  []int32 // by slot; -1 for a node without the key
	N   int     // numbers given so far, also to values that no node has any more
	ids map[string]int32
}

// Counter counts the pods that match Of (all of them, when there are several) on each node.
type Counter struct {
	Of      []Selection
	PerNode []int32 // by slot
	Total   int64
	used    uint64
}

// OwnedKind is in which way a pod carries a term.
type OwnedKind uint8

// The ways.
const (
	RequiresAffinity OwnedKind = iota
	RequiresAntiAffinity
	PrefersAffinity
	PrefersAntiAffinity
)

// Owned counts the pods that carry one term, on each node.
type Owned struct {
	Kind    OwnedKind
	Term    Term
	PerNode []int32
	Total   int64
}

func newCounts(s *Snapshot) *Counts {
	return &Counts{
		s: s, domains: map[string]*Domains{},
		matching: map[string]*Counter{}, byNeed: map[string]map[*Counter]struct{}{},
		owned: map[string]*Owned{}, ownedByNeed: map[string]map[*Owned]struct{}{},
	}
}

// Domains of a topology key.
func (c *Counts) Domains(key string) *Domains {
	d := c.domains[key]
	if d == nil {
		d = &Domains{Key: key, ids: map[string]int32{}}
		c.domains[key] = d
		for _, n := range c.s.Nodes {
			if n != nil {
				d.place(n)
			}
		}
	}
	for len(d.Of) < len(c.s.Nodes) {
		d.Of = append(d.Of, -1)
	}
	return d
}

func (d *Domains) place(n *Node) {
	for len(d.Of) <= n.Slot {
		d.Of = append(d.Of, -1)
	}
	v, ok := n.Labels[d.Key]
	if !ok {
		d.Of[n.Slot] = -1
		return
	}
	id, known := d.ids[v]
	if !known {
		id = int32(d.N)
		d.ids[v] = id
		d.N++
	}
	d.Of[n.Slot] = id
}

func (c *Counts) placeNode(n *Node) {
	for _, d := range c.domains {
		d.place(n)
	}
}

func (c *Counts) removeNode(slot int) {
	for _, d := range c.domains {
		if slot < len(d.Of) {
			d.Of[slot] = -1
		}
	}
}

// grown is perNode made long enough for every slot.
func (c *Counts) grown(perNode []int32) []int32 {
	for len(perNode) < len(c.s.Nodes) {
		perNode = append(perNode, 0)
	}
	return perNode
}

// Matching counts pods that match every one of the selections.
func (c *Counts) Matching(of ...Selection) *Counter {
	key := of[0].Key
	for _, s := range of[1:] {
		key += "\x01" + s.Key
	}
	c.tick++
	k := c.matching[key]
	if k == nil {
		k = &Counter{Of: of}
		c.count(k)
		c.evict()
		c.matching[key] = k
		need := of[0].needs
		if c.byNeed[need] == nil {
			c.byNeed[need] = map[*Counter]struct{}{}
		}
		c.byNeed[need][k] = struct{}{}
	}
	k.used = c.tick
	k.PerNode = c.grown(k.PerNode)
	return k
}

func (c *Counts) evict() {
	if len(c.matching) < maxCounters {
		return
	}
	var oldest string
	var least *Counter
	for key, k := range c.matching {
		if least == nil || k.used < least.used {
			oldest, least = key, k
		}
	}
	c.forget(oldest, least)
}

func (c *Counts) forget(key string, k *Counter) {
	delete(c.matching, key)
	need := k.Of[0].needs
	delete(c.byNeed[need], k)
	if len(c.byNeed[need]) == 0 {
		delete(c.byNeed, need)
	}
}

func (c *Counts) count(k *Counter) {
	k.PerNode, k.Total = c.grown(k.PerNode[:0]), 0
	clear(k.PerNode)
	for slot, n := range c.s.Nodes {
		if n == nil {
			continue
		}
		for _, p := range n.Pods {
			if k.matches(p, c.s.NamespaceLabels) {
				k.PerNode[slot]++
				k.Total++
			}
		}
	}
}

func (k *Counter) matches(p *Pod, namespaces func(string) labels.Set) bool {
	for i := range k.Of {
		if !k.Of[i].Matches(p.Pod, namespaces) {
			return false
		}
	}
	return true
}

// Matches tells whether the counter would count p.
func (k *Counter) Matches(p *Pod, s *Snapshot) bool { return k.matches(p, s.NamespaceLabels) }

// PodPlaced is told of each pod that comes onto (sign 1) or leaves (-1) the node in slot.
func (c *Counts) PodPlaced(slot int, p *Pod, sign int32) {
	see := func(k *Counter) {
		if k.matches(p, c.s.NamespaceLabels) {
			k.PerNode = c.grown(k.PerNode)
			k.PerNode[slot] += sign
			k.Total += int64(sign)
		}
	}
	if len(c.matching) > 0 {
		for k := range c.byNeed[""] {
			see(k)
		}
		for key, value := range p.Labels {
			for k := range c.byNeed[key+"="+value] {
				see(k)
			}
		}
	}
	c.carry(slot, p.Affinity, RequiresAffinity, sign)
	c.carry(slot, p.AntiAffinity, RequiresAntiAffinity, sign)
	c.carry(slot, p.PreferredAffinity, PrefersAffinity, sign)
	c.carry(slot, p.PreferredAntiAffinity, PrefersAntiAffinity, sign)
}

func (c *Counts) carry(slot int, terms []Term, kind OwnedKind, sign int32) {
	for i := range terms {
		t := &terms[i]
		key := string(rune('0'+kind)) + t.Key
		o := c.owned[key]
		if o == nil {
			o = &Owned{Kind: kind, Term: *t}
			c.owned[key] = o
			need := t.Of.needs
			if c.ownedByNeed[need] == nil {
				c.ownedByNeed[need] = map[*Owned]struct{}{}
			}
			c.ownedByNeed[need][o] = struct{}{}
		}
		o.PerNode = c.grown(o.PerNode)
		o.PerNode[slot] += sign
		if o.Total += int64(sign); o.Total == 0 {
			delete(c.owned, key)
			delete(c.ownedByNeed[t.Of.needs], o)
			if len(c.ownedByNeed[t.Of.needs]) == 0 {
				delete(c.ownedByNeed, t.Of.needs)
			}
		}
	}
}

// OwnedBy calls f for each term of the pods on nodes that p matches.
func (c *Counts) OwnedBy(p *Pod, f func(*Owned)) {
	if len(c.owned) == 0 {
		return
	}
	see := func(o *Owned) {
		if o.Term.Of.Matches(p.Pod, c.s.NamespaceLabels) {
			o.PerNode = c.grown(o.PerNode)
			f(o)
		}
	}
	for o := range c.ownedByNeed[""] {
		see(o)
	}
	for key, value := range p.Labels {
		for o := range c.ownedByNeed[key+"="+value] {
			see(o)
		}
	}
}

// NamespaceChanged makes the counts that select namespaces by label be made anew when next asked for.
func (c *Counts) NamespaceChanged() {
	for key, k := range c.matching {
		for i := range k.Of {
			if k.Of[i].Among != nil {
				c.forget(key, k)
				break
			}
		}
	}
}

// Sum adds perNode up by domain, over the nodes that counted admits (nil: all).
func (d *Domains) Sum(perNode []int32, counted func(slot int) bool) []int32 {
	sum := make([]int32, d.N)
	for slot, n := range perNode {
		if n == 0 || slot >= len(d.Of) {
			continue
		}
		if id := d.Of[slot]; id >= 0 && (counted == nil || counted(slot)) {
			sum[id] += n
		}
	}
	return sum
}
