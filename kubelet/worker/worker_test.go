package worker

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/client-go/tools/record"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/keelson/keelson/kubelet/cri"
	"github.com/keelson/keelson/kubelet/criconfig"
	"github.com/keelson/keelson/kubelet/critest"
	"github.com/keelson/keelson/kubelet/images"
	"github.com/keelson/keelson/kubelet/probes"
	"github.com/keelson/keelson/kubelet/volumes"
	"github.com/keelson/keelson/libs/run"
)

// rooms stand in for the parts around a worker: no volumes, no probes, one node.
type rooms struct{ node *corev1.Node }

func (rooms) Setup(context.Context, *corev1.Pod) (volumes.Set, error) { return volumes.Set{}, nil }
func (rooms) Changed(*corev1.Pod)                                     {}
func (rooms) SubPath(context.Context, *corev1.Pod, string, int, volumes.Mounted, string) (string, error) {
	return "", nil
}
func (rooms) Teardown(context.Context, types.UID) error       { return nil }
func (rooms) Prune(context.Context, map[types.UID]bool) error { return nil }
func (rooms) Set(*corev1.Pod, []probes.Target)                {}
func (rooms) State(string) probes.State                       { return probes.State{Started: true, Ready: true} }
func (r rooms) Node() *corev1.Node                            { return r.node }
func (rooms) HostIPs() []netip.Addr                           { return []netip.Addr{netip.MustParseAddr("192.0.2.1")} }
func (rooms) NetworkReady() error                             { return nil }
func (rooms) Parent(*corev1.Pod) string                       { return "/kubepods" }
func (rooms) Update(*corev1.Pod) error                        { return nil }
func (rooms) Delete(types.UID) error                          { return nil }
func (rooms) Burstable(int64) error                           { return nil }

// bench is a kubelet's workers over a runtime in memory. It can be stopped and started
// again like a process: runtime, API server and directories stay.
type bench struct {
	t       *testing.T
	runtime *critest.Runtime
	api     *fake.Clientset
	dir     string
	pool    *Pool
	group   *run.Group
	said    said
}

// said counts the lines of the log by their message, those of warnings and all.
type said struct {
	mu             sync.Mutex
	warnings, told map[string]int
}

func (s *said) Enabled(context.Context, slog.Level) bool { return true }
func (s *said) WithAttrs([]slog.Attr) slog.Handler       { return s }
func (s *said) WithGroup(string) slog.Handler            { return s }
func (s *said) Handle(_ context.Context, r slog.Record) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.told == nil {
		s.warnings, s.told = map[string]int{}, map[string]int{}
	}
	s.told[r.Message]++
	if r.Level >= slog.LevelWarn {
		s.warnings[r.Message]++
	}
	return nil
}

func (s *said) times(message string) (warnings, told int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.warnings[message], s.told[message]
}

func newBench(t *testing.T, pods ...*corev1.Pod) *bench {
	b := &bench{t: t, runtime: critest.New(), api: fake.NewClientset(), dir: t.TempDir()}
	b.runtime.Took = 20 * time.Millisecond
	for _, p := range pods {
		if _, err := b.api.CoreV1().Pods(p.Namespace).Create(t.Context(), p, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	return b
}

// start is a new kubelet process: it knows nothing but what the API server tells it.
func (b *bench) start() {
	client := b.runtime.Client()
	r := rooms{&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}, Status: corev1.NodeStatus{Allocatable: corev1.ResourceList{
		corev1.ResourceCPU: resource.MustParse("1"), corev1.ResourceMemory: resource.MustParse("1Gi")}}}}
	log := slog.New(&b.said)
	changes := cri.NewChanges(client, time.Second, log, func(uid types.UID) { b.pool.Poke(uid) })
	b.pool = New(Options{
		Config:  &criconfig.Node{Name: "n1", LogRoot: filepath.Join(b.dir, "logs"), MemoryBytes: 4 << 30},
		RootDir: b.dir, SymlinkDir: b.dir, HostsFile: "/dev/null", RuntimeName: "critest",
	}, Rooms{
		Log: log, Client: b.api, Runtime: client, Observer: cri.NewObserver(client, nil), Changes: changes,
		Volumes: r, Probes: r, Node: r, Cgroups: r, Images: images.NewPuller(client, 2, nil), Events: &record.FakeRecorder{},
		Services: func(string) ([]*corev1.Service, bool) { return nil, true },
		Mirror:   func(*corev1.Pod) *corev1.Pod { return nil },
	})
	b.group = run.New(context.Background())
	b.group.Go("pool", b.pool.Run)
	b.group.Go("changes", changes.Run)
	b.sync()
	b.pool.SourcesReady()
}

