package worker

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/keelson/keelson/kubelet/pod"
	"github.com/keelson/keelson/kubelet/probes"
	"github.com/keelson/keelson/kubelet/volumes"
)

// worker carries one pod. Fields without a note belong to the goroutine of run.
type worker struct {
	*Pool
	uid types.UID
	log *slog.Logger

	mu       sync.Mutex
	want     *corev1.Pod // guarded by mu
	removed  bool        // guarded by mu
	ended    *pod.End    // guarded by mu
	look     bool        // the runtime must be looked at; guarded by mu
	retrying bool        // forget the delays of failures; guarded by mu
	resize   resize      // guarded by mu

	wake     chan struct{} // a token: something above has changed
	results  chan result
	gone     chan struct{} // closed when nothing is left
	admitted atomic.Bool
	view     atomic.Pointer[view]
	status   statusWriter

	memory  pod.Memory
	seen    pod.Seen
	last    *corev1.PodStatus // as computed by the last pass
	mounted volumes.Set
	cancels map[string]context.CancelCauseFunc // of the running operations that may be cut short
	ops     sync.WaitGroup
	targets []probes.Target // as last declared
	podIP   string          // as last declared to the probes
	waits   map[string]pod.Wait
	expects int64

	began  time.Time   // when the kubelet first saw the pod
	passed *corev1.Pod // the object of the last pass; nil before the first
	fresh  bool        // the pod has not run yet, and nothing of it was adopted

	saved []byte // the record of resources as it is on disk

	alive   map[string]bool // IDs of the containers that were seen to run, and not yet to have ended
	pulling atomic.Int64    // nanoseconds that getting images took
}

// view is what others may see of a worker.
type view struct {
	pod      *corev1.Pod // with the status as computed
	seen     pod.Seen
	phase    pod.Phase
	failing  bool
	decision string
	busy     []string
	failures map[string]pod.Failure
}

// result is the end of an operation.
type result struct {
	target string
	look   bool
	apply  func(m *pod.Memory) // run by the worker's goroutine
}

func newWorker(p *Pool, o *corev1.Pod) *worker {
	w := &worker{
		Pool: p, began: time.Now(), uid: o.UID, want: o, look: true,
		log:     p.Log.With("pod", o.Namespace+"/"+o.Name, "uid", o.UID),
		wake:    make(chan struct{}, 1),
		results: make(chan result, 16),
		gone:    make(chan struct{}),
		cancels: map[string]context.CancelCauseFunc{},
		waits:   map[string]pod.Wait{},
		alive:   map[string]bool{},
	}
	w.memory = pod.Memory{Busy: map[string]bool{}, Failures: map[string]pod.Failure{}, Backoff: map[string]pod.Backoff{},
		Probes: map[string]pod.Probe{}, Killed: map[string]time.Time{}, Applied: map[string]corev1.ResourceRequirements{}}
	w.status.worker = w
	return w
}

func (w *worker) object() *corev1.Pod {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.want
}

func (w *worker) update(o *corev1.Pod, removed bool) {
	w.mu.Lock()
	old := w.want
	w.want = o
	if removed {
		w.removed = true
	}
	if removed || old.DeletionTimestamp == nil && o.DeletionTimestamp != nil {
		w.retrying = true // what a start was waiting for does not hold up the end
	}
	w.mu.Unlock()
	if old.Generation != o.Generation {
		for _, a := range pod.AsksFor(old, o) {
			w.Metrics.ResizeAsked(a.Resource, a.Requirement, a.Operation)
		}
	}
	if !maps.Equal(old.Labels, o.Labels) || !maps.Equal(old.Annotations, o.Annotations) {
		w.Volumes.Changed(o)
	}
	w.signal()
}

func (w *worker) end(e *pod.End) {
	w.mu.Lock()
	if w.ended == nil {
		w.ended = e
	}
	w.mu.Unlock()
	w.signal()
}

func (w *worker) poke(look bool) {
	w.mu.Lock()
	w.look = w.look || look
	w.mu.Unlock()
	w.signal()
}

func (w *worker) retry() {
	w.mu.Lock()
	w.retrying = true
	w.mu.Unlock()
	w.signal()
}

func (w *worker) signal() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// run is the worker's loop.
func (w *worker) run() {
	defer func() {
		for _, cancel := range w.cancels {
			cancel(context.Canceled)
		}
		w.drain()
		w.Changes.Expect(-w.expects)
	}()
	if !w.begin() {
		return
	}
	for {
		again := w.pass()
		if w.finished() {
			return
		}
		if !w.wait(again) {
			return
		}
	}
}

// drain waits for the operations; their results are of no use any more.
func (w *worker) drain() {
	done := make(chan struct{})
	go func() { w.ops.Wait(); close(done) }()
	for {
		select {
		case <-w.results:
		case <-done:
			return
		}
	}
}

