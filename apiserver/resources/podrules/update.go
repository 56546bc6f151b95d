package podrules

import (
	"fmt"
	"maps"
	"math"
	"reflect"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/util/diff"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/keelson/keelson/apiserver/resources/check"
	"github.com/keelson/keelson/apiserver/same"
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
	if reflect.DeepEqual(&pod.Spec, &old.Spec) { // it was looked at when it was written
		f.Add(validateAnnotations(pod.Annotations, &pod.Spec, field.NewPath("metadata", "annotations")))
		f.Add(validateAnnotationChanges(pod, old))
		return f.List()
	}
	f.Add(ValidatePod(pod))
	f.Add(validateAnnotationChanges(pod, old))
	p := field.NewPath("spec")
	images := func(at *field.Path, now, was []corev1.Container) bool {
		if len(now) != len(was) {
			f.Forbidden(at, "pod updates may not add or remove containers")
			return false
		}
		rules := &specRules{}
		for i := range now {
			rules.Need(at.Index(i).Child("image"), now[i].Image)
			rules.trimmedImage(&now[i], at.Index(i))
		}
		f.Add(rules.List())
		return true
	}
	if !images(p.Child("containers"), pod.Spec.Containers, old.Spec.Containers) ||
		!images(p.Child("initContainers"), pod.Spec.InitContainers, old.Spec.InitContainers) {
		return f.List()
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
	last := map[string]int{}
	for i, g := range pod.Spec.SchedulingGates {
		last[g.Name] = i
	}
	for i, g := range pod.Spec.SchedulingGates {
		if !gates[g.Name] && last[g.Name] == i {
			f.Forbidden(p.Child("schedulingGates").Index(i).Child("name"), fmt.Sprintf("only deletion is allowed, but found new scheduling gate '%s'", g.Name))
		}
	}

	if same.Values(&pod.Spec, &old.Spec) {
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
		f.Forbidden(p, fmt.Sprintf("pod updates may not change fields other than %s\n%v", updatable, diff.Diff(check.Shown(old.Spec), check.Shown(*rest))))
	}
	return f.List()
}

// validateAnnotationChanges: who is a mirror pod stays one, and profiles of AppArmor are set once.
func validateAnnotationChanges(pod, old *corev1.Pod) field.ErrorList {
	var f check.Faults
	p := field.NewPath("metadata", "annotations")
	fixed := func(k string) string {
		switch {
		case strings.HasPrefix(k, corev1.DeprecatedAppArmorBetaContainerAnnotationKeyPrefix):
			return "AppArmor annotations"
		case k == corev1.MirrorPodAnnotationKey:
			return "mirror pod annotation"
		}
		return ""
	}
	for _, k := range slices.Sorted(maps.Keys(old.Annotations)) {
		if now, kept := pod.Annotations[k]; (!kept || now != old.Annotations[k]) && fixed(k) != "" {
			f.Forbidden(p.Key(k), "may not remove or update "+fixed(k))
		}
	}
	for _, k := range slices.Sorted(maps.Keys(pod.Annotations)) {
		if _, had := old.Annotations[k]; !had && fixed(k) != "" {
			f.Forbidden(p.Key(k), "may not add "+fixed(k))
		}
	}
	f.Add(validateAnnotations(pod.Annotations, &pod.Spec, p))
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
	return ValidateTolerations(pod.Spec.Tolerations, p)
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
		f.Invalid(at, check.Shown(newTerms), "no additions/deletions to non-empty NodeSelectorTerms list are allowed")
	default:
		for i := range oldTerms {
			if !onlyAdds(newTerms[i].MatchExpressions, oldTerms[i].MatchExpressions) || !onlyAdds(newTerms[i].MatchFields, oldTerms[i].MatchFields) ||
				len(oldTerms[i].MatchExpressions)+len(oldTerms[i].MatchFields) == 0 && len(newTerms[i].MatchExpressions)+len(newTerms[i].MatchFields) > 0 {
				f.Invalid(at.Index(i), check.Shown(newTerms[i]), "only additions are allowed (no mutations or deletions)")
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
	f.Add(validateAnnotationChanges(pod, old))
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
			f.Forbidden(p, fmt.Sprintf("existing ephemeral containers %q may not be changed\n%v", was.Name, diff.Diff(check.Shown(was), check.Shown(*c))))
		}
	}
	return f.List()
}

// ValidateResize allows cpu and memory of the pod and of its containers to change, within the pod's QoS class.
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
		if s.State.Running != nil {
			if s.Resources == nil {
				f.Forbidden(p, "Pod running on node without support for resize")
			}
			break
		}
	}
	rest := pod.Spec.DeepCopy()
	f.Add(resizePod(&rest.Resources, old.Spec.Resources, p))
	ordered := sameContainers(&f, "containers", pod.Spec.Containers, old.Spec.Containers, p)
	ordered = sameContainers(&f, "initContainers", pod.Spec.InitContainers, old.Spec.InitContainers, p) && ordered
	if !ordered {
		return f.List()
	}
	kept := func(list, was []corev1.Container, p *field.Path) {
		for i := range list {
			f.Add(removed(list[i].Resources, was[i].Resources, "", p.Index(i).Child("resources")))
		}
	}
	kept(pod.Spec.InitContainers, old.Spec.InitContainers, p.Child("initContainers"))
	kept(pod.Spec.Containers, old.Spec.Containers, p.Child("containers"))
	for i := range rest.Containers {
		now, was := &rest.Containers[i], &old.Spec.Containers[i]
		if resetCompute(&now.Resources, &was.Resources); !equality.Semantic.DeepEqual(now, was) {
			f.Forbidden(p, "only cpu and memory resources are mutable")
		}
	}
	for i := range rest.InitContainers {
		now, was, at := &rest.InitContainers[i], &old.Spec.InitContainers[i], p.Child("initContainers").Index(i)
		changed := !equality.Semantic.DeepEqual(now, was)
		if resetCompute(&now.Resources, &was.Resources); !equality.Semantic.DeepEqual(now, was) {
			f.Forbidden(at, "only cpu and memory resources for init or sidecar containers are mutable")
		}
		for _, policy := range now.ResizePolicy {
			if changed && !IsSidecar(now) && policy.RestartPolicy == corev1.RestartContainer {
				f.Forbidden(at, "non-sidecar init containers with a resize policy of RestartContainer cannot be resized")
			}
		}
	}
	if f.Empty() && !equality.Semantic.DeepEqual(*rest, old.Spec) {
		f.Forbidden(p, "only cpu and memory resources are mutable")
	}
	return f.List()
}

