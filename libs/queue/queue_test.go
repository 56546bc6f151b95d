package queue

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

func TestOutcomes(t *testing.T) {
	for _, row := range []struct {
		name  string
		first Result
		again time.Duration // when the second pass is expected; 0: never
	}{
		{"done is not worked on again", Done(), 0},
		{"again after its time", After(5 * time.Second), 5 * time.Second},
		{"a failure waits for the base delay", Failed(errors.New("x")), time.Second},
		{"a refusal waits for an event", Refused(errors.New("x")), 0},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				q := New[string]("test", time.Second, time.Minute)
				start := time.Now()
				var passes []time.Duration
				ended := make(chan struct{})
				go func() {
					defer close(ended)
					q.Run(ctx, 2, func(_ context.Context, k string) Result {
						passes = append(passes, time.Since(start))
						if len(passes) == 1 {
							return row.first
						}
						return Done()
					})
				}()
				q.Add("a")
				q.Add("a")
				time.Sleep(10 * time.Second)
				synctest.Wait()
				cancel()
				<-ended
				switch {
				case row.again == 0 && len(passes) != 1:
					t.Errorf("want one pass, got %v", passes)
				case row.again != 0 && (len(passes) != 2 || passes[1] != row.again):
					t.Errorf("want a second pass at %v, got %v", row.again, passes)
				}
			})
		})
	}
}

func TestBackoffDoublesUpToItsLimitAndAPanicIsAFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		q := New[int]("test", time.Second, 4*time.Second)
		start := time.Now()
		var at []time.Duration
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			q.Run(ctx, 1, func(_ context.Context, _ int) Result {
				at = append(at, time.Since(start))
				panic("always")
			})
		}()
		q.Add(1)
		time.Sleep(12 * time.Second)
		cancel()
		<-ended
		want := []time.Duration{0, 1 * time.Second, 3 * time.Second, 7 * time.Second, 11 * time.Second}
		if len(at) != len(want) {
			t.Fatalf("want passes at %v, got %v", want, at)
		}
		for i := range want {
			if at[i] != want[i] {
				t.Fatalf("want passes at %v, got %v", want, at)
			}
		}
	})
}
