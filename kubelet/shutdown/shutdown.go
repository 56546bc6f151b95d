// Package shutdown lets pods end in order when the machine is shut down.
//
// systemd's login manager tells when a shutdown begins, and holds it up while an inhibitor is held, for a time
// that has a maximum:
//
//	inhibitor taken ──PrepareForShutdown(true)──► node NotReady, no pod is admitted, pods end group by group
//	      ▲                                                  │ inhibitor is closed: the machine goes down
//	      └────────────PrepareForShutdown(false)─────────────┘ (called off)
//
// Periods, Order (plan.go) decide, and are pure; Logind (logind.go) is the only one that speaks D-Bus;
// Manager.Run carries out. It promises that the inhibitor is held before the kubelet relies on it, that a group
// ends only once the one before has ended or had its time, and that a lost bus is found again. It does not
// promise anything for a machine that loses its power, or whose login manager is not systemd's: there the
// log says once why shutdowns are not waited for.
//
// Goroutines: Run owns all but the reader of events, which ends with its connection. Debug: /debug/shutdown.
// Tests: a login manager in memory behind a D-Bus socket.
//
// Source: Kubernetes concepts, "Node Shutdowns"; KEP-2000, KEP-2712. Reasons and messages are upstream's.
package shutdown

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/keelson/keelson/kubelet/metrics"
)

const (
	notAdmittedReason  = "NodeShutdown"
	notAdmittedMessage = "Pod was rejected as the node is shutting down."
	endReason          = "Terminated"
	endMessage         = "Pod was terminated in response to imminent node shutdown."
	stateFile          = "graceful_node_shutdown_state"
	maxRetry           = time.Minute
)

// Pods ends pods; implemented by worker.Pool.
type Pods interface {
	// Pods are the pods with their newest status. Shared: read-only.
	Pods() []*corev1.Pod
	// Terminate puts the pod to phase Failed with the reason and message, stops its containers with the
	// grace period given and returns once its volumes are unmounted, or ctx has ended.
	Terminate(ctx context.Context, uid types.UID, reason, message string, graceSeconds int64, conditions ...corev1.PodCondition) error
}

// Surroundings are the other parts of the kubelet.
type Surroundings struct {
	Root    string // the kubelet's directory
	Dial    func(ctx context.Context) (Logind, error)
	Pods    Pods
	Changed func() // the node's readiness may have changed; must not block
	Event   func(eventType, reason, message string)
	Metrics *metrics.Metrics
	Log     *slog.Logger
}

// Manager waits for the machine's shutdown.
type Manager struct {
	s       Surroundings
	periods []Period

	mu    sync.Mutex
	down  bool   // the machine is shutting down; guarded by mu
	state string // what Run is at, for Debug; guarded by mu
}

// New starts nothing.
func New(o Options, s Surroundings) *Manager {
	return &Manager{s: s, periods: Periods(o), state: "off"}
}

// Status is an error while the machine is shutting down.
func (m *Manager) Status() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.down {
		return errors.New("node is shutting down")
	}
	return nil
}

// Admit says why a pod may not start now, with empty strings for yes.
func (m *Manager) Admit() (reason, message string) {
	if m.Status() != nil {
		return notAdmittedReason, notAdmittedMessage
	}
	return "", ""
}

func (m *Manager) set(down bool, state string) {
	m.mu.Lock()
	changed := m.down != down
	m.down, m.state = down, state
	m.mu.Unlock()
	if changed {
		m.s.Changed()
	}
}

// Run works until ctx ends.
func (m *Manager) Run(ctx context.Context) error {
	m.remember()
	if len(m.periods) == 0 {
		<-ctx.Done()
		return context.Cause(ctx)
	}
	told := ""
	for delay := time.Second; ; delay = min(2*delay, maxRetry) {
		held, err := m.watch(ctx)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if held {
			delay, told = time.Second, ""
		}
		if text := err.Error(); text != told {
			told = text
			m.s.Log.Warn("shutdowns of the machine are not waited for", "err", err)
		}
		m.set(false, "not connected: "+err.Error())
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(delay):
		}
	}
}

