package apiserver

import (
	"context"
	"os"
	"runtime/debug"
	runtimemetrics "runtime/metrics"
	"time"

	"github.com/keelson/keelson/apiserver/watchcache"
	"github.com/keelson/keelson/libs/resident"
)

// How the garbage collector is driven. Most of the heap is encoded objects, which
// hold no pointers: collecting is cheap for its size, and memory is worth more. While
// little happens nothing is lost by collecting early; a large heap should not double.
// A small busy one is given room: what a collection costs does not shrink with it. While objects
// are added there is less room, because each leaves small parts in pages that are otherwise garbage, and such
// pages stay: their number is what one collection finds. When many were added, they are packed as soon as no more are;
// a few thousand can wait for a quiet moment.
const (
	busyBytesPerSecond = 4 << 20
	busyRoomBytes      = 96 << 20 // allocated between two collections while busy: at most, and not more than in 5/4 s
	growthRoomBytes    = 28 << 20 // the same while objects are added, and
	growthPercent      = 25       // of the heap at least
	growing            = 50       // objects a second
	idlePercent        = 40
	largePercent       = 20 // of a heap larger than
	largeHeapBytes     = 96 << 20
	largeRoomBytes     = 48 << 20 // in place of busyRoomBytes, for a large heap
	mostPercent        = 400      // also while everything is loaded: what is garbage then makes room for objects
	tendEvery          = time.Second
	worthReturning     = 32 << 20 // bytes allocated since the last return
	worthPacking       = 2000     // objects added since the last time, when little happens, and
	worthPackingBusy   = 5000     // while other work waits for it
	unmapEvery         = 10 * time.Second
)

// returns are the moments of a quiet time when the cache is packed and what is free goes back to the system:
// soon after the busy time, when the cache's forms have aged, and when its log has.
var returns = [...]time.Duration{15 * time.Second, 90 * time.Second, 330 * time.Second}

// gcPercent is the GOGC value for an allocation rate, a live heap, and how many objects a second are added.
func gcPercent(bytesPerSecond, live uint64, added int) int {
	least, most := uint64(idlePercent), uint64(busyRoomBytes)
	if live > largeHeapBytes {
		least, most = largePercent, largeRoomBytes
	}
	room := uint64(0)
	switch {
	case bytesPerSecond < busyBytesPerSecond:
	case added >= growing:
		room, least = growthRoomBytes, growthPercent
	default:
		room = min(most, bytesPerSecond*5/4)
	}
	return int(min(max(least, room*100/max(live, 1)), mostPercent))
}

// spareCollector makes collections rare while the server starts: tendMemory ends that.
func spareCollector() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(mostPercent)
	}
}

// tendMemory adapts the collector to what the server does. An administrator's GOGC wins. In quiet times the
// cache moves what stays close together, so that more becomes free.
func tendMemory(ctx context.Context, cache *watchcache.Cache) error {
	if os.Getenv("GOGC") != "" {
		return nil
	}
	sample := []runtimemetrics.Sample{{Name: "/gc/heap/allocs:bytes"}, {Name: "/gc/heap/live:bytes"}}
	tick := time.NewTicker(tendEvery)
	defer tick.Stop()
	var last, allocated uint64
	objects, loose := 0, 0 // loose were added since the last packing
	var quiet, busy time.Duration
	next := 0    // of returns; all are over when nothing is worth it
	percent := 0 // none yet
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		runtimemetrics.Read(sample)
		now := sample[0].Value.Uint64()
		rate := (now - last) / uint64(tendEvery/time.Second)
		last = now
		count := cache.Stats().Objects
		added := (count - objects) / int(tendEvery/time.Second)
		loose += max(0, count-objects)
		objects = count
		if p := gcPercent(rate, sample[1].Value.Uint64(), added); p/10 != percent/10 { // not for every byte
			percent = p
			debug.SetGCPercent(p)
		}
		if added < growing && (loose >= worthPackingBusy || loose >= worthPacking && rate < busyBytesPerSecond) {
			cache.Pack()
			debug.FreeOSMemory()
			resident.Release()
			loose = 0
		}
		if rate >= busyBytesPerSecond {
			quiet, next = 0, 0
			// Each write maps pages of etcd's database that nobody reads again.
			if busy += tendEvery; busy >= unmapEvery {
				resident.Release()
				busy = 0
			}
			continue
		}
		quiet += tendEvery
		switch {
		case next == len(returns) || quiet < returns[next]:
		case next == 0 && now-allocated < worthReturning:
			next = len(returns)
		default:
			cache.Pack()
			loose = 0
			debug.FreeOSMemory()
			resident.Release()
			allocated = now
			next++
		}
	}
}
