// Package memory is a store in memory that keeps the same rules as etcd: for
// tests of everything above the store, and as the obvious version that the etcd
// one is compared with.
//
// The main call is [New]. It promises linearizable calls, one revision per write
// and watches that miss nothing; it keeps nothing after the process and every
// revision until Compact. Fail makes calls fail on purpose.
package memory

import (
	"context"
	"sort"
	"strings"
	"sync"
	"time"

	"github.com/keelson/keelson/apiserver/store"
)

// Store is a store.Store in memory.
type Store struct {
	mu        sync.Mutex // guards what follows
	rev       int64
	compacted int64
	keys      map[string]store.KV
	history   []store.Event // oldest first, all after compacted
	changed   chan struct{} // closed at the next change
	fail      func(call, key string) error
}

// New returns an empty store at revision 1, where etcd starts too.
func New() *Store {
	return &Store{rev: 1, keys: map[string]store.KV{}, changed: make(chan struct{})}
}

// Fail makes every call ask f first; nil ends that. Calls are named "put", "delete", "get", "rev", "range", "watch".
func (s *Store) Fail(f func(call, key string) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fail = f
	close(s.changed) // open watches look again
	s.changed = make(chan struct{})
}

func (s *Store) failing(call, key string) error {
	if s.fail == nil {
		return nil
	}
	return s.fail(call, key)
}

func (s *Store) record(events ...store.Event) {
	s.history = append(s.history, events...)
	close(s.changed)
	s.changed = make(chan struct{})
}

// Put is store.Store's.
func (s *Store) Put(ctx context.Context, key string, value []byte, seen int64, ttl time.Duration) (int64, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.failing("put", key); err != nil {
		return 0, err
	}
	old, exists := s.keys[key]
	if old.ModRev != seen {
		return 0, store.ErrConflict
	}
	s.rev++
	kv := store.KV{Key: key, Value: append([]byte(nil), value...), CreateRev: old.CreateRev, ModRev: s.rev}
	if !exists {
		kv.CreateRev = s.rev
	}
	s.keys[key] = kv
	s.record(store.Event{KV: kv})
	if ttl > 0 {
		rev := s.rev
		time.AfterFunc(ttl, func() { _, _ = s.Delete(context.Background(), key, rev) })
	}
	return s.rev, nil
}

// Delete is store.Store's.
func (s *Store) Delete(ctx context.Context, key string, seen int64) (int64, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.failing("delete", key); err != nil {
		return 0, err
	}
	if old, ok := s.keys[key]; !ok || old.ModRev != seen {
		return 0, store.ErrConflict
	}
	s.rev++
	delete(s.keys, key)
	s.record(store.Event{KV: store.KV{Key: key, ModRev: s.rev}, Deleted: true})
	return s.rev, nil
}

// Commit is store.Store's.
func (s *Store) Commit(ctx context.Context, ops []store.Op) (int64, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, op := range ops {
		if err := s.failing("put", op.Key); err != nil {
			return 0, err
		}
		if s.keys[op.Key].ModRev != op.Seen || op.Do == store.Remove && op.Seen == 0 {
			return 0, &store.ConflictError{Key: op.Key}
		}
	}
	s.rev++
	var events []store.Event
	for _, op := range ops {
		kv := store.KV{Key: op.Key, CreateRev: s.keys[op.Key].CreateRev, ModRev: s.rev}
		switch op.Do {
		case store.Write:
			kv.Value = append([]byte(nil), op.Value...)
			if op.Seen == 0 {
				kv.CreateRev = s.rev
			}
			s.keys[op.Key] = kv
			events = append(events, store.Event{KV: kv})
		case store.Remove:
			delete(s.keys, op.Key)
			events = append(events, store.Event{KV: store.KV{Key: op.Key, ModRev: s.rev}, Deleted: true})
		}
	}
	s.record(events...)
	return s.rev, nil
}

// Get is store.Store's.
func (s *Store) Get(ctx context.Context, key string) (*store.KV, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.failing("get", key); err != nil {
		return nil, err
	}
	kv, ok := s.keys[key]
	if !ok {
		return nil, nil
	}
	kv.Value = append([]byte(nil), kv.Value...)
	return &kv, nil
}

// Rev is store.Store's.
func (s *Store) Rev(ctx context.Context) (int64, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.rev, s.failing("rev", "")
}

// page is small, so that tests see several.
const page = 3

// Range is store.Store's.
func (s *Store) Range(ctx context.Context, prefix string, fn func([]store.KV) error) (int64, error) {
	s.mu.Lock()
	if err := s.failing("range", prefix); err != nil {
		s.mu.Unlock()
		return 0, err
	}
	rev := s.rev
	var all []store.KV
	for _, kv := range s.keys {
		if strings.HasPrefix(kv.Key, prefix) {
			kv.Value = append([]byte(nil), kv.Value...)
			all = append(all, kv)
		}
	}
	s.mu.Unlock()
	sort.Slice(all, func(i, j int) bool { return all[i].Key < all[j].Key })
	for len(all) > 0 {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		n := min(page, len(all))
		if err := fn(all[:n:n]); err != nil {
			return 0, err
		}
		all = all[n:]
	}
	return rev, nil
}

// Watch is store.Store's.
func (s *Store) Watch(ctx context.Context, from int64, fn func(store.Batch) error) error {
	for {
		s.mu.Lock()
		if err := s.failing("watch", ""); err != nil {
			s.mu.Unlock()
			return err
		}
		if from < s.compacted || from > s.rev {
			s.mu.Unlock()
			return store.ErrCompacted
		}
		i := sort.Search(len(s.history), func(i int) bool { return s.history[i].KV.ModRev > from })
		events := append([]store.Event(nil), s.history[i:]...)
		rev, changed := s.rev, s.changed
		s.mu.Unlock()
		if len(events) > 0 {
			if err := fn(store.Batch{Rev: rev, Events: events}); err != nil {
				return err
			}
			from = rev
			continue
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-changed:
		}
	}
}

// Compact is store.Store's.
func (s *Store) Compact(_ context.Context, rev int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if rev <= s.compacted || rev > s.rev {
		return store.ErrCompacted
	}
	s.compacted = rev
	i := sort.Search(len(s.history), func(i int) bool { return s.history[i].KV.ModRev > rev })
	s.history = append([]store.Event(nil), s.history[i:]...)
	return nil
}
