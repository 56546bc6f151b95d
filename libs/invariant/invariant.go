// Package invariant checks what must always be true, in test builds only.
//
// The main calls are [Check] for a condition that is at hand and [Costly] for one that must be
// computed. Both are compiled in with the race detector or with the build tag "invariants", and
// are nothing otherwise. A broken invariant panics with its formula: it is a fault of ours, never
// of the input, the network or the disk.
package invariant

import "fmt"

// Check panics when ok is false and checks are compiled in.
func Check(ok bool, format string, args ...any) {
	if Enabled && !ok {
		panic("invariant broken: " + fmt.Sprintf(format, args...))
	}
}

// Costly calls f when checks are compiled in, and panics with the error that it returns.
func Costly(f func() error) {
	if !Enabled {
		return
	}
	if err := f(); err != nil {
		panic("invariant broken: " + err.Error())
	}
}
