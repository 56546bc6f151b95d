package resources

import (
	"fmt"
	"net/netip"
	"slices"
	"sort"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/keelson/keelson/apiserver/resources/check"
)

type service = corev1.Service

func services(cfg Config) Resource[service] {
	a := allocator{cfg: cfg}
	return Resource[service]{
		Group: "", Version: "v1", Kind: "Service", Plural: "services", Prefix: "services/specs", NoGeneration: true,
		Short: []string{"svc"}, Categories: []string{"all"}, Name: DNSLabel, CreateOnUpdate: true,
		List:    listOf[corev1.ServiceList],
		Default: defaultService,
		Main: Part[service]{
			Prepare:  func(_ *Request, obj, old *service) { prepareService(cfg, obj, old) },
			Validate: func(_ *Request, obj, old *service) field.ErrorList { return validateService(cfg, obj, old) },
			Reset:    []string{"status"},
		},
		Status: statusPart(func(s *service) *corev1.ServiceSpec { return &s.Spec }, validateServiceStatus),
		Subs: []Sub{{
			Name: "proxy", Verbs: []string{"create", "delete", "get", "patch", "update"},
			Kind: schema.GroupVersionKind{Version: "v1", Kind: "ServiceProxyOptions"},
		}},
		Allocate: a.allocate,
		Fields: func(s *service) fields.Set {
			return fields.Set{"spec.clusterIP": s.Spec.ClusterIP, "spec.type": string(s.Spec.Type)}
		},
		FieldNames: []string{"spec.clusterIP", "spec.type"},
		Columns: []Column[service]{
			text("Type", func(s *service) string { return string(s.Spec.Type) }),
			text("Cluster-IP", func(s *service) string {
				if len(s.Spec.ClusterIPs) == 0 {
					return "<none>"
				}
				return s.Spec.ClusterIPs[0]
			}),
			text("External-IP", externalIPs),
			text("Port(s)", func(s *service) string {
				var out []string
				for _, p := range s.Spec.Ports {
					if p.NodePort > 0 {
						out = append(out, fmt.Sprintf("%d:%d/%s", p.Port, p.NodePort, p.Protocol))
					} else {
						out = append(out, fmt.Sprintf("%d/%s", p.Port, p.Protocol))
					}
				}
				return joinOr(out, "<none>")
			}),
			ageColumn[service](),
			wide(text("Selector", func(s *service) string { return labelsText(s.Spec.Selector) })),
		},
	}
}

// loadBalancerText lists addresses once each, sorted.
func loadBalancerText(ingress []corev1.LoadBalancerIngress) string {
	var out []string
	for _, i := range ingress {
		v := i.IP
		def(&v, i.Hostname)
		if v != "" && !slices.Contains(out, v) {
			out = append(out, v)
		}
	}
	sort.Strings(out)
	return strings.Join(out, ",")
}

func externalIPs(s *service) string {
	switch s.Spec.Type {
	case corev1.ServiceTypeClusterIP, corev1.ServiceTypeNodePort:
		return joinOr(s.Spec.ExternalIPs, "<none>")
	case corev1.ServiceTypeLoadBalancer:
		out := slices.Clone(s.Spec.ExternalIPs)
		if lb := loadBalancerText(s.Status.LoadBalancer.Ingress); lb != "" {
			out = append([]string{lb}, out...)
		}
		return joinOr(out, "<pending>")
	case corev1.ServiceTypeExternalName:
		return s.Spec.ExternalName
	}
	return "<unknown>"
}

// reachable reports a Service that outsiders can address.
func reachable(s *service) bool {
	return needsNodePorts(s) || s.Spec.Type == corev1.ServiceTypeClusterIP && len(s.Spec.ExternalIPs) > 0
}

func headless(s *service) bool {
	return len(s.Spec.ClusterIPs) == 1 && s.Spec.ClusterIPs[0] == corev1.ClusterIPNone
}

