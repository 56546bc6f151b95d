package runtime

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/record"

	"github.com/keelson/keelson/libs/run"
)

// ErrLost ends Run when leadership is lost: what the controllers remember is not
// carried into another term. The process should be started again.
var ErrLost = errors.New("leadership was lost; a new process has to stand for election")

// Options are what a Manager is made of. Client and Log are needed.
type Options struct {
	Client   kubernetes.Interface
	REST     *rest.Config
	Log      *slog.Logger
	Settings Settings
	Metrics  prometheus.Registerer
	Now      func() time.Time // the clock by which controllers decide; nil is time.Now
}

// Manager runs a table of controllers over shared caches.
type Manager struct {
	client   kubernetes.Interface
	rest     *rest.Config
	log      *slog.Logger
	settings Settings
	metrics  *metrics
	now      func() time.Time
	events   record.EventBroadcaster

	mu        sync.Mutex // guards what follows
	caches    map[*Kind]*shared
	recorders map[string]record.EventRecorder
	envs      []*Env
	sealed    bool
	leading   bool
}

// New builds every row of the table and starts nothing.
func New(table []Row, o Options) (*Manager, error) {
	if err := Check(table); err != nil {
		return nil, err
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	m := &Manager{
		client: o.Client, rest: o.REST, log: o.Log, settings: o.Settings, metrics: newMetrics(o.Metrics), now: o.Now,
		caches: map[*Kind]*shared{}, recorders: map[string]record.EventRecorder{},
		events: record.NewBroadcaster(),
	}
	for _, r := range table {
		e := &Env{row: r, manager: m, log: o.Log.With("controller", r.Name)}
		if err := r.New(e); err != nil {
			return nil, fmt.Errorf("controller %s: %w", r.Name, err)
		}
		m.envs = append(m.envs, e)
	}
	m.sealed = true
	return m, nil
}

// share returns the kind's cache, made on first use while controllers are built.
func (m *Manager) share(k *Kind) *shared {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.caches[k]
	if s == nil {
		if m.sealed {
			panic("a cache of " + k.Name + " was asked for after the start")
		}
		s = k.open(m.client, k)
		m.caches[k] = s
	}
	return s
}

// shared returns the kind's cache if any controller reads the kind.
func (m *Manager) shared(k *Kind) *shared {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.caches[k]
}

func (m *Manager) recorder(name string) record.EventRecorder {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := m.recorders[name]
	if r == nil {
		r = m.events.NewRecorder(scheme.Scheme, corev1.EventSource{Component: name})
		m.recorders[name] = r
	}
	return r
}

// Run fills the caches at once and keeps them, then calls elect with the function
// that does the work; its context ends when leadership is lost, and then Run returns
// ErrLost. With a nil elect the controllers run as soon as the caches are warm. Run
// returns when all has ended.
func (m *Manager) Run(ctx context.Context, elect func(ctx context.Context, lead func(context.Context) error) error) error {
	g := run.New(ctx)
	for k, s := range m.caches {
		g.Go("cache of "+k.Name, s.run)
	}
	g.Go("controllers", func(ctx context.Context) error {
		defer g.Stop()
		if elect == nil {
			return m.lead(ctx)
		}
		ctx, cancel := context.WithCancelCause(ctx)
		defer cancel(nil)
		err := elect(ctx, func(term context.Context) error {
			err := m.lead(term)
			if err == nil && ctx.Err() == nil {
				err = ErrLost
				cancel(err)
			}
			return err
		})
		if errors.Is(context.Cause(ctx), ErrLost) {
			return ErrLost
		}
		return err
	})
	return g.Wait()
}

// Warm reports which caches have not listed yet; nil means all have.
func (m *Manager) Warm() error {
	for k, s := range m.caches {
		select {
		case <-s.synced:
		default:
			return fmt.Errorf("cache of %s is not filled yet", k.Name)
		}
	}
	return nil
}

func (m *Manager) lead(ctx context.Context) error {
	sink := m.events.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: m.client.CoreV1().Events("")})
	defer m.events.Shutdown()
	defer sink.Stop()
	m.mu.Lock()
	m.leading = true
	m.mu.Unlock()
	start := time.Now()
	g := run.New(ctx)
	for _, e := range m.envs {
		g.Go(e.row.Name, func(ctx context.Context) error {
			for _, s := range e.warm {
				select {
				case <-s.synced:
				case <-ctx.Done():
					return nil
				}
			}
			eg := run.New(ctx)
			for _, q := range e.queues {
				eg.Go(q.name, q.run)
			}
			for _, l := range e.loops {
				eg.Go(l.name, l.run)
			}
			return eg.Wait()
		})
	}
	m.log.Info("controllers started", "controllers", len(m.envs), "took", time.Since(start))
	return g.Wait()
}

// QueueState is what /debug/controllers shows of one queue.
type QueueState struct {
	Waiting   int       `json:"waiting"`
	Passes    uint64    `json:"passes"`
	Failed    uint64    `json:"failed"`
	Unsettled []string  `json:"unsettled,omitempty"`
	Recent    []Decided `json:"recent,omitempty"`
}

// ControllerState is what /debug/controllers shows of one controller.
type ControllerState struct {
	Reads  []string              `json:"reads,omitempty"`
	Writes []string              `json:"writes,omitempty"`
	Queues map[string]QueueState `json:"queues,omitempty"`
	Own    any                   `json:"own,omitempty"`
}

// CacheState is what /debug/controllers shows of one cache.
type CacheState struct {
	Objects int    `json:"objects"`
	Rev     uint64 `json:"rev"`
	Synced  bool   `json:"synced"`
}

// State is the answer of /debug/controllers.
type State struct {
	Leading     bool                       `json:"leading"`
	Caches      map[string]CacheState      `json:"caches"`
	Controllers map[string]ControllerState `json:"controllers"`
}

// State shows queues, caches and the last decisions.
func (m *Manager) State() State {
	m.mu.Lock()
	st := State{Leading: m.leading, Caches: map[string]CacheState{}, Controllers: map[string]ControllerState{}}
	m.mu.Unlock()
	for k, s := range m.caches {
		cs := CacheState{Rev: s.rev()}
		select {
		case <-s.synced:
			cs.Synced, cs.Objects = true, s.count()
		default:
		}
		st.Caches[k.Name] = cs
	}
	for _, e := range m.envs {
		c := ControllerState{Reads: e.row.Reads, Writes: e.row.Writes, Queues: map[string]QueueState{}}
		for _, q := range e.queues {
			q.mu.Lock()
			qs := QueueState{Waiting: q.work.Len(), Passes: q.passes, Failed: q.failed, Recent: append([]Decided(nil), q.history...)}
			for k := range q.debts {
				qs.Unsettled = append(qs.Unsettled, k.String())
			}
			q.mu.Unlock()
			c.Queues[q.name] = qs
		}
		if e.debug != nil {
			c.Own = e.debug()
		}
		st.Controllers[e.row.Name] = c
	}
	return st
}
