package podrules

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	netutils "k8s.io/utils/net"

	"github.com/keelson/keelson/apiserver/resources/check"
)

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
	r := &statusRules{pod: pod, old: old, p: p}
	r.validateClaims()
	r.validateIPs()
	r.validateContainers(s.ContainerStatuses, pod.Spec.Containers, p.Child("containerStatuses"))
	r.validateContainers(s.InitContainerStatuses, pod.Spec.InitContainers, p.Child("initContainerStatuses"))
	r.validateContainers(s.EphemeralContainerStatuses, nil, p.Child("ephemeralContainerStatuses"))
	f.Add(r.List())
	return f.List()
}

// statusRules checks one report about a pod.
type statusRules struct {
	check.Faults
	pod, old *corev1.Pod
	p        *field.Path
}

// validateClaims: reports are about claims and containers that the pod has.
func (r *statusRules) validateClaims() {
	s, claims := &r.pod.Status, r.pod.Spec.ResourceClaims
	names := check.Seen[string]{}
	for i, c := range s.ResourceClaimStatuses {
		at := r.p.Child("resourceClaimStatuses").Index(i)
		if !slices.ContainsFunc(claims, func(p corev1.PodResourceClaim) bool { return p.Name == c.Name }) {
			r.Invalid(at.Child("name"), c.Name, "must match the name of an entry in `spec.resourceClaims`")
		}
		if names.Again(c.Name) {
			r.Duplicate(at.Child("name"), c.Name)
		}
		if c.ResourceClaimName != nil {
			r.Subdomain(at.Child("resourceClaimName"), *c.ResourceClaimName)
		}
	}
	e, at := s.ExtendedResourceClaimStatus, r.p.Child("extendedResourceClaimStatus")
	if e == nil {
		return
	}
	if len(e.RequestMappings) == 0 {
		r.Required(at.Child("requestMappings"), "at least one request mapping is required")
	}
	containers := map[string]*corev1.Container{}
	for _, list := range [][]corev1.Container{r.pod.Spec.InitContainers, r.pod.Spec.Containers} {
		for i := range list {
			containers[list[i].Name] = &list[i]
		}
	}
	seen := check.Seen[corev1.ContainerExtendedResourceRequest]{}
	for i, m := range e.RequestMappings {
		entry := at.Child("requestMappings").Index(i)
		if c := containers[m.ContainerName]; c == nil {
			r.Invalid(entry.Child("containerName"), m.ContainerName, "must match the name of an entry in spec.initContainers.name or spec.containers.name")
		} else if _, ok := c.Resources.Requests[corev1.ResourceName(m.ResourceName)]; !ok {
			r.Invalid(entry.Child("resourceName"), m.ResourceName,
				"must match the extended resource name of an entry in spec.initContainers.resources.requests or spec.containers.resources.requests")
		}
		r.Label(at.Child("requestName"), m.RequestName)
		if seen.Again(m) {
			r.Duplicate(entry.Child("containerName"), m.ContainerName)
			r.Duplicate(entry.Child("resourceName"), m.ResourceName)
			r.Duplicate(entry.Child("requestName"), m.RequestName)
		}
	}
	r.NeedName(at.Child("resourceClaimName"), e.ResourceClaimName, validation.IsDNS1123Subdomain)
}

// validateIPs: at most one address of a family; what is stored may stay as it is written.
func (r *statusRules) validateIPs() {
	s, old := &r.pod.Status, &r.old.Status
	list := func(at *field.Path, ips, was []string, shown any) {
		for i, ip := range ips {
			r.IP(at.Index(i), ip, was...)
		}
		if len(ips) < 2 {
			return
		}
		dual, err := netutils.IsDualStackIPStrings(ips)
		if err != nil {
			r.Internal(at, fmt.Errorf("failed to check for dual stack with error:%w", err))
		}
		if !dual || len(ips) > 2 {
			r.Invalid(at, check.Shown(shown), "may specify no more than one IP for each IP family")
		}
	}
	var ips, was, hosts, wasHosts []string
	for _, ip := range s.PodIPs {
		ips = append(ips, ip.IP)
	}
	for _, ip := range old.PodIPs {
		was = append(was, ip.IP)
	}
	for _, ip := range s.HostIPs {
		hosts = append(hosts, ip.IP)
	}
	for _, ip := range old.HostIPs {
		wasHosts = append(wasHosts, ip.IP)
	}
	list(r.p.Child("podIPs"), ips, was, s.PodIPs)
	at := r.p.Child("hostIPs")
	if len(hosts) > 0 && hosts[0] != s.HostIP {
		r.Invalid(at.Index(0).Child("ip"), hosts[0], "must be equal to `hostIP`")
	}
	list(at, hosts, wasHosts, s.HostIPs)
}

