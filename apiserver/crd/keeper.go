// Package crd serves custom resources: it turns CustomResourceDefinitions into rows of
// the resource table, so that everything else treats custom kinds as it treats its own.
//
// A [Keeper] follows the definitions. [Decide] says, from a definition and the names that
// its group holds, what its status should be; rows come from the definitions whose names
// are accepted; a definition that is being deleted has its objects deleted first. What a
// row needs in order to prune, default, validate, print or describe an object is a [Kind]:
// compiled when first used, and dropped when it has not been used for a while.
//
// It promises that requests for a definition are answered before its status says
// Established, and that an idle definition holds little more than its stored bytes. Versions
// differ in name only, or a webhook converts ([hook]): then each state of an object is
// converted once for all who read it, and a list in one call.
//
// Run owns two goroutines. /debug/crd shows what is served and what is compiled.
package crd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sort"
	"sync"
	"sync/atomic"
	"time"

	crdv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/sets"

	"github.com/keelson/keelson/apiserver/resources"
	"github.com/keelson/keelson/apiserver/watchcache"
	"github.com/keelson/keelson/libs/run"
)

// Writer is what the Keeper changes, on behalf of the server itself.
type Writer interface {
	// UpdateStatus changes status and finalizers of a definition by compare-and-swap.
	UpdateStatus(ctx context.Context, name string, change func(*crdv1.CustomResourceDefinition) error) error
	// DeleteAll starts the deletion of every object of a storage row.
	DeleteAll(ctx context.Context, row *resources.Row) error
}

// Config is what a Keeper works with; all but Send, Log and Now are required.
type Config struct {
	Registry *resources.Registry // with the built-in rows; nobody else replaces them
	Cache    *watchcache.Cache
	Writer   Writer
	// Send posts a ConversionReview to a webhook and returns the answer's body; nil: of a definition
	// that converts by webhook only the storage version is served.
	Send    func(ctx context.Context, client *crdv1.WebhookClientConfig, body []byte) ([]byte, error)
	Metrics *Metrics // nil: none
	Log     *slog.Logger
	Now     func() time.Time
}

// Keeper keeps the table and the definitions' status in step with the definitions.
type Keeper struct {
	cfg     Config
	builtin []*resources.Row
	wake    chan struct{} // tells the cleaner that there is work

	served atomic.Bool // see Served

	mu   sync.Mutex // guards defs
	defs map[string]*entry
}

// entry is what is known of one definition.
type entry struct {
	rev        int64
	uid        types.UID
	generation int64
	group      string
	accepted   crdv1.CustomResourceDefinitionNames
	waiting    bool // names are refused: look again when others leave
	ending     bool // deletion has begun, and the cleanup finalizer is there
	deleting   bool
	def        *definition // nil while names are not accepted
	rows       []*resources.Row
}

const (
	// unused is after how long compiled forms are dropped; they are looked for every lookEvery.
	unused    = 5 * time.Minute
	lookEvery = time.Minute
	// cleanEvery is how often it is seen whether the objects of a leaving definition have gone.
	cleanEvery = time.Second
	retryAfter = time.Second
)

// Finalizer keeps a definition until its objects are gone.
const Finalizer = crdv1.CustomResourceCleanupFinalizer

// New returns a Keeper of the registry's present rows and the definitions to come.
func New(cfg Config) *Keeper {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Keeper{cfg: cfg, builtin: cfg.Registry.All(), defs: map[string]*entry{}, wake: make(chan struct{}, 1)}
}

// Run follows the definitions until ctx ends.
func (k *Keeper) Run(ctx context.Context) error {
	select {
	case <-k.cfg.Cache.Ready():
	case <-ctx.Done():
		return nil
	}
	g := run.New(ctx)
	g.Go("follow", k.follow)
	g.Go("clean", k.clean)
	return g.Wait()
}