// sync tells the pool what the API server has, as the watch would.
func (b *bench) sync() {
	list, err := b.api.CoreV1().Pods("").List(context.Background(), metav1.ListOptions{})
	if err != nil {
		b.t.Fatal(err)
	}
	there := map[types.UID]bool{}
	for i := range list.Items {
		there[list.Items[i].UID] = true
		b.pool.Update(&list.Items[i])
	}
	for _, p := range b.pool.Pods() {
		if !there[p.UID] {
			b.pool.Remove(p)
		}
	}
}

func (b *bench) stop() {
	b.group.Stop()
	if err := b.group.Wait(); err != nil {
		b.t.Error(err)
	}
}

// end stops everything and reports broken rules.
func (b *bench) end() {
	b.stop()
	b.runtime.Stop()
	if v := b.runtime.Violations(); len(v) > 0 {
		b.t.Errorf("rules broken: %v\ncalls: %v", v, b.runtime.Calls())
	}
}

// until lets time pass until cond holds, at most limit.
func (b *bench) until(limit time.Duration, what string, cond func() bool) {
	b.t.Helper()
	for end := time.Now().Add(limit); ; {
		synctest.Wait()
		b.sync()
		synctest.Wait()
		if cond() {
			return
		}
		if !time.Now().Before(end) {
			b.t.Fatalf("%s: not after %v; running %v, calls %v, workers %v", what, limit, b.runtime.Running(), b.runtime.Calls(), b.pool.Debug())
		}
		time.Sleep(max(10*time.Millisecond, limit/1000))
	}
}

func (b *bench) pod(name string) *corev1.Pod {
	p, err := b.api.CoreV1().Pods("default").Get(context.Background(), name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		b.t.Fatal(err)
	}
	return p
}

// delete marks the pod for deletion, as the API server does for a pod on a node.
func (b *bench) delete(name string, grace int64) {
	// The API in memory patches in two steps: a status that is on its way would take the mark off again.
	synctest.Wait()
	p := b.pod(name)
	now := metav1.Now()
	p.DeletionTimestamp, p.DeletionGracePeriodSeconds = &now, &grace
	if err := b.api.Tracker().Update(corev1.SchemeGroupVersion.WithResource("pods"), p, "default"); err != nil {
		b.t.Fatal(err)
	}
}

func testPod(name string, containers ...corev1.Container) *corev1.Pod {
	grace := int64(30)
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default", UID: types.UID("uid-" + name)},
		Spec: corev1.PodSpec{RestartPolicy: corev1.RestartPolicyAlways, TerminationGracePeriodSeconds: &grace, Containers: containers}}
	return p
}

func image(name, image string) corev1.Container { return corev1.Container{Name: name, Image: image} }

func running(p *corev1.Pod) bool { return p != nil && p.Status.Phase == corev1.PodRunning }

func TestPodRunsAndIsDeleted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, testPod("web", image("app", "serve:1"), image("log", "serve:1")))
		defer b.end()
		began := time.Now()
		b.start()
		b.until(time.Second, "pod runs", func() bool { return running(b.pod("web")) })
		// Sandbox, and twice create and start: 20 ms each. Nothing waits for a poll.
		if took := time.Since(began); took > 150*time.Millisecond {
			t.Errorf("start took %v", took)
		}
		st := b.pod("web").Status
		if st.PodIP == "" || st.HostIP != "192.0.2.1" || len(st.ContainerStatuses) != 2 || !st.ContainerStatuses[0].Ready {
			t.Errorf("status %+v", st)
		}
		began = time.Now()
		b.delete("web", 30)
		b.until(time.Second, "pod is deleted", func() bool { return b.pod("web") == nil })
		if took := time.Since(began); took > 100*time.Millisecond {
			t.Errorf("deletion took %v", took)
		}
		b.until(time.Second, "nothing is left", func() bool { return b.runtime.Empty() && len(b.pool.UIDs()) == 0 })
	})
}

