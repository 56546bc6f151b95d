package lease

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	coordinationclient "k8s.io/client-go/kubernetes/typed/coordination/v1"

	"github.com/keelson/keelson/libs/log"
)

// server is one lease with the API server's rules: a write names the revision that it changes.
type server struct {
	mu       sync.Mutex
	rev      int
	lease    *coordinationv1.Lease
	watchers map[*watch.RaceFreeFakeWatcher]bool
}

// faults are what one client's connection does.
type faults struct {
	mu      sync.Mutex
	away    bool          // no request arrives
	deaf    bool          // requests arrive, answers get lost
	delay   time.Duration // of each request, before it arrives
	noWatch bool
}

var errAway = errors.New("the API server is away")

// client is a copy's way to the server.
type client struct {
	coordinationclient.LeaseInterface // what the elector does not use
	server                            *server
	faults                            *faults
}

// call makes a request as the connection lets it.
func (c client) call(ctx context.Context, do func() (*coordinationv1.Lease, error)) (*coordinationv1.Lease, error) {
	c.faults.mu.Lock()
	away, deaf, delay := c.faults.away, c.faults.deaf, c.faults.delay
	c.faults.mu.Unlock()
	if delay > 0 {
		arrived := make(chan struct{})
		time.AfterFunc(delay, func() {
			defer close(arrived)
			if ctx.Err() != nil && !away {
				_, _ = do() // nobody waits for it any more, but it arrives
			}
		})
		select {
		case <-ctx.Done():
			<-arrived
			return nil, ctx.Err()
		case <-arrived:
		}
	}
	if away {
		return nil, errAway
	}
	l, err := do()
	if deaf {
		return nil, errAway
	}
	return l, err
}

var leases = coordinationv1.Resource("leases")

func (c client) Get(ctx context.Context, name string, _ metav1.GetOptions) (*coordinationv1.Lease, error) {
	return c.call(ctx, func() (*coordinationv1.Lease, error) {
		c.server.mu.Lock()
		defer c.server.mu.Unlock()
		if c.server.lease == nil {
			return nil, apierrors.NewNotFound(leases, name)
		}
		return c.server.lease.DeepCopy(), nil
	})
}

func (c client) Create(ctx context.Context, l *coordinationv1.Lease, _ metav1.CreateOptions) (*coordinationv1.Lease, error) {
	return c.call(ctx, func() (*coordinationv1.Lease, error) {
		c.server.mu.Lock()
		defer c.server.mu.Unlock()
		if c.server.lease != nil {
			return nil, apierrors.NewAlreadyExists(leases, l.Name)
		}
		return c.server.put(l), nil
	})
}

func (c client) Update(ctx context.Context, l *coordinationv1.Lease, _ metav1.UpdateOptions) (*coordinationv1.Lease, error) {
	return c.call(ctx, func() (*coordinationv1.Lease, error) {
		c.server.mu.Lock()
		defer c.server.mu.Unlock()
		switch {
		case c.server.lease == nil:
			return nil, apierrors.NewNotFound(leases, l.Name)
		case l.ResourceVersion != c.server.lease.ResourceVersion:
			return nil, apierrors.NewConflict(leases, l.Name, errors.New("changed"))
		}
		return c.server.put(l), nil
	})
}

func (c client) Watch(context.Context, metav1.ListOptions) (watch.Interface, error) {
	c.faults.mu.Lock()
	defer c.faults.mu.Unlock()
	if c.faults.away || c.faults.noWatch {
		return nil, errAway
	}
	w := watch.NewRaceFreeFake()
	c.server.mu.Lock()
	defer c.server.mu.Unlock()
	c.server.watchers[w] = true
	return w, nil
}

// put stores a lease and tells the watchers; s.mu is held.
func (s *server) put(l *coordinationv1.Lease) *coordinationv1.Lease {
	s.rev++
	s.lease = l.DeepCopy()
	s.lease.ResourceVersion = strconv.Itoa(s.rev)
	for w := range s.watchers {
		if w.IsStopped() {
			delete(s.watchers, w)
			continue
		}
		w.Modify(s.lease.DeepCopy())
	}
	return s.lease.DeepCopy()
}

// hall counts who leads.
type hall struct {
	mu    sync.Mutex
	now   map[string]bool
	most  int
	terms map[string]int
}

func newHall() *hall { return &hall{now: map[string]bool{}, terms: map[string]int{}} }

