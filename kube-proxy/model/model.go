// Package model turns Services and EndpointSlices into the service ports of one
// address family, as one node sees them: which endpoints take traffic that comes
// from inside the cluster, and which traffic from outside.
//
// The main call is [Build]. It is pure: it reads its arguments and nothing else,
// and answers in a fixed order, so that equal input gives equal rules.
package model

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Family is an IP family.
type Family uint8

const (
	IPv4 Family = 4
	IPv6 Family = 6
)

// Has reports whether a is an address of the family.
func (f Family) Has(a netip.Addr) bool { return a.IsValid() && (a.Is4() == (f == IPv4)) }

// Node is what matters of the node that the rules are for.
type Node struct {
	Name string
	Zone string // topology.kubernetes.io/zone, may be empty
}

// Endpoint is one place where traffic of a service port can go.
type Endpoint struct {
	Addr  netip.AddrPort
	Local bool // runs on this node
}

// Port is one port of a Service.
type Port struct {
	Service  types.NamespacedName
	Name     string // the port's name, may be empty
	Protocol corev1.Protocol
	Number   uint16
	NodePort uint16 // 0: none

	ClusterIP   netip.Addr // of this family; not valid: none
	ExternalIPs []netip.Addr
	// Ingress are load balancer addresses that deliver packets unchanged (ipMode VIP).
	Ingress      []netip.Addr
	SourceRanges []netip.Prefix // who may use Ingress; empty: everybody

	AffinitySeconds int32 // ClientIP affinity; 0: none
	// InternalLocal, ExternalLocal: traffic stays on the node where it arrives.
	InternalLocal, ExternalLocal bool
	HealthCheckPort              uint16 // answers whether this node has local endpoints; 0: none

	// Cluster are the endpoints for traffic that may leave the node; Local those on
	// this node, filled only when a policy asks for them. Both are sorted. While no
	// endpoint is ready they hold those that terminate but still serve.
	Cluster, Local []Endpoint
	// Anywhere: some node has an endpoint, although this one may have none to use.
	Anywhere bool
	// Serving are all endpoints of a UDP port that still answer, whatever policy and topology say: its flows
	// may stay with them. Sorted.
	Serving []netip.AddrPort
	// LocalReady counts the ready endpoints on this node, for the health check.
	LocalReady int
}

// External reports whether the port can be reached from outside the cluster.
func (p *Port) External() bool {
	return p.NodePort != 0 || len(p.ExternalIPs) > 0 || len(p.Ingress) > 0
}

// Internal are the endpoints for traffic to the cluster address.
func (p *Port) Internal() []Endpoint {
	if p.InternalLocal {
		return p.Local
	}
	return p.Cluster
}

// Outside are the endpoints for traffic to node ports, external addresses and load balancers.
func (p *Port) Outside() []Endpoint {
	if p.ExternalLocal {
		return p.Local
	}
	return p.Cluster
}

// ID names the port: "namespace/service:port".
func (p *Port) ID() string {
	s := p.Service.String()
	if p.Name != "" {
		s += ":" + p.Name
	}
	return s
}

// Build returns the ports of the services that the proxy serves, sorted by
// service, port name and protocol. slices may hold slices of any service.
func Build(family Family, node Node, services []*corev1.Service, slicesOf func(types.NamespacedName) []*discoveryv1.EndpointSlice) []Port {
	var out []Port
	for _, svc := range services {
		out = append(out, Of(family, node, svc, slicesOf)...)
	}
	slices.SortFunc(out, func(a, b Port) int {
		return cmp.Or(strings.Compare(a.Service.Namespace, b.Service.Namespace), strings.Compare(a.Service.Name, b.Service.Name),
			strings.Compare(a.Name, b.Name), cmp.Compare(a.Number, b.Number), strings.Compare(string(a.Protocol), string(b.Protocol)))
	})
	return out
}

