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
	"strings"

	corev1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

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
}

// ValidatePod reports every fault of a Pod's spec and of the annotations that belong to it.
func ValidatePod(pod *corev1.Pod) field.ErrorList {
	var f check.Faults
	f.Add(validateAnnotations(pod.Annotations, &pod.Spec, field.NewPath("metadata", "annotations")))
	p := field.NewPath("spec")
	f.Add(validateSpec(&pod.Spec, &pod.ObjectMeta, true, p))
	if pod.Spec.ServiceAccountName == "" {
		for i, v := range pod.Spec.Volumes {
			if v.Projected == nil {
				continue
			}
			for j, s := range v.Projected.Sources {
				if s.ServiceAccountToken != nil {
					f.Forbidden(p.Child("volumes").Index(i).Child("projected", "sources").Index(j).Child("serviceAccountToken"),
						"must not be specified when serviceAccountName is not set")
				}
			}
		}
	}
	images := &specRules{}
	for i := range pod.Spec.Containers {
		images.trimmedImage(&pod.Spec.Containers[i], p.Child("containers").Index(i))
	}
	for i := range pod.Spec.InitContainers {
		images.trimmedImage(&pod.Spec.InitContainers[i], p.Child("initContainers").Index(i))
	}
	f.Add(images.List())
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
	f.Add(matchProfiles(pod.Annotations, &pod.Spec, p))
	return f.List()
}

// ValidateTemplate reports every fault of a workload's pod template.
func ValidateTemplate(t *corev1.PodTemplateSpec, p *field.Path) field.ErrorList {
	var f check.Faults
	f.Labels(p.Child("labels"), t.Labels)
	f.Add(apivalidation.ValidateAnnotations(t.Annotations, p.Child("annotations")))
	f.Add(validateAnnotations(t.Annotations, &t.Spec, p.Child("annotations")))
	f.Add(validateSpec(&t.Spec, nil, false, p.Child("spec")))
	f.Add(matchProfiles(t.Annotations, &t.Spec, p.Child("spec")))
	if len(t.Spec.EphemeralContainers) > 0 {
		f.Forbidden(p.Child("spec", "ephemeralContainers"), "ephemeral containers not allowed in pod template")
	}
	return f.List()
}

func validateSpec(s *corev1.PodSpec, meta *metav1.ObjectMeta, pod bool, p *field.Path) field.ErrorList {
	r := &specRules{spec: s, meta: meta, pod: pod, claims: map[string]bool{}}
	if s.TerminationGracePeriodSeconds == nil {
		r.Required(p.Child("terminationGracePeriodSeconds"), "")
	}
	r.validateVolumes(p.Child("volumes"))
	r.validateClaims(p.Child("resourceClaims"))
	r.validateContainers(p)
	r.validatePodResources(p)
	r.validateHostPorts(p)
	listed(r, p.Child("restartPolicy"), s.RestartPolicy, corev1.RestartPolicyAlways, corev1.RestartPolicyOnFailure, corev1.RestartPolicyNever)
	listed(r, p.Child("dnsPolicy"), s.DNSPolicy, corev1.DNSClusterFirstWithHostNet, corev1.DNSClusterFirst, corev1.DNSDefault, corev1.DNSNone)
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
	r.validateHostProcess(p)
	r.validateHostUsers(p)
	r.validateHostname(p)
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
	if s.PreemptionPolicy != nil {
		listed(r, p.Child("preemptionPolicy"), *s.PreemptionPolicy, corev1.PreemptLowerPriority, corev1.PreemptNever)
	}
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
	r.validateEnvFiles(p)
	return r.List()
}

// listed demands one of the values, in the order in which messages name them.
func listed[S ~string](r *specRules, p *field.Path, v S, known ...S) {
	if v == "" {
		r.Required(p, "")
	} else {
		check.Listed(&r.Faults, p, v, known...)
	}
}