// sameContainers: a resize leaves the list as it is. It reports whether it did.
func sameContainers(f *check.Faults, name string, now, was []corev1.Container, p *field.Path) bool {
	at, same := p.Child(name), true
	if len(now) != len(was) {
		f.Forbidden(at, name+" may not be added or removed on resize")
		return false
	}
	for i := range now {
		if now[i].Name != was[i].Name {
			f.Forbidden(at.Index(i).Child("name"), name+" may not be renamed or reordered on resize")
			same = false
		}
	}
	return same
}

// resizePod checks the change of what the pod gets as a whole, and puts cpu and memory back.
func resizePod(now **corev1.ResourceRequirements, was *corev1.ResourceRequirements, p *field.Path) field.ErrorList {
	var f check.Faults
	switch {
	case *now == nil && was == nil:
		return nil
	case *now == nil:
		f.Forbidden(p.Child("resources"), "pod-level resources cannot be removed")
		return f.List()
	case was == nil:
		if resetCompute(*now, &corev1.ResourceRequirements{}); equality.Semantic.DeepEqual(**now, corev1.ResourceRequirements{}) {
			*now = nil
		}
	default:
		f.Add(removed(**now, *was, "pod-level ", p.Child("resources")))
		resetCompute(*now, was)
	}
	if !equality.Semantic.DeepEqual(*now, was) {
		f.Forbidden(p, "only cpu and memory resources are mutable at pod-level")
	}
	return f.List()
}

func qosOf(pod *corev1.Pod) corev1.PodQOSClass {
	if pod.Status.QOSClass != "" {
		return pod.Status.QOSClass
	}
	return quota.QOS(pod)
}

// removed: a resize changes amounts, it takes none away. whose goes before the word in messages.
func removed(now, was corev1.ResourceRequirements, whose string, p *field.Path) field.ErrorList {
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
		f.Forbidden(p.Child("requests"), whose+"resource requests cannot be removed")
	}
	if gone(now.Limits, was.Limits) {
		f.Forbidden(p.Child("limits"), whose+"resource limits cannot be removed")
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
