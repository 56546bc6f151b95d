package framework

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

func quantity(n int64, exponent int32) *resource.Quantity {
	return resource.NewScaledQuantity(n, resource.Scale(exponent))
}

// Node is a node with the pods on it. A published Node is never changed: every change makes a new one
// with a higher Generation, so that whoever holds a Node may keep it.
type Node struct {
	*corev1.Node
	Slot       int    // its index in the snapshot, the same for the node's whole life
	Generation uint64 // of the whole cluster's changes, the number of the last one that concerned this node

	Pods []*Pod
	// Nominated are pods without a node for whom others make room here.
	Nominated []*Pod

	Allocatable, Requested Amounts
	Scored                 Amounts // sum of the pods' Scored
	Images                 map[string]int64
	hostPorts              int // ports that the pods take
}

// NewNode is an empty node.
func NewNode(n *corev1.Node, slot int) *Node {
	out := &Node{Node: n, Slot: slot}
	out.observe()
	return out
}

func (n *Node) observe() {
	n.Allocatable = amounts(n.Node.Status.Allocatable)
	n.Images = nil
	for _, image := range n.Node.Status.Images {
		if n.Images == nil {
			n.Images = map[string]int64{}
		}
		for _, name := range image.Names {
			n.Images[name] = image.SizeBytes
		}
	}
}

// Renewed is a copy with the node's new state and the same pods.
func (n *Node) Renewed(node *corev1.Node) *Node {
	out := *n
	out.Node = node
	out.observe()
	return &out
}

// With is a copy with one more pod.
func (n *Node) With(p *Pod) *Node {
	out := *n
	out.Pods = make([]*Pod, 0, len(n.Pods)+1)
	out.Pods = append(append(out.Pods, n.Pods...), p)
	out.count(p, 1)
	return &out
}

// Without is a copy without the pod of this UID, or n itself when it is not there.
func (n *Node) Without(p *Pod) *Node {
	i := slices.IndexFunc(n.Pods, func(q *Pod) bool { return q.UID == p.UID })
	if i < 0 {
		return n
	}
	out := *n
	out.Pods = make([]*Pod, 0, len(n.Pods))
	out.Pods = append(append(out.Pods, n.Pods[:i]...), n.Pods[i+1:]...)
	out.count(n.Pods[i], -1)
	return &out
}

// Nominating is a copy with these nominated pods.
func (n *Node) Nominating(pods []*Pod) *Node {
	out := *n
	out.Nominated = pods
	return &out
}

// Facing is the node as a pod has to see it: with the pods on it that are nominated for it and whose
// priority is not lower.
func (n *Node) Facing(p *Pod) *Node {
	out := n
	for _, q := range n.Nominated {
		if q.Priority >= p.Priority && q.UID != p.UID {
			out = out.With(q)
		}
	}
	return out
}

func (n *Node) count(p *Pod, sign int64) {
	n.Requested.add(p.Requests, sign)
	n.Scored.add(p.Scored, sign)
	n.hostPorts += int(sign) * len(p.Ports)
}

// PortTaken tells whether a pod on the node has a port that conflicts with one of these.
func (n *Node) PortTaken(ports []HostPort) bool {
	if n.hostPorts == 0 || len(ports) == 0 {
		return false
	}
	for _, p := range n.Pods {
		for _, taken := range p.Ports {
			for _, want := range ports {
				if want.Conflicts(taken) {
					return true
				}
			}
		}
	}
	return false
}