// validateContainers checks users, the health of devices, and image volumes. Ephemeral
// containers, for which there are no specs, have no devices.
func (r *statusRules) validateContainers(list []corev1.ContainerStatus, specs []corev1.Container, p *field.Path) {
	windows := r.pod.Spec.OS != nil && r.pod.Spec.OS.Name == corev1.Windows
	for i := range list {
		c, at := &list[i], p.Index(i)
		if c.User != nil && c.User.Linux != nil {
			at, u := at.Child("user", "linux"), c.User.Linux
			if windows {
				r.Forbidden(at, "cannot be set for a windows pod")
			} else {
				r.Each(at.Child("uid"), u.UID, validation.IsValidUserID(u.UID))
				r.Each(at.Child("gid"), u.GID, validation.IsValidGroupID(u.GID))
				for j, g := range u.SupplementalGroups {
					r.Each(at.Child("supplementalGroups").Index(j), g, validation.IsValidGroupID(g))
				}
			}
		}
		if specs == nil && len(c.AllocatedResourcesStatus) > 0 {
			r.Forbidden(at.Child("allocatedResourcesStatus"), "must not be specified in container status")
		}
		for j := range c.AllocatedResourcesStatus {
			if specs != nil {
				r.validateHealth(&c.AllocatedResourcesStatus[j], c.Name, specs, at.Child("allocatedResourcesStatus").Index(j))
			}
		}
	}
}

// validateHealth: a report is about a resource or claim of the container, once for each device.
func (r *statusRules) validateHealth(s *corev1.ResourceStatus, container string, specs []corev1.Container, p *field.Path) {
	for i := range specs {
		if specs[i].Name != container {
			continue
		}
		res := &specs[i].Resources
		if strings.HasPrefix(string(s.Name), "claim:") {
			known := slices.ContainsFunc(res.Claims, func(c corev1.ResourceClaim) bool {
				name := "claim:" + c.Name
				if c.Request != "" {
					name += "/" + c.Request
				}
				return name == string(s.Name)
			})
			if !known {
				r.Invalid(p.Child("name"), s.Name, "must match one of the container's resource claims in a format 'claim:<claimName>/<request>' or 'claim:<claimName>' if request is empty")
			}
		} else if _, ok := res.Requests[s.Name]; !ok {
			r.Invalid(p.Child("name"), s.Name, "must match one of the container's resource requests")
		}
		break
	}
	seen := check.Seen[corev1.ResourceID]{}
	for i, d := range s.Resources {
		at := p.Child("resources").Index(i)
		check.Among(&r.Faults, at.Child("health"), d.Health, corev1.ResourceHealthStatusHealthy, corev1.ResourceHealthStatusUnhealthy, corev1.ResourceHealthStatusUnknown)
		if m := d.Message; m != nil && *m == "" {
			r.Required(at.Child("message"), "must be non-empty if specified")
		} else if m != nil && len(*m) > corev1.ResourceHealthMessageMaxLength {
			r.TooLong(at.Child("message"), *m, corev1.ResourceHealthMessageMaxLength)
		}
		if seen.Again(d.ResourceID) {
			r.Duplicate(at.Child("resourceID"), d.ResourceID)
		}
	}
}

var systemConditions = map[corev1.PodConditionType]bool{
	corev1.PodScheduled: true, corev1.PodReady: true, corev1.PodInitialized: true,
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
	for _, list := range [][]corev1.Container{s.InitContainers, s.Containers} { // any of them may take all along
		for i := range list {
			for _, rule := range list[i].RestartPolicyRules {
				if rule.Action == corev1.ContainerRestartRuleActionRestartAllContainers {
					return true
				}
			}
		}
	}
	for i := range specs {
		c := &specs[i]
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
