package runtime

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	kruntime "k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/record"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/utils/clock"
)

const (
	// SettleLimit is how long a pass waits for the caches to show the writes of
	// the pass before. Then the key is put off and a warning is logged.
	SettleLimit = 5 * time.Second

	backoffBase = 5 * time.Millisecond
	backoffMax  = 60 * time.Second
	historySize = 40
)

// Result is what a pass found out about its own future.
type Result struct {
	// Again is when the answer would change without any event; zero: never.
	Again time.Time
	// Gather is how long events for this key are collected before the next pass.
	// Owners of many pods use it so that a thousand pods becoming ready lead to a
	// few passes and status writes, not to a thousand.
	Gather time.Duration
}

// PassFunc looks at one key: observe, decide, apply.
type PassFunc func(ctx context.Context, p *Pass) (Result, error)

// Permanent marks an error that no retry can mend; the key waits for an event.
func Permanent(err error) error { return permanent{err} }

type permanent struct{ error }

func (p permanent) Unwrap() error { return p.error }

// Queue holds the keys of one controller that want a pass.
type Queue struct {
	name    string
	env     *Env
	pass    PassFunc
	workers int
	work    workqueue.TypedRateLimitingInterface[types.NamespacedName]

	mu      sync.Mutex // guards what follows
	gather  map[types.NamespacedName]time.Time
	debts   map[types.NamespacedName]*debts
	history []Decided // ring, oldest first
	passes  uint64
	failed  uint64
}

// Decided is one line of a controller's memory of what it did.
type Decided struct {
	Time  time.Time `json:"time"`
	Key   string    `json:"key"`
	Steps []string  `json:"steps,omitempty"`
	Err   string    `json:"err,omitempty"`
	Took  string    `json:"took"`
}

// patient is the machine's clock, whose tickers tick every ten seconds at most: each of the library's queues looks
// twice a second for work that takes long, which only a metric tells, and forty of them keep an idle machine awake.
type patient struct{ clock.RealClock }

func (patient) NewTicker(d time.Duration) clock.Ticker {
	return clock.RealClock{}.NewTicker(max(d, 10*time.Second))
}

// Keyed adds a queue with its workers. name distinguishes several queues of one
// controller and is empty for the only one.
func (e *Env) Keyed(name string, workers int, pass PassFunc) *Queue {
	full := e.row.Name
	if name != "" {
		full += "-" + name
	}
	if e.manager.settings.Workers > 0 {
		workers = e.manager.settings.Workers
	}
	q := &Queue{
		name: full, env: e, pass: pass, workers: workers,
		work: workqueue.NewTypedRateLimitingQueueWithConfig(
			workqueue.NewTypedItemExponentialFailureRateLimiter[types.NamespacedName](backoffBase, backoffMax),
			workqueue.TypedRateLimitingQueueConfig[types.NamespacedName]{Name: queueName(full), MetricsProvider: e.manager.metrics, Clock: patient{}}),
		gather: map[types.NamespacedName]time.Time{},
		debts:  map[types.NamespacedName]*debts{},
	}
	e.queues = append(e.queues, q)
	return q
}

// Add asks for a pass of the key, at once or at the end of its gathering time.
func (q *Queue) Add(k types.NamespacedName) {
	q.mu.Lock()
	until, ok := q.gather[k]
	q.mu.Unlock()
	if ok {
		if wait := until.Sub(q.env.Now()); wait > 0 {
			q.work.AddAfter(k, wait)
			return
		}
	}
	q.work.Add(k)
}

// AddAfter asks for a pass of the key after d.
func (q *Queue) AddAfter(k types.NamespacedName, d time.Duration) { q.work.AddAfter(k, d) }

func (q *Queue) run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, q.work.ShutDown)
	defer stop()
	var wg sync.WaitGroup
	for range q.workers {
		wg.Go(func() {
			for {
				k, closed := q.work.Get()
				if closed {
					return
				}
				q.one(ctx, k)
				q.work.Done(k)
			}
		})
	}
	wg.Wait()
	return nil
}

