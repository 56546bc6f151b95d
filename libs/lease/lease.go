// Package lease elects one leader among the copies of a daemon, over a coordination/v1 Lease.
//
// The main call is [Run]. The lease is written as client-go's leaderelection writes it, so that copies
// of upstream's daemons may stand for the same election; the rules are in claim.go.
//
// It promises: the context given to lead ends before another copy may begin to lead, as far as clocks
// run at the same speed; after a lost lease Run waits for lead to return and then stands for
// election again; when its own context ends, the lease is kept until lead has returned and then
// given back, and a standby takes it at once. It does not promise that lead has returned when another
// copy begins: lead must return soon after its context has ended, and its writes must compare
// resourceVersions.
//
// A standby watches the lease, so it sees each renewal when it is written, and takes over LeaseDuration
// after the last one: with the defaults 2.1 to 3 seconds after the leader has died. The price are seven writes
// in six seconds by the leader. Where the watch does not work, it looks every RetryPeriod. Where writes take long the
// leader claims the lease for longer, up to 15 s, so that a crowded machine does not depose it (pace.go).
//
// A standby says in the lease that it is there (company.go). A leader that has not heard of one for some time
// claims the lease for 15 s and renews it every 5: nobody waits for it, and an idle cluster is idle. A copy that was
// killed and started again on its machine knows that the one before is dead, and waits for nothing (place.go).
//
// Goroutines: Run owns them all. lead is called again on each election, one call at a time. To debug:
// the lease itself, and the lines "leading", "standing by" and "lost the lease" of the log.
package lease

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/util/uuid"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	coordinationclient "k8s.io/client-go/kubernetes/typed/coordination/v1"

	"github.com/keelson/keelson/libs/run"
)

// Config has the names of upstream's flags.
type Config struct {
	LeaderElect       bool            `yaml:"leaderElect" flag:"leader-elect" help:"run only while holding the lease, so that several copies can stand by"`
	LeaseDuration     metav1.Duration `yaml:"leaseDuration" flag:"leader-elect-lease-duration" help:"how long a standby waits for a leader that is silent; whole seconds"`
	RenewDeadline     metav1.Duration `yaml:"renewDeadline" flag:"leader-elect-renew-deadline" help:"how long the leader tries to renew before it stops leading"`
	RetryPeriod       metav1.Duration `yaml:"retryPeriod" flag:"leader-elect-retry-period" help:"time between two tries to take or renew the lease"`
	ResourceNamespace string          `yaml:"resourceNamespace" flag:"leader-elect-resource-namespace" help:"namespace of the lease"`
	ResourceName      string          `yaml:"resourceName" flag:"leader-elect-resource-name" help:"name of the lease"`
}

// Default is the configuration of the daemon with this name: 3 s, 2.7 s and 0.85 s.
func Default(name string) Config {
	return Config{
		LeaderElect:       true,
		LeaseDuration:     metav1.Duration{Duration: 3 * time.Second},
		RenewDeadline:     metav1.Duration{Duration: 2700 * time.Millisecond},
		RetryPeriod:       metav1.Duration{Duration: 850 * time.Millisecond},
		ResourceNamespace: metav1.NamespaceSystem,
		ResourceName:      name,
	}
}

// Validate reports every fault. The rules are client-go's, so that a configuration of upstream's
// daemons is valid here and the other way round.
func (c Config) Validate() field.ErrorList {
	var errs field.ErrorList
	if !c.LeaderElect {
		return nil
	}
	bad := func(name string, v any, why string) { errs = append(errs, field.Invalid(field.NewPath(name), v, why)) }
	if c.LeaseDuration.Duration < time.Second || c.LeaseDuration.Duration%time.Second != 0 {
		bad("leaseDuration", c.LeaseDuration.Duration.String(), "must be whole seconds, at least 1s")
	}
	if c.RenewDeadline.Duration >= c.LeaseDuration.Duration {
		bad("renewDeadline", c.RenewDeadline.Duration.String(), "must be less than leaseDuration")
	}
	if c.RetryPeriod.Duration <= 0 || float64(c.RenewDeadline.Duration) <= 1.2*float64(c.RetryPeriod.Duration) {
		bad("retryPeriod", c.RetryPeriod.Duration.String(), "must be more than 0, and 1.2 times it less than renewDeadline")
	}
	if c.ResourceName == "" || c.ResourceNamespace == "" {
		bad("resourceName", c.ResourceNamespace+"/"+c.ResourceName, "name and namespace of the lease must be set")
	}
	return errs
}

