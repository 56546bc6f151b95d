package resources

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/keelson/keelson/apiserver/resources/check"
)

// The rules of Services. What fills in and keeps their fields in step is in services.go.

func validateService(cfg Config, s, old *service) field.ErrorList {
	// What addresses a service may have is decided before anything else, and then said alone.
	for _, rules := range []func(*check.Faults, Config, *service, *service, *field.Path){addressFields, addressPolicy, addressFamilies} {
		var f check.Faults
		if s.Spec.Type != corev1.ServiceTypeExternalName {
			rules(&f, cfg, s, old, field.NewPath("spec"))
		}
		if !f.Empty() {
			return f.List()
		}
	}
	var f check.Faults
	p, at := &s.Spec, field.NewPath("spec")
	hints, hinted := s.Annotations[topologyHints]
	if mode, ok := s.Annotations[topologyMode]; ok && hinted && mode != hints {
		f.Invalid(field.NewPath("metadata", "annotations").Key(topologyMode), mode, fmt.Sprintf("must match annotations[%s] when both are specified", topologyHints))
	}
	if len(p.Ports) == 0 && !headless(s) && p.Type != corev1.ServiceTypeExternalName {
		f.Required(at.Child("ports"), "")
	}
	switch p.Type {
	case corev1.ServiceTypeLoadBalancer, corev1.ServiceTypeNodePort:
		if headless(s) {
			f.Invalid(at.Child("clusterIPs").Index(0), p.ClusterIPs[0], fmt.Sprintf("may not be set to 'None' for %s services", p.Type))
		}
	case corev1.ServiceTypeExternalName:
		refuse := func(name string, set bool) {
			if set {
				f.Forbidden(at.Child(name), "may not be set for ExternalName services")
			}
		}
		refuse("clusterIPs", len(p.ClusterIPs) > 0)
		refuse("ipFamilies", len(p.IPFamilies) > 0)
		refuse("ipFamilyPolicy", p.IPFamilyPolicy != nil)
		if name := strings.TrimSuffix(p.ExternalName, "."); f.Need(at.Child("externalName"), name) {
			f.Subdomain(at.Child("externalName"), name)
		}
	}
	validateServicePorts(&f, s, at.Child("ports"))
	f.Labels(at.Child("selector"), p.Selector)
	check.OneOf(&f, at.Child("sessionAffinity"), p.SessionAffinity, corev1.ServiceAffinityClientIP, corev1.ServiceAffinityNone)
	if c := at.Child("sessionAffinityConfig"); p.SessionAffinity == corev1.ServiceAffinityClientIP {
		switch a := p.SessionAffinityConfig; {
		case a == nil:
			f.Required(c, "when session affinity type is ClientIP")
		case a.ClientIP == nil:
			f.Required(c.Child("clientIP"), "when session affinity type is ClientIP")
		case a.ClientIP.TimeoutSeconds == nil:
			f.Required(c.Child("clientIP", "timeoutSeconds"), "when session affinity type is ClientIP")
		case *a.ClientIP.TimeoutSeconds <= 0 || *a.ClientIP.TimeoutSeconds > 86400:
			f.Invalid(c.Child("clientIP", "timeoutSeconds"), *a.ClientIP.TimeoutSeconds, "must be greater than 0 and less than 86400")
		}
	} else if p.SessionAffinity == corev1.ServiceAffinityNone && p.SessionAffinityConfig != nil {
		f.Forbidden(c, "must not be set when session affinity is None")
	}
	addressChanges(&f, s, old, at)
	for i, ip := range p.ExternalIPs {
		var known []string
		if old != nil {
			known = old.Spec.ExternalIPs
		}
		if faults := validation.IsValidIPForLegacyField(at.Child("externalIPs").Index(i), ip, true, known); len(faults) > 0 {
			f.Add(faults)
		} else {
			f.EndpointIP(at.Child("externalIPs").Index(i), ip)
		}
	}
	check.OneOf(&f, at.Child("type"), p.Type, corev1.ServiceTypeClusterIP, corev1.ServiceTypeNodePort, corev1.ServiceTypeLoadBalancer, corev1.ServiceTypeExternalName)
	validateServiceUniquePorts(&f, s, at.Child("ports"))
	validateLoadBalancer(&f, s, old, at)
	if !reachable(s) {
		if p.ExternalTrafficPolicy != "" {
			f.Invalid(at.Child("externalTrafficPolicy"), p.ExternalTrafficPolicy, "may only be set for externally-accessible services")
		}
	} else {
		check.OneOf(&f, at.Child("externalTrafficPolicy"), p.ExternalTrafficPolicy, corev1.ServiceExternalTrafficPolicyCluster, corev1.ServiceExternalTrafficPolicyLocal)
	}
	if n := p.HealthCheckNodePort; n != 0 {
		if !needsHealthPort(s) {
			f.Invalid(at.Child("healthCheckNodePort"), n, "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'")
		} else {
			f.Port(at.Child("healthCheckNodePort"), n)
		}
		if old != nil && needsHealthPort(s) && needsHealthPort(old) && n != old.Spec.HealthCheckNodePort {
			f.Forbidden(at.Child("healthCheckNodePort"), "field is immutable")
		}
	}
	switch t := p.InternalTrafficPolicy; {
	case t != nil:
		check.Among(&f, at.Child("internalTrafficPolicy"), *t, corev1.ServiceInternalTrafficPolicyCluster, corev1.ServiceInternalTrafficPolicyLocal)
	case p.Type == corev1.ServiceTypeClusterIP || needsNodePorts(s):
		f.Required(at.Child("internalTrafficPolicy"), "")
	}
	if d := p.TrafficDistribution; d != nil {
		check.Listed(&f, at.Child("trafficDistribution"), *d, corev1.ServiceTrafficDistributionPreferClose,
			corev1.ServiceTrafficDistributionPreferSameZone, corev1.ServiceTrafficDistributionPreferSameNode)
	}
	return f.List()
}

