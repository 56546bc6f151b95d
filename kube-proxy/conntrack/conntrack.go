// Package conntrack removes flows that would keep sending UDP packets to endpoints
// that are gone. TCP notices by itself; a UDP flow lives as long as packets come.
package conntrack

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/keelson/keelson/kube-proxy/model"
)

// Stale finds flows by where they were sent to and who answers. It is made by Diff.
type Stale struct {
	// gone are answering endpoints that no port of the address uses any more;
	// fresh are addresses that had no endpoint before: flows to them went nowhere.
	gone       map[netip.AddrPort]map[netip.AddrPort]bool
	ports      map[uint16]map[netip.AddrPort]bool // the same by node port
	fresh      map[netip.AddrPort]bool
	freshPorts map[uint16]bool
}

// Diff compares two states of the service ports. nil means that no flow is stale.
func Diff(old, now []model.Port) *Stale {
	s := &Stale{
		gone: map[netip.AddrPort]map[netip.AddrPort]bool{}, ports: map[uint16]map[netip.AddrPort]bool{},
		fresh: map[netip.AddrPort]bool{}, freshPorts: map[uint16]bool{},
	}
	type key struct{ id string }
	was := map[key]*model.Port{}
	for i := range old {
		if old[i].Protocol == corev1.ProtocolUDP {
			was[key{old[i].ID()}] = &old[i]
		}
	}
	seen := map[key]bool{}
	for i := range now {
		p := &now[i]
		if p.Protocol != corev1.ProtocolUDP {
			continue
		}
		k := key{p.ID()}
		seen[k] = true
		o := was[k]
		if o == nil {
			o = &model.Port{}
		}
		if len(o.Cluster) == 0 && len(p.Cluster) > 0 {
			for _, a := range addresses(p) {
				s.fresh[a] = true
			}
			if p.NodePort != 0 {
				s.freshPorts[p.NodePort] = true
			}
		}
		for _, e := range o.Cluster {
			if !slices.ContainsFunc(p.Cluster, func(n model.Endpoint) bool { return n.Addr == e.Addr }) {
				s.lost(o, e.Addr)
			}
		}
	}
	for k, o := range was {
		if !seen[k] {
			for _, e := range o.Cluster {
				s.lost(o, e.Addr)
			}
		}
	}
	if len(s.gone)+len(s.ports)+len(s.fresh)+len(s.freshPorts) == 0 {
		return nil
	}
	return s
}

func addresses(p *model.Port) []netip.AddrPort {
	out := []netip.AddrPort{netip.AddrPortFrom(p.ClusterIP, p.Number)}
	for _, list := range [][]netip.Addr{p.ExternalIPs, p.Ingress} {
		for _, a := range list {
			out = append(out, netip.AddrPortFrom(a, p.Number))
		}
	}
	return out
}

func (s *Stale) lost(p *model.Port, e netip.AddrPort) {
	for _, a := range addresses(p) {
		if s.gone[a] == nil {
			s.gone[a] = map[netip.AddrPort]bool{}
		}
		s.gone[a][e] = true
	}
	if p.NodePort != 0 {
		if s.ports[p.NodePort] == nil {
			s.ports[p.NodePort] = map[netip.AddrPort]bool{}
		}
		s.ports[p.NodePort][e] = true
	}
}

// Matches reports whether a UDP flow to dst, answered by from, is stale.
func (s *Stale) Matches(dst, from netip.AddrPort) bool {
	if s.gone[dst][from] || s.ports[dst.Port()][from] {
		return true
	}
	return from == dst && (s.fresh[dst] || s.freshPorts[dst.Port()])
}

// MatchConntrackFlow lets the kernel's table be filtered.
func (s *Stale) MatchConntrackFlow(f *netlink.ConntrackFlow) bool {
	if f.Forward.Protocol != unix.IPPROTO_UDP {
		return false
	}
	dst, ok1 := netip.AddrFromSlice(f.Forward.DstIP)
	from, ok2 := netip.AddrFromSlice(f.Reverse.SrcIP)
	return ok1 && ok2 && s.Matches(netip.AddrPortFrom(dst.Unmap(), f.Forward.DstPort), netip.AddrPortFrom(from.Unmap(), f.Reverse.SrcPort))
}

// Clean removes stale flows of a family and returns how many.
func Clean(family model.Family, s *Stale) (uint, error) {
	f := netlink.InetFamily(unix.AF_INET)
	if family == model.IPv6 {
		f = unix.AF_INET6
	}
	n, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, f, s)
	if err != nil {
		return n, fmt.Errorf("remove stale flows: %w", err)
	}
	return n, nil
}