// ID is a name for this copy that no other copy has: host name, place and a random part. Until the process
// ends, others of its place can see that it runs; the place is missing where that cannot be had.
func ID() string {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	random := "_" + string(uuid.NewUUID())
	if place := here(); place != "" {
		if id := host + "_" + place + random; live(id) == nil {
			return id
		}
	}
	return host + random
}

// Run calls lead while this copy, known to the others as id, holds the lease. It returns when ctx
// ends (nil, or what lead returned), or when lead returns while it leads (that error, nil included).
// Without LeaderElect it is lead(ctx).
func Run(ctx context.Context, cfg Config, c kubernetes.Interface, id string, log *slog.Logger, lead func(ctx context.Context) error) error {
	if !cfg.LeaderElect {
		return lead(ctx)
	}
	return newElector(cfg, c.CoordinationV1().Leases(cfg.ResourceNamespace), id, log).run(ctx, lead)
}

// elector is one copy. Its fields belong to the goroutine of Run.
type elector struct {
	cfg    Config
	leases coordinationclient.LeaseInterface
	claim  claim
	pace   pace
	others company
	dead   func(id string) bool // knows for sure that a copy has ended
	log    *slog.Logger
}

func newElector(cfg Config, leases coordinationclient.LeaseInterface, id string, log *slog.Logger) *elector {
	return &elector{
		cfg: cfg, leases: leases, claim: claim{id: id}, pace: pace{least: cfg.LeaseDuration.Duration, span: cfg.LeaseDuration.Duration}, dead: dead,
		log: log.With("lease", cfg.ResourceNamespace+"/"+cfg.ResourceName, "id", id),
	}
}

func (e *elector) run(ctx context.Context, lead func(ctx context.Context) error) error {
	for {
		began, err := e.standBy(ctx)
		if err != nil {
			return nil // ctx has ended
		}
		e.log.Info("leading")
		done, err := e.lead(ctx, began, lead)
		if done || ctx.Err() != nil {
			if ctx.Err() != nil && errors.Is(err, context.Canceled) {
				err = nil
			}
			return err
		}
		e.log.Warn("lost the lease; standing for election again", "err", err)
	}
}

// term is for how long a copy leads after a renewal that claims the lease for span.
func (e *elector) term(span time.Duration) time.Duration {
	return time.Duration(float64(span) / float64(e.cfg.LeaseDuration.Duration) * float64(e.cfg.RenewDeadline.Duration))
}

// state is the lease as seen at a moment; the lease is nil when there is none.
type state struct {
	lease *coordinationv1.Lease
	at    time.Time
}

// standBy returns when this copy has taken the lease: the moment from which its term counts. The
// only error is the end of ctx.
func (e *elector) standBy(ctx context.Context) (began time.Time, err error) {
	states := make(chan state, 1)
	defer e.watch(ctx, states)()
	timer := time.NewTimer(0)
	defer timer.Stop()
	known, leader := false, ""
	var pause time.Time // no try before: a failed one is not repeated at once, whatever is seen
	for {
		select {
		case <-ctx.Done():
			return began, context.Cause(ctx)
		case s := <-states:
			known = true
			e.see(s.lease, s.at)
		case <-timer.C:
		}
		if h := holder(e.claim.lease); h != leader && h != "" && h != e.claim.id {
			leader = h
			e.log.Info("standing by", "leader", leader)
			e.others.forget() // the new leader may not have heard of this copy
		}
		now := time.Now()
		next, tell := e.claim.free(), e.others.due()
		if known && next.After(now) && e.dead(holder(e.claim.lease)) {
			e.log.Info("the leader has ended", "leader", leader)
			next = now
		}
		switch {
		case !known:
			next = now.Add(e.cfg.RetryPeriod.Duration) // the first state will come
		case pause.After(now):
			next = pause
		case !next.After(now):
			if e.write(ctx, now, now.Add(e.term(e.pace.span)), e.pace.span) == nil {
				return now, nil
			}
			pause = time.Now().Add(e.cfg.RetryPeriod.Duration)
			next = pause
		case !tell.After(now):
			if err := e.announce(ctx, now); err != nil { // usually somebody else has written
				e.log.Debug("cannot say that a standby is there", "err", err)
				pause = time.Now().Add(e.cfg.RetryPeriod.Duration / 4)
				next = pause
			}
		case tell.Before(next):
			next = tell
		}
		timer.Reset(time.Until(next))
	}
}

