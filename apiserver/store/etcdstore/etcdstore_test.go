package etcdstore_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/keelson/keelson/apiserver/etcd"
	"github.com/keelson/keelson/apiserver/store"
	"github.com/keelson/keelson/apiserver/store/etcdstore"
	"github.com/keelson/keelson/apiserver/store/storetest"
)

func start(t *testing.T, change func(*etcd.Config)) *etcd.Server {
	t.Helper()
	cfg := etcd.Default()
	cfg.DataDir = t.TempDir()
	if change != nil {
		change(&cfg)
	}
	s, err := etcd.Start(context.Background(), cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func TestEmbedded(t *testing.T) {
	s := start(t, nil)
	storetest.Run(t, func(*testing.T) store.Store { return etcdstore.Embedded(s.Etcd(), "/registry") })
}

func TestRemote(t *testing.T) {
	const address = "http://127.0.0.1:25001"
	start(t, func(c *etcd.Config) { c.ListenClients = []string{address} })
	s, end, err := etcdstore.Dial(etcdstore.Remote{Servers: []string{address}}, "/registry")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = end() })
	storetest.Run(t, func(*testing.T) store.Store { return s })
}

// A full database refuses writes with ErrFull and still deletes.
func TestFull(t *testing.T) {
	srv := start(t, func(c *etcd.Config) { c.QuotaBytes = 16 << 20 })
	s := etcdstore.Embedded(srv.Etcd(), "/registry")
	ctx := context.Background()
	big := []byte(strings.Repeat("x", 1<<20))
	revs := map[string]int64{}
	var err error
	for i := 0; i < 64 && err == nil; i++ {
		key := fmt.Sprintf("configmaps/default/%d", i)
		revs[key], err = s.Put(ctx, key, big, 0, 0)
	}
	if !errors.Is(err, store.ErrFull) {
		t.Fatalf("got %v, want ErrFull", err)
	}
	for key, rev := range revs {
		if rev == 0 {
			continue
		}
		if _, err := s.Delete(ctx, key, rev); err != nil {
			t.Fatalf("delete %s while full: %v", key, err)
		}
	}
}

// A full database comes back by itself once enough was deleted: history goes, the file is
// rewritten, the alarm ends. Nobody has to do anything but delete.
func TestFullRecovers(t *testing.T) {
	srv := start(t, func(c *etcd.Config) { c.QuotaBytes = 16 << 20 })
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	done := make(chan error, 1)
	tending, stop := context.WithCancel(ctx)
	go func() { done <- srv.Maintain(tending) }()
	defer func() { stop(); <-done }()
	s := etcdstore.Embedded(srv.Etcd(), "/registry")
	big := []byte(strings.Repeat("x", 1<<20))
	revs := map[string]int64{}
	var full error
	for i := 0; i < 1024 && full == nil; i++ { // etcd notices only when it commits: a fast disk takes some more
		key := fmt.Sprintf("configmaps/default/%d", i)
		var rev int64
		if rev, full = s.Put(ctx, key, big, 0, 0); full == nil {
			revs[key] = rev
		}
	}
	if !errors.Is(full, store.ErrFull) {
		t.Fatalf("got %v, want ErrFull", full)
	}
	const fit = 6 // below the quota
	for key, rev := range revs {
		if len(revs) <= fit {
			break
		}
		delete(revs, key)
		// A commit that only removes works too.
		if _, err := s.Commit(ctx, []store.Op{{Key: key, Seen: rev, Do: store.Remove}}); err != nil {
			t.Fatalf("delete %s while full: %v", key, err)
		}
	}
	for {
		_, err := s.Put(ctx, "configmaps/default/again", []byte("small"), 0, 0)
		if err == nil {
			break
		}
		if !errors.Is(err, store.ErrFull) {
			t.Fatalf("while full: %v", err)
		}
		select {
		case <-ctx.Done():
			t.Fatalf("writes still fail: %v", err)
		case <-time.After(50 * time.Millisecond):
		}
	}
	if got := srv.Etcd().Backend().Size(); got >= 16<<20 {
		t.Errorf("the file has %d bytes, not less than the quota", got)
	}
}