// Annotations that were there before the fields, or instead of one.
const (
	sourceRanges  = "service.beta.kubernetes.io/load-balancer-source-ranges"
	topologyHints = "service.kubernetes.io/topology-aware-hints"
	topologyMode  = "service.kubernetes.io/topology-mode"
)

// validateLoadBalancer holds the rules of what only load balancers have.
func validateLoadBalancer(f *check.Faults, s, old *service, p *field.Path) {
	v, lb := &s.Spec, s.Spec.Type == corev1.ServiceTypeLoadBalancer
	only := func(at *field.Path, set bool) {
		if set && !lb {
			f.Forbidden(at, "may only be used when `type` is 'LoadBalancer'")
		}
	}
	at := p.Child("LoadBalancerSourceRanges")
	annotated, isAnnotated := s.Annotations[sourceRanges]
	if len(v.LoadBalancerSourceRanges) > 0 {
		only(at, true)
		var known []string
		if old != nil {
			for _, r := range old.Spec.LoadBalancerSourceRanges {
				known = append(known, strings.TrimSpace(r))
			}
		}
		for i, r := range v.LoadBalancerSourceRanges {
			f.CIDR(at.Index(i), strings.TrimSpace(r), known...)
		}
	} else if isAnnotated {
		at := field.NewPath("metadata", "annotations").Key(sourceRanges)
		only(at, true)
		if text := strings.TrimSpace(annotated); text != "" && (old == nil || old.Annotations[sourceRanges] != annotated) {
			for _, r := range strings.Split(text, ",") {
				f.CIDR(at, strings.TrimSpace(r))
			}
		}
	}
	only(p.Child("allocateLoadBalancerNodePorts"), v.AllocateLoadBalancerNodePorts != nil)
	if lb && v.AllocateLoadBalancerNodePorts == nil {
		f.Required(field.NewPath("allocateLoadBalancerNodePorts"), "")
	}
	at = p.Child("loadBalancerClass")
	if lb && old != nil && old.Spec.Type == v.Type && (v.LoadBalancerClass == nil) != (old.Spec.LoadBalancerClass == nil) ||
		lb && old != nil && old.Spec.Type == v.Type && valueOr(v.LoadBalancerClass, "") != valueOr(old.Spec.LoadBalancerClass, "") {
		f.Invalid(at, v.LoadBalancerClass, "may not change once set")
	}
	if only(at, v.LoadBalancerClass != nil); lb && v.LoadBalancerClass != nil {
		f.QualifiedName(at, *v.LoadBalancerClass)
	}
}

