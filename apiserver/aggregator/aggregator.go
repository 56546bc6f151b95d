// Package aggregator lets other servers answer for API groups of their own: an APIService
// names a group version and the service that serves it.
//
// [Aggregator.Run] follows the APIServices. It registers what this server serves itself
// ([Decide]), and has one goroutine tend each of the others: look whether the service can
// be reached ([Reachable]), ask for its discovery document, write the condition Available,
// and read what discovery and OpenAPI are to say about it. [Aggregator.For] finds the
// server that a request belongs to; it passes the request on with the caller's name in
// headers, and shows the front proxy's certificate.
//
// It promises that a request for a group version that is unavailable fails at once with
// 503, that discovery goes on naming such a group version (as stale), and that with no
// aggregated API a request costs one comparison more. It does not authorize: the chain has.
//
// /debug/aggregator shows what is known of each server. Tests drive it with the memory
// store and a TLS server of their own.
package aggregator

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"reflect"
	"sync"
	"sync/atomic"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/keelson/keelson/apiserver/discovery"
	"github.com/keelson/keelson/apiserver/resources"
	"github.com/keelson/keelson/apiserver/watchcache"
	"github.com/keelson/keelson/libs/run"
)

// Writer changes APIServices on behalf of the server itself.
type Writer interface {
	Create(ctx context.Context, s *apiregistrationv1.APIService) error
	// Update changes the object, or its status, by compare-and-swap; change may be called again.
	Update(ctx context.Context, part, name string, change func(*apiregistrationv1.APIService) error) error
	Delete(ctx context.Context, name string, when *metav1.Preconditions) error
}

// Config is what an Aggregator works with; all but Log and Now are required.
type Config struct {
	Registry *resources.Registry
	Cache    *watchcache.Cache
	Writer   Writer
	// Reach finds host:port of a ready endpoint of a service port.
	Reach func(namespace, name, port string) (string, error)
	// Certificate is shown to the servers, nil when there is none.
	Certificate func() (*tls.Certificate, error)
	// Whole reports whether the registry has the custom kinds that were defined at the start; nil: always.
	Whole func() bool
	// Fail answers a request that could not be passed on.
	Fail func(w http.ResponseWriter, r *http.Request, err error)
	Log  *slog.Logger
	Now  func() time.Time
}

// Aggregator knows all APIServices.
type Aggregator struct {
	cfg  Config
	wake chan struct{} // something has changed: look again
	view atomic.Pointer[view]
	// version grows when what discovery shows has changed.
	version atomic.Uint64
	// registered tells that the built-in group versions have their APIServices.
	registered atomic.Bool
	// routed tells that requests find the servers of all APIServices that were there at the start.
	routed   atomic.Bool
	failures failures
}

// view is the APIServices as requests see them; it is not changed once it is stored.
type view struct {
	remotes    map[schema.GroupVersion]*remote
	priorities map[schema.GroupVersion]Priority
}

const (
	checkEvery   = 30 * time.Second // how often an aggregated API is asked whether it is there
	retryAtFirst = 250 * time.Millisecond
	passAgain    = time.Second // after a write has failed
	writeTimeout = 10 * time.Second
)

var grServices = schema.GroupResource{Group: Group, Resource: "apiservices"}

// New returns an Aggregator that knows nothing yet.
func New(cfg Config) *Aggregator {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Whole == nil {
		cfg.Whole = func() bool { return true }
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	a := &Aggregator{cfg: cfg, wake: make(chan struct{}, 1)}
	a.view.Store(&view{})
	return a
}

// Registered is an error until the APIServices of what this server serves are made.
func (a *Aggregator) Registered() error {
	if !a.registered.Load() {
		return fmt.Errorf("the APIServices of the built-in groups are not made yet")
	}
	return nil
}

// Routed is an error until requests find the servers of all APIServices that were there at the start.
func (a *Aggregator) Routed() error {
	if !a.routed.Load() {
		return fmt.Errorf("the stored APIServices are not followed yet")
	}
	return nil
}

// Run works until ctx ends.
func (a *Aggregator) Run(ctx context.Context) error {
	select {
	case <-a.cfg.Cache.Ready():
	case <-ctx.Done():
		return nil
	}
	row := a.cfg.Registry.Storage(grServices)
	if row == nil {
		return fmt.Errorf("aggregator: the table has no %s", grServices)
	}
	g := run.New(ctx)
	g.Go("follow", func(ctx context.Context) error {
		return a.cfg.Cache.Follow(ctx, watchcache.Selection{Prefix: row.Prefix}, a.wake)
	})
	g.Go("rows", func(ctx context.Context) error {
		for {
			moved := a.cfg.Registry.Moved()
			select {
			case a.wake <- struct{}{}:
			default:
			}
			select {
			case <-moved:
			case <-ctx.Done():
				return nil
			}
		}
	})
	g.Go("pass", func(ctx context.Context) error { return a.passes(ctx, g) })
	return g.Wait()
}

func (a *Aggregator) passes(ctx context.Context, g *run.Group) error {
	first := true
	for {
		again := checkEvery
		if err := a.pass(ctx, g, first); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			a.cfg.Log.Warn("APIServices are not in step, trying again", "err", err)
			again = passAgain
		} else {
			first = false
			a.registered.Store(true)
		}
		timer := time.NewTimer(again)
		select {
		case <-a.wake:
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil
		}
		timer.Stop()
	}
}

