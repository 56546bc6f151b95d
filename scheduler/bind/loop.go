// Package bind is the scheduler at work: it observes the cluster, decides pod by pod, and is the only
// room that writes to the API.
//
// The main calls are [New], [Scheduler.Run] (observes, for the whole life of the process) and
// [Scheduler.Lead] (decides, while this copy holds the lease). A standby keeps its caches and queue as
// warm as the leader's, so that it decides the moment it leads.
//
// One goroutine, the loop, owns queue, cache and cycle. Everybody else hands it functions through the
// inbox and never waits for it:
//
//	informers ──parsed objects──► inbox ──► loop: apply to cache, wake queue
//	                                        loop: pop, decide, assume ──► binders (bounded) ─┐
//	                                 ▲                    └─ refused ──► writers (bounded)   │
//	                                 └────────────────── results ◄──────────────────────────┘
//
// It promises: a pod is bound at most once by this copy, with its UID as precondition, so that a pod of
// the same name made later is never bound by an old decision; what a failed bind had assumed is forgotten
// before the pod is tried again; after a crash at any line the next leader starts from what the API shows.
//
// Bounds: the inbox holds maxInbox functions, then the informers wait (their watches back up, and the
// server closes them if need be); Binders binds are in flight, then no pod is decided; status patches are
// coalesced by pod; events beyond the recorder's buffer are dropped and counted.
//
// To debug: /debug/queue (what waits where), /debug/pending (why), /debug/nodes. To test: package schedtest.
package bind

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"github.com/keelson/keelson/libs/run"
	"github.com/keelson/keelson/scheduler/cache"
	"github.com/keelson/keelson/scheduler/cycle"
	"github.com/keelson/keelson/scheduler/framework"
	"github.com/keelson/keelson/scheduler/plugins"
	"github.com/keelson/keelson/scheduler/queue"
)

const maxInbox = 1 << 16

// Config of the room.
type Config struct {
	SchedulerName string // pods with this spec.schedulerName are ours
	Binders       int    // binds in flight at once
	Queue         queue.Config
	Args          framework.Args
	Instance      string // who reports events
	Seed          uint64 // of the choice among equal nodes
}

// Scheduler is made by New.
type Scheduler struct {
	cfg     Config
	api     kubernetes.Interface
	log     *slog.Logger
	metrics *Metrics
	inputs  *inputs
	events  *recorder
	status  *statusWriter

	inboxMu sync.Mutex // guards inbox and ended
	ended   bool       // the loop takes nothing any more
	room    *sync.Cond // signalled when inbox has been emptied
	inbox   []func()
	bell    chan struct{} // rung when inbox stops being empty
	busy    atomic.Int64  // when the loop began what it is at, in Unix nanoseconds; 0 while it waits

	// The rest belongs to the loop.
	cache    *cache.Cache
	queue    *queue.Queue
	cycle    *cycle.Cycle
	leading  bool
	inFlight int
	idle     []chan struct{}           // closed when inFlight comes to 0
	evicting map[types.UID][]types.UID // preemptor → victims that have not gone
	waiting  []binding                 // decided pods whose volumes are not bound yet
	seed     uint64
	laps     laps
	work     chan binding
}

// New wires the room; nothing runs yet.
func New(cfg Config, api kubernetes.Interface, m *Metrics, log *slog.Logger) *Scheduler {
	s := &Scheduler{
		cfg: cfg, api: api, log: log, metrics: m,
		bell:     make(chan struct{}, 1),
		cache:    cache.New(),
		queue:    queue.New(cfg.Queue, plugins.Table, plugins.PrioritySort),
		cycle:    cycle.New(plugins.Table, cfg.Args),
		evicting: map[types.UID][]types.UID{},
		seed:     cfg.Seed,
		work:     make(chan binding, cfg.Binders),
	}
	s.cycle.Lap = s.laps.lap
	s.room = sync.NewCond(&s.inboxMu)
	s.events = newRecorder(api, cfg.SchedulerName, cfg.Instance, m, log)
	s.status = newStatusWriter(api, log)
	s.inputs = newInputs(s)
	return s
}

