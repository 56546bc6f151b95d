package podrules

import (
	"fmt"
	"math"
	"reflect"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/util/diff"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/keelson/keelson/apiserver/resources/check"
	"github.com/keelson/keelson/libs/quota"
)

// updatable is how the refusal of a change names what may change.
const updatable = "`spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`," +
	"`spec.tolerations` (only additions to existing tolerations)," +
	"`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)"

// ValidateUpdate allows, beyond metadata: images, a shorter active deadline, more
// tolerations, fewer scheduling gates, and while gates hold the pod back a
// narrower choice of nodes.
func ValidateUpdate(pod, old *corev1.Pod) field.ErrorList {
	var f check.Faults
	f.Add(ValidatePod(pod))
	f.Add(validateAnnotationChanges(pod, old))
	p := field.NewPath("spec")
	for name, lists := range map[string][2][]corev1.Container{
		"containers":     {pod.Spec.Containers, old.Spec.Containers},
		"initContainers": {pod.Spec.InitContainers, old.Spec.InitContainers},
	} {
		if len(lists[0]) != len(lists[1]) {
			f.Forbidden(p.Child(name), "pod updates may not add or remove containers")
			return f.List()
		}
	}
	at := p.Child("activeDeadlineSeconds")
	switch now, was := pod.Spec.ActiveDeadlineSeconds, old.Spec.ActiveDeadlineSeconds; {
	case now != nil && (*now < 0 || *now > math.MaxInt32):
		f.Invalid(at, *now, validation.InclusiveRangeError(0, math.MaxInt32))
		return f.List()
	case now != nil && was != nil && *now > *was:
		f.Invalid(at, *now, "must be less than or equal to previous value")
		return f.List()
	case now == nil && was != nil:
		f.Invalid(at, now, "must not update from a positive integer to nil value")
	}
	f.Add(validateTolerationChanges(pod, old, p.Child("tolerations")))
	gates := map[string]bool{}
	for _, g := range old.Spec.SchedulingGates {
		gates[g.Name] = true
	}
	for i, g := range pod.Spec.SchedulingGates {
		if !gates[g.Name] {
			f.Forbidden(p.Child("schedulingGates").Index(i).Child("name"), fmt.Sprintf("only deletion is allowed, but found new scheduling gate '%s'", g.Name))
		}
	}
	if equality.Semantic.DeepEqual(pod.Spec, old.Spec) {
		return f.List()
	}

	// What may differ is made equal; whatever still differs then may not.
	rest := pod.Spec.DeepCopy()
	for i := range rest.Containers {
		rest.Containers[i].Image = old.Spec.Containers[i].Image
	}
	for i := range rest.InitContainers {
		rest.InitContainers[i].Image = old.Spec.InitContainers[i].Image
	}
	rest.ActiveDeadlineSeconds = old.Spec.ActiveDeadlineSeconds
	rest.SchedulingGates = old.Spec.SchedulingGates
	rest.Tolerations = old.Spec.Tolerations
	if g, was := rest.TerminationGracePeriodSeconds, old.Spec.TerminationGracePeriodSeconds; g != nil && was != nil && *was < 0 && *g == 1 {
		rest.TerminationGracePeriodSeconds = was
	}
	if len(old.Spec.SchedulingGates) > 0 {
		f.Add(validateGatedChanges(rest, &old.Spec, p))
	}
	if !equality.Semantic.DeepEqual(*rest, old.Spec) {
		f.Forbidden(p, fmt.Sprintf("pod updates may not change fields other than %s\n%v", updatable, diff.Diff(old.Spec, *rest)))
	}
	return f.List()
}

func validateAnnotationChanges(pod, old *corev1.Pod) field.ErrorList {
	var f check.Faults
	p := field.NewPath("metadata", "annotations").Key(corev1.MirrorPodAnnotationKey)
	now, is := pod.Annotations[corev1.MirrorPodAnnotationKey]
	was, had := old.Annotations[corev1.MirrorPodAnnotationKey]
	switch {
	case had && (!is || now != was):
		f.Forbidden(p, "may not remove or update mirror pod annotation")
	case is && !had:
		f.Forbidden(p, "may not add mirror pod annotation")
	}
	return f.List()
}

// validateTolerationChanges: what was tolerated stays so; only its duration may change.
func validateTolerationChanges(pod, old *corev1.Pod, p *field.Path) field.ErrorList {
	for _, was := range old.Spec.Tolerations {
		kept := false
		for _, now := range pod.Spec.Tolerations {
			was.TolerationSeconds = now.TolerationSeconds
			kept = kept || reflect.DeepEqual(was, now)
		}
		if !kept {
			return field.ErrorList{field.Forbidden(p, "existing toleration can not be modified except its tolerationSeconds")}
		}
	}
	return nil
}

