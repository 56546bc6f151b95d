// Package cycle decides where a pod goes: a snapshot, a pod and a seed in; a node, or the reasons why
// there is none and what could be evicted, out.
//
// The main call is [Cycle.Decide].
//
// It promises: the same snapshot, pod and seed give the same answer; the node is one that no plugin
// refuses, with the highest weighted sum of scores, and of several such nodes the seed picks one; every
// node is looked at (there is no sampling); the message of a refusal counts each node's reasons in
// upstream's words. It changes nothing but its own memory and what package framework counts on demand.
//
// What makes it fast: pods of one class (equal in all that node-local phases read) share a memory of
// each node's refusal and score, which is renewed only for nodes whose generation has moved. After a pod
// has been placed that is one node. What depends on other pods is asked anew for each pod, from counts
// kept by node; a decision among 5,000 nodes is a few passes over arrays of numbers.
//
// A Cycle belongs to one goroutine. To debug, use the "plan" command of the scheduler; to test, use
// package schedtest's snapshots.
package cycle

import (
	"fmt"
	"slices"
	"strings"

	"github.com/keelson/keelson/scheduler/framework"
	"github.com/keelson/keelson/scheduler/plugins"
)

// maxClasses bounds the classes remembered; the one not used for longest is forgotten.
const maxClasses = 256

// Cycle remembers classes between decisions. Made by New.
type Cycle struct {
	table   []framework.Plugin
	args    framework.Args
	classes map[string]*class
	tick    uint64

	// scratch, reused by each decision
	feasible []*framework.Node
	refusals []*framework.Refusal // by slot
	totals   []int64
	scores   []int64
	globals  []active

	// Lap, when set, is called at the end of each phase of a decision: who has a clock can time them.
	Lap func(Phase)

	spare    class  // arrays for classes that are not remembered
	borrowed *class // who has them
}

// Phase is a part of a decision, with upstream's name. Filter runs in two parts, and asks each node's own
// scores on the way.
type Phase uint8

// The phases.
const (
	PreFilter Phase = iota
	Filter
	Score
	PostFilter
	Phases
)

func (p Phase) String() string { return [...]string{"PreFilter", "Filter", "Score", "PostFilter"}[p] }

func (c *Cycle) lap(p Phase) {
	if c.Lap != nil {
		c.Lap(p)
	}
}

// Outcome is what a decision came to. Exactly one of Node and Message is set.
type Outcome struct {
	Node *framework.Node
	// Volumes have to be written before the pod is bound to Node.
	Volumes  []framework.VolumeChoice
	Feasible int // number of nodes that could have been chosen

	// Message is why no node was found, in upstream's words.
	Message string
	// Refusers are the names of the plugins whose events could help.
	Refusers []string
	// Preempt, when not nil, makes room.
	Preempt *Preemption
}

// Preemption is what to evict so that the pod will fit on Node.
type Preemption struct {
	Node          *framework.Node
	Victims       []*framework.Pod
	PDBViolations int
}

// New makes a cycle over a table of plugins, usually plugins.Table.
func New(table []framework.Plugin, args framework.Args) *Cycle {
	return &Cycle{table: table, args: args, classes: map[string]*class{}}
}

// class is what is known of the pods of one class.
type class struct {
	used    uint64
	locals  []local
	only    []string // the only nodes that can be meant, when restricted
	names   []string // the plugins that restrict
	limited bool

	generations []uint64 // by slot: of the node when the rest was worked out; 0: never
	refusals    []*framework.Refusal
	base        []int64 // weighted sum of the scores that need no other node
	flags       []uint8 // framework.Eligible
}

type local struct {
	plugin *framework.Plugin
	framework.Local
	raw []int64 // by slot, for a plugin with Normalize
}

// active is a plugin with a global part for the pod at hand.
type active struct {
	plugin *framework.Plugin
	framework.Global
}

func (c *Cycle) class(p *framework.Pod) *class {
	c.tick++
	k := c.classes[p.Class]
	if b := c.borrowed; b != nil {
		c.spare.generations, c.spare.refusals, c.spare.base, c.spare.flags = b.generations, b.refusals, b.base, b.flags
		c.borrowed = nil
	}
	if k == nil || p.Class == "" {
		if len(c.classes) >= maxClasses {
			c.evict()
		}
		k = &class{}
		for i := range c.table {
			pl := &c.table[i]
			if pl.Local == nil {
				continue
			}
			l := pl.Local(&c.args, p)
			if l.Only != nil {
				k.restrict(l.Only, pl.Name)
			}
			if l.Filter != nil || l.Score != nil {
				k.locals = append(k.locals, local{plugin: pl, Local: l})
			}
		}
		if k.limited {
			// Every pod of a DaemonSet is a class of its own: nothing to remember, and one set of arrays serves all.
			sp := &c.spare
			clear(sp.generations)
			k.generations, k.refusals, k.base, k.flags = sp.generations, sp.refusals, sp.base, sp.flags
			c.borrowed = k
			return k
		}
		c.classes[p.Class] = k
	}
	k.used = c.tick
	return k
}