// begin observes the pod once and admits it unless it was admitted before.
func (w *worker) begin() bool {
	for !w.observe() {
		if !w.wait(time.Now().Add(w.options.Retry)) {
			return false
		}
	}
	o := w.object()
	w.last = o.Status.DeepCopy()
	w.fresh = len(w.seen.Sandboxes) == 0 && (o.Status.Phase == corev1.PodPending || o.Status.Phase == "")
	known := len(w.seen.Sandboxes) > 0 || o.Status.StartTime != nil || pod.IsTerminal(o.Status.Phase)
	if known {
		w.recall(o)
	}
	if pod.IsTerminal(o.Status.Phase) && len(o.Status.ContainerStatuses) == 0 && len(w.seen.Sandboxes) == 0 {
		// Rejected before the kubelet was restarted.
		w.mu.Lock()
		w.ended = &pod.End{Reason: o.Status.Reason, Message: o.Status.Message, Rejected: true}
		w.mu.Unlock()
		w.memory.Clean = true
		return true
	}
	if w.isRemoved() || known {
		w.admitted.Store(true)
		if w.Objects != nil && !w.isRemoved() {
			w.Objects.Use(o)
		}
		return true
	}
	// Without the Node object nothing can be said about room on the node.
	for w.Client != nil && !pod.IsStatic(o) && w.Node.Node() == nil {
		if !w.wait(time.Now().Add(100 * time.Millisecond)) {
			return false
		}
	}
	if o = w.object(); o.DeletionTimestamp != nil || w.isRemoved() {
		w.admitted.Store(true)
		return true
	}
	end, preempt := w.admit(w, o)
	if end != nil {
		w.log.Info("pod rejected", "reason", end.Reason)
		w.Metrics.Rejected(end.Reason)
		message := end.Message
		if len(message) > len("Pod was rejected: ") {
			message = message[len("Pod was rejected: "):]
		}
		w.Events.Event(o, corev1.EventTypeWarning, end.Reason, message)
		w.mu.Lock()
		w.ended = end
		w.mu.Unlock()
		w.memory.Clean = true
		return true
	}
	if !w.makeRoom(preempt) {
		return false
	}
	if w.Objects != nil {
		w.Objects.Use(o)
	}
	return true
}

// makeRoom ends pods and waits until nothing of them runs; false: the pool ends. Room is made for a critical
// pod, so that what does not end in its time is not waited for.
func (w *worker) makeRoom(preempt pod.Preemption) bool {
	var last time.Time
	var ending []*worker
	for _, o := range preempt.Pods {
		v := w.worker(o.UID)
		if v == nil {
			continue
		}
		e := pod.Preempted()
		w.log.Info("a pod makes room", "pod", o.Namespace+"/"+o.Name, "uid", o.UID, "for", pod.Full(w.object()))
		w.Events.Event(o, corev1.EventTypeWarning, e.Reason, e.Message)
		w.Metrics.Preempted(string(preempt.Lacks))
		v.end(e)
		ending = append(ending, v)
		if at := time.Now().Add(pod.StopGrace(o, e) + preemptSlack); at.After(last) {
			last = at
		}
	}
	for _, v := range ending {
		for !v.reached(pod.Released) && time.Now().Before(last) && w.object().DeletionTimestamp == nil && !w.isRemoved() {
			if !w.wait(time.Now().Add(100 * time.Millisecond)) {
				return false
			}
		}
	}
	return true
}

// preemptSlack is how much longer than its grace period the end of a pod may take that makes room.
const preemptSlack = 10 * time.Second

func (w *worker) isRemoved() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.removed
}

func (w *worker) observe() bool {
	w.mu.Lock()
	w.look = false
	w.mu.Unlock()
	seen, err := w.Observer.Pod(w.ctx, w.uid)
	if err != nil {
		if w.ctx.Err() == nil {
			w.log.Warn("the runtime does not answer", "err", err)
		}
		w.mu.Lock()
		w.look = true
		w.mu.Unlock()
		return false
	}
	w.seen = seen
	return true
}