// serviceWarnings are about what has no effect, and what has a better name now.
func serviceWarnings(s *service) []string {
	var out []string
	p, at := &s.Spec, field.NewPath("spec")
	if _, ok := s.Annotations[topologyHints]; ok {
		out = append(out, fmt.Sprintf("annotation %s is deprecated, please use %s instead", topologyHints, topologyMode))
	}
	if p.ClusterIP != "" && p.ClusterIP != corev1.ClusterIPNone {
		for i, ip := range p.ClusterIPs {
			out = append(out, validation.GetWarningsForIP(at.Child("clusterIPs").Index(i), ip)...)
		}
	}
	ignored := func(name string, set bool, when string) {
		if set {
			out = append(out, "spec."+name+" is ignored "+when)
		}
	}
	if headless(s) {
		ignored("loadBalancerIP", p.LoadBalancerIP != "", "for headless services")
		ignored("externalIPs", len(p.ExternalIPs) > 0, "for headless services")
		ignored("SessionAffinity", p.SessionAffinity != corev1.ServiceAffinityNone, "for headless services")
	}
	for i, ip := range p.ExternalIPs {
		out = append(out, validation.GetWarningsForIP(at.Child("externalIPs").Index(i), ip)...)
	}
	named := p.Type == corev1.ServiceTypeExternalName
	if len(p.ExternalIPs) > 0 && !headless(s) && !named {
		out = append(out, "spec.externalIPs is deprecated and may no longer be implemented in some clusters")
	}
	if p.LoadBalancerIP != "" {
		out = append(out, validation.GetWarningsForIP(at.Child("loadBalancerIP"), p.LoadBalancerIP)...)
	}
	for i, r := range p.LoadBalancerSourceRanges {
		out = append(out, validation.GetWarningsForCIDR(at.Child("loadBalancerSourceRanges").Index(i), r)...)
	}
	ignored("externalIPs", named && len(p.ExternalIPs) > 0, `when spec.type is "ExternalName"`)
	ignored("externalName", !named && p.ExternalName != "", `when spec.type is not "ExternalName"`)
	if valueOr(p.TrafficDistribution, "") == corev1.ServiceTrafficDistributionPreferClose {
		out = append(out, fmt.Sprintf("spec.trafficDistribution: %q is deprecated; use %q",
			corev1.ServiceTrafficDistributionPreferClose, corev1.ServiceTrafficDistributionPreferSameZone))
	}
	return out
}

func validateServicePorts(f *check.Faults, s *service, p *field.Path) {
	names := check.Seen[string]{}
	for i, port := range s.Spec.Ports {
		at := p.Index(i)
		if port.Name == "" {
			if len(s.Spec.Ports) > 1 {
				f.Required(at.Child("name"), "")
			}
		} else {
			f.Label(at.Child("name"), port.Name)
			if names.Again(port.Name) {
				f.Duplicate(at.Child("name"), port.Name)
			}
		}
		f.Port(at.Child("port"), port.Port)
		check.OneOf(f, at.Child("protocol"), port.Protocol, corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP)
		f.PortOrName(at.Child("targetPort"), port.TargetPort)
		if port.AppProtocol != nil {
			f.QualifiedName(at.Child("appProtocol"), *port.AppProtocol)
		}
	}
}

// validateServiceUniquePorts: a port of a protocol is there once, on the service and on the nodes.
func validateServiceUniquePorts(f *check.Faults, s *service, p *field.Path) {
	nodePorts, ports := check.Seen[nodePort]{}, check.Seen[nodePort]{}
	for i, port := range s.Spec.Ports {
		if s.Spec.Type == corev1.ServiceTypeClusterIP && port.NodePort != 0 {
			f.Forbidden(p.Index(i).Child("nodePort"), "may not be used when `type` is 'ClusterIP'")
		}
	}
	for i, port := range s.Spec.Ports {
		if port.NodePort != 0 && nodePorts.Again(nodePort{port.Protocol, port.NodePort}) {
			f.Duplicate(p.Index(i).Child("nodePort"), port.NodePort)
		}
	}
	for i, port := range s.Spec.Ports {
		if ports.Again(nodePort{port.Protocol, port.Port}) {
			f.Duplicate(p.Index(i), check.Shown(corev1.ServicePort{Protocol: port.Protocol, Port: port.Port}))
		}
	}
}

