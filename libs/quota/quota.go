// Package quota knows what an object uses of a ResourceQuota and whether a quota
// counts it: the arithmetic that the API server's admission and the controller
// that reports usage must do alike.
//
// Its main calls are Usage, Matches and Exceeded. They read nothing but their
// arguments, one of which is the Cluster around a resource claim.
//
// Source: Kubernetes docs, "Resource Quotas".
package quota

import (
	"fmt"
	"slices"
	"sort"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	resourcev1 "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/runtime/schema"
	resourcehelper "k8s.io/component-helpers/resource"
)

// QOS is the pod's quality-of-service class, from the requests and limits of all
// its containers, or of the pod itself where those are set.
func QOS(pod *corev1.Pod) corev1.PodQOSClass {
	requests, limits := corev1.ResourceList{}, corev1.ResourceList{}
	add := func(into, from corev1.ResourceList) (found int) {
		for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
			if q, ok := from[name]; ok && !q.IsZero() {
				found++
				sum := into[name]
				sum.Add(q)
				into[name] = sum
			}
		}
		return found
	}
	guaranteed := true
	if r := pod.Spec.Resources; r != nil { // of the pod as a whole, even if it asks for nothing
		add(requests, r.Requests)
		guaranteed = add(limits, r.Limits) == 2
	} else {
		for _, list := range [][]corev1.Container{pod.Spec.Containers, pod.Spec.InitContainers} {
			for i := range list {
				add(requests, list[i].Resources.Requests)
				guaranteed = add(limits, list[i].Resources.Limits) == 2 && guaranteed
			}
		}
	}
	if len(requests) == 0 && len(limits) == 0 {
		return corev1.PodQOSBestEffort
	}
	if guaranteed && len(requests) == len(limits) {
		for name, q := range requests {
			if l, ok := limits[name]; !ok || l.Cmp(q) != 0 {
				return corev1.PodQOSBurstable
			}
		}
		return corev1.PodQOSGuaranteed
	}
	return corev1.PodQOSBurstable
}

func one() resource.Quantity { return *resource.NewQuantity(1, resource.DecimalSI) }

// Count is the quota name that counts objects of a resource: "count/deployments.apps".
func Count(gr schema.GroupResource) corev1.ResourceName {
	return corev1.ResourceName("count/" + gr.String())
}

// Usage is what one object counts for, by the names that quotas use. Resources
// that have only a count return that.
func Usage(c Cluster, gr schema.GroupResource, obj any) corev1.ResourceList {
	switch o := obj.(type) {
	case *corev1.Pod:
		return podUsage(o, c.Now())
	case *corev1.Service:
		return serviceUsage(o)
	case *corev1.PersistentVolumeClaim:
		return claimUsage(o)
	case *resourcev1.ResourceClaim:
		return deviceUsage(c, o)
	}
	use := corev1.ResourceList{Count(gr): one()}
	if gr.Group == "" {
		switch gr.Resource {
		case "replicationcontrollers", "resourcequotas", "secrets", "configmaps":
			use[corev1.ResourceName(gr.Resource)] = one()
		}
	}
	return use
}

// Finished reports a pod that has ended.
func Finished(p *corev1.Pod) bool {
	return p.Status.Phase == corev1.PodFailed || p.Status.Phase == corev1.PodSucceeded
}

// overdue reports a pod that should have been gone for as long as it was given to go: its node may have been lost.
func overdue(p *corev1.Pod, now time.Time) bool {
	grace := p.DeletionGracePeriodSeconds
	return p.DeletionTimestamp != nil && grace != nil && now.After(p.DeletionTimestamp.Add(time.Duration(*grace)*time.Second))
}

func podUsage(p *corev1.Pod, now time.Time) corev1.ResourceList {
	use := corev1.ResourceList{"count/pods": one()}
	if Finished(p) || overdue(p, now) {
		return use
	}
	use[corev1.ResourcePods] = one()
	options := resourcehelper.PodResourcesOptions{UseStatusResources: true}
	for name, q := range resourcehelper.PodRequests(p, options) {
		switch {
		case name == corev1.ResourceCPU || name == corev1.ResourceMemory || name == corev1.ResourceEphemeralStorage:
			use[name] = q
			use[requests+name] = q
		case strings.HasPrefix(string(name), corev1.ResourceHugePagesPrefix):
			use[name] = q
			use[requests+name] = q
		case isExtended(name):
			use[requests+name] = q
		}
	}
	for name, q := range resourcehelper.PodLimits(p, options) {
		if name == corev1.ResourceCPU || name == corev1.ResourceMemory || name == corev1.ResourceEphemeralStorage {
			use["limits."+name] = q
		}
	}
	return use
}

