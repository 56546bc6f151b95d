package eviction

import (
	"fmt"
	"math"
	"sort"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/types"
	resourcehelper "k8s.io/component-helpers/resource"

	"github.com/keelson/keelson/kubelet/pod"
)

// Left is how much of a signal there is and how much is left of it.
type Left struct{ Capacity, Available int64 }

// Usage is what one pod uses.
type Usage struct {
	MemoryBytes, DiskBytes, Inodes, Processes int64
	Containers                                map[string]ContainerUsage
	EmptyDirs                                 map[string]int64 // bytes by volume
}

// ContainerUsage is what one container of it uses.
type ContainerUsage struct{ MemoryBytes, DiskBytes int64 }

// Seen is one observation.
type Seen struct {
	Left  map[Signal]Left
	Pods  []*corev1.Pod // those that may still run
	Usage map[types.UID]Usage
}

// Memory is what a decision needs to know of earlier ones.
type Memory struct {
	Met        map[Signal]time.Time                   // thresholds that are met, since when
	Soft       map[Signal]time.Time                   // the same for soft ones
	Conditions map[corev1.NodeConditionType]time.Time // when a pressure was last seen
}

// Decision is what one pass wants done.
type Decision struct {
	Memory     Memory
	Conditions []corev1.NodeConditionType // pressures, sorted
	// Reclaim names what the node should first free by itself, empty for nothing: unused
	// images and dead containers, for DiskPressure. A pod is evicted when that is not enough.
	Reclaim corev1.ResourceName
	Signal  Signal
	Evict   []Eviction
}

// Eviction ends one pod.
type Eviction struct {
	Pod     *corev1.Pod
	Message string
	Grace   int64 // seconds
	// Starved says that the node lacks something; otherwise the pod broke its own limits.
	Starved bool
	// Signal is why, as kubelet_evictions counts it.
	Signal string
}

// hardGraceSeconds is what a pod gets when a hard threshold is met.
const hardGraceSeconds = 1

// Decide compares what is left with the thresholds. Pressure shows at once and stays for
// the transition period; hard thresholds act at once, soft ones after their grace; at most
// one pod is evicted for a threshold in one pass, and all that break their own limits.
//
// Source: Kubernetes documentation, "Node-pressure Eviction".
func Decide(thresholds []Threshold, o Options, was Memory, seen Seen, now time.Time) Decision {
	d := Decision{Memory: Memory{Met: map[Signal]time.Time{}, Soft: map[Signal]time.Time{}, Conditions: map[corev1.NodeConditionType]time.Time{}}}
	for c, at := range was.Conditions {
		if now.Sub(at) < o.EvictionPressureTransitionPeriod.Duration {
			d.Memory.Conditions[c] = at
		}
	}
	var acting []Threshold
	for _, t := range thresholds {
		left, known := seen.Left[t.Signal]
		if !known {
			continue
		}
		before, after := was.Met, d.Memory.Met
		if t.Grace > 0 {
			before, after = was.Soft, d.Memory.Soft
		}
		least := t.Least.Of(left.Capacity)
		since, met := before[t.Signal]
		if met {
			least += t.Reclaim.Of(left.Capacity)
		} else {
			since = now
		}
		if left.Available >= least {
			continue
		}
		after[t.Signal] = since
		d.Memory.Conditions[signals[t.Signal].condition] = now
		if now.Sub(since) >= t.Grace {
			acting = append(acting, t)
		}
	}
	for c := range d.Memory.Conditions {
		d.Conditions = append(d.Conditions, c)
	}
	sort.Slice(d.Conditions, func(i, j int) bool { return d.Conditions[i] < d.Conditions[j] })

	if d.Evict = overLimits(seen); len(d.Evict) > 0 || len(acting) == 0 {
		return d
	}
	sort.SliceStable(acting, func(i, j int) bool { // memory first: it kills fastest
		return ofMemory(acting[i].Signal) && !ofMemory(acting[j].Signal)
	})
	t := acting[0]
	d.Signal, d.Reclaim = t.Signal, signals[t.Signal].resource
	if pod := first(t.Signal, seen); pod != nil {
		grace := int64(hardGraceSeconds)
		if t.Grace > 0 {
			grace = int64(o.EvictionMaxPodGracePeriod)
		}
		d.Evict = []Eviction{{Pod: pod, Message: message(t, seen, pod), Grace: grace, Starved: true, Signal: string(t.Signal)}}
	}
	return d
}

func ofMemory(s Signal) bool { return s == MemoryAvailable || s == AllocatableMemoryAvailable }

// first is the pod that goes first for a signal: one that uses more than it asked for
// before others, then the lower priority, then the larger excess.
func first(signal Signal, seen Seen) *corev1.Pod {
	type rank struct {
		exceeds  bool
		priority int32
		excess   int64
	}
	of := func(p *corev1.Pod) rank {
		u := seen.Usage[p.UID]
		r := rank{}
		if p.Spec.Priority != nil {
			r.priority = *p.Spec.Priority
		}
		switch signal {
		case MemoryAvailable, AllocatableMemoryAvailable:
			r.excess = u.MemoryBytes - requested(p, corev1.ResourceMemory)
		case NodeFsAvailable, ImageFsAvailable:
			r.excess = u.DiskBytes - requested(p, corev1.ResourceEphemeralStorage)
		case PIDAvailable:
			r.excess = u.Processes
			return r
		default:
			r.excess = u.Inodes
			return r
		}
		r.exceeds = r.excess > 0
		return r
	}
	var best *corev1.Pod
	var bestRank rank
	for _, p := range seen.Pods {
		if pod.IsCritical(p) {
			continue
		}
		r := of(p)
		better := best == nil
		switch {
		case better:
		case r.exceeds != bestRank.exceeds:
			better = r.exceeds
		case r.priority != bestRank.priority:
			better = r.priority < bestRank.priority
		default:
			better = r.excess > bestRank.excess
		}
		if better {
			best, bestRank = p, r
		}
	}
	return best
}

// requested is what a pod asked for: of its containers together, or of its largest init
// container.
func requested(p *corev1.Pod, name corev1.ResourceName) int64 {
	sum := int64(0)
	for _, c := range p.Spec.Containers {
		q := c.Resources.Requests[name]
		sum += q.Value()
	}
	for _, c := range p.Spec.InitContainers {
		q := c.Resources.Requests[name]
		if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			sum += q.Value()
		} else {
			sum = max(sum, q.Value())
		}
	}
	return sum
}

// message says why, in upstream's words.
func message(t Threshold, seen Seen, pod *corev1.Pod) string {
	name := signals[t.Signal].resource
	left := seen.Left[t.Signal]
	quantity := func(n int64) string {
		if name == "inodes" || name == "pids" {
			return resource.NewQuantity(n, resource.DecimalSI).String()
		}
		return resource.NewQuantity(n, resource.BinarySI).String()
	}
	var b strings.Builder
	fmt.Fprintf(&b, "The node was low on resource: %v. ", name)
	fmt.Fprintf(&b, "Threshold quantity: %v, available: %v. ", quantity(t.Least.Of(left.Capacity)), roundKi(left.Available, quantity))
	u := seen.Usage[pod.UID]
	for _, c := range pod.Spec.Containers {
		used, ok := u.Containers[c.Name]
		if !ok {
			continue
		}
		bytes := used.MemoryBytes
		switch name {
		case corev1.ResourceMemory:
		case corev1.ResourceEphemeralStorage:
			bytes = used.DiskBytes
		default:
			continue
		}
		request := c.Resources.Requests[name]
		if bytes > request.Value() {
			fmt.Fprintf(&b, "Container %s was using %s, request is %s, has larger consumption of %v. ", c.Name, roundKi(bytes, quantity), request.String(), name)
		}
	}
	return b.String()
}

// roundKi keeps byte counts readable: whole KiB.
func roundKi(n int64, quantity func(int64) string) string {
	if n >= 1<<20 {
		n = int64(math.Floor(float64(n)/1024)) * 1024
	}
	return quantity(n)
}

// overLimits finds pods that use more local storage than they may.
func overLimits(seen Seen) (all []Eviction) {
	for _, p := range seen.Pods {
		u, ok := seen.Usage[p.UID]
		if !ok || pod.IsCritical(p) {
			continue
		}
		if why, signal := overLimit(p, u); why != "" {
			all = append(all, Eviction{Pod: p, Message: why, Grace: hardGraceSeconds, Signal: signal})
		}
	}
	return all
}

func overLimit(p *corev1.Pod, u Usage) (why, signal string) {
	for _, v := range p.Spec.Volumes {
		if v.EmptyDir == nil || v.EmptyDir.SizeLimit == nil || v.EmptyDir.SizeLimit.IsZero() {
			continue
		}
		if u.EmptyDirs[v.Name] > v.EmptyDir.SizeLimit.Value() {
			return fmt.Sprintf("Usage of EmptyDir volume %q exceeds the limit %q. ", v.Name, v.EmptyDir.SizeLimit.String()), "emptydirfs.limit"
		}
	}
	// The pod's limit is the sum of what its containers say, also when some say nothing.
	limits := resourcehelper.PodLimits(p, resourcehelper.PodResourcesOptions{})
	if total, ok := limits[corev1.ResourceEphemeralStorage]; ok && u.DiskBytes > total.Value() {
		return fmt.Sprintf("Pod ephemeral local storage usage exceeds the total limit of containers %s. ", total.String()), "ephemeralpodfs.limit"
	}
	for _, c := range p.Spec.Containers {
		if limit, ok := c.Resources.Limits[corev1.ResourceEphemeralStorage]; ok && !limit.IsZero() && u.Containers[c.Name].DiskBytes > limit.Value() {
			return fmt.Sprintf("Container %s exceeded its local ephemeral storage limit %q. ", c.Name, limit.String()), "ephemeralcontainerfs.limit"
		}
	}
	return "", ""
}

// Admit says whether a pod may start under these pressures; nil is yes.
func Admit(p *corev1.Pod, conditions []corev1.NodeConditionType, bestEffort bool) *Rejection {
	if len(conditions) == 0 || pod.IsCritical(p) {
		return nil
	}
	if len(conditions) == 1 && conditions[0] == corev1.NodeMemoryPressure {
		if !bestEffort {
			return nil
		}
		for _, t := range p.Spec.Tolerations {
			key := t.Key == corev1.TaintNodeMemoryPressure || t.Key == "" && t.Operator == corev1.TolerationOpExists
			effect := t.Effect == "" || t.Effect == corev1.TaintEffectNoSchedule
			if key && effect && (t.Operator == corev1.TolerationOpExists || t.Value == "") {
				return nil
			}
		}
	}
	return &Rejection{Reason: "Evicted", Message: fmt.Sprintf("The node had condition: %v. ", conditions)}
}