// see takes in a state of the lease.
func (e *elector) see(l *coordinationv1.Lease, now time.Time) {
	e.claim.see(l, now)
	e.others.see(l, now)
}

// announce says in the lease that somebody stands by.
func (e *elector) announce(ctx context.Context, now time.Time) error {
	ctx, cancel := context.WithTimeout(ctx, e.cfg.RenewDeadline.Duration)
	defer cancel()
	l, err := e.leases.Update(ctx, announced(e.claim.lease, e.claim.id, now), metav1.UpdateOptions{})
	if err == nil {
		e.see(l, now)
		e.others.heard = now // even if it said the same before
	}
	return err
}

// write takes or renews the lease for span, if it is still as the claim knows it.
func (e *elector) write(ctx context.Context, now, deadline time.Time, span time.Duration) error {
	ctx, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	l := e.claim.taken(e.cfg.ResourceName, e.cfg.ResourceNamespace, span, now)
	var err error
	if e.claim.lease == nil {
		l, err = e.leases.Create(ctx, l, metav1.CreateOptions{})
	} else {
		l, err = e.leases.Update(ctx, l, metav1.UpdateOptions{})
	}
	if err == nil {
		e.see(l, now)
	}
	return err
}

// follow tells of the states of the lease until ctx ends: by a watch, and where that does not work
// by looking every RetryPeriod. Of several that nobody has taken yet the newest stays.
func (e *elector) follow(ctx context.Context, states chan state) {
	tell := func(l *coordinationv1.Lease) {
		select {
		case <-states: // an older one that nobody has seen
		default:
		}
		states <- state{l, time.Now()} // this goroutine is the only sender
	}
	for first := true; ; first = false {
		if !first {
			select {
			case <-ctx.Done():
				return
			case <-time.After(e.cfg.RetryPeriod.Duration):
			}
		}
		l, err := e.look(ctx)
		if err != nil {
			if ctx.Err() != nil {
				return
			}
			e.log.Debug("the lease cannot be read", "err", err)
			continue
		}
		tell(l)
		from, silence := "", e.cfg.LeaseDuration.Duration
		if l != nil {
			from = l.ResourceVersion
			silence = max(silence, claimedFor(l))
		}
		w, err := e.leases.Watch(ctx, metav1.ListOptions{
			FieldSelector: fields.OneTermEqualSelector(metav1.ObjectNameField, e.cfg.ResourceName).String(), ResourceVersion: from})
		if err != nil {
			continue
		}
		e.take(ctx, w, silence, tell)
	}
}

// look reads the lease; nil without an error means that there is none.
func (e *elector) look(ctx context.Context) (*coordinationv1.Lease, error) {
	ctx, cancel := context.WithTimeout(ctx, e.cfg.RenewDeadline.Duration)
	defer cancel()
	l, err := e.leases.Get(ctx, e.cfg.ResourceName, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	return l, err
}

// take passes on what a watch says, to its end. A watch that has been silent for as long as the
// lease was claimed may be dead: then it is better to look.
func (e *elector) take(ctx context.Context, w watch.Interface, silence time.Duration, tell func(*coordinationv1.Lease)) {
	defer w.Stop()
	silent := time.NewTimer(silence)
	defer silent.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-silent.C:
			return
		case ev, ok := <-w.ResultChan():
			if !ok {
				return
			}
			l, isLease := ev.Object.(*coordinationv1.Lease)
			switch {
			case !isLease: // a Status: the watch is over
				return
			case l.Name != e.cfg.ResourceName:
				continue
			case ev.Type == watch.Deleted:
				tell(nil)
			case ev.Type == watch.Added || ev.Type == watch.Modified:
				tell(l)
			}
			silence = max(e.cfg.LeaseDuration.Duration, claimedFor(l))
			silent.Reset(silence)
		}
	}
}

var errLost = errors.New("the lease could not be renewed in time")

