// Package cache keeps the scheduler's picture of the cluster: nodes with the pods on them, pods that are
// on their way to a node, and the objects that rules refer to.
//
// The main calls are the Set and Remove methods, one for each kind, [Cache.Assume], [Cache.Forget] and
// [Cache.Snapshot]. Each change gives the event that the queue is to be woken with.
//
//	                Assume                      SetPod with the node (the API's word)
//	unknown ───────────────────────► assumed ───────────────────────► placed
//	   ▲  └──────────── SetPod ─────────────────────────────────────────▲ │
//	   └─── Forget (the bind failed) ───┘                     RemovePod │ │ SetPod
//	   └────────────────────────────────────────────────────────────────┘ ┘
//
// It promises: a snapshot shows assumed pods on their nodes at once, so that the next decision counts
// them; Nodes in it are never changed, only replaced with a higher generation; a pod whose node is not
// known is kept aside until the node comes. An assumed pod stays until the API confirms it, removes it,
// or the binder calls Forget: it does not run out.
//
// Invariants: assumed ⊆ pods; every pod in pods is on the node of its spec.nodeName, or aside when that
// node is not known. Check verifies them, and the incremental counts against a scan.
//
// A Cache belongs to one goroutine.
package cache

import (
	"fmt"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	storagev1 "k8s.io/api/storage/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"github.com/keelson/keelson/scheduler/framework"
)

// Cache is made by New.
type Cache struct {
	s          *framework.Snapshot
	generation uint64
	free       []int // slots of nodes that have gone

	pods      map[types.UID]*framework.Pod // placed and assumed pods
	assumed   map[types.UID]struct{}
	aside     map[string]map[types.UID]*framework.Pod // pods of nodes that are not known
	nominated map[types.UID]nomination
}

type nomination struct {
	pod  *framework.Pod
	node string
}

// New makes an empty cache.
func New() *Cache {
	return &Cache{
		s: framework.NewSnapshot(), pods: map[types.UID]*framework.Pod{}, assumed: map[types.UID]struct{}{},
		aside: map[string]map[types.UID]*framework.Pod{}, nominated: map[types.UID]nomination{},
	}
}

// Snapshot is the present picture. It is valid until the next change; its Nodes for ever.
func (c *Cache) Snapshot() *framework.Snapshot { return c.s }

func (c *Cache) put(n *framework.Node) {
	c.generation++
	c.s.Put(n, c.generation)
}

// SetNode takes in a node's new state. It gives no event when nothing changed that counts.
func (c *Cache) SetNode(n *corev1.Node) framework.Event {
	old := c.s.Node(n.Name)
	if old == nil {
		slot := len(c.s.Nodes)
		if k := len(c.free); k > 0 {
			slot, c.free = c.free[k-1], c.free[:k-1]
		}
		node := framework.NewNode(n, slot)
		c.put(node)
		for _, p := range c.aside[n.Name] {
			c.onto(p, 1)
		}
		delete(c.aside, n.Name)
		c.renominate(n.Name)
		return framework.Event{Kind: framework.NodeAdded, Node: c.s.Node(n.Name)}
	}
	var kind framework.EventKinds
	if !apiequality.Semantic.DeepEqual(old.Node.Status.Allocatable, n.Status.Allocatable) {
		kind |= framework.NodeAllocatable
	}
	if !maps.Equal(old.Node.Labels, n.Labels) {
		kind |= framework.NodeLabels
	}
	if old.Spec.Unschedulable != n.Spec.Unschedulable || !slices.EqualFunc(old.Spec.Taints, n.Spec.Taints, func(a, b corev1.Taint) bool { return a.MatchTaint(&b) && a.Value == b.Value }) {
		kind |= framework.NodeTaints
	}
	if !slices.Equal(old.Node.Status.DeclaredFeatures, n.Status.DeclaredFeatures) {
		kind |= framework.NodeFeatures
	}
	if kind == 0 && slices.EqualFunc(old.Node.Status.Images, n.Status.Images, func(a, b corev1.ContainerImage) bool {
		return a.SizeBytes == b.SizeBytes && slices.Equal(a.Names, b.Names)
	}) {
		return framework.Event{} // a heartbeat: nothing that a decision reads
	}
	c.put(old.Renewed(n))
	return framework.Event{Kind: kind, Node: c.s.Node(n.Name)}
}

