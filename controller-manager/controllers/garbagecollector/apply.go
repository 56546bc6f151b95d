package garbagecollector

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/restmapper"
	"k8s.io/utils/lru"

	"github.com/keelson/keelson/controller-manager/runtime"
)

// Row is this controller's line of the table.
var Row = runtime.Row{
	Name: "garbage-collector-controller",
	Extra: []rbacv1.PolicyRule{{
		APIGroups: []string{"*"}, Resources: []string{"*"}, Verbs: []string{"delete", "get", "list", "patch", "update", "watch"},
	}},
	New: build,
}

const (
	// absentSize bounds the memory of owners that are known to be gone.
	absentSize = 2000
	// remap is how often an unknown kind makes us ask discovery again.
	remap = 2 * time.Second
)

type controller struct {
	env     *runtime.Env
	meta    metadata.Interface
	mapper  meta.ResettableRESTMapper
	mapped  time.Time // last reset; guarded by mu
	sources *sources
	queue   *runtime.Queue
	absent  *lru.Cache // UIDs of owners that are gone for good

	mu    sync.Mutex // guards graph
	graph *Graph
}

func build(e *runtime.Env) error {
	rc := e.REST()
	if rc == nil {
		return errors.New("the garbage collector needs a real API server")
	}
	m, err := metadata.NewForConfig(rc)
	if err != nil {
		return err
	}
	c := &controller{
		env: e, meta: m, graph: NewGraph(), absent: lru.New(absentSize),
		mapper: restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(e.Client().Discovery())),
	}
	c.queue = e.Keyed("", max(e.Settings().ConcurrentGC, 1), c.pass)
	c.sources = &sources{discovery: e.Client().Discovery(), meta: m, shared: e.Follow, log: e.Log(), seen: c.seen, gone: c.gone}
	e.Go("sources", c.sources.run)
	e.Debug(func() any {
		c.mu.Lock()
		defer c.mu.Unlock()
		return map[string]int{"objects": c.graph.Len()}
	})
	return nil
}

func (c *controller) seen(gvr schema.GroupVersionResource, o metav1.Object) {
	c.mu.Lock()
	visit := c.graph.Observe(&Object{
		GVR: gvr, Namespace: o.GetNamespace(), Name: o.GetName(), UID: o.GetUID(), Version: o.GetResourceVersion(),
		Owners: o.GetOwnerReferences(), Finalizers: o.GetFinalizers(), Deleting: o.GetDeletionTimestamp() != nil,
	})
	c.mu.Unlock()
	c.add(visit)
}

func (c *controller) gone(uid types.UID) {
	c.absent.Add(uid, nil)
	c.mu.Lock()
	visit := c.graph.Forget(uid)
	c.mu.Unlock()
	c.add(visit)
}

func (c *controller) add(visit []types.UID) {
	for _, uid := range visit {
		c.queue.Add(types.NamespacedName{Name: string(uid)})
	}
}

// pass looks at one object, by UID.
func (c *controller) pass(ctx context.Context, p *runtime.Pass) (runtime.Result, error) {
	if !c.sources.warm() { // before everything is known, an owner may only seem to be missing
		return runtime.Result{Again: p.Now.Add(100 * time.Millisecond)}, nil
	}
	uid := types.UID(p.Key.Name)
	o, owners, d, err := c.decide(ctx, uid)
	if err != nil || o == nil {
		return runtime.Result{}, err
	}
	c.add(slices.DeleteFunc(d.Visit, func(v types.UID) bool { return v == uid }))
	err = c.apply(ctx, p, o, owners, d)
	if apierrors.IsNotFound(err) {
		return runtime.Result{}, nil
	}
	if apierrors.IsConflict(err) { // changed meanwhile: what changed it will be seen
		return runtime.Result{Again: p.Now.Add(50 * time.Millisecond)}, nil
	}
	return runtime.Result{}, err
}

// decide asks for unknown owners outside the lock, and then decides with the answers.
func (c *controller) decide(ctx context.Context, uid types.UID) (*Object, map[types.UID]*Object, Decision, error) {
	answers := map[types.UID]bool{}
	for {
		var ask *metav1.OwnerReference
		c.mu.Lock()
		o := c.graph.Get(uid)
		others := map[types.UID]*Object{}
		d, err := c.graph.Decide(uid, func(_ *Object, r metav1.OwnerReference) (bool, error) {
			there, known := answers[r.UID]
			if !known {
				ask = &r
				return true, nil
			}
			return there, nil
		})
		for _, u := range d.Others {
			others[u] = c.graph.Get(u)
		}
		c.mu.Unlock()
		if o == nil || err != nil || ask == nil {
			return o, others, d, err
		}
		there, err := c.exists(ctx, o, *ask)
		if err != nil {
			return o, nil, Decision{}, fmt.Errorf("look for owner %s %s of %s %s/%s: %w", ask.Kind, ask.Name, o.GVR.Resource, o.Namespace, o.Name, err)
		}
		answers[ask.UID] = there
	}
}

