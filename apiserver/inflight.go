package apiserver

import (
	"context"
	"errors"
	"sync"
)

// inflight bounds the requests that are served at the same time. When all places
// are taken, requests wait in one queue per user, and a place that becomes free goes
// to the users in turn: a user with a thousand requests does not keep one with
// a single request waiting.
//
//	0 ≤ busy ≤ places; waiting > 0 ⇒ busy = places
type inflight struct {
	places int // 0: no bound

	mu      sync.Mutex // guards what follows
	busy    int
	waiting int
	users   map[string]*userQueue
	turn    []*userQueue // users that wait; the first is next
}

type userQueue struct {
	user    string
	waiting []chan struct{}
}

// Bounds of the queues; what exceeds them is refused with 429.
const (
	maxWaiting        = 4096
	maxWaitingPerUser = 1024
)

var errTooMany = errors.New("too many requests")

func newInflight(places int) *inflight {
	return &inflight{places: places, users: map[string]*userQueue{}}
}

// enter takes a place, waiting for one until ctx ends. Every nil must be followed by leave.
func (f *inflight) enter(ctx context.Context, user string) error {
	if f.places == 0 {
		return nil
	}
	f.mu.Lock()
	if f.busy < f.places {
		f.busy++
		f.mu.Unlock()
		return nil
	}
	q := f.users[user]
	if f.waiting >= maxWaiting || (q != nil && len(q.waiting) >= maxWaitingPerUser) {
		f.mu.Unlock()
		return errTooMany
	}
	if q == nil {
		q = &userQueue{user: user}
		f.users[user] = q
		f.turn = append(f.turn, q)
	}
	mine := make(chan struct{})
	q.waiting = append(q.waiting, mine)
	f.waiting++
	f.mu.Unlock()
	select {
	case <-mine:
		return nil
	case <-ctx.Done():
	}
	f.mu.Lock()
	for i, w := range q.waiting {
		if w == mine {
			q.waiting = append(q.waiting[:i], q.waiting[i+1:]...)
			f.waiting--
			f.mu.Unlock()
			return context.Cause(ctx)
		}
	}
	f.mu.Unlock()
	f.leave() // the place came in the same moment
	return context.Cause(ctx)
}

// leave gives the place to the next user's oldest request.
func (f *inflight) leave() {
	if f.places == 0 {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for len(f.turn) > 0 {
		q := f.turn[0]
		f.turn = f.turn[1:]
		if len(q.waiting) == 0 {
			delete(f.users, q.user)
			continue
		}
		next := q.waiting[0]
		q.waiting = q.waiting[1:]
		f.waiting--
		if len(q.waiting) > 0 {
			f.turn = append(f.turn, q)
		} else {
			delete(f.users, q.user)
		}
		close(next)
		return
	}
	f.busy--
}

func (f *inflight) now() (busy, waiting int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.busy, f.waiting
}
