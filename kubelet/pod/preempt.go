package pod

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	resourcehelper "k8s.io/component-helpers/resource"
)

// shortage is what a pod lacks of one resource; for CPU in thousandths.
type shortage struct {
	name                          corev1.ResourceName
	requested, used, capacity, by int64
}

func (s shortage) reject() *End {
	return reject("OutOf"+string(s.name), fmt.Sprintf(
		"Node didn't have enough resource: %s, requested: %d, used: %d, capacity: %d", s.name, s.requested, s.used, s.capacity))
}

// shortages compares the sum of requests with what the node allots to pods.
func shortages(p *corev1.Pod, others []*corev1.Pod, node *corev1.Node) (out []shortage) {
	room := node.Status.Allocatable
	add := func(name corev1.ResourceName, requested, used, capacity int64) {
		if by := requested + used - capacity; by > 0 {
			out = append(out, shortage{name, requested, used, capacity, by})
		}
	}
	if n := room.Pods().Value(); n > 0 {
		add(corev1.ResourcePods, 1, int64(len(others)), n)
	}
	want := requests(p)
	order := func(n corev1.ResourceName) int {
		return slices.Index([]corev1.ResourceName{corev1.ResourceEphemeralStorage, corev1.ResourceMemory, corev1.ResourceCPU}, n)
	}
	names := sortedKeys(want)
	slices.SortStableFunc(names, func(a, b corev1.ResourceName) int { return cmp.Compare(order(b), order(a)) })
	for _, name := range names {
		capacity, known := room[name]
		if amount(want, name) == 0 || (!known && strings.Contains(string(name), "/")) {
			continue // an extended resource that the node does not have is the cluster's matter
		}
		used := int64(0)
		for _, o := range others {
			used += amount(requests(o), name)
		}
		add(name, amount(want, name), used, amount(corev1.ResourceList{name: capacity}, name))
	}
	return out
}

func requests(p *corev1.Pod) corev1.ResourceList {
	return resourcehelper.PodRequests(p, resourcehelper.PodResourcesOptions{})
}

// amount is what a list has of a resource: thousandths of CPU, units of others; each pod is one of "pods".
func amount(list corev1.ResourceList, name corev1.ResourceName) int64 {
	q := list[name]
	switch name {
	case corev1.ResourcePods:
		if q.IsZero() {
			return 1
		}
		return q.Value()
	case corev1.ResourceCPU:
		return q.MilliValue()
	default:
		return q.Value()
	}
}

// Preemption is what must end before a critical pod can start, and the resource that it lacks first.
type Preemption struct {
	Pods  []*corev1.Pod
	Lacks corev1.ResourceName
}

// Preempted is how a pod ends that makes room for a critical one.
func Preempted() *End {
	return &End{Reason: "Preempting", Message: "Preempted in order to admit critical pod", Conditions: []corev1.PodCondition{{
		Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, Reason: corev1.PodReasonTerminationByKubelet,
		Message: "Pod was preempted by Kubelet to accommodate a critical pod."}}}
}

// victims are the pods that must end for a critical pod to find what it lacks. Of two ways that which
// ends no pod of a better class wins; within a class the pods that cover most of what lacks go first.
// ok is false when not even the end of all pods that may be ended would do.
func victims(p *corev1.Pod, others []*corev1.Pod, lacks []shortage) (out []*corev1.Pod, ok bool) {
	classes := []corev1.PodQOSClass{corev1.PodQOSGuaranteed, corev1.PodQOSBurstable, corev1.PodQOSBestEffort}
	byClass := map[corev1.PodQOSClass][]*corev1.Pod{}
	for _, o := range others {
		if yields(o, p) {
			byClass[QOS(o)] = append(byClass[QOS(o)], o)
		}
	}
	for i, class := range classes {
		// What this class has to give if all of the lesser ones gave everything.
		need := lacks
		for _, lesser := range classes[i+1:] {
			need = without(need, byClass[lesser]...)
		}
		need = without(need, out...)
		candidates := byClass[class]
		for len(need) > 0 && len(candidates) > 0 {
			best := 0
			for j := range candidates {
				if d := cmp.Or(cmp.Compare(distance(need, candidates[j]), distance(need, candidates[best])), smaller(candidates[j], candidates[best])); d < 0 {
					best = j
				}
			}
			out = append(out, candidates[best])
			need = without(need, candidates[best])
			candidates = slices.Delete(slices.Clone(candidates), best, best+1)
		}
		if len(need) > 0 {
			return nil, false
		}
	}
	return out, true
}

// yields reports whether a pod may be ended so that p can run.
func yields(o, p *corev1.Pod) bool {
	if IsCritical(p) && !IsCritical(o) {
		return true
	}
	return p.Spec.Priority != nil && o.Spec.Priority != nil && *p.Spec.Priority > *o.Spec.Priority
}

// without is what still lacks when these pods have ended.
func without(lacks []shortage, ended ...*corev1.Pod) (out []shortage) {
	for _, s := range lacks {
		for _, o := range ended {
			s.by -= amount(requests(o), s.name)
		}
		if s.by > 0 {
			out = append(out, s)
		}
	}
	return out
}

// distance is how far a pod's end leaves the node from what lacks: per resource the square of the part
// that still lacks.
func distance(lacks []shortage, o *corev1.Pod) (sum float64) {
	for _, s := range lacks {
		if left := s.by - amount(requests(o), s.name); left > 0 {
			part := float64(left) / float64(s.by)
			sum += part * part
		}
	}
	return sum
}

// smaller orders pods by what they request: memory, then CPU.
func smaller(a, b *corev1.Pod) int {
	ra, rb := requests(a), requests(b)
	return cmp.Or(ra.Memory().Cmp(*rb.Memory()), ra.Cpu().Cmp(*rb.Cpu()))
}

// noVictims is the end of a critical pod for which there is no room to be made.
func noVictims(lacks []shortage) *End {
	var b strings.Builder
	for _, s := range lacks {
		fmt.Fprintf(&b, "(res: %s, q: %d), ", s.name, s.by)
	}
	return reject("UnexpectedAdmissionError", "Unexpected error while attempting to recover from admission failure: "+
		"preemption: error finding a set of pods to preempt: no set of running pods found to reclaim resources: ["+b.String()+"]")
}
