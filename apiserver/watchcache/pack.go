package watchcache

import (
	"runtime"
	"sync/atomic"
	"time"

	"k8s.io/apimachinery/pkg/labels"
)

var _ labels.Labels = (*Labels)(nil)

// Messages are allocated among what requests need for a moment. When that is gone each stands alone in a page of its
// own, half of which is empty. Pack moves those that stay close together, into slabs.
//
//	a slab's live ≤ size; bodies in it are those of items that are, or were, in the state

const (
	slabBytes = 64 << 10
	// packCollect is how many bytes are moved before what they were moved from is collected.
	packCollect = 32 << 20
)

// slab is memory that messages share. It is freed when the last item of it is.
type slab struct {
	size int
	live atomic.Int64 // bytes of items that have not been superseded
}

// sparse reports whether most of it is of no use any more.
func (s *slab) sparse() bool { return 2*s.live.Load() < int64(s.size) }

// leave is called when a newer state has taken the item's place, or when its body moves; with Cache.mu held.
func (it *Item) leave() {
	if b := it.body.Load(); b.slab != nil {
		b.slab.live.Add(-int64(len(b.raw)))
	}
}

// Pack forgets the forms that nobody has asked for of late, moves the messages of objects that are not packed
// yet, or in slabs that have become sparse, and returns how many bytes it has moved. It is for times when
// nothing else is to be done: it takes about a second per gigabyte.
func (c *Cache) Pack() (moved int) {
	c.budget.texts.age(young * time.Second)
	c.budget.objects.age(young * time.Second)
	var batch []*Item
	size, since := 0, 0
	flush := func() {
		c.pack(batch, size)
		moved, since = moved+size, since+size
		batch, size = batch[:0], 0
		if since > packCollect {
			runtime.GC()
			since = 0
		}
	}
	c.Snapshot().keys.Scan(func(it *Item) bool {
		b := it.body.Load()
		if it.Row == nil || b.slab != nil && !b.slab.sparse() || len(b.raw) > slabBytes/4 {
			return true // large ones waste little
		}
		if size+len(b.raw) > slabBytes {
			flush()
		}
		batch, size = append(batch, it), size+len(b.raw)
		return true
	})
	if len(batch) > 0 {
		flush()
	}
	return moved
}

// pack moves items into one new slab of size bytes.
func (c *Cache) pack(items []*Item, size int) {
	s := &slab{size: size}
	room := make([]byte, 0, size)
	bodies := make([]body, len(items))
	n := 0
	for _, it := range items {
		n += len(it.Head().Labels)
	}
	list := make(Labels, 0, n)
	for i, it := range items {
		b, start, first := &bodies[i], len(room), len(list)
		room = append(room, it.Raw()...)
		b.raw, b.slab = room[start:len(room):len(room)], s
		b.head.Labels = list[first:]
		if _, err := parseHeader(it.Row, b.raw, &b.head); err != nil {
			b.raw = nil // it was read before: the same bytes say the same
			continue
		}
		if list = list[:first+len(b.head.Labels)]; len(b.head.Labels) == 0 {
			b.head.Labels = nil
		}
	}
	c.mu.Lock() // nothing is superseded in the meantime
	defer c.mu.Unlock()
	for i, it := range items {
		if b := &bodies[i]; b.raw != nil && !it.superseded.Load() {
			s.live.Add(int64(len(b.raw)))
			it.leave()
			it.body.Store(b)
		}
	}
}
