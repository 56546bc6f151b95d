package watchcache

import (
	"context"
	"sort"
	"sync/atomic"
	"time"

	"github.com/keelson/keelson/apiserver/resources"
)

// entry is one change: prev became item. One of them may be nil.
type entry struct {
	rev        int64
	item, prev *Item
	at         int64 // unix seconds
	last       atomic.Pointer[Item]
}

// gone is the last state with the revision of the change, made once for all watchers.
func (e *entry) gone() *Item {
	if it := e.last.Load(); it != nil {
		return it
	}
	e.last.CompareAndSwap(nil, e.prev.at(e.rev))
	return e.last.Load()
}

// bytes is what the entry alone holds in memory.
func (e *entry) bytes() int {
	if e.prev == nil {
		return 100
	}
	return 500 + len(e.prev.Raw())
}

// topic is the part of the log that concerns one topicKey. It exists while a cursor
// follows it. Guarded by Cache.mu; entries already in the slice never change, so that
// a part of it may be read without the lock.
//
//	entries = { e ∈ log | e concerns the key }, in order of revision
//	every change after start is in entries
type topic struct {
	key     topicKey
	start   int64
	entries []*entry
	waiting []*Cursor // woken at the next change
	cursors int
	row     *resources.Row // the storage row when it was first followed
	gone    bool           // the resource is not served any more, or is another
	broken  bool           // the cache has jumped: nobody knows what was missed
}

// after is the part of entries that follows rev.
func (t *topic) after(rev int64) []*entry {
	i := len(t.entries)
	// Nearly always the cursor is at the end or close to it.
	if i == 0 || t.entries[i-1].rev <= rev {
		return nil
	}
	i = sort.Search(len(t.entries), func(i int) bool { return t.entries[i].rev > rev })
	return t.entries[i:]
}

func (t *topic) wake() {
	for _, cu := range t.take() {
		cu.poke()
	}
}

// take returns the cursors that wait, who wait no more.
func (t *topic) take() []*Cursor {
	taken := t.waiting
	for _, cu := range taken {
		cu.at = notWaiting
	}
	t.waiting = nil
	return taken
}

// leave takes one cursor off those that wait.
func (t *topic) leave(cu *Cursor) {
	if cu.at == notWaiting {
		return
	}
	last := len(t.waiting) - 1
	moved := t.waiting[last]
	t.waiting[cu.at], moved.at = moved, cu.at
	t.waiting[last] = nil
	t.waiting = t.waiting[:last]
	cu.at = notWaiting
}

const notWaiting = -1

// maxBatch bounds what one Next returns (all events of one revision stay together).
const maxBatch = 512

// Cursor is a place in the log as one selection sees it. It has no goroutine and
// no buffer that fills: a reader that is too slow gets ErrSlow and lists again. A
// cursor belongs to one goroutine and must be closed.
//
// What ends a wait (a change, the time, the context) is told through one channel: a
// receive from it costs a third of a select over three.
type Cursor struct {
	c    *Cache
	q    query
	t    *topic
	rev  int64
	buf  []Event
	at   int           // place in t.waiting, or notWaiting; guarded by Cache.mu
	wake chan struct{} // buffer of one: look again

	timer *time.Timer     // one for all waits: they nearly all end at the same time
	until time.Time       // when timer fires; zero: it has
	done  <-chan struct{} // of the context that wakes, by stop's doing
	stop  func() bool
}

func (c *Cache) newCursor(q query, t *topic, rev int64) *Cursor {
	return &Cursor{c: c, q: q, t: t, rev: rev, at: notWaiting, wake: make(chan struct{}, 1)}
}

// poke has the cursor look again.
func (cu *Cursor) poke() {
	select {
	case cu.wake <- struct{}{}:
	default:
	}
}

