// Package podrules knows what a pod spec may say: the defaults and the rules of
// Pods and of the pod templates inside every workload, and what an update of a
// Pod may change.
//
// Its main calls are DefaultPod and DefaultTemplate, ValidatePod and
// ValidateTemplate, and ValidateUpdate, ValidateStatus, ValidateResize and
// ValidateEphemeral for changes. All are pure. They do not check metadata beyond
// the annotations that change a pod's meaning, and they ask nobody whether what a
// pod refers to exists.
package podrules

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	resourcehelper "k8s.io/component-helpers/resource"

	"github.com/keelson/keelson/apiserver/resources/check"
)

// specRules carries what rules deep inside a spec must know of the whole.
type specRules struct {
	check.Faults
	spec    *corev1.PodSpec
	meta    *metav1.ObjectMeta
	pod     bool // a Pod, not a template
	volumes map[string]corev1.VolumeSource
	claims  map[string]bool
	// claimSpec checks the claim template of an ephemeral volume.
	claimSpec func(*corev1.PersistentVolumeClaimSpec, *field.Path) field.ErrorList
}

// ValidatePod reports every fault of a Pod's spec and of the annotations that belong to it.
func ValidatePod(pod *corev1.Pod) field.ErrorList {
	var f check.Faults
	f.Add(validateAnnotations(pod))
	f.Add(validateSpec(&pod.Spec, &pod.ObjectMeta, true, field.NewPath("spec")))
	return f.List()
}

// ValidateCreate is ValidatePod and what holds only for a new Pod.
func ValidateCreate(pod *corev1.Pod) field.ErrorList {
	var f check.Faults
	f.Add(ValidatePod(pod))
	p := field.NewPath("spec")
	if len(pod.Spec.EphemeralContainers) > 0 {
		f.Forbidden(p.Child("ephemeralContainers"), "cannot be set on create")
	}
	if pod.Spec.NodeName != "" && len(pod.Spec.SchedulingGates) > 0 {
		f.Forbidden(p.Child("nodeName"), "cannot be set until all schedulingGates have been cleared")
	}
	return f.List()
}

// ValidateTemplate reports every fault of a workload's pod template.
func ValidateTemplate(t *corev1.PodTemplateSpec, p *field.Path) field.ErrorList {
	var f check.Faults
	f.Labels(p.Child("labels"), t.Labels)
	f.Add(validateMetaAnnotations(t.Annotations, p.Child("annotations")))
	f.Add(validateSpec(&t.Spec, nil, false, p.Child("spec")))
	if len(t.Spec.EphemeralContainers) > 0 {
		f.Forbidden(p.Child("spec", "ephemeralContainers"), "ephemeral containers not allowed in pod template")
	}
	return f.List()
}

func validateMetaAnnotations(a map[string]string, p *field.Path) field.ErrorList {
	var f check.Faults
	total := 0
	for k, v := range a {
		f.QualifiedName(p, strings.ToLower(k))
		total += len(k) + len(v)
	}
	if total > 256<<10 {
		f.TooLong(p, "", 256<<10)
	}
	return f.List()
}

func validateAnnotations(pod *corev1.Pod) field.ErrorList {
	var f check.Faults
	p := field.NewPath("metadata", "annotations")
	if v, ok := pod.Annotations[corev1.MirrorPodAnnotationKey]; ok && pod.Spec.NodeName == "" {
		f.Invalid(p.Key(corev1.MirrorPodAnnotationKey), v, "must set spec.nodeName if mirror pod annotation is set")
	}
	if v, ok := pod.Annotations[corev1.PodDeletionCost]; ok {
		_, err := strconv.ParseInt(v, 10, 32)
		if err != nil || strings.HasPrefix(v, "+") || len(v) > 1 && v[0] == '0' {
			f.Invalid(p.Key(corev1.PodDeletionCost), v, "must be a 32bit integer")
		}
	}
	return f.List()
}

