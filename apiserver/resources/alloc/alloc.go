// Package alloc chooses cluster addresses and node ports that nobody has.
//
// What is taken is what the tree of stored Services says plus the Ledger: the
// choices of this process that the tree may not show yet. A choice is free again
// when its write failed, or when it has aged and the tree still does not show it.
//
// The package is pure: time and randomness come as arguments. It does not keep
// several API servers from choosing alike in the same instant; random choice from
// a large range makes that rare.
package alloc

import (
	"encoding/binary"
	"math/big"
	"net/netip"
	"sync"
	"time"
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

// Ledger remembers the choices that the tree may not show yet. It is safe for concurrent use.
type Ledger[K comparable] struct {
	mu   sync.Mutex
	made map[K]time.Time // guarded by mu
}

// Take reserves k unless it was reserved less than hold ago.
func (l *Ledger[K]) Take(k K, now time.Time, hold time.Duration) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if at, ok := l.made[k]; ok && now.Sub(at) < hold {
		return false
	}
	if l.made == nil {
		l.made = map[K]time.Time{}
	}
	if len(l.made) > 4096 {
		for old, at := range l.made {
			if now.Sub(at) > time.Minute {
				delete(l.made, old)
			}
		}
	}
	l.made[k] = now
	return true
}

// Free forgets a reservation.
func (l *Ledger[K]) Free(k K) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.made, k)
}

// Held reports a reservation made less than hold ago.
func (l *Ledger[K]) Held(k K, now time.Time, hold time.Duration) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	at, ok := l.made[k]
	return ok && now.Sub(at) < hold
}