func (k *Keeper) follow(ctx context.Context) error {
	row := k.cfg.Registry.Storage(crdv1.Resource("customresourcedefinitions"))
	if row == nil {
		return errors.New("crd: the table has no customresourcedefinitions")
	}
	sel := watchcache.Selection{Prefix: row.Prefix}
	looked := k.cfg.Now()
	for ctx.Err() == nil {
		s, cursor, err := k.cfg.Cache.ListAndWatch(sel)
		if err != nil {
			return err
		}
		for {
			settled := k.pass(ctx, s, sel)
			wait := lookEvery
			if !settled {
				wait = retryAfter
			}
			_, _, err := cursor.Next(ctx, wait)
			if err != nil {
				break // the cache has started anew, or ctx has ended
			}
			if now := k.cfg.Now(); now.Sub(looked) >= lookEvery {
				looked = now
				k.drop(now.Add(-unused))
			}
			s = k.cfg.Cache.Snapshot()
		}
		cursor.Close()
	}
	return nil
}

// Served is an error until all definitions that were there at the start are served.
func (k *Keeper) Served() error {
	if !k.served.Load() {
		return errors.New("the stored definitions are not all served yet")
	}
	return nil
}

func (k *Keeper) drop(before time.Time) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, e := range k.defs {
		if e.def != nil {
			e.def.drop(before.Unix())
		}
	}
}

// pass brings everything in step with one state of the definitions. It returns false
// when a write has failed and should be tried again.
func (k *Keeper) pass(ctx context.Context, s *watchcache.Snapshot, sel watchcache.Selection) bool {
	seen := map[string]bool{}
	var changed []*watchcache.Item
	left := sets.Set[string]{} // groups that have lost names
	k.mu.Lock()
	err := s.Scan(sel, "", func(it *watchcache.Item) bool {
		seen[it.Head().Name] = true
		if e := k.defs[it.Head().Name]; e == nil || e.rev != it.Rev || e.waiting {
			changed = append(changed, it)
		}
		return true
	})
	if err != nil {
		k.mu.Unlock()
		k.cfg.Log.Warn("definitions cannot be read, trying again", "err", err)
		return false
	}
	replace := false
	for name, e := range k.defs {
		if !seen[name] {
			left.Insert(e.group)
			replace = replace || len(e.rows) > 0
			delete(k.defs, name)
		}
	}
	work := make([]*crdv1.CustomResourceDefinition, 0, len(changed))
	for _, it := range changed {
		obj, err := it.Object()
		c, ok := obj.(*crdv1.CustomResourceDefinition)
		if err != nil || !ok {
			k.cfg.Log.Error("definition cannot be read; it is not served", "crd", it.Head().Name, "err", err)
			continue
		}
		work = append(work, c)
		replace = k.note(it, c) || replace
	}
	k.mu.Unlock()
	if replace {
		k.replace()
	}
	k.served.Store(true)
	settled := true
	for _, c := range work {
		if err := k.settle(ctx, c); err != nil && ctx.Err() == nil {
			k.cfg.Log.Warn("status of a definition is not written, trying again", "crd", c.Name, "err", err)
			k.mu.Lock()
			if e := k.defs[c.Name]; e != nil {
				e.rev = 0
			}
			k.mu.Unlock()
			settled = false
		}
	}
	return settled
}