func defaultService(s *service) {
	p := &s.Spec
	def(&p.SessionAffinity, corev1.ServiceAffinityNone)
	switch p.SessionAffinity {
	case corev1.ServiceAffinityNone:
		p.SessionAffinityConfig = nil
	case corev1.ServiceAffinityClientIP:
		if c := p.SessionAffinityConfig; c == nil || c.ClientIP == nil || c.ClientIP.TimeoutSeconds == nil {
			p.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: ptr(corev1.DefaultClientIPServiceAffinitySeconds)}}
		}
	}
	def(&p.Type, corev1.ServiceTypeClusterIP)
	for i := range p.Ports {
		def(&p.Ports[i].Protocol, corev1.ProtocolTCP)
		if t := p.Ports[i].TargetPort; t == (intstr.IntOrString{}) || t == intstr.FromString("") {
			p.Ports[i].TargetPort = intstr.FromInt32(p.Ports[i].Port)
		}
	}
	if reachable(s) {
		def(&p.ExternalTrafficPolicy, corev1.ServiceExternalTrafficPolicyCluster)
	}
	if p.Type != corev1.ServiceTypeExternalName {
		defPtr(&p.InternalTrafficPolicy, corev1.ServiceInternalTrafficPolicyCluster)
	}
	if p.Type == corev1.ServiceTypeLoadBalancer {
		defPtr(&p.AllocateLoadBalancerNodePorts, true)
		for i := range s.Status.LoadBalancer.Ingress {
			if s.Status.LoadBalancer.Ingress[i].IP != "" {
				defPtr(&s.Status.LoadBalancer.Ingress[i].IPMode, corev1.LoadBalancerIPModeVIP)
			}
		}
	}
}

// prepareService keeps the related fields of a Service in step: what was
// allocated stays with a PUT that leaves it out, what the new type has no use for
// goes, and IP families follow from addresses, policy and cluster.
func prepareService(cfg Config, s, old *service) {
	if old == nil {
		s.Status = corev1.ServiceStatus{}
	} else {
		s.Status = old.Status
		keepAllocated(s, old)
	}
	syncClusterIPs(s, old)
	if old != nil {
		dropUnused(s, old)
	}
	chooseFamilies(cfg, s, old)
}

func keepAllocated(s, old *service) {
	p, o := &s.Spec, &old.Spec
	if p.Type != corev1.ServiceTypeExternalName && o.Type != corev1.ServiceTypeExternalName && p.ClusterIP == "" && len(p.ClusterIPs) == 0 {
		p.ClusterIP, p.ClusterIPs = o.ClusterIP, slices.Clone(o.ClusterIPs)
	}
	if needsNodePorts(s) && needsNodePorts(old) {
		used := map[nodePort]bool{}
		for _, port := range p.Ports {
			used[nodePort{port.Protocol, port.NodePort}] = true
		}
		for i := range p.Ports {
			if p.Ports[i].NodePort != 0 {
				continue
			}
			for _, was := range o.Ports {
				key := nodePort{was.Protocol, was.NodePort}
				if was.NodePort != 0 && was.Port == p.Ports[i].Port && was.Protocol == p.Ports[i].Protocol && !used[key] {
					p.Ports[i].NodePort = was.NodePort
					used[key] = true
					break
				}
			}
		}
	}
	if needsHealthPort(s) && needsHealthPort(old) {
		def(&p.HealthCheckNodePort, o.HealthCheckNodePort)
	}
}

// syncClusterIPs lets clients that know only clusterIP speak for clusterIPs.
func syncClusterIPs(s, old *service) {
	p := &s.Spec
	if old == nil {
		if p.ClusterIP != "" && len(p.ClusterIPs) == 0 {
			p.ClusterIPs = []string{p.ClusterIP}
		}
		return
	}
	o := &old.Spec
	if p.ClusterIP == o.ClusterIP {
		// A client that knows only the plural field may have cleared or set it alone.
		return
	}
	if !slices.Equal(p.ClusterIPs, o.ClusterIPs) {
		return // both changed: the rules demand that they agree
	}
	switch {
	case p.ClusterIP == "":
		p.ClusterIPs = nil
	default:
		p.ClusterIPs = []string{p.ClusterIP}
	}
}