// watch lives as long as one connection; held says that the inhibitor was had.
func (m *Manager) watch(ctx context.Context) (held bool, err error) {
	login, err := m.s.Dial(ctx)
	if err != nil {
		return false, err
	}
	defer login.Close()
	if err := m.delay(ctx, login); err != nil {
		return false, err
	}
	events, err := login.Events()
	if err != nil {
		return false, err
	}
	lock, err := login.Inhibit()
	if err != nil {
		return false, err
	}
	defer func() { lock.Close() }() // closing twice is no harm
	m.s.Log.Info("shutdowns of the machine are waited for", "at most", Total(m.periods))
	m.set(false, "watching")
	for {
		select {
		case <-ctx.Done():
			return true, context.Cause(ctx)
		case begins, ok := <-events:
			switch {
			case !ok:
				return true, errors.New("the connection to the system bus is lost")
			case begins:
				m.s.Event(corev1.EventTypeNormal, "NodeShutdown", "Shutdown manager detected shutdown event")
				m.s.Log.Info("the machine is shutting down")
				m.set(true, "shutting down")
				m.end(ctx)
				lock.Close()
			default:
				m.s.Event(corev1.EventTypeNormal, "NodeShutdown", "Shutdown manager detected shutdown cancellation")
				m.s.Log.Info("the machine's shutdown was called off")
				m.set(false, "watching")
				next, err := login.Inhibit()
				if err != nil {
					return true, err
				}
				lock.Close()
				lock = next
			}
		}
	}
}

// delay sees to it that logind lets an inhibitor hold up the shutdown for long enough.
func (m *Manager) delay(ctx context.Context, login Logind) error {
	want := Total(m.periods)
	have, err := login.Delay()
	if err != nil || have >= want {
		return err
	}
	if err := login.SetDelay(want); err != nil {
		return fmt.Errorf("raise logind's InhibitDelayMaxSec from %v to %v: %w", have, want, err)
	}
	for pause := 100 * time.Millisecond; pause < 3*time.Second; pause *= 2 { // logind reads it in its own time
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(pause):
		}
		if have, err = login.Delay(); err != nil || have >= want {
			return err
		}
	}
	return fmt.Errorf("logind's InhibitDelayMaxSec stays at %v although %v was asked for", have, want)
}

// end ends all pods, group by group.
func (m *Manager) end(ctx context.Context) {
	began := time.Now()
	m.record(began, time.Time{})
	for _, g := range Order(m.periods, m.s.Pods.Pods()) {
		m.s.Log.Info("pods end for the shutdown", "priority", g.Priority, "pods", len(g.Pods), "seconds", g.ShutdownGracePeriodSeconds)
		m.endGroup(ctx, g)
	}
	m.record(began, time.Now())
	m.s.Log.Info("pods have ended, the machine may shut down", "took", time.Since(began).Round(time.Millisecond))
}

// endGroup returns when all pods of the group have ended, or its time is over.
func (m *Manager) endGroup(ctx context.Context, g Group) {
	ctx, cancel := context.WithTimeout(ctx, time.Duration(g.ShutdownGracePeriodSeconds)*time.Second)
	defer cancel()
	var wg sync.WaitGroup
	for _, e := range g.Pods {
		wg.Go(func() {
			condition := corev1.PodCondition{Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue,
				Reason: corev1.PodReasonTerminationByKubelet, Message: endMessage, ObservedGeneration: e.Pod.Generation}
			if err := m.s.Pods.Terminate(ctx, e.Pod.UID, endReason, endMessage, e.GraceSeconds, condition); err != nil {
				m.s.Log.Warn("a pod has not ended in time for the shutdown", "pod", e.Pod.Namespace+"/"+e.Pod.Name, "uid", e.Pod.UID, "err", err)
			}
		})
	}
	wg.Wait()
}

// state is what is kept of the last shutdown, for the metrics of the next start.
type state struct {
	StartTime time.Time `json:"startTime"`
	EndTime   time.Time `json:"endTime"`
}

func (m *Manager) record(began, ended time.Time) {
	m.s.Metrics.Shutdown(began, ended)
	text, err := json.Marshal(state{began, ended})
	if err == nil {
		err = os.WriteFile(filepath.Join(m.s.Root, stateFile), text, 0o644)
	}
	if err != nil {
		m.s.Log.Warn("the time of the shutdown is not recorded", "err", err)
	}
}

// remember shows when the machine was last shut down.
func (m *Manager) remember() {
	var last state
	text, err := os.ReadFile(filepath.Join(m.s.Root, stateFile))
	if err != nil {
		return // never, with this kubelet
	}
	if err := json.Unmarshal(text, &last); err != nil {
		m.s.Log.Warn("the record of the last shutdown is of no use", "err", err)
		return
	}
	m.s.Metrics.Shutdown(last.StartTime, last.EndTime)
}

// Debug is what /debug/shutdown shows.
func (m *Manager) Debug() any {
	m.mu.Lock()
	defer m.mu.Unlock()
	return map[string]any{"state": m.state, "shuttingDown": m.down, "periods": m.periods}
}
