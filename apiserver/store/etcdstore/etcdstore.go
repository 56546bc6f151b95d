// Package etcdstore is the store in etcd: one inside this process, called
// without a socket, or one elsewhere.
//
// The main calls are [Embedded] and [Dial]. It promises upstream's key layout:
// every key stands below the prefix, "/registry" unless told otherwise, so that a
// cluster's etcd can be taken over and given back. Keys outside the prefix are not
// touched; their changes only move the revision on. A life (TTL) is a lease shared
// by the keys of one minute.
package etcdstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"github.com/keelson/keelson/apiserver/store"
)

// backend is etcd's own calls, over a socket or not.
type backend interface {
	Range(context.Context, *pb.RangeRequest) (*pb.RangeResponse, error)
	Txn(context.Context, *pb.TxnRequest) (*pb.TxnResponse, error)
	Compact(context.Context, *pb.CompactionRequest) (*pb.CompactionResponse, error)
	LeaseGrant(context.Context, *pb.LeaseGrantRequest) (*pb.LeaseGrantResponse, error)
	// Watch calls fn with every change of every key after from, and blocks.
	Watch(ctx context.Context, from int64, fn func(events []*mvccpb.Event, rev int64) error) error
}

// whole is a backend that has a faster way to read everything.
type whole interface {
	all(ctx context.Context, prefix string, rev int64, fn func([]store.KV) error) (int64, error)
}

// Store is a store.Store in etcd.
type Store struct {
	b      backend
	prefix string // ends in "/"
	leases leases
}

func open(b backend, prefix string) *Store {
	s := &Store{b: b, prefix: "/" + strings.Trim(prefix, "/") + "/"}
	s.leases.byTTL = map[int64]sharedLease{}
	return s
}

func (s *Store) key(key string) []byte {
	return append(append(make([]byte, 0, len(s.prefix)+len(key)), s.prefix...), key...)
}

// translate turns etcd's errors into the contract's.
func translate(err error) error {
	if err == nil {
		return nil
	}
	switch e := rpctypes.Error(err); {
	case errors.Is(e, rpctypes.ErrNoSpace):
		return fmt.Errorf("%w (etcd): free space by deleting objects, or raise the quota", store.ErrFull)
	case errors.Is(e, rpctypes.ErrCompacted), errors.Is(e, rpctypes.ErrFutureRev):
		return store.ErrCompacted
	default:
		return fmt.Errorf("etcd: %w", e)
	}
}

func seenIs(key []byte, rev int64) []*pb.Compare {
	return []*pb.Compare{{
		Key: key, Target: pb.Compare_MOD, Result: pb.Compare_EQUAL,
		TargetUnion: &pb.Compare_ModRevision{ModRevision: rev},
	}}
}

// Put is store.Store's.
func (s *Store) Put(ctx context.Context, key string, value []byte, seen int64, ttl time.Duration) (int64, error) {
	var lease int64
	if ttl > 0 {
		var err error
		if lease, err = s.leases.get(ctx, s.b, ttl); err != nil {
			return 0, err
		}
	}
	k := s.key(key)
	resp, err := s.b.Txn(ctx, &pb.TxnRequest{
		Compare: seenIs(k, seen),
		Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestPut{
			RequestPut: &pb.PutRequest{Key: k, Value: value, Lease: lease},
		}}},
	})
	if errors.Is(rpctypes.Error(err), rpctypes.ErrLeaseNotFound) {
		s.leases.forget(lease)
	}
	return revision(resp, err)
}

func revision(resp *pb.TxnResponse, err error) (int64, error) {
	switch {
	case err != nil:
		return 0, translate(err)
	case !resp.Succeeded:
		return 0, store.ErrConflict
	}
	return resp.Header.Revision, nil
}

// Delete is store.Store's.
func (s *Store) Delete(ctx context.Context, key string, seen int64) (int64, error) {
	if seen == 0 {
		return 0, store.ErrConflict
	}
	k := s.key(key)
	return revision(s.b.Txn(ctx, &pb.TxnRequest{
		Compare: seenIs(k, seen),
		Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestDeleteRange{
			RequestDeleteRange: &pb.DeleteRangeRequest{Key: k},
		}}},
	}))
}

func (s *Store) kv(kv *mvccpb.KeyValue) store.KV {
	return store.KV{Key: string(kv.Key[len(s.prefix):]), Value: kv.Value, CreateRev: kv.CreateRevision, ModRev: kv.ModRevision}
}

// Get is store.Store's.
func (s *Store) Get(ctx context.Context, key string) (*store.KV, error) {
	resp, err := s.b.Range(ctx, &pb.RangeRequest{Key: s.key(key)})
	if err != nil {
		return nil, translate(err)
	}
	if len(resp.Kvs) == 0 {
		return nil, nil
	}
	kv := s.kv(resp.Kvs[0])
	return &kv, nil
}

// Rev is store.Store's.
func (s *Store) Rev(ctx context.Context) (int64, error) {
	resp, err := s.b.Range(ctx, &pb.RangeRequest{Key: []byte(s.prefix), CountOnly: true})
	if err != nil {
		return 0, translate(err)
	}
	return resp.Header.Revision, nil
}

