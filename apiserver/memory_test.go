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
		{8 << 20, 24 << 20, 0, 400}, // 96 MiB are allocated before the next collection
		{8 << 20, 48 << 20, 0, 200},
		{8 << 20, 96 << 20, 0, 50}, // or when the heap has 144
		{8 << 20, 40 << 20, growing, 50},
		{8 << 20, 90 << 20, growing, idlePercent},
		{8 << 20, 16 << 20, growing, 125},
		{8 << 20, 1, growing, mostPercent},
		{8 << 20, 1 << 30, 0, largePercent},
		{8 << 20, 1 << 30, growing, largePercent},
		{0, 1 << 30, 0, largePercent},
	} {
		if got := gcPercent(c.rate, c.live, c.added); got != c.want {
			t.Errorf("%d bytes a second, %d live, %d added a second: %d %%, want %d", c.rate, c.live, c.added, got, c.want)
		}
	}
}