func validateSpec(s *corev1.PodSpec, meta *metav1.ObjectMeta, pod bool, p *field.Path) field.ErrorList {
	r := &specRules{spec: s, meta: meta, pod: pod, claims: map[string]bool{}, claimSpec: ValidateClaimSpec}
	if s.TerminationGracePeriodSeconds == nil {
		r.Required(p.Child("terminationGracePeriodSeconds"), "")
	}
	r.validateVolumes(p.Child("volumes"))
	r.validateClaims(p.Child("resourceClaims"))
	r.validateContainers(p)
	r.validatePodResources(p)
	r.validateHost(p)
	check.Listed(&r.Faults, p.Child("restartPolicy"), s.RestartPolicy, corev1.RestartPolicyAlways, corev1.RestartPolicyOnFailure, corev1.RestartPolicyNever)
	check.Listed(&r.Faults, p.Child("dnsPolicy"), s.DNSPolicy, corev1.DNSClusterFirstWithHostNet, corev1.DNSClusterFirst, corev1.DNSDefault, corev1.DNSNone)
	r.Labels(p.Child("nodeSelector"), s.NodeSelector)
	r.validatePodSecurity(p.Child("securityContext"))
	r.validateAffinity(p.Child("affinity"))
	r.validateDNS(p.Child("dnsConfig"))
	for i, g := range s.ReadinessGates {
		r.QualifiedName(p.Child("readinessGates").Index(i).Child("conditionType"), string(g.ConditionType))
	}
	gates := check.Seen[string]{}
	for i, g := range s.SchedulingGates {
		at := p.Child("schedulingGates").Index(i)
		r.QualifiedName(at, g.Name)
		if gates.Again(g.Name) {
			r.Duplicate(at, g.Name)
		}
	}
	r.validateSpread(p.Child("topologySpreadConstraints"))
	if s.ServiceAccountName != "" {
		r.Subdomain(p.Child("serviceAccountName"), s.ServiceAccountName)
	}
	if s.NodeName != "" {
		r.Subdomain(p.Child("nodeName"), s.NodeName)
	}
	if d := s.ActiveDeadlineSeconds; d != nil && (*d < 1 || *d > math.MaxInt32) {
		r.Invalid(p.Child("activeDeadlineSeconds"), *d, validation.InclusiveRangeError(1, math.MaxInt32))
	}
	if s.Hostname != "" {
		r.Label(p.Child("hostname"), s.Hostname)
	}
	if s.Subdomain != "" {
		r.Label(p.Child("subdomain"), s.Subdomain)
	}
	r.Add(ValidateTolerations(s.Tolerations, p.Child("tolerations")))
	for i, a := range s.HostAliases {
		at := p.Child("hostAliases").Index(i)
		r.IP(at.Child("ip"), a.IP)
		for j, h := range a.Hostnames {
			r.Subdomain(at.Child("hostnames").Index(j), h)
		}
	}
	if s.PriorityClassName != "" {
		r.Subdomain(p.Child("priorityClassName"), s.PriorityClassName)
	}
	if s.RuntimeClassName != nil {
		r.Subdomain(p.Child("runtimeClassName"), *s.RuntimeClassName)
	}
	check.AmongPtr(&r.Faults, p.Child("preemptionPolicy"), s.PreemptionPolicy, corev1.PreemptLowerPriority, corev1.PreemptNever)
	if s.Overhead != nil {
		r.Add(ValidateResources(&corev1.ResourceRequirements{Limits: s.Overhead}, nil, p.Child("overhead")))
	}
	if s.OS != nil {
		if s.OS.Name == "" {
			r.Required(p.Child("os", "name"), "")
		} else {
			check.Among(&r.Faults, p.Child("os"), s.OS.Name, corev1.Linux, corev1.Windows)
		}
		r.validateOS(p)
	}
	return r.List()
}

// validateHost holds the rules about sharing the host's namespaces and names.
func (r *specRules) validateHost(p *field.Path) {
	s := r.spec
	if s.HostNetwork {
		for i, c := range s.Containers {
			for j, port := range c.Ports {
				if (r.pod || port.HostPort != 0) && port.HostPort != port.ContainerPort {
					r.Invalid(p.Child("containers").Index(i).Child("ports").Index(j).Child("hostPort"), port.HostPort,
						"must match `containerPort` when `hostNetwork` is true")
				}
			}
		}
	}
	if s.ShareProcessNamespace != nil && *s.ShareProcessNamespace && s.HostPID {
		r.Invalid(p.Child("securityContext", "shareProcessNamespace"), true, "ShareProcessNamespace and HostPID cannot both be enabled")
	}
	if s.HostUsers != nil && !*s.HostUsers {
		for name, on := range map[string]bool{"hostNetwork": s.HostNetwork, "HostPID": s.HostPID, "HostIPC": s.HostIPC} {
			if on {
				r.Forbidden(p.Child(name), "when `hostUsers` is false")
			}
		}
		eachContainer(s, p, func(c *corev1.Container, at *field.Path) {
			if len(c.VolumeDevices) > 0 {
				r.Forbidden(at.Child("volumeDevices"), "when `hostUsers` is false")
			}
		})
	}
	if o := s.HostnameOverride; o != nil {
		at := p.Child("hostnameOverride")
		if s.SetHostnameAsFQDN != nil && *s.SetHostnameAsFQDN {
			r.Forbidden(at, "may not be specified when setHostnameAsFQDN is true")
		}
		if s.HostNetwork {
			r.Forbidden(at, "may not be specified when hostNetwork is true")
		}
		if len(*o) > 64 {
			r.TooLong(at, "", 64)
		}
		r.Subdomain(at, *o)
	}
}

// eachContainer calls f for the containers of all three lists.
func eachContainer(s *corev1.PodSpec, p *field.Path, f func(c *corev1.Container, at *field.Path)) {
	for i := range s.InitContainers {
		f(&s.InitContainers[i], p.Child("initContainers").Index(i))
	}
	for i := range s.Containers {
		f(&s.Containers[i], p.Child("containers").Index(i))
	}
	for i := range s.EphemeralContainers {
		f((*corev1.Container)(&s.EphemeralContainers[i].EphemeralContainerCommon), p.Child("ephemeralContainers").Index(i))
	}
}

