package match

import (
	"sync"
	"sync/atomic"
)

// Followed is what is worked out from stored objects, kept until one of them changes.
type Followed[T any] struct {
	// Changed gives the revision of the last change of those objects; nil: it is worked out for every use.
	Changed func() int64
	// Build works it out; old is what was kept, so that parts of it can be used again.
	Build func(old T) (T, error)

	mu   sync.Mutex // held while building
	kept atomic.Pointer[followed[T]]
}

type followed[T any] struct {
	rev   int64
	value T
}

// Get returns the newest value. It is shared.
func (f *Followed[T]) Get() (T, error) {
	if k := f.current(); k != nil {
		return k.value, nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if k := f.current(); k != nil {
		return k.value, nil
	}
	next := &followed[T]{}
	if f.Changed != nil {
		next.rev = f.Changed() // before the objects are read: a change in between is seen next time
	}
	var old T
	if k := f.kept.Load(); k != nil {
		old = k.value
	}
	var err error
	if next.value, err = f.Build(old); err != nil {
		return next.value, err
	}
	f.kept.Store(next)
	return next.value, nil
}

func (f *Followed[T]) current() *followed[T] {
	k := f.kept.Load()
	if k == nil || f.Changed == nil || f.Changed() != k.rev {
		return nil
	}
	return k
}
