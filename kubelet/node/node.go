// Package node is this machine as the cluster sees it: it registers the Node object, keeps
// its status true and renews the lease that says the kubelet lives.
//
// The main call is Manager.Run. Observe (observe.go) reads the machine and the runtime into
// Facts; Status (status.go, pure) turns Facts and the old status into the new one; the
// difference is patched into the API server, so that conditions of other writers survive.
//
//	not registered ──create, or adopt the existing object──> registered ──> status patch
//	     lease: every quarter of its duration       status: at once on a change, else every 5 min
//
// It promises that a change of readiness is told as soon as it is seen (the runtime is asked
// twice a second until everything is ready, and every five seconds then), and that losing
// the API server loses nothing: the next patch carries the whole truth. It never writes
// spec.podCIDR, spec.taints or labels of an existing Node, except the labels that describe
// the machine.
//
// Run owns three goroutines: status, lease, and the watch of the own Node. Manager.mu
// guards what they share and is not held during I/O. Tests use client-go's fake clientset
// and a runtime in memory. /debug/node shows Debug.
package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"
	nodeutil "k8s.io/component-helpers/node/util"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/keelson/keelson/kubelet/metrics"
	"github.com/keelson/keelson/libs/run"
)

// Options are what an administrator decides about the node.
type Options struct {
	HostnameOverride   string            `yaml:"hostnameOverride" flag:"hostname-override" help:"name of the node; empty: the machine's host name in lower case"`
	NodeIP             string            `yaml:"nodeIP" flag:"node-ip" help:"address of the node, or one of each family separated by a comma; empty: that of the default route"`
	NodeLabels         map[string]string `yaml:"nodeLabels" flag:"node-labels" help:"labels that the node is registered with"`
	RegisterNode       bool              `yaml:"registerNode" flag:"register-node" help:"create the Node object if it does not exist"`
	RegisterWithTaints []string          `yaml:"registerWithTaints" flag:"register-with-taints" help:"taints that the node is registered with, each key=value:effect"`
	ProviderID         string            `yaml:"providerID" flag:"provider-id" help:"identifier of the machine at its provider"`
	FailSwapOn         bool              `yaml:"failSwapOn" flag:"fail-swap-on" help:"refuse to start on a machine with swap space"`
	MaxPods            int32             `yaml:"maxPods" flag:"max-pods" help:"pods that may run on the node"`
	SystemReserved     map[string]string `yaml:"systemReserved" flag:"system-reserved" help:"cpu, memory, ephemeral-storage and pid kept for the system"`
	KubeReserved       map[string]string `yaml:"kubeReserved" flag:"kube-reserved" help:"cpu, memory, ephemeral-storage and pid kept for Kubernetes' own daemons"`

	NodeStatusReportFrequency metav1.Duration `yaml:"nodeStatusReportFrequency" flag:"node-status-report-frequency" help:"how often the status is sent when nothing changes"`
	NodeLeaseDurationSeconds  int32           `yaml:"nodeLeaseDurationSeconds" flag:"node-lease-duration-seconds" help:"seconds after which a node whose lease was not renewed is lost; it is renewed four times as often"`
}

// DefaultOptions are upstream's.
func DefaultOptions() Options {
	return Options{
		RegisterNode: true, FailSwapOn: true, MaxPods: 110,
		NodeStatusReportFrequency: metav1.Duration{Duration: 5 * time.Minute},
		NodeLeaseDurationSeconds:  40,
	}
}

