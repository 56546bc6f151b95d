// Package queue is a queue of keys with workers: each key at most once in the queue, at most one
// worker on a key, failures retried with exponential back-off.
//
// The main calls are [New], [Queue.Add] and [Queue.Run]. It wraps client-go's workqueue.
//
// It promises: a key added while a worker is on it is worked on again afterwards; a key added twice
// is worked on once; the four outcomes of a pass are told apart by [Result]. The number of keys is
// not bounded by the queue itself: it is bounded by the number of objects that the keys name, since
// adding coalesces. It does not promise an order between keys.
//
// Goroutines: Run owns the workers and returns when all of them have ended. [New] starts client-go's
// two timer goroutines, which end when Run returns or [Queue.Stop] is called. To debug, read
// [Queue.Len] and the workers' results in the log of the owner.
package queue

import (
	"context"
	"sync"
	"time"

	"k8s.io/client-go/util/workqueue"

	"github.com/keelson/keelson/libs/run"
)

// Result is what one pass over a key came to.
//
// Done: the zero value. Again later with nothing wrong: After is more than zero. Retry with back-off:
// Err is set and Permanent is false. Wait for the next event: Err is set and Permanent is true.
type Result struct {
	After     time.Duration
	Err       error
	Permanent bool
}

// Done says that nothing is left to do until the key is added again.
func Done() Result { return Result{} }

// After asks for another pass in d, or sooner when the key is added.
func After(d time.Duration) Result { return Result{After: max(d, time.Nanosecond)} }

// Failed asks for another pass with back-off, or says Done when err is nil.
func Failed(err error) Result { return Result{Err: err} }

// Refused reports an error that another pass would only repeat.
func Refused(err error) Result { return Result{Err: err, Permanent: true} }

// Queue is made by New.
type Queue[K comparable] struct {
	q workqueue.TypedRateLimitingInterface[K]
}

// New returns a queue whose failures wait base, then twice as long each time, up to limit.
func New[K comparable](name string, base, limit time.Duration) *Queue[K] {
	return &Queue[K]{q: workqueue.NewTypedRateLimitingQueueWithConfig(
		workqueue.NewTypedItemExponentialFailureRateLimiter[K](base, limit),
		workqueue.TypedRateLimitingQueueConfig[K]{Name: name},
	)}
}

// Add puts k at the end, unless it is there.
func (q *Queue[K]) Add(k K) { q.q.Add(k) }

// AddAfter adds k when d has passed. Of several pending times for one key the earliest counts.
func (q *Queue[K]) AddAfter(k K, d time.Duration) { q.q.AddAfter(k, d) }

// Retry adds k after its next back-off.
func (q *Queue[K]) Retry(k K) { q.q.AddRateLimited(k) }

// Forget sets k's back-off to the start.
func (q *Queue[K]) Forget(k K) { q.q.Forget(k) }

// Failures is the number of failures of k in a row.
func (q *Queue[K]) Failures(k K) int { return q.q.NumRequeues(k) }

// Len is the number of keys that wait for a worker.
func (q *Queue[K]) Len() int { return q.q.Len() }

// Stop lets the workers finish what they hold and then ends Run. Keys added afterwards are dropped.
func (q *Queue[K]) Stop() { q.q.ShutDown() }

// Run works on keys with f until ctx ends, and waits until every call of f has returned. A panic in
// f is a failure of that key, with its stack in the error given to the observers.
func (q *Queue[K]) Run(ctx context.Context, workers int, f func(ctx context.Context, k K) Result) {
	stop := context.AfterFunc(ctx, q.q.ShutDown)
	defer stop()
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for {
				k, down := q.q.Get()
				if down {
					return
				}
				q.one(ctx, k, f)
			}
		})
	}
	wg.Wait()
	q.q.ShutDown()
}

func (q *Queue[K]) one(ctx context.Context, k K, f func(ctx context.Context, k K) Result) {
	defer q.q.Done(k)
	var r Result
	if err := run.Safely("worker", func() error { r = f(ctx, k); return nil }); err != nil {
		r = Failed(err)
	}
	switch {
	case r.Err != nil && !r.Permanent:
		q.q.AddRateLimited(k)
	case r.After > 0:
		q.q.Forget(k)
		q.q.AddAfter(k, r.After)
	default:
		q.q.Forget(k)
	}
}