// requests stands before what pods ask for, in the names that quotas use.
const requests = "requests."

func isExtended(n corev1.ResourceName) bool {
	return strings.HasPrefix(string(n), resourcev1.ResourceDeviceClassPrefix) || // every device class is one, KEP-5004
		strings.Contains(string(n), "/") && !strings.Contains(string(n), "kubernetes.io/")
}

func serviceUsage(s *corev1.Service) corev1.ResourceList {
	use := corev1.ResourceList{"count/services": one(), corev1.ResourceServices: one()}
	nodePorts := int64(len(s.Spec.Ports))
	switch s.Spec.Type {
	case corev1.ServiceTypeNodePort:
	case corev1.ServiceTypeLoadBalancer:
		use[corev1.ResourceServicesLoadBalancers] = one()
		if a := s.Spec.AllocateLoadBalancerNodePorts; a != nil && !*a {
			nodePorts = 0
			for _, p := range s.Spec.Ports {
				if p.NodePort != 0 {
					nodePorts++
				}
			}
		}
	default:
		nodePorts = 0
	}
	use[corev1.ResourceServicesNodePorts] = *resource.NewQuantity(nodePorts, resource.DecimalSI)
	return use
}

// classSuffix joins a storage class to what it limits: "gold.storageclass.storage.k8s.io/requests.storage".
const classSuffix = ".storageclass.storage.k8s.io/"

func claimUsage(c *corev1.PersistentVolumeClaim) corev1.ResourceList {
	use := corev1.ResourceList{"count/persistentvolumeclaims": one(), corev1.ResourcePersistentVolumeClaims: one()}
	class := c.Annotations[corev1.BetaStorageClassAnnotation]
	if class == "" && c.Spec.StorageClassName != nil {
		class = *c.Spec.StorageClassName
	}
	if class != "" {
		use[corev1.ResourceName(class+classSuffix+"persistentvolumeclaims")] = one()
	}
	if q, ok := c.Spec.Resources.Requests[corev1.ResourceStorage]; ok {
		if a, ok := c.Status.AllocatedResources[corev1.ResourceStorage]; ok && a.Cmp(q) > 0 {
			q = a
		}
		use[corev1.ResourceRequestsStorage] = q.DeepCopy()
		if class != "" {
			use[corev1.ResourceName(class+classSuffix+"requests.storage")] = q.DeepCopy()
		}
	}
	return use
}

// Counts reports whether a name that a quota limits may be used by the resource at all.
func Counts(gr schema.GroupResource, name corev1.ResourceName) bool {
	s := string(name)
	if name == Count(gr) {
		return true
	}
	rest, asked := strings.CutPrefix(s, requests)
	extended := asked && isExtended(corev1.ResourceName(rest))
	if gr.Group != "" {
		return gr.Group == resourcev1.GroupName && gr.Resource == "resourceclaims" && (extended || strings.HasSuffix(s, deviceSuffix))
	}
	switch gr.Resource {
	case "pods":
		switch name {
		case corev1.ResourcePods, corev1.ResourceCPU, corev1.ResourceMemory, corev1.ResourceEphemeralStorage,
			corev1.ResourceRequestsCPU, corev1.ResourceRequestsMemory, corev1.ResourceRequestsEphemeralStorage,
			corev1.ResourceLimitsCPU, corev1.ResourceLimitsMemory, corev1.ResourceLimitsEphemeralStorage:
			return true
		}
		return extended || strings.HasPrefix(rest, corev1.ResourceHugePagesPrefix)
	case "services":
		return name == corev1.ResourceServices || name == corev1.ResourceServicesNodePorts || name == corev1.ResourceServicesLoadBalancers
	case "persistentvolumeclaims":
		return name == corev1.ResourcePersistentVolumeClaims || name == corev1.ResourceRequestsStorage || strings.Contains(s, classSuffix)
	case "replicationcontrollers", "resourcequotas", "secrets", "configmaps":
		return s == gr.Resource
	}
	return false
}

