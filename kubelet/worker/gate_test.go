package worker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// queue enters the gate by goroutines of their own and notes who came in, in order.
type queue struct {
	gate   *gate
	mu     sync.Mutex // two may come at the same moment
	came   []string
	leaves map[string]func()
}

func (q *queue) enter(ctx context.Context, name string, priority int) {
	go func() {
		leave, err := q.gate.enter(ctx, priority)
		if err != nil {
			name, leave = name+" gave up", func() {}
		}
		q.mu.Lock()
		defer q.mu.Unlock()
		q.came = append(q.came, name)
		q.leaves[name] = leave
	}()
	synctest.Wait()
}

func (q *queue) leave(name string) {
	q.mu.Lock()
	leave := q.leaves[name]
	q.mu.Unlock()
	leave()
	synctest.Wait()
}

func (q *queue) want(t *testing.T, names ...string) {
	t.Helper()
	if came := q.all(); !slices.Equal(came, names) {
		t.Errorf("came in %q, want %q", came, names)
	}
}

func (q *queue) all() []string {
	q.mu.Lock()
	defer q.mu.Unlock()
	return slices.Clone(q.came)
}

// pass lets d pass on the bubble's clock, which nobody waits for, until all that then has to happen has happened.
func pass(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

func TestGate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := &queue{gate: newGate(2), leaves: map[string]func(){}}
		q.enter(t.Context(), "a", forSandbox)
		q.enter(t.Context(), "removal", forRemoval)
		q.want(t, "a") // a place is free, and yet
		q.enter(t.Context(), "b", forSandbox)
		q.enter(t.Context(), "c", forSandbox)
		q.enter(t.Context(), "start", forStart)
		q.leave("a")
		q.want(t, "a", "b", "start") // what is nearest to its goal goes first
		q.leave("b")
		q.leave("start")
		q.want(t, "a", "b", "start", "c")
		q.enter(t.Context(), "second removal", forRemoval)
		q.leave("c")
		q.want(t, "a", "b", "start", "c", "removal")
		q.leave("removal")
		q.leave("removal") // once is enough
		q.want(t, "a", "b", "start", "c", "removal", "second removal")
		q.enter(t.Context(), "d", forStop)
		q.leave("second removal")
		q.leave("d")
		if q.gate.free != 2 {
			t.Errorf("%d places are free at the end", q.gate.free)
		}
	})
}

// A call that hangs holds up nobody, and a removal does not wait for ever.
func TestGatePatience(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := &queue{gate: newGate(1), leaves: map[string]func(){}}
		q.enter(t.Context(), "hangs", forSandbox)
		q.enter(t.Context(), "next", forSandbox)
		q.want(t, "hangs")
		pass(patience[forSandbox])
		q.want(t, "hangs", "next")
		q.leave("hangs")
		q.leave("next")
		if q.gate.free != 1 {
			t.Errorf("%d places are free", q.gate.free)
		}

		// The node is never quiet: as one call gives its place back, another has come.
		q = &queue{gate: newGate(2), leaves: map[string]func(){}}
		ctx, cancel := context.WithCancelCause(t.Context())
		q.enter(t.Context(), "call 0", forStart)
		q.enter(t.Context(), "removal", forRemoval)
		q.enter(ctx, "unwanted", forRemoval)
		n := 0
		for began := time.Now(); time.Since(began) < removalWait-time.Second; n++ {
			pass(time.Second)
			q.enter(t.Context(), fmt.Sprintf("call %d", n+1), forStart)
			q.leave(fmt.Sprintf("call %d", n))
		}
		if slices.Contains(q.all(), "removal") {
			t.Errorf("the removal came in before its time: %q", q.all())
		}
		cancel(errors.New("the kubelet ends"))
		pass(time.Second)
		if came := q.all(); !slices.Equal(came[len(came)-2:], []string{"unwanted gave up", "removal"}) {
			t.Errorf("at the end came %q", came)
		}
		q.leave("removal")
		q.leave(fmt.Sprintf("call %d", n))
		if q.gate.free != 2 {
			t.Errorf("%d places are free at the end", q.gate.free)
		}
	})
}

// On a machine where every call takes long, they still go one after another.
func TestGateOfASlowMachine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate(1)
		var under, most atomic.Int32
		for range 20 {
			go func() {
				leave, err := g.enter(t.Context(), forSandbox)
				if err != nil {
					t.Error(err)
					return
				}
				most.Store(max(most.Load(), under.Add(1)))
				<-time.After(patience[forSandbox] - time.Second) // so long the call takes
				under.Add(-1)
				leave()
			}()
			synctest.Wait()
		}
		pass(20 * patience[forSandbox])
		if under.Load() != 0 || most.Load() != 1 {
			t.Errorf("%d calls were under way at once, %d still are", most.Load(), under.Load())
		}
		// They come to take twice as long as was thought long before.
		leave, err := g.enter(t.Context(), forSandbox)
		if err != nil {
			t.Fatal(err)
		}
		other := make(chan time.Time, 1)
		began := time.Now()
		go func() {
			leave, err := g.enter(t.Context(), forSandbox)
			if err != nil {
				t.Error(err)
				return
			}
			other <- time.Now()
			leave()
		}()
		pass(2 * patience[forSandbox])
		if len(other) != 0 {
			t.Error("a call lost its place as soon as on a quick machine")
		}
		if at := <-other; at.Sub(began) > longest { // and a call that hangs holds up nobody for long
			t.Errorf("the next call waited for %v", at.Sub(began))
		}
		leave()
	})
}