// validateGatedChanges lets the node selector and the required node affinity of a
// gated pod become narrower, and resets both in rest.
func validateGatedChanges(rest, old *corev1.PodSpec, p *field.Path) field.ErrorList {
	var f check.Faults
	for k, v := range old.NodeSelector {
		if now, ok := rest.NodeSelector[k]; !ok || now != v {
			f.Invalid(p.Child("nodeSelector"), rest.NodeSelector, "only additions to spec.nodeSelector are allowed (no mutations or deletions)")
			break
		}
	}
	rest.NodeSelector = old.NodeSelector

	var was, now *corev1.NodeAffinity
	if old.Affinity != nil {
		was = old.Affinity.NodeAffinity
	}
	if rest.Affinity != nil {
		now = rest.Affinity.NodeAffinity
	}
	if equality.Semantic.DeepEqual(was, now) {
		return f.List()
	}
	at := p.Child("affinity", "nodeAffinity", "requiredDuringSchedulingIgnoredDuringExecution", "nodeSelectorTerms")
	terms := func(a *corev1.NodeAffinity) []corev1.NodeSelectorTerm {
		if a == nil || a.RequiredDuringSchedulingIgnoredDuringExecution == nil {
			return nil
		}
		return a.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms
	}
	oldTerms, newTerms := terms(was), terms(now)
	switch {
	case len(oldTerms) == 0:
	case len(oldTerms) != len(newTerms):
		f.Invalid(at, newTerms, "no additions/deletions to non-empty NodeSelectorTerms list are allowed")
	default:
		for i := range oldTerms {
			if !onlyAdds(newTerms[i].MatchExpressions, oldTerms[i].MatchExpressions) || !onlyAdds(newTerms[i].MatchFields, oldTerms[i].MatchFields) ||
				len(oldTerms[i].MatchExpressions)+len(oldTerms[i].MatchFields) == 0 && len(newTerms[i].MatchExpressions)+len(newTerms[i].MatchFields) > 0 {
				f.Invalid(at.Index(i), newTerms[i], "only additions are allowed (no mutations or deletions)")
			}
		}
	}
	switch {
	case rest.Affinity == nil:
		rest.Affinity = &corev1.Affinity{NodeAffinity: was}
	case old.Affinity == nil && rest.Affinity.PodAffinity == nil && rest.Affinity.PodAntiAffinity == nil:
		rest.Affinity = nil
	default:
		rest.Affinity.NodeAffinity = was
	}
	return f.List()
}

func onlyAdds(now, was []corev1.NodeSelectorRequirement) bool {
	return len(now) >= len(was) && equality.Semantic.DeepEqual(now[:len(was)], was)
}

// ValidateEphemeral allows ephemeral containers to be added, never changed or removed.
func ValidateEphemeral(pod, old *corev1.Pod) field.ErrorList {
	var f check.Faults
	f.Add(ValidatePod(pod))
	if _, mirror := old.Annotations[corev1.MirrorPodAnnotationKey]; mirror {
		return field.ErrorList{field.Forbidden(field.NewPath(""), "static pods do not support ephemeral containers")}
	}
	p := field.NewPath("spec", "ephemeralContainers")
	now := map[string]*corev1.EphemeralContainer{}
	for i := range pod.Spec.EphemeralContainers {
		now[pod.Spec.EphemeralContainers[i].Name] = &pod.Spec.EphemeralContainers[i]
	}
	for _, was := range old.Spec.EphemeralContainers {
		switch c := now[was.Name]; {
		case c == nil:
			f.Forbidden(p, fmt.Sprintf("existing ephemeral containers %q may not be removed\n", was.Name))
		case !equality.Semantic.DeepEqual(*c, was):
			f.Forbidden(p, fmt.Sprintf("existing ephemeral containers %q may not be changed\n%v", was.Name, diff.Diff(was, *c)))
		}
	}
	return f.List()
}