// lead is a leader that returns as soon as its context ends.
func (h *hall) lead(id string) func(ctx context.Context) error {
	return func(ctx context.Context) error {
		h.mu.Lock()
		h.now[id] = true
		h.terms[id]++
		h.most = max(h.most, len(h.now))
		h.mu.Unlock()
		<-ctx.Done()
		h.mu.Lock()
		delete(h.now, id)
		h.mu.Unlock()
		return nil
	}
}

func (h *hall) leader() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	for id := range h.now {
		return id
	}
	return ""
}

// together is how many led at the same time at most.
func (h *hall) together() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.most
}

func (h *hall) termsOf(id string) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.terms[id]
}

// stored is the lease as it is now.
func (s *server) stored() *coordinationv1.Lease {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lease.DeepCopy()
}

// copyOf is one copy of the daemon that stands for election.
type copyOf struct {
	faults faults
	stop   context.CancelFunc
	done   chan error
}

func stand(t *testing.T, s *server, h *hall, id string, cfg Config) *copyOf {
	ctx, stop := context.WithCancel(t.Context())
	c := &copyOf{stop: stop, done: make(chan error, 1)}
	go func() {
		c.done <- newElector(cfg, client{server: s, faults: &c.faults}, id, log.Discard()).run(ctx, h.lead(id))
	}()
	return c
}

func (c *copyOf) set(f func(*faults)) {
	c.faults.mu.Lock()
	defer c.faults.mu.Unlock()
	f(&c.faults)
}

// untilLeads returns how long it took until id leads; it looks every 10 ms of fake time.
func untilLeads(t *testing.T, h *hall, id string, limit time.Duration) time.Duration {
	t.Helper()
	start := time.Now()
	for h.leader() != id {
		if time.Since(start) > limit {
			t.Fatalf("after %s %q leads; want %q", limit, h.leader(), id)
		}
		time.Sleep(10 * time.Millisecond)
	}
	return time.Since(start)
}

// pair starts a leader a and a standby b.
func pair(t *testing.T) (s *server, h *hall, a, b *copyOf) {
	s, h = &server{watchers: map[*watch.RaceFreeFakeWatcher]bool{}}, newHall()
	cfg := Default("keelson-test")
	a = stand(t, s, h, "a", cfg)
	untilLeads(t, h, "a", time.Second)
	b = stand(t, s, h, "b", cfg)
	time.Sleep(3 * time.Second)
	return s, h, a, b
}

func ended(t *testing.T, copies ...*copyOf) {
	t.Helper()
	for _, c := range copies {
		c.stop()
		if err := <-c.done; err != nil {
			t.Error(err)
		}
	}
}

func TestStandbyTakesOverAtOnceAfterACleanStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, h, a, b := pair(t)
		ended(t, a)
		if took := untilLeads(t, h, "b", time.Second); took > 50*time.Millisecond {
			t.Errorf("b led %s after a had given the lease back", took)
		}
		if h.together() != 1 {
			t.Errorf("%d leaders at once", h.together())
		}
		ended(t, b)
	})
}

// A leader that dies says nothing more: here its connection is cut at some moment between two renewals.
func TestStandbyTakesOverWithinTheLeaseAfterACrash(t *testing.T) {
	for _, noWatch := range []bool{false, true} {
		for _, moment := range []time.Duration{0, 130 * time.Millisecond, 490 * time.Millisecond} {
			synctest.Test(t, func(t *testing.T) {
				_, h, a, b := pair(t)
				b.set(func(f *faults) { f.noWatch = noWatch })
				time.Sleep(3*time.Second + moment)
				a.set(func(f *faults) { f.away = true })
				limit := 3010 * time.Millisecond
				if noWatch {
					limit += 750 * time.Millisecond // it sees a renewal up to a period late
				}
				if took := untilLeads(t, h, "b", 5*time.Second); took > limit {
					t.Errorf("without a watch %v, cut %s after a renewal: b led after %s; want at most %s", noWatch, moment, took, limit)
				}
				if h.together() != 1 {
					t.Errorf("%d leaders at once", h.together())
				}
				ended(t, a, b)
			})
		}
	}
}

func TestALostLeaseIsStoodForAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, h := &server{watchers: map[*watch.RaceFreeFakeWatcher]bool{}}, newHall()
		a := stand(t, s, h, "a", Default("keelson-test"))
		untilLeads(t, h, "a", time.Second)
		a.set(func(f *faults) { f.away = true })
		untilLeads(t, h, "", 3*time.Second)
		a.set(func(f *faults) { f.away = false })
		untilLeads(t, h, "a", 3*time.Second)
		if h.termsOf("a") != 2 {
			t.Errorf("%d terms; want 2", h.termsOf("a"))
		}
		ended(t, a)
	})
}

