// Package probes asks running containers how they are, and keeps the answers.
//
// It knows the startup, liveness and readiness probes of the containers that pod
// workers have declared with Set, what each has answered, and what follows from the
// answers: State says whether a container has started, is ready, or must be restarted.
//
//	Set ──> due ──> attempt (own goroutine) ──> Count.Observe ──> verdict changed? ──> changed(pod)
//	         ^                                       │
//	         └──────── period, or sooner while warming up
//
// It promises that a changed verdict is told as soon as it is reached, that no probe
// of a container runs twice at a time, and that a container adopted after a restart
// of the kubelet keeps its Initial state until a probe says otherwise. It does not
// restart or change anything itself.
//
// One goroutine (Run) owns the timetable and waits for the attempts that it starts;
// maps are guarded by one mutex that is never held while a probe runs or a callback
// is called. /debug/probes shows Debug. Tests give a fake exec and real listeners.
package probes

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"sort"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/record"
)

// Exec runs a command in a container and returns its output, stdout before stderr.
// A command that ran and failed has a code and no error. An error that is
// context.DeadlineExceeded means that the command was given its time.
type Exec func(ctx context.Context, containerID string, command []string, timeout time.Duration) (output []byte, code int, err error)

// key names one probe of one container.
type key struct {
	id   string // the runtime's container ID
	kind Kind
}

// entry is the timetable's line for one probe of one container.
type entry struct {
	key
	pod    *corev1.Pod
	target Target
	spec   *corev1.Probe

	count  Count
	due    time.Time
	tries  int  // attempts so far
	busy   bool // an attempt is under way
	warm   bool // readiness that has never succeeded
	cancel context.CancelFunc
	last   attempt
}

// Manager runs the probes of a node.
type Manager struct {
	exec    Exec
	events  record.EventRecorder
	changed func(types.UID)
	log     *slog.Logger
	total   *prometheus.CounterVec
	took    *prometheus.HistogramVec
	wake    chan struct{}

	mu         sync.Mutex
	entries    map[key]*entry                // guarded by mu, as are the next two
	containers map[string]bool               // declared container IDs
	byPod      map[types.UID]map[string]bool // the same by pod
}

// New returns a Manager; Run makes it work. changed is called, with no lock held, each
// time that the state of one of a pod's containers has changed.
func New(exec Exec, events record.EventRecorder, changed func(types.UID), log *slog.Logger) *Manager {
	return &Manager{
		exec: exec, events: events, changed: changed, log: log,
		total: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "prober_probe_total",
			Help: "Cumulative number of a liveness, readiness or startup probe for a container by result.",
		}, []string{"probe_type", "result", "container", "pod", "namespace", "pod_uid"}),
		took: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "prober_probe_duration_seconds",
			Help: "Duration in seconds for a probe response.",
		}, []string{"probe_type", "container", "pod", "namespace"}),
		wake:       make(chan struct{}, 1),
		entries:    map[key]*entry{},
		containers: map[string]bool{},
		byPod:      map[types.UID]map[string]bool{},
	}
}

// Collector is what /metrics/probes serves.
func (m *Manager) Collector() prometheus.Collector { return collectors{m.total, m.took} }

type collectors []prometheus.Collector

func (all collectors) Describe(ch chan<- *prometheus.Desc) {
	for _, c := range all {
		c.Describe(ch)
	}
}

func (all collectors) Collect(ch chan<- prometheus.Metric) {
	for _, c := range all {
		c.Collect(ch)
	}
}

// Set declares all containers of the pod that are to be probed now, replacing what was
// declared before; no targets ends the pod's probes. The pod's status carries its IP.
// It returns at once.
func (m *Manager) Set(pod *corev1.Pod, targets []Target) {
	now := time.Now()
	m.mu.Lock()
	next := make(map[string]bool, len(targets))
	for _, t := range targets {
		next[t.ID] = true
		m.containers[t.ID] = true
		for _, kind := range []Kind{Startup, Liveness, Readiness} {
			m.declare(pod, t, kind, now)
		}
	}
	for id := range m.byPod[pod.UID] {
		if !next[id] {
			delete(m.containers, id)
			for _, kind := range []Kind{Startup, Liveness, Readiness} {
				m.drop(m.entries[key{id, kind}])
			}
		}
	}
	if len(next) == 0 {
		delete(m.byPod, pod.UID)
		m.total.DeletePartialMatch(prometheus.Labels{"pod_uid": string(pod.UID)})
		m.took.DeletePartialMatch(prometheus.Labels{"namespace": pod.Namespace, "pod": pod.Name})
	} else {
		m.byPod[pod.UID] = next
	}
	m.mu.Unlock()
	m.poke()
}

