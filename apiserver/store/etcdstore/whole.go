package etcdstore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unsafe"

	"go.etcd.io/etcd/server/v3/storage/mvcc"
	"go.etcd.io/etcd/server/v3/storage/schema"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/keelson/keelson/apiserver/store"
)

// How much is read at a time: revisions of the database, about, and keys that fn is called with; and how many
// revisions that are not the newest of their keys may be remembered meanwhile.
const (
	chunkRevisions = 10_000
	pageKeys       = 2000
	mostHistory    = 500_000
)

// all calls fn with every key below prefix ("/registry/") as of one revision, which is rev or a newer one; rev has been
// applied. etcd's own Range looks each key up by its revision and copies it; the pages of a member in this process can
// be read where they lie. They hold revisions in order: the last one of a key is the key. While fn runs the database's
// file cannot be mapped anew: a write that needs a larger file waits.
func (e *embedded) all(ctx context.Context, prefix string, rev int64, fn func([]store.KV) error) (int64, error) {
	tx := e.s.Backend().ConcurrentReadTx()
	tx.RLock()
	defer tx.RUnlock()
	var live []pair
	sorted := 0 // len(live) when each of its keys stood there once
	// A limit on what is read would leave out pages that are written but not committed: they come from elsewhere.
	first, width, newer := int64(1), int64(chunkRevisions), e.s.KV().Rev()
	for first <= newer {
		if ctx.Err() != nil {
			return 0, translate(ctx.Err())
		}
		end := first + min(width, newer+1-first)
		revs, values := tx.UnsafeRange(schema.Key, revBytes(first), revBytes(end), 0)
		for i, value := range values {
			at := mvcc.BytesToRev(revs[i])
			rev = max(rev, at.Main)
			key, err := keyOf(value)
			if err != nil {
				return 0, fmt.Errorf("etcd: revision %d/%d in the database: %w", at.Main, at.Sub, err)
			}
			if mvcc.IsTombstone(revs[i]) {
				value = nil
			}
			if p := (pair{key: text(key), n: len(live), value: value}); strings.HasPrefix(p.key, prefix) {
				live = append(live, p)
			}
		}
		if len(live) > 2*sorted+mostHistory { // many revisions of few keys
			live = newest(live)
			sorted = len(live)
		}
		first = end
		switch n := len(revs); {
		case n < chunkRevisions/2: // most have been forgotten
			width *= 2
		case n > chunkRevisions*2 && width > 1:
			width /= 2
		}
	}
	live = slices.DeleteFunc(newest(live), func(p pair) bool { return p.value == nil })
	page := make([]store.KV, 0, min(len(live), pageKeys))
	for some := range slices.Chunk(live, pageKeys) {
		if ctx.Err() != nil {
			return 0, translate(ctx.Err())
		}
		page = page[:0]
		for _, p := range some {
			kv, err := pairOf(p.value)
			if err != nil {
				return 0, fmt.Errorf("etcd: %s in the database: %w", p.key, err)
			}
			kv.Key = strings.Clone(p.key[len(prefix):])
			page = append(page, kv)
		}
		if err := fn(page); err != nil {
			return 0, err
		}
	}
	return rev, nil
}

func revBytes(main int64) []byte {
	return mvcc.RevToBytes(mvcc.Revision{Main: main}, mvcc.NewRevBytes())
}

// pair is a revision of a key, in memory of the transaction.
type pair struct {
	key   string
	n     int    // later ones have higher numbers
	value []byte // an encoded KeyValue; nil: the key was deleted
}

// newest sorts pairs by key and keeps the last of each.
func newest(pairs []pair) []pair {
	slices.SortFunc(pairs, func(a, b pair) int {
		if c := strings.Compare(a.key, b.key); c != 0 {
			return c
		}
		return a.n - b.n
	})
	kept := pairs[:0]
	for i, p := range pairs {
		if i+1 == len(pairs) || pairs[i+1].key != p.key {
			p.n = len(kept)
			kept = append(kept, p)
		}
	}
	return kept
}

// Field numbers of mvccpb.KeyValue. Source: go.etcd.io/etcd/api/v3/mvccpb/kv.proto.
const (
	pairKey       protowire.Number = 1
	pairCreateRev protowire.Number = 2
	pairModRev    protowire.Number = 3
	pairValue     protowire.Number = 5
)

var errNoKey = errors.New("it has no key")

// keyOf reads only the key of an encoded KeyValue. It comes first.
func keyOf(pair []byte) ([]byte, error) {
	num, typ, n := protowire.ConsumeTag(pair)
	if n < 0 {
		return nil, protowire.ParseError(n)
	}
	if num != pairKey || typ != protowire.BytesType {
		return nil, errNoKey
	}
	key, n := protowire.ConsumeBytes(pair[n:])
	if n < 0 {
		return nil, protowire.ParseError(n)
	}
	return key, nil
}

// pairOf reads the rest. Value is a part of pair.
func pairOf(pair []byte) (store.KV, error) {
	var kv store.KV
	for len(pair) > 0 {
		num, typ, n := protowire.ConsumeTag(pair)
		if n < 0 {
			return kv, protowire.ParseError(n)
		}
		pair = pair[n:]
		var v uint64
		switch {
		case num == pairValue && typ == protowire.BytesType:
			kv.Value, n = protowire.ConsumeBytes(pair)
		case (num == pairCreateRev || num == pairModRev) && typ == protowire.VarintType:
			if v, n = protowire.ConsumeVarint(pair); num == pairCreateRev {
				kv.CreateRev = int64(v)
			} else {
				kv.ModRev = int64(v)
			}
		default:
			n = protowire.ConsumeFieldValue(num, typ, pair)
		}
		if n < 0 {
			return kv, protowire.ParseError(n)
		}
		pair = pair[n:]
	}
	return kv, nil
}

func text(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }
