// Package eviction keeps the node alive when memory, disk or process IDs run out: it shows
// the pressure as a node condition, frees what can be freed, and ends the pods that hurt
// most.
//
// The main calls are Manager.Run and Admit. Decide (decide.go, pure) turns thresholds, what
// is left, what pods use and what was decided before into conditions and evictions;
// thresholds.go reads the configuration.
//
//	every 10 s: Summary ──> Seen ──> Decide ──> free images ──> still short? ──> evict one pod
//	                                    └──> conditions ──> node status, Admit
//
// It promises that critical pods are never evicted, that a condition shows in the same pass
// that sees its cause, and that a pod over its own storage limits goes even when the node has
// plenty. It does not promise to be faster than the kernel's OOM killer.
//
// Run is one goroutine; mu guards the conditions only. /debug/eviction shows Debug.
package eviction

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/record"
	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"

	"github.com/keelson/keelson/kubelet/metrics"
)

// Surroundings are the other parts of the kubelet.
type Surroundings struct {
	NodeName string
	Pods     Evictor
	Summary  func(ctx context.Context) (*statsapi.Summary, error)
	// Enforced says that all pods together have a limit of memory.
	Enforced bool
	// FreeImages removes all images that nothing uses. May be nil.
	FreeImages func(ctx context.Context) error
	// BestEffort says whether a pod has no requests and limits at all.
	BestEffort func(*corev1.Pod) bool
	// Changed is called, without blocking, when the conditions have changed. May be nil.
	Changed func()
	Metrics *metrics.Metrics
	Events  record.EventRecorder
	Log     *slog.Logger
}

// Manager watches over the node.
type Manager struct {
	o          Options
	s          Surroundings
	thresholds []Threshold

	mu   sync.Mutex
	last Decision
	seen map[Signal]Left
	at   time.Time // when what was seen was measured; zero: not known
}

const period = 10 * time.Second

// New reads the thresholds.
func New(o Options, s Surroundings) (*Manager, error) {
	thresholds, err := Parse(o)
	if err != nil {
		return nil, err
	}
	if s.Enforced {
		thresholds = Enforced(thresholds)
	}
	return &Manager{o: o, s: s, thresholds: thresholds}, nil
}

// Conditions says which pressures the node is under.
func (m *Manager) Conditions() (memory, disk, pid bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	has := func(c corev1.NodeConditionType) bool { return slices.Contains(m.last.Conditions, c) }
	return has(corev1.NodeMemoryPressure), has(corev1.NodeDiskPressure), has(corev1.NodePIDPressure)
}

// Admit says why a pod may not start now; nil is yes.
func (m *Manager) Admit(pod *corev1.Pod) *Rejection {
	m.mu.Lock()
	conditions := m.last.Conditions
	m.mu.Unlock()
	return Admit(pod, conditions, m.s.BestEffort != nil && m.s.BestEffort(pod))
}

// Run works until ctx ends.
func (m *Manager) Run(ctx context.Context) error {
	for {
		m.pass(ctx)
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(period):
		}
	}
}

func (m *Manager) pass(ctx context.Context) {
	d, ok := m.decide(ctx)
	if !ok || len(d.Evict) == 0 && d.Reclaim == "" {
		return
	}
	node := &corev1.ObjectReference{Kind: "Node", APIVersion: "v1", Name: m.s.NodeName, UID: types.UID(m.s.NodeName)}
	if d.Reclaim != "" {
		m.s.Events.Eventf(node, corev1.EventTypeWarning, "EvictionThresholdMet", "Attempting to reclaim %s", d.Reclaim)
		if m.s.FreeImages != nil && signals[d.Signal].condition == corev1.NodeDiskPressure {
			if err := m.s.FreeImages(ctx); err != nil {
				m.s.Log.Warn("unused images are not removed", "err", err)
			}
			if d, ok = m.decide(ctx); !ok {
				return
			}
		}
	}
	m.mu.Lock()
	at := m.at
	m.mu.Unlock()
	for _, e := range d.Evict {
		m.s.Log.Info("pod is evicted", "pod", e.Pod.Namespace+"/"+e.Pod.Name, "uid", e.Pod.UID, "signal", d.Signal, "reason", e.Message)
		condition := corev1.PodCondition{Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, Reason: corev1.PodReasonTerminationByKubelet, Message: e.Message}
		var conditions []corev1.PodCondition
		if e.Starved {
			conditions = append(conditions, condition)
		}
		if e.Starved && !at.IsZero() {
			m.s.Metrics.EvictsFor(e.Signal, time.Since(at))
		}
		m.s.Metrics.Evicted(e.Signal)
		if err := m.s.Pods.Evict(e.Pod.UID, e.Message, e.Grace, conditions...); err != nil {
			m.s.Log.Warn("pod is not evicted", "pod", e.Pod.Namespace+"/"+e.Pod.Name, "uid", e.Pod.UID, "err", err)
		}
	}
}