// pass brings the view, the goroutines and the registered group versions in step.
func (a *Aggregator) pass(ctx context.Context, g *run.Group, first bool) error {
	whole := a.cfg.Whole() // before the rows: what is served later is missing in both
	rows := a.cfg.Registry.All()
	have := map[string]*apiregistrationv1.APIService{}
	err := a.cfg.Cache.Reader().Each(grServices, "", func(o resources.Object) bool {
		if s, ok := o.(*apiregistrationv1.APIService); ok {
			have[s.Name] = s
		}
		return true
	})
	if err != nil {
		return err
	}
	a.look(g, have)
	a.routed.Store(true)
	steps := Decide(rows, have, first, whole)
	results := make([]error, len(steps))
	var all sync.WaitGroup
	limit := make(chan struct{}, 16)
	for i, s := range steps {
		limit <- struct{}{}
		all.Go(func() {
			results[i] = a.apply(ctx, s)
			<-limit
		})
	}
	all.Wait()
	for _, s := range have {
		if s.Spec.Service == nil && resources.APIServiceCondition(&s.Status) == nil {
			results = append(results, a.setLocal(ctx, s.Name))
		}
	}
	for _, err := range results {
		if err != nil {
			return err
		}
	}
	return nil
}

// look makes the view anew; servers whose APIService has not changed are kept.
func (a *Aggregator) look(g *run.Group, have map[string]*apiregistrationv1.APIService) {
	old := a.view.Load()
	next := &view{remotes: map[schema.GroupVersion]*remote{}, priorities: map[schema.GroupVersion]Priority{}}
	changed := false
	for _, s := range have {
		gv := schema.GroupVersion{Group: s.Spec.Group, Version: s.Spec.Version}
		next.priorities[gv] = Priority{s.Spec.GroupPriorityMinimum, s.Spec.VersionPriority}
		if s.Spec.Service == nil {
			continue
		}
		r := old.remotes[gv]
		if r == nil || r.uid != s.UID || !r.same(&s.Spec) {
			before := r
			r = newRemote(a, gv, s)
			if before != nil {
				r.found.Store(before.found.Load()) // stale, but better than nothing
				before.cancel()
			}
			g.Go("aggregated API "+s.Name, r.tend)
			changed = true
		}
		c := resources.APIServiceCondition(&s.Status)
		r.available.Store(c != nil && c.Status == apiregistrationv1.ConditionTrue)
		next.remotes[gv] = r
	}
	for gv, r := range old.remotes {
		if next.remotes[gv] == nil {
			r.cancel()
			changed = true
		}
	}
	if !changed && maps.Equal(next.priorities, old.priorities) {
		return
	}
	a.view.Store(next)
	a.version.Add(1)
}

func (a *Aggregator) apply(ctx context.Context, s Step) error {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	var err error
	switch s.Do {
	case Create:
		err = a.cfg.Writer.Create(ctx, s.Want)
		if apierrors.IsAlreadyExists(err) {
			err = nil
		}
	case Update:
		err = a.cfg.Writer.Update(ctx, "", s.Name, func(now *apiregistrationv1.APIService) error {
			if now.UID == s.UID && now.Labels[managed] != "" {
				now.Spec = s.Want.Spec
			}
			return nil
		})
	case Delete:
		err = a.cfg.Writer.Delete(ctx, s.Name, &metav1.Preconditions{UID: &s.UID})
	}
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil // the log brings what has changed
	}
	if err != nil {
		return fmt.Errorf("%s: %w", s, err)
	}
	a.cfg.Log.Debug("registered what is served", "step", s.String())
	return nil
}

// setLocal gives an APIService that has become local its condition.
func (a *Aggregator) setLocal(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	err := a.cfg.Writer.Update(ctx, "status", name, func(s *apiregistrationv1.APIService) error {
		if s.Spec.Service == nil {
			resources.SetAPIServiceCondition(&s.Status, resources.LocalAPIService(), a.cfg.Now())
		}
		return nil
	})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// Version is discovery.Others'.
func (a *Aggregator) Version() uint64 { return a.version.Load() }

// Priority is discovery.Others'.
func (a *Aggregator) Priority(gv schema.GroupVersion) (group, version int32) {
	p, ok := a.view.Load().priorities[gv]
	if !ok {
		p = ofGroup(gv)
	}
	return p.Group, p.Version
}

// Remotes is discovery.Others'.
func (a *Aggregator) Remotes() []discovery.Remote {
	var out []discovery.Remote
	for gv, r := range a.view.Load().remotes {
		out = append(out, r.describe(gv))
	}
	return out
}

// State is what /debug shows of one aggregated API.
type State struct {
	Name      string `json:"name"`
	Service   string `json:"service"`
	Available bool   `json:"available"`
	Stale     bool   `json:"stale"`
	Resources int    `json:"resources"`
	LastError string `json:"lastError,omitempty"`
}

// States shows the aggregated APIs.
func (a *Aggregator) States() []State {
	out := []State{}
	for gv, r := range a.view.Load().remotes {
		f := r.found.Load()
		st := State{
			Name: gv.Version + "." + gv.Group, Service: fmt.Sprintf("%s/%s:%d", r.spec.Service.Namespace, r.spec.Service.Name, portOf(r.spec.Service)),
			Available: r.available.Load(), Stale: f.stale(), Resources: len(f.discovery.Resources),
		}
		if f.err != nil {
			st.LastError = f.err.Error()
		}
		out = append(out, st)
	}
	return out
}

// same: the server is asked in the same way as before.
func (r *remote) same(spec *apiregistrationv1.APIServiceSpec) bool {
	a, b := *r.spec, *spec
	a.GroupPriorityMinimum, a.VersionPriority = b.GroupPriorityMinimum, b.VersionPriority
	return reflect.DeepEqual(a, b)
}
