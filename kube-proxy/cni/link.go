package cni

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"runtime"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// hostName is the node's end of a pod's pair. It follows from the call, so that what a
// try left behind is found by the next.
func hostName(call *Call) string {
	sum := sha256.Sum256([]byte(call.Container + "/" + call.Interface))
	return fmt.Sprintf("veth%x", sum[:4])
}

// mac is the hardware address that goes with a pod's address: who has talked to the pod
// that had it before need not learn a new one. Locally administered, unicast.
func mac(at netip.Addr) net.HardwareAddr {
	if at.Is4() {
		b := at.As4()
		return net.HardwareAddr{0x0a, 0x58, b[0], b[1], b[2], b[3]}
	}
	sum := sha256.Sum256(at.AsSlice())
	return net.HardwareAddr{0x0a, 0x59, sum[0], sum[1], sum[2], sum[3]}
}

// plug makes the bridge if need be and connects the pod to it.
func plug(cfg *Config, call *Call, addresses []netip.Prefix) ([]Interface, error) {
	br, err := bridge(cfg)
	if err != nil {
		return nil, err
	}
	ns, err := os.Open(call.Namespace)
	if err != nil {
		return nil, fmt.Errorf("the pod's network namespace: %w", err)
	}
	defer ns.Close()
	pair := &netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: hostName(call), MTU: cfg.MTU, MasterIndex: br.Attrs().Index, Flags: net.FlagUp},
		PeerName:  call.Interface, PeerNamespace: netlink.NsFd(ns.Fd()), PeerHardwareAddr: mac(addresses[0].Addr()),
	}
	err = netlink.LinkAdd(pair)
	if errors.Is(err, unix.EEXIST) { // left by an earlier try
		if err := remove(call, ns); err != nil {
			return nil, err
		}
		err = netlink.LinkAdd(pair)
	}
	if err != nil {
		return nil, fmt.Errorf("make the pod's interfaces: %w", err)
	}
	// A pod may reach itself by a Service's address.
	if err := netlink.LinkSetHairpin(pair, true); err != nil {
		return nil, fmt.Errorf("hairpin mode of %s: %w", pair.Name, err)
	}
	if err := within(ns, func() error { return configure(call.Interface, addresses) }); err != nil {
		return nil, err
	}
	return []Interface{
		{Name: cfg.Bridge, MAC: br.Attrs().HardwareAddr.String()},
		{Name: pair.Name},
		{Name: call.Interface, MAC: pair.PeerHardwareAddr.String(), Sandbox: call.Namespace},
	}, nil
}

// configure gives the pod's end its addresses and the way out. It runs in the pod's namespace.
func configure(iface string, addresses []netip.Prefix) error {
	link, err := netlink.LinkByName(iface)
	if err != nil {
		return err
	}
	for _, a := range addresses {
		if a.Addr().Is6() {
			if err := enableIPv6("lo", "default", iface); err != nil {
				return err
			}
		}
		if err := netlink.AddrAdd(link, addr(a)); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("address %s: %w", a, err)
		}
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("%s up: %w", iface, err)
	}
	for _, a := range addresses {
		if err := netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: gateway(a).AsSlice()}); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("default route via %s: %w", gateway(a), err)
		}
	}
	return nil
}

// addr is an address for the kernel. Each is booked, so that nobody need ask whether
// another has it (which takes a second for IPv6).
func addr(p netip.Prefix) *netlink.Addr {
	a := &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}}
	if p.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD
	}
	return a
}

func enableIPv6(ifaces ...string) error {
	for _, name := range ifaces {
		if err := sysctl("ipv6/conf/"+name+"/disable_ipv6", "0"); err != nil {
			return err
		}
	}
	return nil
}

// bridge is the node's bridge, with the first address of each range, forwarding.
func bridge(cfg *Config) (netlink.Link, error) {
	br, err := netlink.LinkByName(cfg.Bridge)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		// With a hardware address of its own, or it would change with the pods.
		made := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: cfg.Bridge, MTU: cfg.MTU, TxQLen: -1, HardwareAddr: mac(gateway(cfg.Ranges[0]))}}
		if err := netlink.LinkAdd(made); err != nil && !errors.Is(err, unix.EEXIST) {
			return nil, fmt.Errorf("make bridge %s: %w", cfg.Bridge, err)
		}
		br, err = netlink.LinkByName(cfg.Bridge)
	}
	if err != nil {
		return nil, fmt.Errorf("bridge %s: %w", cfg.Bridge, err)
	}
	if br.Type() != "bridge" {
		return nil, fmt.Errorf("%s is there and is no bridge but a %s", cfg.Bridge, br.Type())
	}
	have, err := addresses(br)
	if err != nil {
		return nil, fmt.Errorf("addresses of %s: %w", cfg.Bridge, err)
	}
	for _, r := range cfg.Ranges {
		want := netip.PrefixFrom(gateway(r), r.Bits())
		if holds(have, want) {
			continue
		}
		if want.Addr().Is6() {
			if err := enableIPv6(cfg.Bridge); err != nil {
				return nil, err
			}
		}
		if err := netlink.AddrAdd(br, addr(want)); err != nil && !errors.Is(err, unix.EEXIST) {
			return nil, fmt.Errorf("address %s of %s: %w", want, cfg.Bridge, err)
		}
	}
	if br.Attrs().Flags&net.FlagUp == 0 {
		if err := netlink.LinkSetUp(br); err != nil {
			return nil, fmt.Errorf("%s up: %w", cfg.Bridge, err)
		}
	}
	for _, r := range cfg.Ranges {
		name := "ipv4/ip_forward"
		if r.Addr().Is6() {
			name = "ipv6/conf/all/forwarding"
		}
		if err := sysctl(name, "1"); err != nil {
			return nil, err
		}
	}
	return br, nil
}