// pass observes, decides and begins the steps; it returns when to pass again at the latest.
func (w *worker) pass() time.Time {
	w.mu.Lock()
	look, removed := w.look, w.removed
	o := w.want
	w.memory.End = w.ended
	retrying := w.retrying
	w.retrying = false
	w.mu.Unlock()
	if look && !w.observe() {
		return time.Now().Add(w.options.Retry)
	}
	if retrying {
		for t, f := range w.memory.Failures {
			if !f.Image {
				f.Until = time.Time{}
				w.memory.Failures[t] = f
			}
		}
	}
	now := time.Now()
	defer func(o *corev1.Pod) { w.measure(o, now) }(o)
	o = w.given(o)
	in := pod.Input{Pod: o, Static: pod.IsStatic(o), Removed: removed, Last: w.last,
		Memory: w.memory, Node: w.facts(), Now: now}
	in.Seen = pod.Recall(w.seen, o, w.last)
	w.resizing(o, in.Seen)
	w.probe(&in)
	in.Memory = w.memory
	d := pod.Decide(in)
	if d.Phase > w.memory.Phase {
		w.enter(d, o, now)
	}
	in.Memory = w.memory
	st := pod.Status(in, d)
	w.announce(o, d)
	w.last = st
	before := w.view.Load()
	w.show(o, st, &in, d)
	if w.memory.Phase >= pod.Stopped && (before == nil || before.phase < pod.Stopped) || before == nil && w.hungry.Swap(false) {
		w.roomMade() // others may grow
	}
	w.expect(o)
	if !removed {
		w.status.publish(o, st)
	}
	if err := w.record(); err != nil {
		w.log.Warn("what the pod has been given is not recorded", "err", err)
	}
	for _, s := range d.Steps {
		w.begins(o, s)
	}
	return d.Again
}

// measure counts a pass that began at a time.
func (w *worker) measure(o *corev1.Pod, began time.Time) {
	kind := "sync"
	switch {
	case w.memory.Phase >= pod.Stopping:
		kind = "kill"
	case w.passed == nil:
		kind = "create"
	case w.passed != o:
		kind = "update"
	}
	if w.passed == nil {
		w.Metrics.WorkerStarts(began.Sub(w.began), len(o.Spec.Containers))
	}
	w.passed = o
	now := time.Now()
	w.Metrics.Pass(kind, now.Sub(began))
	for i := range w.seen.Containers {
		switch c := &w.seen.Containers[i]; {
		case c.State == pod.Live:
			w.alive[c.ID] = true
		case c.State == pod.Exited && w.alive[c.ID]:
			delete(w.alive, c.ID)
			w.Metrics.ContainerEnded(containerType(o, c.Name), c.ExitCode, c.Reason)
		}
	}
	if w.fresh && w.last.Phase != corev1.PodPending {
		w.fresh = false
		if w.last.Phase == corev1.PodRunning {
			w.Metrics.PodRuns(now.Sub(w.began))
			if !o.CreationTimestamp.IsZero() { // a static pod has none
				aside := time.Duration(w.pulling.Load())
				for _, s := range w.last.InitContainerStatuses {
					if t := s.State.Terminated; t != nil {
						aside += t.FinishedAt.Sub(t.StartedAt.Time)
					}
				}
				w.Metrics.PodStarts(now.Sub(o.CreationTimestamp.Time), aside)
			}
		}
	}
}

// containerType is what metrics call a container's kind.
func containerType(o *corev1.Pod, name string) string {
	switch _, kind := pod.Find(o, name); kind {
	case pod.Init, pod.Sidecar:
		return "init_container"
	case pod.Ephemeral:
		return "ephemeral_container"
	}
	return "container"
}

// enter notes a new phase.
func (w *worker) enter(d pod.Decision, o *corev1.Pod, now time.Time) {
	w.memory.Phase = d.Phase
	if d.Phase >= pod.Stopping {
		if w.memory.StopAt.IsZero() {
			w.memory.StopAt = now.Add(pod.StopGrace(o, d.End))
		}
		if d.End != nil && w.memory.End == nil {
			w.mu.Lock()
			w.ended = d.End
			w.mu.Unlock()
			w.memory.End = d.End
			w.Events.Event(o, corev1.EventTypeNormal, d.End.Reason, d.End.Message)
		}
		for _, cancel := range w.cancels {
			cancel(errEnding)
		}
	}
	w.log.Debug("phase", "phase", d.Phase.String())
}