// addressFields: addresses and families are well formed and fit each other.
func addressFields(f *check.Faults, _ Config, s, old *service, p *field.Path) {
	v := &s.Spec
	ips, families := p.Child("clusterIPs"), p.Child("ipFamilies")
	switch {
	case v.ClusterIP != "" && len(v.ClusterIPs) == 0:
		f.Required(ips, "")
	case v.ClusterIP != "" && v.ClusterIPs[0] != v.ClusterIP:
		f.Invalid(ips, v.ClusterIPs, "first value must match `clusterIP`")
	case v.ClusterIP == "" && len(v.ClusterIPs) > 0:
		f.Invalid(ips, v.ClusterIPs, "must be empty when `clusterIP` is not specified")
	}
	seen := check.Seen[corev1.IPFamily]{}
	for i, fam := range v.IPFamilies {
		check.Among(f, families.Index(i), fam, corev1.IPv4Protocol, corev1.IPv6Protocol)
		if seen.Again(fam) {
			f.Duplicate(families.Index(i), fam)
		}
	}
	check.AmongPtr(f, p.Child("ipFamilyPolicy"), v.IPFamilyPolicy, corev1.IPFamilyPolicySingleStack, corev1.IPFamilyPolicyPreferDualStack, corev1.IPFamilyPolicyRequireDualStack)
	var existing []string
	if old != nil {
		existing = old.Spec.ClusterIPs
	}
	count, bad := map[corev1.IPFamily]int{}, false
	for i, text := range v.ClusterIPs {
		if i == 0 && text == corev1.ClusterIPNone {
			if len(v.ClusterIPs) > 1 {
				bad = true
				f.Invalid(ips, v.ClusterIPs, "'None' must be the first and only value")
			}
			continue
		}
		f.IP(ips.Index(i), text, existing...)
		ip, ok := check.ParseIP(text)
		if bad = bad || !ok; ok {
			count[familyOf(ip)]++
		}
	}
	if len(v.ClusterIPs) > 2 {
		f.Invalid(ips, v.ClusterIPs, "may only hold up to 2 values")
	}
	if bad {
		return
	}
	if count[corev1.IPv4Protocol] > 1 || count[corev1.IPv6Protocol] > 1 {
		f.Invalid(ips, v.ClusterIPs, "may specify no more than one IP for each IP family")
	}
	for i := range min(len(v.ClusterIPs), len(v.IPFamilies)) {
		ip, ok := check.ParseIP(v.ClusterIPs[i])
		want := v.IPFamilies[i]
		if ok && want != familyOf(ip) && (want == corev1.IPv4Protocol || want == corev1.IPv6Protocol) {
			f.Invalid(ips.Index(i), v.ClusterIPs[i], fmt.Sprintf("expected an %s value as indicated by `ipFamilies[%d]`", want, i))
		}
	}
}

// addressPolicy: a service of one family has one address, and an address tells a family that the cluster has.
func addressPolicy(f *check.Faults, cfg Config, s, _ *service, p *field.Path) {
	v, policy := &s.Spec, p.Child("ipFamilyPolicy")
	if valueOr(v.IPFamilyPolicy, "") == corev1.IPFamilyPolicySingleStack {
		if len(v.ClusterIPs) == 2 {
			f.Invalid(policy, *v.IPFamilyPolicy, "must be 'RequireDualStack' or 'PreferDualStack' when multiple cluster IPs are specified")
		}
		if len(v.IPFamilies) == 2 {
			f.Invalid(policy, *v.IPFamilyPolicy, "must be 'RequireDualStack' or 'PreferDualStack' when multiple IP families are specified")
		}
	}
	for i := len(v.IPFamilies); i < len(v.ClusterIPs); i++ {
		if ip, ok := check.ParseIP(v.ClusterIPs[i]); ok && !slices.Contains(cfg.families(), familyOf(ip)) {
			f.Invalid(p.Child("clusterIPs").Index(i), v.ClusterIPs, fmt.Sprintf("%s is not configured on this cluster", familyOf(ip)))
		}
	}
}

