package network

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
)

// protocol marks our routes in the kernel's table (RTPROT_*): what has it and is not planned is removed.
const protocol = 0x4b

// Network applies plans.
type Network struct {
	cfg   Config
	self  string
	nodes func() []*corev1.Node
	log   *slog.Logger
	wake  chan struct{}
}

// New starts nothing. nodes reads the newest state.
func New(cfg Config, self string, nodes func() []*corev1.Node, log *slog.Logger) *Network {
	return &Network{cfg: cfg, self: self, nodes: nodes, log: log, wake: make(chan struct{}, 1)}
}

// Changed says that a node is different now. It never blocks.
func (n *Network) Changed() {
	select {
	case n.wake <- struct{}{}:
	default:
	}
}

const (
	retry   = 2 * time.Second
	recheck = time.Minute // somebody may have removed a route
)

// Run blocks until ctx ends. The network stays.
func (n *Network) Run(ctx context.Context) error {
	for {
		wait := recheck
		if err := n.pass(); err != nil {
			n.log.Warn("cannot set the pod network up; will try again", "err", err)
			wait = retry
		}
		select {
		case <-ctx.Done():
			return nil
		case <-n.wake:
		case <-time.After(wait):
		}
	}
}

func (n *Network) pass() error {
	nodes := n.nodes()
	var own netip.Addr
	for _, node := range nodes {
		if node.Name == n.self {
			own = Address(node)
		}
	}
	if !own.IsValid() {
		return nil // the kubelet has not registered the node yet: its registration wakes us
	}
	link, err := linkOf(own)
	if err != nil {
		return err
	}
	p := Decide(n.cfg, n.self, link, nodes, n.hasPlugin())
	return errors.Join(n.tunnel(p, link, own), n.writeCNI(p))
}

// hasPlugin tells whether our plugin is where the runtime looks for plugins.
func (n *Network) hasPlugin() bool {
	if n.cfg.CNIBin == "" {
		return false
	}
	_, err := os.Stat(filepath.Join(n.cfg.CNIBin, Plugin))
	return err == nil
}

// linkOf finds the interface that has the node's address.
func linkOf(own netip.Addr) (Link, error) {
	links, err := netlink.LinkList()
	if err != nil {
		return Link{}, fmt.Errorf("list interfaces: %w", err)
	}
	for _, l := range links {
		addrs, err := netlink.AddrList(l, netlink.FAMILY_ALL)
		if err != nil {
			continue
		}
		for _, a := range addrs {
			if ip, ok := netip.AddrFromSlice(a.IP); ok && ip.Unmap() == own {
				ones, _ := a.Mask.Size()
				return Link{Index: l.Attrs().Index, Name: l.Attrs().Name, MTU: l.Attrs().MTU, Subnet: netip.PrefixFrom(own, ones).Masked()}, nil
			}
		}
	}
	return Link{}, fmt.Errorf("no interface has the node's address %s", own)
}

// tunnel makes routes, and the VXLAN device if a route needs it.
func (n *Network) tunnel(p Plan, link Link, own netip.Addr) error {
	index := 0
	if len(p.Peers) > 0 {
		dev, err := n.device(p, link, own)
		if err != nil {
			return err
		}
		index = dev.Attrs().Index
		if err := n.peers(p, index); err != nil {
			return err
		}
	} else if dev, err := netlink.LinkByName(Tunnel); err == nil {
		if err := netlink.LinkDel(dev); err != nil {
			return fmt.Errorf("remove %s: %w", Tunnel, err)
		}
	}
	return n.routes(p, link, index)
}

func (n *Network) device(p Plan, link Link, own netip.Addr) (netlink.Link, error) {
	want := &netlink.Vxlan{
		LinkAttrs: netlink.LinkAttrs{Name: Tunnel, MTU: p.MTU, HardwareAddr: p.TunnelMAC},
		VxlanId:   n.cfg.VNI, VtepDevIndex: link.Index, SrcAddr: own.AsSlice(), Port: n.cfg.Port, Learning: false,
	}
	dev, err := netlink.LinkByName(Tunnel)
	if err == nil {
		have, ok := dev.(*netlink.Vxlan)
		same := ok && have.VxlanId == want.VxlanId && have.VtepDevIndex == want.VtepDevIndex && have.Port == want.Port &&
			have.SrcAddr.Equal(want.SrcAddr) && have.HardwareAddr.String() == want.HardwareAddr.String()
		if !same {
			if err := netlink.LinkDel(dev); err != nil {
				return nil, fmt.Errorf("replace %s: %w", Tunnel, err)
			}
			dev = nil
		}
	} else {
		dev = nil
	}
	if dev == nil {
		if err := netlink.LinkAdd(want); err != nil {
			return nil, fmt.Errorf("make %s: %w (is the kernel module vxlan there?)", Tunnel, err)
		}
		if dev, err = netlink.LinkByName(Tunnel); err != nil {
			return nil, err
		}
	}
	for _, c := range p.PodCIDRs { // our own end: peers route to it as their gateway
		if c.Addr().Is4() {
			a := &netlink.Addr{IPNet: &net.IPNet{IP: c.Addr().AsSlice(), Mask: net.CIDRMask(32, 32)}}
			if err := netlink.AddrReplace(dev, a); err != nil {
				return nil, fmt.Errorf("address of %s: %w", Tunnel, err)
			}
		}
	}
	if err := netlink.LinkSetUp(dev); err != nil {
		return nil, fmt.Errorf("%s up: %w", Tunnel, err)
	}
	return dev, nil
}