// Surroundings are the other parts of the kubelet.
type Surroundings struct {
	Root    string // the kubelet's directory: its file system is the node's ephemeral storage
	Port    int32  // of the kubelet's server
	Version string // of the kubelet, "v1.36.6+keelson..."
	// Pressure is the eviction manager's view.
	Pressure func() (memory, disk, pid bool)
	// Withheld is what eviction thresholds keep back of the capacity. May be nil.
	Withheld func(capacity corev1.ResourceList) corev1.ResourceList
	// Healthy names a reason why pods cannot be run, other than the runtime. May be nil.
	Healthy func() error
	// ShuttingDown says that the machine is going down. May be nil.
	ShuttingDown func() error
	Client       kubernetes.Interface // nil: the runtime is watched, and nobody is told
	Runtime      runtimeapi.RuntimeServiceClient
	Images       runtimeapi.ImageServiceClient
	Events       record.EventRecorder
	Metrics      *metrics.Metrics
	// RuntimeChanged is called, without blocking, when readiness of the network changes.
	RuntimeChanged func()
	Log            *slog.Logger
}

// Manager keeps the Node object.
type Manager struct {
	o      Options
	s      Surroundings
	name   string
	taints []corev1.Taint
	wake   chan struct{}
	known  chan struct{} // closed when the Node object is first seen

	ips                 []netip.Addr // these four never change
	info                corev1.NodeSystemInfo
	capacity            corev1.ResourceList
	offered, unreserved corev1.ResourceList

	mu      sync.Mutex
	node    *corev1.Node
	mine    bool // registered by this process, and not deleted since
	seen    bool // known is closed
	network error
	facts   Facts
	sent    time.Time
}

// Name is the node's name under these options.
func Name(o Options) (string, error) { return nodeutil.GetHostname(o.HostnameOverride) }

// New checks the options and reads what never changes about the machine: capacity and
// addresses are known from here on.
func New(o Options, s Surroundings) (*Manager, error) {
	name, err := Name(o)
	if err != nil {
		return nil, err
	}
	if swaps := swapSpaces(); o.FailSwapOn && len(swaps) > 0 {
		return nil, fmt.Errorf("the machine swaps to %s: turn swap off, or set --fail-swap-on=false", strings.Join(swaps, ", "))
	}
	taints, err := ParseTaints(o.RegisterWithTaints)
	if err != nil {
		return nil, err
	}
	m := &Manager{o: o, s: s, name: name, taints: taints, wake: make(chan struct{}, 1), known: make(chan struct{}),
		network: errors.New("container runtime status check may not have completed yet")}
	m.info = systemInfo()
	m.info.KubeletVersion = s.Version
	if m.ips, err = addresses(o.NodeIP); err != nil {
		return nil, err
	}
	if m.capacity, err = capacity(s.Root, o.MaxPods); err != nil {
		return nil, err
	}
	var withheld corev1.ResourceList
	if s.Withheld != nil {
		withheld = s.Withheld(m.capacity)
	}
	if m.offered, err = Allocatable(m.capacity, o.SystemReserved, o.KubeReserved, withheld); err != nil {
		return nil, err
	}
	if m.unreserved, err = Allocatable(m.capacity, o.SystemReserved, o.KubeReserved, nil); err != nil {
		return nil, err
	}
	return m, nil
}

// NodeName is the name of the Node object.
func (m *Manager) NodeName() string { return m.name }

// Node is the newest Node object seen, nil before registration. Shared: read-only.
func (m *Manager) Node() *corev1.Node {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.node
}

// Unreserved is the capacity without what is reserved for the system and for Kubernetes: what all
// pods together may not exceed.
func (m *Manager) Unreserved() corev1.ResourceList { return m.unreserved }

// HostIPs are the node's addresses, at most one of each family, primary first.
func (m *Manager) HostIPs() []netip.Addr { return m.ips }

// Capacity is what the machine has. Read-only.
func (m *Manager) Capacity() corev1.ResourceList { return m.capacity }

// Allocatable is what of it pods may use. Read-only.
func (m *Manager) Allocatable() corev1.ResourceList { return m.offered }

// NetworkReady is nil once the runtime reports NetworkReady; its text otherwise is the
// reason and message of the runtime's condition.
func (m *Manager) NetworkReady() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.network
}

