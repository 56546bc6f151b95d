package cni

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// book is who has which address, one file for each that is given. Its format is that of
// the host-local plugin: the file is named by the address and holds the container and the
// interface; last_reserved_ip.N is where the search in range N goes on; lock is held
// (flock) while the book is open.
type book struct {
	dir    string
	ranges []netip.Prefix
	booted time.Time // when the machine started; replaced in tests
}

func bookOf(cfg *Config) *book {
	return &book{dir: filepath.Join(cfg.DataDir, cfg.Name), ranges: cfg.Ranges, booted: booted()}
}

// booted is when the machine started.
func booted() time.Time {
	var since unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &since) != nil {
		return time.Time{}
	}
	return time.Now().Add(-time.Duration(since.Nano()))
}

// gateway is the bridge's address in a range: the first.
func gateway(p netip.Prefix) netip.Addr { return p.Masked().Addr().Next() }

// take books an address of each range; those that the interface has already are kept.
func (b *book) take(container, iface string) ([]netip.Prefix, error) {
	unlock, err := b.open()
	if err != nil {
		return nil, err
	}
	defer unlock()
	given, err := b.read()
	if err != nil {
		return nil, err
	}
	out := make([]netip.Prefix, len(b.ranges))
	for i, r := range b.ranges {
		for at, owner := range given {
			if r.Contains(at) && owner.is(container, iface) {
				out[i] = netip.PrefixFrom(at, r.Bits())
			}
		}
		if out[i].IsValid() {
			continue
		}
		at, ok := b.free(i, given)
		if !ok {
			return nil, fmt.Errorf("no IP addresses available in range %s", r)
		}
		if err := os.WriteFile(filepath.Join(b.dir, at.String()), []byte(container+"\r\n"+iface), 0o600); err != nil {
			return nil, fmt.Errorf("book %s: %w", at, err)
		}
		if err := os.WriteFile(b.last(i), []byte(at.String()), 0o600); err != nil {
			return nil, fmt.Errorf("book %s: %w", at, err)
		}
		out[i] = netip.PrefixFrom(at, r.Bits())
	}
	return out, nil
}

// give returns all that the interface has. Nothing booked is no error.
func (b *book) give(container, iface string) error {
	if _, err := os.Stat(b.dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	unlock, err := b.open()
	if err != nil {
		return err
	}
	defer unlock()
	given, err := b.read()
	if err != nil {
		return err
	}
	var faults []error
	for at, owner := range given {
		if owner.is(container, iface) {
			if err := os.Remove(filepath.Join(b.dir, at.String())); err != nil && !errors.Is(err, fs.ErrNotExist) {
				faults = append(faults, fmt.Errorf("return %s: %w", at, err))
			}
		}
	}
	return errors.Join(faults...)
}

// open takes the lock, which other plugins of the same network honour.
func (b *book) open() (unlock func(), err error) {
	if err := os.MkdirAll(b.dir, 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(b.dir, "lock"), os.O_CREATE|os.O_RDONLY, 0o644)
	if err != nil {
		return nil, err
	}
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	return func() { f.Close() }, nil
}

// owner is what a booking says.
type owner struct {
	text  string
	since time.Time
}

// is tells whether the interface has the address. A booking without an interface is of
// an old host-local.
func (o owner) is(container, iface string) bool {
	text := strings.TrimSpace(o.text)
	return text == container+"\r\n"+iface || text == container
}

// read reads the bookings. An empty one was being made when the machine or the plugin
// died, before anybody had the address.
func (b *book) read() (map[netip.Addr]owner, error) {
	entries, err := os.ReadDir(b.dir)
	if err != nil {
		return nil, err
	}
	out := map[netip.Addr]owner{}
	for _, e := range entries {
		at, err := netip.ParseAddr(e.Name())
		if err != nil {
			continue
		}
		text, err := os.ReadFile(filepath.Join(b.dir, e.Name()))
		if err != nil {
			return nil, err
		}
		if len(text) == 0 {
			continue
		}
		o := owner{text: string(text)}
		if info, err := e.Info(); err == nil {
			o.since = info.ModTime()
		}
		out[at] = o
	}
	return out, nil
}

func (b *book) last(i int) string { return filepath.Join(b.dir, fmt.Sprintf("last_reserved_ip.%d", i)) }

// free finds an address of range i that nobody has, going on after the one given last, so
// that an address rests for as long as possible before somebody else has it. When there is
// none, one is taken over that was booked before the machine started: its pod cannot be
// there any more.
func (b *book) free(i int, given map[netip.Addr]owner) (netip.Addr, bool) {
	r := b.ranges[i]
	first, last := gateway(r).Next(), lastOf(r)
	from := first
	if text, err := os.ReadFile(b.last(i)); err == nil {
		if at, err := netip.ParseAddr(strings.TrimSpace(string(text))); err == nil && r.Contains(at) && at.Less(last) && !at.Less(first) {
			from = at.Next()
		}
	}
	for _, usable := range []func(owner) bool{
		func(o owner) bool { return o.text == "" },
		func(o owner) bool { return o.since.Before(b.booted) },
	} {
		// A walk once around. It ends: the bookings are fewer than the steps before it
		// comes to a free address, or the range is short.
		at := from
		for {
			if usable(given[at]) {
				return at, true
			}
			if at == last {
				at = first
			} else {
				at = at.Next()
			}
			if at == from {
				break
			}
		}
	}
	return netip.Addr{}, false
}

// lastOf is the last address that a pod may have: IPv4 keeps the very last for broadcasts.
func lastOf(r netip.Prefix) netip.Addr {
	bytes := r.Addr().AsSlice()
	for bit := r.Bits(); bit < len(bytes)*8; bit++ {
		bytes[bit/8] |= 1 << (7 - bit%8)
	}
	at, _ := netip.AddrFromSlice(bytes)
	if at.Is4() {
		at = at.Prev()
	}
	return at
}
