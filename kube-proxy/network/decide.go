// Package network is the pod network of one node: the CNI configuration that gives
// pods of this node addresses of its range, and the way to the ranges of the others:
// a route through the other node where both share a segment, a VXLAN tunnel where not.
//
// [Decide] says what should be there and is pure; [Network.Run] makes it so, through
// netlink and one file, again whenever a node changes. Nothing is remembered: what
// stands is read from the kernel, so a crash at any line is mended by the next pass.
package network

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// Names of what is made on the machine.
const (
	Bridge = "cni0"
	Tunnel = "keelson-vxlan"
	// Plugin is our CNI plugin's program, see kube-proxy/cni.
	Plugin = "keelson-net"
	// tunnelOverhead are the bytes that VXLAN over IPv4 adds to a packet.
	tunnelOverhead = 50
)

// Config is the part of the daemon's configuration that is about the pod network.
type Config struct {
	ClusterCIDRs []netip.Prefix
	VNI          int
	Port         int // UDP, of VXLAN
	CNIDir       string
	CNIFile      string
	CNIBin       string // where the runtime has its plugins
}

// Link is the machine's interface that carries the node's address.
type Link struct {
	Index  int
	Name   string
	MTU    int
	Subnet netip.Prefix // of the node's address; single-address when it shares no segment with anybody
}

// Route leads to the pods of another node.
type Route struct {
	To     netip.Prefix
	Via    netip.Addr
	Tunnel bool // through the VXLAN device; otherwise through Link
}

// Peer is the far end of the tunnel to one node.
type Peer struct {
	Gateway netip.Addr // the peer's address inside the tunnel: the first of its range
	MAC     net.HardwareAddr
	Outer   netip.Addr // the peer's node address
}

// Plan is what should be there.
type Plan struct {
	PodCIDRs []netip.Prefix // of this node
	Routes   []Route
	Peers    []Peer
	MTU      int
	// TunnelMAC is our end of the tunnel, where there is one.
	TunnelMAC net.HardwareAddr
	CNI       []byte // content of the configuration file; nil: not yet
}

// Decide plans the network of the node named self. nodes may be in any order. plugin says
// that the runtime has our plugin.
func Decide(cfg Config, self string, link Link, nodes []*corev1.Node, plugin bool) Plan {
	var p Plan
	var own netip.Addr
	for _, n := range nodes {
		if n.Name == self {
			p.PodCIDRs = ranges(n)
			own = Address(n)
		}
	}
	nodes = slices.SortedFunc(slices.Values(nodes), func(a, b *corev1.Node) int { return strings.Compare(a.Name, b.Name) })
	for _, n := range nodes {
		at := Address(n)
		if n.Name == self || !at.IsValid() || at == own {
			continue
		}
		for _, to := range ranges(n) {
			if to.Addr().Is4() != at.Is4() {
				continue
			}
			if link.Subnet.IsValid() && link.Subnet.Contains(at) {
				p.Routes = append(p.Routes, Route{To: to, Via: at})
				continue
			}
			if !at.Is4() {
				continue // the tunnel carries IPv4 only
			}
			p.Routes = append(p.Routes, Route{To: to, Via: to.Addr(), Tunnel: true})
			p.Peers = append(p.Peers, Peer{Gateway: to.Addr(), MAC: MAC(at), Outer: at})
		}
	}
	p.MTU = link.MTU
	if len(p.Peers) > 0 {
		p.MTU -= tunnelOverhead
		p.TunnelMAC = MAC(own)
	}
	if len(p.PodCIDRs) > 0 {
		plugins := chain(p.PodCIDRs, p.MTU)
		if plugin {
			plugins = one(p.PodCIDRs, p.MTU)
		}
		p.CNI = conflist(plugins)
	}
	return p
}

// MAC is a node's address inside the tunnel. It follows from the node's address, so
// that nobody has to publish it. Locally administered, unicast.
func MAC(node netip.Addr) net.HardwareAddr {
	sum := sha256.Sum256(node.AsSlice())
	return net.HardwareAddr{0x0e, sum[0], sum[1], sum[2], sum[3], sum[4]}
}

// Address is the node's own address.
func Address(n *corev1.Node) netip.Addr {
	for _, a := range n.Status.Addresses {
		if a.Type == corev1.NodeInternalIP {
			if ip, err := netip.ParseAddr(a.Address); err == nil {
				return ip
			}
		}
	}
	return netip.Addr{}
}

func ranges(n *corev1.Node) []netip.Prefix {
	list := n.Spec.PodCIDRs
	if len(list) == 0 && n.Spec.PodCIDR != "" {
		list = []string{n.Spec.PodCIDR}
	}
	var out []netip.Prefix
	for _, s := range list {
		if p, err := netip.ParsePrefix(s); err == nil {
			out = append(out, p.Masked())
		}
	}
	return out
}

// portMappings has the runtime tell a plugin the host ports of each pod.
var portMappings = map[string]bool{"portMappings": true}

// one is our own plugin, which is started once for a pod.
func one(podCIDRs []netip.Prefix, mtu int) []any {
	return []any{map[string]any{"type": Plugin, "bridge": Bridge, "mtu": mtu, "ranges": podCIDRs, "capabilities": portMappings}}
}

// chain are the usual plugins, which together do the same and keep the same books: a
// bridge, addresses from the node's ranges, and host ports.
func chain(podCIDRs []netip.Prefix, mtu int) []any {
	var subnets []any
	var routes []any
	for _, c := range podCIDRs {
		subnets = append(subnets, []any{map[string]string{"subnet": c.String()}})
		dst := "0.0.0.0/0"
		if c.Addr().Is6() {
			dst = "::/0"
		}
		routes = append(routes, map[string]string{"dst": dst})
	}
	return []any{
		map[string]any{
			"type": "bridge", "bridge": Bridge, "isGateway": true, "ipMasq": false, "hairpinMode": true, "mtu": mtu,
			"ipam": map[string]any{"type": "host-local", "ranges": subnets, "routes": routes},
		},
		map[string]any{"type": "portmap", "capabilities": portMappings},
	}
}

func conflist(plugins []any) []byte {
	text, err := json.MarshalIndent(map[string]any{"cniVersion": "0.4.0", "name": "keelson", "plugins": plugins}, "", "  ")
	if err != nil {
		panic(fmt.Sprintf("network: a map of plain values cannot be marshalled: %v", err))
	}
	return append(text, '\n')
}