// note takes what a definition says now. It returns true when the table must change. Called with mu held.
func (k *Keeper) note(it *watchcache.Item, c *crdv1.CustomResourceDefinition) bool {
	old := k.defs[c.Name]
	e := &entry{
		rev: it.Rev, uid: c.UID, generation: c.Generation, group: c.Spec.Group, accepted: c.Status.AcceptedNames,
		deleting: c.DeletionTimestamp != nil,
	}
	e.waiting = find(&c.Status, crdv1.NamesAccepted) != nil && !isTrue(&c.Status, crdv1.NamesAccepted)
	e.ending = e.deleting && slices.Contains(c.Finalizers, Finalizer)
	k.defs[c.Name] = e
	if e.ending {
		select {
		case k.wake <- struct{}{}:
		default:
		}
	}
	if !isTrue(&c.Status, crdv1.NamesAccepted) && !isTrue(&c.Status, crdv1.Established) || c.Status.AcceptedNames.Plural == "" {
		return old != nil && len(old.rows) > 0
	}
	same := old != nil && old.def != nil && old.uid == e.uid && specOf(old) == specOf(e) && slices.EqualFunc(
		[]crdv1.CustomResourceDefinitionNames{old.accepted}, []crdv1.CustomResourceDefinitionNames{e.accepted}, sameNames)
	if same {
		var from source = it
		e.def = old.def
		e.def.from.Store(&from)
		if old.deleting == e.deleting {
			e.rows = old.rows
			return false
		}
	} else {
		e.def = newDefinition(c, it, k.cfg.Now)
		e.def.metrics = k.cfg.Metrics
		e.def.hook = k.hookOf(c)
	}
	e.rows = e.def.rows(c)
	return true
}

// specOf: the start of a deletion counts as a generation, but changes no schema.
func specOf(e *entry) int64 {
	if e.deleting {
		return e.generation - 1
	}
	return e.generation
}

func sameNames(a, b crdv1.CustomResourceDefinitionNames) bool {
	return a.Plural == b.Plural && a.Singular == b.Singular && a.Kind == b.Kind && a.ListKind == b.ListKind &&
		slices.Equal(a.ShortNames, b.ShortNames) && slices.Equal(a.Categories, b.Categories)
}

// replace serves the built-in rows and those of the definitions. What a built-in kind holds is not given away.
func (k *Keeper) replace() {
	k.mu.Lock()
	rows := slices.Clone(k.builtin)
	names := make([]string, 0, len(k.defs))
	for name := range k.defs {
		names = append(names, name)
	}
	sort.Strings(names)
	held := map[string]bool{}
	for _, r := range k.builtin {
		held[r.Prefix] = true
		held[r.GR().String()] = true
	}
	for _, name := range names {
		e := k.defs[name]
		if len(e.rows) > 0 && !held[e.rows[0].Prefix] && !held[e.rows[0].GR().String()] {
			rows = append(rows, e.rows...)
		}
	}
	k.mu.Unlock()
	if err := k.cfg.Registry.Replace(rows); err != nil {
		k.cfg.Log.Error("the table of resources cannot be changed", "err", err)
		return
	}
	k.cfg.Cache.Refresh()
}

// settle writes the status that a definition should have.
func (k *Keeper) settle(ctx context.Context, c *crdv1.CustomResourceDefinition) error {
	k.mu.Lock()
	e := k.defs[c.Name]
	if e == nil || e.uid != c.UID {
		k.mu.Unlock()
		return nil
	}
	taken := Taken{sets.Set[string]{}, sets.Set[string]{}}
	for _, o := range k.defs {
		if o.group == c.Spec.Group {
			taken.take(o.accepted)
		}
	}
	served := len(e.rows) > 0
	k.mu.Unlock()
	next := Decide(c, taken, served, k.cfg.Now())
	if next == nil {
		return nil
	}
	// Others must see the names as taken at once, not when the log brings them.
	k.mu.Lock()
	e.accepted = next.AcceptedNames
	k.mu.Unlock()
	rev := c.ResourceVersion
	err := k.cfg.Writer.UpdateStatus(ctx, c.Name, func(now *crdv1.CustomResourceDefinition) error {
		if now.ResourceVersion != rev {
			return errMoved
		}
		now.Status = *next
		return nil
	})
	if errors.Is(err, errMoved) || apierrors.IsNotFound(err) {
		return nil // the log brings what has changed
	}
	return err
}

var errMoved = errors.New("the definition has changed")

