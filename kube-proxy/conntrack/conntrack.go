// Package conntrack removes flows that would keep sending UDP packets to endpoints
// that are gone. TCP notices by itself; a UDP flow lives as long as packets come.
//
// [Of] says which endpoints may answer at which address; [Wanted.Stale] decides about one flow; [Clean]
// goes through the kernel's table. What was seen before does not matter, so flows of a time when the
// proxy did not run are found as well.
package conntrack

import (
	"fmt"
	"maps"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/keelson/keelson/kube-proxy/model"
)

// Wanted are the endpoints that may answer UDP, by the address or node port that was asked. Services
// without endpoints are not in it: where nothing answers no flow is better than another.
//
// Every endpoint that serves counts, also one that terminates or that policy or topology would not choose
// for a new flow: a flow ends with its endpoint, as TCP connections do.
type Wanted struct {
	at    map[netip.AddrPort]set
	ports map[uint16]set
}

type set map[netip.AddrPort]bool

// Of reads the service ports, but for those whose cluster address is one that the node answers itself.
func Of(ports []model.Port, skip func(netip.Addr) bool) Wanted {
	w := Wanted{at: map[netip.AddrPort]set{}, ports: map[uint16]set{}}
	for i := range ports {
		p := &ports[i]
		if p.Protocol != corev1.ProtocolUDP || len(p.Serving) == 0 || skip != nil && skip(p.ClusterIP) {
			continue
		}
		s := make(set, len(p.Serving))
		for _, e := range p.Serving {
			s[e] = true
		}
		w.at[netip.AddrPortFrom(p.ClusterIP, p.Number)] = s
		for _, list := range [][]netip.Addr{p.ExternalIPs, p.Ingress} {
			for _, a := range list {
				w.at[netip.AddrPortFrom(a, p.Number)] = s
			}
		}
		if p.NodePort != 0 {
			w.ports[p.NodePort] = s
		}
	}
	return w
}

// Equal tells whether the same flows are stale.
func (w Wanted) Equal(o Wanted) bool {
	return maps.EqualFunc(w.at, o.at, maps.Equal[set, set]) && maps.EqualFunc(w.ports, o.ports, maps.Equal[set, set])
}

// Empty tells whether no flow can be stale.
func (w Wanted) Empty() bool { return len(w.at)+len(w.ports) == 0 }

// Stale tells whether a UDP flow that was sent to dst, and is answered by from, must go.
func (w Wanted) Stale(dst, from netip.AddrPort) bool {
	if s, ok := w.at[dst]; ok {
		return !s[from]
	}
	s, ok := w.ports[dst.Port()]
	return ok && !s[from]
}

// MatchConntrackFlow lets the kernel's table be filtered.
func (w Wanted) MatchConntrackFlow(f *netlink.ConntrackFlow) bool {
	if f.Forward.Protocol != unix.IPPROTO_UDP {
		return false
	}
	dst, ok1 := netip.AddrFromSlice(f.Forward.DstIP)
	from, ok2 := netip.AddrFromSlice(f.Reverse.SrcIP)
	return ok1 && ok2 && w.Stale(netip.AddrPortFrom(dst.Unmap(), f.Forward.DstPort), netip.AddrPortFrom(from.Unmap(), f.Reverse.SrcPort))
}

// Clean removes stale flows of a family and returns how many.
func Clean(family model.Family, w Wanted) (uint, error) {
	f := netlink.InetFamily(unix.AF_INET)
	if family == model.IPv6 {
		f = unix.AF_INET6
	}
	n, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, f, w)
	if err != nil {
		return n, fmt.Errorf("remove stale flows: %w", err)
	}
	return n, nil
}