// RemoveNode forgets a node; its pods are kept aside until the API removes them.
func (c *Cache) RemoveNode(name string) {
	n := c.s.Node(name)
	if n == nil {
		return
	}
	for _, p := range n.Pods {
		c.s.Counts.PodPlaced(n.Slot, p, -1)
		c.setAside(p)
	}
	c.s.Drop(n.Slot)
	c.free = append(c.free, n.Slot)
}

func (c *Cache) setAside(p *framework.Pod) {
	set := c.aside[p.Spec.NodeName]
	if set == nil {
		set = map[types.UID]*framework.Pod{}
		c.aside[p.Spec.NodeName] = set
	}
	set[p.UID] = p
}

// onto puts p on its node (sign 1) or takes it off (-1).
func (c *Cache) onto(p *framework.Pod, sign int32) *framework.Node {
	for _, claim := range p.Claims {
		key := types.NamespacedName{Namespace: p.Namespace, Name: claim}
		if c.s.Volumes.ClaimUsers[key] += int(sign); c.s.Volumes.ClaimUsers[key] <= 0 {
			delete(c.s.Volumes.ClaimUsers, key)
		}
	}
	n := c.s.Node(p.Spec.NodeName)
	if n == nil {
		if sign > 0 {
			c.setAside(p)
		} else {
			delete(c.aside[p.Spec.NodeName], p.UID)
		}
		return nil
	}
	if sign > 0 {
		c.put(n.With(p))
	} else {
		c.put(n.Without(p))
	}
	c.s.Counts.PodPlaced(n.Slot, p, sign)
	return c.s.Nodes[n.Slot]
}

// Pod is the placed or assumed pod of this UID, nil when it has no node.
func (c *Cache) Pod(uid types.UID) *framework.Pod { return c.pods[uid] }

// Pods are the numbers of pods on nodes, the assumed among them, and of the assumed ones.
func (c *Cache) Pods() (placed, assumed int) { return len(c.pods), len(c.assumed) }

// Assumed tells whether the pod is on its way to a node.
func (c *Cache) Assumed(uid types.UID) bool {
	_, ok := c.assumed[uid]
	return ok
}

// Assume shows p on the node before the API does. p must have no node.
func (c *Cache) Assume(p *framework.Pod, node string) *framework.Pod {
	c.Unnominate(p.UID)
	bound := p.On(node)
	c.pods[p.UID] = bound
	c.assumed[p.UID] = struct{}{}
	c.onto(bound, 1)
	return bound
}

// Forget undoes Assume after a bind that failed. A pod that the API has placed meanwhile stays.
func (c *Cache) Forget(uid types.UID) framework.Event {
	if !c.Assumed(uid) {
		return framework.Event{}
	}
	return c.RemovePod(uid)
}

// SetPod takes in the state of a pod that has a node.
func (c *Cache) SetPod(p *framework.Pod) framework.Event {
	c.Unnominate(p.UID)
	old := c.pods[p.UID]
	c.pods[p.UID] = p
	_, was := c.assumed[p.UID]
	delete(c.assumed, p.UID)
	switch {
	case old == nil:
		return framework.Event{Kind: framework.PodPlaced, Node: c.onto(p, 1), Pod: p}
	case was && old.Spec.NodeName == p.Spec.NodeName && maps.Equal(old.Labels, p.Labels):
		// As assumed: the decision has counted it already. Waiting pods may want to be near it.
		c.replace(old, p)
		return framework.Event{Kind: framework.PodPlaced, Node: c.s.Node(p.Spec.NodeName), Pod: p}
	case old.Spec.NodeName == p.Spec.NodeName && sameForOthers(old, p):
		c.replace(old, p)
		return framework.Event{}
	}
	c.onto(old, -1)
	return framework.Event{Kind: framework.PodChanged, Node: c.onto(p, 1), Pod: p}
}

