// Package alloc chooses cluster addresses and node ports that nobody has, and
// keeps the set of node ports in the form in which it is stored.
//
// What is taken is what stored objects say: an IPAddress for each address, one
// [Ports] set for all node ports. Both are written in the transaction that writes the
// Service, so the store decides between API servers that choose alike.
//
// The package is pure: randomness comes as an argument.
package alloc

import (
	"encoding/binary"
	"fmt"
	"math/big"
	"net/netip"
)

// Random returns a number in [0, n).
type Random func(n uint64) uint64

// Address picks a free address of the range, or false when it is full. The
// lowest part of the range is used last, so that addresses chosen by people,
// who count from below, are likely to be free. The network's own address, and
// the broadcast address of an IPv4 range, are never chosen.
func Address(r netip.Prefix, taken func(netip.Addr) bool, random Random) (netip.Addr, bool) {
	bits := r.Addr().BitLen() - r.Bits()
	if bits > 62 {
		bits = 62
	}
	first, end := uint64(1), uint64(1)<<bits // end is exclusive
	if r.Addr().Is4() && end > 2 {
		end--
	}
	if end <= first {
		return netip.Addr{}, false
	}
	low := first + min(max(16, (end-first)/16), 256)
	if low >= end {
		low = first
	}
	for _, band := range [][2]uint64{{low, end}, {first, low}} {
		if n, ok := pick(band[0], band[1], random, func(i uint64) bool { return taken(At(r, i)) }); ok {
			return At(r, n), true
		}
	}
	return netip.Addr{}, false
}

// Usable reports whether an address of the range may be given to a Service: not the network's own,
// nor the broadcast address of an IPv4 range.
func Usable(r netip.Prefix, ip netip.Addr) bool {
	if !r.Contains(ip) || ip == r.Masked().Addr() {
		return false
	}
	return !ip.Is4() || r.Bits() >= 31 || r.Contains(ip.Next())
}

// Port picks a free port of first..last; the lowest part is used last.
func Port(first, last int32, taken func(int32) bool, random Random) (int32, bool) {
	start, end := uint64(first), uint64(last)+1
	low := start + min(max(16, (end-start)/32), 128)
	if low >= end {
		low = start
	}
	for _, band := range [][2]uint64{{low, end}, {start, low}} {
		if n, ok := pick(band[0], band[1], random, func(i uint64) bool { return taken(int32(i)) }); ok {
			return int32(n), true
		}
	}
	return 0, false
}

// scanMax bounds the search in a range that is nearly full.
const scanMax = 1 << 17

// pick tries a random start and goes round once.
func pick(first, end uint64, random Random, taken func(uint64) bool) (uint64, bool) {
	if end <= first {
		return 0, false
	}
	size := end - first
	start := random(size)
	for i := range min(size, scanMax) {
		if n := first + (start+i)%size; !taken(n) {
			return n, true
		}
	}
	return 0, false
}

// At returns the address n above the start of the range.
func At(r netip.Prefix, n uint64) netip.Addr {
	base := r.Masked().Addr()
	if base.Is4() {
		b := base.As4()
		binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(b[:])+uint32(n))
		return netip.AddrFrom4(b)
	}
	b := base.As16()
	sum := new(big.Int).Add(new(big.Int).SetBytes(b[:]), new(big.Int).SetUint64(n))
	sum.FillBytes(b[:])
	return netip.AddrFrom16(b)
}

// Ports is the set of node ports that are taken, out of First..Last. Its stored
// form is upstream's RangeAllocation: the range as text, and a number in which bit n
// stands for First+n, most significant byte first.
type Ports struct {
	First, Last int32
	taken       big.Int
}

// ReadPorts reads a stored set. What was taken of another range and lies outside
// first..last is dropped.
func ReadPorts(first, last int32, rangeText string, data []byte) (*Ports, error) {
	p := &Ports{First: first, Last: last}
	if rangeText == p.Range() {
		p.taken.SetBytes(data)
		return p, nil
	}
	was := Ports{}
	if _, err := fmt.Sscanf(rangeText, "%d-%d", &was.First, &was.Last); err != nil {
		return nil, fmt.Errorf("stored range of node ports %q: %w", rangeText, err)
	}
	was.taken.SetBytes(data)
	for n := range was.taken.BitLen() {
		if was.taken.Bit(n) == 1 {
			p.Take(was.First + int32(n))
		}
	}
	return p, nil
}

// Range is the range as it is stored: "30000-32767".
func (p *Ports) Range() string { return fmt.Sprintf("%d-%d", p.First, p.Last) }

// Data is the set as it is stored.
func (p *Ports) Data() []byte { return p.taken.Bytes() }

// Covers reports whether n is in the range.
func (p *Ports) Covers(n int32) bool { return p.First <= n && n <= p.Last }

// Has reports whether n is taken.
func (p *Ports) Has(n int32) bool { return p.Covers(n) && p.taken.Bit(int(n-p.First)) == 1 }

// Take adds n; a port outside the range is nobody's business.
func (p *Ports) Take(n int32) { p.set(n, 1) }

// Free removes n.
func (p *Ports) Free(n int32) { p.set(n, 0) }

func (p *Ports) set(n int32, bit uint) {
	if p.Covers(n) {
		p.taken.SetBit(&p.taken, int(n-p.First), bit)
	}
}

// Count is how many ports are taken.
func (p *Ports) Count() int {
	n := 0
	for i := range p.taken.BitLen() {
		n += int(p.taken.Bit(i))
	}
	return n
}