// dropUnused clears what was filled in for the old type and was not asked for now.
func dropUnused(s, old *service) {
	p, o := &s.Spec, &old.Spec
	if p.Type == corev1.ServiceTypeExternalName && o.Type != corev1.ServiceTypeExternalName {
		if p.ClusterIP == o.ClusterIP && slices.Equal(p.ClusterIPs, o.ClusterIPs) {
			p.ClusterIP, p.ClusterIPs = "", nil
		}
		if slices.Equal(p.IPFamilies, o.IPFamilies) {
			p.IPFamilies = nil
		}
		if valueOr(p.IPFamilyPolicy, "") == valueOr(o.IPFamilyPolicy, "") {
			p.IPFamilyPolicy = nil
		}
	}
	if needsNodePorts(old) && !needsNodePorts(s) {
		had := map[int32]bool{0: true}
		for _, port := range o.Ports {
			had[port.NodePort] = true
		}
		if !slices.ContainsFunc(p.Ports, func(port corev1.ServicePort) bool { return !had[port.NodePort] }) {
			for i := range p.Ports {
				p.Ports[i].NodePort = 0
			}
		}
	}
	if needsHealthPort(old) && !needsHealthPort(s) && p.HealthCheckNodePort == o.HealthCheckNodePort {
		p.HealthCheckNodePort = 0
	}
	if o.Type == corev1.ServiceTypeLoadBalancer && p.Type != corev1.ServiceTypeLoadBalancer {
		if p.AllocateLoadBalancerNodePorts != nil && o.AllocateLoadBalancerNodePorts != nil && *p.AllocateLoadBalancerNodePorts == *o.AllocateLoadBalancerNodePorts {
			p.AllocateLoadBalancerNodePorts = nil
		}
		if valueOr(p.LoadBalancerClass, "") == valueOr(o.LoadBalancerClass, "") {
			p.LoadBalancerClass = nil
		}
	}
	if reachable(old) && !reachable(s) && p.ExternalTrafficPolicy == o.ExternalTrafficPolicy {
		p.ExternalTrafficPolicy = ""
	}
	if p.Type != corev1.ServiceTypeLoadBalancer {
		s.Status.LoadBalancer = corev1.LoadBalancerStatus{}
	}
}

// families are those of the cluster, the primary one first.
func (c Config) families() []corev1.IPFamily {
	var out []corev1.IPFamily
	for _, r := range c.ServiceCIDRs {
		if f := familyOf(r.Addr()); !slices.Contains(out, f) {
			out = append(out, f)
		}
	}
	return out
}

func otherFamily(f corev1.IPFamily) corev1.IPFamily {
	if f == corev1.IPv4Protocol {
		return corev1.IPv6Protocol
	}
	return corev1.IPv4Protocol
}

