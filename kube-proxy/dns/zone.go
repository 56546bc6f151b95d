// Package dns answers cluster DNS on the node: names of services and pods from the
// proxy's own caches, everything else from the machine's resolvers, with a cache.
//
// [Zone.Answer] decides and reads only what it is given; [Server] serves UDP and TCP.
// It needs neither the control plane nor another machine for cluster names.
//
// Source: Kubernetes DNS-Based Service Discovery specification 1.1.0; RFC 1035, 2308.
package dns

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"
)

// ttl of cluster records, in seconds: short, as clients cache and endpoints move.
const ttl = 5

// specVersion is the version of the DNS specification, at dns-version.<domain>.
const specVersion = "1.1.0"

// Source is the state that names are answered from.
type Source interface {
	Service(types.NamespacedName) *corev1.Service
	Slices(types.NamespacedName) []*discoveryv1.EndpointSlice
	Namespace(name string) bool // whether any service is in the namespace
	// ServiceAt and EndpointsAt find what has an address.
	ServiceAt(netip.Addr) *corev1.Service
	SlicesAt(netip.Addr) []*discoveryv1.EndpointSlice
}

// Zone is the cluster's domain.
type Zone struct {
	Domain string // "cluster.local.", with the final dot
	Source Source
}

// Reply is an answer about cluster names.
type Reply struct {
	Ours   bool // false: the name belongs to somebody else
	Exists bool // false: NXDOMAIN
	Answer []dns.RR
	Extra  []dns.RR
	// Chase is an external name that the client will want too.
	Chase string
}

// Answer looks a question up.
func (z *Zone) Answer(q dns.Question) Reply {
	name := strings.ToLower(q.Name)
	if q.Qtype == dns.TypePTR {
		return z.reverse(q, name)
	}
	rest, ok := strings.CutSuffix(name, "."+z.Domain)
	if !ok {
		if name == z.Domain {
			return Reply{Ours: true, Exists: true}
		}
		return Reply{}
	}
	labels := strings.Split(rest, ".")
	n := len(labels)
	switch {
	case rest == "dns-version":
		r := Reply{Ours: true, Exists: true}
		if q.Qtype == dns.TypeTXT || q.Qtype == dns.TypeANY {
			r.Answer = append(r.Answer, &dns.TXT{Hdr: header(q.Name, dns.TypeTXT), Txt: []string{specVersion}})
		}
		return r
	case labels[n-1] == "svc":
		return z.service(q, labels[:n-1])
	case labels[n-1] == "pod":
		return z.pod(q, labels[:n-1])
	}
	return Reply{Ours: true}
}

func header(name string, t uint16) dns.RR_Header {
	return dns.RR_Header{Name: name, Rrtype: t, Class: dns.ClassINET, Ttl: ttl}
}

// address adds an A or AAAA record, if it is asked for.
func (r *Reply) address(q dns.Question, name string, ip netip.Addr) {
	if a := record(name, ip); a != nil && (q.Qtype == a.Header().Rrtype || q.Qtype == dns.TypeANY) {
		r.Answer = append(r.Answer, a)
	}
}

func record(name string, ip netip.Addr) dns.RR {
	switch {
	case ip.Is4():
		return &dns.A{Hdr: header(name, dns.TypeA), A: ip.AsSlice()}
	case ip.Is6():
		return &dns.AAAA{Hdr: header(name, dns.TypeAAAA), AAAA: ip.AsSlice()}
	}
	return nil
}