// Of returns the ports of one service.
func Of(family Family, node Node, svc *corev1.Service, slicesOf func(types.NamespacedName) []*discoveryv1.EndpointSlice) []Port {
	if !served(svc) {
		return nil
	}
	ip := clusterIP(family, svc)
	if !ip.IsValid() {
		return nil
	}
	name := types.NamespacedName{Namespace: svc.Namespace, Name: svc.Name}
	base := Port{
		Service: name, ClusterIP: ip, ExternalIPs: addresses(family, svc.Spec.ExternalIPs),
		InternalLocal: svc.Spec.InternalTrafficPolicy != nil && *svc.Spec.InternalTrafficPolicy == corev1.ServiceInternalTrafficPolicyLocal,
	}
	external := svc.Spec.Type == corev1.ServiceTypeNodePort || svc.Spec.Type == corev1.ServiceTypeLoadBalancer
	if external || len(base.ExternalIPs) > 0 {
		base.ExternalLocal = svc.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal
	}
	if svc.Spec.Type == corev1.ServiceTypeLoadBalancer {
		for _, in := range svc.Status.LoadBalancer.Ingress {
			if in.IPMode != nil && *in.IPMode == corev1.LoadBalancerIPModeProxy {
				continue
			}
			base.Ingress = append(base.Ingress, addresses(family, []string{in.IP})...)
		}
		for _, r := range svc.Spec.LoadBalancerSourceRanges {
			if p, err := netip.ParsePrefix(strings.TrimSpace(r)); err == nil && family.Has(p.Addr()) {
				base.SourceRanges = append(base.SourceRanges, p.Masked())
			}
		}
		base.HealthCheckPort = uint16(svc.Spec.HealthCheckNodePort)
	}
	if svc.Spec.SessionAffinity == corev1.ServiceAffinityClientIP {
		base.AffinitySeconds = corev1.DefaultClientIPServiceAffinitySeconds
		if c := svc.Spec.SessionAffinityConfig; c != nil && c.ClientIP != nil && c.ClientIP.TimeoutSeconds != nil {
			base.AffinitySeconds = *c.ClientIP.TimeoutSeconds
		}
	}
	list := slicesOf(name)
	out := make([]Port, 0, len(svc.Spec.Ports))
	for i := range svc.Spec.Ports {
		sp := &svc.Spec.Ports[i]
		p := base
		p.Name, p.Number, p.Protocol = sp.Name, uint16(sp.Port), sp.Protocol
		if p.Protocol == "" {
			p.Protocol = corev1.ProtocolTCP
		}
		if external {
			p.NodePort = uint16(sp.NodePort)
		}
		p.endpoints(family, node, list)
		out = append(out, p)
	}
	return out
}

// served leaves out what others handle: headless and external names, and other proxies' services.
func served(svc *corev1.Service) bool {
	_, others := svc.Labels["service.kubernetes.io/service-proxy-name"]
	return svc.Spec.Type != corev1.ServiceTypeExternalName && svc.Spec.ClusterIP != corev1.ClusterIPNone && svc.Spec.ClusterIP != "" &&
		!others
}

func clusterIP(family Family, svc *corev1.Service) netip.Addr {
	for _, s := range append(slices.Clone(svc.Spec.ClusterIPs), svc.Spec.ClusterIP) {
		if a, err := netip.ParseAddr(s); err == nil && family.Has(a) {
			return a
		}
	}
	return netip.Addr{}
}

func addresses(family Family, list []string) []netip.Addr {
	var out []netip.Addr
	for _, s := range list {
		if a, err := netip.ParseAddr(s); err == nil && family.Has(a) {
			out = append(out, a)
		}
	}
	return out
}

// seen is one endpoint with its conditions.
type seen struct {
	Endpoint
	ready, serving, terminating bool
	hints                       *discoveryv1.EndpointHints
}