// exists asks the server for an owner. One of a kind that nobody knows, or that could not
// be an owner, counts as there: its dependents are left alone.
func (c *controller) exists(ctx context.Context, o *Object, r metav1.OwnerReference) (bool, error) {
	if _, gone := c.absent.Get(r.UID); gone {
		return false, nil
	}
	gv, err := schema.ParseGroupVersion(r.APIVersion)
	if err != nil {
		return true, nil
	}
	m, err := c.mapping(gv.WithKind(r.Kind))
	if meta.IsNoMatchError(err) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	namespace := ""
	if m.Scope.Name() == meta.RESTScopeNameNamespace {
		if namespace = o.Namespace; namespace == "" {
			return true, nil // a cluster-scoped object cannot have an owner in a namespace
		}
	}
	got, err := c.meta.Resource(m.Resource).Namespace(namespace).Get(ctx, r.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) || err == nil && got.UID != r.UID {
		c.absent.Add(r.UID, nil)
		return false, nil
	}
	return err == nil, err
}

func (c *controller) mapping(gvk schema.GroupVersionKind) (*meta.RESTMapping, error) {
	m, err := c.mapper.RESTMapping(gvk.GroupKind(), gvk.Version)
	if !meta.IsNoMatchError(err) {
		return m, err
	}
	c.mu.Lock()
	again := time.Since(c.mapped) > remap
	if again {
		c.mapped = time.Now()
	}
	c.mu.Unlock()
	if !again {
		return nil, err
	}
	c.mapper.Reset()
	return c.mapper.RESTMapping(gvk.GroupKind(), gvk.Version)
}

func (c *controller) of(o *Object) metadata.ResourceInterface {
	return c.meta.Resource(o.GVR).Namespace(o.Namespace)
}

func (c *controller) apply(ctx context.Context, p *runtime.Pass, o *Object, others map[types.UID]*Object, d Decision) error {
	switch d.Action {
	case Delete:
		p.Note("delete %s %s/%s (%s)", o.GVR.Resource, o.Namespace, o.Name, d.Policy)
		return c.of(o).Delete(ctx, o.Name, metav1.DeleteOptions{
			Preconditions: &metav1.Preconditions{UID: &o.UID, ResourceVersion: &o.Version}, PropagationPolicy: &d.Policy,
		})
	case Unref:
		p.Note("take %d owners out of %s %s/%s", len(d.Gone), o.GVR.Resource, o.Namespace, o.Name)
		return c.setOwners(ctx, o, without(o.Owners, d.Gone))
	case Unblock:
		refs := slices.Clone(o.Owners)
		no := false
		for i := range refs {
			refs[i].BlockOwnerDeletion = &no
		}
		if err := c.setOwners(ctx, o, refs); err != nil {
			return err
		}
		return c.of(o).Delete(ctx, o.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &o.UID}, PropagationPolicy: &d.Policy})
	case Release:
		p.Note("nothing blocks %s %s/%s", o.GVR.Resource, o.Namespace, o.Name)
		return c.release(ctx, o, d.Finalizer)
	case OrphanThem:
		p.Note("orphan %d dependents of %s %s/%s", len(d.Others), o.GVR.Resource, o.Namespace, o.Name)
		var errs []error
		for _, uid := range d.Others {
			if dep := others[uid]; dep != nil {
				if err := c.setOwners(ctx, dep, without(dep.Owners, []types.UID{o.UID})); err != nil && !apierrors.IsNotFound(err) {
					errs = append(errs, err)
				}
			}
		}
		if err := errors.Join(errs...); err != nil {
			return fmt.Errorf("orphan dependents of %s/%s: %w", o.Namespace, o.Name, err)
		}
		return c.release(ctx, o, d.Finalizer)
	}
	return nil
}

func without(refs []metav1.OwnerReference, gone []types.UID) []metav1.OwnerReference {
	return slices.DeleteFunc(slices.Clone(refs), func(r metav1.OwnerReference) bool { return slices.Contains(gone, r.UID) })
}

// setOwners replaces the references; the version makes sure that none is lost.
func (c *controller) setOwners(ctx context.Context, o *Object, refs []metav1.OwnerReference) error {
	if refs == nil {
		refs = []metav1.OwnerReference{}
	}
	return c.patch(ctx, o, map[string]any{"uid": o.UID, "resourceVersion": o.Version, "ownerReferences": refs})
}

func (c *controller) release(ctx context.Context, o *Object, finalizer string) error {
	left := slices.DeleteFunc(slices.Clone(o.Finalizers), func(f string) bool { return f == finalizer })
	if left == nil {
		left = []string{}
	}
	return c.patch(ctx, o, map[string]any{"uid": o.UID, "resourceVersion": o.Version, "finalizers": left})
}

func (c *controller) patch(ctx context.Context, o *Object, metadata map[string]any) error {
	body, err := json.Marshal(map[string]any{"metadata": metadata})
	if err != nil {
		return err
	}
	_, err = c.of(o).Patch(ctx, o.Name, types.MergePatchType, body, metav1.PatchOptions{})
	return err
}