// addresses are those of an interface. The kernel says when others have changed while it
// was telling them, as they do where many pods start: then it is asked again.
func addresses(link netlink.Link) (out []netlink.Addr, err error) {
	for range 20 {
		if out, err = netlink.AddrList(link, netlink.FAMILY_ALL); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return out, err
}

func holds(have []netlink.Addr, want netip.Prefix) bool {
	for _, a := range have {
		at, ok := netip.AddrFromSlice(a.IP)
		ones, _ := a.Mask.Size()
		if ok && at.Unmap() == want.Addr() && ones == want.Bits() {
			return true
		}
	}
	return false
}

// sysctl sets a value of the current network namespace unless it is so already.
func sysctl(name, value string) error {
	file := "/proc/sys/net/" + name
	if have, err := os.ReadFile(file); err == nil && string(bytes.TrimSpace(have)) == value {
		return nil
	}
	if err := os.WriteFile(file, []byte(value), 0o644); err != nil {
		return fmt.Errorf("sysctl net/%s: %w", name, err)
	}
	return nil
}

// unplug takes the pod's addresses away. Its interfaces go with the namespace, which the
// runtime removes next: the kernel does that by and by, whereas to remove them here is to
// wait for it.
func unplug(call *Call) error {
	if call.Namespace == "" {
		return nil
	}
	ns, err := os.Open(call.Namespace)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("the pod's network namespace: %w", err)
	}
	defer ns.Close()
	err = within(ns, func() error {
		link, err := netlink.LinkByName(call.Interface)
		if errors.As(err, &netlink.LinkNotFoundError{}) {
			return nil
		}
		if err != nil {
			return err
		}
		have, err := addresses(link)
		if err != nil {
			return err
		}
		for i := range have {
			if err := netlink.AddrDel(link, &have[i]); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
				return fmt.Errorf("take away %s: %w", have[i].IPNet, err)
			}
		}
		return nil
	})
	if errors.Is(err, unix.EINVAL) {
		return nil // the file is there and the namespace is not: it was unmounted, or the machine was restarted
	}
	return err
}

// remove removes the pod's interfaces, whichever end is found.
func remove(call *Call, ns *os.File) error {
	if link, err := netlink.LinkByName(hostName(call)); err == nil {
		if err := netlink.LinkDel(link); err != nil {
			return fmt.Errorf("remove %s: %w", hostName(call), err)
		}
	}
	return within(ns, func() error {
		link, err := netlink.LinkByName(call.Interface)
		if err != nil {
			return nil // it went with its peer
		}
		if err := netlink.LinkDel(link); err != nil {
			return fmt.Errorf("remove the pod's %s: %w", call.Interface, err)
		}
		return nil
	})
}

// plugged finds out whether the pod has its addresses.
func plugged(call *Call, ips []IP) error {
	ns, err := os.Open(call.Namespace)
	if err != nil {
		return fmt.Errorf("the pod's network namespace: %w", err)
	}
	defer ns.Close()
	return within(ns, func() error {
		link, err := netlink.LinkByName(call.Interface)
		if err != nil {
			return fmt.Errorf("the pod's %s: %w", call.Interface, err)
		}
		have, err := addresses(link)
		if err != nil {
			return err
		}
		for _, ip := range ips {
			if !holds(have, ip.Address) {
				return fmt.Errorf("the pod's %s does not have %s", call.Interface, ip.Address)
			}
		}
		return nil
	})
}

// within runs f in a network namespace. f may not start goroutines.
func within(ns *os.File, f func() error) error {
	runtime.LockOSThread()
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("the node's network namespace: %w", err)
	}
	defer home.Close()
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("enter the pod's network namespace: %w", err)
	}
	err = f()
	if back := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); back != nil {
		return errors.Join(err, fmt.Errorf("leave the pod's network namespace: %w", back)) // and the thread stays locked: it dies with its goroutine
	}
	runtime.UnlockOSThread()
	return err
}