// A short absence of the API server costs no term.
func TestAShortAbsenceIsRiddenOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, h, a, b := pair(t)
		for range 5 {
			a.set(func(f *faults) { f.away = true })
			b.set(func(f *faults) { f.away = true })
			time.Sleep(1800 * time.Millisecond)
			a.set(func(f *faults) { f.away = false })
			b.set(func(f *faults) { f.away = false })
			time.Sleep(3 * time.Second)
		}
		if h.termsOf("a") != 1 || h.leader() != "a" {
			t.Errorf("%d terms of a, %q leads", h.termsOf("a"), h.leader())
		}
		ended(t, a, b)
	})
}

// On a machine where writes take long the lease is claimed for longer, so that it is not lost; when they are quick
// again it gets short again, and no two lead at once all the while.
func TestASlowMachineGetsALongerLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, h, a, b := pair(t)
		seconds := func() int32 { return *s.stored().Spec.LeaseDurationSeconds }
		if got := seconds(); got != 3 {
			t.Errorf("at first a lease of %d s; want 3", got)
		}
		for _, delay := range []time.Duration{300, 700, 1500, 3000} {
			for _, c := range []*copyOf{a, b} {
				c.set(func(f *faults) { f.delay = delay * time.Millisecond })
			}
			time.Sleep(20 * time.Second)
		}
		if got := seconds(); got != 15 || h.termsOf("a") != 1 || h.leader() != "a" {
			t.Errorf("with writes of 3 s: a lease of %d s, %d terms of a, %q leads; want 15, 1, a", got, h.termsOf("a"), h.leader())
		}
		for _, c := range []*copyOf{a, b} {
			c.set(func(f *faults) { f.delay = 0 })
		}
		time.Sleep(5 * time.Minute)
		if got := seconds(); got != 3 {
			t.Errorf("with quick writes again: a lease of %d s; want 3", got)
		}
		a.set(func(f *faults) { f.away = true })
		if took := untilLeads(t, h, "b", 5*time.Second); took > 3010*time.Millisecond || h.together() != 1 {
			t.Errorf("b led after %s, %d at once", took, h.together())
		}
		ended(t, a, b)
	})
}

// Somebody who labels the lease, or deletes it, does not end the term.
func TestForeignWritesAreNoLoss(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, h, a, b := pair(t)
		for i := range 5 {
			s.mu.Lock()
			s.rev++
			s.lease.Labels = map[string]string{"seen": strconv.Itoa(i)}
			s.lease.ResourceVersion = strconv.Itoa(s.rev)
			s.mu.Unlock()
			time.Sleep(700 * time.Millisecond)
		}
		if h.termsOf("a") != 1 || h.leader() != "a" {
			t.Errorf("labelled: %d terms of a, %q leads", h.termsOf("a"), h.leader())
		}
		if s.stored().Labels["seen"] != "4" {
			t.Errorf("a renewal undid a label: %v", s.stored().Labels)
		}
		ended(t, a, b)
	})
}

// Whatever connections do, two copies never lead at the same time.
func TestNeverTwoLeaders(t *testing.T) {
	for seed := range uint64(60) {
		synctest.Test(t, func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 1))
			s, h := &server{watchers: map[*watch.RaceFreeFakeWatcher]bool{}}, newHall()
			var copies []*copyOf
			for i := range 3 {
				copies = append(copies, stand(t, s, h, fmt.Sprint(i), Default("keelson-test")))
			}
			for range 120 {
				c := copies[r.IntN(len(copies))]
				c.set(func(f *faults) {
					f.away, f.deaf, f.noWatch = r.IntN(4) == 0, r.IntN(6) == 0, r.IntN(3) == 0
					f.delay = time.Duration(r.Int64N(int64(r.IntN(3)+1)) * int64(r.IntN(1200)) * int64(time.Millisecond))
				})
				time.Sleep(time.Duration(r.Int64N(int64(1500 * time.Millisecond))))
			}
			for _, c := range copies {
				c.set(func(f *faults) { f.away, f.deaf, f.noWatch, f.delay = false, false, false, 0 })
			}
			time.Sleep(10 * time.Second)
			if h.together() != 1 || h.leader() == "" {
				t.Errorf("seed %d: %d leaders at once; in the end %q leads", seed, h.together(), h.leader())
			}
			ended(t, copies...)
		})
	}
}