// A start is told in two writes, that it began and that the pod runs; when it takes long, the
// steps between are told as well.
func TestStatusWritesOfAStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, testPod("quick", image("app", "serve:1")), testPod("slow", image("late", "serve:1")))
		slow := make(chan struct{})
		b.runtime.Hook = func(_ context.Context, call, name string) error {
			if call == "CreateContainer" && name == "late" {
				<-slow
			}
			return nil
		}
		defer b.end()
		b.start()
		writes := func(name string) (n int) {
			for _, a := range b.api.Actions() {
				if p, ok := a.(clienttesting.PatchAction); ok && p.GetSubresource() == "status" && p.GetName() == name {
					n++
				}
			}
			return n
		}
		b.until(time.Second, "pod runs", func() bool { return running(b.pod("quick")) })
		if p := b.pod("slow"); p.Status.StartTime == nil || p.Status.PodIP != "" || writes("slow") != 1 {
			t.Errorf("of the slow pod is told, in %d writes: %+v", writes("slow"), p.Status)
		}
		b.until(2*time.Second, "the slow pod's address is told", func() bool { return b.pod("slow").Status.PodIP != "" })
		began := time.Now()
		close(slow)
		b.until(time.Second, "the slow pod runs", func() bool { return running(b.pod("slow")) })
		if took := time.Since(began); took > 100*time.Millisecond {
			t.Errorf("that the slow pod runs was told after %v", took)
		}
		if quick, slow := writes("quick"), writes("slow"); quick != 2 || slow != 3 {
			t.Errorf("the quick pod took %d writes, the slow one %d", quick, slow)
		}
	})
}

func TestBackoffDoubles(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, testPod("web", image("app", "crash:1")))
		b.runtime.Programs["crash:1"] = critest.Program{RunFor: time.Second, ExitCode: 1}
		defer b.end()
		b.start()
		var starts []time.Duration
		began := time.Now()
		for n := 1; n <= 5; n++ {
			b.until(3*time.Minute, "another start", func() bool {
				c := 0
				for _, call := range b.runtime.Calls() {
					if call == "StartContainer app" {
						c++
					}
				}
				return c >= n
			})
			starts = append(starts, time.Since(began).Round(time.Second))
			began = time.Now()
		}
		// A run of one second, seen within a second, and the back-off counted from its end.
		for i, want := range []time.Duration{0, 1, 11, 21, 41} {
			if got := starts[i] / time.Second; got < want || got > want+1 {
				t.Errorf("start %d came after %v, want about %d s; all: %v", i, starts[i], want, starts)
			}
		}
		b.until(3*time.Second, "it shows", func() bool {
			s := b.pod("web").Status.ContainerStatuses[0].State
			return s.Waiting != nil && s.Waiting.Reason == "CrashLoopBackOff"
		})
	})
}

func TestRestartOfTheKubeletTouchesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, testPod("web", image("app", "serve:1")), testPod("api", image("api", "serve:1")))
		defer b.end()
		b.start()
		b.until(time.Second, "pods run", func() bool { return running(b.pod("web")) && running(b.pod("api")) })
		b.stop()
		before := b.runtime.Calls()
		_ = b.api.CoreV1().Pods("default").Delete(t.Context(), "api", metav1.DeleteOptions{})
		time.Sleep(time.Minute)
		b.start()
		if err := b.pool.Adopt(t.Context()); err != nil {
			t.Fatal(err)
		}
		b.until(5*time.Second, "the pod that was deleted meanwhile is removed", func() bool {
			return slices.Equal(b.runtime.Running(), []string{"app"}) && len(b.pool.UIDs()) == 1
		})
		for _, call := range b.runtime.Calls()[len(before):] {
			if strings.HasSuffix(call, " app") || strings.HasSuffix(call, " web") {
				t.Errorf("the pod that lives was touched: %s", call)
			}
		}
		if p := b.pod("web"); !p.Status.ContainerStatuses[0].Ready || p.Status.ContainerStatuses[0].RestartCount != 0 {
			t.Errorf("status changed: %+v", p.Status.ContainerStatuses)
		}
	})
}

func TestHungCallStallsOnePod(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		for i := range 20 {
			p := testPod(fmt.Sprintf("hung%d", i), image("app", "serve:1"))
			_, _ = b.api.CoreV1().Pods("default").Create(t.Context(), p, metav1.CreateOptions{})
		}
		_, _ = b.api.CoreV1().Pods("default").Create(t.Context(), testPod("web", image("app", "serve:1")), metav1.CreateOptions{})
		b.runtime.Hook = func(ctx context.Context, call, name string) error {
			if call == "RunPodSandbox" && strings.HasPrefix(name, "hung") {
				<-ctx.Done()
				return ctx.Err()
			}
			return nil
		}
		defer b.end()
		b.start()
		b.until(time.Minute, "the other pod runs", func() bool { return running(b.pod("web")) })
	})
}

