// Package garbagecollector deletes objects whose owners are gone, and carries out
// foreground deletion and orphaning.
//
// It follows the metadata of every kind that can be deleted. [Graph] holds who owns
// whom; [Graph.Decide] says what has to happen to one object and is pure, but for the
// question whether an owner that the graph does not know exists, which the
// caller answers. sources.go feeds the graph, apply.go carries out.
//
//	owner gone                         -> delete the dependent (its own finalizers say how)
//	owner waits for dependents         -> delete the dependents, then drop the finalizer foregroundDeletion
//	owner lets its dependents be       -> take the owner's reference out of them, then drop the finalizer orphan
//	some owners gone, some not         -> take the references of the gone ones out
//
// Source: Kubernetes documentation, "Garbage Collection", "Owners and Dependents".
package garbagecollector

import (
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
)

// Object is what the graph knows of one object.
type Object struct {
	GVR             schema.GroupVersionResource
	Namespace, Name string
	UID             types.UID
	Version         string // resourceVersion
	Owners          []metav1.OwnerReference
	Finalizers      []string
	Deleting        bool
}

func (o *Object) foreground() bool {
	return o.Deleting && slices.Contains(o.Finalizers, metav1.FinalizerDeleteDependents)
}

func (o *Object) orphaning() bool {
	return o.Deleting && slices.Contains(o.Finalizers, metav1.FinalizerOrphanDependents)
}

// Graph is who owns whom, by UID. It is not safe for concurrent use.
type Graph struct {
	objects    map[types.UID]*Object
	dependents map[types.UID]map[types.UID]struct{} // of owners known and unknown
}

// NewGraph returns an empty graph.
func NewGraph() *Graph {
	return &Graph{objects: map[types.UID]*Object{}, dependents: map[types.UID]map[types.UID]struct{}{}}
}

// Get returns what is known of an object, or nil. It must not be changed.
func (g *Graph) Get(uid types.UID) *Object { return g.objects[uid] }

// Len is the number of objects.
func (g *Graph) Len() int { return len(g.objects) }

// Observe takes in an object as it is now, and returns which objects need a decision.
func (g *Graph) Observe(o *Object) (visit []types.UID) {
	old := g.objects[o.UID]
	g.objects[o.UID] = o
	if old != nil {
		for _, r := range old.Owners {
			if owns(o.Owners, r.UID) {
				continue
			}
			g.unlink(r.UID, o.UID)
			if owner := g.objects[r.UID]; owner != nil && owner.foreground() {
				visit = append(visit, r.UID) // maybe this was the last one it waited for
			}
		}
	}
	for _, r := range o.Owners {
		if g.dependents[r.UID] == nil {
			g.dependents[r.UID] = map[types.UID]struct{}{}
		}
		g.dependents[r.UID][o.UID] = struct{}{}
		owner := g.objects[r.UID]
		if owner == nil || owner.foreground() {
			visit = append(visit, o.UID)
		}
		if owner != nil && owner.foreground() {
			visit = append(visit, r.UID) // it may be blocked no longer
		}
	}
	switch {
	case o.foreground() && (old == nil || !old.foreground()):
		visit = append(visit, o.UID)
		visit = append(visit, g.Dependents(o.UID)...)
	case o.orphaning() && (old == nil || !old.orphaning()):
		visit = append(visit, o.UID)
	}
	return visit
}

// Forget takes out an object that is gone, and returns which objects need a decision.
func (g *Graph) Forget(uid types.UID) (visit []types.UID) {
	o := g.objects[uid]
	if o == nil {
		return nil
	}
	delete(g.objects, uid)
	for _, r := range o.Owners {
		g.unlink(r.UID, uid)
		if owner := g.objects[r.UID]; owner != nil && owner.foreground() {
			visit = append(visit, r.UID)
		}
	}
	return append(visit, g.Dependents(uid)...)
}

func (g *Graph) unlink(owner, dependent types.UID) {
	delete(g.dependents[owner], dependent)
	if len(g.dependents[owner]) == 0 {
		delete(g.dependents, owner)
	}
}