// clean deletes the objects of definitions that are being deleted, then lets the definitions go.
func (k *Keeper) clean(ctx context.Context) error {
	started := map[types.UID]bool{}
	for {
		work := false
		k.mu.Lock()
		var names []string
		for name, e := range k.defs {
			if e.ending {
				names = append(names, name)
			}
		}
		k.mu.Unlock()
		sort.Strings(names)
		for _, name := range names {
			work = true
			if err := k.cleanOne(ctx, name, started); err != nil && ctx.Err() == nil {
				k.cfg.Log.Warn("objects of a definition are not all deleted, trying again", "crd", name, "err", err)
			}
		}
		var again <-chan time.Time
		if work {
			again = time.After(cleanEvery)
		} else {
			clear(started)
		}
		select {
		case <-k.wake:
		case <-again:
		case <-ctx.Done():
			return nil
		}
	}
}

func (k *Keeper) cleanOne(ctx context.Context, name string, started map[types.UID]bool) error {
	k.mu.Lock()
	e := k.defs[name]
	if e == nil || !e.ending {
		k.mu.Unlock()
		return nil
	}
	uid, rows, def := e.uid, e.rows, e.def
	k.mu.Unlock()
	say := func(status crdv1.ConditionStatus, reason, message string, done bool) error {
		err := k.cfg.Writer.UpdateStatus(ctx, name, func(c *crdv1.CustomResourceDefinition) error {
			if c.UID != uid {
				return errMoved
			}
			put(&c.Status, crdv1.CustomResourceDefinitionCondition{Type: crdv1.Terminating, Status: status, Reason: reason, Message: message}, k.cfg.Now())
			if done {
				c.Finalizers = slices.DeleteFunc(c.Finalizers, func(f string) bool { return f == Finalizer })
			}
			return nil
		})
		if errors.Is(err, errMoved) || apierrors.IsNotFound(err) {
			return nil
		}
		return err
	}
	if len(rows) == 0 {
		return say(crdv1.ConditionFalse, "NeverEstablished", "resource was never established", true)
	}
	storage := rows[0]
	switch served := k.cfg.Registry.ByPrefix(storage.Prefix); {
	case served == nil:
		return nil // the table is about to change
	case served.Custom == nil:
		return say(crdv1.ConditionFalse, "OverlappingBuiltInResource", "instances overlap with built-in resources in storage", true)
	default:
		if kind, ok := served.Custom.(*Kind); !ok || kind.def != def {
			return nil
		}
	}
	if !started[uid] {
		if err := say(crdv1.ConditionTrue, "InstanceDeletionInProgress", "CustomResource deletion is in progress", false); err != nil {
			return err
		}
		if err := k.cfg.Writer.DeleteAll(ctx, storage); err != nil {
			_ = say(crdv1.ConditionTrue, "InstanceDeletionFailed", fmt.Sprintf("could not issue all deletes: %v", err), false)
			return err
		}
		started[uid] = true
	}
	if _, err := k.cfg.Cache.Fresh(ctx); err != nil {
		return err
	}
	if n := k.cfg.Cache.Snapshot().Count(storage.Prefix, "", ""); n > 0 {
		delete(started, uid) // what has arrived meanwhile goes too
		return nil
	}
	return say(crdv1.ConditionFalse, "InstanceDeletionCompleted", "removed all instances", true)
}

// State is what one definition is served as, for /debug/crd.
type State struct {
	Name     string
	Versions []string
	Waiting  bool `json:",omitempty"` // names are refused
	Ending   bool `json:",omitempty"`
	Compiled []string
}

// States are those of all definitions, by name.
func (k *Keeper) States() []State {
	k.mu.Lock()
	defer k.mu.Unlock()
	out := make([]State, 0, len(k.defs))
	for name, e := range k.defs {
		s := State{Name: name, Waiting: e.waiting, Ending: e.ending}
		for _, r := range e.rows {
			if !r.Hidden {
				s.Versions = append(s.Versions, r.Version)
			}
		}
		if e.def != nil {
			e.def.mu.Lock()
			for v := range e.def.forms {
				s.Compiled = append(s.Compiled, v)
			}
			e.def.mu.Unlock()
			sort.Strings(s.Compiled)
		}
		out = append(out, s)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Name < out[j].Name })
	return out
}