// What upstream wrote outside the prefix does not hurt, and a data directory of
// another format is refused by name.
func TestFormat(t *testing.T) {
	dir := t.TempDir()
	writeFile(t, dir+"/KEELSON_FORMAT", "99\n")
	cfg := etcd.Default()
	cfg.DataDir = dir
	_, err := etcd.Start(context.Background(), cfg, slog.New(slog.DiscardHandler))
	if !errors.Is(err, etcd.ErrFormat) || !strings.Contains(err.Error(), dir) {
		t.Fatalf("got %v, want ErrFormat with the path", err)
	}
}

// What does not fit into one answer comes in pages of one revision, in order, whatever the sizes.
func TestRangeInPages(t *testing.T) {
	s := etcdstore.Embedded(start(t, nil).Etcd(), "/registry")
	ctx := context.Background()
	big := []byte(strings.Repeat("x", 256<<10))
	const n = 2600
	for i := 0; i < n; i += 100 {
		var ops []store.Op
		for k := i; k < i+100; k++ {
			value := []byte("small")
			if k%20 == 0 && k < 1000 {
				value = big // the second page gets fewer keys, the third more
			}
			ops = append(ops, store.Op{Key: fmt.Sprintf("many/%05d", k), Do: store.Write, Value: value})
		}
		if _, err := s.Commit(ctx, ops); err != nil {
			t.Fatal(err)
		}
	}
	pages, seen := 0, 0
	at, err := s.Range(ctx, "many/", func(kvs []store.KV) error {
		if pages++; pages == 1 {
			if _, err := s.Put(ctx, "many/99999", []byte("late"), 0, 0); err != nil {
				return err
			}
		}
		for _, kv := range kvs {
			if want := fmt.Sprintf("many/%05d", seen); kv.Key != want {
				return fmt.Errorf("got %s; want %s", kv.Key, want)
			}
			seen++
		}
		return nil
	})
	if err != nil || seen != n || pages < 3 {
		t.Errorf("%d keys in %d pages, %v; want %d in several", seen, pages, err, n)
	}
	if now, err := s.Rev(ctx); err != nil || now != at+1 {
		t.Errorf("read at %d, now it is %d (%v); want the one before", at, now, err)
	}
	gone, cancel := context.WithCancel(ctx)
	_, err = s.Range(gone, "many/", func([]store.KV) error { cancel(); return nil })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("canceled while pages were left: %v", err)
	}
}

// Everything read from the database's pages is what etcd says of each part: over many revisions of each key, with
// deletions, and with a history that is partly forgotten.
func TestRangeOfAll(t *testing.T) {
	s := etcdstore.Embedded(start(t, nil).Etcd(), "/registry")
	ctx := t.Context()
	random := rand.New(rand.NewPCG(1, 2))
	seen := map[string]int64{}
	const commits, ops, keys = 250, 100, 4000
	for i := range commits {
		var list []store.Op
		taken := map[string]bool{}
		for range ops {
			key := fmt.Sprintf("%c/%d", "abc"[random.IntN(3)], random.IntN(keys))
			if taken[key] {
				continue
			}
			taken[key] = true
			op := store.Op{Key: key, Seen: seen[key], Do: store.Write, Value: []byte(fmt.Sprint(key, " at ", i))}
			if op.Seen != 0 && random.IntN(3) == 0 {
				op.Do, op.Value = store.Remove, nil
			}
			list = append(list, op)
		}
		rev, err := s.Commit(ctx, list)
		if err != nil {
			t.Fatal(err)
		}
		for _, op := range list {
			if seen[op.Key] = rev; op.Do == store.Remove {
				delete(seen, op.Key)
			}
		}
		if i == commits/2 {
			if err := s.Compact(ctx, rev); err != nil {
				t.Fatal(err)
			}
		}
	}
	read := func(prefix string) (all []store.KV) {
		if _, err := s.Range(ctx, prefix, func(page []store.KV) error {
			for _, kv := range page {
				kv.Value = bytes.Clone(kv.Value)
				all = append(all, kv)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		return all
	}
	all, parts := read(""), slices.Concat(read("a/"), read("b/"), read("c/"))
	if len(all) != len(seen) || !reflect.DeepEqual(all, parts) {
		t.Fatalf("%d keys were written; of everything %d were read, of the parts %d", len(seen), len(all), len(parts))
	}
}
