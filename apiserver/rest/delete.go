package rest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/keelson/keelson/apiserver/admission"
	"github.com/keelson/keelson/apiserver/resources"
	"github.com/keelson/keelson/apiserver/store"
	"github.com/keelson/keelson/apiserver/watchcache"
)

// Delete removes an object, or starts its removal: finalizers, a grace period and
// the propagation policy may keep it for a while. now is true when it is gone. obj is
// its last or current state.
//
// Source: Kubernetes documentation, "Garbage collection", "Finalizers" and
// "Pod lifecycle: termination".
func (o *Objects) Delete(ctx context.Context, rq *resources.Request, row *resources.Row, namespace, name string, opts *metav1.DeleteOptions) (obj resources.Object, now bool, err error) {
	it, now, err := o.remove(ctx, rq, row, namespace, name, opts)
	if err != nil {
		return nil, false, err
	}
	obj, err = objectOf(it, row)
	return obj, now, err
}

func (o *Objects) remove(ctx context.Context, rq *resources.Request, row *resources.Row, namespace, name string, opts *metav1.DeleteOptions) (*watchcache.Item, bool, error) {
	rq = o.request(ctx, rq, "")
	if opts == nil {
		opts = &metav1.DeleteOptions{}
	}
	fresh := false
	for try := 0; try < maxTries; try++ {
		seen := o.item(row, namespace, name)
		if seen == nil {
			if fresh {
				return nil, false, apierrors.NewNotFound(row.GR(), name)
			}
		} else {
			it, now, err := o.removeOnce(ctx, rq, row, namespace, name, seen, opts.DeepCopy(), fresh)
			if err == nil || !errors.Is(err, store.ErrConflict) {
				return it, now, err
			}
		}
		if _, err := o.cache.Fresh(ctx); err != nil {
			return nil, false, err
		}
		fresh = true
	}
	return nil, false, apierrors.NewServerTimeout(row.GR(), "delete", 1)
}

func preconditions(row *resources.Row, name string, obj resources.Object, p *metav1.Preconditions) error {
	if p == nil {
		return nil
	}
	kind := schema.GroupResource{Group: row.Group, Resource: row.Kind} // these messages name the kind
	if p.UID != nil && *p.UID != obj.GetUID() {
		return apierrors.NewConflict(kind, name, fmt.Errorf("the UID in the precondition (%s) does not match the UID in record (%s). The object might have been deleted and then recreated", *p.UID, obj.GetUID()))
	}
	if p.ResourceVersion != nil && *p.ResourceVersion != obj.GetResourceVersion() {
		return apierrors.NewConflict(kind, name, fmt.Errorf("the ResourceVersion in the precondition (%s) does not match the ResourceVersion in record (%s). The object might have been modified", *p.ResourceVersion, obj.GetResourceVersion()))
	}
	return nil
}

// removeOnce is one try; store.ErrConflict asks for another.
func (o *Objects) removeOnce(ctx context.Context, rq *resources.Request, row *resources.Row, namespace, name string, seen *watchcache.Item, opts *metav1.DeleteOptions, fresh bool) (_ *watchcache.Item, now bool, err error) {
	old, err := objectOf(seen, row)
	if err != nil {
		return nil, false, err
	}
	if err := preconditions(row, name, old, opts.Preconditions); err != nil {
		if !fresh { // the cache may be behind what the client has seen
			return nil, false, store.ErrConflict
		}
		return nil, false, err
	}
	attrs := o.attributes(ctx, admission.Delete, row, rq, old.GetNamespace(), name)
	attrs.Old, attrs.Options = old, opts
	if err := o.mutate(ctx, attrs); err != nil {
		return nil, false, err
	}
	undo, err := o.validate(ctx, attrs)
	if err != nil {
		return nil, false, err
	}
	defer func() {
		if err != nil || rq.DryRun {
			undo()
		}
	}()
	obj, fate := planRemoval(rq, row, old, opts)
	switch fate {
	case keepAsIs:
		return seen, false, nil
	case markOnly:
		it, err := o.put(ctx, rq, row, obj, seen.Key, seen)
		return it, false, err
	}
	if !rq.DryRun {
		if err := o.erase(ctx, rq, row, old, seen); err != nil {
			return nil, false, err
		}
	}
	if row.Grace == nil {
		return seen, true, nil
	}
	it, err := o.lastState(row, obj, seen)
	return it, true, err
}

// fate is what one deletion request does to an object.
type fate int

const (
	removeNow fate = iota
	// markOnly: the object is stored with a deletion timestamp, finalizers or a shorter grace period.
	markOnly
	// keepAsIs: its removal is already under way.
	keepAsIs
)

// planRemoval decides. obj is the object to store for markOnly, and the last state for removeNow.
func planRemoval(rq *resources.Request, row *resources.Row, old resources.Object, opts *metav1.DeleteOptions) (obj resources.Object, f fate) {
	if g := opts.GracePeriodSeconds; g != nil && *g < 0 {
		one := int64(1)
		opts.GracePeriodSeconds = &one
	}
	obj = old.DeepCopyObject().(resources.Object)
	if row.Deleting != nil && obj.GetDeletionTimestamp() == nil {
		row.Deleting(rq, obj)
	}
	graceful, kept := false, false
	if row.Grace != nil {
		graceful, kept = grace(rq, row, obj, opts)
	}
	if kept {
		return nil, keepAsIs
	}
	finalizers, changed := gcFinalizers(row, obj, opts)
	if changed {
		obj.SetFinalizers(finalizers)
	}
	held := len(obj.GetFinalizers()) > 0
	if ns, ok := obj.(*corev1.Namespace); ok {
		held = held || len(ns.Spec.Finalizers) > 0
		if held {
			ns.Status.Phase = corev1.NamespaceTerminating
		}
	}
	switch {
	case graceful && (held || *obj.GetDeletionGracePeriodSeconds() > 0):
		return obj, markOnly
	case held:
		if obj.GetDeletionTimestamp() == nil {
			at := metav1.NewTime(rq.Now.Truncate(time.Second))
			obj.SetDeletionTimestamp(&at)
			if !row.Terminates() {
				grow(obj)
			}
		}
		if !row.Terminates() {
			zero := int64(0)
			obj.SetDeletionGracePeriodSeconds(&zero)
		}
		return obj, markOnly
	}
	return obj, removeNow
}