// peers tells the kernel where the far ends are, so that nothing is ever flooded.
func (n *Network) peers(p Plan, index int) error {
	want := map[string]bool{}
	for _, peer := range p.Peers {
		want[peer.MAC.String()] = true
		arp := &netlink.Neigh{LinkIndex: index, IP: peer.Gateway.AsSlice(), HardwareAddr: peer.MAC, State: netlink.NUD_PERMANENT, Type: unix.RTN_UNICAST}
		fdb := &netlink.Neigh{LinkIndex: index, IP: peer.Outer.AsSlice(), HardwareAddr: peer.MAC, State: netlink.NUD_PERMANENT, Family: unix.AF_BRIDGE, Flags: netlink.NTF_SELF}
		for _, e := range []*netlink.Neigh{arp, fdb} {
			if err := netlink.NeighSet(e); err != nil {
				return fmt.Errorf("tunnel to %s: %w", peer.Outer, err)
			}
		}
	}
	for _, family := range []int{unix.AF_INET, unix.AF_BRIDGE} {
		have, err := netlink.NeighList(index, family)
		if err != nil {
			return err
		}
		for _, e := range have {
			if e.State&netlink.NUD_PERMANENT != 0 && len(e.HardwareAddr) > 0 && !want[e.HardwareAddr.String()] {
				_ = netlink.NeighDel(&e) // a peer that left; gone already is as good
			}
		}
	}
	return nil
}

func (n *Network) routes(p Plan, link Link, tunnel int) error {
	have, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Protocol: protocol, Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TABLE)
	if err != nil {
		return fmt.Errorf("list routes: %w", err)
	}
	want := map[string]*netlink.Route{}
	for _, r := range p.Routes {
		k := &netlink.Route{
			Dst: &net.IPNet{IP: r.To.Addr().AsSlice(), Mask: net.CIDRMask(r.To.Bits(), r.To.Addr().BitLen())},
			Gw:  r.Via.AsSlice(), LinkIndex: link.Index, Protocol: protocol,
		}
		if r.Tunnel {
			k.LinkIndex = tunnel
			k.SetFlag(netlink.FLAG_ONLINK)
		}
		want[k.Dst.String()] = k
	}
	for i := range have {
		r := &have[i]
		if r.Dst == nil {
			continue
		}
		w := want[r.Dst.String()]
		if w != nil && w.Gw.Equal(r.Gw) && w.LinkIndex == r.LinkIndex {
			delete(want, r.Dst.String())
			continue
		}
		if w == nil {
			if err := netlink.RouteDel(r); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("remove route to %s: %w", r.Dst, err)
			}
			n.log.Info("route removed", "to", r.Dst.String())
		}
	}
	for to, r := range want {
		if err := netlink.RouteReplace(r); err != nil {
			return fmt.Errorf("route to %s via %s: %w", to, r.Gw, err)
		}
		n.log.Info("route set", "to", to, "via", r.Gw.String())
	}
	return nil
}

// writeCNI replaces the file in one step; the runtime notices by itself.
func (n *Network) writeCNI(p Plan) error {
	if p.CNI == nil {
		return nil
	}
	path := filepath.Join(n.cfg.CNIDir, n.cfg.CNIFile)
	if have, err := os.ReadFile(path); err == nil && bytes.Equal(have, p.CNI) {
		return nil
	}
	if err := os.MkdirAll(n.cfg.CNIDir, 0o755); err != nil {
		return err
	}
	tmp := filepath.Join(n.cfg.CNIDir, "."+n.cfg.CNIFile+".new")
	if err := os.WriteFile(tmp, p.CNI, 0o644); err != nil {
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		return err
	}
	n.log.Info("CNI configuration written", "file", path, "pods", fmt.Sprint(p.PodCIDRs))
	return nil
}

// RemoveRoutes removes the routes that were made here.
func RemoveRoutes() error {
	have, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Protocol: protocol, Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TABLE)
	if err != nil {
		return fmt.Errorf("list routes: %w", err)
	}
	var errs []error
	for i := range have {
		errs = append(errs, netlink.RouteDel(&have[i]))
	}
	return errors.Join(errs...)
}
