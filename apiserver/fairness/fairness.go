// Package fairness decides how many requests are served at the same time, and whose turn
// it is when there are too many: API priority and fairness.
//
// Every request is matched with a FlowSchema ([classify]), which names its priority level
// and the flow that it belongs to. A [level] has seats; a request takes one, waits for one in
// a queue, or is refused. Seats that a level does not use are lent to others ([allocate]).
//
//	request → flow schema → level ─┬─ a seat is free: served
//	                               ├─ queues: waits, flows in turn
//	                               └─ full, or Reject: 429
//
// The main call is [Controller.Enter]. It promises that 0 ≤ busy ≤ limit for every level
// but exempt ones, at all times but after a limit was lowered; that a flow with a thousand
// requests does not keep another waiting behind all of them; and that a request which
// finds a free seat costs well below a microsecond. Every request takes one seat: what
// a list costs here does not grow with its length as it does upstream.
//
// [Controller.Run] follows the objects, keeps the default ones, and moves seats between
// levels. Before it has read them the defaults are in force. /debug/api_priority_and_fairness
// shows levels, queues and waiting requests.
package fairness

import (
	"context"
	"errors"
	"log/slog"
	"math"
	"net/http"
	"slices"
	"sync/atomic"
	"time"

	flowcontrolv1 "k8s.io/api/flowcontrol/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/keelson/keelson/apiserver/authz"
	"github.com/keelson/keelson/apiserver/resources"
	"github.com/keelson/keelson/apiserver/watchcache"
	"github.com/keelson/keelson/libs/run"
)

// Writer changes the objects on behalf of the server itself. change is called with a copy,
// perhaps several times, and reports whether there is anything to write.
type Writer interface {
	Create(ctx context.Context, gr schema.GroupResource, obj resources.Object) error
	Update(ctx context.Context, gr schema.GroupResource, part, name string, change func(resources.Object) bool) error
	Delete(ctx context.Context, gr schema.GroupResource, name string, uid types.UID) error
}

// Config is what a Controller works with.
type Config struct {
	Cache  *watchcache.Cache
	Writer Writer
	// Seats is how many requests are served at the same time by all levels together; 0: no bound.
	Seats int
	// Alone leaves the objects aside: all but administrators share one level without queues.
	Alone bool
	// Wait is how long a request may wait for a seat.
	Wait time.Duration
	Log  *slog.Logger
	Now  func() time.Time
}

// Controller is the levels and the schemas that lead to them.
type Controller struct {
	cfg  Config
	plan atomic.Pointer[plan]
	last map[string]*level // by name; Run's alone once it runs

	running, digested, kept atomic.Bool // see Running, Digested, Kept
}

// plan is what requests are matched with; it is not changed once it is stored.
type plan struct {
	flows  []*flow // in order of precedence
	levels []*level
}

// flow is a FlowSchema made ready, with what is counted of it.
type flow struct {
	name          string
	precedence    int32
	distinguisher flowcontrolv1.FlowDistinguisherMethodType
	rules         []rule
	level         *level
	flowUID       []string // as header values
	levelUID      []string

	dispatched atomic.Int64
	executing  atomic.Int64
	waiting    atomic.Int64
	rejected   [len(reasons)]atomic.Int64
	waited     waits
	took       [2]durations // of watches (until they have begun), and of the rest
}

// Kinds of requests, as the metrics name them.
const (
	watch = iota
	regular
)

var kindNames = [...]string{"watch", "regular"}

// Reasons for refusing a request, as the metrics name them.
const (
	queueFull = iota
	overLimit
	timedOut
	cancelled
)

var reasons = [...]string{"queue-full", "concurrency-limit", "time-out", "cancelled"}

// ErrTooMany is returned when a request is refused.
var ErrTooMany = errors.New("too many requests, please try again later")

var (
	grFlows  = flowcontrolv1.Resource("flowschemas")
	grLevels = flowcontrolv1.Resource("prioritylevelconfigurations")
)

// Headers of every answer that say how the request was classified, in canonical form.
const (
	HeaderFlow  = "X-Kubernetes-Pf-Flowschema-Uid"
	HeaderLevel = "X-Kubernetes-Pf-Prioritylevel-Uid"
)

const (
	adjustEvery   = 10 * time.Second
	maintainEvery = time.Minute
	retryEvery    = time.Second
	writeTimeout  = 10 * time.Second
)

// New returns a Controller with the default objects in force.
func New(cfg Config) *Controller {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	c := &Controller{cfg: cfg, last: map[string]*level{}}
	if cfg.Alone {
		c.digest([]*flowcontrolv1.FlowSchema{}, nil)
	} else {
		c.digest(nil, nil)
	}
	return c
}

