// Package encrypt keeps the values of chosen resources encrypted in the store.
//
// The main call is [New]: a store.Store over another one. What is written is sealed by
// the first provider that the configuration names for the resource; what is read is
// opened by the one whose prefix it carries, so that keys can be changed while the
// server runs (see docs/storage.md). Above this store everything is plain: the watch
// cache holds what clients may read, etcd never does.
//
// It promises upstream's file format, prefixes and ciphers, so that an encrypted etcd can
// be taken over and given back, and that a value which cannot be opened is never
// taken for one that is not there: the read fails and names the key.
//
// Run owns the goroutines: one for the file, one for each KMS plugin.
//
// Source: Kubernetes documentation, "Encrypting confidential data at rest"; KEP-3299.
package encrypt

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/keelson/keelson/apiserver/store"
	"github.com/keelson/keelson/libs/run"
)

// Options of a Store. Below, File, Prefix and Resource are required.
type Options struct {
	Below store.Store
	// File is an EncryptionConfiguration (apiserver.config.k8s.io/v1). Reload follows its changes.
	File   string
	Reload bool
	// Prefix is what etcd's keys begin with, "/registry": whole keys are authenticated with the values.
	Prefix string
	// Resource tells what is stored at a key.
	Resource func(key string) schema.GroupResource
	Metrics  *Metrics
	Log      *slog.Logger
}

// Store encrypts. It is safe for concurrent use.
type Store struct {
	store.Store // compaction, removal and revisions are passed on
	opts        Options
	prefix      string
	rules       atomic.Pointer[rules]
}

// New reads the configuration and reaches for no plugin yet. Run must be running for
// KMS plugins to be used.
func New(opts Options) (*Store, error) {
	s := &Store{Store: opts.Below, opts: opts, prefix: "/" + strings.Trim(opts.Prefix, "/") + "/"}
	if opts.Log == nil {
		s.opts.Log = slog.New(slog.DiscardHandler)
	}
	text, err := os.ReadFile(opts.File)
	if err != nil {
		return nil, err
	}
	r, err := compile(text, opts.Metrics)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", opts.File, err)
	}
	s.rules.Store(r)
	return s, nil
}

const (
	// reloadEvery is how soon a changed file is noticed.
	reloadEvery = 5 * time.Second
	// closeAfter leaves time to the calls that have begun with the rules before.
	closeAfter = 30 * time.Second
)

// Run serves the KMS plugins of the rules, and follows the file if asked to, until ctx ends.
func (s *Store) Run(ctx context.Context) error {
	g := run.New(ctx)
	now := s.rules.Load()
	stop := now.start(g)
	g.Go("file", func(ctx context.Context) error {
		defer func() { stop() }()
		tick := time.NewTicker(reloadEvery)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-tick.C:
			}
			if !s.opts.Reload {
				continue
			}
			text, err := os.ReadFile(s.opts.File)
			if err == nil && bytes.Equal(text, now.text) {
				continue
			}
			next, stopNext, err := s.reload(ctx, g, text, err)
			s.opts.Metrics.reloaded(err)
			if err != nil {
				s.opts.Log.Error("the changed encryption configuration is not used", "file", s.opts.File, "err", err)
				now.text = text // said once
				continue
			}
			s.rules.Store(next)
			old := stop
			now, stop = next, stopNext
			time.AfterFunc(closeAfter, old)
			s.opts.Log.Info("encryption configuration was changed", "file", s.opts.File)
		}
	})
	return g.Wait()
}

