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
// pages stay: their number is what one collection finds.
const (
	busyBytesPerSecond = 4 << 20
	busyRoomBytes      = 96 << 20 // allocated between two collections, at least, while busy
	growthRoomBytes    = 32 << 20 // the same while objects are added
	growing            = 50       // objects a second
	idlePercent        = 40
	busyPercent        = 50
	mostPercent        = 400
	tendEvery          = 2 * time.Second
	worthReturning     = 32 << 20 // bytes allocated since the last return
	unmapEvery         = 10 * time.Second
)

// returns are the moments of a quiet time when the cache is packed and what is free goes back to the system:
// soon after the busy time, when the cache's forms have aged, and when its log has.
var returns = [...]time.Duration{15 * time.Second, 90 * time.Second, 330 * time.Second}

// gcPercent is the GOGC value for an allocation rate, a live heap, and how many objects a second are added.
func gcPercent(bytesPerSecond, live uint64, added int) int {
	if bytesPerSecond < busyBytesPerSecond {
		return idlePercent
	}
	room := uint64(busyRoomBytes)
	if added >= growing {
		room = growthRoomBytes
	}
	return int(min(max(busyPercent, room*100/max(live, 1)), mostPercent))
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
	objects := 0
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
		objects = count
		if p := gcPercent(rate, sample[1].Value.Uint64(), added); p/10 != percent/10 { // not for every byte
			percent = p
			debug.SetGCPercent(p)
		}
		if percent != idlePercent {
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
			debug.FreeOSMemory()
			resident.Release()
			allocated = now
			next++
		}
	}
}