// validateHostPorts: on the host's network a container listens where it listens.
// Templates may leave the port out, pods get it by default.
func (r *specRules) validateHostPorts(p *field.Path) {
	if !r.spec.HostNetwork {
		return
	}
	for i, c := range r.spec.Containers {
		for j, port := range c.Ports {
			if (r.pod || port.HostPort != 0) && port.HostPort != port.ContainerPort {
				r.Invalid(p.Child("containers").Index(i).Child("ports").Index(j).Child("hostPort"), port.HostPort,
					"must match `containerPort` when `hostNetwork` is true")
			}
		}
	}
}

// validateHostUsers: users of the pod's own cannot be mapped in the host's namespaces, nor on devices.
func (r *specRules) validateHostUsers(p *field.Path) {
	s := r.spec
	if s.HostUsers == nil || *s.HostUsers {
		return
	}
	const refused = "when `hostUsers` is false"
	r.refuse(p, refused, given{"hostNetwork", s.HostNetwork}, given{"HostPID", s.HostPID}, given{"HostIPC", s.HostIPC})
	eachContainer(s, p, func(c *corev1.Container, at *field.Path) {
		r.refuse(at, refused, given{"volumeDevices", len(c.VolumeDevices) > 0})
	})
}

func (r *specRules) validateHostname(p *field.Path) {
	s, at := r.spec, p.Child("hostnameOverride")
	if s.HostnameOverride == nil {
		return
	}
	if s.SetHostnameAsFQDN != nil && *s.SetHostnameAsFQDN {
		r.Forbidden(at, "may not be specified when setHostnameAsFQDN is true")
	}
	if s.HostNetwork {
		r.Forbidden(at, "may not be specified when hostNetwork is true")
	}
	if len(*s.HostnameOverride) > 64 {
		r.TooLong(at, "", 64)
	}
	r.Subdomain(at, *s.HostnameOverride)
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
			return
		case len(c.Nameservers) == 0:
			r.Required(p.Child("nameservers"), "must provide at least one DNS nameserver when `dnsPolicy` is None")
			return
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
			s = strings.TrimSuffix(s, ".")
			r.Each(p.Child("searches").Index(i), s, validation.IsDNS1123SubdomainWithUnderscore(s))
		}
	}
	for i, o := range c.Options {
		if o.Name == "" {
			r.Required(p.Child("options").Index(i), "must not be empty")
		}
	}
}

func (r *specRules) validateClaims(p *field.Path) {
	for _, c := range r.spec.ResourceClaims {
		if c.Name != "" {
			r.claims[c.Name] = true
		}
	}
	names := check.Seen[string]{}
	for i, c := range r.spec.ResourceClaims {
		if r.meta != nil {
			if _, mirror := r.meta.Annotations[corev1.MirrorPodAnnotationKey]; mirror {
				r.Forbidden(field.NewPath(""), "static pods do not support resource claims")
				continue
			}
		}
		at := p.Index(i)
		if r.Need(at.Child("name"), c.Name) {
			if names.Again(c.Name) {
				r.Duplicate(at.Child("name"), c.Name)
			} else {
				r.Label(at.Child("name"), c.Name)
			}
		}
		switch {
		case c.ResourceClaimName != nil && c.ResourceClaimTemplateName != nil:
			r.Invalid(at, check.Shown(c), "at most one of `resourceClaimName` or `resourceClaimTemplateName` may be specified")
		case c.ResourceClaimName == nil && c.ResourceClaimTemplateName == nil:
			r.Invalid(at, check.Shown(c), "must specify one of: `resourceClaimName`, `resourceClaimTemplateName`")
		}
		if c.ResourceClaimName != nil {
			r.Subdomain(at.Child("resourceClaimName"), *c.ResourceClaimName)
		}
		if c.ResourceClaimTemplateName != nil {
			r.Subdomain(at.Child("resourceClaimTemplateName"), *c.ResourceClaimTemplateName)
		}
	}
}

func selectorFaults(s *metav1.LabelSelector, p *field.Path) field.ErrorList {
	return metavalidation.ValidateLabelSelector(s, metavalidation.LabelSelectorValidationOptions{}, p)
}
