package resident

import (
	"runtime"
	"runtime/debug"
	"testing"
)

var kept []byte

func released() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapReleased
}

// What a busy time leaves free goes back to the system in the quiet time after it, and only then.
func TestTend(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // nobody else collects
	var h heap
	h.tend()
	kept = make([]byte, 4*worth)
	for i := range kept {
		kept[i] = 1
	}
	kept = nil
	if h.tend() {
		t.Error("given back in a busy time")
	}
	before := released()
	if !h.tend() {
		t.Fatal("nothing was given back")
	}
	if now := released(); now < before+2*worth {
		t.Errorf("%d MiB were released before, %d now", before>>20, now>>20)
	}
	if h.tend() {
		t.Error("given back with nothing free")
	}
}