// sameForOthers tells whether a pod's new state counts alike for every other pod.
func sameForOthers(old, p *framework.Pod) bool {
	return maps.Equal(old.Labels, p.Labels) && (old.DeletionTimestamp == nil) == (p.DeletionTimestamp == nil) &&
		old.Requests.MilliCPU == p.Requests.MilliCPU && old.Requests.MemoryBytes == p.Requests.MemoryBytes &&
		old.Requests.EphemeralBytes == p.Requests.EphemeralBytes && maps.Equal(old.Requests.Extended, p.Requests.Extended)
}

// replace swaps the pointer to a pod on its node for a newer state that counts alike. The generation
// stays: no answer changes.
func (c *Cache) replace(old, p *framework.Pod) {
	n := c.s.Node(p.Spec.NodeName)
	if n == nil {
		c.setAside(p)
		return
	}
	i := slices.IndexFunc(n.Pods, func(q *framework.Pod) bool { return q.UID == old.UID })
	if i < 0 {
		return
	}
	renewed := *n
	renewed.Pods = slices.Clone(n.Pods)
	renewed.Pods[i] = p
	c.s.Put(&renewed, n.Generation)
}

// RemovePod takes a pod off its node.
func (c *Cache) RemovePod(uid types.UID) framework.Event {
	c.Unnominate(uid)
	old := c.pods[uid]
	if old == nil {
		return framework.Event{}
	}
	delete(c.pods, uid)
	delete(c.assumed, uid)
	return framework.Event{Kind: framework.PodGone, Node: c.onto(old, -1), Pod: old}
}

// Nominate tells that room is being made for p on the node: pods of lower priority may not take it.
func (c *Cache) Nominate(p *framework.Pod, node string) {
	if was, ok := c.nominated[p.UID]; ok {
		if was.node == node {
			return
		}
		c.Unnominate(p.UID)
	}
	c.nominated[p.UID] = nomination{p, node}
	c.renominate(node)
}

// Unnominate ends it.
func (c *Cache) Unnominate(uid types.UID) {
	if was, ok := c.nominated[uid]; ok {
		delete(c.nominated, uid)
		c.renominate(was.node)
	}
}

// Nominated is the node that room is being made on for the pod, "" when there is none.
func (c *Cache) Nominated(uid types.UID) string { return c.nominated[uid].node }

func (c *Cache) renominate(node string) {
	n := c.s.Node(node)
	if n == nil {
		return
	}
	var pods []*framework.Pod
	if len(c.nominated) > 0 {
		for _, p := range n.Nominated {
			if nom, ok := c.nominated[p.UID]; ok && nom.node == node {
				pods = append(pods, nom.pod)
			}
		}
		for uid, nom := range c.nominated {
			if nom.node == node && !slices.ContainsFunc(pods, func(p *framework.Pod) bool { return p.UID == uid }) {
				pods = append(pods, nom.pod)
			}
		}
	}
	if len(pods) > 0 || len(n.Nominated) > 0 {
		c.put(n.Nominating(pods))
	}
}

// The other kinds. Each gives the event that the change is.

// SetNamespace takes in a namespace's labels.
func (c *Cache) SetNamespace(name string, l map[string]string) framework.Event {
	if old, ok := c.s.Namespaces[name]; ok && maps.Equal(old, l) {
		return framework.Event{}
	}
	c.s.Namespaces[name] = labels.Set(l)
	c.s.Counts.NamespaceChanged()
	return framework.Event{Kind: framework.NamespaceChanged}
}

// RemoveNamespace forgets a namespace.
func (c *Cache) RemoveNamespace(name string) {
	delete(c.s.Namespaces, name)
	c.s.Counts.NamespaceChanged()
}

// SetClaim takes in a claim.
func (c *Cache) SetClaim(o *corev1.PersistentVolumeClaim) framework.Event {
	c.s.Volumes.Claims[types.NamespacedName{Namespace: o.Namespace, Name: o.Name}] = o
	return framework.Event{Kind: framework.StorageChanged}
}

// SetVolume takes in a volume.
func (c *Cache) SetVolume(o *corev1.PersistentVolume) framework.Event {
	c.s.Volumes.Volumes[o.Name] = o
	if o.Spec.ClaimRef != nil {
		delete(c.s.Volumes.Chosen, o.Name)
	}
	return framework.Event{Kind: framework.StorageChanged}
}

