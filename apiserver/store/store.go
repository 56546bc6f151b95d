// Package store is the contract of the durable key-value store below the API
// server, with an etcd version and one in memory that keeps the same rules.
// storetest is the suite that every version must pass.
//
// Keys are given without the server's prefix: "pods/default/web-0". Revisions
// are etcd's: one counter for the whole store, the number that clients see as
// resourceVersion.
package store

import (
	"context"
	"errors"
	"time"
)

// KV is a key with its value. Value is owned by the receiver, but for Range's.
type KV struct {
	Key       string
	Value     []byte
	CreateRev int64
	ModRev    int64
}

// Event is one change of one key. A deletion carries the value that was deleted
// in Prev where the store still has it.
type Event struct {
	KV      KV // Value is nil for a deletion; ModRev is the revision of the change
	Deleted bool
}

// Batch is a run of changes in revision order. All events of one revision are
// in one batch. Rev is the highest revision that the receiver now has seen in full,
// also when Events is empty (progress).
type Batch struct {
	Rev    int64
	Events []Event
}

var (
	// ErrConflict: the key's revision is not the one expected (it may be gone, or exist already).
	ErrConflict = errors.New("store: key changed since it was read")
	// ErrCompacted: the revision asked for is no longer kept.
	ErrCompacted = errors.New("store: revision has been compacted")
	// ErrFull: the store's quota is used up; only deletions work.
	ErrFull = errors.New("store: database space exceeded")
)

// Op is one part of a Commit: what a key must be, and what becomes of it.
type Op struct {
	Key  string
	Seen int64 // the key's mod revision; 0: it does not exist
	Do   Do
	// Value is what Write stores.
	Value []byte
}

// Do is what becomes of a key.
type Do uint8

const (
	Write Do = iota
	Remove
	// Check changes nothing: the others hold only if this key is as it was seen.
	Check
)

// ConflictError is the ErrConflict of a Commit: Key is the first of its keys that is
// not as it was seen.
type ConflictError struct{ Key string }

func (e *ConflictError) Error() string { return ErrConflict.Error() + ": " + e.Key }

// Is makes errors.Is(err, ErrConflict) true.
func (e *ConflictError) Is(target error) bool { return target == ErrConflict }

// Renewer is what a store may be in which a value can be out of date although it means
// the same: encrypted with a key that is not the newest, or not at all.
type Renewer interface {
	// Stale reports that writing the same value again would change what is kept.
	Stale(ctx context.Context, key string) (bool, error)
}

// Store is safe for concurrent use. Every call is bounded by its context.
type Store interface {
	// Put writes value if the key's mod revision equals seen; 0 means that the key must not exist.
	// ttl, if not zero, is the life of the key, rounded up to whole seconds.
	Put(ctx context.Context, key string, value []byte, seen int64, ttl time.Duration) (rev int64, err error)
	// Delete removes the key if its mod revision equals seen.
	Delete(ctx context.Context, key string, seen int64) (rev int64, err error)
	// Commit does all of ops as one revision, or none: a *ConflictError when a key is not as it was seen.
	// No key may stand in it twice.
	Commit(ctx context.Context, ops []Op) (rev int64, err error)
	// Get is a linearizable read; nil when the key does not exist.
	Get(ctx context.Context, key string) (*KV, error)
	// Rev is the current revision, linearizable: every write acknowledged before the call is at or below it.
	Rev(ctx context.Context) (int64, error)
	// Range calls fn with pages of the keys that start with prefix ("" is all) as of one revision, in key
	// order, and returns that revision. Page and values are read-only and fn's until it returns, and fn must not
	// wait for a write: the store may lend its own memory, and not be able to grow until it has it back.
	Range(ctx context.Context, prefix string, fn func([]KV) error) (rev int64, err error)
	// Watch calls fn with every change after from (exclusive) of every key, in order, and blocks until ctx
	// ends, fn fails, or the store cannot continue (ErrCompacted among others).
	Watch(ctx context.Context, from int64, fn func(Batch) error) error
	// Compact forgets history before rev.
	Compact(ctx context.Context, rev int64) error
}