func TestLeadThatEndsEndsRun(t *testing.T) {
	boom := errors.New("boom")
	cfg := Default("keelson-test")
	cfg.LeaderElect = false
	if err := Run(t.Context(), cfg, nil, "a", log.Discard(), func(context.Context) error { return boom }); !errors.Is(err, boom) {
		t.Errorf("without an election: %v", err)
	}
	synctest.Test(t, func(t *testing.T) {
		s := &server{watchers: map[*watch.RaceFreeFakeWatcher]bool{}}
		if err := newElector(Default("keelson-test"), client{server: s, faults: &faults{}}, "a", log.Discard()).run(t.Context(), func(context.Context) error { return boom }); !errors.Is(err, boom) {
			t.Errorf("got %v", err)
		}
		if holder(s.stored()) != "" {
			t.Errorf("the lease was not given back: %v", s.stored().Spec)
		}
	})
}

// The lease is kept while lead winds up, and given back afterwards.
func TestTheLeaseOutlastsTheLead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &server{watchers: map[*watch.RaceFreeFakeWatcher]bool{}}
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			done <- newElector(Default("keelson-test"), client{server: s, faults: &faults{}}, "a", log.Discard()).run(ctx, func(ctx context.Context) error {
				<-ctx.Done()
				time.Sleep(10 * time.Second)
				return ctx.Err()
			})
		}()
		time.Sleep(time.Second)
		stop()
		time.Sleep(9 * time.Second)
		age := time.Since(s.stored().Spec.RenewTime.Time)
		if age > time.Second {
			t.Errorf("the lease was last renewed %s ago while lead still ran", age)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
		if holder(s.stored()) != "" {
			t.Errorf("the lease was not given back: %v", s.stored().Spec)
		}
	})
}

func TestClaim(t *testing.T) {
	at := time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC)
	of := func(who string, seconds int32, renewed time.Time) *coordinationv1.Lease {
		m := metav1.NewMicroTime(renewed)
		return &coordinationv1.Lease{Spec: coordinationv1.LeaseSpec{HolderIdentity: &who, LeaseDurationSeconds: &seconds, RenewTime: &m, AcquireTime: &m}}
	}
	c := claim{id: "me"}
	if !c.free().IsZero() {
		t.Error("a lease that does not exist is not free")
	}
	c.see(of("other", 15, at), at.Add(time.Hour)) // the other's clock is an hour behind
	if want := at.Add(time.Hour + 15*time.Second); !c.free().Equal(want) {
		t.Errorf("free at %s; want %s: the holder's own duration, by our clock", c.free(), want)
	}
	c.see(of("other", 15, at), at.Add(2*time.Hour))
	if want := at.Add(time.Hour + 15*time.Second); !c.free().Equal(want) {
		t.Errorf("free at %s; want %s: the same state seen again is no renewal", c.free(), want)
	}
	l := c.taken("n", "ns", 2*time.Second, at)
	if holder(l) != "me" || *l.Spec.LeaseTransitions != 1 || *l.Spec.LeaseDurationSeconds != 2 || !l.Spec.AcquireTime.Time.Equal(at) {
		t.Errorf("taken: %+v", l.Spec)
	}
	c.see(l, at)
	l = c.taken("n", "ns", 2*time.Second, at.Add(time.Second))
	if *l.Spec.LeaseTransitions != 1 || !l.Spec.AcquireTime.Time.Equal(at) || !l.Spec.RenewTime.Time.Equal(at.Add(time.Second)) {
		t.Errorf("renewed: %+v", l.Spec)
	}
}

func TestValidate(t *testing.T) {
	ok := Default("x")
	if errs := ok.Validate(); len(errs) != 0 {
		t.Errorf("default: %v", errs)
	}
	for name, change := range map[string]func(*Config){
		"broken seconds":    func(c *Config) { c.LeaseDuration = metav1.Duration{Duration: 2500 * time.Millisecond} },
		"deadline too long": func(c *Config) { c.RenewDeadline = c.LeaseDuration },
		"period too long":   func(c *Config) { c.RetryPeriod = c.RenewDeadline },
		"no name":           func(c *Config) { c.ResourceName = "" },
	} {
		c := Default("x")
		change(&c)
		if len(c.Validate()) == 0 {
			t.Errorf("%s: accepted", name)
		}
	}
}