// Run observes until ctx ends.
func (s *Scheduler) Run(ctx context.Context) error {
	g := run.New(ctx)
	s.inputs.start(g)
	g.Go("events", s.events.run)
	g.Go("status", s.status.run)
	for range s.cfg.Binders {
		g.Go("binder", s.bindAll)
	}
	g.Go("loop", s.loop)
	context.AfterFunc(g.Context(), func() {
		s.inboxMu.Lock()
		defer s.inboxMu.Unlock()
		s.ended = true
		s.room.Broadcast()
	})
	return g.Wait()
}

// Ready tells whether every cache has its first state.
func (s *Scheduler) Ready() error { return s.inputs.synced() }

// Alive fails when the loop has been at one thing for too long.
func (s *Scheduler) Alive() error {
	if since := s.busy.Load(); since != 0 {
		if d := time.Since(time.Unix(0, since)); d > 30*time.Second {
			return fmt.Errorf("the loop has been at one thing for %s", d.Round(time.Second))
		}
	}
	return nil
}

// Lead schedules until ctx ends and the binds in flight are done.
func (s *Scheduler) Lead(ctx context.Context) error {
	if err := s.inputs.wait(ctx); err != nil {
		return nil // ended before it began
	}
	s.post(func() { s.leading = true })
	<-ctx.Done()
	idle := make(chan struct{})
	s.post(func() {
		s.leading = false
		s.idle = append(s.idle, idle)
		s.settle()
	})
	select {
	case <-idle:
	case <-time.After(5 * time.Second):
		s.log.Warn("binds were still in flight when the lead ended")
	}
	return nil
}

// post hands f to the loop.
func (s *Scheduler) post(f func()) {
	s.inboxMu.Lock()
	for len(s.inbox) >= maxInbox && !s.ended {
		s.room.Wait()
	}
	s.inbox = append(s.inbox, f)
	s.inboxMu.Unlock()
	select {
	case s.bell <- struct{}{}:
	default:
	}
}

// ask runs f on the loop and waits for it.
func (s *Scheduler) ask(f func()) error {
	done := make(chan struct{})
	s.post(func() { f(); close(done) })
	select {
	case <-done:
		return nil
	case <-time.After(5 * time.Second):
		return errors.New("the loop is busy")
	}
}

func (s *Scheduler) loop(ctx context.Context) error {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for ctx.Err() == nil {
		now := time.Now()
		s.busy.Store(now.UnixNano())
		s.drain()
		next := s.queue.Tick(now)
		if len(s.waiting) > 0 {
			s.lookAtVolumes(now)
			if soon := now.Add(volumesEvery); next.IsZero() || soon.Before(next) {
				next = soon
			}
		}
		if s.leading && s.inFlight < s.cfg.Binders {
			if it := s.queue.Pop(now); it != nil {
				s.one(it, now)
				continue
			}
		}
		s.busy.Store(0)
		wait := time.Hour
		if !next.IsZero() {
			wait = max(time.Until(next), 0)
		}
		timer.Reset(wait)
		select {
		case <-ctx.Done():
		case <-s.bell:
		case <-timer.C:
		}
	}
	return nil
}

func (s *Scheduler) drain() {
	s.inboxMu.Lock()
	inbox := s.inbox
	s.inbox = nil
	s.inboxMu.Unlock()
	if len(inbox) >= maxInbox {
		s.room.Broadcast()
	}
	for _, f := range inbox {
		f()
	}
}

// wake tells the queue of an event.
func (s *Scheduler) wake(e framework.Event) {
	if e.Kind != 0 {
		s.queue.Wake(&e, time.Now())
	}
}