// decide observes, decides and publishes the conditions.
func (m *Manager) decide(ctx context.Context) (Decision, bool) {
	sum, err := m.s.Summary(ctx)
	if err != nil {
		if ctx.Err() == nil {
			m.s.Log.Debug("usage is unknown", "err", err)
		}
		return Decision{}, false
	}
	seen := observe(sum, m.s.Pods.Pods())
	m.mu.Lock()
	before := m.last.Conditions
	m.last = Decide(m.thresholds, m.o, m.last.Memory, seen, time.Now())
	m.seen, m.at = seen.Left, measured(sum)
	d := m.last
	m.mu.Unlock()
	if !slices.Equal(before, d.Conditions) {
		m.s.Log.Info("node pressure has changed", "conditions", d.Conditions)
		if m.s.Changed != nil {
			m.s.Changed()
		}
	}
	return d, true
}

// measured is when the node's memory, or else its disk, was looked at.
func measured(sum *statsapi.Summary) time.Time {
	switch {
	case sum.Node.Memory != nil:
		return sum.Node.Memory.Time.Time
	case sum.Node.Fs != nil:
		return sum.Node.Fs.Time.Time
	}
	return time.Time{}
}

// observe takes what matters here from a summary.
func observe(sum *statsapi.Summary, pods []*corev1.Pod) Seen {
	seen := Seen{Left: map[Signal]Left{}, Usage: map[types.UID]Usage{}}
	if m := sum.Node.Memory; m != nil && m.AvailableBytes != nil && m.WorkingSetBytes != nil {
		seen.Left[MemoryAvailable] = Left{Capacity: int64(*m.AvailableBytes + *m.WorkingSetBytes), Available: int64(*m.AvailableBytes)}
	}
	for _, part := range sum.Node.SystemContainers {
		if m := part.Memory; part.Name == statsapi.SystemContainerPods && m != nil && m.AvailableBytes != nil && m.WorkingSetBytes != nil {
			seen.Left[AllocatableMemoryAvailable] = Left{Capacity: int64(*m.AvailableBytes + *m.WorkingSetBytes), Available: int64(*m.AvailableBytes)}
		}
	}
	disk := func(f *statsapi.FsStats, bytes, inodes Signal) {
		if f != nil && f.AvailableBytes != nil && f.CapacityBytes != nil {
			seen.Left[bytes] = Left{Capacity: int64(*f.CapacityBytes), Available: int64(*f.AvailableBytes)}
		}
		if f != nil && f.InodesFree != nil && f.Inodes != nil && *f.Inodes > 0 { // some file systems have none
			seen.Left[inodes] = Left{Capacity: int64(*f.Inodes), Available: int64(*f.InodesFree)}
		}
	}
	disk(sum.Node.Fs, NodeFsAvailable, NodeFsInodesFree)
	if sum.Node.Runtime != nil {
		disk(sum.Node.Runtime.ImageFs, ImageFsAvailable, ImageFsInodesFree)
	}
	if r := sum.Node.Rlimit; r != nil && r.MaxPID != nil && r.NumOfRunningProcesses != nil {
		seen.Left[PIDAvailable] = Left{Capacity: *r.MaxPID, Available: *r.MaxPID - *r.NumOfRunningProcesses}
	}
	for _, p := range pods {
		if p.Status.Phase != corev1.PodSucceeded && p.Status.Phase != corev1.PodFailed {
			seen.Pods = append(seen.Pods, p)
		}
	}
	value := func(v *uint64) int64 {
		if v == nil {
			return 0
		}
		return int64(*v)
	}
	for _, p := range sum.Pods {
		u := Usage{Containers: map[string]ContainerUsage{}, EmptyDirs: map[string]int64{}}
		if p.EphemeralStorage != nil {
			u.DiskBytes, u.Inodes = value(p.EphemeralStorage.UsedBytes), value(p.EphemeralStorage.InodesUsed)
		}
		if p.ProcessStats != nil {
			u.Processes = value(p.ProcessStats.ProcessCount)
		}
		for _, c := range p.Containers {
			one := ContainerUsage{}
			if c.Memory != nil {
				one.MemoryBytes = value(c.Memory.WorkingSetBytes)
			}
			if c.Rootfs != nil {
				one.DiskBytes += value(c.Rootfs.UsedBytes)
				u.Inodes += value(c.Rootfs.InodesUsed)
			}
			if c.Logs != nil {
				one.DiskBytes += value(c.Logs.UsedBytes)
			}
			u.MemoryBytes += one.MemoryBytes
			u.Containers[c.Name] = one
		}
		if p.Memory != nil && p.Memory.WorkingSetBytes != nil { // more than its containers together
			u.MemoryBytes = value(p.Memory.WorkingSetBytes)
		}
		for _, v := range p.VolumeStats {
			u.EmptyDirs[v.Name] = value(v.UsedBytes)
		}
		seen.Usage[types.UID(p.PodRef.UID)] = u
	}
	return seen
}

// Debug is what was last seen and decided.
func (m *Manager) Debug() any {
	m.mu.Lock()
	defer m.mu.Unlock()
	return map[string]any{"left": m.seen, "conditions": m.last.Conditions, "met": m.last.Memory.Met, "soft": m.last.Memory.Soft, "reclaim": m.last.Reclaim}
}