// Selectors are the scopes of a quota, from both fields that name them.
func Selectors(q *corev1.ResourceQuota) []corev1.ScopedResourceSelectorRequirement {
	var out []corev1.ScopedResourceSelectorRequirement
	for _, s := range q.Spec.Scopes {
		out = append(out, corev1.ScopedResourceSelectorRequirement{ScopeName: s, Operator: corev1.ScopeSelectorOpExists})
	}
	if q.Spec.ScopeSelector != nil {
		out = append(out, q.Spec.ScopeSelector.MatchExpressions...)
	}
	return out
}

// Matches reports whether the quota counts the object: all its scopes must fit.
// Scopes are about pods, and volume attributes classes of claims; a quota with
// scopes counts nothing else.
func Matches(q *corev1.ResourceQuota, obj any) bool {
	for _, s := range Selectors(q) {
		if !InScope(s, obj) {
			return false
		}
	}
	return true
}

// InScope reports whether one scope includes the object.
func InScope(s corev1.ScopedResourceSelectorRequirement, obj any) bool {
	if c, ok := obj.(*corev1.PersistentVolumeClaim); ok && s.ScopeName == corev1.ResourceQuotaScopeVolumeAttributesClass {
		classes := []*string{c.Spec.VolumeAttributesClassName, c.Status.CurrentVolumeAttributesClassName}
		if m := c.Status.ModifyVolumeStatus; m != nil {
			classes = append(classes, &m.TargetVolumeAttributesClassName)
		}
		var names []string
		for _, n := range classes {
			if n != nil && *n != "" {
				names = append(names, *n)
			}
		}
		return selects(s, names)
	}
	p, ok := obj.(*corev1.Pod)
	if !ok {
		return false
	}
	switch s.ScopeName {
	case corev1.ResourceQuotaScopeTerminating:
		return p.Spec.ActiveDeadlineSeconds != nil && *p.Spec.ActiveDeadlineSeconds >= 0
	case corev1.ResourceQuotaScopeNotTerminating:
		return p.Spec.ActiveDeadlineSeconds == nil || *p.Spec.ActiveDeadlineSeconds < 0
	case corev1.ResourceQuotaScopeBestEffort:
		return QOS(p) == corev1.PodQOSBestEffort
	case corev1.ResourceQuotaScopeNotBestEffort:
		return QOS(p) != corev1.PodQOSBestEffort
	case corev1.ResourceQuotaScopePriorityClass:
		if p.Spec.PriorityClassName == "" {
			return selects(s, nil)
		}
		return selects(s, []string{p.Spec.PriorityClassName})
	case corev1.ResourceQuotaScopeCrossNamespacePodAffinity:
		return crossesNamespaces(p)
	}
	return false
}

func selects(s corev1.ScopedResourceSelectorRequirement, values []string) bool {
	hit := slices.ContainsFunc(values, func(v string) bool { return slices.Contains(s.Values, v) })
	switch s.Operator {
	case corev1.ScopeSelectorOpExists:
		return len(values) > 0
	case corev1.ScopeSelectorOpDoesNotExist:
		return len(values) == 0
	case corev1.ScopeSelectorOpIn:
		return hit
	case corev1.ScopeSelectorOpNotIn:
		return !hit
	}
	return false
}

func crossesNamespaces(p *corev1.Pod) bool {
	a := p.Spec.Affinity
	if a == nil {
		return false
	}
	var terms []corev1.PodAffinityTerm
	weighted := func(list []corev1.WeightedPodAffinityTerm) {
		for _, t := range list {
			terms = append(terms, t.PodAffinityTerm)
		}
	}
	if x := a.PodAffinity; x != nil {
		terms = append(terms, x.RequiredDuringSchedulingIgnoredDuringExecution...)
		weighted(x.PreferredDuringSchedulingIgnoredDuringExecution)
	}
	if x := a.PodAntiAffinity; x != nil {
		terms = append(terms, x.RequiredDuringSchedulingIgnoredDuringExecution...)
		weighted(x.PreferredDuringSchedulingIgnoredDuringExecution)
	}
	for _, t := range terms {
		if len(t.Namespaces) > 0 || t.NamespaceSelector != nil {
			return true
		}
	}
	return false
}

