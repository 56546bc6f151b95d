// Package storetest is the suite that every version of the store must pass.
//
// The main call is [Run]. Stores given to it may be shared and may hold other
// keys: each test keeps to a prefix of its own.
package storetest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keelson/keelson/apiserver/store"
)

// Run tests what open returns, once for each test.
func Run(t *testing.T, open func(*testing.T) store.Store) {
	for _, test := range []struct {
		name string
		run  func(*testing.T, context.Context, store.Store)
	}{
		{"a put with seen 0 creates and refuses a second time", create},
		{"a put needs the revision that it has seen", update},
		{"a delete needs the revision that it has seen", remove},
		{"a range is one revision in key order", ranges},
		{"a watch misses nothing and repeats nothing", watch},
		{"a watch from a compacted revision says so", compacted},
		{"one of many writers wins each revision", contend},
		{"a commit does all or nothing, as one revision", commit},
		{"a key with a life of a second goes", expire},
		{"a call ends with its context", canceled},
	} {
		t.Run(test.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
			defer cancel()
			test.run(t, ctx, open(t))
		})
	}
}

func put(t *testing.T, ctx context.Context, s store.Store, key, value string, seen int64) int64 {
	t.Helper()
	rev, err := s.Put(ctx, key, []byte(value), seen, 0)
	if err != nil {
		t.Fatalf("put %s=%s seen %d: %v", key, value, seen, err)
	}
	return rev
}

func drop(t *testing.T, ctx context.Context, s store.Store, key string) {
	t.Helper()
	kv, err := s.Get(ctx, key)
	if err != nil || kv == nil {
		t.Fatalf("get %s: %v, %v", key, kv, err)
	}
	if _, err = s.Delete(ctx, key, kv.ModRev); err != nil {
		t.Fatalf("delete %s: %v", key, err)
	}
}

func wantErr(t *testing.T, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("got error %v, want %v", err, want)
	}
}

func create(t *testing.T, ctx context.Context, s store.Store) {
	if kv, err := s.Get(ctx, "create/a"); kv != nil || err != nil {
		t.Fatalf("before: %v, %v", kv, err)
	}
	rev := put(t, ctx, s, "create/a", "1", 0)
	_, err := s.Put(ctx, "create/a", []byte("2"), 0, 0)
	wantErr(t, err, store.ErrConflict)
	kv, err := s.Get(ctx, "create/a")
	if err != nil || kv == nil || string(kv.Value) != "1" || kv.ModRev != rev || kv.CreateRev != rev || kv.Key != "create/a" {
		t.Fatalf("after: %+v, %v; want 1 at %d", kv, err, rev)
	}
	if now, err := s.Rev(ctx); err != nil || now < rev {
		t.Fatalf("revision %d, %v is before the write's %d", now, err, rev)
	}
}

func update(t *testing.T, ctx context.Context, s store.Store) {
	first := put(t, ctx, s, "update/a", "1", 0)
	second := put(t, ctx, s, "update/a", "2", first)
	if second <= first {
		t.Fatalf("revisions %d, %d do not grow", first, second)
	}
	_, err := s.Put(ctx, "update/a", []byte("3"), first, 0)
	wantErr(t, err, store.ErrConflict)
	_, err = s.Put(ctx, "update/none", []byte("3"), first, 0)
	wantErr(t, err, store.ErrConflict)
	kv, _ := s.Get(ctx, "update/a")
	if string(kv.Value) != "2" || kv.CreateRev != first || kv.ModRev != second {
		t.Fatalf("got %+v", kv)
	}
}

func remove(t *testing.T, ctx context.Context, s store.Store) {
	first := put(t, ctx, s, "remove/a", "1", 0)
	_, err := s.Delete(ctx, "remove/a", first-1)
	wantErr(t, err, store.ErrConflict)
	_, err = s.Delete(ctx, "remove/none", first)
	wantErr(t, err, store.ErrConflict)
	rev, err := s.Delete(ctx, "remove/a", first)
	if err != nil || rev <= first {
		t.Fatalf("delete: %d, %v", rev, err)
	}
	if kv, _ := s.Get(ctx, "remove/a"); kv != nil {
		t.Fatalf("still there: %+v", kv)
	}
	again := put(t, ctx, s, "remove/a", "2", 0)
	if kv, _ := s.Get(ctx, "remove/a"); kv.CreateRev != again {
		t.Fatalf("created again at %d, says %d", again, kv.CreateRev)
	}
}