// lead runs f while the lease is renewed. done means that f ended by itself; then, and when ctx ends,
// the lease has been given back.
func (e *elector) lead(ctx context.Context, renewed time.Time, f func(ctx context.Context) error) (done bool, err error) {
	term, lose := context.WithCancelCause(ctx)
	defer lose(nil)
	deadline := renewed.Add(e.term(e.pace.span))
	// Whatever holds up the loop below, the term ends in time.
	guard := time.AfterFunc(time.Until(deadline), func() { lose(errLost) })
	defer guard.Stop()
	result := make(chan error, 1)
	go func() { result <- run.Safely("leading", func() error { return f(term) }) }()
	due := time.Now().Add(e.cfg.RetryPeriod.Duration) // of the next renewal
	timer := time.NewTimer(time.Until(due))
	defer timer.Stop()
	e.others.begin(time.Now())
	states := make(chan state, 1) // while alone: somebody may come
	unwatch := func() {}
	defer func() { unwatch() }()
	watched := false
	for {
		if alone := e.others.none(time.Now()); alone != watched {
			if unwatch(); alone {
				unwatch = e.watch(ctx, states)
				e.log.Debug("nobody stands by")
			} else {
				unwatch = func() {}
			}
			watched = alone
		}
		select {
		case err := <-result:
			lost := errors.Is(context.Cause(term), errLost)
			if !lost {
				e.release()
			}
			return !lost && ctx.Err() == nil, errors.Join(err, cause(lost))
		case s := <-states:
			if holder(s.lease) != e.claim.id || !e.others.see(s.lease, s.at) {
				continue
			}
			e.log.Debug("somebody stands by")
			e.claim.see(s.lease, s.at) // what is written next names its revision
		case <-timer.C:
		}
		if errors.Is(context.Cause(term), errLost) {
			continue // f is awaited; the timer is not set again
		}
		now := time.Now()
		span, period := e.pace.span, e.cfg.RetryPeriod.Duration
		if e.others.none(now) {
			span, period = max(span, longest), max(period, lonePeriod)
		}
		if end := now.Add(e.term(span)); end.Before(deadline) {
			// The lease is claimed for less than before: that holds even if the answer gets lost.
			if !guard.Stop() {
				continue
			}
			deadline = end
			guard.Reset(time.Until(deadline))
		}
		// The term goes on while f winds up after the end of ctx: nobody else may begin before.
		err := e.write(context.WithoutCancel(ctx), now, deadline, span)
		answered := time.Now()
		e.pace.saw(max(answered.Sub(due), answered.Sub(now)), answered)
		due = now.Add(period)
		if soon := answered.Add(e.cfg.RetryPeriod.Duration / 4); due.Before(soon) {
			due = soon
		}
		switch {
		case err == nil && guard.Stop():
			deadline = now.Add(e.term(span))
			guard.Reset(time.Until(deadline))
		case err == nil: // too late: the term is over
		case apierrors.IsConflict(err) || apierrors.IsNotFound(err) || apierrors.IsAlreadyExists(err):
			// Somebody else has written: only its metadata, or the lease is gone.
			if l, err := e.look(context.WithoutCancel(ctx)); err == nil {
				e.see(l, now)
				if l != nil && holder(l) != e.claim.id {
					lose(errLost)
					continue
				}
			}
			due = time.Now().Add(e.cfg.RetryPeriod.Duration / 8)
		default:
			e.log.Warn("renewing the lease failed", "err", err)
			due = answered.Add(e.cfg.RetryPeriod.Duration / 4) // the term runs out
		}
		timer.Reset(time.Until(due))
	}
}

// watch has the states of the lease told until the function is called that it returns.
func (e *elector) watch(ctx context.Context, states chan state) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		e.follow(ctx, states)
	}()
	return func() {
		cancel()
		<-done
		select {
		case <-states:
		default:
		}
	}
}

func cause(lost bool) error {
	if lost {
		return errLost
	}
	return nil
}

// release gives the lease back if it is still ours, so that a standby need not wait for it to run out.
func (e *elector) release() {
	ctx, cancel := context.WithTimeout(context.Background(), e.cfg.RenewDeadline.Duration)
	defer cancel()
	for range 3 {
		if holder(e.claim.lease) != e.claim.id {
			return
		}
		_, err := e.leases.Update(ctx, e.claim.released(time.Now()), metav1.UpdateOptions{})
		if !apierrors.IsConflict(err) {
			if err != nil {
				e.log.Warn("could not give the lease back; a standby waits for it to run out", "err", err)
			}
			return
		}
		l, err := e.look(ctx)
		if err != nil {
			return
		}
		e.claim.see(l, time.Now())
	}
}