func (k *class) restrict(only []string, plugin string) {
	k.names = append(k.names, plugin)
	if !k.limited {
		k.only, k.limited = only, true
		return
	}
	k.only = slices.DeleteFunc(slices.Clone(k.only), func(n string) bool { return !slices.Contains(only, n) })
}

func (c *Cycle) evict() {
	var oldest string
	least := c.tick + 1
	for key, k := range c.classes {
		if k.used < least {
			oldest, least = key, k.used
		}
	}
	delete(c.classes, oldest)
}

// renew works out the class anew for the nodes that have changed. slots limits it; nil means all.
func (k *class) renew(s *framework.Snapshot, p *framework.Pod, slots []int) {
	for len(k.generations) < len(s.Nodes) {
		k.generations = append(k.generations, 0)
		k.refusals = append(k.refusals, nil)
		k.base = append(k.base, 0)
		k.flags = append(k.flags, 0)
	}
	for i := range k.locals {
		if l := &k.locals[i]; l.Normalize != nil {
			for len(l.raw) < len(s.Nodes) {
				l.raw = append(l.raw, 0)
			}
		}
	}
	if slots != nil {
		for _, slot := range slots {
			if k.generations[slot] != s.Generations[slot] {
				k.look(s, p, slot)
			}
		}
		return
	}
	for slot, g := range s.Generations {
		if k.generations[slot] != g {
			k.look(s, p, slot)
		}
	}
}

func (k *class) look(s *framework.Snapshot, p *framework.Pod, slot int) {
	n := s.Nodes[slot]
	k.generations[slot] = s.Generations[slot]
	if n == nil {
		return
	}
	n = n.Facing(p)
	k.refusals[slot], k.base[slot] = k.filter(n), 0
	k.flags[slot] = framework.AffinityMatches
	for i := range k.locals {
		if l := &k.locals[i]; l.plugin.Name == "NodeAffinity" && l.Filter != nil && l.Filter(n) != nil {
			k.flags[slot] = 0
		}
	}
	if plugins.TaintsTolerated(p.Spec.Tolerations, n.Spec.Taints) {
		k.flags[slot] |= framework.TaintsTolerated
	}
	if k.refusals[slot] != nil {
		return
	}
	for i := range k.locals {
		switch l := &k.locals[i]; {
		case l.Score == nil:
		case l.Normalize != nil:
			l.raw[slot] = l.Score(n)
		default:
			k.base[slot] += l.plugin.Weight * l.Score(n)
		}
	}
}

// filter gives the first refusal of a node by the node-local phases.
func (k *class) filter(n *framework.Node) *framework.Refusal {
	for i := range k.locals {
		if f := k.locals[i].Filter; f != nil {
			if r := f(n); r != nil {
				return r
			}
		}
	}
	return nil
}

// Decide says where p goes. pdbs and preemption are looked at only when no node is found.
func (c *Cycle) Decide(s *framework.Snapshot, p *framework.Pod, seed uint64) Outcome {
	if s.Live == 0 {
		return Outcome{Message: "no nodes available to schedule pods"}
	}
	k := c.class(p)
	slots := k.slots(s)
	k.renew(s, p, slots)
	c.lap(Filter)
	refusal := c.prepare(k, s, p)
	c.lap(PreFilter)
	if refusal != nil {
		return Outcome{
			Message:  fmt.Sprintf("0/%d nodes are available: %s. preemption: 0/%d nodes are available: %d Preemption is not helpful for scheduling.", s.Live, strings.Join(refusal.Reasons, ", "), s.Live, s.Live),
			Refusers: []string{refusal.Plugin},
		}
	}
	if n := c.nominated(k, s, p); n != nil {
		return Outcome{Node: n, Feasible: 1, Volumes: plugins.Choose(p, s, n)}
	}
	c.filter(k, s, slots)
	c.lap(Filter)
	if len(c.feasible) == 0 {
		out := c.explain(k, s, p, slots, seed)
		c.lap(PostFilter)
		return out
	}
	n := c.pick(k, seed)
	c.lap(Score)
	return Outcome{Node: n, Feasible: len(c.feasible), Volumes: plugins.Choose(p, s, n)}
}