// Ticket is a place among the requests that are served.
type Ticket struct {
	flow  *flow
	queue int // of the level, -1 for none
	kind  int
	since time.Time
}

// Enter classifies a request, says so in header, and waits for a seat until ctx ends or
// Config.Wait is over. Every nil error must be followed by Leave.
func (c *Controller) Enter(ctx context.Context, a *authz.Attributes, header http.Header) (Ticket, error) {
	f := classify(c.plan.Load().flows, a)
	header[HeaderFlow], header[HeaderLevel] = f.flowUID, f.levelUID
	t := Ticket{flow: f, queue: -1, kind: regular}
	if a.Verb == "watch" {
		t.kind = watch
	}
	l := f.level
	if !l.exempt {
		who := ""
		switch f.distinguisher {
		case flowcontrolv1.FlowDistinguisherMethodByUserType:
			who = a.User.Name
		case flowcontrolv1.FlowDistinguisherMethodByNamespaceType:
			who = a.Namespace
		}
		q, why := l.enter(ctx, f, hash(f.name, who), c.cfg.Wait, a)
		if why >= 0 {
			f.rejected[why].Add(1)
			if err := context.Cause(ctx); err != nil {
				return t, err
			}
			return t, ErrTooMany
		}
		t.queue = q
	} else {
		l.count(1)
	}
	f.dispatched.Add(1)
	f.executing.Add(1)
	t.since = time.Now()
	return t, nil
}

// Leave gives the seat to whoever is next.
func (t Ticket) Leave() {
	t.flow.executing.Add(-1)
	t.flow.took[t.kind].add(time.Since(t.since))
	if t.flow.level.exempt {
		t.flow.level.count(-1)
		return
	}
	t.flow.level.leave(t.queue)
}

// hash is FNV-1a of a flow's name: schema, a separator that no name has, and distinguisher.
func hash(schema, who string) uint64 {
	h := uint64(14695981039346656037)
	for i := range len(schema) {
		h = (h ^ uint64(schema[i])) * 1099511628211
	}
	h = (h ^ ',') * 1099511628211
	for i := range len(who) {
		h = (h ^ uint64(who[i])) * 1099511628211
	}
	// The low bits of FNV depend on few of the input's: mix.
	h ^= h >> 32
	return h * 0x9e3779b97f4a7c15
}

// digest puts objects in force. The mandatory ones are there even when they are not stored.
func (c *Controller) digest(flows []*flowcontrolv1.FlowSchema, levels []*flowcontrolv1.PriorityLevelConfiguration) {
	byName := map[string]*flowcontrolv1.PriorityLevelConfiguration{}
	schemas := map[string]*flowcontrolv1.FlowSchema{}
	for _, d := range defaults() {
		if d.mandatory || flows == nil {
			if d.level != nil {
				byName[d.level.Name] = d.level
			} else {
				schemas[d.flow.Name] = d.flow
			}
		}
	}
	for _, l := range levels {
		byName[l.Name] = l
	}
	for _, s := range flows {
		schemas[s.Name] = s
	}
	next := &plan{}
	made := map[string]*level{}
	shares := map[string]float64{}
	total := 0.0
	for name, l := range byName {
		shares[name] = float64(sharesOf(&l.Spec))
		total += shares[name]
	}
	for name, l := range byName {
		lv := c.last[name]
		if lv == nil || lv.exempt != (l.Spec.Type == flowcontrolv1.PriorityLevelEnablementExempt) {
			lv = &level{name: name, exempt: l.Spec.Type == flowcontrolv1.PriorityLevelEnablementExempt}
		}
		nominal := 0
		if total > 0 {
			nominal = int(math.Ceil(float64(c.cfg.Seats) * shares[name] / total))
		}
		lv.configure(&l.Spec, nominal, c.cfg.Seats == 0)
		made[name] = lv
		next.levels = append(next.levels, lv)
	}
	slices.SortFunc(next.levels, func(a, b *level) int { return compare(a.name, b.name) })
	old := map[string]*flow{}
	if p := c.plan.Load(); p != nil {
		for _, f := range p.flows {
			old[f.name] = f
		}
	}
	for name, s := range schemas {
		lv := made[s.Spec.PriorityLevelConfiguration.Name]
		if lv == nil {
			continue // dangling
		}
		f := &flow{
			name: name, precedence: s.Spec.MatchingPrecedence, rules: compile(s), level: lv,
			flowUID: []string{string(s.UID)}, levelUID: []string{string(byName[lv.name].UID)},
		}
		if d := s.Spec.DistinguisherMethod; d != nil {
			f.distinguisher = d.Type
		}
		if o := old[name]; o != nil && o.level == lv && o.precedence == f.precedence && o.flowUID[0] == f.flowUID[0] &&
			o.levelUID[0] == f.levelUID[0] && o.distinguisher == f.distinguisher && sameRules(o.rules, f.rules) {
			f = o // with what it has counted
		}
		next.flows = append(next.flows, f)
	}
	slices.SortFunc(next.flows, func(a, b *flow) int {
		if a.precedence != b.precedence {
			return int(a.precedence) - int(b.precedence)
		}
		return compare(a.name, b.name)
	})
	c.last = made
	c.plan.Store(next)
}

