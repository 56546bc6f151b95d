// Package sync keeps the kernel's rules as Services and EndpointSlices want them:
// it gathers changes for a moment, builds the rules, and restores the chains that
// have become different.
//
// The main call is [Syncer.Run]. One goroutine owns all state. What stands in the
// kernel is remembered; when a restore fails, or another program has flushed the
// tables (the canary chain is gone), everything is read and written anew. A pass
// that changes nothing runs no command.
package sync

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/keelson/keelson/kube-proxy/model"
	"github.com/keelson/keelson/kube-proxy/rules"
)

// Kernel is where the rules go: package iptables, or a table in memory.
type Kernel interface {
	Chains(ctx context.Context, table string) ([]string, error)
	ChainExists(table, chain string) (bool, error)
	Restore(ctx context.Context, text []byte) error
	EnsureJumps(jumps []rules.Jump) error
}

// Config is one address family's syncer.
type Config struct {
	Family model.Family
	Rules  func() rules.Config // read for each pass: the node's pod range may be assigned late
	Node   func() model.Node
	Kernel Kernel
	// Services and Slices read the newest state.
	Services func() []*corev1.Service
	Slices   func(types.NamespacedName) []*discoveryv1.EndpointSlice
	// Gather is how long changes are collected after the first; default 5 ms.
	Gather time.Duration
	// Check is how often the canary is looked for; default 30 s.
	Check time.Duration
	// Applied is called after every pass with the ports that now stand.
	Applied func(now []model.Port)
	Log     *slog.Logger
	Metrics *Metrics
}

// Syncer is the loop of one address family.
type Syncer struct {
	cfg    Config
	wake   chan struct{}
	stands map[string]rules.Table // by table; nil: nothing is known
	last   atomic.Int64           // unix nanoseconds of the last pass that went well

	asked    atomic.Int64 // unix nanoseconds of the oldest change that no pass has looked at; 0: none
	pending  atomic.Int64 // the same of the oldest that a pass has looked at and not applied
	shown    atomic.Pointer[shown]
	served   atomic.Int64 // Metrics.services of the last pass that went well
	followed atomic.Int64 // Metrics.endpoints of it

	causesMu sync.Mutex
	causes   []time.Time // when what the next pass will apply has happened; guarded by causesMu
}

// shown is what stands, for others to read.
type shown struct {
	tables map[string]rules.Table
	ports  []model.Port
}

// maxCauses bounds the causes that wait for a pass; more are not measured.
const maxCauses = 10000

// New starts nothing.
func New(cfg Config) *Syncer {
	if cfg.Gather == 0 {
		cfg.Gather = 5 * time.Millisecond
	}
	if cfg.Check == 0 {
		cfg.Check = 30 * time.Second
	}
	if cfg.Metrics == nil {
		cfg.Metrics = NewMetrics()
	}
	s := &Syncer{cfg: cfg, wake: make(chan struct{}, 1)}
	cfg.Metrics.add(s)
	return s
}

// Changed says that something that the rules depend on is different now. It never blocks.
func (s *Syncer) Changed() {
	now := time.Now()
	s.asked.CompareAndSwap(0, now.UnixNano())
	s.cfg.Metrics.queued.WithLabelValues(label(s.cfg.Family)).Set(unix(now))
	select {
	case s.wake <- struct{}{}:
	default: // a pass is coming already, and will see the newest state
	}
}

// Caused says when something happened that the next pass will apply: how long that took is measured.
func (s *Syncer) Caused(at time.Time) {
	s.causesMu.Lock()
	defer s.causesMu.Unlock()
	if len(s.causes) < maxCauses {
		s.causes = append(s.causes, at)
	}
}

// LastSync is when the rules were last known to be right, zero for never.
func (s *Syncer) LastSync() time.Time { return moment(s.last.Load()) }

// Waiting is since when a change has not been applied, zero when none waits.
func (s *Syncer) Waiting() time.Time {
	if at := s.pending.Load(); at != 0 {
		return moment(at)
	}
	return moment(s.asked.Load())
}

func moment(nanos int64) time.Time {
	if nanos == 0 {
		return time.Time{}
	}
	return time.Unix(0, nanos)
}

const (
	retryFirst = 200 * time.Millisecond
	retryMost  = 30 * time.Second
	passLimit  = 60 * time.Second
)

