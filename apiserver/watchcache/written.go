package watchcache

import (
	"sync"

	"github.com/keelson/keelson/apiserver/resources"
)

// written holds items that this server has just written until the log brings
// them back, so that they are neither copied nor decoded a second time.
//
//	len(items) ≤ maxWritten
type written struct {
	mu    sync.Mutex // guards items
	items map[string]*Item
}

// maxWritten bounds the items that wait; what exceeds it is made anew from the log.
const maxWritten = 1024

// Wrote makes the item of what this server has just stored, as NewItem does, and
// keeps it for the log. obj, if not nil, is given away and never changed again. It may
// be called before the log brings the change, or after.
func (c *Cache) Wrote(row *resources.Row, key string, raw []byte, rev, createRev int64, obj resources.Object) (*Item, error) {
	it, err := newItem(nil, row.Storage(), key, raw, rev, createRev)
	if err != nil {
		return nil, err
	}
	it.budget = c.budget
	if have := c.await(it); have != nil {
		it = have // the log was faster
	}
	if obj != nil && it.object.CompareAndSwap(nil, &obj) && !c.budget.keepObject(it) {
		it.object.Store(nil)
	}
	return it, nil
}

// await keeps it until the log brings its revision. If the log has, it returns the cache's own item.
func (c *Cache) await(it *Item) *Item {
	c.written.mu.Lock()
	defer c.written.mu.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.rev < it.Rev {
		if len(c.written.items) >= maxWritten {
			clear(c.written.items) // a log that has stopped; they are only a saving
		}
		c.written.items[it.Key] = it
		return nil
	}
	if have := c.state.get(it.Key); have != nil && have.Rev == it.Rev && have.Row == it.Row {
		return have
	}
	return nil
}

// take returns the item of a revision, if it waits, and forgets it.
func (w *written) take(key string, rev int64) *Item {
	w.mu.Lock()
	defer w.mu.Unlock()
	it := w.items[key]
	if it == nil || it.Rev > rev {
		return nil
	}
	delete(w.items, key)
	if it.Rev != rev {
		return nil
	}
	return it
}