// How much one answer of etcd holds while everything is read: as many keys as came to pageBytes
// before. etcd visits all keys that follow for each page, to count them, so that small pages of a large
// store cost more than what they bring.
const (
	firstKeys = 1000
	mostKeys  = 20_000
	pageBytes = 8 << 20
)

// Range is store.Store's.
func (s *Store) Range(ctx context.Context, prefix string, fn func([]store.KV) error) (int64, error) {
	if b, ok := s.b.(whole); ok && prefix == "" {
		rev, err := s.Rev(ctx)
		if err != nil {
			return 0, err
		}
		return b.all(ctx, s.prefix, rev, fn)
	}
	return s.paged(ctx, prefix, fn)
}

// paged is Range by etcd's own. The next page is read while fn has one.
func (s *Store) paged(ctx context.Context, prefix string, fn func([]store.KV) error) (int64, error) {
	var reading sync.WaitGroup
	defer reading.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type answer struct {
		kvs  []store.KV
		rev  int64
		more bool
		err  error
	}
	pages := make(chan answer)
	reading.Go(func() { // ends with the last page, or with ctx
		from, limit, rev := s.key(prefix), int64(firstKeys), int64(0)
		end := after(from)
		for {
			var a answer
			resp, err := s.b.Range(ctx, &pb.RangeRequest{Key: from, RangeEnd: end, Limit: limit, Revision: rev, Serializable: rev != 0})
			if err != nil {
				a.err = translate(err)
			} else {
				if rev == 0 {
					rev = resp.Header.Revision
				}
				a.kvs, a.rev, a.more = make([]store.KV, len(resp.Kvs)), rev, resp.More && len(resp.Kvs) > 0
				size := 1
				for i, kv := range resp.Kvs {
					a.kvs[i] = s.kv(kv)
					size += len(kv.Key) + len(kv.Value)
				}
				limit = min(max(int64(len(resp.Kvs))*pageBytes/int64(size), 1), mostKeys)
				if a.more {
					from = append(bytes.Clone(resp.Kvs[len(resp.Kvs)-1].Key), 0)
				}
			}
			select {
			case pages <- a:
			case <-ctx.Done():
				return
			}
			if !a.more {
				return
			}
		}
	})
	for {
		var a answer
		select {
		case a = <-pages:
		case <-ctx.Done():
			return 0, translate(ctx.Err())
		}
		if a.err != nil {
			return 0, a.err
		}
		if len(a.kvs) > 0 {
			if err := fn(a.kvs); err != nil {
				return 0, err
			}
		}
		if !a.more {
			return a.rev, nil
		}
	}
}

// after is the first key that does not start with prefix.
func after(prefix []byte) []byte {
	end := append([]byte(nil), prefix...)
	for i := len(end) - 1; i >= 0; i-- {
		if end[i] < 0xff {
			end[i]++
			return end[:i+1]
		}
	}
	return []byte{0}
}

// Watch is store.Store's.
func (s *Store) Watch(ctx context.Context, from int64, fn func(store.Batch) error) error {
	return s.b.Watch(ctx, from, func(events []*mvccpb.Event, rev int64) error {
		b := store.Batch{Rev: rev, Events: make([]store.Event, 0, len(events))}
		for _, ev := range events {
			if !strings.HasPrefix(string(ev.Kv.Key), s.prefix) {
				continue
			}
			e := store.Event{KV: s.kv(ev.Kv), Deleted: ev.Type == mvccpb.DELETE}
			if e.Deleted {
				e.KV.Value = nil
			}
			b.Events = append(b.Events, e)
		}
		return fn(b)
	})
}

// Compact is store.Store's.
func (s *Store) Compact(ctx context.Context, rev int64) error {
	_, err := s.b.Compact(ctx, &pb.CompactionRequest{Revision: rev})
	return translate(err)
}

// leases shares one lease among the keys of a minute and of a life.
type leases struct {
	mu    sync.Mutex // guards byTTL; not held while etcd is asked
	byTTL map[int64]sharedLease
}

type sharedLease struct {
	id    int64
	until time.Time // for new keys
	keys  int
}

const (
	leaseShared  = time.Minute
	leaseMaxKeys = 1000 // as upstream: the end of a lease is one write of all its keys
)

func (l *leases) get(ctx context.Context, b backend, ttl time.Duration) (int64, error) {
	seconds := int64((ttl + time.Second - 1) / time.Second)
	// A life is prolonged by at most a twentieth, a minute at the most, so that keys can share.
	shared := min(leaseShared, ttl/20)
	now := time.Now()
	l.mu.Lock()
	if s, ok := l.byTTL[seconds]; ok && now.Before(s.until) && s.keys < leaseMaxKeys {
		s.keys++
		l.byTTL[seconds] = s
		l.mu.Unlock()
		return s.id, nil
	}
	l.mu.Unlock()
	resp, err := b.LeaseGrant(ctx, &pb.LeaseGrantRequest{TTL: seconds + int64(shared/time.Second)})
	if err != nil {
		return 0, translate(err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for k, s := range l.byTTL {
		if now.After(s.until) {
			delete(l.byTTL, k)
		}
	}
	l.byTTL[seconds] = sharedLease{id: resp.ID, until: now.Add(shared), keys: 1}
	return resp.ID, nil
}

func (l *leases) forget(id int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for k, s := range l.byTTL {
		if s.id == id {
			delete(l.byTTL, k)
		}
	}
}