// Run blocks until ctx ends. The rules stay in the kernel.
func (s *Syncer) Run(ctx context.Context) error {
	check := time.NewTicker(s.cfg.Check)
	defer check.Stop()
	retry := retryFirst
	for {
		err := s.pass(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			s.stands = nil
			s.cfg.Log.Warn("cannot apply the rules; will try again", "err", err, "in", retry)
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(retry):
			}
			retry = min(2*retry, retryMost)
			continue
		}
		retry = retryFirst
		select {
		case <-ctx.Done():
			return nil
		case <-s.wake:
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(s.cfg.Gather):
			}
		case <-check.C:
			s.lookForCanary()
		}
	}
}

// lookForCanary forgets what stands when somebody has removed it.
func (s *Syncer) lookForCanary() {
	for _, table := range []string{"nat", "filter"} {
		if ok, err := s.cfg.Kernel.ChainExists(table, rules.Canary); err == nil && !ok {
			s.cfg.Log.Warn("our chains were removed by another program; writing them again", "table", table)
			s.stands = nil
			return
		}
	}
	if s.stands != nil { // a lost jump is as bad as a lost chain
		if err := s.cfg.Kernel.EnsureJumps(rules.Build(s.cfg.Rules(), nil).Jumps); err != nil {
			s.stands = nil
		}
	}
}

func (s *Syncer) pass(ctx context.Context) (err error) {
	ctx, cancel := context.WithTimeout(ctx, passLimit)
	defer cancel()
	if asked := s.asked.Swap(0); asked != 0 {
		s.pending.CompareAndSwap(0, asked)
	}
	s.causesMu.Lock()
	causes := s.causes
	s.causes = nil
	s.causesMu.Unlock()
	services, endpoints := s.cfg.Metrics.services.Load(), s.cfg.Metrics.endpoints.Load()
	p := pass{began: time.Now(), full: s.stands == nil, written: map[string]int{}}
	defer func() {
		p.ended, p.err = time.Now(), err
		s.cfg.Metrics.passed(s.cfg.Family, p)
		if err != nil {
			for _, at := range causes {
				s.Caused(at)
			}
		}
	}()
	chains := 0
	ports := model.Build(s.cfg.Family, s.cfg.Node(), s.cfg.Services(), s.cfg.Slices)
	want := rules.Build(s.cfg.Rules(), ports)
	if p.full {
		if s.stands, err = s.read(ctx); err != nil {
			return err
		}
	}
	var text []byte
	for _, t := range []struct {
		name string
		want rules.Table
	}{{"nat", want.NAT}, {"filter", want.Filter}} {
		diff, n := rules.Diff(t.name, s.stands[t.name], t.want)
		text = append(text, diff...)
		chains += n
		if n > 0 {
			p.written[t.name] = bytes.Count(diff, []byte("\n-A "))
		}
	}
	if len(text) > 0 {
		if err := s.cfg.Kernel.Restore(ctx, text); err != nil {
			return err
		}
	}
	if p.full {
		if err := s.cfg.Kernel.EnsureJumps(want.Jumps); err != nil {
			return err
		}
	}
	s.stands = map[string]rules.Table{"nat": want.NAT, "filter": want.Filter}
	if chains > 0 {
		s.cfg.Log.Debug("rules applied", "family", s.cfg.Family, "services", len(ports), "chains", chains, "took", time.Since(p.began))
	}
	now := time.Now()
	s.last.Store(now.UnixNano())
	s.pending.Store(0)
	s.shown.Store(&shown{tables: s.stands, ports: ports})
	s.served.Store(services)
	s.followed.Store(endpoints)
	for _, at := range causes {
		s.cfg.Metrics.programming.WithLabelValues(label(s.cfg.Family)).Observe(now.Sub(at).Seconds())
	}
	if s.cfg.Applied != nil {
		s.cfg.Applied(ports)
	}
	return nil
}

// unknown are rules that stand for a chain whose content was not read: they differ from any.
const unknown = rules.Chain("\x00")

// read finds the chains of ours that stand, of whatever content.
func (s *Syncer) read(ctx context.Context) (map[string]rules.Table, error) {
	stands := map[string]rules.Table{}
	var errs []error
	for _, table := range []string{"nat", "filter"} {
		names, err := s.cfg.Kernel.Chains(ctx, table)
		if err != nil {
			errs = append(errs, fmt.Errorf("read table %s: %w", table, err))
			continue
		}
		stands[table] = rules.Table{}
		for _, n := range names {
			if rules.Owned(n) {
				stands[table][n] = unknown
			}
		}
	}
	return stands, errors.Join(errs...)
}
