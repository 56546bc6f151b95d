package run

import (
	"context"
	"errors"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestFirstErrorCancelsTheRestAndIsReturned(t *testing.T) {
	boom := errors.New("boom")
	g := New(context.Background())
	g.Go("waits", func(ctx context.Context) error {
		<-ctx.Done()
		if !errors.Is(context.Cause(ctx), boom) {
			t.Errorf("cause: want %v, got %v", boom, context.Cause(ctx))
		}
		return ctx.Err()
	})
	g.Go("fails", func(context.Context) error { return boom })
	if err := g.Wait(); !errors.Is(err, boom) || !strings.HasPrefix(err.Error(), "fails: ") {
		t.Fatalf("want the error of \"fails\", got %v", err)
	}
}

func TestPanicBecomesAnErrorWithTheStack(t *testing.T) {
	g := New(context.Background())
	g.Go("room", func(context.Context) error { panic("bad") })
	err := g.Wait()
	if err == nil || !strings.Contains(err.Error(), "room: panic: bad") || !strings.Contains(err.Error(), "run_test.go") {
		t.Fatalf("want name, value and stack, got %v", err)
	}
}

func TestCancelledParentIsNoError(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	g := New(ctx)
	g.Go("waits", func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() })
	cancel()
	if err := g.Wait(); err != nil {
		t.Fatalf("want nil, got %v", err)
	}
}
