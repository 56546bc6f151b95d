package runtime

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/keelson/keelson/controller-manager/podset"
	"github.com/keelson/keelson/libs/informer"
)

// debts are the writes of one pass that the caches have yet to show.
type debts struct {
	mu     sync.Mutex
	revs   map[*shared]uint64
	graves []chan struct{}
}

func (d *debts) any() bool { return len(d.revs) > 0 || len(d.graves) > 0 }

func (d *debts) owe(s *shared, resourceVersion string) {
	rev, err := strconv.ParseUint(resourceVersion, 10, 64)
	if err != nil || s == nil {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.revs == nil {
		d.revs = map[*shared]uint64{}
	}
	d.revs[s] = max(d.revs[s], rev)
}

func (d *debts) bury(ch chan struct{}) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.graves = append(d.graves, ch)
}

func (d *debts) settle(ctx context.Context) error {
	for s, rev := range d.revs {
		if err := s.waitFor(ctx, rev); err != nil {
			return fmt.Errorf("cache of %s has not reached revision %d (is at %d): %w", s.kind.Name, rev, s.rev(), err)
		}
	}
	for _, ch := range d.graves {
		select {
		case <-ch:
		case <-ctx.Done():
			return fmt.Errorf("a deletion has not reached its cache: %w", context.Cause(ctx))
		}
	}
	return nil
}

// write checks the declaration and returns the cache that will show the write;
// it is nil when nobody caches the kind.
func write[T informer.Object](p *Pass, verb, sub string) (*shared, error) {
	k := kindFor(reflect.TypeFor[T]())
	if k == nil {
		return nil, fmt.Errorf("kind of %s is not in the table of kinds", reflect.TypeFor[T]())
	}
	if err := p.queue.env.mayWrite(verb, k, sub); err != nil {
		return nil, err
	}
	return p.queue.env.manager.shared(k), nil
}

// Create creates o and returns it as stored.
func Create[T informer.Object](ctx context.Context, p *Pass, c interface {
	Create(context.Context, T, metav1.CreateOptions) (T, error)
}, o T) (T, error) {
	var none T
	s, err := write[T](p, "create", "")
	if err != nil {
		return none, err
	}
	got, err := c.Create(ctx, o, metav1.CreateOptions{})
	if err != nil {
		return none, err
	}
	p.debts.owe(s, got.GetResourceVersion())
	return got, nil
}

// Update replaces o; its resourceVersion is the precondition.
func Update[T informer.Object](ctx context.Context, p *Pass, c interface {
	Update(context.Context, T, metav1.UpdateOptions) (T, error)
}, o T) (T, error) {
	var none T
	s, err := write[T](p, "update", "")
	if err != nil {
		return none, err
	}
	got, err := c.Update(ctx, o, metav1.UpdateOptions{})
	if err != nil {
		return none, err
	}
	p.debts.owe(s, got.GetResourceVersion())
	return got, nil
}

// UpdateStatus replaces o's status; its resourceVersion is the precondition.
func UpdateStatus[T informer.Object](ctx context.Context, p *Pass, c interface {
	UpdateStatus(context.Context, T, metav1.UpdateOptions) (T, error)
}, o T) (T, error) {
	var none T
	s, err := write[T](p, "update", "status")
	if err != nil {
		return none, err
	}
	got, err := c.UpdateStatus(ctx, o, metav1.UpdateOptions{})
	if err != nil {
		return none, err
	}
	p.debts.owe(s, got.GetResourceVersion())
	return got, nil
}

// UpdateSub replaces o through a subresource other than status.
func UpdateSub[T informer.Object](ctx context.Context, p *Pass, sub string, c interface {
	Update(context.Context, T, metav1.UpdateOptions) (T, error)
}, o T) (T, error) {
	var none T
	s, err := write[T](p, "update", sub)
	if err != nil {
		return none, err
	}
	got, err := c.Update(ctx, o, metav1.UpdateOptions{})
	if err != nil {
		return none, err
	}
	p.debts.owe(s, got.GetResourceVersion())
	return got, nil
}

// Patch sends a JSON merge patch made of body, which should carry preconditions
// (metadata.uid, metadata.resourceVersion) where the decision depends on them.
func Patch[T informer.Object](ctx context.Context, p *Pass, c patcher[T], name string, body any, sub ...string) (T, error) {
	var none T
	s, err := write[T](p, "patch", strings.Join(sub, "/"))
	if err != nil {
		return none, err
	}
	return patch(ctx, p, s, c, name, types.MergePatchType, body, sub...)
}

type patcher[T informer.Object] interface {
	Patch(context.Context, string, types.PatchType, []byte, metav1.PatchOptions, ...string) (T, error)
}

func patch[T informer.Object](ctx context.Context, p *Pass, s *shared, c patcher[T], name string, t types.PatchType, body any, sub ...string) (T, error) {
	var none T
	data, err := json.Marshal(body)
	if err != nil {
		return none, err
	}
	got, err := c.Patch(ctx, name, t, data, metav1.PatchOptions{}, sub...)
	if err != nil {
		return none, err
	}
	p.debts.owe(s, got.GetResourceVersion())
	return got, nil
}