func (q *Queue) one(ctx context.Context, k types.NamespacedName) {
	if ctx.Err() != nil {
		return
	}
	log := q.env.log.With("key", k.String())
	if err := q.settle(ctx, k); err != nil {
		if ctx.Err() == nil {
			log.Warn("caches do not show the last writes yet; pass put off", "err", err)
			q.work.AddRateLimited(k)
		}
		return
	}
	q.mu.Lock()
	delete(q.gather, k)
	q.mu.Unlock()

	p := &Pass{Key: k, Now: q.env.Now(), Log: log, queue: q}
	start := time.Now()
	res, err := q.guarded(ctx, p)
	took := time.Since(start)
	q.record(p, err, took)

	if p.debts.any() {
		q.mu.Lock()
		q.debts[k] = &p.debts
		q.mu.Unlock()
	}
	if res.Gather > 0 {
		q.mu.Lock()
		q.gather[k] = q.env.Now().Add(res.Gather)
		q.mu.Unlock()
	}
	var perm permanent
	switch {
	case err == nil:
		q.work.Forget(k)
		if !res.Again.IsZero() {
			q.work.AddAfter(k, max(0, res.Again.Sub(q.env.Now())))
		}
	case ctx.Err() != nil:
	case errors.As(err, &perm):
		q.work.Forget(k)
		log.Warn("pass failed; waits for a change", "err", err)
	case NamespaceEnding(err):
		q.work.Forget(k)
		log.Debug("namespace is being deleted; nothing more is done", "err", err)
	case apierrors.IsConflict(err):
		log.Debug("pass met a conflict; will be repeated", "err", err)
		q.work.AddRateLimited(k)
	default:
		log.Warn("pass failed; will be repeated", "err", err)
		q.work.AddRateLimited(k)
	}
}

// guarded turns a panic of one pass into an error of that pass: one bad object
// must not stop the other controllers.
func (q *Queue) guarded(ctx context.Context, p *Pass) (res Result, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("panic: %v\n%s", r, stack())
		}
	}()
	return q.pass(ctx, p)
}

func (q *Queue) settle(ctx context.Context, k types.NamespacedName) error {
	q.mu.Lock()
	d := q.debts[k]
	q.mu.Unlock()
	if d == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, SettleLimit)
	defer cancel()
	if err := d.settle(ctx); err != nil {
		return err
	}
	q.mu.Lock()
	delete(q.debts, k)
	q.mu.Unlock()
	return nil
}

func (q *Queue) record(p *Pass, err error, took time.Duration) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.passes++
	if err != nil {
		q.failed++
	}
	if len(p.steps) == 0 && err == nil {
		return
	}
	d := Decided{Time: p.Now, Key: p.Key.String(), Steps: p.steps, Took: took.Round(time.Microsecond).String()}
	if err != nil {
		d.Err = err.Error()
	} else {
		p.Log.Debug("pass", "steps", len(p.steps), "took", took)
	}
	if len(q.history) == historySize {
		copy(q.history, q.history[1:])
		q.history = q.history[:historySize-1]
	}
	q.history = append(q.history, d)
}

// Pass is one look at one key.
type Pass struct {
	Key types.NamespacedName
	Now time.Time
	Log *slog.Logger

	queue *Queue
	debts debts

	mu    sync.Mutex
	steps []string
}

// Note adds a line to the controller's memory of decisions. The memory is
// bounded: of very many lines the first are kept.
func (p *Pass) Note(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	const most = 24
	switch {
	case len(p.steps) < most:
		p.steps = append(p.steps, fmt.Sprintf(format, args...))
	case len(p.steps) == most:
		p.steps = append(p.steps, "…")
	}
}

// Event records a Kubernetes event about o.
func (p *Pass) Event(o kruntime.Object, kind, reason, format string, args ...any) {
	p.recorder().Eventf(o, kind, reason, format, args...)
}

func (p *Pass) Normal(o kruntime.Object, reason, format string, args ...any) {
	p.Event(o, corev1.EventTypeNormal, reason, format, args...)
}

func (p *Pass) Warning(o kruntime.Object, reason, format string, args ...any) {
	p.Event(o, corev1.EventTypeWarning, reason, format, args...)
}

func (p *Pass) recorder() record.EventRecorder { return p.queue.env.Recorder() }