// A leader by itself writes little; it hears of a standby at once, and forgets one that has gone.
func TestALoneLeaderWritesLittle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, h := &server{watchers: map[*watch.RaceFreeFakeWatcher]bool{}}, newHall()
		cfg := Default("keelson-test")
		writes := func(d time.Duration) int {
			before, _ := strconv.Atoi(s.stored().ResourceVersion)
			time.Sleep(d)
			after, _ := strconv.Atoi(s.stored().ResourceVersion)
			return after - before
		}
		seconds := func() int32 { return *s.stored().Spec.LeaseDurationSeconds }
		a := stand(t, s, h, "a", cfg)
		untilLeads(t, h, "a", time.Second)
		time.Sleep(settling + time.Second)
		if n := writes(time.Minute); n > 12 || n < 11 || seconds() != 15 {
			t.Errorf("alone: %d writes in a minute, a lease of %d s; want 12, 15", n, seconds())
		}
		time.Sleep(1700 * time.Millisecond) // between two renewals
		b := stand(t, s, h, "b", cfg)
		time.Sleep(100 * time.Millisecond)
		if seconds() != 3 {
			t.Errorf("a standby came: a lease of %d s; want 3", seconds())
		}
		if n := writes(20 * time.Minute); n < 20*60*100/85 || seconds() != 3 {
			t.Errorf("with a standby: %d writes in 20 minutes, a lease of %d s; want at least %d, 3", n, seconds(), 20*60*100/85)
		}
		ended(t, b)
		time.Sleep(remembered + time.Minute)
		if n := writes(time.Minute); n > 12 || seconds() != 15 || h.termsOf("a") != 1 || h.together() != 1 {
			t.Errorf("the standby has gone: %d writes in a minute, a lease of %d s, %d terms; want 12, 15, 1", n, seconds(), h.termsOf("a"))
		}
		ended(t, a)
	})
}

// Of three copies the second dies soon after the first: the third waits for it no longer than for the first.
func TestEveryLeaderHearsOfTheStandby(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, h, a, b := pair(t)
		c := stand(t, s, h, "c", Default("keelson-test"))
		time.Sleep(4 * time.Minute)
		a.set(func(f *faults) { f.away = true })
		untilLeads(t, h, "", 4*time.Second)
		time.Sleep(3 * time.Second)
		first, second := h.leader(), map[string]*copyOf{"b": b, "c": c}
		time.Sleep(time.Minute)
		second[first].set(func(f *faults) { f.away = true })
		other := map[string]string{"b": "c", "c": "b"}[first]
		if took := untilLeads(t, h, other, 16*time.Second); took > 3010*time.Millisecond || h.together() != 1 {
			t.Errorf("%s led %s after %s had died; want at most 3 s", other, took, first)
		}
		ended(t, a, b, c)
	})
}

// A copy whose leader is known to have ended does not wait for the lease.
func TestADeadLeaderIsNotWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, h := &server{watchers: map[*watch.RaceFreeFakeWatcher]bool{}}, newHall()
		a := stand(t, s, h, "a", Default("keelson-test"))
		untilLeads(t, h, "a", time.Second)
		time.Sleep(settling + 7*time.Second)
		a.set(func(f *faults) { f.away = true }) // the process is gone; what it leaves is a lease of 15 s
		ended(t, a)
		ctx, stop := context.WithCancel(t.Context())
		b := &copyOf{stop: stop, done: make(chan error, 1)}
		cfg := Default("keelson-test")
		e := newElector(cfg, client{server: s, faults: &b.faults}, "b", log.Discard())
		e.dead = func(id string) bool { return id == "a" }
		go func() { b.done <- e.run(ctx, h.lead("b")) }()
		if took := untilLeads(t, h, "b", 16*time.Second); took > 100*time.Millisecond {
			t.Errorf("b led after %s", took)
		}
		ended(t, b)
	})
}

func TestTheEndOfACopyIsSeenInItsPlace(t *testing.T) {
	id := ID()
	if dead(id) {
		t.Errorf("%s runs, and counts as dead", id)
	}
	if gone := "host_" + here() + "_0000"; !dead(gone) {
		t.Errorf("%s has never run here, and does not count as dead", gone)
	}
	for _, elsewhere := range []string{"host_00000000_0000", "host_0000", "", "_"} {
		if dead(elsewhere) {
			t.Errorf("%q counts as dead; nobody can tell", elsewhere)
		}
	}
}
