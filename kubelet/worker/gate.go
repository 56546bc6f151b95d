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
// A call that takes long (a network plugin that hangs) gives its place to others after
// patience, so that it holds up nothing but its own pod.
type gate struct {
	patience time.Duration

	mu      sync.Mutex
	free    int                         // guarded by mu
	waiting [priorities][]chan struct{} // first come, first served in each; guarded by mu
}

// Priorities, the first served first.
const (
	forStart = iota
	forStopSandbox
	forSandbox
	forRemoval
	priorities
)

func newGate(places int, patience time.Duration) *gate {
	return &gate{free: places, patience: patience}
}

// enter waits for a place. The function returned gives it back; it may be called once.
func (g *gate) enter(ctx context.Context, priority int) (leave func(), err error) {
	g.mu.Lock()
	if g.free > 0 {
		g.free--
		g.mu.Unlock()
		return g.hold(), nil
	}
	turn := make(chan struct{})
	g.waiting[priority] = append(g.waiting[priority], turn)
	g.mu.Unlock()
	select {
	case <-turn:
		return g.hold(), nil
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

func (g *gate) hold() func() {
	var once sync.Once
	give := func() { once.Do(g.give) }
	t := time.AfterFunc(g.patience, give)
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