// declare brings one line of the timetable up to date; m.mu is held.
func (m *Manager) declare(pod *corev1.Pod, t Target, kind Kind, now time.Time) {
	spec := specOf(t.Container, kind)
	e := m.entries[key{t.ID, kind}]
	if spec == nil {
		m.drop(e)
		return
	}
	if e == nil {
		e = &entry{key: key{t.ID, kind}, count: Begin(kind), spec: spec}
		e.warm = kind == Readiness && !t.Initial.Ready
		e.due = t.Started.Add(time.Duration(spec.InitialDelaySeconds) * time.Second)
		switch {
		case kind == Readiness && t.Initial.Ready:
			e.count.Verdict = Passed
		case kind == Startup && t.Initial.Started:
			e.count = Count{Verdict: Passed, Held: true}
		}
		if t.Initial.Started && e.due.Before(now) {
			// The kubelet was restarted: spread what would otherwise all be due now.
			e.due = now.Add(time.Duration(rand.Int64N(int64(e.period()))))
		}
		m.entries[e.key] = e
	}
	e.pod, e.target, e.spec = pod, t, spec
	if t.Terminating && kind != Readiness && !e.count.Held {
		e.count = Count{Verdict: Passed, Held: true}
		e.stop()
	}
}

// drop removes a line, if it is one; m.mu is held.
func (m *Manager) drop(e *entry) {
	if e != nil {
		e.stop()
		delete(m.entries, e.key)
	}
}

func (e *entry) period() time.Duration {
	return time.Duration(atLeast(e.spec.PeriodSeconds, 10)) * time.Second
}

// stop ends an attempt that is under way; its answer will not count.
func (e *entry) stop() {
	if e.cancel != nil {
		e.cancel()
		e.cancel = nil
	}
}

// State is what follows from the probes of a container. A container that was never
// declared, or no more, is neither started nor ready.
func (m *Manager) State(containerID string) State {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.containers[containerID] {
		return State{}
	}
	s := State{Started: true, Ready: true}
	if e := m.entries[key{containerID, Startup}]; e != nil {
		s.Started = e.count.Verdict == Passed
		s.Ready = s.Started
		if e.count.Verdict == Failed {
			s.Failed = &Failure{Kind: "startup", GracePeriodSeconds: e.spec.TerminationGracePeriodSeconds}
		}
	}
	if e := m.entries[key{containerID, Readiness}]; e != nil && e.count.Verdict != Passed {
		s.Ready = false
	}
	if e := m.entries[key{containerID, Liveness}]; e != nil && e.count.Verdict == Failed {
		s.Failed = &Failure{Kind: "liveness", GracePeriodSeconds: e.spec.TerminationGracePeriodSeconds}
	}
	return s
}

// Run works until ctx ends and all attempts have returned.
func (m *Manager) Run(ctx context.Context) error {
	var attempts sync.WaitGroup
	defer attempts.Wait()
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		timer.Reset(time.Until(m.start(ctx, &attempts)))
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-timer.C:
		case <-m.wake:
		}
	}
}

// start begins every attempt that is due and returns when the next one will be.
func (m *Manager) start(ctx context.Context, attempts *sync.WaitGroup) time.Time {
	now := time.Now()
	next := now.Add(time.Minute)
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, e := range m.entries {
		if e.busy || e.count.Held || !m.allowed(e) {
			continue
		}
		if e.due.After(now) {
			if e.due.Before(next) {
				next = e.due
			}
			continue
		}
		actx, cancel := context.WithCancel(ctx)
		e.busy, e.cancel = true, cancel
		e.tries++
		q := question{ID: e.id, IP: e.pod.Status.PodIP, Container: e.target.Container, Spec: e.spec}
		attempts.Go(func() {
			defer cancel()
			answer := m.check(actx, q)
			for range 2 { // asking failed, not the container: ask again at once
				if answer.Outcome != Unknown || actx.Err() != nil {
					break
				}
				answer = m.check(actx, q)
			}
			m.finish(actx, e, now, answer)
		})
	}
	return next
}

// allowed says whether the container has come far enough for this probe; m.mu is held.
func (m *Manager) allowed(e *entry) bool {
	if e.kind == Startup {
		return true
	}
	startup := m.entries[key{e.id, Startup}]
	return startup == nil || startup.count.Verdict == Passed
}

