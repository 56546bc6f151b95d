package watchcache

import (
	"context"
	"sync"
	"time"
)

// freshness shares one read-index among all requests that wait for one: a
// request never joins a question that was asked before it came.
type freshness struct {
	wake chan struct{} // buffer of one: somebody waits

	mu   sync.Mutex // guards next
	next *question
}

type question struct {
	done chan struct{}
	rev  int64
	err  error
}

// askTimeout bounds one question to the store.
const askTimeout = 10 * time.Second

func (c *Cache) runFresh(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			c.answer(ctx, context.Cause(ctx))
			return nil
		case <-c.fresh.wake:
			c.answer(ctx, nil)
		}
	}
}

func (c *Cache) answer(ctx context.Context, failed error) {
	c.fresh.mu.Lock()
	q := c.fresh.next
	c.fresh.next = nil
	c.fresh.mu.Unlock()
	if q == nil {
		return
	}
	if q.err = failed; failed == nil {
		ask, cancel := context.WithTimeout(ctx, askTimeout)
		q.rev, q.err = c.st.Rev(ask)
		cancel()
	}
	close(q.done)
}

// Fresh waits until the cache holds every write that was acknowledged before the
// call, and returns the revision that this took.
func (c *Cache) Fresh(ctx context.Context) (rev int64, err error) {
	c.fresh.mu.Lock()
	q := c.fresh.next
	if q == nil {
		q = &question{done: make(chan struct{})}
		c.fresh.next = q
		select {
		case c.fresh.wake <- struct{}{}:
		default:
		}
	}
	c.fresh.mu.Unlock()
	select {
	case <-q.done:
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
	if q.err != nil {
		return 0, q.err
	}
	return q.rev, c.WaitFor(ctx, q.rev)
}

// WaitFor waits until the cache has reached rev, at most until ctx ends.
func (c *Cache) WaitFor(ctx context.Context, rev int64) error {
	for {
		c.mu.Lock()
		if c.rev >= rev {
			c.mu.Unlock()
			return nil
		}
		if c.reached == nil {
			c.reached = make(chan struct{})
		}
		reached := c.reached
		c.mu.Unlock()
		select {
		case <-reached:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
