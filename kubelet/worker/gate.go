package worker

import (
	"context"
	"sync"
	"time"
)

// gate bounds how many of the runtime's expensive calls are under way on the node, and lets
// those go first that bring a pod nearest to its goal. Thirty pods that start together then
// become ready one after another, instead of all at the end.
//
// A call that takes long (a network plugin that hangs, a container that ignores SIGTERM)
// gives its place to others after a while, so that it holds up nothing but its own pod. What
// is long depends on how long such calls take on this machine now: on a busy one all would
// be under way together otherwise, and end together at the very end.
//
// The removal of what has ended is nothing that anybody waits for: it begins when no other
// call is under way or waits, or when it has waited for long.
type gate struct {
	places  int
	mu      sync.Mutex
	free    int                         // guarded by mu
	waiting [priorities][]chan struct{} // first come, first served in each; guarded by mu
	usual   [priorities]time.Duration   // how long calls have taken lately; guarded by mu
}

// Priorities, the first served first.
const (
	forStart = iota
	forStopSandbox
	forStop
	forSandbox
	forRemoval
	priorities
)

// patience is how long a call keeps its place at least, and longest at most.
var patience = [priorities]time.Duration{
	forStart: 3 * time.Second, forStopSandbox: 3 * time.Second, forStop: 300 * time.Millisecond,
	forSandbox: 3 * time.Second, forRemoval: 3 * time.Second,
}

const longest = 15 * time.Second

// removalWait is how long a removal leaves the node to other calls. Upstream's kubelet
// looks for sandboxes to remove once a minute.
const removalWait = 30 * time.Second

func newGate(places int) *gate { return &gate{places: places, free: places} }

// admits tells whether a call of the priority may have a place now; mu is held.
func (g *gate) admits(priority int) bool {
	return g.free > 0 && (priority != forRemoval || g.free == g.places)
}

// enter waits for a place. The function returned gives it back; it may be called once.
func (g *gate) enter(ctx context.Context, priority int) (leave func(), err error) {
	g.mu.Lock()
	if g.admits(priority) {
		g.free--
		g.mu.Unlock()
		return g.hold(priority), nil
	}
	turn := make(chan struct{})
	g.waiting[priority] = append(g.waiting[priority], turn)
	g.mu.Unlock()
	var late <-chan time.Time
	if priority == forRemoval {
		t := time.NewTimer(removalWait)
		defer t.Stop()
		late = t.C
	}
	select {
	case <-turn:
		return g.hold(priority), nil
	case <-ctx.Done():
	case <-late:
	}
	g.mu.Lock()
	for i, w := range g.waiting[priority] {
		if w == turn {
			g.waiting[priority] = append(g.waiting[priority][:i:i], g.waiting[priority][i+1:]...)
			g.mu.Unlock()
			if ctx.Err() == nil {
				return g.enter(ctx, forSandbox) // it is late: a call like others
			}
			return nil, context.Cause(ctx)
		}
	}
	g.mu.Unlock()
	if ctx.Err() == nil {
		return g.hold(priority), nil // the turn came at the same moment
	}
	g.give()
	return nil, context.Cause(ctx)
}

// hold keeps a place until it is given back, but no longer than the call may.
func (g *gate) hold(priority int) func() {
	began := time.Now()
	g.mu.Lock()
	limit := patience[priority]
	if priority != forStop { // which takes as long as the program that is stopped likes
		limit = max(limit, min(4*g.usual[priority], longest))
	}
	g.mu.Unlock()
	var once sync.Once
	give := func() { once.Do(g.give) }
	t := time.AfterFunc(limit, give)
	return func() {
		t.Stop()
		g.mu.Lock()
		g.usual[priority] += (min(time.Since(began), limit) - g.usual[priority]) / 4
		g.mu.Unlock()
		give()
	}
}

func (g *gate) give() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.free++
	for p := range g.waiting {
		if len(g.waiting[p]) > 0 && g.admits(p) {
			g.free--
			close(g.waiting[p][0])
			g.waiting[p] = g.waiting[p][1:]
			return
		}
	}
}
