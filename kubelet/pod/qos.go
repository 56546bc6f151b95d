package pod

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// QOS is the pod's quality of service class.
//
// Source: Kubernetes concepts, "Pod Quality of Service Classes": Guaranteed when every
// container (or the pod itself) has limits for cpu and memory equal to its requests,
// BestEffort when none has either, Burstable otherwise.
func QOS(p *corev1.Pod) corev1.PodQOSClass {
	if r := p.Spec.Resources; r != nil && (len(r.Requests) > 0 || len(r.Limits) > 0) {
		return class([]corev1.ResourceRequirements{*r})
	}
	var all []corev1.ResourceRequirements
	for i := range p.Spec.InitContainers {
		all = append(all, p.Spec.InitContainers[i].Resources)
	}
	for i := range p.Spec.Containers {
		all = append(all, p.Spec.Containers[i].Resources)
	}
	return class(all)
}

func class(all []corev1.ResourceRequirements) corev1.PodQOSClass {
	any, guaranteed := false, true
	for _, r := range all {
		for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
			limit, limited := r.Limits[name]
			limited = limited && !limit.IsZero()
			request, requested := r.Requests[name]
			requested = requested && !request.IsZero()
			any = any || limited || requested
			if !limited || (requested && request.Cmp(limit) != 0) {
				guaranteed = false
			}
		}
	}
	switch {
	case !any:
		return corev1.PodQOSBestEffort
	case guaranteed:
		return corev1.PodQOSGuaranteed
	default:
		return corev1.PodQOSBurstable
	}
}

// criticalPriority is the lowest priority of a node-critical pod.
const criticalPriority = 2000000000

// IsCritical reports whether the pod must run on the node whatever else does.
func IsCritical(p *corev1.Pod) bool {
	if IsStatic(p) {
		return true
	}
	if _, mirror := p.Annotations[corev1.MirrorPodAnnotationKey]; mirror {
		return true
	}
	return p.Spec.Priority != nil && *p.Spec.Priority >= criticalPriority
}

// OOMScore is oom_score_adj for a container of the pod. memoryBytes is the node's capacity.
//
// Source: Kubernetes concepts, "Node out of memory behavior": -997 Guaranteed, 1000
// BestEffort, min(max(2, 1000 - 1000 × request / capacity), 999) Burstable; a sidecar is
// at least as safe as the container with the smallest request.
func OOMScore(p *corev1.Pod, c *corev1.Container, memoryBytes int64) int64 {
	const guaranteed, bestEffort = -997, 1000
	if p.Spec.PriorityClassName == "system-node-critical" || (p.Spec.Priority != nil && *p.Spec.Priority >= criticalPriority+1000) {
		return guaranteed
	}
	switch QOS(p) {
	case corev1.PodQOSGuaranteed:
		return guaranteed
	case corev1.PodQOSBestEffort:
		return bestEffort
	}
	if memoryBytes <= 0 {
		return bestEffort - 1
	}
	extra := int64(0)
	if r := p.Spec.Resources; r != nil && r.Requests != nil {
		sum := resource.Quantity{}
		for i := range p.Spec.Containers {
			sum.Add(p.Spec.Containers[i].Resources.Requests[corev1.ResourceMemory])
		}
		extra = max(0, r.Requests.Memory().Value()-sum.Value()) / int64(len(p.Spec.Containers))
	}
	score := bestEffort - bestEffort*(c.Resources.Requests.Memory().Value()+extra)/memoryBytes
	if _, kind := Find(p, c.Name); kind == Sidecar {
		smallest := int64(-1)
		for i := range p.Spec.Containers {
			if m := p.Spec.Containers[i].Resources.Requests.Memory().Value(); smallest < 0 || m < smallest {
				smallest = m
			}
		}
		score = min(score, bestEffort-bestEffort*(smallest+extra)/memoryBytes)
	}
	return min(max(score, bestEffort+guaranteed), bestEffort-1)
}
