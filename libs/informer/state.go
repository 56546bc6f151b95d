package informer

import (
	"fmt"

	apiequality "k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/types"

	"github.com/keelson/keelson/libs/invariant"
)

// set stores o and gives the events to tell: one, or two when o replaced another object of its name.
func (c *Cache[T]) set(o T) []Event[T] {
	k := Key(o)
	c.mu.Lock()
	defer c.mu.Unlock()
	old, had := c.objects[k]
	if had {
		c.unchanged(k, old)
		c.unindex(k, old)
	}
	c.objects[k] = o
	if invariant.Enabled {
		c.copies[k] = o.DeepCopyObject()
	}
	for name, f := range c.o.Indexes {
		for _, v := range f(o) {
			set := c.indexes[name][v]
			if set == nil {
				set = map[types.NamespacedName]T{}
				c.indexes[name][v] = set
			}
			set[k] = o
		}
	}
	switch {
	case !had:
		return []Event[T]{{Kind: Added, New: o}}
	case old.GetUID() != o.GetUID():
		return []Event[T]{{Kind: Deleted, Old: old, New: old}, {Kind: Added, New: o}}
	}
	return []Event[T]{{Kind: Updated, Old: old, New: o}}
}

func (c *Cache[T]) remove(k types.NamespacedName) (Event[T], bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	old, had := c.objects[k]
	if !had {
		return Event[T]{}, false
	}
	c.unchanged(k, old)
	c.unindex(k, old)
	delete(c.objects, k)
	delete(c.copies, k)
	return Event[T]{Kind: Deleted, Old: old, New: old}, true
}

func (c *Cache[T]) unindex(k types.NamespacedName, old T) {
	for name, f := range c.o.Indexes {
		for _, v := range f(old) {
			set := c.indexes[name][v]
			delete(set, k)
			if len(set) == 0 {
				delete(c.indexes[name], v)
			}
		}
	}
}

// unchanged finds, in test builds, a user of the cache who wrote to a shared object.
func (c *Cache[T]) unchanged(k types.NamespacedName, o T) {
	invariant.Costly(func() error {
		if stored, ok := c.copies[k]; ok && !apiequality.Semantic.DeepEqual(stored, o) {
			return fmt.Errorf("%T %s was changed while the cache held it", o, k)
		}
		return nil
	})
}

func (c *Cache[T]) tell(events ...Event[T]) {
	c.telling.Lock()
	defer c.telling.Unlock()
	for _, e := range events {
		for _, f := range c.handlers {
			f(e)
		}
		for _, f := range c.followers {
			(*f)(e)
		}
	}
}

// reach raises the revision and wakes whoever waited for it.
func (c *Cache[T]) reach(rev uint64) {
	if rev <= c.rev.Load() {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.rev.Store(rev)
	for ch, want := range c.waiting {
		if want <= rev {
			close(ch)
			delete(c.waiting, ch)
		}
	}
}
