// Package rules turns service ports into the text of iptables chains. It is
// pure: [Build] reads its arguments and nothing else, and equal input gives equal
// text, so that only chains whose text differs have to be restored.
//
// How a packet walks (table nat; names in brackets exist only where needed):
//
//	PREROUTING, OUTPUT
//	  KUBE-SERVICES        by cluster address  -> KUBE-SVC-x      or KUBE-SVL-x with a local policy
//	                       by external address -> KUBE-EXT-x      [KUBE-FW-x checks source ranges first]
//	                       else, own address   -> KUBE-NODEPORTS -> KUBE-EXT-x
//	  KUBE-EXT-x           marks for masquerade (not with a local policy) -> KUBE-SVC-x or KUBE-SVL-x
//	  KUBE-SVC-x, -SVL-x   choose one KUBE-SEP-x at random, or the one that the client had before
//	  KUBE-SEP-x           marks a pod that talks to itself; DNAT
//	POSTROUTING
//	  KUBE-POSTROUTING     masquerades what is marked
//
// Table filter refuses what has no endpoint (KUBE-SERVICES, KUBE-EXTERNAL-SERVICES)
// and lets marked and established traffic through (KUBE-FORWARD).
//
// Chain names are those of kube-proxy, so that tools that know them keep working.
package rules

import (
	"crypto/sha256"
	"encoding/base32"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/keelson/keelson/kube-proxy/model"
)

// MasqueradeMark is the packet mark of traffic that has to be masqueraded.
const MasqueradeMark = "0x4000/0x4000"

// Config is what the rules need to know of the node.
type Config struct {
	Family model.Family
	// PodCIDRs are where pods are: other traffic to cluster addresses is masqueraded. Empty: none is.
	PodCIDRs []netip.Prefix
	// OwnPods are this node's ranges: what their pods send out of the cluster is masqueraded.
	OwnPods []netip.Prefix
	// MasqueradeAll masquerades everything that goes to a cluster address.
	MasqueradeAll bool
	// NodePortAddresses are the node's own prefixes that answer on node ports; empty: all its addresses.
	NodePortAddresses []netip.Prefix
	// LocalhostNodePorts also answers on loopback (IPv4 only).
	LocalhostNodePorts bool
	// RandomFully: the kernel and the iptables command know MASQUERADE --random-fully.
	RandomFully bool
	// Skip are cluster addresses that the node answers itself (cluster DNS): no rules are made for them.
	Skip []netip.Addr
}

// Table is the chains of one iptables table, by name.
type Table map[string]Chain

// Chain is the rules of one chain: one per line, each starting with "-A NAME".
type Chain string

// Ruleset is everything that the proxy wants to stand in the kernel.
type Ruleset struct {
	NAT, Filter Table
	// Jumps are rules in the kernel's own chains, put first, in this order.
	Jumps []Jump
}

// Jump is a rule of a built-in chain that leads into one of ours.
type Jump struct {
	Table, Chain string
	Rule         []string // as arguments, without -A CHAIN
}

const (
	services   = "KUBE-SERVICES"
	nodePorts  = "KUBE-NODEPORTS"
	external   = "KUBE-EXTERNAL-SERVICES"
	post       = "KUBE-POSTROUTING"
	mark       = "KUBE-MARK-MASQ"
	forward    = "KUBE-FORWARD"
	firewall   = "KUBE-FIREWALL"
	proxyWall  = "KUBE-PROXY-FIREWALL"
	canary     = "KUBE-PROXY-CANARY"
	egress     = "KEELSON-EGRESS"
	podForward = "KEELSON-FORWARD"
)

// Canary is a chain that is in every table as long as our rules are: when it is
// gone, somebody has flushed the table.
const Canary = canary

// builder collects the lines of chains.
type builder struct {
	cfg         Config
	nat, filter map[string]*strings.Builder
	skip        map[netip.Addr]bool
}

func (b *builder) natf(chain, format string, args ...any)    { add(b.nat, chain, format, args...) }
func (b *builder) filterf(chain, format string, args ...any) { add(b.filter, chain, format, args...) }

func add(t map[string]*strings.Builder, chain, format string, args ...any) {
	s := open(t, chain)
	s.WriteString("-A " + chain + " ")
	fmt.Fprintf(s, format, args...)
	s.WriteByte('\n')
}

// open makes a chain exist, even without rules.
func open(t map[string]*strings.Builder, chain string) *strings.Builder {
	s := t[chain]
	if s == nil {
		s = &strings.Builder{}
		t[chain] = s
	}
	return s
}

// Build returns the chains for ports.
func Build(cfg Config, ports []model.Port) Ruleset {
	b := &builder{cfg: cfg, nat: map[string]*strings.Builder{}, filter: map[string]*strings.Builder{}, skip: map[netip.Addr]bool{}}
	for _, a := range cfg.Skip {
		b.skip[a] = true
	}
	for _, c := range []string{services, nodePorts, post, mark, egress, canary} {
		open(b.nat, c)
	}
	for _, c := range []string{services, nodePorts, external, forward, podForward, firewall, proxyWall, canary} {
		open(b.filter, c)
	}
	b.fixed()
	for i := range ports {
		if !b.skip[ports[i].ClusterIP] {
			b.port(&ports[i])
		}
	}
	b.nodePortJump()
	return Ruleset{NAT: table(b.nat), Filter: table(b.filter), Jumps: jumps(cfg)}
}

func table(m map[string]*strings.Builder) Table {
	t := make(Table, len(m))
	for name, s := range m {
		t[name] = Chain(s.String())
	}
	return t
}

func jumps(cfg Config) []Jump {
	comment := func(text string) []string { return []string{"-m", "comment", "--comment", text} }
	j := func(table, chain, to, text string, match ...string) Jump {
		return Jump{Table: table, Chain: chain, Rule: append(append(match, comment(text)...), "-j", to)}
	}
	fresh := []string{"-m", "conntrack", "--ctstate", "NEW"}
	out := []Jump{
		j("nat", "PREROUTING", services, "kubernetes service portals"),
		j("nat", "OUTPUT", services, "kubernetes service portals"),
		j("nat", "POSTROUTING", post, "kubernetes postrouting rules"),
		j("nat", "POSTROUTING", egress, "pods to the outside"),
		j("filter", "INPUT", proxyWall, "kubernetes load balancer firewall", fresh...),
		j("filter", "INPUT", nodePorts, "kubernetes health check service ports"),
		j("filter", "INPUT", external, "kubernetes externally-visible service portals", fresh...),
		j("filter", "INPUT", firewall, "kubernetes firewall"),
		j("filter", "FORWARD", proxyWall, "kubernetes load balancer firewall", fresh...),
		j("filter", "FORWARD", forward, "kubernetes forwarding rules"),
		j("filter", "FORWARD", services, "kubernetes service portals", fresh...),
		j("filter", "FORWARD", external, "kubernetes externally-visible service portals", fresh...),
		j("filter", "FORWARD", podForward, "traffic of pods"), // after what refuses traffic to services without endpoints
		j("filter", "OUTPUT", proxyWall, "kubernetes load balancer firewall", fresh...),
		j("filter", "OUTPUT", services, "kubernetes service portals", fresh...),
		j("filter", "OUTPUT", firewall, "kubernetes firewall"),
	}
	return out
}