// chooseFamilies fills ipFamilyPolicy and ipFamilies. It refuses nothing: the
// rules report what does not fit together.
func chooseFamilies(cfg Config, s, old *service) {
	p := &s.Spec
	if p.Type == corev1.ServiceTypeExternalName {
		return
	}
	loose := p.ClusterIP == corev1.ClusterIPNone && len(p.Selector) == 0 // headless without selector
	if p.IPFamilyPolicy == nil {
		switch {
		case old != nil && old.Spec.IPFamilyPolicy != nil:
			p.IPFamilyPolicy = old.Spec.IPFamilyPolicy
		case loose:
			p.IPFamilyPolicy = ptr(corev1.IPFamilyPolicyRequireDualStack)
		default:
			p.IPFamilyPolicy = ptr(corev1.IPFamilyPolicySingleStack)
		}
	}
	single := *p.IPFamilyPolicy == corev1.IPFamilyPolicySingleStack
	if old != nil {
		if slices.Equal(p.IPFamilies, old.Spec.IPFamilies) || len(p.IPFamilies) == 0 {
			if len(p.IPFamilies) == 0 && old.Spec.Type != corev1.ServiceTypeExternalName {
				p.IPFamilies = slices.Clone(old.Spec.IPFamilies)
			}
			if single && len(p.IPFamilies) > 1 {
				p.IPFamilies = p.IPFamilies[:1]
			}
		}
		if single && len(p.ClusterIPs) > 1 && slices.Equal(p.ClusterIPs, old.Spec.ClusterIPs) {
			p.ClusterIPs = p.ClusterIPs[:1]
		}
		// PreferDualStack is not changed behind the user's back when the cluster has changed.
		if *p.IPFamilyPolicy == corev1.IPFamilyPolicyPreferDualStack && valueOr(old.Spec.IPFamilyPolicy, "") == *p.IPFamilyPolicy &&
			len(p.IPFamilies) > 0 && slices.Equal(p.IPFamilies, old.Spec.IPFamilies) && slices.Equal(p.ClusterIPs, old.Spec.ClusterIPs) {
			return
		}
	}
	for i, text := range p.ClusterIPs {
		if ip, err := netip.ParseAddr(text); err == nil && i == len(p.IPFamilies) {
			p.IPFamilies = append(p.IPFamilies, familyOf(ip))
		}
	}
	known := cfg.families()
	if len(p.IPFamilies) == 0 && len(known) > 0 {
		p.IPFamilies = []corev1.IPFamily{known[0]}
	}
	if !single && len(p.IPFamilies) == 1 && (loose || len(known) == 2) {
		p.IPFamilies = append(p.IPFamilies, otherFamily(p.IPFamilies[0]))
	}
}

