package watchcache

import (
	"runtime"
	"sync/atomic"
	"time"

	"k8s.io/apimachinery/pkg/labels"

	"github.com/keelson/keelson/apiserver/codec"
	"github.com/keelson/keelson/apiserver/resources"
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
	labels := 0
	for _, it := range items {
		labels += len(it.Head().Labels)
	}
	together := shelf{
		slab: &slab{}, room: make([]byte, 0, size), bodies: make([]body, 0, len(items)), labels: make(Labels, 0, labels),
	}
	bodies := make([]*body, len(items))
	for i, it := range items {
		// What cannot be read stays where it is; but it was read before, and the same bytes say the same.
		bodies[i], _, _ = together.body(it.Row, it.Raw(), 0)
	}
	c.mu.Lock() // nothing is superseded in the meantime
	defer c.mu.Unlock()
	for i, it := range items {
		switch b := bodies[i]; {
		case b == nil:
		case it.superseded.Load():
			b.slab.live.Add(-int64(len(b.raw)))
		default:
			it.leave()
			it.body.Store(b)
		}
	}
}

// shelf is where bodies that are made one after the other stand together. A nil shelf gives each its own memory.
type shelf struct {
	slab   *slab
	room   []byte // the slab's
	bodies []body // len: how many are used
	labels Labels // also
}

// How much a shelf takes at a time, beside slabBytes, and what a revision adds to a message at most.
const (
	shelfBodies = 64
	shelfLabels = 128
	revRoom     = 64
)

// body copies a message, with rev as its resourceVersion if that is not 0, and reads its header and a pod's node.
func (s *shelf) body(row *resources.Row, raw []byte, rev int64) (b *body, node string, err error) {
	if s == nil || len(raw) > slabBytes/4 { // large ones waste little
		b = &body{raw: raw}
		if rev != 0 { // it is stored: no dry run
			if b.raw, err = codec.WithRev(row, raw, rev); err != nil {
				return nil, "", err
			}
		}
		node, err = parseHeader(row, b.raw, &b.head)
		return b, node, err
	}
	need := len(raw)
	if rev != 0 {
		need += revRoom
	}
	if cap(s.room)-len(s.room) < need {
		s.slab, s.room = &slab{}, make([]byte, 0, slabBytes)
	}
	if len(s.bodies) == cap(s.bodies) {
		s.bodies = make([]body, 0, shelfBodies)
	}
	room := s.room
	if rev == 0 {
		room = append(room, raw...)
	} else if room, err = codec.AppendWithRev(room, row, raw, rev); err != nil {
		return nil, "", err
	}
	s.bodies = s.bodies[:len(s.bodies)+1]
	b = &s.bodies[len(s.bodies)-1]
	b.raw = room[len(s.room):len(room):len(room)]
	b.head.Labels = s.labels[len(s.labels):]
	if node, err = parseHeader(row, b.raw, &b.head); err != nil {
		return nil, "", err
	}
	s.room, b.slab = room, s.slab
	s.slab.size += len(b.raw)
	s.slab.live.Add(int64(len(b.raw)))
	n := len(b.head.Labels)
	b.head.Labels = b.head.Labels[:n:n]
	switch {
	case n == 0:
		b.head.Labels = nil
	case n <= cap(s.labels)-len(s.labels):
		s.labels = s.labels[:len(s.labels)+n]
	default: // they were moved to memory of their own
		s.labels = make(Labels, 0, shelfLabels)
	}
	return b, node, nil
}