// Poke makes the status be looked at now: a pressure condition may have changed.
func (m *Manager) Poke() {
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// Run works until ctx ends.
func (m *Manager) Run(ctx context.Context) error {
	m.Event(corev1.EventTypeNormal, "Starting", "Starting kubelet.")
	g := run.New(ctx)
	g.Go("status", m.keepStatus)
	if m.s.Client == nil { // static pods only: nobody to tell
		return g.Wait()
	}
	g.Go("watch", m.watch)
	g.Go("lease", m.keepLease)
	return g.Wait()
}

// watch follows the own Node object.
func (m *Manager) watch(ctx context.Context) error {
	nodes := m.s.Client.CoreV1().Nodes()
	only := fields.OneTermEqualSelector(metav1.ObjectNameField, m.name).String()
	_, controller := cache.NewInformerWithOptions(cache.InformerOptions{
		ListerWatcher: cache.ToListWatcherWithWatchListSemantics(&cache.ListWatch{
			ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
				o.FieldSelector = only
				return nodes.List(ctx, o)
			},
			WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
				o.FieldSelector = only
				return nodes.Watch(ctx, o)
			},
		}, m.s.Client),
		ObjectType: &corev1.Node{},
		Handler: cache.ResourceEventHandlerFuncs{
			AddFunc:    func(o any) { m.saw(o.(*corev1.Node)) },
			UpdateFunc: func(_, o any) { m.saw(o.(*corev1.Node)) },
			DeleteFunc: func(any) { m.lost() },
		},
	})
	controller.RunWithContext(ctx)
	return context.Cause(ctx)
}

func (m *Manager) saw(n *corev1.Node) {
	if n.Name == m.name {
		m.keep(n)
	}
}

// lost makes the next pass register again.
func (m *Manager) lost() {
	m.mu.Lock()
	m.node, m.mine = nil, false
	m.mu.Unlock()
	m.Poke()
}

// keepStatus observes, decides and applies: at once when woken, soon while the node is not
// ready, and now and then.
func (m *Manager) keepStatus(ctx context.Context) error {
	failures := 0
	for {
		ready, err := m.sync(ctx)
		pause := 5 * time.Second
		switch {
		case err != nil && ctx.Err() == nil:
			failures++
			if failures == 1 || failures%20 == 0 {
				m.s.Log.Warn("node status is not reported", "node", m.name, "failures", failures, "err", err)
			}
			pause = min(200*time.Millisecond<<min(failures, 5), 5*time.Second)
		case !ready:
			failures = 0
			pause = 500 * time.Millisecond
		default:
			failures = 0
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-m.wake:
		case <-time.After(pause):
		}
	}
}

// sync is one pass.
func (m *Manager) sync(ctx context.Context) (ready bool, err error) {
	facts := m.observe(ctx)
	m.mu.Lock()
	changed := (m.network == nil) != (facts.network() == nil)
	m.network, m.facts = facts.network(), facts
	node, mine := m.node, m.mine
	m.mu.Unlock()
	if changed && m.s.RuntimeChanged != nil {
		m.s.RuntimeChanged()
	}
	ready = facts.problem() == ""
	if m.s.Client == nil {
		return ready, nil
	}

	if node == nil || !mine { // the watch may have shown the object of an earlier life
		if node, err = m.register(ctx, facts); err != nil {
			return ready, err
		}
		m.mu.Lock()
		m.mine = true
		m.mu.Unlock()
	}
	now := time.Now()
	next := node.DeepCopy()
	next.Status = Status(facts, &node.Status, now)
	m.mu.Lock()
	due := now.Sub(m.sent) >= m.o.NodeStatusReportFrequency.Duration
	m.mu.Unlock()
	if !due && !Differs(&node.Status, &next.Status) {
		m.told(ready)
		return ready, nil
	}
	m.announce(&node.Status, &next.Status)
	patched, _, err := nodeutil.PatchNodeStatus(m.s.Client.CoreV1(), types.NodeName(m.name), node, next)
	if apierrors.IsNotFound(err) {
		m.lost()
		return ready, err
	}
	if err != nil {
		return ready, fmt.Errorf("patch status of node %s: %w", m.name, err)
	}
	m.told(ready)
	m.mu.Lock()
	m.sent = now
	m.mu.Unlock()
	m.keep(patched)
	return ready, nil
}