// DropFinalizer removes one finalizer from exactly o and leaves others, which
// somebody may be adding at this moment, alone. That o is gone is not an error.
func DropFinalizer[T informer.Object](ctx context.Context, p *Pass, c patcher[T], o T, finalizer string) error {
	s, err := write[T](p, "patch", "")
	if err != nil {
		return err
	}
	_, err = patch(ctx, p, s, c, o.GetName(), types.StrategicMergePatchType, map[string]any{"metadata": map[string]any{
		"uid": o.GetUID(), "$deleteFromPrimitiveList/finalizers": []string{finalizer},
	}})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// Delete deletes exactly o (its UID is a precondition). That it is gone already
// is not an error. change may set grace period and propagation.
func Delete[T informer.Object](ctx context.Context, p *Pass, c interface {
	Delete(context.Context, string, metav1.DeleteOptions) error
}, o T, change ...func(*metav1.DeleteOptions)) error {
	s, err := write[T](p, "delete", "")
	if err != nil {
		return err
	}
	uid := o.GetUID()
	opts := metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid}}
	for _, f := range change {
		f(&opts)
	}
	var grave chan struct{}
	if s != nil {
		grave = s.graves.dig(uid)
		// The event may have come before the grave was dug.
		if seen, ok := s.lookup(KeyOf(o)); !ok || seen.GetUID() != uid || seen.GetDeletionTimestamp() != nil {
			s.graves.gone(uid)
			grave = nil
		}
	}
	err = c.Delete(ctx, o.GetName(), opts)
	switch {
	case err == nil, apierrors.IsNotFound(err):
		if grave != nil {
			p.debts.bury(grave)
		}
		return nil
	default:
		if s != nil {
			s.graves.gone(uid)
		}
		return err
	}
}

// Together runs f(0) … f(n-1), in batches of 1, 2, 4, … at most 500, each batch in
// parallel. After a batch with a failure nothing more is started; the first
// failure and the number of successes are returned. So a quota that refuses
// everything costs one request, not n.
func Together(ctx context.Context, n int, f func(ctx context.Context, i int) error) (int, error) {
	return inBatches(ctx, n, 1, f)
}

// AllTogether is Together without the slow start: deletions and patches, where
// one failure says nothing about the next.
func AllTogether(ctx context.Context, n int, f func(ctx context.Context, i int) error) error {
	var errs []error
	var mu sync.Mutex
	_, _ = inBatches(ctx, n, mostAtOnce, func(ctx context.Context, i int) error {
		if err := f(ctx, i); err != nil {
			mu.Lock()
			defer mu.Unlock()
			if len(errs) < 10 {
				errs = append(errs, err)
			}
		}
		return nil
	})
	return errors.Join(errs...)
}

const mostAtOnce = 500

func inBatches(ctx context.Context, n, size int, f func(ctx context.Context, i int) error) (int, error) {
	done := 0
	for start := 0; start < n; {
		size = min(size, n-start, mostAtOnce)
		var wg sync.WaitGroup
		var mu sync.Mutex
		var first error
		for i := start; i < start+size; i++ {
			wg.Go(func() {
				err := func() (err error) {
					defer func() {
						if r := recover(); r != nil {
							err = fmt.Errorf("panic: %v\n%s", r, stack())
						}
					}()
					return f(ctx, i)
				}()
				mu.Lock()
				defer mu.Unlock()
				if err == nil {
					done++
				} else if first == nil {
					first = err
				}
			})
		}
		wg.Wait()
		if first != nil {
			return done, first
		}
		if ctx.Err() != nil {
			return done, context.Cause(ctx)
		}
		start += size
		size *= 2
	}
	return done, nil
}

// GatherFor is the usual gathering time for an owner of n pods: a tenth of a
// millisecond for each, at most a fifth of a second.
func GatherFor(n int) time.Duration {
	return min(time.Duration(n)*100*time.Microsecond, 200*time.Millisecond)
}

func stack() string { return string(debug.Stack()) }

// Own carries out adoptions and releases: owner references are set or removed by
// a patch that holds the object's UID and resourceVersion as preconditions. fresh
// reads the owner from the API, not from a cache: an owner that was deleted, or
// replaced by another of its name, must not adopt. It returns what was adopted.
func Own[T informer.Object](ctx context.Context, p *Pass, c patcher[T], owner metav1.Object, gvk schema.GroupVersionKind, adopt, release []T, fresh Fresh) ([]T, error) {
	refs := func(o T, refs []metav1.OwnerReference) any {
		return map[string]any{"metadata": map[string]any{
			"uid": o.GetUID(), "resourceVersion": o.GetResourceVersion(), "ownerReferences": refs,
		}}
	}
	for _, o := range release {
		p.Note("release %s", o.GetName())
		_, err := Patch(ctx, p, c, o.GetName(), refs(o, podset.Without(o.GetOwnerReferences(), owner.GetUID())))
		if err != nil && !apierrors.IsNotFound(err) {
			return nil, fmt.Errorf("release %s: %w", o.GetName(), err)
		}
	}
	if len(adopt) == 0 {
		return nil, nil
	}
	if stays, err := fresh.stays(ctx, owner); err != nil || !stays {
		return nil, err
	}
	var mine []T
	for _, o := range adopt {
		p.Note("adopt %s", o.GetName())
		got, err := Patch(ctx, p, c, o.GetName(), refs(o, podset.With(o.GetOwnerReferences(), *podset.Ref(owner, gvk))))
		switch {
		case err == nil:
			mine = append(mine, got)
		case apierrors.IsNotFound(err):
		default:
			return mine, fmt.Errorf("adopt %s: %w", o.GetName(), err)
		}
	}
	return mine, nil
}
