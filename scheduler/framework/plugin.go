// Package framework is the contract between the scheduler's parts: what a plugin is, which phases it
// takes part in and what its answers mean, and the snapshot that it reads.
//
// The main types are [Plugin], [Pod], [Node] and [Snapshot]. A pod goes through the phases in this
// order; each phase asks the plugins in the order of the table in package plugins:
//
//	Gate     before the pod may enter the active queue                   pod
//	Local    once for each class of pods: refusals and scores that       class, one node
//	         depend on the class and one node; kept until that node's
//	         generation moves
//	Global   once for each pod: refusals and scores that depend on       pod, whole snapshot
//	         where other pods are
//	Wakes    which events could turn the plugin's refusal into a yes     event, pod
//
// Everything here and in the plugins is pure: no clock, no randomness, no goroutine, no log. A refusal
// explains itself in the words that users know from upstream's scheduler. Counts over pods (matching a
// selector, carrying a term) are kept incrementally, see [Counts]; the naive twin in the tests of
// package cache recomputes them by a scan and must agree.
//
// To add a plugin: one file and one row in package plugins.
package framework

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// MaxScore is the best score of a node from one plugin, after Normalize, before its weight.
const MaxScore = 100

// Refusal is why a node (or every node) cannot take a pod.
type Refusal struct {
	Plugin  string
	Reasons []string
	// Final means that removing pods from the node would not help: preemption leaves it out.
	Final bool
}

func (r *Refusal) String() string { return r.Plugin + ": " + strings.Join(r.Reasons, ", ") }

// Local is a plugin's part in what depends on a class of pods and one node alone. Nil functions are not
// called. Only what package framework's class covers of a pod may be read to build it.
type Local struct {
	// Filter refuses a node, or gives nil.
	Filter func(n *Node) *Refusal
	// Score is from 0 to MaxScore, unless Normalize is set.
	Score func(n *Node) int64
	// Normalize turns the raw scores of the feasible nodes into 0 to MaxScore. It is called only when
	// best, the highest of them, is not 0; with best 0 every node has the score of Normalize(0, 0).
	Normalize func(raw, best int64) int64
	// Only, when not nil, are the names of the only nodes that can be meant.
	Only []string
}

// Global is a plugin's part in what depends on the rest of the cluster.
type Global struct {
	// Refuse, when set, holds for every node.
	Refuse *Refusal
	Filter func(n *Node) *Refusal
	// Score fills scores[i], 0 to MaxScore, for each of the feasible nodes.
	Score func(feasible []*Node, scores []int64)
	// Assume makes Filter answer as if p were (sign 1) or were not (-1) on the node: preemption asks "what if".
	Assume func(slot int, p *Pod, sign int32)
}

// Eligible tells of each node, by slot, what inclusion policies of spread constraints ask.
type Eligible struct {
	// Flags has AffinityMatches and TaintsTolerated bits.
	Flags []uint8
}

// The bits of Eligible.
const (
	AffinityMatches uint8 = 1 << iota
	TaintsTolerated
)

// Args are the settings that plugins have.
type Args struct {
	// HardPodAffinityWeight is the score that a required affinity term of a pod on the node gives to a pod that matches it.
	HardPodAffinityWeight int64
	// DefaultConstraints are spread constraints for pods without own ones; nil: the system's own (zone and host, soft).
	DefaultConstraints []corev1.TopologySpreadConstraint
	DefaultingType     string // "System" or "List"
	// IgnorePreferredTermsOfExistingPods leaves other pods' preferences out.
	IgnorePreferredTermsOfExistingPods bool
}

// Plugin is one row of the table.
type Plugin struct {
	Name   string
	Weight int64 // of its scores; 0: it has none
	// Gate keeps a pod out of the queue: the message says what it waits for, "" lets it in.
	Gate   func(p *corev1.Pod) string
	Local  func(a *Args, p *Pod) Local
	Global func(a *Args, p *Pod, s *Snapshot, e Eligible) Global
	// Events that may turn a refusal into a yes, and a closer look at one of them; nil: any of them may.
	Events EventKinds
	Wakes  func(e *Event, p *Pod) bool
}

// EventKinds is a set of kinds of events.
type EventKinds uint32

// The kinds.
const (
	NodeAdded EventKinds = 1 << iota
	NodeAllocatable
	NodeLabels
	NodeTaints   // also spec.unschedulable
	NodeFeatures // what the node declares that it can do
	PodPlaced    // a pod came onto a node
	PodChanged   // labels or resources of a pod on a node
	PodGone      // a pod left a node
	StorageChanged
	NamespaceChanged
	PodItself // the waiting pod's own spec
	AnyNode   = NodeAdded | NodeAllocatable | NodeLabels | NodeTaints | NodeFeatures
)

// Kinds is how many kinds there are.
const Kinds = 11

// Event is something that happened in the cluster.
type Event struct {
	Kind EventKinds // one or, for a node update, several
	Node *Node      // the node's new state, for kinds of nodes and pods
	Pod  *Pod       // the pod that came, changed or went
}

var kindNames = [Kinds]string{"NodeAdded", "NodeAllocatable", "NodeLabels", "NodeTaints", "NodeFeatures", "PodPlaced", "PodChanged", "PodGone", "StorageChanged", "NamespaceChanged", "PodItself"}

func (k EventKinds) String() string {
	var out []string
	for i, name := range kindNames {
		if k&(1<<i) != 0 {
			out = append(out, name)
		}
	}
	return strings.Join(out, "|")
}

// KindsOf reads the form that String writes.
func KindsOf(s string) (EventKinds, error) {
	var out EventKinds
next:
	for word := range strings.SplitSeq(s, "|") {
		for i, name := range kindNames {
			if name == word {
				out |= 1 << i
				continue next
			}
		}
		return 0, fmt.Errorf("no event kind %q", word)
	}
	return out, nil
}

// VolumeChoice is what binding a pod's claims on a node needs to be written first.
type VolumeChoice struct {
	Claim types.NamespacedName
	// Volume is the existing volume to bind; empty: the provisioner is asked to make one for the node.
	Volume string
}