// service answers [..]<service>.<namespace>.svc.
func (z *Zone) service(q dns.Question, labels []string) Reply {
	n := len(labels)
	if n == 0 {
		return Reply{Ours: true, Exists: true}
	}
	namespace := labels[n-1]
	if n == 1 {
		return Reply{Ours: true, Exists: z.Source.Namespace(namespace)}
	}
	svc := z.Source.Service(types.NamespacedName{Namespace: namespace, Name: labels[n-2]})
	if svc == nil {
		return Reply{Ours: true}
	}
	front := labels[:n-2]
	if svc.Spec.Type == corev1.ServiceTypeExternalName {
		r := Reply{Ours: true, Exists: len(front) == 0}
		if r.Exists {
			target := dns.Fqdn(svc.Spec.ExternalName)
			r.Answer = append(r.Answer, &dns.CNAME{Hdr: header(q.Name, dns.TypeCNAME), Target: target})
			if q.Qtype != dns.TypeCNAME {
				r.Chase = target
			}
		}
		return r
	}
	if svc.Spec.ClusterIP == corev1.ClusterIPNone {
		return z.headless(q, svc, front)
	}
	base := z.name(svc)
	switch {
	case len(front) == 0:
		r := Reply{Ours: true, Exists: true}
		for _, ip := range clusterIPs(svc) {
			r.address(q, q.Name, ip)
		}
		if q.Qtype == dns.TypeSRV {
			for i := range svc.Spec.Ports {
				r.srv(q.Name, base, uint16(svc.Spec.Ports[i].Port), clusterIPs(svc))
			}
		}
		return r
	case len(front) == 2:
		r := Reply{Ours: true}
		for i := range svc.Spec.Ports {
			p := &svc.Spec.Ports[i]
			if front[0] == "_"+p.Name && front[1] == "_"+strings.ToLower(string(p.Protocol)) {
				r.Exists = true
				if q.Qtype == dns.TypeSRV || q.Qtype == dns.TypeANY {
					r.srv(q.Name, base, uint16(p.Port), clusterIPs(svc))
				}
			}
		}
		return r
	}
	return Reply{Ours: true}
}

// srv adds a service record and, beside it, the addresses of its target.
func (r *Reply) srv(name, target string, port uint16, ips []netip.Addr) {
	r.Answer = append(r.Answer, &dns.SRV{Hdr: header(name, dns.TypeSRV), Priority: 0, Weight: 100, Port: port, Target: target})
	for _, ip := range ips {
		if a := record(target, ip); a != nil {
			r.Extra = append(r.Extra, a)
		}
	}
}

func clusterIPs(svc *corev1.Service) []netip.Addr {
	list := svc.Spec.ClusterIPs
	if len(list) == 0 {
		list = []string{svc.Spec.ClusterIP}
	}
	var out []netip.Addr
	for _, s := range list {
		if a, err := netip.ParseAddr(s); err == nil {
			out = append(out, a)
		}
	}
	return out
}

func (z *Zone) name(svc *corev1.Service) string {
	return svc.Name + "." + svc.Namespace + ".svc." + z.Domain
}

// member is one endpoint of a headless service.
type member struct {
	host  string // its label
	ip    netip.Addr
	ports []discoveryv1.EndpointPort
}

// members are the endpoints that may be named: those that are ready.
func (z *Zone) members(svc *corev1.Service) []member {
	var out []member
	for _, es := range z.Source.Slices(types.NamespacedName{Namespace: svc.Namespace, Name: svc.Name}) {
		for i := range es.Endpoints {
			e := &es.Endpoints[i]
			if e.Conditions.Ready != nil && !*e.Conditions.Ready && !svc.Spec.PublishNotReadyAddresses {
				continue
			}
			for _, s := range e.Addresses {
				if ip, err := netip.ParseAddr(s); err == nil {
					out = append(out, member{host: hostLabel(e, ip), ip: ip, ports: es.Ports})
				}
			}
		}
	}
	return out
}

// hostLabel is the endpoint's hostname, or its address with dashes.
func hostLabel(e *discoveryv1.Endpoint, ip netip.Addr) string {
	if e.Hostname != nil && *e.Hostname != "" {
		return *e.Hostname
	}
	return strings.NewReplacer(".", "-", ":", "-").Replace(ip.String())
}

