package etcd

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"

	"go.etcd.io/etcd/client/pkg/v3/types"
)

// In every minute it is one member's turn, and in as many minutes as there are members, each has had it.
func TestTurn(t *testing.T) {
	members := []types.ID{30, 10, 20}
	had := map[types.ID]int{}
	for minute := range 6 {
		now := time.Unix(int64(minute)*60+30, 0)
		n := 0
		for _, m := range []types.ID{10, 20, 30} {
			if turn(now, members, m) {
				n++
				had[m]++
			}
		}
		if n != 1 {
			t.Errorf("minute %d: %d members have their turn", minute, n)
		}
	}
	if had[10] != 2 || had[20] != 2 || had[30] != 2 {
		t.Errorf("turns of six minutes: %v", had)
	}
	if turn(time.Now(), members, 99) {
		t.Error("who is no member has no turn")
	}
}

// A member without others leads at once, not after a heartbeat: here that would be too late. So does one that comes back.
func TestAloneNeedsNoSilence(t *testing.T) {
	cfg := Default()
	cfg.DataDir = t.TempDir()
	cfg.HeartbeatInterval, cfg.ElectionTimeout = 9_000, 45_000
	for i := range 8 {
		ctx, cancel := context.WithTimeout(t.Context(), 8*time.Second)
		s, err := Start(ctx, cfg, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatalf("start %d: %v", i, err)
		}
		// So many that the log is compacted as soon as what was written before is applied again.
		for range 150 {
			if _, err := s.Etcd().Put(ctx, &etcdserverpb.PutRequest{Key: []byte("a")}); err != nil {
				t.Fatal(err)
			}
		}
		cancel()
		s.Close()
	}
}