// probe tells the probes room which containers run, and takes over its results.
func (w *worker) probe(in *pod.Input) {
	// A shorter grace period may have come since Stopping began.
	if w.memory.Phase >= pod.Stopping && !w.memory.StopAt.IsZero() {
		if at := in.Now.Add(pod.StopGrace(in.Pod, w.memory.End)); at.Before(w.memory.StopAt) {
			w.memory.StopAt = at
		}
	}
	var targets []probes.Target
	ending := w.memory.Phase > pod.Running || in.Removed || in.Pod.DeletionTimestamp != nil
	for i := range in.Seen.Containers {
		c := &in.Seen.Containers[i]
		if c.State != pod.Live {
			continue
		}
		spec, kind := pod.Find(in.Pod, c.Name)
		if spec == nil || kind == pod.Ephemeral || kind == pod.Init {
			continue
		}
		t := probes.Target{Container: spec, ID: c.ID, Started: c.Started, Terminating: ending}
		if old := pod.LastStatus(w.last, c.Name); old != nil && bare(old.ContainerID) == c.ID {
			t.Initial = probes.State{Ready: old.Ready, Started: old.Started != nil && *old.Started}
		}
		targets = append(targets, t)
	}
	ip := ""
	shown := *in.Pod
	if len(in.Seen.Sandboxes) > 0 && !in.Pod.Spec.HostNetwork {
		ip, shown.Status.PodIPs = pod.PodIPs(in.Seen.Sandboxes[0], in.Node)
	} else if len(in.Node.HostIPs) > 0 {
		ip = in.Node.HostIPs[0].String()
		shown.Status.PodIPs = []corev1.PodIP{{IP: ip}}
	}
	shown.Status.PodIP = ip
	same := slices.EqualFunc(targets, w.targets, func(a, b probes.Target) bool {
		return a.ID == b.ID && a.Terminating == b.Terminating
	})
	if !same || ip != w.podIP {
		w.targets, w.podIP = targets, ip
		w.Probes.Set(&shown, targets)
	}
	clear(w.memory.Probes)
	for _, t := range targets {
		s := w.Probes.State(t.ID)
		p := pod.Probe{Started: s.Started, Ready: s.Ready}
		if s.Failed != nil {
			p.Failed, p.GracePeriodSeconds = s.Failed.Kind, s.Failed.GracePeriodSeconds
		}
		w.memory.Probes[t.ID] = p
	}
}

// announce records a BackOff event when a container begins to wait.
func (w *worker) announce(o *corev1.Pod, d pod.Decision) {
	for name, wait := range d.Waits {
		if w.waits[name] == wait {
			continue
		}
		spec, _ := pod.Find(o, name)
		switch wait.Reason {
		case "CrashLoopBackOff":
			w.event(o, name, corev1.EventTypeWarning, "BackOff", "Back-off restarting failed container "+name+" in pod "+pod.Full(o))
		case "ImagePullBackOff":
			if spec != nil && w.waits[name].Reason != "ImagePullBackOff" {
				w.event(o, name, corev1.EventTypeNormal, "BackOff", "Back-off pulling image \""+spec.Image+"\"")
				w.event(o, name, corev1.EventTypeWarning, "Failed", "Error: ImagePullBackOff")
			}
		}
	}
	w.waits = d.Waits
}

// show publishes the worker's state to other rooms.
func (w *worker) show(o *corev1.Pod, st *corev1.PodStatus, in *pod.Input, d pod.Decision) {
	shown := *o
	shown.Status = *st
	v := &view{pod: &shown, seen: in.Seen, phase: w.memory.Phase, decision: d.String(), failures: maps.Clone(w.memory.Failures)}
	v.failing = len(w.memory.Failures) > 0
	for t, busy := range w.memory.Busy {
		if busy {
			v.busy = append(v.busy, t)
		}
	}
	w.view.Store(v)
}

// expect tells the listing how many of the pod's containers are likely to end soon by
// themselves: those that a restart policy lets end, and those being stopped.
func (w *worker) expect(o *corev1.Pod) {
	n := int64(0)
	for i := range w.seen.Containers {
		c := &w.seen.Containers[i]
		if c.State != pod.Live {
			continue
		}
		spec, kind := pod.Find(o, c.Name)
		if spec != nil && (kind == pod.Init || !pod.Restarts(o, spec, kind, 0)) {
			n++
		}
	}
	w.Changes.Expect(n - w.expects)
	w.expects = n
}

// wait blocks until there is something to do; false: the pool ends.
func (w *worker) wait(again time.Time) bool {
	var timer <-chan time.Time
	if !again.IsZero() {
		t := time.NewTimer(max(time.Until(again), 0))
		defer t.Stop()
		timer = t.C
	}
	select {
	case <-w.ctx.Done():
		return false
	case <-w.wake:
	case <-timer:
	case r := <-w.results:
		w.take(r)
	}
	for { // what else has come in the meantime
		select {
		case r := <-w.results:
			w.take(r)
		default:
			return w.ctx.Err() == nil
		}
	}
}

func (w *worker) take(r result) {
	delete(w.memory.Busy, r.target)
	delete(w.cancels, r.target)
	if r.apply != nil {
		r.apply(&w.memory)
	}
	if r.look {
		w.mu.Lock()
		w.look = true
		w.mu.Unlock()
	}
}

// reached reports whether the pod's end has come to a phase.
func (w *worker) reached(phase pod.Phase) bool {
	v := w.view.Load()
	return v != nil && v.phase >= phase || w.finished()
}

// finished reports whether Forget has been carried out.
func (w *worker) finished() bool {
	select {
	case <-w.gone:
		return true
	default:
		return false
	}
}
