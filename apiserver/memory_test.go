package apiserver

import "testing"

func TestGCPercent(t *testing.T) {
	for _, c := range []struct {
		rate, live uint64
		added      int
		want       int
	}{
		{0, 20 << 20, 0, idlePercent},
		{0, 20 << 20, 1000, idlePercent},
		{0, 1 << 30, 0, largePercent},
		{128 << 20, 24 << 20, 0, mostPercent},
		{128 << 20, 48 << 20, 0, 200}, // 96 MiB are allocated before the next collection
		{64 << 20, 48 << 20, 0, 166},  // or what is allocated in 5/4 of a second
		{8 << 20, 48 << 20, 0, idlePercent},
		{8 << 20, 128 << 20, 0, largePercent},
		{128 << 20, 120 << 20, 0, 40}, // 48 MiB of a large heap
		{128 << 20, 1 << 30, 0, largePercent},
		{128 << 20, 40 << 20, growing, 70},
		{128 << 20, 120 << 20, growing, growthPercent},
		{128 << 20, 16 << 20, growing, 175},
		{8 << 20, 1, growing, mostPercent},
	} {
		if got := gcPercent(c.rate, c.live, c.added); got != c.want {
			t.Errorf("%d bytes a second, %d live, %d added a second: %d %%, want %d", c.rate, c.live, c.added, got, c.want)
		}
	}
}
