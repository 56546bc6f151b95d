// Package nodeipam gives every node its ranges of pod addresses, one of each family
// of the cluster's.
//
// [Ranges] decides and is pure; one worker applies, so that two nodes can never be
// given the same range. What is taken is read from the nodes themselves at each
// decision: nothing is remembered that a crash could lose.
package nodeipam

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
)

// ErrFull is the reason of the event CIDRNotAvailable.
var ErrFull = errors.New("no range of pod addresses is free")

// Ranges returns free ranges for a node: one of each cluster range, of mask4 or
// mask6 bits. It takes the first that overlaps no node's range and none of
// reserved (the service ranges).
func Ranges(cluster []netip.Prefix, mask4, mask6 int, nodes []*corev1.Node, reserved []netip.Prefix) ([]string, error) {
	var out []string
	for _, c := range cluster {
		mask := mask4
		if c.Addr().Is6() {
			mask = mask6
		}
		p, err := free(c.Masked(), mask, nodes, reserved)
		if err != nil {
			return nil, err
		}
		out = append(out, p.String())
	}
	return out, nil
}

func free(cluster netip.Prefix, mask int, nodes []*corev1.Node, reserved []netip.Prefix) (netip.Prefix, error) {
	if mask < cluster.Bits() {
		return netip.Prefix{}, fmt.Errorf("a node's range of /%d does not fit into the cluster's %s", mask, cluster)
	}
	taken := map[netip.Prefix]bool{}
	var odd []netip.Prefix // of another size, from an earlier configuration, or not ours
	for _, n := range nodes {
		for _, s := range of(n) {
			if p, err := netip.ParsePrefix(s); err == nil && p.Overlaps(cluster) {
				if p.Bits() == mask {
					taken[p.Masked()] = true
				} else {
					odd = append(odd, p)
				}
			}
		}
	}
	for _, p := range reserved {
		if p.Overlaps(cluster) {
			odd = append(odd, p)
		}
	}
	// At most as many steps as ranges that are taken, and those that odd ones cover.
	bits := mask - cluster.Bits()
	for i := uint64(0); bits >= 64 || i < 1<<bits; i++ {
		p := netip.PrefixFrom(at(cluster.Addr(), i, mask), mask)
		if taken[p] {
			continue
		}
		clash := false
		for _, o := range odd {
			clash = clash || o.Overlaps(p)
		}
		if !clash {
			return p, nil
		}
	}
	return netip.Prefix{}, fmt.Errorf("%w in %s", ErrFull, cluster)
}

// of are a node's ranges, as the spec has them.
func of(n *corev1.Node) []string {
	if len(n.Spec.PodCIDRs) > 0 {
		return n.Spec.PodCIDRs
	}
	if n.Spec.PodCIDR != "" {
		return []string{n.Spec.PodCIDR}
	}
	return nil
}

// at is the address of the i-th range of mask bits from base.
func at(base netip.Addr, i uint64, mask int) netip.Addr {
	if base.Is4() {
		b := base.As4()
		v := binary.BigEndian.Uint32(b[:]) + uint32(i)<<(32-mask)
		binary.BigEndian.PutUint32(b[:], v)
		return netip.AddrFrom4(b)
	}
	b := base.As16()
	hi, lo := binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])
	if mask <= 64 {
		hi += i << (64 - mask)
	} else {
		low := lo + i<<(128-mask)
		if low < lo {
			hi++
		}
		lo = low
		hi += i >> (mask - 64)
	}
	binary.BigEndian.PutUint64(b[:8], hi)
	binary.BigEndian.PutUint64(b[8:], lo)
	return netip.AddrFrom16(b)
}