// one decides about a pod and hands the decision on.
func (s *Scheduler) one(it *queue.Item, now time.Time) {
	p := it.Pod
	if p.DeletionTimestamp != nil {
		s.queue.Delete(p.UID)
		return
	}
	s.seed++
	s.laps.start(now)
	out := s.cycle.Decide(s.cache.Snapshot(), p, s.seed)
	took := time.Since(now)
	s.metrics.decided(&s.laps, &out, s.cfg.SchedulerName)
	s.metrics.algorithm.Observe(took.Seconds())
	if out.Node == nil {
		s.refused(it, out, now)
		s.metrics.attempt("unschedulable", s.cfg.SchedulerName, time.Since(now))
		return
	}
	node := out.Node.Node.Name
	delete(s.evicting, p.UID)
	s.cache.Assume(p, node)
	s.cache.ChooseVolumes(out.Volumes)
	s.inFlight++
	s.log.Debug("decided", "pod", p.Name.String(), "node", node, "feasible", out.Feasible, "took", took)
	s.work <- binding{pod: p, node: node, volumes: out.Volumes, began: now, entered: it.Entered, attempts: it.Attempts}
}

// refused puts a pod back, tells the user why, and makes room if a decision says how.
func (s *Scheduler) refused(it *queue.Item, out cycle.Outcome, now time.Time) {
	p := it.Pod
	s.log.Debug("refused", "pod", p.Name.String(), "reason", out.Message)
	nominated := p.Status.NominatedNodeName
	switch {
	case s.stillEvicting(p.UID):
		// Room is being made already; the next eviction wakes the pod again.
	case out.Preempt != nil:
		nominated = out.Preempt.Node.Node.Name
		s.preempt(p, out.Preempt)
	case nominated != "":
		if n := s.cache.Snapshot().Node(nominated); n == nil || !cycle.Leaving(n, p) {
			nominated = ""
			s.cache.Unnominate(p.UID)
		}
	}
	if nominated != p.Status.NominatedNodeName {
		p = withNomination(p, nominated)
		s.queue.Add(p, now)
	}
	if nominated != "" {
		s.cache.Nominate(p, nominated)
	}
	s.queue.Failed(p.UID, out.Refusers, out.Message, now)
	s.tell(p, corev1.PodReasonUnschedulable, out.Message)
}

// tell writes condition PodScheduled and the event FailedScheduling.
func (s *Scheduler) tell(p *framework.Pod, reason, message string) {
	s.status.set(p, corev1.PodCondition{Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Reason: reason, Message: message, ObservedGeneration: p.Generation}, p.Status.NominatedNodeName)
	s.events.record(p.Pod, nil, corev1.EventTypeWarning, "FailedScheduling", "Scheduling", message)
}

func withNomination(p *framework.Pod, node string) *framework.Pod {
	out, copied := *p, *p.Pod
	copied.Status.NominatedNodeName = node
	out.Pod = &copied
	return &out
}

// stillEvicting tells whether a victim of an earlier preemption for the pod is still on its node.
func (s *Scheduler) stillEvicting(preemptor types.UID) bool {
	victims := slices.DeleteFunc(s.evicting[preemptor], func(uid types.UID) bool { return s.cache.Pod(uid) == nil })
	if len(victims) == 0 {
		delete(s.evicting, preemptor)
		return false
	}
	s.evicting[preemptor] = victims
	return true
}

// preempt evicts the victims of a decision, on the side.
func (s *Scheduler) preempt(p *framework.Pod, d *cycle.Preemption) {
	node := d.Node.Node.Name
	s.metrics.preemptionAttempts.Inc()
	s.metrics.preemptionVictims.Observe(float64(len(d.Victims)))
	uids := make([]types.UID, len(d.Victims))
	for i, v := range d.Victims {
		uids[i] = v.UID
	}
	s.evicting[p.UID] = uids
	// Pods of lower priority that were promised this node must look again.
	for _, q := range d.Node.Nominated {
		if q.Priority < p.Priority {
			s.cache.Unnominate(q.UID)
			if it := s.queue.Get(q.UID); it != nil {
				free := withNomination(it.Pod, "")
				s.queue.Add(free, time.Now())
				s.status.set(it.Pod, corev1.PodCondition{}, "")
			}
		}
	}
	s.cache.Nominate(withNomination(p, node), node)
	s.inFlight++
	s.work <- binding{pod: p, node: node, victims: d.Victims}
}