// grace sets deletion timestamp and grace period where the kind has one. graceful is
// false when the object may go at once; kept when a running deletion is not shortened.
func grace(rq *resources.Request, row *resources.Row, obj resources.Object, opts *metav1.DeleteOptions) (graceful, kept bool) {
	if at := obj.GetDeletionTimestamp(); at != nil {
		left := obj.GetDeletionGracePeriodSeconds()
		if left == nil || *left == 0 {
			return false, false
		}
		want := opts.GracePeriodSeconds
		if want == nil || *want >= *left {
			return false, true
		}
		sooner := metav1.NewTime(at.Add(time.Duration(*want-*left) * time.Second))
		obj.SetDeletionTimestamp(&sooner)
		obj.SetDeletionGracePeriodSeconds(want)
		return *want > 0, false
	}
	seconds := max(row.Grace(rq, obj, opts), 0)
	at := metav1.NewTime(rq.Now.Truncate(time.Second).Add(time.Duration(seconds) * time.Second))
	obj.SetDeletionTimestamp(&at)
	obj.SetDeletionGracePeriodSeconds(&seconds)
	grow(obj)
	return seconds > 0, false
}

// grow: the start of a deletion is a change that controllers observe.
func grow(obj resources.Object) {
	if g := obj.GetGeneration(); g > 0 {
		obj.SetGeneration(g + 1)
	}
}

// gcFinalizers adds or removes the garbage collector's finalizers as the propagation
// policy says; without one, finalizers that the object has decide, then the kind's default.
func gcFinalizers(row *resources.Row, obj resources.Object, opts *metav1.DeleteOptions) (finalizers []string, changed bool) {
	old := obj.GetFinalizers()
	if row.NoDependents {
		return old, false
	}
	has := func(f string) bool { return slices.Contains(old, f) }
	var orphan, foreground bool
	switch {
	case opts.OrphanDependents != nil:
		orphan = *opts.OrphanDependents
	case opts.PropagationPolicy != nil:
		orphan = *opts.PropagationPolicy == metav1.DeletePropagationOrphan
		foreground = *opts.PropagationPolicy == metav1.DeletePropagationForeground
	case has(metav1.FinalizerOrphanDependents):
		orphan = true
	case has(metav1.FinalizerDeleteDependents):
		foreground = true
	default:
		orphan = row.OrphanByDefault
	}
	for _, f := range old {
		if f != metav1.FinalizerOrphanDependents && f != metav1.FinalizerDeleteDependents {
			finalizers = append(finalizers, f)
		}
	}
	if orphan {
		finalizers = append(finalizers, metav1.FinalizerOrphanDependents)
	}
	if foreground {
		finalizers = append(finalizers, metav1.FinalizerDeleteDependents)
	}
	return finalizers, orphan != has(metav1.FinalizerOrphanDependents) || foreground != has(metav1.FinalizerDeleteDependents)
}

// DeleteAll deletes what a selection holds now, as deleteEach. It returns what it found.
func (o *Objects) DeleteAll(ctx context.Context, rq *resources.Request, row *resources.Row, sel watchcache.Selection, opts *metav1.DeleteOptions) ([]*watchcache.Item, error) {
	if _, err := o.cache.Fresh(ctx); err != nil {
		return nil, err
	}
	var found []*watchcache.Item
	if err := o.cache.Snapshot().Scan(sel, "", func(it *watchcache.Item) bool {
		found = append(found, it)
		return true
	}); err != nil {
		return nil, err
	}
	return o.deleteEach(ctx, rq, row, found, opts)
}

// deleteEach goes on after an object that is gone already, or another one now, and stops at the first other error.
func (o *Objects) deleteEach(ctx context.Context, rq *resources.Request, row *resources.Row, found []*watchcache.Item, opts *metav1.DeleteOptions) (out []*watchcache.Item, err error) {
	one := *rq
	one.Many = true
	for _, it := range found {
		if err := ctx.Err(); err != nil {
			return out, apierrors.NewServerTimeout(row.GR(), "deletecollection", 1)
		}
		own := opts.DeepCopy()
		if own.Preconditions == nil {
			uid := it.Head().UID
			own.Preconditions = &metav1.Preconditions{UID: &uid}
		}
		_, _, err := o.remove(ctx, &one, row, it.Head().Namespace, it.Head().Name, own)
		switch {
		case err == nil:
			out = append(out, it)
		case apierrors.IsNotFound(err), apierrors.IsConflict(err) && opts.Preconditions == nil:
		default:
			return out, err
		}
	}
	return out, nil
}

// revOf reads a resourceVersion that the server itself has made.
func revOf(rv string) int64 {
	n, _ := strconv.ParseInt(rv, 10, 64)
	return n
}