func compare(a, b string) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

func sharesOf(s *flowcontrolv1.PriorityLevelConfigurationSpec) int32 {
	var n *int32
	switch {
	case s.Limited != nil:
		n = s.Limited.NominalConcurrencyShares
	case s.Exempt != nil:
		n = s.Exempt.NominalConcurrencyShares
	}
	if n == nil {
		return 0
	}
	return *n
}

// Run follows the objects and moves seats until ctx ends.
func (c *Controller) Run(ctx context.Context) error {
	select {
	case <-c.cfg.Cache.Ready():
	case <-ctx.Done():
		return nil
	}
	wake := make(chan struct{}, 1)
	g := run.New(ctx)
	for _, prefix := range []string{"flowschemas", "prioritylevelconfigurations"} {
		g.Go(prefix, func(ctx context.Context) error {
			return c.cfg.Cache.Follow(ctx, watchcache.Selection{Prefix: prefix}, wake)
		})
	}
	g.Go("pass", func(ctx context.Context) error {
		adjust := time.NewTicker(adjustEvery)
		defer adjust.Stop()
		c.running.Store(true)
		for {
			again := maintainEvery
			if err := c.pass(ctx); err != nil && ctx.Err() == nil {
				c.cfg.Log.Warn("objects of priority and fairness are not in step, trying again", "err", err)
				again = retryEvery
			}
			timer := time.NewTimer(again)
			for waiting := true; waiting; {
				select {
				case <-adjust.C:
					c.adjust()
				case <-wake:
					waiting = false
				case <-timer.C:
					waiting = false
				case <-ctx.Done():
					timer.Stop()
					return nil
				}
			}
			timer.Stop()
		}
	})
	return g.Wait()
}

// pass puts the stored objects in force and keeps the default ones.
func (c *Controller) pass(ctx context.Context) error {
	flows, levels := []*flowcontrolv1.FlowSchema{}, []*flowcontrolv1.PriorityLevelConfiguration{}
	read := c.cfg.Cache.Reader()
	err := errors.Join(
		read.Each(grFlows, "", func(o resources.Object) bool {
			if s, ok := o.(*flowcontrolv1.FlowSchema); ok {
				flows = append(flows, s)
			}
			return true
		}),
		read.Each(grLevels, "", func(o resources.Object) bool {
			if l, ok := o.(*flowcontrolv1.PriorityLevelConfiguration); ok {
				levels = append(levels, l)
			}
			return true
		}),
	)
	if err != nil {
		return err
	}
	steps := Decide(flows, levels, c.cfg.Now())
	// A new cluster is served by the defaults until they are stored: nobody is refused meanwhile.
	if len(flows) > 0 && len(levels) > 0 {
		c.digest(flows, levels)
		c.digested.Store(true)
	}
	var errs []error
	for _, s := range steps {
		errs = append(errs, c.apply(ctx, s))
	}
	if err = errors.Join(errs...); err == nil {
		c.kept.Store(true)
	}
	return err
}

// adjust lends seats by what was asked for since the last time.
func (c *Controller) adjust() {
	if c.cfg.Seats == 0 {
		return
	}
	levels := c.plan.Load().levels
	asks := make([]ask, len(levels))
	for i, l := range levels {
		asks[i] = l.ask()
	}
	for i, n := range allocate(c.cfg.Seats, asks) {
		levels[i].resize(n)
	}
}

// Running is an error until seats are lent by what is asked for.
func (c *Controller) Running() error {
	return unless(&c.running, "seats are not moved between priority levels yet")
}

// Digested is an error until the stored objects are in force for the first time.
func (c *Controller) Digested() error {
	return unless(&c.digested, "the stored flow schemas and priority levels are not in force yet")
}

// Kept is an error until all default objects have been stored as they must be.
func (c *Controller) Kept() error {
	return unless(&c.kept, "the default flow schemas and priority levels are not all stored yet")
}

func unless(done *atomic.Bool, text string) error {
	if done.Load() {
		return nil
	}
	return errors.New(text)
}

// Levels is how many requests are served and wait now, by level.
func (c *Controller) Levels() map[string][2]int {
	out := map[string][2]int{}
	for _, l := range c.plan.Load().levels {
		busy, waiting := l.now()
		out[l.name] = [2]int{busy, waiting}
	}
	return out
}