// settle tells those who wait for the last bind.
func (s *Scheduler) settle() {
	if s.inFlight > 0 {
		return
	}
	for _, ch := range s.idle {
		close(ch)
	}
	s.idle = nil
}

// setPending takes in the state of a pod without a node.
func (s *Scheduler) setPending(p *framework.Pod) {
	if p.Spec.SchedulerName != s.cfg.SchedulerName || p.DeletionTimestamp != nil {
		s.gone(p.UID)
		return
	}
	if s.cache.Assumed(p.UID) {
		s.queue.Add(p, time.Now())
		return
	}
	if own := s.cache.Nominated(p.UID); own != "" && p.Status.NominatedNodeName != own {
		p = withNomination(p, own) // our word has not reached the API yet
	} else if p.Status.NominatedNodeName != "" && own == "" && s.queue.Get(p.UID) == nil {
		s.cache.Nominate(p, p.Status.NominatedNodeName) // a leader before us made room for it
	}
	s.queue.Add(p, time.Now())
	if it := s.queue.Get(p.UID); it != nil && it.Place == queue.Gated {
		s.status.set(p, corev1.PodCondition{Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Reason: corev1.PodReasonSchedulingGated, Message: "Scheduling is blocked due to non-empty scheduling gates", ObservedGeneration: p.Generation}, "")
	}
}

// setPlaced takes in the state of a pod with a node.
func (s *Scheduler) setPlaced(p *framework.Pod) {
	s.queue.Delete(p.UID)
	s.status.forget(p.UID)
	s.wake(s.cache.SetPod(p))
}

// gone takes in that a pod does not exist any more, or is none of ours.
func (s *Scheduler) gone(uid types.UID) {
	s.queue.Delete(uid)
	s.status.forget(uid)
	delete(s.evicting, uid)
	s.wake(s.cache.RemovePod(uid))
}

// PendingPod is a row of /debug/pending.
type PendingPod struct {
	Pod, Place, Message string
	Refusers            []string `json:",omitempty"`
	Nominated           string   `json:",omitempty"`
	Attempts            int
	Entered, Since      time.Time
}

// Pending says of every waiting pod where it waits and why.
func (s *Scheduler) Pending() any {
	out := []PendingPod{}
	if err := s.ask(func() {
		for _, it := range s.queue.Dump() {
			out = append(out, PendingPod{Pod: it.Pod.Name.String(), Place: it.Place.String(), Message: it.Message, Refusers: it.Refusers,
				Nominated: it.Pod.Status.NominatedNodeName, Attempts: it.Attempts, Entered: it.Entered, Since: it.Since})
		}
	}); err != nil {
		return err.Error()
	}
	return out
}

// QueueLengths are the numbers of pods by place, with the binds in flight.
func (s *Scheduler) QueueLengths() any {
	out := map[string]any{}
	if err := s.ask(func() {
		for place, n := range s.queue.Lens() {
			out[place.String()] = n
		}
		out["binds in flight"], out["leading"] = s.inFlight, s.leading
	}); err != nil {
		return err.Error()
	}
	return out
}

// NodeUse is a row of /debug/nodes.
type NodeUse struct {
	Node                   string
	Generation             uint64
	Pods                   int
	Requested, Allocatable framework.Amounts
	Nominated              []string `json:",omitempty"`
}

// Nodes shows the cache.
func (s *Scheduler) Nodes() any {
	out := []NodeUse{}
	if err := s.ask(func() {
		for _, n := range s.cache.Snapshot().Nodes {
			if n == nil {
				continue
			}
			use := NodeUse{Node: n.Node.Name, Generation: n.Generation, Pods: len(n.Pods), Requested: n.Requested, Allocatable: n.Allocatable}
			for _, p := range n.Nominated {
				use.Nominated = append(use.Nominated, p.Name.String())
			}
			out = append(out, use)
		}
	}); err != nil {
		return err.Error()
	}
	return out
}