// told notes that the API server knows a status.
func (m *Manager) told(ready bool) {
	if ready {
		m.s.Metrics.NodeReady(time.Now())
	}
}

// keep takes over the object as the API server has answered or the watch has shown it.
func (m *Manager) keep(n *corev1.Node) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.node = n
	if !m.seen {
		m.seen = true
		close(m.known)
	}
}

// register creates the Node, or takes over the existing one.
func (m *Manager) register(ctx context.Context, facts Facts) (*corev1.Node, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	nodes := m.s.Client.CoreV1().Nodes()
	want := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{
			Name:        m.name,
			Labels:      labels(m.name, m.o.NodeLabels),
			Annotations: map[string]string{"volumes.kubernetes.io/controller-managed-attach-detach": "true"},
		},
		Spec:   corev1.NodeSpec{ProviderID: m.o.ProviderID, Taints: m.taints},
		Status: Status(facts, &corev1.NodeStatus{}, time.Now()),
	}
	m.s.Metrics.Registering(time.Now())
	if m.o.RegisterNode {
		made, err := nodes.Create(ctx, want, metav1.CreateOptions{})
		if err == nil {
			m.s.Metrics.Registered(time.Now())
			m.s.Log.Info("node is registered", "node", m.name)
			m.keep(made)
			return made, nil
		}
		if !apierrors.IsAlreadyExists(err) {
			return nil, fmt.Errorf("register node %s: %w", m.name, err)
		}
	}
	old, err := nodes.Get(ctx, m.name, metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("register node %s: %w", m.name, err)
	}
	next := old.DeepCopy()
	if next.Labels == nil {
		next.Labels = map[string]string{}
	}
	for k, v := range labels(m.name, nil) {
		next.Labels[k] = v
	}
	if next.Annotations == nil {
		next.Annotations = map[string]string{}
	}
	for k, v := range want.Annotations {
		next.Annotations[k] = v
	}
	if next.Spec.ProviderID == "" {
		next.Spec.ProviderID = m.o.ProviderID
	}
	if !equality.Semantic.DeepEqual(old, next) {
		if next, err = nodes.Update(ctx, next, metav1.UpdateOptions{}); err != nil {
			return nil, fmt.Errorf("update labels of node %s: %w", m.name, err)
		}
	}
	m.s.Log.Info("node was registered before", "node", m.name)
	if was := old.Status.NodeInfo.BootID; was != "" && facts.Info.BootID != "" && was != facts.Info.BootID {
		m.Event(corev1.EventTypeWarning, "Rebooted", fmt.Sprintf("Node %s has been rebooted, boot id: %s", m.name, facts.Info.BootID))
	}
	m.keep(next)
	return next, nil
}

// announce sends an event for each condition that has changed, as users know them.
func (m *Manager) announce(old, next *corev1.NodeStatus) {
	names := map[corev1.NodeConditionType][2]string{ // when false, when true
		corev1.NodeReady:          {"NodeNotReady", "NodeReady"},
		corev1.NodeMemoryPressure: {"NodeHasSufficientMemory", "NodeHasInsufficientMemory"},
		corev1.NodeDiskPressure:   {"NodeHasNoDiskPressure", "NodeHasDiskPressure"},
		corev1.NodePIDPressure:    {"NodeHasSufficientPID", "NodeHasInsufficientPID"},
	}
	for _, c := range next.Conditions {
		_, before := nodeutil.GetNodeCondition(old, c.Type)
		name, ok := names[c.Type]
		if !ok || before != nil && before.Status == c.Status || c.Status == corev1.ConditionUnknown {
			continue
		}
		reason := name[0]
		if c.Status == corev1.ConditionTrue {
			reason = name[1]
		}
		m.Event(corev1.EventTypeNormal, reason, fmt.Sprintf("Node %s status is now: %s", m.name, reason))
	}
}