// ValidateResize allows cpu and memory of containers and sidecars to change, within the pod's QoS class.
func ValidateResize(pod, old *corev1.Pod) field.ErrorList {
	if _, mirror := old.Annotations[corev1.MirrorPodAnnotationKey]; mirror {
		return field.ErrorList{field.Forbidden(field.NewPath(""), "static pods cannot be resized")}
	}
	if old.Spec.OS != nil && old.Spec.OS.Name == corev1.Windows {
		return field.ErrorList{field.Forbidden(field.NewPath(""), "windows pods cannot be resized")}
	}
	var f check.Faults
	f.Add(ValidatePod(pod))
	p := field.NewPath("spec")
	if quota.QOS(pod) != qosOf(old) {
		f.Invalid(p, pod.Status.QOSClass, "Pod QOS Class may not change as a result of resizing")
	}
	for _, s := range old.Status.ContainerStatuses {
		if s.State.Running != nil && s.Resources == nil {
			f.Forbidden(p, "Pod running on node without support for resize")
			break
		}
	}
	rest := pod.Spec.DeepCopy()
	level := func(name string, now, was []corev1.Container, resizable func(*corev1.Container) bool) bool {
		at := p.Child(name)
		if len(now) != len(was) {
			f.Forbidden(at, name+" may not be added or removed on resize")
			return false
		}
		for i := range now {
			if now[i].Name != was[i].Name {
				f.Forbidden(at.Index(i).Child("name"), name+" may not be renamed or reordered on resize")
				return false
			}
			if !resizable(&now[i]) {
				if !equality.Semantic.DeepEqual(now[i], was[i]) {
					f.Forbidden(p, "resources for non-sidecar init containers are immutable")
				}
				continue
			}
			f.Add(removed(now[i].Resources, was[i].Resources, at.Index(i).Child("resources")))
			resetCompute(&now[i].Resources, &was[i].Resources)
			if !equality.Semantic.DeepEqual(now[i], was[i]) {
				f.Forbidden(p, "only cpu and memory resources are mutable")
				now[i] = was[i]
			}
		}
		return true
	}
	if !level("containers", rest.Containers, old.Spec.Containers, func(*corev1.Container) bool { return true }) ||
		!level("initContainers", rest.InitContainers, old.Spec.InitContainers, IsSidecar) {
		return f.List()
	}
	if now, was := rest.Resources, old.Spec.Resources; now != nil && was != nil {
		f.Add(removed(*now, *was, p.Child("resources")))
		resetCompute(now, was)
	} else if was != nil {
		f.Forbidden(p.Child("resources"), "pod-level resources cannot be removed")
	}
	if f.Empty() && !equality.Semantic.DeepEqual(*rest, old.Spec) {
		f.Forbidden(p, "only cpu and memory resources are mutable")
	}
	return f.List()
}

func qosOf(pod *corev1.Pod) corev1.PodQOSClass {
	if pod.Status.QOSClass != "" {
		return pod.Status.QOSClass
	}
	return quota.QOS(pod)
}

func removed(now, was corev1.ResourceRequirements, p *field.Path) field.ErrorList {
	var f check.Faults
	gone := func(now, was corev1.ResourceList) bool {
		for name := range was {
			if _, ok := now[name]; !ok {
				return true
			}
		}
		return false
	}
	if gone(now.Requests, was.Requests) {
		f.Forbidden(p.Child("requests"), "resource requests cannot be removed")
	}
	if gone(now.Limits, was.Limits) {
		f.Forbidden(p.Child("limits"), "resource limits cannot be removed")
	}
	return f.List()
}

// resetCompute gives cpu and memory the values that they had.
func resetCompute(now, was *corev1.ResourceRequirements) {
	one := func(now *corev1.ResourceList, was corev1.ResourceList) {
		for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
			if q, ok := was[name]; ok {
				(*now)[name] = q
			} else {
				delete(*now, name)
			}
		}
		if len(*now) == 0 && was == nil {
			*now = nil
		}
	}
	for _, lists := range []struct {
		now *corev1.ResourceList
		was corev1.ResourceList
	}{{&now.Requests, was.Requests}, {&now.Limits, was.Limits}} {
		if *lists.now == nil {
			*lists.now = corev1.ResourceList{}
		}
		one(lists.now, lists.was)
	}
}

