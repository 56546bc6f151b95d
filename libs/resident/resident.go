// Package resident keeps the resident memory of a quiet daemon small.
//
// Its one call is [Settle]. It promises to change nothing that the program can see: only clean
// pages of the program file are given back, and what is needed again is mapped again from the
// page cache. It starts no goroutine; the caller owns the one it runs on.
package resident

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Settle gives back, some time after the start, the pages of the program file that only the
// start has needed: registering types touches nearly all of it, once. What is needed again
// is mapped again from the page cache. This is about half of the resident memory of a quiet
// daemon. It returns when ctx ends. Source: madvise(2), MADV_DONTNEED on a private mapping of an unchanged file.
func Settle(ctx context.Context) error {
	for _, after := range []time.Duration{10 * time.Second, 5 * time.Minute} {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(after):
		}
		maps, err := os.ReadFile("/proc/self/maps")
		if err != nil {
			return nil
		}
		program, err := os.Readlink("/proc/self/exe")
		if err != nil {
			return nil
		}
		for line := range bytes.Lines(maps) {
			var from, to uintptr
			var mode string
			if _, err := fmt.Sscanf(string(line), "%x-%x %s", &from, &to, &mode); err != nil || !bytes.HasSuffix(bytes.TrimSpace(line), []byte(program)) {
				continue
			}
			if mode == "r-xp" || mode == "r--p" {
				_, _, _ = unix.Syscall(unix.SYS_MADVISE, from, to-from, unix.MADV_DONTNEED)
			}
		}
	}
	<-ctx.Done()
	return nil
}