// Next returns the events that follow, oldest first, waiting up to maxWait for the
// first one, and the revision up to which the reader now has seen everything
// (with or without events: a bookmark). The slice is valid until the next call.
//
// Errors: ErrGone when the resource is not served any more or is defined anew, ErrSlow when the cursor has fallen out of the log, ErrTooOld when the
// cache had to start anew (clients list again in both cases), ctx's, or why it cannot be told
// whether the selection sees an object: its version cannot be had.
func (cu *Cursor) Next(ctx context.Context, maxWait time.Duration) ([]Event, int64, error) {
	var due time.Time
	for {
		cu.c.mu.Lock()
		t := cu.t
		if t.broken || cu.rev < t.start {
			cu.c.mu.Unlock()
			if t.broken {
				return nil, cu.rev, ErrTooOld
			}
			return nil, cu.rev, ErrSlow
		}
		entries := t.after(cu.rev)
		rev := cu.c.rev
		wait := len(entries) == 0
		if wait && t.gone {
			cu.c.mu.Unlock()
			return nil, cu.rev, ErrGone
		}
		if wait && maxWait > 0 && cu.at == notWaiting {
			cu.at = len(t.waiting)
			t.waiting = append(t.waiting, cu)
		}
		cu.c.mu.Unlock()

		if n := len(entries); n > maxBatch {
			for n = maxBatch; n < len(entries) && entries[n].rev == entries[n-1].rev; n++ {
			}
			if n < len(entries) {
				entries, rev = entries[:n], entries[n-1].rev
			}
		}
		events := cu.see(entries)
		if cu.q.failed != nil {
			return nil, cu.rev, cu.q.failed
		}
		if len(events) > 0 {
			cu.rev = max(cu.rev, rev)
			return events, cu.rev, nil
		}
		// What was read did not concern this selection.
		cu.rev = max(cu.rev, rev)
		if !wait {
			continue
		}
		if maxWait <= 0 {
			return nil, cu.rev, nil
		}
		if due.IsZero() {
			due = time.Now().Add(maxWait)
		}
		cu.arm(due)
		cu.follow(ctx)
		<-cu.wake
		if ctx.Err() != nil {
			return nil, cu.rev, context.Cause(ctx)
		}
		if now := time.Now(); !now.Before(cu.until) {
			cu.until = time.Time{}
			if !now.Before(due) {
				maxWait = 0 // look once more, so that the revision is current
			}
		}
	}
}

// follow has the end of ctx wake the cursor.
func (cu *Cursor) follow(ctx context.Context) {
	if done := ctx.Done(); done != cu.done {
		if cu.stop != nil {
			cu.stop()
		}
		cu.done, cu.stop = done, context.AfterFunc(ctx, cu.poke)
	}
}

// arm has the timer fire at due, or earlier.
func (cu *Cursor) arm(due time.Time) {
	switch {
	case cu.timer == nil:
		cu.timer = time.AfterFunc(time.Until(due), cu.poke)
	case cu.until.IsZero() || due.Before(cu.until):
		cu.timer.Reset(time.Until(due))
	default:
		return
	}
	cu.until = due
}

// see translates entries into what the selection sees.
func (cu *Cursor) see(entries []*entry) []Event {
	cu.buf = cu.buf[:0]
	for _, e := range entries {
		was, is := cu.q.matches(e.prev), cu.q.matches(e.item)
		switch {
		case is && was:
			cu.buf = append(cu.buf, Event{Modified, e.item, e.rev})
		case is:
			cu.buf = append(cu.buf, Event{Added, e.item, e.rev})
		case was:
			cu.buf = append(cu.buf, Event{Deleted, e.gone(), e.rev})
		}
	}
	return cu.buf
}

// Close ends the cursor. It may be called more than once.
func (cu *Cursor) Close() {
	if cu.t == nil {
		return
	}
	if cu.timer != nil {
		cu.timer.Stop()
	}
	if cu.stop != nil {
		cu.stop()
	}
	cu.c.mu.Lock()
	defer cu.c.mu.Unlock()
	cu.t.leave(cu)
	if cu.t.cursors--; cu.t.cursors == 0 && cu.c.topics[cu.t.key] == cu.t {
		delete(cu.c.topics, cu.t.key)
	}
	cu.t = nil
	cu.buf = nil
}

// follow returns the topic of a key, filled from the log if nobody followed it. Called with mu held.
func (c *Cache) follow(key topicKey, row *resources.Row) *topic {
	t := c.topics[key]
	if t == nil {
		t = &topic{key: key, start: c.start, row: row}
		source := c.log
		if wide := c.topics[topicKey{at: prefixOf(key.at)}]; wide != nil {
			source = wide.entries
		}
		for _, e := range source {
			if e.concerns(key) {
				t.entries = append(t.entries, e)
			}
		}
		c.topics[key] = t
	}
	t.cursors++
	return t
}

func (e *entry) concerns(key topicKey) (yes bool) {
	see := func(k topicKey) { yes = yes || k == key }
	topics(e.item, see)
	topics(e.prev, see)
	return yes
}