func TestGracePeriod(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, testPod("web", image("app", "stubborn:1")))
		b.runtime.Programs["stubborn:1"] = critest.Program{IgnoreTerm: true}
		defer b.end()
		b.start()
		b.until(time.Second, "pod runs", func() bool { return running(b.pod("web")) })
		b.delete("web", 30)
		began := time.Now()
		b.until(10*time.Second, "it is being stopped", func() bool { return time.Since(began) > 9*time.Second })
		if len(b.runtime.Running()) != 1 {
			t.Fatal("killed before the grace period was over")
		}
		b.delete("web", 5)
		b.until(10*time.Second, "the shorter grace period ends it", func() bool { return b.pod("web") == nil })
		if took := time.Since(began); took < 13*time.Second || took > 16*time.Second {
			t.Errorf("gone after %v", took)
		}
	})
}

func TestAPodDeletedByForceHoldsNoPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stubborn := sized("app", "900m", "100Mi")
		stubborn.Image = "stubborn:1"
		b := newBench(t, testPod("old", stubborn))
		b.runtime.Programs["stubborn:1"] = critest.Program{IgnoreTerm: true}
		defer b.end()
		b.start()
		b.until(time.Second, "pod runs", func() bool { return running(b.pod("old")) })
		synctest.Wait()
		if err := b.api.Tracker().Delete(corev1.SchemeGroupVersion.WithResource("pods"), "default", "old"); err != nil {
			t.Fatal(err)
		}
		b.sync()
		if _, err := b.api.CoreV1().Pods("default").Create(t.Context(), testPod("new", sized("other", "900m", "100Mi")), metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		b.until(time.Second, "the pod in its place runs", func() bool { return running(b.pod("new")) })
		if n := len(b.runtime.Running()); n != 2 {
			t.Errorf("%d containers run, want the new one beside the old one that is stopping", n)
		}
	})
}

func TestHooks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := image("app", "serve:1")
		exec := func(word string) *corev1.LifecycleHandler {
			return &corev1.LifecycleHandler{Exec: &corev1.ExecAction{Command: []string{word}}}
		}
		c.Lifecycle = &corev1.Lifecycle{PostStart: exec("up"), PreStop: exec("down")}
		b := newBench(t, testPod("web", c))
		b.runtime.Answer = func(string, []string) (string, int32) { return "", 0 }
		defer b.end()
		b.start()
		b.until(time.Second, "pod is ready", func() bool {
			p := b.pod("web")
			return running(p) && p.Status.ContainerStatuses[0].Ready
		})
		b.delete("web", 30)
		b.until(time.Second, "gone", func() bool { return b.pod("web") == nil })
		calls := b.runtime.Calls()
		stop, hook := slices.Index(calls, "StopContainer app"), 0
		for i, call := range calls {
			if call == "ExecSync app" {
				hook = i
			}
		}
		if hook == 0 || stop < hook {
			t.Errorf("preStop must come before the signal: %v", calls)
		}
	})
}

// dice returns numbers below n; several goroutines may throw them.
func dice(seed uint64) func(n int) int {
	var mu sync.Mutex
	r := rand.New(rand.NewPCG(seed, 1))
	return func(n int) int {
		mu.Lock()
		defer mu.Unlock()
		return r.IntN(n)
	}
}

// The kubelet dies at random moments, calls fail at random, containers are killed: in the
// end the pods run, each container once, and a deleted pod leaves nothing.
func TestCrashAtAnyLine(t *testing.T) {
	for seed := range uint64(12) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				random := dice(seed)
				first := testPod("web", image("app", "serve:1"), image("log", "serve:1"))
				first.Spec.InitContainers = []corev1.Container{image("init", "once:1")}
				b := newBench(t, first, testPod("old", image("old", "slow:1")))
				b.runtime.Programs["once:1"] = critest.Program{RunFor: 50 * time.Millisecond}
				b.runtime.Programs["slow:1"] = critest.Program{TermAfter: 700 * time.Millisecond}
				b.runtime.Hook = func(context.Context, string, string) error {
					if random(10) == 0 {
						return fmt.Errorf("the runtime stumbles")
					}
					return nil
				}
				defer b.end()
				for round := range 6 {
					b.start()
					if round == 2 && b.pod("old") != nil {
						b.delete("old", 3)
						b.sync()
					}
					time.Sleep(time.Duration(random(400)) * time.Millisecond)
					if random(2) == 0 {
						synctest.Wait()
						b.runtime.Kill("app", 137)
					}
					b.stop()
				}
				b.runtime.Hook = nil
				b.start()
				b.until(20*time.Minute, "all is well", func() bool {
					return running(b.pod("web")) && b.pod("old") == nil && slices.Equal(b.runtime.Running(), []string{"app", "log"})
				})
			})
		})
	}
}

var _ runtimeapi.RuntimeServiceClient = (*critest.Runtime)(nil)