// SetClass takes in a storage class.
func (c *Cache) SetClass(o *storagev1.StorageClass) framework.Event {
	c.s.Volumes.Classes[o.Name] = o
	return framework.Event{Kind: framework.StorageChanged}
}

// RemoveStorage forgets a claim, volume or class.
func (c *Cache) RemoveStorage(o any) framework.Event {
	switch o := o.(type) {
	case *corev1.PersistentVolumeClaim:
		delete(c.s.Volumes.Claims, types.NamespacedName{Namespace: o.Namespace, Name: o.Name})
	case *corev1.PersistentVolume:
		delete(c.s.Volumes.Volumes, o.Name)
		delete(c.s.Volumes.Chosen, o.Name)
	case *storagev1.StorageClass:
		delete(c.s.Volumes.Classes, o.Name)
	}
	return framework.Event{Kind: framework.StorageChanged}
}

// ChooseVolumes notes which volumes a decision has given away; Unchoose takes it back.
func (c *Cache) ChooseVolumes(choices []framework.VolumeChoice) {
	for _, ch := range choices {
		if ch.Volume != "" {
			c.s.Volumes.Chosen[ch.Volume] = ch.Claim
		}
	}
}

// UnchooseVolumes undoes ChooseVolumes.
func (c *Cache) UnchooseVolumes(choices []framework.VolumeChoice) {
	for _, ch := range choices {
		if c.s.Volumes.Chosen[ch.Volume] == ch.Claim {
			delete(c.s.Volumes.Chosen, ch.Volume)
		}
	}
}

// SetPDB takes in a disruption budget.
func (c *Cache) SetPDB(o *policyv1.PodDisruptionBudget) {
	c.s.PDBs[types.NamespacedName{Namespace: o.Namespace, Name: o.Name}] = o
}

// RemovePDB forgets one.
func (c *Cache) RemovePDB(key types.NamespacedName) { delete(c.s.PDBs, key) }

// SetService takes in a service's selector.
func (c *Cache) SetService(key types.NamespacedName, selector map[string]string) {
	if len(selector) == 0 {
		delete(c.s.Owners.Services, key)
		return
	}
	c.s.Owners.Services[key] = labels.Set(selector)
}

// SetOwner takes in the selector of a controller; nil forgets it.
func (c *Cache) SetOwner(uid types.UID, selector labels.Selector) {
	if selector == nil {
		delete(c.s.Owners.ByUID, uid)
		return
	}
	c.s.Owners.ByUID[uid] = selector
}

// Check compares what is kept incrementally with a scan, and gives what differs.
func (c *Cache) Check() error {
	onNodes := map[types.UID]bool{}
	live := 0
	for slot, n := range c.s.Nodes {
		if n == nil {
			continue
		}
		live++
		if n.Slot != slot || c.s.Generations[slot] != n.Generation || c.s.ByName[n.Node.Name] != slot {
			return fmt.Errorf("node %s: slot %d, generation %d, in place %d with generation %d", n.Node.Name, n.Slot, n.Generation, slot, c.s.Generations[slot])
		}
		fresh := framework.NewNode(n.Node, slot)
		for _, p := range n.Pods {
			fresh = fresh.With(p)
			onNodes[p.UID] = true
			if c.pods[p.UID] != p || p.Spec.NodeName != n.Node.Name {
				return fmt.Errorf("pod %s on node %s is not the one in pods", p.Name, n.Node.Name)
			}
		}
		if fresh.Requested.MilliCPU != n.Requested.MilliCPU || fresh.Requested.MemoryBytes != n.Requested.MemoryBytes || fresh.Scored.MilliCPU != n.Scored.MilliCPU {
			return fmt.Errorf("node %s: requested %+v, by a scan %+v", n.Node.Name, n.Requested, fresh.Requested)
		}
	}
	if live != c.s.Live {
		return fmt.Errorf("%d nodes, counted %d", live, c.s.Live)
	}
	for uid, p := range c.pods {
		if _, aside := c.aside[p.Spec.NodeName][uid]; !onNodes[uid] && !aside {
			return fmt.Errorf("pod %s is on no node", p.Name)
		}
	}
	for uid := range c.assumed {
		if c.pods[uid] == nil {
			return fmt.Errorf("assumed pod %s is not in pods", uid)
		}
	}
	return nil
}
