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
// gives its place to others after a while, so that it holds up nothing but its own pod.
type gate struct {
	mu      sync.Mutex
	free    int                         // guarded by mu
	waiting [priorities][]chan struct{} // first come, first served in each; guarded by mu
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

// patience is how long a call keeps its place.
var patience = [priorities]time.Duration{
	forStart: 3 * time.Second, forStopSandbox: 3 * time.Second, forStop: 300 * time.Millisecond,
	forSandbox: 3 * time.Second, forRemoval: 3 * time.Second,
}

func newGate(places int) *gate { return &gate{free: places} }

// enter waits for a place. The function returned gives it back; it may be called once.
func (g *gate) enter(ctx context.Context, priority int) (leave func(), err error) {
	g.mu.Lock()
	if g.free > 0 {
		g.free--
		g.mu.Unlock()
		return g.hold(patience[priority]), nil
	}
	turn := make(chan struct{})
	g.waiting[priority] = append(g.waiting[priority], turn)
	g.mu.Unlock()
	select {
	case <-turn:
		return g.hold(patience[priority]), nil
	case <-ctx.Done():
	}
	g.mu.Lock()
	for i, w := range g.waiting[priority] {
		if w == turn {
			g.waiting[priority] = append(g.waiting[priority][:i:i], g.waiting[priority][i+1:]...)
			g.mu.Unlock()
			return nil, context.Cause(ctx)
		}
	}
	g.mu.Unlock()
	g.give() // the turn came at the same moment
	return nil, context.Cause(ctx)
}

func (g *gate) hold(limit time.Duration) func() {
	var once sync.Once
	give := func() { once.Do(g.give) }
	t := time.AfterFunc(limit, give)
	return func() {
		t.Stop()
		give()
	}
}

func (g *gate) give() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for p := range g.waiting {
		if len(g.waiting[p]) > 0 {
			close(g.waiting[p][0])
			g.waiting[p] = g.waiting[p][1:]
			return
		}
	}
	g.free++
}
