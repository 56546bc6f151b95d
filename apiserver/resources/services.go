package resources

import (
	"fmt"
	"slices"
	"sort"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/intstr"
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
			Warnings: func(_ *Request, obj, _ *service) []string { return serviceWarnings(obj) },
			Reset:    []string{"status"},
		},
		Status: &Part[service]{
			Prepare:  keepSpec(func(s *service) *corev1.ServiceSpec { return &s.Spec }),
			Validate: withoutRequest(validateServiceStatus),
			Warnings: func(_ *Request, s, _ *service) []string {
				var out []string
				for n, in := range s.Status.LoadBalancer.Ingress {
					out = append(out, balancerWarnings(n, in.IP)...)
				}
				return out
			},
			Reset: []string{"spec"},
		},
		Subs: []Sub{{
			Name: "proxy", Verbs: []string{"create", "delete", "get", "patch", "update"},
			Kind: schema.GroupVersionKind{Version: "v1", Kind: "ServiceProxyOptions"},
		}},
		Allocate: a.allocate,
		Fields: func(s *service) fields.Set {
			return fields.Set{"spec.clusterIP": s.Spec.ClusterIP, "spec.type": string(s.Spec.Type)}
		},
		FieldNames: []string{"spec.clusterIP", "spec.type"},
		Docs: map[string]string{
			"Type":        corev1.ServiceSpec{}.SwaggerDoc()["type"],
			"Cluster-IP":  corev1.ServiceSpec{}.SwaggerDoc()["clusterIP"],
			"External-IP": corev1.ServiceSpec{}.SwaggerDoc()["externalIPs"],
			"Port(s)":     corev1.ServiceSpec{}.SwaggerDoc()["ports"],
			"Selector":    corev1.ServiceSpec{}.SwaggerDoc()["selector"],
		},
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
	} else if t := valueOr(p.InternalTrafficPolicy, ""); t == corev1.ServiceInternalTrafficPolicyCluster || t == corev1.ServiceInternalTrafficPolicyLocal {
		p.InternalTrafficPolicy = nil // it means nothing there, and upstream does not show it
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
	}
	syncClusterIPs(s, old)
	if old != nil {
		keepAllocated(s, old)
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
		if p.ClusterIP != "" && len(p.ClusterIPs) == 0 {
			p.ClusterIPs = []string{p.ClusterIP} // from a client that does not know the plural
		}
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
	known := cfg.families()
	for i, text := range p.ClusterIPs {
		if ip, ok := check.ParseIP(text); ok && i == len(p.IPFamilies) {
			if !slices.Contains(known, familyOf(ip)) {
				return
			}
			p.IPFamilies = append(p.IPFamilies, familyOf(ip))
		}
	}
	if len(p.IPFamilies) == 0 && len(known) > 0 {
		p.IPFamilies = []corev1.IPFamily{known[0]}
	}
	if !single && len(p.IPFamilies) == 1 && (loose || len(known) == 2) {
		p.IPFamilies = append(p.IPFamilies, otherFamily(p.IPFamilies[0]))
	}
}
