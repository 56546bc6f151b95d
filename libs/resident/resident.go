// Package resident keeps the resident memory of a quiet daemon small.
//
// Its calls are [Settle] and [Release]. They promise to change nothing that the program can see: only clean
// pages of files, which are mapped again from the page cache when they are needed, and what the
// heap has free are given back. They start no goroutine; the caller owns the one they run on.
package resident

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"time"

	"golang.org/x/sys/unix"
)

const (
	afterStart = 10 * time.Second
	every      = 5 * time.Second
	// worth is how much must be free to be given back.
	worth = 12 << 20
	// quiet is how much may have been allocated since the look before.
	quiet = 3 << 20
)

// Settle gives back, some time after the start, the pages of files that only the
// start has needed: registering types touches nearly all of the program, once. This is about half of
// the resident memory of a quiet daemon. After a busy time it gives back what the heap has free, which the
// runtime keeps for the next one, and again such pages. It returns when ctx ends.
func Settle(ctx context.Context) error {
	release := time.After(afterStart)
	tick := time.NewTicker(every)
	defer tick.Stop()
	var h heap
	for looks := 0; ; {
		select {
		case <-ctx.Done():
			return nil
		case <-release:
			Release()
		case <-tick.C:
			if looks++; looks == 60 {
				Release() // what was needed for the first lists
			}
			h.tend()
		}
	}
}

// heap is what is known of the heap from the last look.
type heap struct{ allocated uint64 }

// tend gives back what is free, if that is much and little happens. It reports whether it did.
func (h *heap) tend() bool {
	s := []metrics.Sample{
		{Name: "/gc/heap/allocs:bytes"}, {Name: "/memory/classes/heap/free:bytes"},
		{Name: "/memory/classes/heap/objects:bytes"}, {Name: "/gc/heap/live:bytes"},
	}
	metrics.Read(s)
	allocated, free, objects, live := s[0].Value.Uint64(), s[1].Value.Uint64(), s[2].Value.Uint64(), s[3].Value.Uint64()
	since := allocated - h.allocated
	h.allocated = allocated
	if objects > live { // what is over may be garbage
		free += objects - live
	}
	if since > quiet || free < worth {
		return false
	}
	debug.FreeOSMemory()
	Release() // the pages of the program that only the busy time has needed
	return true
}

// Release gives back the pages of the program file and of files that are mapped to be read, as etcd's
// database is. Where the kernel does not say what is mapped it does nothing.
//
// Source: madvise(2), MADV_DONTNEED on mappings of unchanged file pages.
func Release() {
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return
	}
	program, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return
	}
	for line := range bytes.Lines(maps) {
		var from, to uintptr
		var mode string
		if _, err := fmt.Sscanf(string(line), "%x-%x %s", &from, &to, &mode); err != nil {
			continue
		}
		ours := bytes.HasSuffix(bytes.TrimSpace(line), []byte(program)) && (mode == "r-xp" || mode == "r--p")
		if ours || mode == "r--s" {
			_, _, _ = unix.Syscall(unix.SYS_MADVISE, from, to-from, unix.MADV_DONTNEED)
		}
	}
}
