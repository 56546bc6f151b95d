// Package run owns goroutines in groups, so that whoever starts one also waits for it.
//
// The main call is [New], then [Group.Go] for each goroutine and [Group.Wait] at the end.
//
// A group promises: Wait returns only after every function given to Go has returned; the first
// error cancels the context that all of them were given, with that error as [context.Cause]; a
// panic becomes an error that carries the stack, so that one bad room takes its daemon down in
// order (drained, with a message) and not in the middle of a write. It does not restart anything:
// a room that should survive a failure handles the failure itself.
//
// To debug, read the error of Wait: it starts with the name given to Go.
package run

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
)

// Group is a set of goroutines that live and end together.
type Group struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	wg     sync.WaitGroup

	mu  sync.Mutex // guards err
	err error
}

// ErrEnded is the cause of the group's context after [Group.Stop] or a finished [Group.Wait].
var ErrEnded = errors.New("group has ended")

// New returns an empty group whose context ends with ctx.
func New(ctx context.Context) *Group {
	g := &Group{}
	g.ctx, g.cancel = context.WithCancelCause(ctx)
	return g
}

// Context is what every function of the group gets.
func (g *Group) Context() context.Context { return g.ctx }

// Go starts f. An error that f returns after the group's context has ended is dropped when it
// only repeats that the context ended; any other error is kept if it is the first.
func (g *Group) Go(name string, f func(ctx context.Context) error) {
	g.wg.Go(func() {
		if err := Safely(name, func() error { return f(g.ctx) }); err != nil {
			g.fail(err)
		}
	})
}

// Safely calls f and returns its error, or its panic as an error with the stack, after name.
func Safely(name string, f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%s: panic: %v\n%s", name, p, debug.Stack())
		}
	}()
	if err := f(); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

func (g *Group) fail(err error) {
	if g.ctx.Err() != nil && (errors.Is(err, context.Canceled) || errors.Is(err, ErrEnded)) {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.err == nil {
		g.err = err
		g.cancel(err)
	}
}

// Stop ends the group's context without an error. It does not wait.
func (g *Group) Stop() { g.cancel(ErrEnded) }

// Wait blocks until every goroutine has returned and gives the first error.
func (g *Group) Wait() error {
	g.wg.Wait()
	g.cancel(ErrEnded)
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.err
}