// Dependents are the objects that name uid as an owner.
func (g *Graph) Dependents(uid types.UID) []types.UID {
	out := make([]types.UID, 0, len(g.dependents[uid]))
	for d := range g.dependents[uid] {
		out = append(out, d)
	}
	slices.Sort(out)
	return out
}

func owns(refs []metav1.OwnerReference, uid types.UID) bool {
	return slices.ContainsFunc(refs, func(r metav1.OwnerReference) bool { return r.UID == uid })
}

// Action is what has to happen to one object.
type Action uint8

const (
	Nothing    Action = iota
	Delete            // with Policy
	Unref             // take the references to Gone out, and let the ones that block deletion not block
	Release           // drop Finalizer
	OrphanThem        // take this object's reference out of Others, then drop the finalizer orphan
	Unblock           // references no longer block their owners' deletion, then Delete in the foreground
)

// Decision is one action with its data.
type Decision struct {
	Action    Action
	Policy    metav1.DeletionPropagation
	Gone      []types.UID // owners whose references go
	Finalizer string
	Others    []types.UID // dependents to orphan
	// Visit need a decision of their own now.
	Visit []types.UID
}

// Decide says what has to happen to an object. exists answers for owners that the
// graph does not know: whether they are there, asked of the server.
func (g *Graph) Decide(uid types.UID, exists func(o *Object, owner metav1.OwnerReference) (bool, error)) (Decision, error) {
	o := g.objects[uid]
	if o == nil {
		return Decision{}, nil
	}
	if o.orphaning() {
		return Decision{Action: OrphanThem, Others: g.Dependents(uid), Finalizer: metav1.FinalizerOrphanDependents}, nil
	}
	if o.foreground() {
		return g.wait(o), nil
	}
	if o.Deleting || len(o.Owners) == 0 {
		return Decision{}, nil
	}
	var solid, waiting int
	var gone []types.UID // absent, or waiting for us
	for _, r := range o.Owners {
		owner := g.objects[r.UID]
		if owner == nil {
			there, err := exists(o, r)
			if err != nil {
				return Decision{}, err
			}
			if there {
				solid++
			} else {
				gone = append(gone, r.UID)
			}
			continue
		}
		if owner.foreground() {
			waiting++
			gone = append(gone, r.UID)
			continue
		}
		solid++
	}
	switch {
	case solid > 0 && len(gone) > 0:
		return Decision{Action: Unref, Gone: gone}, nil
	case solid > 0:
		return Decision{}, nil
	case waiting > 0 && len(g.dependents[uid]) > 0:
		// Its own dependents go first; a dependent that blocks the wait of its owner must not block ours in a circle.
		for _, d := range g.Dependents(uid) {
			if dep := g.objects[d]; dep != nil && dep.foreground() {
				return Decision{Action: Unblock, Policy: metav1.DeletePropagationForeground}, nil
			}
		}
		return Decision{Action: Delete, Policy: metav1.DeletePropagationForeground}, nil
	case slices.Contains(o.Finalizers, metav1.FinalizerOrphanDependents):
		return Decision{Action: Delete, Policy: metav1.DeletePropagationOrphan}, nil
	case slices.Contains(o.Finalizers, metav1.FinalizerDeleteDependents):
		return Decision{Action: Delete, Policy: metav1.DeletePropagationForeground}, nil
	}
	return Decision{Action: Delete, Policy: metav1.DeletePropagationBackground}, nil
}

// wait: an object that is deleted in the foreground stays until nothing blocks it.
func (g *Graph) wait(o *Object) Decision {
	var blocked bool
	var visit []types.UID
	for _, d := range g.Dependents(o.UID) {
		dep := g.objects[d]
		if dep == nil {
			continue
		}
		for _, r := range dep.Owners {
			if r.UID == o.UID && r.BlockOwnerDeletion != nil && *r.BlockOwnerDeletion {
				blocked = true
			}
		}
		if !dep.Deleting {
			visit = append(visit, d)
		}
	}
	if blocked {
		return Decision{Visit: visit}
	}
	return Decision{Action: Release, Finalizer: metav1.FinalizerDeleteDependents, Visit: visit}
}