// Event records an event about the node.
func (m *Manager) Event(eventType, reason, message string) {
	m.s.Events.Event(&corev1.ObjectReference{Kind: "Node", APIVersion: "v1", Name: m.name, UID: types.UID(m.name)}, eventType, reason, message)
}

// keepLease renews the lease a quarter into its life. The object read last is kept, so
// that a renewal is one request.
func (m *Manager) keepLease(ctx context.Context) error {
	select {
	case <-m.known:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	every := time.Duration(m.o.NodeLeaseDurationSeconds) * time.Second / 4
	var last *coordinationv1.Lease
	failures := 0
	for {
		renewed, err := m.renew(ctx, last)
		pause := every
		if err != nil && ctx.Err() == nil {
			last = nil
			failures++
			pause = min(every, 200*time.Millisecond<<min(failures, 6))
			m.s.Log.Warn("lease is not renewed", "node", m.name, "failures", failures, "err", err)
		} else {
			last, failures = renewed, 0
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(pause):
		}
	}
}

func (m *Manager) renew(ctx context.Context, last *coordinationv1.Lease) (*coordinationv1.Lease, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	leases := m.s.Client.CoordinationV1().Leases(corev1.NamespaceNodeLease)
	now := metav1.NewMicroTime(time.Now())
	if last == nil {
		var err error
		last, err = leases.Get(ctx, m.name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			lease := &coordinationv1.Lease{
				ObjectMeta: metav1.ObjectMeta{Name: m.name, Namespace: corev1.NamespaceNodeLease},
				Spec:       coordinationv1.LeaseSpec{HolderIdentity: &m.name, LeaseDurationSeconds: &m.o.NodeLeaseDurationSeconds, RenewTime: &now},
			}
			if n := m.Node(); n != nil {
				lease.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: n.Name, UID: n.UID}}
			}
			return leases.Create(ctx, lease, metav1.CreateOptions{})
		}
		if err != nil {
			return nil, err
		}
	}
	next := last.DeepCopy()
	next.Spec.HolderIdentity, next.Spec.LeaseDurationSeconds, next.Spec.RenewTime = &m.name, &m.o.NodeLeaseDurationSeconds, &now
	if n := m.Node(); n != nil && len(next.OwnerReferences) == 0 {
		next.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: n.Name, UID: n.UID}}
	}
	return leases.Update(ctx, next, metav1.UpdateOptions{})
}

// Debug is what this room knows.
func (m *Manager) Debug() any {
	m.mu.Lock()
	defer m.mu.Unlock()
	network := ""
	if m.network != nil {
		network = m.network.Error()
	}
	return map[string]any{"name": m.name, "registered": m.node != nil, "network": network, "problem": m.facts.problem(),
		"statusSent": m.sent, "ips": m.ips, "allocatable": m.offered}
}

// ParseTaints reads key=value:effect and key:effect.
func ParseTaints(list []string) ([]corev1.Taint, error) {
	var taints []corev1.Taint
	for _, s := range list {
		rest, effect, ok := strings.Cut(s, ":")
		key, value, _ := strings.Cut(rest, "=")
		switch corev1.TaintEffect(effect) {
		case corev1.TaintEffectNoSchedule, corev1.TaintEffectPreferNoSchedule, corev1.TaintEffectNoExecute:
		default:
			ok = false
		}
		if !ok || key == "" {
			return nil, fmt.Errorf("taint %q: want key=value:effect, with NoSchedule, PreferNoSchedule or NoExecute", s)
		}
		taints = append(taints, corev1.Taint{Key: key, Value: value, Effect: corev1.TaintEffect(effect)})
	}
	return taints, nil
}