// finish takes the answer of the attempt that began at the given time, unless its
// context was cancelled meanwhile.
func (m *Manager) finish(ctx context.Context, e *entry, began time.Time, answer attempt) {
	m.mu.Lock()
	e.busy = false
	if ctx.Err() != nil {
		m.mu.Unlock()
		m.poke()
		return
	}
	e.cancel = nil
	before := e.count.Verdict
	e.count = e.count.Observe(e.kind, answer.Outcome, e.spec)
	verdict := e.count.Verdict
	e.last = answer
	quiet := e.warm && e.tries > 1 && time.Since(e.target.Started) < e.period()
	if answer.Outcome == Passed {
		e.warm = false
	}
	e.due = began.Add(e.wait())
	pod, container := e.pod, e.target.Container.Name
	m.total.WithLabelValues(e.kind.String(), metricResult(answer.Outcome), container, pod.Name, pod.Namespace, string(pod.UID)).Inc()
	if answer.Outcome != Failed {
		m.took.WithLabelValues(e.kind.String(), container, pod.Name, pod.Namespace).Observe(time.Since(began).Seconds())
	}
	m.mu.Unlock()

	if eventType, reason, message := event(e.kind, answer); reason != "" && !quiet {
		m.events.Event(&corev1.ObjectReference{
			Kind: "Pod", APIVersion: "v1", Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID,
			ResourceVersion: pod.ResourceVersion, FieldPath: fieldPath(pod, container),
		}, eventType, reason, message)
	}
	if verdict != before {
		m.log.Debug("probe changed its mind", "pod", pod.Namespace+"/"+pod.Name, "uid", pod.UID,
			"container", container, "probe", e.kind.String(), "result", verdict.String())
		m.changed(pod.UID)
	}
	m.poke()
}

// wait is the time from one attempt to the next. A container that has never been
// ready is asked more often at first: most servers listen a moment after they were
// started, and nothing is gained by leaving them without traffic for a whole period.
func (e *entry) wait() time.Duration {
	if !e.warm || e.tries > 16 {
		return e.period()
	}
	return min(e.period(), 100*time.Millisecond<<min(e.tries-1, 8))
}

// event gives the words users know. Source: reasons Unhealthy and ProbeWarning.
func event(kind Kind, a attempt) (eventType, reason, message string) {
	switch {
	case a.Outcome == Failed:
		return corev1.EventTypeWarning, "Unhealthy", kind.String() + " probe failed: " + a.Message
	case a.Outcome == Unknown:
		return corev1.EventTypeWarning, "Unhealthy", kind.String() + " probe errored and resulted in unknown state: " + a.Message
	case a.Warning:
		return corev1.EventTypeWarning, "ProbeWarning", kind.String() + " probe warning: " + a.Message
	}
	return "", "", ""
}

func metricResult(r Result) string {
	switch r {
	case Passed:
		return "successful"
	case Failed:
		return "failed"
	}
	return "unknown"
}

func (m *Manager) poke() {
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// Line is one row of /debug/probes.
type Line struct {
	Pod, Container, Probe, ContainerID string
	Verdict                            string
	Decided                            bool
	Attempts                           int
	Last, Message                      string
	Due                                time.Time
}

// Debug lists the timetable, by pod.
func (m *Manager) Debug() any {
	m.mu.Lock()
	defer m.mu.Unlock()
	lines := make([]Line, 0, len(m.entries))
	for _, e := range m.entries {
		lines = append(lines, Line{
			Pod: e.pod.Namespace + "/" + e.pod.Name, Container: e.target.Container.Name, Probe: e.kind.String(), ContainerID: e.id,
			Verdict: e.count.Verdict.String(), Decided: e.count.Held,
			Attempts: e.tries, Last: e.last.Outcome.String(), Message: e.last.Message, Due: e.due,
		})
	}
	sort.Slice(lines, func(i, j int) bool {
		a, b := lines[i], lines[j]
		return a.Pod+"/"+a.Container+a.Probe < b.Pod+"/"+b.Container+b.Probe
	})
	return lines
}

func fieldPath(pod *corev1.Pod, container string) string {
	for i := range pod.Spec.InitContainers {
		if pod.Spec.InitContainers[i].Name == container {
			return "spec.initContainers{" + container + "}"
		}
	}
	return "spec.containers{" + container + "}"
}

func specOf(c *corev1.Container, kind Kind) *corev1.Probe {
	switch kind {
	case Startup:
		return c.StartupProbe
	case Liveness:
		return c.LivenessProbe
	}
	return c.ReadinessProbe
}
