// Package worker carries pods through their lives: one goroutine for each pod UID, which
// observes the runtime, asks pod.Decide, applies the steps and waits.
//
// Pool is the front: sources tell it what is wanted (Update, Remove), other rooms wake a
// pod (Poke) or end one (Evict), the server asks what there is (Pods, Container).
//
//	sources ──Update/Remove──► Pool ──► worker ──► pod.Decide ──► steps
//	runtime, probes ──Poke──►             ▲                         │ one goroutine each
//	                                      └──────── result ◄────────┘
//
// Promises: a pod's worker never blocks on another pod; of one target (pod.Step.Target) one
// operation runs at a time; after each operation the runtime is looked at again at once, so
// nothing waits for a poll. Whatever was going on when the process died is seen again from
// the runtime, the disk and the API server, and decided afresh: containers that run are
// adopted, not restarted.
//
// It does not promise that a status is written for every state passed through: the newest
// wins when writing is slower than living.
//
// Goroutines: Pool.Run owns all workers, a worker owns its operations; Run returns when all
// have ended. Containers keep running. Debug: /debug/pods shows each worker's phase, what is
// under way, failures and back-offs.
package worker

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/record"
	resourcehelper "k8s.io/component-helpers/resource"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/keelson/keelson/kubelet/cri"
	"github.com/keelson/keelson/kubelet/criconfig"
	"github.com/keelson/keelson/kubelet/eviction"
	"github.com/keelson/keelson/kubelet/images"
	"github.com/keelson/keelson/kubelet/metrics"
	"github.com/keelson/keelson/kubelet/objects"
	"github.com/keelson/keelson/kubelet/pod"
	"github.com/keelson/keelson/kubelet/server"
	"github.com/keelson/keelson/kubelet/shutdown"
)

// Cgroups is what a worker needs from the cgroups room.
type Cgroups interface {
	Parent(p *corev1.Pod) string
	Update(p *corev1.Pod) error
	Delete(uid types.UID) error
	Burstable(cpuMillis int64) error
}

// Rooms are the parts that workers drive. All are set.
type Rooms struct {
	Log      *slog.Logger
	Metrics  *metrics.Metrics     // nil: nothing is counted
	Client   kubernetes.Interface // nil: no API server, static pods only
	Runtime  *cri.Client
	Observer *cri.Observer
	Changes  *cri.Changes
	Volumes  Volumes
	Probes   Probes
	Node     Node
	Cgroups  Cgroups
	Images   *images.Puller
	Objects  *objects.Store
	Events   record.EventRecorder
	// Services are those of a namespace and of "default"; ok is false until they are known.
	Services func(namespace string) (services []*corev1.Service, ok bool)
	// Handler is the runtime handler of a RuntimeClass.
	Handler func(ctx context.Context, class string) (string, error)
	// Admit are more reasons to refuse a pod (pressure on the node).
	Admit func(p *corev1.Pod) *eviction.Rejection
	// Mirror is the API server's copy of a static pod, nil when there is none (yet).
	Mirror func(static *corev1.Pod) *corev1.Pod
}

// Options are the values that do not change while the kubelet runs.
type Options struct {
	Config      *criconfig.Node // Allocatable and MemoryBytes are filled in at start
	RootDir     string          // /var/lib/kubelet
	SymlinkDir  string          // /var/log/containers
	HostsFile   string          // the node's /etc/hosts
	RuntimeName string          // scheme of container IDs
	MaxBackoff  time.Duration
	// Retry is the first delay after a failed operation.
	Retry time.Duration
}

// Pool runs the workers.
type Pool struct {
	Rooms
	options Options
	gate    *gate

	ctx context.Context // set by Run before ready is closed
	wg  sync.WaitGroup

	mu      sync.Mutex
	workers map[types.UID]*worker // guarded by mu
	pending []*worker             // made before Run; guarded by mu
	running bool                  // guarded by mu

	admitting sync.Mutex    // one pod is admitted, or resized, at a time
	room      chan struct{} // a token: resizes are to be looked at
	told      atomic.Bool   // the sources have told all pods that they have
	hungry    atomic.Bool   // a pod had not begun when resizes were to be looked at
}

var (
	_ server.Pods      = (*Pool)(nil)
	_ eviction.Evictor = (*Pool)(nil)
	_ shutdown.Pods    = (*Pool)(nil)
)

