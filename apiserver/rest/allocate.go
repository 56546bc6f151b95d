package rest

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/google/uuid"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/keelson/keelson/apiserver/codec"
	"github.com/keelson/keelson/apiserver/patch"
	"github.com/keelson/keelson/apiserver/resources"
	"github.com/keelson/keelson/apiserver/store"
	"github.com/keelson/keelson/apiserver/watchcache"
)

// errBeside: an object that goes along has changed. What was allocated is thrown away
// and chosen anew.
var errBeside = errors.New("rest: an object that the write takes along has changed")

// putAllocated is put for kinds that hold what no other object may have. Without Allocate it is put itself.
func (o *Objects) putAllocated(ctx context.Context, rq *resources.Request, row *resources.Row, obj, old resources.Object, key string, prev *watchcache.Item) (*watchcache.Item, error) {
	if row.Allocate == nil {
		return o.put(ctx, rq, row, obj, key, prev)
	}
	var it *watchcache.Item
	err := o.allocated(ctx, rq, row, obj, old, func(next resources.Object, beside []store.Op) (rev int64, err error) {
		if it, err = o.put(ctx, rq, row, next, key, prev, beside...); err != nil {
			return 0, err
		}
		return it.Rev, nil
	})
	return it, err
}

// erase removes the object at seen, and frees what it held. A database that is full still
// deletes: what it held is then found free by the next repair.
func (o *Objects) erase(ctx context.Context, rq *resources.Request, row *resources.Row, old resources.Object, seen *watchcache.Item) error {
	remove := func(_ resources.Object, beside []store.Op) (int64, error) {
		op := store.Op{Key: seen.Key, Seen: seen.Rev, Do: store.Remove}
		if len(beside) == 0 {
			return o.store.Delete(ctx, seen.Key, seen.Rev)
		}
		rev, err := o.commit(ctx, op, beside)
		if errors.Is(err, store.ErrFull) {
			var removals []store.Op
			for _, b := range beside {
				if b.Do != store.Write {
					removals = append(removals, b)
				}
			}
			rev, err = o.commit(ctx, op, removals)
		}
		return rev, err
	}
	if row.Allocate == nil {
		_, err := remove(nil, nil)
		if err != nil {
			return storeError(row, err)
		}
		return nil
	}
	if err := o.allocated(ctx, rq, row, nil, old, remove); err != nil {
		return storeError(row, err)
	}
	return nil
}

// allocated lets row fill in what obj (nil: it is removed) needs for itself, and writes it. The store
// is the arbiter between servers: who loses looks at the new tree and chooses again.
func (o *Objects) allocated(ctx context.Context, rq *resources.Request, row *resources.Row, obj, old resources.Object, write func(resources.Object, []store.Op) (int64, error)) error {
	waiting, fresh, began := true, false, time.Now()
	for try := 0; try < maxTries; {
		next := obj
		if obj != nil {
			next = obj.DeepCopyObject().(resources.Object)
		}
		beside, err := row.Allocate(rq, next, old)
		if err != nil {
			if fresh {
				return err
			}
			// Perhaps what is in the way has just gone.
			if _, err := o.cache.Fresh(ctx); err != nil {
				return err
			}
			fresh = true
			continue
		}
		if waiting && contended(beside) && !rq.DryRun {
			select {
			case o.turn <- struct{}{}:
			case <-ctx.Done():
				return apierrors.NewServerTimeout(row.GR(), "write", 1)
			}
			defer func() { <-o.turn }()
			waiting = false
			continue // the tree now shows what the writer before has done
		}
		ops, err := o.operations(rq, beside)
		if err != nil {
			return err
		}
		rev, err := write(next, ops)
		if err == nil {
			if o.allocatedTo != nil && len(ops) > 0 && !rq.DryRun {
				o.allocatedTo(obj, next, old, time.Since(began))
			}
			if !waiting && !rq.DryRun {
				// It is written; that it is not seen yet only costs the next writer a try.
				_ = o.cache.WaitFor(ctx, rev)
			}
			return nil
		}
		if !errors.Is(err, errBeside) {
			return err
		}
		if _, err := o.cache.Fresh(ctx); err != nil {
			return err
		}
		fresh = true
		try++
	}
	return apierrors.NewServerTimeout(row.GR(), "write", 1)
}

func contended(beside []resources.Beside) bool {
	for _, b := range beside {
		if b.Contended {
			return true
		}
	}
	return false
}

// operations encodes what goes along.
func (o *Objects) operations(rq *resources.Request, beside []resources.Beside) ([]store.Op, error) {
	ops := make([]store.Op, 0, len(beside))
	for _, b := range beside {
		row := o.reg.Storage(b.Resource)
		if row == nil {
			return nil, apierrors.NewInternalError(fmt.Errorf("resource %s is not stored", b.Resource))
		}
		op := store.Op{Key: row.Key(b.Namespace, b.Name), Do: map[resources.Do]store.Do{
			resources.DoWrite: store.Write, resources.DoRemove: store.Remove, resources.DoCheck: store.Check,
		}[b.Do]}
		if b.Seen != "" {
			var err error
			if op.Seen, err = strconv.ParseInt(b.Seen, 10, 64); err != nil {
				return nil, apierrors.NewInternalError(err)
			}
		}
		if b.Do == resources.DoWrite {
			if b.Seen == "" && !row.Hidden {
				b.Object.SetUID(types.UID(uuid.NewString()))
				b.Object.SetCreationTimestamp(metav1.NewTime(rq.Now.Truncate(time.Second)))
				o.book(patch.Write{Row: row, Manager: "kube-apiserver", Now: rq.Now}, nil, b.Object)
			}
			b.Object.SetResourceVersion("")
			var err error
			if op.Value, _, err = codec.Value(row, b.Object); err != nil {
				return nil, apierrors.NewInternalError(err)
			}
		}
		ops = append(ops, op)
	}
	return ops, nil
}

// Commit writes objects beside no other: a repair. It fails with store.ErrConflict when one of them
// is not as it was seen.
func (o *Objects) Commit(ctx context.Context, beside []resources.Beside) error {
	ops, err := o.operations(o.request(ctx, nil, ""), beside)
	if err == nil {
		_, err = o.store.Commit(ctx, ops)
	}
	return err
}

// commit writes op and beside as one revision. It fails with errBeside when op's own key is
// as it was seen and another is not.
func (o *Objects) commit(ctx context.Context, op store.Op, beside []store.Op) (int64, error) {
	rev, err := o.store.Commit(ctx, append([]store.Op{op}, beside...))
	var c *store.ConflictError
	if errors.As(err, &c) && c.Key != op.Key {
		return 0, fmt.Errorf("%w: %s", errBeside, c.Key)
	}
	return rev, err
}

// stale reports that the store keeps the value in a form that is out of date: with
// another key than the newest. Writing the same again brings it up to date.
func (o *Objects) stale(ctx context.Context, row *resources.Row, key string) (bool, error) {
	r, ok := o.store.(store.Renewer)
	if !ok {
		return false, nil
	}
	stale, err := r.Stale(ctx, key)
	if err != nil {
		return false, storeError(row, err)
	}
	return stale, nil
}
