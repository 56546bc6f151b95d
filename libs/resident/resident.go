// Package resident keeps the resident memory of a quiet daemon small.
//
// Its calls are [Settle] and [Release]. They promise to change nothing that the program can see: only clean
// pages of files are given back, and what is needed again is mapped again from the
// page cache. They start no goroutine; the caller owns the one they run on.
package resident

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Settle gives back, some time after the start, the pages of files that only the
// start has needed: registering types touches nearly all of the program, once. This is about half of
// the resident memory of a quiet daemon. It returns when ctx ends.
func Settle(ctx context.Context) error {
	for _, after := range []time.Duration{10 * time.Second, 5 * time.Minute} {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(after):
		}
		Release()
	}
	<-ctx.Done()
	return nil
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