// reload makes rules of a changed file and waits until their plugins answer.
func (s *Store) reload(ctx context.Context, g *run.Group, text []byte, err error) (*rules, func(), error) {
	if err != nil {
		return nil, nil, err
	}
	next, err := compile(text, s.opts.Metrics)
	if err != nil {
		return nil, nil, err
	}
	stop := next.start(g)
	ctx, cancel := context.WithTimeout(ctx, closeAfter)
	defer cancel()
	for {
		if err = next.healthy(); err == nil {
			return next, stop, nil
		}
		select {
		case <-ctx.Done():
			stop()
			return nil, nil, err
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// Healthy reports KMS plugins that cannot be used for writing.
func (s *Store) Healthy() error { return s.rules.Load().healthy() }

// UnreadableError is a stored value that cannot be opened.
type UnreadableError struct {
	Key string // as etcd knows it
	Err error
}

func (e *UnreadableError) Error() string {
	return fmt.Sprintf("value at %s cannot be decrypted: %v", e.Key, e.Err)
}

func (e *UnreadableError) Unwrap() error { return e.Err }

func (s *Store) seal(ctx context.Context, key string, value []byte) ([]byte, error) {
	gr := s.opts.Resource(key)
	list := s.rules.Load().of(gr)
	if len(list) == 0 {
		return value, nil
	}
	p := list[0]
	started := time.Now()
	sealed, err := p.seal(ctx, value, []byte(s.prefix+key))
	s.opts.Metrics.did("to_storage", gr, p.prefix(), started, err)
	if err != nil {
		return nil, fmt.Errorf("encrypt %s%s: %w", s.prefix, key, err)
	}
	return append([]byte(p.prefix()), sealed...), nil
}

var errNoProvider = errors.New("no provider of the encryption configuration has this key")

func (s *Store) open(ctx context.Context, key string, value []byte) (plain []byte, stale bool, err error) {
	gr := s.opts.Resource(key)
	list := s.rules.Load().of(gr)
	if len(list) == 0 {
		list = plainOnly
	}
	err = errNoProvider
	for i, p := range list {
		if !p.owns(value) {
			continue
		}
		started := time.Now()
		var old bool
		plain, old, err = p.open(ctx, value[len(p.prefix()):], []byte(s.prefix+key))
		if p.prefix() != "" {
			s.opts.Metrics.did("from_storage", gr, p.prefix(), started, err)
		}
		if err == nil {
			return plain, old || i > 0, nil
		}
	}
	if errors.Is(err, errNoProvider) {
		s.opts.Metrics.did("from_storage", gr, "unknown", time.Now(), err)
		if n := bytes.LastIndexByte(value[:min(len(value), 200)], ':'); n > 0 && bytes.HasPrefix(value, sealedPrefix) {
			parts := strings.SplitN(string(value[:min(len(value), 200)]), ":", 6)
			err = fmt.Errorf("%w: %s", err, strings.Join(parts[:min(len(parts)-1, 5)], ":"))
		}
	}
	return nil, false, &UnreadableError{Key: s.prefix + key, Err: err}
}

// Put is store.Store's.
func (s *Store) Put(ctx context.Context, key string, value []byte, seen int64, ttl time.Duration) (int64, error) {
	sealed, err := s.seal(ctx, key, value)
	if err != nil {
		return 0, err
	}
	return s.Store.Put(ctx, key, sealed, seen, ttl)
}

// Commit is store.Store's.
func (s *Store) Commit(ctx context.Context, ops []store.Op) (int64, error) {
	sealed := append([]store.Op(nil), ops...)
	for i, op := range sealed {
		if op.Do != store.Write {
			continue
		}
		var err error
		if sealed[i].Value, err = s.seal(ctx, op.Key, op.Value); err != nil {
			return 0, err
		}
	}
	return s.Store.Commit(ctx, sealed)
}

// Get is store.Store's.
func (s *Store) Get(ctx context.Context, key string) (*store.KV, error) {
	kv, err := s.Store.Get(ctx, key)
	if kv == nil || err != nil {
		return nil, err
	}
	if kv.Value, _, err = s.open(ctx, key, kv.Value); err != nil {
		return nil, err
	}
	return kv, nil
}

// Stale is store.Renewer's: a value that not the first provider has written, or not with its newest key.
func (s *Store) Stale(ctx context.Context, key string) (bool, error) {
	if len(s.rules.Load().of(s.opts.Resource(key))) == 0 {
		return false, nil
	}
	kv, err := s.Store.Get(ctx, key)
	if kv == nil || err != nil {
		return false, err
	}
	_, stale, err := s.open(ctx, key, kv.Value)
	return stale, err
}

// Range is store.Store's.
func (s *Store) Range(ctx context.Context, prefix string, fn func([]store.KV) error) (int64, error) {
	return s.Store.Range(ctx, prefix, func(page []store.KV) error {
		for i := range page {
			var err error
			if page[i].Value, _, err = s.open(ctx, page[i].Key, page[i].Value); err != nil {
				return err
			}
		}
		return fn(page)
	})
}

// Watch is store.Store's.
func (s *Store) Watch(ctx context.Context, from int64, fn func(store.Batch) error) error {
	return s.Store.Watch(ctx, from, func(b store.Batch) error {
		for i := range b.Events {
			e := &b.Events[i]
			if e.Deleted {
				continue
			}
			var err error
			if e.KV.Value, _, err = s.open(ctx, e.KV.Key, e.KV.Value); err != nil {
				return err
			}
		}
		return fn(b)
	})
}