// fixed are the rules that do not depend on any service.
func (b *builder) fixed() {
	b.natf(mark, "-j MARK --or-mark 0x4000")
	b.natf(post, "-m mark ! --mark %s -j RETURN", MasqueradeMark)
	b.natf(post, "-j MARK --xor-mark 0x4000") // the packet may pass here again, through a tunnel
	full := ""
	if b.cfg.RandomFully {
		full = " --random-fully"
	}
	b.natf(post, `-m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE%s`, full)

	for _, own := range b.cfg.OwnPods {
		for _, c := range b.cfg.PodCIDRs {
			b.natf(egress, "-s %s -d %s -j RETURN", own, c)
		}
		multicast := "224.0.0.0/4"
		if b.cfg.Family == model.IPv6 {
			multicast = "ff00::/8"
		}
		b.natf(egress, "-s %s ! -d %s -j MASQUERADE%s", own, multicast, full)
	}

	// A packet that conntrack cannot place would leave with the pod's address instead of the service's.
	b.filterf(forward, "-m conntrack --ctstate INVALID -j DROP")
	b.filterf(forward, `-m comment --comment "kubernetes forwarding rules" -m mark --mark %s -j ACCEPT`, MasqueradeMark)
	b.filterf(forward, `-m comment --comment "kubernetes forwarding conntrack rule" -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT`)
	for _, c := range b.cfg.PodCIDRs {
		b.filterf(podForward, `-s %s -m comment --comment "pods talk to anybody" -j ACCEPT`, c)
		b.filterf(podForward, `-d %s -m comment --comment "anybody talks to pods" -j ACCEPT`, c)
	}
	if b.cfg.Family == model.IPv4 && b.cfg.LocalhostNodePorts {
		// route_localnet lets loopback addresses in from outside: CVE-2020-8558.
		b.filterf(firewall, `! -s 127.0.0.0/8 -d 127.0.0.0/8 -m comment --comment "block incoming localnet connections" -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP`)
	}
}

// nodePortJump comes last: only what no other rule has taken can be for a node port.
func (b *builder) nodePortJump() {
	const text = `-m comment --comment "kubernetes service nodeports; NOTE: this must be the last rule in this chain"`
	if len(b.cfg.NodePortAddresses) == 0 {
		notLoopback := ""
		if b.cfg.Family == model.IPv6 || !b.cfg.LocalhostNodePorts {
			loop := "127.0.0.0/8"
			if b.cfg.Family == model.IPv6 {
				loop = "::1/128"
			}
			notLoopback = "! -d " + loop + " "
		}
		b.natf(services, "%s%s -m addrtype --dst-type LOCAL -j %s", notLoopback, text, nodePorts)
		return
	}
	for _, p := range b.cfg.NodePortAddresses {
		b.natf(services, "-d %s %s -m addrtype --dst-type LOCAL -j %s", p, text, nodePorts)
	}
}

// hash is the suffix of a chain's name: 16 characters, so that the name fits iptables' 28.
func hash(parts ...string) string {
	sum := sha256.Sum256([]byte(strings.Join(parts, "")))
	return base32.StdEncoding.EncodeToString(sum[:])[:16]
}

func proto(p *model.Port) string { return strings.ToLower(string(p.Protocol)) }

// ServiceChain, LocalChain, ExternalChain and FirewallChain name a port's chains.
func ServiceChain(p *model.Port) string  { return "KUBE-SVC-" + hash(p.ID(), proto(p)) }
func LocalChain(p *model.Port) string    { return "KUBE-SVL-" + hash(p.ID(), proto(p)) }
func ExternalChain(p *model.Port) string { return "KUBE-EXT-" + hash(p.ID(), proto(p)) }
func FirewallChain(p *model.Port) string { return "KUBE-FW-" + hash(p.ID(), proto(p)) }

// EndpointChain names the chain of one endpoint of a port.
func EndpointChain(p *model.Port, e model.Endpoint) string {
	return "KUBE-SEP-" + hash(p.ID(), proto(p), e.Addr.String())
}

// port writes the rules of one service port.
func (b *builder) port(p *model.Port) {
	if p.HealthCheckPort != 0 {
		b.filterf(nodePorts, `-p tcp -m comment --comment "%s health check node port" -m tcp --dport %d -j ACCEPT`, p.Service, p.HealthCheckPort)
	}
	svc, svl, ext := ServiceChain(p), LocalChain(p), ExternalChain(p)
	internal, outside := p.Internal(), p.Outside()

	if len(p.Cluster) > 0 && (!p.InternalLocal || p.External()) {
		b.masqueradeOutsiders(p, svc, p.InternalLocal)
		b.spread(p, svc, p.Cluster)
	}
	if len(p.Local) > 0 {
		if p.InternalLocal {
			b.masqueradeOutsiders(p, svl, false)
		}
		b.spread(p, svl, p.Local)
	}
	to := svc
	if p.InternalLocal {
		to = svl
	}
	at := func(ip netip.Addr) string {
		return fmt.Sprintf("-d %s -p %s -m %s --dport %d", prefix(ip), proto(p), proto(p), p.Number)
	}
	switch {
	case len(internal) > 0:
		b.natf(services, `%s -m comment --comment "%s cluster IP" -j %s`, at(p.ClusterIP), p.ID(), to)
	case p.InternalLocal && p.Anywhere:
		b.filterf(services, `%s -m comment --comment "%s has no local endpoints" -j DROP`, at(p.ClusterIP), p.ID())
	default:
		b.filterf(services, `%s -m comment --comment "%s has no endpoints" -j REJECT`, at(p.ClusterIP), p.ID())
	}
	if !p.External() {
		return
	}
	usable := len(outside) > 0 || p.ExternalLocal && len(p.Cluster) > 0
	if usable {
		b.externalChain(p, ext, svc, svl)
	}
	verdict, why := "REJECT", "has no endpoints"
	if p.ExternalLocal && p.Anywhere {
		verdict, why = "DROP", "has no local endpoints"
	}
	for _, ip := range p.ExternalIPs {
		if usable {
			b.natf(services, `%s -m comment --comment "%s external IP" -j %s`, at(ip), p.ID(), ext)
		}
		if len(outside) == 0 {
			b.filterf(external, `%s -m comment --comment "%s %s" -j %s`, at(ip), p.ID(), why, verdict)
		}
	}
	for _, ip := range p.Ingress {
		if usable {
			b.natf(services, `%s -m comment --comment "%s loadbalancer IP" -j %s`, at(ip), p.ID(), b.ingressChain(p, ext))
		}
		if len(p.SourceRanges) > 0 {
			b.filterf(proxyWall, `%s -m comment --comment "%s traffic not accepted by %s" -j DROP`, at(ip), p.ID(), FirewallChain(p))
		}
		if len(outside) == 0 {
			b.filterf(external, `%s -m comment --comment "%s %s" -j %s`, at(ip), p.ID(), why, verdict)
		}
	}
	if p.NodePort != 0 {
		port := fmt.Sprintf("-p %s -m %s --dport %d", proto(p), proto(p), p.NodePort)
		if usable {
			b.natf(nodePorts, `%s -m comment --comment "%s" -j %s`, port, p.ID(), ext)
		}
		if len(outside) == 0 {
			b.filterf(external, `-m addrtype --dst-type LOCAL %s -m comment --comment "%s %s" -j %s`, port, p.ID(), why, verdict)
		}
	}
}

// masqueradeOutsiders marks traffic to the cluster address whose answer would not find its way back here.
func (b *builder) masqueradeOutsiders(p *model.Port, chain string, skip bool) {
	if skip {
		return
	}
	at := fmt.Sprintf("-d %s -p %s -m %s --dport %d", prefix(p.ClusterIP), proto(p), proto(p), p.Number)
	switch {
	case b.cfg.MasqueradeAll:
		b.natf(chain, `%s -m comment --comment "%s cluster IP" -j %s`, at, p.ID(), mark)
	case len(b.cfg.PodCIDRs) == 1:
		b.natf(chain, `! -s %s %s -m comment --comment "%s cluster IP" -j %s`, b.cfg.PodCIDRs[0], at, p.ID(), mark)
	}
}

// ingressChain is where load balancer traffic goes: through the check of source ranges, if there is one.
func (b *builder) ingressChain(p *model.Port, ext string) string {
	if len(p.SourceRanges) == 0 {
		return ext
	}
	fw := FirewallChain(p)
	if _, done := b.nat[fw]; done {
		return fw
	}
	open(b.nat, fw)
	for _, r := range p.SourceRanges {
		b.natf(fw, `-s %s -m comment --comment "%s loadbalancer IP" -j %s`, r, p.ID(), ext)
	}
	// Traffic from this node to the balancer's address has that address as its source.
	for _, ip := range p.Ingress {
		b.natf(fw, `-s %s -m comment --comment "%s loadbalancer IP" -j %s`, prefix(ip), p.ID(), ext)
	}
	b.natf(fw, `-m comment --comment "other traffic to %s will be dropped by KUBE-PROXY-FIREWALL"`, p.ID())
	return fw
}

// externalChain is the common way of all traffic from outside.
func (b *builder) externalChain(p *model.Port, ext, svc, svl string) {
	if !p.ExternalLocal {
		b.natf(ext, `-m comment --comment "masquerade traffic for %s external destinations" -j %s`, p.ID(), mark)
		b.natf(ext, "-j %s", svc)
		return
	}
	// The client's address is kept. Pods and this node itself are not outside: they may use any endpoint.
	if len(p.Cluster) > 0 {
		for _, c := range b.cfg.PodCIDRs {
			b.natf(ext, `-s %s -m comment --comment "pod traffic for %s external destinations" -j %s`, c, p.ID(), svc)
		}
		b.natf(ext, `-m comment --comment "masquerade LOCAL traffic for %s external destinations" -m addrtype --src-type LOCAL -j %s`, p.ID(), mark)
		b.natf(ext, `-m comment --comment "route LOCAL traffic for %s external destinations" -m addrtype --src-type LOCAL -j %s`, p.ID(), svc)
	}
	if len(p.Local) > 0 {
		b.natf(ext, "-j %s", svl)
	}
}

// spread sends each new connection to one endpoint: all with the same probability.
func (b *builder) spread(p *model.Port, chain string, list []model.Endpoint) {
	for _, e := range list {
		b.endpoint(p, e)
	}
	if p.AffinitySeconds > 0 {
		for _, e := range list {
			sep := EndpointChain(p, e)
			b.natf(chain, `-m comment --comment "%s -> %s" -m recent --name %s --rcheck --seconds %d --reap --rsource -j %s`, p.ID(), e.Addr, sep, p.AffinitySeconds, sep)
		}
	}
	for i, e := range list {
		chance := ""
		if left := len(list) - i; left > 1 {
			chance = "-m statistic --mode random --probability " + strconv.FormatFloat(1/float64(left), 'f', 11, 64) + " "
		}
		b.natf(chain, `-m comment --comment "%s -> %s" %s-j %s`, p.ID(), e.Addr, chance, EndpointChain(p, e))
	}
}

// endpoint writes the chain of one endpoint, once.
func (b *builder) endpoint(p *model.Port, e model.Endpoint) {
	sep := EndpointChain(p, e)
	if _, done := b.nat[sep]; done {
		return
	}
	// A pod that reaches itself through the service must not see its own address as the source.
	b.natf(sep, `-s %s -m comment --comment "%s" -j %s`, prefix(e.Addr.Addr()), p.ID(), mark)
	keep := ""
	if p.AffinitySeconds > 0 {
		keep = "-m recent --name " + sep + " --set --rsource "
	}
	b.natf(sep, `-p %s -m comment --comment "%s" %s-m %s -j DNAT --to-destination %s`, proto(p), p.ID(), keep, proto(p), e.Addr)
}

// prefix is a single address as iptables-save prints it.
func prefix(a netip.Addr) string { return netip.PrefixFrom(a, a.BitLen()).String() }