// endpoints fills in what the port's traffic can go to.
//
// Source: KEP-1669 (terminating endpoints), KEP-2433 and KEP-4444 (traffic distribution).
func (p *Port) endpoints(family Family, node Node, list []*discoveryv1.EndpointSlice) {
	all := p.collect(family, node, list)
	if p.Protocol == corev1.ProtocolUDP {
		for i := range all {
			if all[i].serving {
				p.Serving = append(p.Serving, all[i].Addr)
			}
		}
	}
	ready := pick(all, func(e *seen) bool { return e.ready })
	for _, e := range ready {
		if e.Local {
			p.LocalReady++
		}
	}
	usable := ready
	if len(usable) == 0 {
		usable = pick(all, func(e *seen) bool { return e.serving && e.terminating })
	}
	p.Cluster = bare(nearby(usable, node))
	p.Anywhere = len(usable) > 0
	if p.InternalLocal || p.ExternalLocal {
		local := pick(all, func(e *seen) bool { return e.Local && e.ready })
		if len(local) == 0 {
			local = pick(all, func(e *seen) bool { return e.Local && e.serving && e.terminating })
		}
		p.Local = bare(local)
	}
}

// collect reads the slices of the family that a proxy may use (those labelled headless are for DNS alone); an address that is in two slices counts once, at its best.
func (p *Port) collect(family Family, node Node, list []*discoveryv1.EndpointSlice) []seen {
	want := discoveryv1.AddressTypeIPv4
	if family == IPv6 {
		want = discoveryv1.AddressTypeIPv6
	}
	at := map[netip.AddrPort]int{}
	var all []seen
	for _, es := range list {
		if _, headless := es.Labels[corev1.IsHeadlessService]; headless || es.AddressType != want || es.DeletionTimestamp != nil {
			continue
		}
		for _, ep := range es.Ports {
			if ep.Port == nil || deref(ep.Name) != p.Name || ep.Protocol != nil && *ep.Protocol != p.Protocol {
				continue
			}
			for i := range es.Endpoints {
				e := &es.Endpoints[i]
				if len(e.Addresses) == 0 {
					continue
				}
				a, err := netip.ParseAddr(e.Addresses[0])
				if err != nil || !family.Has(a) {
					continue
				}
				s := seen{
					Endpoint: Endpoint{Addr: netip.AddrPortFrom(a, uint16(*ep.Port)), Local: deref(e.NodeName) == node.Name && node.Name != ""},
					ready:    e.Conditions.Ready == nil || *e.Conditions.Ready, hints: e.Hints,
				}
				s.serving = s.ready
				if e.Conditions.Serving != nil {
					s.serving = *e.Conditions.Serving
				}
				s.terminating = e.Conditions.Terminating != nil && *e.Conditions.Terminating
				if j, ok := at[s.Addr]; ok {
					if !all[j].ready && s.ready {
						all[j] = s
					}
					continue
				}
				at[s.Addr] = len(all)
				all = append(all, s)
			}
		}
	}
	slices.SortFunc(all, func(a, b seen) int { return a.Addr.Compare(b.Addr) })
	return all
}

func deref(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

func pick(all []seen, keep func(*seen) bool) []seen {
	var out []seen
	for i := range all {
		if keep(&all[i]) {
			out = append(out, all[i])
		}
	}
	return out
}

func bare(all []seen) []Endpoint {
	if len(all) == 0 {
		return nil
	}
	out := make([]Endpoint, len(all))
	for i := range all {
		out[i] = all[i].Endpoint
	}
	return out
}

// nearby follows hints when every endpoint has them and they name this node or
// its zone for at least one; otherwise all endpoints are as good.
func nearby(all []seen, node Node) []seen {
	byNode := hinted(all, func(h *discoveryv1.EndpointHints) (has, mine bool) {
		for _, n := range h.ForNodes {
			mine = mine || n.Name == node.Name
		}
		return len(h.ForNodes) > 0, mine
	})
	if byNode != nil {
		return byNode
	}
	if node.Zone == "" {
		return all
	}
	byZone := hinted(all, func(h *discoveryv1.EndpointHints) (has, mine bool) {
		for _, z := range h.ForZones {
			mine = mine || z.Name == node.Zone
		}
		return len(h.ForZones) > 0, mine
	})
	if byZone != nil {
		return byZone
	}
	return all
}

func hinted(all []seen, look func(*discoveryv1.EndpointHints) (has, mine bool)) []seen {
	var out []seen
	for i := range all {
		if all[i].hints == nil {
			return nil
		}
		has, mine := look(all[i].hints)
		if !has {
			return nil
		}
		if mine {
			out = append(out, all[i])
		}
	}
	return out
}