// ValidateStatus refuses reports that cannot be true: another node, a terminated container that runs again.
func ValidateStatus(pod, old *corev1.Pod) field.ErrorList {
	var f check.Faults
	f.Add(validateAnnotationChanges(pod, old))
	p, s := field.NewPath("status"), &pod.Status
	for i, c := range s.Conditions {
		at := p.Child("conditions").Index(i)
		if c.ObservedGeneration < 0 {
			f.Invalid(at.Child("observedGeneration"), c.ObservedGeneration, "must be a non-negative integer")
		}
		if !systemConditions[c.Type] {
			f.QualifiedName(at.Child("Type"), string(c.Type))
		}
	}
	if pod.Spec.NodeName != old.Spec.NodeName {
		f.Forbidden(p.Child("nodeName"), "may not be changed directly")
	}
	if n := s.NominatedNodeName; n != "" && n != old.Status.NominatedNodeName {
		f.Subdomain(p.Child("nominatedNodeName"), n)
		if old.Spec.NodeName != "" {
			f.Forbidden(p.Child("nominatedNodeName"), "may not be set on pods that are already bound to a node")
		}
	}
	if s.ObservedGeneration < 0 {
		f.Invalid(p.Child("observedGeneration"), s.ObservedGeneration, "must be a non-negative integer")
	}
	f.Same(p.Child("qosClass"), s.QOSClass, old.Status.QOSClass)
	f.Add(validateTransitions(s.ContainerStatuses, old.Status.ContainerStatuses, old.Spec.Containers, &old.Spec, p.Child("containerStatuses")))
	f.Add(validateTransitions(s.InitContainerStatuses, old.Status.InitContainerStatuses, old.Spec.InitContainers, &old.Spec, p.Child("initContainerStatuses")))
	f.Add(validateTransitions(s.EphemeralContainerStatuses, old.Status.EphemeralContainerStatuses, nil, &corev1.PodSpec{RestartPolicy: corev1.RestartPolicyNever}, p.Child("ephemeralContainerStatuses")))
	ips := func(list []string, was []string, single, name string) {
		at := p.Child(name)
		families := map[bool]int{}
		for i, ip := range list {
			f.IP(at.Index(i), ip, was...)
			families[strings.Contains(ip, ":")]++
		}
		if len(list) > 1 && (families[true] > 1 || families[false] > 1) {
			f.Invalid(at, list, "may specify no more than one IP for each IP family")
		}
		if len(list) > 0 && single != "" && list[0] != single {
			f.Invalid(at.Index(0).Child("ip"), list[0], "must be equal to `"+strings.TrimSuffix(name, "s")+"`")
		}
	}
	var podIPs, oldPodIPs, hostIPs, oldHostIPs []string
	for _, ip := range s.PodIPs {
		podIPs = append(podIPs, ip.IP)
	}
	for _, ip := range old.Status.PodIPs {
		oldPodIPs = append(oldPodIPs, ip.IP)
	}
	for _, ip := range s.HostIPs {
		hostIPs = append(hostIPs, ip.IP)
	}
	for _, ip := range old.Status.HostIPs {
		oldHostIPs = append(oldHostIPs, ip.IP)
	}
	ips(podIPs, oldPodIPs, "", "podIPs")
	ips(hostIPs, oldHostIPs, s.HostIP, "hostIPs")
	return f.List()
}

var systemConditions = map[corev1.PodConditionType]bool{
	corev1.PodScheduled: true, corev1.PodReady: true, corev1.PodInitialized: true, corev1.ContainersReady: true,
}

// validateTransitions: a container that ended for good does not run again.
func validateTransitions(now, was []corev1.ContainerStatus, specs []corev1.Container, s *corev1.PodSpec, p *field.Path) field.ErrorList {
	var f check.Faults
	for i, o := range was {
		if o.State.Terminated == nil || mayRestart(o.Name, specs, s, o.State.Terminated.ExitCode) {
			continue
		}
		for _, n := range now {
			if n.Name == o.Name && n.State.Terminated == nil {
				f.Forbidden(p.Index(i).Child("state"), "may not be transitioned to non-terminated state")
			}
		}
	}
	return f.List()
}

func mayRestart(name string, specs []corev1.Container, s *corev1.PodSpec, exit int32) bool {
	policy := s.RestartPolicy
	for i := range specs {
		c := &specs[i]
		for _, rule := range c.RestartPolicyRules {
			if rule.Action == corev1.ContainerRestartRuleActionRestartAllContainers {
				return true
			}
		}
		if c.Name != name {
			continue
		}
		if c.RestartPolicy != nil {
			policy = corev1.RestartPolicy(*c.RestartPolicy)
		}
		for _, rule := range c.RestartPolicyRules {
			if rule.ExitCodes == nil {
				continue
			}
			listed := false
			for _, v := range rule.ExitCodes.Values {
				listed = listed || v == exit
			}
			if listed == (rule.ExitCodes.Operator == corev1.ContainerRestartRuleOnExitCodesOpIn) {
				return true
			}
		}
	}
	return policy == corev1.RestartPolicyAlways || policy == corev1.RestartPolicyOnFailure && exit != 0
}