// Limits of resolv.conf that pods share. Source: Kubernetes docs, "DNS for Services and Pods".
const (
	maxNameservers = 3
	maxSearches    = 32
	maxSearchChars = 2048
)

func (r *specRules) validateDNS(p *field.Path) {
	c := r.spec.DNSConfig
	if r.spec.DNSPolicy == corev1.DNSNone {
		switch {
		case c == nil:
			r.Required(p, "must provide `dnsConfig` when `dnsPolicy` is None")
		case len(c.Nameservers) == 0:
			r.Required(p.Child("nameservers"), "must provide at least one DNS nameserver when `dnsPolicy` is None")
		}
	}
	if c == nil {
		return
	}
	if len(c.Nameservers) > maxNameservers {
		r.Invalid(p.Child("nameservers"), c.Nameservers, fmt.Sprintf("must not have more than %v nameservers", maxNameservers))
	}
	for i, ns := range c.Nameservers {
		r.IP(p.Child("nameservers").Index(i), ns)
	}
	if len(c.Searches) > maxSearches {
		r.Invalid(p.Child("searches"), c.Searches, fmt.Sprintf("must not have more than %v search paths", maxSearches))
	}
	if len(strings.Join(c.Searches, " ")) > maxSearchChars {
		r.Invalid(p.Child("searches"), c.Searches, fmt.Sprintf("must not have more than %v characters (including spaces) in the search list", maxSearchChars))
	}
	for i, s := range c.Searches {
		if s != "." {
			r.Each(p.Child("searches").Index(i), s, validation.IsDNS1123SubdomainWithUnderscore(strings.TrimSuffix(s, ".")))
		}
	}
	for i, o := range c.Options {
		if o.Name == "" {
			r.Required(p.Child("options").Index(i), "must not be empty")
		}
	}
}

func (r *specRules) validateClaims(p *field.Path) {
	names := check.Seen[string]{}
	for i, c := range r.spec.ResourceClaims {
		at := p.Index(i)
		if r.Need(at.Child("name"), c.Name) {
			r.Label(at.Child("name"), c.Name)
			if names.Again(c.Name) {
				r.Duplicate(at.Child("name"), c.Name)
			}
		}
		r.claims[c.Name] = true
		switch {
		case c.ResourceClaimName != nil && c.ResourceClaimTemplateName != nil:
			r.Invalid(at, c, "at most one of `resourceClaimName` or `resourceClaimTemplateName` may be specified")
		case c.ResourceClaimName == nil && c.ResourceClaimTemplateName == nil:
			r.Invalid(at, c, "must specify one of: `resourceClaimName`, `resourceClaimTemplateName`")
		}
		if c.ResourceClaimName != nil {
			r.Subdomain(at.Child("resourceClaimName"), *c.ResourceClaimName)
		}
		if c.ResourceClaimTemplateName != nil {
			r.Subdomain(at.Child("resourceClaimTemplateName"), *c.ResourceClaimTemplateName)
		}
	}
}

// validatePodResources: pod-level resources cover cpu, memory and huge pages, and
// are at least what the containers ask for together.
func (r *specRules) validatePodResources(p *field.Path) {
	res := r.spec.Resources
	if res == nil {
		return
	}
	at := p.Child("resources")
	if r.spec.OS != nil && r.spec.OS.Name == corev1.Windows {
		r.Forbidden(at, "may not be set for a windows pod")
	}
	if len(res.Claims) > 0 {
		r.Forbidden(at.Child("claims"), "claims may not be set for Resources at pod-level")
	}
	known := func(list corev1.ResourceList, at *field.Path) {
		for name := range list {
			if !resourcehelper.IsSupportedPodLevelResource(name) {
				r.Add(field.ErrorList{field.NotSupported(at.Key(string(name)), name, []corev1.ResourceName{corev1.ResourceCPU, "hugepages-*", corev1.ResourceMemory})})
			}
		}
	}
	known(res.Limits, at.Child("limits"))
	known(res.Requests, at.Child("requests"))
	r.Add(ValidateResources(res, nil, at))
	pod := &corev1.Pod{Spec: *r.spec}
	requests := resourcehelper.AggregateContainerRequests(pod, resourcehelper.PodResourcesOptions{})
	for name, q := range res.Requests {
		if sum, ok := requests[name]; ok && q.Cmp(sum) < 0 {
			r.Invalid(at.Child("requests").Key(string(name)), q.String(), "must be greater than or equal to aggregate container requests of "+sum.String())
		}
	}
	eachContainer(r.spec, p, func(c *corev1.Container, at *field.Path) {
		for name, q := range c.Resources.Limits {
			if limit, ok := res.Limits[name]; ok && q.Cmp(limit) > 0 {
				r.Invalid(at.Child("resources", "limits").Key(string(name)), q.String(), "must be less than or equal to pod limits of "+limit.String())
			}
		}
	})
}

func selectorFaults(s *metav1.LabelSelector, p *field.Path) field.ErrorList {
	return metavalidation.ValidateLabelSelector(s, metavalidation.LabelSelectorValidationOptions{}, p)
}