// Limited keeps what hard has a limit for.
func Limited(hard, use corev1.ResourceList) corev1.ResourceList {
	out := corev1.ResourceList{}
	for name, q := range use {
		if _, ok := hard[name]; ok {
			out[name] = q
		}
	}
	return out
}

// Add returns a + b.
func Add(a, b corev1.ResourceList) corev1.ResourceList {
	out := a.DeepCopy()
	if out == nil {
		out = corev1.ResourceList{}
	}
	for name, q := range b {
		sum := out[name].DeepCopy()
		sum.Add(q)
		out[name] = sum
	}
	return out
}

// Sub returns a - b, which may be negative.
func Sub(a, b corev1.ResourceList) corev1.ResourceList {
	out := a.DeepCopy()
	if out == nil {
		out = corev1.ResourceList{}
	}
	for name, q := range b {
		sum := out[name].DeepCopy()
		sum.Sub(q)
		out[name] = sum
	}
	return out
}

// Equal compares two lists by value.
func Equal(a, b corev1.ResourceList) bool {
	if len(a) != len(b) {
		return false
	}
	for name, q := range a {
		if o, ok := b[name]; !ok || o.Cmp(q) != 0 {
			return false
		}
	}
	return true
}

// Exceeded says how a growth of usage breaks a limit, in the words that clients
// see ("exceeded quota: q, requested: pods=1, used: pods=5, limited: pods=5"),
// or "" when it does not. Only what grows can break a limit.
func Exceeded(name string, hard, used, grow corev1.ResourceList) string {
	var broken []corev1.ResourceName
	for n, g := range Limited(hard, grow) {
		sum := used[n].DeepCopy()
		sum.Add(g)
		if g.Sign() > 0 && sum.Cmp(hard[n]) > 0 {
			broken = append(broken, n)
		}
	}
	if len(broken) == 0 {
		return ""
	}
	sort.Slice(broken, func(i, j int) bool { return broken[i] < broken[j] })
	text := func(l corev1.ResourceList) string {
		var parts []string
		for _, n := range broken {
			q := l[n]
			parts = append(parts, fmt.Sprintf("%s=%s", n, q.String()))
		}
		return strings.Join(parts, ",")
	}
	return fmt.Sprintf("exceeded quota: %s, requested: %s, used: %s, limited: %s", name, text(grow), text(used), text(hard))
}

// Unspecified lists what the quota limits and every container of the pod must
// therefore ask for but does not: "must specify limits.cpu for: web".
func Unspecified(q *corev1.ResourceQuota, pod *corev1.Pod) []string {
	var out []string
	for _, name := range slices.Sorted(mapKeys(q.Status.Hard)) {
		kind, limit := strings.CutPrefix(string(name), "limits.")
		kind = strings.TrimPrefix(kind, "requests.")
		if kind != "cpu" && kind != "memory" {
			continue
		}
		if r := pod.Spec.Resources; r != nil {
			if _, ok := pick(*r, limit)[corev1.ResourceName(kind)]; ok {
				continue
			}
		}
		var missing []string
		for _, list := range [][]corev1.Container{pod.Spec.Containers, pod.Spec.InitContainers} {
			for _, c := range list {
				if _, ok := pick(c.Resources, limit)[corev1.ResourceName(kind)]; !ok {
					missing = append(missing, c.Name)
				}
			}
		}
		if len(missing) > 0 {
			sort.Strings(missing)
			out = append(out, fmt.Sprintf("%s for: %s", name, strings.Join(missing, ",")))
		}
	}
	return out
}

func pick(r corev1.ResourceRequirements, limit bool) corev1.ResourceList {
	if limit {
		return r.Limits
	}
	return r.Requests
}

func mapKeys(l corev1.ResourceList) func(yield func(corev1.ResourceName) bool) {
	return func(yield func(corev1.ResourceName) bool) {
		for k := range l {
			if !yield(k) {
				return
			}
		}
	}
}
