package shutdown

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/keelson/keelson/kubelet/metrics"
)

func withPriority(name string, priority int32, grace int64) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID(name), Generation: 2},
		Spec: corev1.PodSpec{Priority: &priority, TerminationGracePeriodSeconds: &grace}}
}

func seconds(n int) metav1.Duration { return metav1.Duration{Duration: time.Duration(n) * time.Second} }

func TestPeriods(t *testing.T) {
	for _, x := range []struct {
		what    string
		options Options
		want    string
		total   time.Duration
	}{
		{"nothing set", Options{}, "[]", 0},
		{"one period, a part of it for critical pods", Options{ShutdownGracePeriod: seconds(30), ShutdownGracePeriodCriticalPods: seconds(10)}, "[{0 20} {2000000000 10}]", 30 * time.Second},
		{"by priority, in any order", Options{ShutdownGracePeriodByPodPriority: []Period{{1000, 5}, {-10, 60}, {0, 20}}}, "[{-10 60} {0 20} {1000 5}]", 85 * time.Second},
	} {
		got := Periods(x.options)
		if fmt.Sprint(got) != x.want || Total(got) != x.total {
			t.Errorf("%s: %v, together %v; want %s, %v", x.what, got, Total(got), x.want, x.total)
		}
	}
}

func TestOrder(t *testing.T) {
	done := withPriority("done", 0, 30)
	done.Status.Phase = corev1.PodSucceeded
	var got []string
	for _, g := range Order([]Period{{0, 10}, {1000, 20}, {100000, 0}}, []*corev1.Pod{
		withPriority("below-all", -5, 30), withPriority("lowest", 0, 5), withPriority("just-below", 999, 30), withPriority("at", 1000, 30),
		withPriority("between", 50000, 20), {ObjectMeta: metav1.ObjectMeta{Name: "without"}}, done,
	}) {
		for _, e := range g.Pods {
			got = append(got, fmt.Sprintf("%d:%s=%ds", g.Priority, e.Pod.Name, e.GraceSeconds))
		}
	}
	want := []string{"0:below-all=10s", "0:lowest=5s", "0:just-below=10s", "0:without=10s", "1000:at=20s", "1000:between=20s"}
	if !slices.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
	if got := Order(nil, []*corev1.Pod{withPriority("p", 0, 1)}); len(got) > 0 {
		t.Errorf("without periods: %v", got)
	}
}

func TestOptionsAreChecked(t *testing.T) {
	for _, x := range []struct {
		says    string
		options Options
	}{
		{"shutdownGracePeriod: Invalid", Options{ShutdownGracePeriod: metav1.Duration{Duration: time.Millisecond}}},
		{"shutdownGracePeriodCriticalPods: Invalid", Options{ShutdownGracePeriod: seconds(5), ShutdownGracePeriodCriticalPods: seconds(6)}},
		{"shutdownGracePeriodByPodPriority: Forbidden", Options{ShutdownGracePeriod: seconds(5), ShutdownGracePeriodByPodPriority: []Period{{0, 1}}}},
		{"shutdownGracePeriodByPodPriority[1].priority: Duplicate", Options{ShutdownGracePeriodByPodPriority: []Period{{0, 1}, {0, 2}}}},
		{"shutdownGracePeriodByPodPriority[0].shutdownGracePeriodSeconds: Invalid", Options{ShutdownGracePeriodByPodPriority: []Period{{0, -1}}}},
	} {
		if errs := x.options.Validate(); len(errs) != 1 || !strings.Contains(errs[0].Error(), x.says) {
			t.Errorf("%+v: %v, want %s", x.options, errs, x.says)
		}
	}
	if errs := (Options{ShutdownGracePeriod: seconds(30), ShutdownGracePeriodCriticalPods: seconds(30)}).Validate(); len(errs) > 0 {
		t.Errorf("good options are refused: %v", errs)
	}
}

// pods play the worker pool. A pod ends when it is let, and stays for ever otherwise.
type pods struct {
	list []*corev1.Pod
	stay map[string]bool

	mu   sync.Mutex
	told []string // guarded by mu
}

func (p *pods) Pods() []*corev1.Pod { return p.list }

func (p *pods) Terminate(ctx context.Context, uid types.UID, reason, message string, grace int64, conditions ...corev1.PodCondition) error {
	p.mu.Lock()
	p.told = append(p.told, fmt.Sprintf("%s %ds %s: %s (%s %s, generation %d)", uid, grace, reason, message, conditions[0].Type, conditions[0].Reason, conditions[0].ObservedGeneration))
	p.mu.Unlock()
	if p.stay[string(uid)] {
		<-ctx.Done()
		return context.Cause(ctx)
	}
	return nil
}

func (p *pods) heard() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.told)
}

// guard is a manager that runs against a machine.
type guard struct {
	*Manager
	pods   *pods
	root   string
	mu     sync.Mutex
	events []string // guarded by mu
	turns  int      // how often readiness has changed; guarded by mu
}