func ranges(t *testing.T, ctx context.Context, s store.Store) {
	for i := 9; i >= 0; i-- {
		put(t, ctx, s, fmt.Sprintf("ranges/%d", i), "x", 0)
	}
	put(t, ctx, s, "rangesother", "w", 0)
	put(t, ctx, s, "rangesgone", "x", 0)
	drop(t, ctx, s, "rangesgone")
	kv, err := s.Get(ctx, "rangesother")
	if err != nil {
		t.Fatal(err)
	}
	last := put(t, ctx, s, "rangesother", "x", kv.ModRev)
	var writing sync.WaitGroup
	defer writing.Wait()
	for prefix, want := range map[string]int{"ranges/": 10, "": 11} {
		var got []string
		rev, err := s.Range(ctx, prefix, func(kvs []store.KV) error {
			for _, kv := range kvs {
				if prefix == "" && !strings.HasPrefix(kv.Key, "ranges") {
					continue // another test's
				}
				if string(kv.Value) != "x" || kv.CreateRev == 0 || kv.ModRev < kv.CreateRev {
					t.Errorf("%s: %+v", kv.Key, kv)
				}
				got = append(got, kv.Key)
				later := kv.Key + "-more" // must not be seen
				writing.Go(func() {
					if _, err := s.Put(ctx, later, []byte("y"), 0, 0); err != nil {
						t.Error(err)
					}
				})
			}
			return nil
		})
		if err != nil || len(got) != want || got[0] != "ranges/0" || got[9] != "ranges/9" || rev < last {
			t.Fatalf("range of %q at %d: %v, %v", prefix, rev, got, err)
		}
		writing.Wait()
		for _, key := range got {
			drop(t, ctx, s, key+"-more")
		}
	}
	stop := errors.New("enough")
	for _, prefix := range []string{"ranges/", ""} {
		_, err = s.Range(ctx, prefix, func([]store.KV) error { return stop })
		wantErr(t, err, stop)
	}
}

func watch(t *testing.T, ctx context.Context, s store.Store) {
	from := put(t, ctx, s, "watch/0", "0", 0)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	seen := make(chan store.Batch, 1000)
	done := make(chan error, 1)
	go func() {
		done <- s.Watch(ctx, from, func(b store.Batch) error { seen <- b; return nil })
	}()
	var want []string
	rev := from
	for i := range 30 {
		key := fmt.Sprintf("watch/%d", i%7)
		kv, err := s.Get(ctx, key)
		if err != nil {
			t.Fatal(err)
		}
		if kv != nil && i%3 == 0 {
			if rev, err = s.Delete(ctx, key, kv.ModRev); err != nil {
				t.Fatal(err)
			}
			want = append(want, fmt.Sprintf("%d delete %s", rev, key))
			continue
		}
		var old int64
		if kv != nil {
			old = kv.ModRev
		}
		rev = put(t, ctx, s, key, fmt.Sprint(i), old)
		want = append(want, fmt.Sprintf("%d put %s=%d", rev, key, i))
	}
	var got []string
	for reached := from; reached < rev; {
		select {
		case b := <-seen:
			for _, ev := range b.Events {
				if ev.KV.ModRev <= reached || ev.KV.ModRev > b.Rev {
					t.Fatalf("event of %d in a batch after %d up to %d", ev.KV.ModRev, reached, b.Rev)
				}
				if ev.Deleted {
					got = append(got, fmt.Sprintf("%d delete %s", ev.KV.ModRev, ev.KV.Key))
				} else {
					got = append(got, fmt.Sprintf("%d put %s=%s", ev.KV.ModRev, ev.KV.Key, ev.KV.Value))
				}
			}
			reached = b.Rev
		case err := <-done:
			t.Fatalf("watch ended: %v", err)
		case <-ctx.Done():
			t.Fatalf("got only %q", got)
		}
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Fatalf("got  %q\nwant %q", got, want)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Fatalf("watch ended with %v", err)
	}
}

func compacted(t *testing.T, ctx context.Context, s store.Store) {
	first := put(t, ctx, s, "compacted/a", "1", 0)
	second := put(t, ctx, s, "compacted/a", "2", first)
	third := put(t, ctx, s, "compacted/a", "3", second)
	if err := s.Compact(ctx, third); err != nil {
		t.Fatal(err)
	}
	err := s.Watch(ctx, first, func(store.Batch) error { return nil })
	wantErr(t, err, store.ErrCompacted)
	wantErr(t, s.Compact(ctx, second), store.ErrCompacted)
	err = s.Watch(ctx, third+1000, func(store.Batch) error { return nil })
	wantErr(t, err, store.ErrCompacted) // a revision that never was: the store is another one
}