// New starts nothing.
func New(o Options, r Rooms) *Pool {
	if o.Retry == 0 {
		o.Retry = time.Second
	}
	// Twice the cores: half of such a call is waiting.
	return &Pool{Rooms: r, options: o, gate: newGate(2 * runtime.NumCPU()), workers: map[types.UID]*worker{}, room: make(chan struct{}, 1)}
}

// Run runs the workers until ctx ends and all of them have.
func (p *Pool) Run(ctx context.Context) error {
	p.mu.Lock()
	p.ctx, p.running = ctx, true
	for _, w := range p.pending {
		p.wg.Go(w.run)
	}
	p.pending = nil
	p.mu.Unlock()
	p.wg.Go(func() { p.resizeAll(ctx) })
	p.weigh(ctx)
	p.wg.Wait()
	return nil
}

// weigh keeps the weight of the burstable class at the sum of its pods' CPU requests, until
// ctx ends. It matters only under contention, so it may lag.
func (p *Pool) weigh(ctx context.Context) {
	tick := time.NewTicker(30 * time.Second)
	defer tick.Stop()
	for set := int64(-1); ; {
		sum := int64(0)
		for _, w := range p.all() {
			o := w.given(w.object())
			if v := w.view.Load(); w.admitted.Load() && v != nil && v.phase < pod.Released && pod.QOS(o) == corev1.PodQOSBurstable {
				requests := resourcehelper.PodRequests(o, resourcehelper.PodResourcesOptions{})
				sum += requests.Cpu().MilliValue()
			}
		}
		if sum != set {
			if err := p.Cgroups.Burstable(sum); err != nil {
				p.Log.Warn("setting the weight of burstable pods failed", "err", err)
			} else {
				set = sum
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// Update says that the pod is wanted, or has changed. The object is shared: read-only.
func (p *Pool) Update(obj *corev1.Pod) {
	p.mu.Lock()
	w := p.workers[obj.UID]
	if w == nil {
		if p.ctx != nil && p.ctx.Err() != nil {
			p.mu.Unlock()
			return
		}
		w = newWorker(p, obj)
		p.workers[obj.UID] = w
		if p.running {
			p.wg.Go(w.run)
		} else {
			p.pending = append(p.pending, w)
		}
		p.mu.Unlock()
		return
	}
	p.mu.Unlock()
	w.update(obj, false)
}

// SourcesReady says that all sources have told all the pods that they have.
func (p *Pool) SourcesReady() {
	p.told.Store(true)
	p.roomMade()
	p.ThinkAll()
}

// Remove says that the source has the pod no more: what is left of it is stopped and removed.
func (p *Pool) Remove(obj *corev1.Pod) {
	if w := p.worker(obj.UID); w != nil {
		w.update(obj, true)
	}
}

// Poke makes a pod's worker look at the runtime and decide again.
func (p *Pool) Poke(uid types.UID) {
	if w := p.worker(uid); w != nil {
		w.poke(true)
	}
}

// Think makes a pod's worker decide again on what it knows.
func (p *Pool) Think(uid types.UID) {
	if w := p.worker(uid); w != nil {
		w.poke(false)
	}
}

// ThinkAll is Think for every pod.
func (p *Pool) ThinkAll() {
	for _, w := range p.all() {
		w.poke(false)
	}
}

// UsesObject wakes the pods that refer to a ConfigMap or Secret and wait for one.
func (p *Pool) UsesObject(_ string, key types.NamespacedName) {
	for _, w := range p.all() {
		if v := w.view.Load(); v != nil && v.pod.Namespace == key.Namespace && v.failing {
			w.retry()
		}
	}
}

// Evict implements eviction.Evictor.
func (p *Pool) Evict(uid types.UID, message string, graceSeconds int64, conditions ...corev1.PodCondition) error {
	if w := p.worker(uid); w != nil {
		w.Events.Eventf(w.object(), corev1.EventTypeWarning, "Evicted", "%s", message)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	end := &pod.End{Reason: "Evicted", Message: message, GracePeriodSeconds: &graceSeconds, Conditions: conditions}
	return p.end(ctx, uid, end, pod.Stopped)
}

// Terminate implements shutdown.Pods.
func (p *Pool) Terminate(ctx context.Context, uid types.UID, reason, message string, graceSeconds int64, conditions ...corev1.PodCondition) error {
	end := &pod.End{Reason: reason, Message: message, GracePeriodSeconds: &graceSeconds, Conditions: conditions}
	return p.end(ctx, uid, end, pod.Released)
}

// end ends a pod and waits until it has come to a phase, at most until ctx ends.
func (p *Pool) end(ctx context.Context, uid types.UID, end *pod.End, until pod.Phase) error {
	w := p.worker(uid)
	if w == nil {
		return fmt.Errorf("end: no pod with UID %s", uid)
	}
	w.end(end)
	for {
		if w.reached(until) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("end pod %s: it is not %s yet: %w", uid, until, context.Cause(ctx))
		case <-w.gone:
			return nil
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func (p *Pool) worker(uid types.UID) *worker {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.workers[uid]
}

func (p *Pool) all() []*worker {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := make([]*worker, 0, len(p.workers))
	for _, w := range p.workers {
		out = append(out, w)
	}
	return out
}

// forget is called by a worker that has nothing left to do.
func (p *Pool) forget(w *worker) {
	p.mu.Lock()
	delete(p.workers, w.uid)
	p.mu.Unlock()
	p.Observer.Forget(w.uid)
	if p.Objects != nil {
		p.Objects.Release(w.uid)
	}
	close(w.gone)
}

// Pods implements server.Pods.
func (p *Pool) Pods() []*corev1.Pod {
	var out []*corev1.Pod
	for _, w := range p.all() {
		if v := w.view.Load(); v != nil {
			out = append(out, v.pod)
		} else {
			out = append(out, w.object())
		}
	}
	slices.SortFunc(out, func(a, b *corev1.Pod) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name), cmp.Compare(a.UID, b.UID))
	})
	return out
}

// Pod implements server.Pods. Of several pods of one name the newest counts.
func (p *Pool) Pod(namespace, name string, uid types.UID) (*corev1.Pod, bool) {
	var best *corev1.Pod
	for _, o := range p.Pods() {
		if o.Namespace != namespace || o.Name != name {
			continue
		}
		if uid != "" && o.UID != uid && !(pod.IsStatic(o) && p.Mirror != nil && mirrorUID(p.Mirror(o)) == uid) {
			continue
		}
		if best == nil || best.CreationTimestamp.Before(&o.CreationTimestamp) || best.DeletionTimestamp != nil {
			best = o
		}
	}
	return best, best != nil
}

func mirrorUID(o *corev1.Pod) types.UID {
	if o == nil {
		return ""
	}
	return o.UID
}

// Container implements server.Pods.
func (p *Pool) Container(uid types.UID, name string, previous bool) (server.Container, bool) {
	w := p.worker(uid)
	if w == nil {
		return server.Container{}, false
	}
	v := w.view.Load()
	if v == nil {
		return server.Container{}, false
	}
	c := v.seen.Newest(name)
	if previous {
		c = v.seen.Previous(name)
	}
	if c == nil || c.ID == "" || c.Recalled {
		return server.Container{}, false
	}
	return server.Container{ID: c.ID, Running: c.State == pod.Live, LogPath: c.LogPath}, true
}

// Sandbox implements server.Pods.
func (p *Pool) Sandbox(uid types.UID) (string, bool) {
	w := p.worker(uid)
	if w == nil {
		return "", false
	}
	v := w.view.Load()
	if v == nil {
		return "", false
	}
	for _, sb := range v.seen.Sandboxes {
		if sb.Ready {
			return sb.ID, true
		}
	}
	return "", false
}

// Adopt makes workers for what the runtime and the disk have of pods that nobody wants: they
// are stopped and removed. Called once, when all sources have told what they want.
func (p *Pool) Adopt(ctx context.Context) error {
	orphans, err := p.leftovers(ctx)
	if err != nil {
		return err
	}
	entries, _ := os.ReadDir(filepath.Join(p.options.RootDir, "pods"))
	for _, e := range entries {
		uid := types.UID(e.Name())
		if p.worker(uid) == nil && orphans[uid] == nil {
			o := &corev1.Pod{}
			o.UID = uid
			orphans[uid] = o
		}
	}
	for _, o := range orphans {
		p.Metrics.Orphan()
		p.Log.Info("removing what is left of a pod", "pod", o.Namespace+"/"+o.Name, "uid", o.UID)
		p.Update(o)
		p.Remove(o)
	}
	return nil
}

// Static implements sources.Sink: the static pods that an earlier kubelet has run, as far as the runtime tells.
func (p *Pool) Static(ctx context.Context) ([]*corev1.Pod, error) {
	orphans, err := p.leftovers(ctx)
	var out []*corev1.Pod
	for _, o := range orphans {
		if pod.IsStatic(o) {
			out = append(out, o)
		}
	}
	return out, err
}

// leftovers are the pods that the runtime has and no worker carries.
func (p *Pool) leftovers(ctx context.Context) (map[types.UID]*corev1.Pod, error) {
	sandboxes, err := p.Runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return nil, fmt.Errorf("list sandboxes: %w", err)
	}
	containers, err := p.Runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	orphans := map[types.UID]*corev1.Pod{}
	add := func(labels, annotations map[string]string) {
		o := criconfig.FromLabels(labels, annotations)
		if o.UID == "" || p.worker(o.UID) != nil {
			return
		}
		if have := orphans[o.UID]; have != nil {
			have.Spec.Containers = append(have.Spec.Containers, o.Spec.Containers...)
			return
		}
		orphans[o.UID] = o
	}
	for _, s := range sandboxes.Items {
		add(s.Labels, s.Annotations)
	}
	for _, c := range containers.Containers {
		add(c.Labels, c.Annotations)
	}
	return orphans, nil
}

// UIDs are the pods that have a worker.
func (p *Pool) UIDs() map[types.UID]bool {
	out := map[types.UID]bool{}
	for _, w := range p.all() {
		out[w.uid] = true
	}
	return out
}

// admit decides whether the node takes the pod; the decision counts for the next pod. What must end
// before the pod can start is in preempt.
func (p *Pool) admit(w *worker, o *corev1.Pod) (end *pod.End, preempt pod.Preemption) {
	p.admitting.Lock()
	defer p.admitting.Unlock()
	others := p.others(w)
	if message := criconfig.ForbiddenSysctl(*p.options.Config, o); message != "" {
		return pod.Reject(criconfig.SysctlForbidden, message), pod.Preemption{}
	}
	if p.Admit != nil {
		if r := p.Admit(o); r != nil {
			return pod.Reject(r.Reason, r.Message), pod.Preemption{}
		}
	}
	if end, preempt = pod.Admit(o, others, p.Node.Node()); end != nil {
		return end, pod.Preemption{}
	}
	w.mu.Lock()
	w.resize = resize{given: pod.Allocate(o), judged: o.Generation}
	w.mu.Unlock()
	w.admitted.Store(true)
	return nil, preempt
}

// others are the pods beside w's that hold resources of the node, with what they have been given. One
// that the source has no more holds none, though it may still be stopping: the scheduler has given its
// place away, and a pod that it sent here in its stead must not fail.
func (p *Pool) others(w *worker) []*corev1.Pod {
	var out []*corev1.Pod
	for _, other := range p.all() {
		if other == w || !other.admitted.Load() || other.isRemoved() {
			continue
		}
		v := other.view.Load()
		if v != nil && (v.phase >= pod.Stopped || pod.IsTerminal(v.pod.Status.Phase)) {
			continue
		}
		out = append(out, other.given(other.object()))
	}
	return out
}

// facts are the node's, for pod.Status.
func (p *Pool) facts() pod.NodeFacts {
	var ips []netip.Addr
	if p.Node != nil {
		ips = p.Node.HostIPs()
	}
	return pod.NodeFacts{HostIPs: ips, Runtime: p.options.RuntimeName, MaxBackoff: p.options.MaxBackoff}
}

// PodDir is the pod's directory on the node.
func (p *Pool) PodDir(uid types.UID) string {
	return filepath.Join(p.options.RootDir, "pods", string(uid))
}

// Debug is what /debug/pods shows.
func (p *Pool) Debug() any {
	out := map[string]any{}
	for _, w := range p.all() {
		if v := w.view.Load(); v != nil {
			out[v.pod.Namespace+"/"+v.pod.Name+" "+string(w.uid)] = map[string]any{
				"phase": v.phase.String(), "steps": strings.Split(strings.TrimSpace(v.decision), "\n"), "busy": v.busy, "failures": v.failures,
			}
		}
	}
	return out
}