// slots are the only nodes to look at, nil for all.
func (k *class) slots(s *framework.Snapshot) []int {
	if !k.limited {
		return nil
	}
	out := []int{}
	for _, name := range k.only {
		if slot, ok := s.ByName[name]; ok && !slices.Contains(out, slot) {
			out = append(out, slot)
		}
	}
	slices.Sort(out)
	return out
}

// prepare asks the plugins for their global parts. A refusal holds for every node.
func (c *Cycle) prepare(k *class, s *framework.Snapshot, p *framework.Pod) *framework.Refusal {
	c.globals = c.globals[:0]
	for i := range c.table {
		pl := &c.table[i]
		if pl.Global == nil {
			continue
		}
		if k.limited && len(p.Spec.TopologySpreadConstraints) > 0 {
			k.renew(s, p, nil) // counts by domain look at every node
		}
		g := pl.Global(&c.args, p, s, framework.Eligible{Flags: k.flags})
		if g.Refuse != nil {
			return g.Refuse
		}
		if g.Filter != nil || g.Score != nil {
			c.globals = append(c.globals, active{pl, g})
		}
	}
	return nil
}

// nominated is the node that room was made on, if the pod fits there now.
func (c *Cycle) nominated(k *class, s *framework.Snapshot, p *framework.Pod) *framework.Node {
	name := p.Status.NominatedNodeName
	if name == "" {
		return nil
	}
	n := s.Node(name)
	if n == nil || k.filter(n.Facing(p)) != nil || c.refuse(n) != nil {
		return nil
	}
	return n
}

// refuse gives the first refusal of a node by the global phases.
func (c *Cycle) refuse(n *framework.Node) *framework.Refusal {
	for i := range c.globals {
		if f := c.globals[i].Filter; f != nil {
			if r := f(n); r != nil {
				return r
			}
		}
	}
	return nil
}

// filter fills feasible and refusals.
func (c *Cycle) filter(k *class, s *framework.Snapshot, slots []int) {
	c.feasible = c.feasible[:0]
	if len(c.refusals) < len(s.Nodes) {
		c.refusals = make([]*framework.Refusal, len(s.Nodes)+len(s.Nodes)/4)
	}
	filters := false
	for i := range c.globals {
		filters = filters || c.globals[i].Filter != nil
	}
	one := func(slot int, n *framework.Node) {
		r := k.refusals[slot]
		if r == nil && filters {
			r = c.refuse(n)
		}
		c.refusals[slot] = r
		if r == nil {
			c.feasible = append(c.feasible, n)
		}
	}
	if slots != nil {
		for _, slot := range slots {
			one(slot, s.Nodes[slot])
		}
		return
	}
	for slot, n := range s.Nodes {
		if n != nil {
			one(slot, n)
		}
	}
}

// pick gives the feasible node with the highest score.
func (c *Cycle) pick(k *class, seed uint64) *framework.Node {
	if len(c.feasible) == 1 {
		return c.feasible[0]
	}
	if cap(c.totals) < len(c.feasible) {
		c.totals, c.scores = make([]int64, 2*len(c.feasible)), make([]int64, 2*len(c.feasible))
	}
	totals := c.totals[:len(c.feasible)]
	for i, n := range c.feasible {
		totals[i] = k.base[n.Slot]
	}
	for i := range k.locals {
		l := &k.locals[i]
		if l.Normalize == nil {
			continue
		}
		var best int64
		for _, n := range c.feasible {
			best = max(best, l.raw[n.Slot])
		}
		if best == 0 {
			continue // the same for every node
		}
		for j, n := range c.feasible {
			totals[j] += l.plugin.Weight * l.Normalize(l.raw[n.Slot], best)
		}
	}
	for i := range c.globals {
		g := &c.globals[i]
		if g.Score == nil {
			continue
		}
		scores := c.scores[:len(c.feasible)]
		clear(scores)
		g.Score(c.feasible, scores)
		for j := range totals {
			totals[j] += g.plugin.Weight * scores[j]
		}
	}
	best, ties := totals[0], uint64(0)
	for _, t := range totals {
		switch {
		case t > best:
			best, ties = t, 1
		case t == best:
			ties++
		}
	}
	nth := mix(seed) % ties
	for i, t := range totals {
		if t == best {
			if nth == 0 {
				return c.feasible[i]
			}
			nth--
		}
	}
	panic("cycle: the best node has been lost")
}

// mix spreads the bits of a seed (splitmix64), so that counting seeds give scattered choices.
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