func contend(t *testing.T, ctx context.Context, s store.Store) {
	put(t, ctx, s, "contend/a", "0", 0)
	var wg sync.WaitGroup
	const writers, rounds = 8, 10
	for range writers {
		wg.Go(func() {
			for done := 0; done < rounds; {
				kv, err := s.Get(ctx, "contend/a")
				if err != nil {
					t.Error(err)
					return
				}
				var n int
				fmt.Sscan(string(kv.Value), &n)
				_, err = s.Put(ctx, "contend/a", []byte(fmt.Sprint(n+1)), kv.ModRev, 0)
				switch {
				case err == nil:
					done++
				case !errors.Is(err, store.ErrConflict):
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	if kv, _ := s.Get(ctx, "contend/a"); string(kv.Value) != fmt.Sprint(writers*rounds) {
		t.Fatalf("counted to %s, want %d", kv.Value, writers*rounds)
	}
}

func expire(t *testing.T, ctx context.Context, s store.Store) {
	from, err := s.Rev(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Put(ctx, "expire/a", []byte("1"), 0, time.Second); err != nil {
		t.Fatal(err)
	}
	gone := errors.New("gone")
	err = s.Watch(ctx, from, func(b store.Batch) error {
		for _, ev := range b.Events {
			if ev.KV.Key == "expire/a" && ev.Deleted {
				return gone
			}
		}
		return nil
	})
	wantErr(t, err, gone)
}

func canceled(t *testing.T, ctx context.Context, s store.Store) {
	ctx, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := s.Put(ctx, "canceled/a", nil, 0, 0); err == nil {
		t.Error("put did not end")
	}
	if _, err := s.Rev(ctx); err == nil {
		t.Error("rev did not end")
	}
	if err := s.Watch(ctx, 1<<40, func(store.Batch) error { return nil }); err == nil {
		t.Error("watch did not end")
	}
}

func commit(t *testing.T, ctx context.Context, s store.Store) {
	a := put(t, ctx, s, "commit/a", "1", 0)
	b := put(t, ctx, s, "commit/b", "1", 0)
	keep := put(t, ctx, s, "commit/keep", "1", 0)
	refused := func(key string, ops ...store.Op) {
		t.Helper()
		_, err := s.Commit(ctx, ops)
		wantErr(t, err, store.ErrConflict)
		var c *store.ConflictError
		if !errors.As(err, &c) || c.Key != key {
			t.Fatalf("got %v, want a conflict at %s", err, key)
		}
		if kv, err := s.Get(ctx, "commit/a"); err != nil || kv == nil || kv.ModRev != a {
			t.Fatalf("a refused commit has changed commit/a: %+v, %v", kv, err)
		}
	}
	write := func(key string, seen int64) store.Op {
		return store.Op{Key: key, Seen: seen, Value: []byte("2")}
	}
	refused("commit/b", write("commit/a", a), write("commit/b", 0))
	refused("commit/keep", write("commit/a", a), store.Op{Key: "commit/keep", Seen: keep - 1, Do: store.Check})
	refused("commit/none", write("commit/a", a), store.Op{Key: "commit/none", Do: store.Remove})
	refused("commit/none", write("commit/a", a), store.Op{Key: "commit/none", Seen: keep, Do: store.Remove})

	rev, err := s.Commit(ctx, []store.Op{
		write("commit/a", a), {Key: "commit/b", Seen: b, Do: store.Remove}, write("commit/c", 0),
		{Key: "commit/keep", Seen: keep, Do: store.Check}, {Key: "commit/none", Do: store.Check},
	})
	if err != nil || rev <= keep {
		t.Fatalf("commit: revision %d, %v", rev, err)
	}
	for key, want := range map[string]int64{"commit/a": rev, "commit/b": 0, "commit/c": rev, "commit/keep": keep, "commit/none": 0} {
		kv, err := s.Get(ctx, key)
		if err != nil || (kv == nil) != (want == 0) || kv != nil && kv.ModRev != want {
			t.Fatalf("%s: %+v, %v; want revision %d", key, kv, err, want)
		}
	}
	watching, stop := context.WithCancel(ctx)
	defer stop()
	var seen []string
	err = s.Watch(watching, keep, func(b store.Batch) error {
		for _, e := range b.Events {
			if e.KV.ModRev == rev {
				seen = append(seen, fmt.Sprint(e.KV.Key, e.Deleted))
			}
		}
		if b.Rev >= rev {
			stop()
		}
		return nil
	})
	if len(seen) != 3 {
		t.Fatalf("the watch has seen %v of one commit in one batch, want three changes (%v)", seen, err)
	}
}