// addressFamilies: the cluster has the families that a service asks for, unless nothing stands behind it.
func addressFamilies(f *check.Faults, cfg Config, s, _ *service, p *field.Path) {
	v, known := &s.Spec, cfg.families()
	if v.ClusterIP == corev1.ClusterIPNone && len(v.Selector) == 0 {
		return
	}
	if valueOr(v.IPFamilyPolicy, "") == corev1.IPFamilyPolicyRequireDualStack && len(known) < 2 {
		f.Invalid(p.Child("ipFamilyPolicy"), *v.IPFamilyPolicy, "this cluster is not configured for dual-stack services")
	}
	for i, fam := range v.IPFamilies {
		if !slices.Contains(known, fam) {
			f.Invalid(p.Child("ipFamilies").Index(i), fam, "not configured on this cluster")
		}
	}
}

// addressChanges: a second family may come and go; the first one stays.
func addressChanges(f *check.Faults, s, old *service, p *field.Path) {
	if old == nil || s.Spec.Type == corev1.ServiceTypeExternalName || old.Spec.Type == corev1.ServiceTypeExternalName {
		return
	}
	v, o := &s.Spec, &old.Spec
	ips, families, policy := p.Child("clusterIPs"), p.Child("ipFamilies"), p.Child("ipFamilyPolicy")
	const fixed = "may not change once set"
	if !(headless(s) && headless(old)) && !slices.Equal(v.ClusterIPs, o.ClusterIPs) && len(o.ClusterIPs) > 0 {
		switch {
		case len(v.ClusterIPs) == 0:
			f.Invalid(ips.Index(0), v.ClusterIPs, "primary clusterIP can not be unset")
		case v.ClusterIPs[0] != o.ClusterIPs[0]:
			f.Invalid(ips.Index(0), v.ClusterIPs, fixed)
		case len(v.ClusterIPs) == len(o.ClusterIPs):
			f.Invalid(ips.Index(1), v.ClusterIPs, fixed)
		case len(v.ClusterIPs) < len(o.ClusterIPs) && valueOr(v.IPFamilyPolicy, "") != corev1.IPFamilyPolicySingleStack:
			f.Invalid(policy, v.IPFamilyPolicy, "must be set to 'SingleStack' when releasing the secondary clusterIP")
		}
	}
	if !headless(s) && !headless(old) && !slices.Equal(v.IPFamilies, o.IPFamilies) && len(o.IPFamilies) > 0 {
		switch {
		case len(v.IPFamilies) == 0:
			f.Invalid(families.Index(0), v.IPFamilies, "primary ipFamily can not be unset")
		case v.IPFamilies[0] != o.IPFamilies[0]:
			f.Invalid(families.Index(0), v.IPFamilies, fixed)
		case len(v.IPFamilies) < len(o.IPFamilies) && valueOr(v.IPFamilyPolicy, "") != corev1.IPFamilyPolicySingleStack:
			f.Invalid(policy, v.IPFamilyPolicy, "must be set to 'SingleStack' when releasing the secondary ipFamily")
		}
	}
}

func validateServiceStatus(s, old *service) field.ErrorList {
	var f check.Faults
	p := field.NewPath("status", "loadBalancer", "ingress")
	if len(s.Status.LoadBalancer.Ingress) > 0 && s.Spec.Type != corev1.ServiceTypeLoadBalancer {
		f.Forbidden(p, "may only be used when `spec.type` is 'LoadBalancer'")
		return f.List()
	}
	var known []string
	if old != nil {
		for _, in := range old.Status.LoadBalancer.Ingress {
			known = append(known, in.IP)
		}
	}
	for i, in := range s.Status.LoadBalancer.Ingress {
		at := p.Index(i)
		if in.IP != "" {
			f.IP(at.Child("ip"), in.IP, known...)
		}
		switch {
		case in.IPMode == nil && in.IP != "":
			f.Required(at.Child("ipMode"), "must be specified when `ip` is set")
		case in.IPMode != nil && in.IP == "":
			f.Forbidden(at.Child("ipMode"), "may not be specified when `ip` is not set")
		default:
			check.AmongPtr(&f, at.Child("ipMode"), in.IPMode, corev1.LoadBalancerIPModeVIP, corev1.LoadBalancerIPModeProxy)
		}
		if in.Hostname != "" {
			f.Subdomain(at.Child("hostname"), in.Hostname)
			notIP(&f, in.Hostname, at.Child("hostname"))
		}
	}
	return f.List()
}