func (z *Zone) headless(q dns.Question, svc *corev1.Service, front []string) Reply {
	members := z.members(svc)
	base := z.name(svc)
	r := Reply{Ours: true}
	switch len(front) {
	case 0:
		r.Exists = true
		seen := map[netip.Addr]bool{}
		for _, m := range members {
			if !seen[m.ip] {
				seen[m.ip] = true
				r.address(q, q.Name, m.ip)
			}
		}
		if q.Qtype == dns.TypeSRV {
			for _, m := range members {
				for _, p := range m.ports {
					if p.Port != nil {
						r.srv(q.Name, m.host+"."+base, uint16(*p.Port), []netip.Addr{m.ip})
					}
				}
			}
		}
	case 1:
		for _, m := range members {
			if strings.EqualFold(m.host, front[0]) {
				r.Exists = true
				r.address(q, q.Name, m.ip)
			}
		}
	case 2:
		for _, m := range members {
			for _, p := range m.ports {
				if p.Name == nil || p.Port == nil || front[0] != "_"+*p.Name || p.Protocol == nil || front[1] != "_"+strings.ToLower(string(*p.Protocol)) {
					continue
				}
				r.Exists = true
				if q.Qtype == dns.TypeSRV || q.Qtype == dns.TypeANY {
					r.srv(q.Name, m.host+"."+base, uint16(*p.Port), []netip.Addr{m.ip})
				}
			}
		}
	}
	return r
}

// pod answers <a-b-c-d>.<namespace>.pod: the address itself, whether such a pod exists or not.
func (z *Zone) pod(q dns.Question, labels []string) Reply {
	r := Reply{Ours: true}
	if len(labels) < 2 {
		r.Exists = true
		return r
	}
	if len(labels) != 2 {
		return r
	}
	ip, err := netip.ParseAddr(strings.ReplaceAll(labels[0], "-", "."))
	if err != nil {
		ip, err = netip.ParseAddr(strings.ReplaceAll(labels[0], "-", ":"))
	}
	if err != nil {
		return r
	}
	r.Exists = true
	r.address(q, q.Name, ip)
	return r
}

// reverse answers for addresses of services and of endpoints of headless services.
func (z *Zone) reverse(q dns.Question, name string) Reply {
	ip, ok := reverseAddr(name)
	if !ok {
		return Reply{}
	}
	if svc := z.Source.ServiceAt(ip); svc != nil {
		return Reply{Ours: true, Exists: true, Answer: []dns.RR{&dns.PTR{Hdr: header(q.Name, dns.TypePTR), Ptr: z.name(svc)}}}
	}
	r := Reply{}
	for _, es := range z.Source.SlicesAt(ip) {
		svc := z.Source.Service(types.NamespacedName{Namespace: es.Namespace, Name: es.Labels[discoveryv1.LabelServiceName]})
		if svc == nil || svc.Spec.ClusterIP != corev1.ClusterIPNone {
			continue
		}
		for _, m := range z.members(svc) {
			if m.ip == ip {
				r.Ours, r.Exists = true, true
				r.Answer = append(r.Answer, &dns.PTR{Hdr: header(q.Name, dns.TypePTR), Ptr: m.host + "." + z.name(svc)})
				break
			}
		}
	}
	return r
}

// reverseAddr reads "4.3.2.1.in-addr.arpa." and its IPv6 form.
func reverseAddr(name string) (netip.Addr, bool) {
	if s, ok := strings.CutSuffix(name, ".in-addr.arpa."); ok {
		p := strings.Split(s, ".")
		if len(p) != 4 {
			return netip.Addr{}, false
		}
		a, err := netip.ParseAddr(p[3] + "." + p[2] + "." + p[1] + "." + p[0])
		return a, err == nil
	}
	if s, ok := strings.CutSuffix(name, ".ip6.arpa."); ok {
		p := strings.Split(s, ".")
		if len(p) != 32 {
			return netip.Addr{}, false
		}
		var b strings.Builder
		for i := 31; i >= 0; i-- {
			b.WriteString(p[i])
			if i%4 == 0 && i > 0 {
				b.WriteByte(':')
			}
		}
		a, err := netip.ParseAddr(b.String())
		return a, err == nil
	}
	return netip.Addr{}, false
}

// SOA is sent with answers that say no, so that resolvers remember them for a while only.
func (z *Zone) SOA() dns.RR {
	h := header(z.Domain, dns.TypeSOA)
	return &dns.SOA{
		Hdr: h, Ns: fmt.Sprintf("ns.dns.%s", z.Domain), Mbox: fmt.Sprintf("hostmaster.%s", z.Domain),
		Serial: 1, Refresh: 7200, Retry: 1800, Expire: 86400, Minttl: ttl,
	}
}