func begin(t *testing.T, m *machine, o Options, p *pods) *guard {
	g := &guard{pods: p, root: t.TempDir()}
	g.Manager = New(o, Surroundings{Root: g.root, Pods: p, Metrics: metrics.New(), Log: slog.New(slog.DiscardHandler),
		Dial: func(ctx context.Context) (Logind, error) { return Dial(ctx, m.address, m.confd) },
		Changed: func() {
			g.mu.Lock()
			defer g.mu.Unlock()
			g.turns++
		},
		Event: func(_, reason, message string) {
			g.mu.Lock()
			defer g.mu.Unlock()
			g.events = append(g.events, reason+": "+message)
		}})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = g.Run(ctx)
	}()
	t.Cleanup(func() { cancel(); <-done })
	return g
}

func until(t *testing.T, what string, cond func() bool, seen func() any) {
	t.Helper()
	limit := time.After(20 * time.Second)
	for !cond() {
		select {
		case <-limit:
			t.Fatalf("not within 20 s: %s; last seen: %v", what, seen())
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func TestPodsEndInOrderBeforeTheMachine(t *testing.T) {
	m := newMachine(t, 5*time.Second)
	p := &pods{list: []*corev1.Pod{withPriority("critical", 2000001000, 30), withPriority("web", 0, 1)}}
	g := begin(t, m, Options{ShutdownGracePeriod: seconds(30), ShutdownGracePeriodCriticalPods: seconds(10)}, p)
	until(t, "an inhibitor is held", func() bool { return m.held() == 1 }, g.Debug)
	if m.delay != 30*time.Second {
		t.Errorf("logind's delay is %v, want 30s", m.delay)
	}
	if err := g.Status(); err != nil {
		t.Errorf("before: %v", err)
	}

	m.prepare(true)
	until(t, "the inhibitor is let go", func() bool { return m.held() == 0 }, g.Debug)
	const how = "Terminated: Pod was terminated in response to imminent node shutdown. (DisruptionTarget TerminationByKubelet, generation 2)"
	if got, want := p.heard(), []string{"web 1s " + how, "critical 10s " + how}; !slices.Equal(got, want) {
		t.Errorf("ended %q\nwant %q", got, want)
	}
	if err := g.Status(); err == nil || err.Error() != "node is shutting down" {
		t.Errorf("while it goes down: %v", err)
	}
	if reason, message := g.Admit(); reason != "NodeShutdown" || message != "Pod was rejected as the node is shutting down." {
		t.Errorf("a pod is answered %q, %q", reason, message)
	}
	until(t, "the end is recorded", func() bool {
		text, err := os.ReadFile(filepath.Join(g.root, "graceful_node_shutdown_state"))
		return err == nil && !strings.Contains(string(text), "0001-01-01")
	}, g.Debug)

	m.prepare(false)
	until(t, "an inhibitor is held again", func() bool { return m.held() == 1 && g.Status() == nil }, g.Debug)
	if reason, _ := g.Admit(); reason != "" {
		t.Errorf("called off, yet a pod is refused: %s", reason)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if want := []string{"NodeShutdown: Shutdown manager detected shutdown event", "NodeShutdown: Shutdown manager detected shutdown cancellation"}; !slices.Equal(g.events, want) {
		t.Errorf("events %q, want %q", g.events, want)
	}
	if g.turns != 2 {
		t.Errorf("the node was told %d times, want 2", g.turns)
	}
}

func TestAPodThatStaysDoesNotHoldUpTheOthers(t *testing.T) {
	m := newMachine(t, time.Minute)
	p := &pods{list: []*corev1.Pod{withPriority("stays", 0, 60), withPriority("after", 10, 60)}, stay: map[string]bool{"stays": true}}
	g := begin(t, m, Options{ShutdownGracePeriodByPodPriority: []Period{{0, 1}, {10, 20}}}, p)
	until(t, "an inhibitor is held", func() bool { return m.held() == 1 }, g.Debug)
	if m.delay != time.Minute {
		t.Errorf("a delay that is long enough was changed to %v", m.delay)
	}
	m.prepare(true)
	until(t, "the inhibitor is let go", func() bool { return m.held() == 0 }, g.Debug)
	if got := p.heard(); len(got) != 2 || !strings.HasPrefix(got[0], "stays 1s") || !strings.HasPrefix(got[1], "after 20s") {
		t.Errorf("ended %q", got)
	}
}

func TestABusThatGoesAwayIsFoundAgain(t *testing.T) {
	m := newMachine(t, time.Minute)
	g := begin(t, m, Options{ShutdownGracePeriod: seconds(30)}, &pods{})
	until(t, "an inhibitor is held", func() bool { return m.held() == 1 }, g.Debug)
	m.stop()
	until(t, "it is let go", func() bool { return m.held() == 0 }, g.Debug)
	m.listen()
	until(t, "an inhibitor is held again", func() bool { return m.held() == 1 }, g.Debug)
}

func TestADelayThatCannotBeHad(t *testing.T) {
	m := newMachine(t, 5*time.Second)
	m.maximum = 10 * time.Second
	g := begin(t, m, Options{ShutdownGracePeriod: seconds(30)}, &pods{})
	until(t, "it says so", func() bool {
		return strings.Contains(fmt.Sprint(g.Debug()), "logind's InhibitDelayMaxSec stays at 10s although 30s was asked for")
	}, g.Debug)
	if n := m.held(); n != 0 {
		t.Errorf("%d inhibitors are held that would be cut short", n)
	}
}