func validateService(cfg Config, s, old *service) field.ErrorList {
	var f check.Faults
	p, at := &s.Spec, field.NewPath("spec")
	if len(p.Ports) == 0 && !headless(s) && p.Type != corev1.ServiceTypeExternalName {
		f.Required(at.Child("ports"), "")
	}
	check.OneOf(&f, at.Child("type"), p.Type, corev1.ServiceTypeClusterIP, corev1.ServiceTypeNodePort, corev1.ServiceTypeLoadBalancer, corev1.ServiceTypeExternalName)
	switch p.Type {
	case corev1.ServiceTypeLoadBalancer, corev1.ServiceTypeNodePort:
		if headless(s) {
			f.Invalid(at.Child("clusterIPs").Index(0), p.ClusterIPs[0], fmt.Sprintf("may not be set to 'None' for %s services", p.Type))
		}
	case corev1.ServiceTypeExternalName:
		for name, set := range map[string]bool{"clusterIPs": len(p.ClusterIPs) > 0, "ipFamilies": len(p.IPFamilies) > 0, "ipFamilyPolicy": p.IPFamilyPolicy != nil} {
			if set {
				f.Forbidden(at.Child(name), "may not be set for ExternalName services")
			}
		}
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
	validateClusterIPs(&f, cfg, s, old, at)
	for i, ip := range p.ExternalIPs {
		var known []string
		if old != nil {
			known = old.Spec.ExternalIPs
		}
		if msgs := validation.IsValidIP(at.Child("externalIPs").Index(i), ip); len(msgs) > 0 && !slices.Contains(known, ip) {
			f.Add(msgs)
		} else {
			f.EndpointIP(at.Child("externalIPs").Index(i), ip)
		}
	}
	lb := p.Type == corev1.ServiceTypeLoadBalancer
	for name, set := range map[string]bool{
		"LoadBalancerSourceRanges": len(p.LoadBalancerSourceRanges) > 0, "allocateLoadBalancerNodePorts": p.AllocateLoadBalancerNodePorts != nil,
		"loadBalancerClass": p.LoadBalancerClass != nil,
	} {
		if set && !lb {
			f.Forbidden(at.Child(name), "may only be used when `type` is 'LoadBalancer'")
		}
	}
	for i, r := range p.LoadBalancerSourceRanges {
		f.CIDR(at.Child("LoadBalancerSourceRanges").Index(i), strings.TrimSpace(r))
	}
	if lb && p.LoadBalancerClass != nil {
		f.QualifiedName(at.Child("loadBalancerClass"), *p.LoadBalancerClass)
	}
	if lb && old != nil && old.Spec.Type == p.Type && valueOr(p.LoadBalancerClass, "") != valueOr(old.Spec.LoadBalancerClass, "") {
		f.Invalid(at.Child("loadBalancerClass"), p.LoadBalancerClass, "may not change once set")
	}
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
	if p.Type != corev1.ServiceTypeExternalName {
		if p.InternalTrafficPolicy == nil {
			f.Required(at.Child("internalTrafficPolicy"), "")
		} else {
			check.Among(&f, at.Child("internalTrafficPolicy"), *p.InternalTrafficPolicy, corev1.ServiceInternalTrafficPolicyCluster, corev1.ServiceInternalTrafficPolicyLocal)
		}
	}
	check.AmongPtr(&f, at.Child("trafficDistribution"), p.TrafficDistribution, corev1.ServiceTrafficDistributionPreferClose,
		corev1.ServiceTrafficDistributionPreferSameZone, corev1.ServiceTrafficDistributionPreferSameNode)
	return f.List()
}

func validateServicePorts(f *check.Faults, s *service, p *field.Path) {
	names, nodePorts := check.Seen[string]{}, check.Seen[nodePort]{}
	ports := check.Seen[nodePort]{}
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
		if port.NodePort != 0 {
			if s.Spec.Type == corev1.ServiceTypeClusterIP {
				f.Forbidden(at.Child("nodePort"), "may not be used when `type` is 'ClusterIP'")
			}
			if nodePorts.Again(nodePort{port.Protocol, port.NodePort}) {
				f.Duplicate(at.Child("nodePort"), port.NodePort)
			}
		}
		if ports.Again(nodePort{port.Protocol, port.Port}) {
			f.Duplicate(at, corev1.ServicePort{Protocol: port.Protocol, Port: port.Port})
		}
	}
}

// validateClusterIPs holds the rules that bind clusterIP, clusterIPs, ipFamilies
// and ipFamilyPolicy to each other, to the cluster and to what they were.
func validateClusterIPs(f *check.Faults, cfg Config, s, old *service, p *field.Path) {
	if s.Spec.Type == corev1.ServiceTypeExternalName {
		return
	}
	v := &s.Spec
	ips, families, policy := p.Child("clusterIPs"), p.Child("ipFamilies"), p.Child("ipFamilyPolicy")
	switch {
	case v.ClusterIP != "" && len(v.ClusterIPs) == 0:
		f.Required(ips, "")
	case v.ClusterIP != "" && v.ClusterIPs[0] != v.ClusterIP:
		f.Invalid(ips, v.ClusterIPs, "first value must match `clusterIP`")
	case v.ClusterIP == "" && len(v.ClusterIPs) > 0:
		f.Invalid(ips, v.ClusterIPs, "must be empty when `clusterIP` is not specified")
	}
	known := cfg.families()
	loose := v.ClusterIP == corev1.ClusterIPNone && len(v.Selector) == 0
	seen := check.Seen[corev1.IPFamily]{}
	for i, fam := range v.IPFamilies {
		check.Among(f, families.Index(i), fam, corev1.IPv4Protocol, corev1.IPv6Protocol)
		if seen.Again(fam) {
			f.Duplicate(families.Index(i), fam)
		} else if !loose && (fam == corev1.IPv4Protocol || fam == corev1.IPv6Protocol) && !slices.Contains(known, fam) {
			f.Invalid(families.Index(i), fam, "not configured on this cluster")
		}
	}
	check.AmongPtr(f, policy, v.IPFamilyPolicy, corev1.IPFamilyPolicySingleStack, corev1.IPFamilyPolicyPreferDualStack, corev1.IPFamilyPolicyRequireDualStack)
	var existing []string
	if old != nil {
		existing = old.Spec.ClusterIPs
	}
	count := map[corev1.IPFamily]int{}
	for i, text := range v.ClusterIPs {
		if i == 0 && text == corev1.ClusterIPNone {
			if len(v.ClusterIPs) > 1 {
				f.Invalid(ips, v.ClusterIPs, "'None' must be the first and only value")
			}
			continue
		}
		f.IP(ips.Index(i), text, existing...)
		ip, err := netip.ParseAddr(text)
		if err != nil {
			continue
		}
		count[familyOf(ip)]++
		if i < len(v.IPFamilies) && v.IPFamilies[i] != familyOf(ip) && !headless(s) {
			f.Invalid(ips.Index(i), text, fmt.Sprintf("expected an %s value as indicated by `ipFamilies[%d]`", v.IPFamilies[i], i))
		}
	}
	if len(v.ClusterIPs) > 2 {
		f.Invalid(ips, v.ClusterIPs, "may only hold up to 2 values")
	}
	if count[corev1.IPv4Protocol] > 1 || count[corev1.IPv6Protocol] > 1 {
		f.Invalid(ips, v.ClusterIPs, "may specify no more than one IP for each IP family")
	}
	switch valueOr(v.IPFamilyPolicy, "") {
	case corev1.IPFamilyPolicySingleStack:
		if len(v.ClusterIPs) == 2 {
			f.Invalid(policy, *v.IPFamilyPolicy, "must be 'RequireDualStack' or 'PreferDualStack' when multiple cluster IPs are specified")
		}
		if len(v.IPFamilies) == 2 {
			f.Invalid(policy, *v.IPFamilyPolicy, "must be 'RequireDualStack' or 'PreferDualStack' when multiple IP families are specified")
		}
	case corev1.IPFamilyPolicyRequireDualStack:
		if !loose && len(known) < 2 {
			f.Invalid(policy, *v.IPFamilyPolicy, "this cluster is not configured for dual-stack services")
		}
	}
	if old == nil || old.Spec.Type == corev1.ServiceTypeExternalName {
		return
	}
	o := &old.Spec
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

func validateServiceStatus(s, _ *service) field.ErrorList {
	var f check.Faults
	p := field.NewPath("status", "loadBalancer", "ingress")
	if len(s.Status.LoadBalancer.Ingress) > 0 && s.Spec.Type != corev1.ServiceTypeLoadBalancer {
		f.Forbidden(p, "may only be used when `spec.type` is 'LoadBalancer'")
		return f.List()
	}
	for i, in := range s.Status.LoadBalancer.Ingress {
		at := p.Index(i)
		if in.IP != "" {
			f.IP(at.Child("ip"), in.IP)
			if in.IPMode == nil {
				f.Required(at.Child("ipMode"), "must be specified when `ip` is set")
			} else {
				check.Among(&f, at.Child("ipMode"), *in.IPMode, corev1.LoadBalancerIPModeVIP, corev1.LoadBalancerIPModeProxy)
			}
		} else if in.IPMode != nil {
			f.Forbidden(at.Child("ipMode"), "may not be specified when `ip` is not set")
		}
		if in.Hostname != "" {
			f.Subdomain(at.Child("hostname"), in.Hostname)
			if _, err := netip.ParseAddr(in.Hostname); err == nil {
				f.Invalid(at.Child("hostname"), in.Hostname, "must be a DNS name, not an IP address")
			}
		}
	}
	return f.List()
}
