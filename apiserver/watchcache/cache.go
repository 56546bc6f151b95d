package watchcache

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/keelson/keelson/apiserver/codec"
	"github.com/keelson/keelson/apiserver/resources"
	"github.com/keelson/keelson/apiserver/store"
	"github.com/keelson/keelson/libs/run"
)

// Options bound the cache. Zero fields take the default.
type Options struct {
	// LogEvents, LogBytes and LogAge bound the log: what exceeds one of them leaves it.
	// Bytes are those of states that only the log still holds. Defaults: 100,000
	// events, 64 MiB, 5 minutes.
	LogEvents int
	LogBytes  int
	LogAge    time.Duration
	// FormBytes bounds JSON forms (default 64 MiB), and a quarter of it decoded ones; FormAge
	// bounds their life (default 1 minute).
	FormBytes int64
	FormAge   time.Duration
	// Snapshots bounds those kept for continued lists (default 32, for LogAge each).
	Snapshots int
	Log       *slog.Logger
	Now       func() time.Time
}

func (o *Options) fill() {
	if o.LogEvents == 0 {
		o.LogEvents = 100_000
	}
	if o.LogBytes == 0 {
		o.LogBytes = 64 << 20
	}
	if o.LogAge == 0 {
		o.LogAge = 5 * time.Minute
	}
	if o.FormBytes == 0 {
		o.FormBytes = 64 << 20
	}
	if o.FormAge == 0 {
		o.FormAge = time.Minute
	}
	if o.Snapshots == 0 {
		o.Snapshots = 32
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
}

// Cache is the newest state and the log of recent changes. It is safe for
// concurrent use; Run owns its goroutines.
//
//	start ≤ rev; every change r with start < r ≤ rev is in log
type Cache struct {
	st     store.Store
	reg    *resources.Registry
	opts   Options
	budget *budgets
	ready  chan struct{}
	once   sync.Once
	newest atomic.Pointer[Snapshot] // nil after a change until somebody asks

	mu       sync.Mutex // guards what follows; held for memory work only
	state    trees
	rev      int64
	start    int64
	log      []*entry
	logBytes int
	topics   map[topicKey]*topic
	reached  chan struct{} // closed when rev grows; nil while nobody waits
	kept     []keptSnapshot
	since    map[string]int64         // by prefix: where its part of the log begins, if not at start
	rows     uint64                   // registry version that the items' rows come from
	changes  map[string]*atomic.Int64 // by prefix: revision of the last change
	received map[schema.GroupResource]*int64

	written written
	fresh   freshness
	away    atomic.Pointer[time.Time] // since when the store does not answer; nil: it does
}

type keptSnapshot struct {
	s  *Snapshot
	at time.Time
}

// New returns an empty cache of what st holds; Run fills it.
func New(st store.Store, reg *resources.Registry, opts Options) *Cache {
	opts.fill()
	c := &Cache{
		st: st, reg: reg, opts: opts,
		budget: newBudgets(opts.FormBytes, opts.Now),
		ready:  make(chan struct{}),
		state:  newTrees(),
		topics: map[topicKey]*topic{}, changes: map[string]*atomic.Int64{}, received: map[schema.GroupResource]*int64{},
	}
	c.written.items = map[string]*Item{}
	c.fresh.wake = make(chan struct{}, 1)
	return c
}

// Run loads the state and follows the store until ctx ends. It survives a store
// that is away (readers see an older state, Fresh fails) and one that has
// compacted what was not seen (everything is loaded again, cursors get ErrTooOld).
func (c *Cache) Run(ctx context.Context) error {
	g := run.New(ctx)
	g.Go("follow", c.runFollow)
	g.Go("fresh", c.runFresh)
	g.Go("tidy", c.runTidy)
	return g.Wait()
}

// pauses between attempts to reach a store that is away.
const (
	firstPause = 50 * time.Millisecond
	lastPause  = 5 * time.Second
)

func (c *Cache) runFollow(ctx context.Context) error {
	loaded, pause := false, firstPause
	for {
		var err error
		if !loaded {
			if err = c.load(ctx); err == nil {
				loaded, pause = true, firstPause
				c.away.Store(nil)
			}
		}
		if loaded {
			c.mu.Lock()
			from := c.rev
			c.mu.Unlock()
			err = c.st.Watch(ctx, from, func(b store.Batch) error {
				pause = firstPause
				c.away.Store(nil)
				c.apply(b)
				return nil
			})
			if errors.Is(err, store.ErrCompacted) {
				loaded = false
			}
		}
		if ctx.Err() != nil {
			return nil
		}
		if now := c.opts.Now(); c.away.Load() == nil {
			c.away.Store(&now)
		}
		c.opts.Log.Warn("store does not answer, trying again", "err", err, "pause", pause)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
		pause = min(2*pause, lastPause)
	}
}

// loaders bounds the goroutines that copy what is loaded.
const loaders = 8

// load replaces the state by what the store holds now.
func (c *Cache) load(ctx context.Context) error {
	started := c.opts.Now()
	old := c.Snapshot()
	fresh := newTrees()
	count := 0
	version := c.reg.Version()
	// Most of the time goes into copying messages: pages are shared out, and enter the trees while the next are copied.
	shelves := make([]shelf, min(runtime.GOMAXPROCS(0), loaders))
	made := make(chan []*Item)
	var entering sync.WaitGroup
	entering.Go(func() {
		for items := range made {
			for _, it := range items {
				fresh.set(it, nil)
			}
			count += len(items)
		}
	})
	rev, err := c.st.Range(ctx, "", func(page []store.KV) error {
		items := make([]*Item, len(page))
		part := (len(page) + len(shelves) - 1) / len(shelves)
		var copying sync.WaitGroup
		for n := range shelves {
			first, end := min(n*part, len(page)), min((n+1)*part, len(page))
			copying.Go(func() {
				for i := first; i < end; i++ {
					if items[i] = old.get(page[i].Key); items[i] == nil || items[i].Rev != page[i].ModRev {
						items[i] = c.item(&shelves[n], page[i])
					}
				}
			})
		}
		copying.Wait()
		made <- items
		return nil
	})
	close(made)
	entering.Wait()
	if err != nil {
		return fmt.Errorf("load: %w", err)
	}
	c.mu.Lock()
	c.state, c.rev, c.start, c.rows = fresh, rev, rev, version
	c.log, c.logBytes, c.kept = nil, 0, nil
	old.keys.Scan(func(it *Item) bool {
		if fresh.get(it.Key) != it {
			it.superseded.Store(true)
			it.leave()
		}
		return true
	})
	for _, last := range c.changes {
		last.Store(rev)
	}
	for key, t := range c.topics {
		t.broken = true
		t.wake()
		delete(c.topics, key)
	}
	c.newest.Store(nil)
	c.wakeReached()
	c.mu.Unlock()
	c.once.Do(func() { close(c.ready) })
	c.opts.Log.Info("loaded", "objects", count, "rev", rev, "took", c.opts.Now().Sub(started))
	if c.reg.Version() != version {
		c.Refresh()
	}
	return nil
}

// item makes the cache's item of a stored value, which is only lent. It never fails: what cannot be
// read stays as an item without a row, so that it is not lost and not served.
func (c *Cache) item(s *shelf, kv store.KV) *Item {
	row := c.rowOf(kv.Key)
	if it := c.written.take(kv.Key, kv.ModRev); it != nil && it.Row == row {
		return it
	}
	if row != nil {
		it, err := c.typed(s, row, kv)
		if err == nil {
			return it
		}
		c.opts.Log.Error("stored object cannot be read; it is not served", "key", kv.Key, "rev", kv.ModRev, "err", err)
	}
	it := &Item{Key: kv.Key, Rev: kv.ModRev, CreateRev: kv.CreateRev}
	it.body.Store(&body{raw: bytes.Clone(kv.Value)})
	return it
}

func (c *Cache) typed(s *shelf, row *resources.Row, kv store.KV) (*Item, error) {
	raw, gvk, err := codec.Unwrap(kv.Value)
	if err != nil {
		return nil, err
	}
	foreign := row.HasDefaults && codec.Foreign(kv.Value)
	if row.Custom == nil && (foreign || gvk != row.GVK() || (len(raw) > 0 && raw[0] == '{')) {
		if raw, err = c.convert(row, raw, kv); err != nil {
			return nil, err
		}
	}
	it, err := newItem(s, row, kv.Key, raw, kv.ModRev, kv.CreateRev)
	if err != nil {
		return nil, err
	}
	it.budget = c.budget
	return it, nil
}

// convert reads a value that another server has stored as another version, as JSON, or without defaults.
func (c *Cache) convert(row *resources.Row, raw []byte, kv store.KV) ([]byte, error) {
	_, gvk, err := codec.Unwrap(kv.Value)
	if err != nil {
		return nil, err
	}
	from := c.reg.Kind(gvk)
	if from == nil || from.Storage() != row {
		from = row
	}
	if row.Upgrade != nil && gvk.Version != row.Version {
		if raw, err = row.Upgrade(gvk.Version, raw); err != nil {
			return nil, err
		}
	}
	obj, err := codec.DecodeMessage(from, raw)
	if err != nil {
		return nil, err
	}
	from.Default(obj)
	if from != row && from.ToStored != nil {
		if obj, err = from.ToStored(obj); err != nil {
			return nil, err
		}
	}
	return codec.Message(row, obj)
}

// rowOf finds the storage row of a key: prefixes have one or two parts.
func (c *Cache) rowOf(key string) *resources.Row {
	return c.reg.ByPrefix(prefixIn(c.reg, key))
}

func prefixIn(reg *resources.Registry, key string) string {
	one := strings.IndexByte(key, '/')
	if one < 0 {
		return ""
	}
	if two := strings.IndexByte(key[one+1:], '/'); two >= 0 {
		if p := key[:one+1+two]; reg.ByPrefix(p) != nil {
			return p
		}
	}
	return key[:one]
}

// prefixOf is the wide topic's key that a narrower one may be filled from, or "".
func prefixOf(at string) string {
	if i := strings.IndexByte(at, '/'); i >= 0 {
		return at[:i]
	}
	return at
}

// apply adds a batch to log and state.
func (c *Cache) apply(b store.Batch) {
	items := make([]*Item, len(b.Events))
	for i, ev := range b.Events {
		if !ev.Deleted {
			items[i] = c.item(nil, ev.KV)
		}
	}
	// The lock is let go of before many are woken who will want it.
	for _, cu := range c.enter(b, items) {
		cu.poke()
	}
}

// enter does it, and returns the cursors that have something to see.
func (c *Cache) enter(b store.Batch, items []*Item) (woken []*Cursor) {
	now := c.opts.Now().Unix()
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, ev := range b.Events {
		if ev.KV.ModRev <= c.rev {
			continue // seen before the watch was opened again
		}
		prev, item := c.state.get(ev.KV.Key), items[i]
		if prev == nil && item == nil {
			continue
		}
		c.state.set(item, prev)
		if prev != nil {
			prev.superseded.Store(true)
			prev.leave()
			prev.object.Store(nil) // nobody decides on it any more
		}
		c.note(item, prev, ev.KV.ModRev)
		c.count(item, prev)
		e := &entry{rev: ev.KV.ModRev, item: item, prev: prev, at: now}
		c.log = append(c.log, e)
		c.logBytes += e.bytes()
		c.eachTopic(e, func(t *topic) {
			t.entries = append(t.entries, e)
			woken = append(woken, t.take()...)
		})
	}
	if b.Rev > c.rev {
		c.rev = b.Rev
		c.newest.Store(nil)
		c.wakeReached()
	}
	c.trim(now)
	if n := len(c.log); n > 1024 {
		hot := c.log[n-1024].rev
		c.budget.texts.hot.Store(hot)
		c.budget.objects.hot.Store(hot)
	}
	return woken
}

// eachTopic calls f once for every followed topic that the entry concerns.
func (c *Cache) eachTopic(e *entry, f func(*topic)) {
	topics(e.item, func(k topicKey) {
		if t := c.topics[k]; t != nil {
			f(t)
		}
	})
	topics(e.prev, func(k topicKey) {
		if e.item != nil && e.item.Row == e.prev.Row && (k.node == "" || k.node == e.item.node) {
			return // the item's topics include it
		}
		if t := c.topics[k]; t != nil {
			f(t)
		}
	})
}

func (c *Cache) note(item, prev *Item, rev int64) {
	if item == nil {
		item = prev
	}
	if item.Row != nil {
		if last := c.changes[item.Row.Prefix]; last != nil {
			last.Store(rev)
		}
	}
}

// count counts a change by what it is a change of. Called with mu held.
func (c *Cache) count(item, prev *Item) {
	if item == nil {
		item = prev
	}
	if item.Row == nil {
		return
	}
	if gr := item.Row.GR(); c.received[gr] != nil {
		*c.received[gr]++
	} else {
		one := int64(1)
		c.received[gr] = &one
	}
}

// Received is how many changes of each resource the store has told of since the start.
func (c *Cache) Received() map[schema.GroupResource]int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := make(map[schema.GroupResource]int64, len(c.received))
	for gr, n := range c.received {
		out[gr] = *n
	}
	return out
}

// Changed returns a function that gives the revision at which any object below one of
// the prefixes changed last (or was loaded): what is derived from them can be kept until it grows.
func (c *Cache) Changed(prefixes ...string) func() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	lasts := make([]*atomic.Int64, len(prefixes))
	for i, p := range prefixes {
		if c.changes[p] == nil {
			c.changes[p] = new(atomic.Int64)
			c.changes[p].Store(c.rev)
		}
		lasts[i] = c.changes[p]
	}
	return func() int64 {
		var newest int64
		for _, l := range lasts {
			newest = max(newest, l.Load())
		}
		return newest
	}
}

// trim takes the oldest entries out of the log while a bound is exceeded. All
// entries of one revision leave together. Called with mu held.
func (c *Cache) trim(now int64) {
	oldest := now - int64(c.opts.LogAge/time.Second)
	n := 0
	for n < len(c.log) {
		e := c.log[n]
		if len(c.log)-n <= c.opts.LogEvents && c.logBytes <= c.opts.LogBytes && e.at >= oldest && e.rev > c.start {
			break
		}
		c.start = e.rev
		c.logBytes -= e.bytes()
		c.eachTopic(e, func(t *topic) {
			if len(t.entries) > 0 && t.entries[0] == e {
				t.start = e.rev
				if t.entries = t.entries[1:]; len(t.entries) == 0 {
					t.entries = nil // let the array go
				}
			}
		})
		n++
	}
	if n == 0 {
		return
	}
	if c.log = c.log[n:]; len(c.log) == 0 {
		c.log = nil
	} else if cap(c.log) > 4*len(c.log)+1024 {
		c.log = append([]*entry(nil), c.log...)
	}
}

func (c *Cache) wakeReached() {
	if c.reached != nil {
		close(c.reached)
		c.reached = nil
	}
}

const tidyEvery = 5 * time.Second

// runTidy lets go of what has grown old while nothing happens.
func (c *Cache) runTidy(ctx context.Context) error {
	tick := time.NewTicker(tidyEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		// A watch whose store is away may just say nothing.
		ask, cancel := context.WithTimeout(ctx, tidyEvery)
		if _, err := c.st.Rev(ask); err == nil {
			c.away.Store(nil)
		} else if now := c.opts.Now(); ctx.Err() == nil {
			c.away.CompareAndSwap(nil, &now)
		}
		cancel()
		c.budget.texts.age(c.opts.FormAge)
		c.budget.objects.age(c.opts.FormAge)
		now := c.opts.Now()
		c.mu.Lock()
		c.trim(now.Unix())
		for len(c.kept) > 0 && now.Sub(c.kept[0].at) > c.opts.LogAge {
			c.kept = c.kept[1:]
		}
		c.mu.Unlock()
	}
}

// Refresh gives items the rows of the registry as it is now. It is called after a
// Replace: objects that were stored before their row arrived appear under the revision
// that the cache has. Watches of a resource that is gone, or has become another, end
// with ErrGone.
func (c *Cache) Refresh() {
	c.mu.Lock()
	defer c.mu.Unlock()
	version := c.reg.Version()
	if c.rows == version {
		return
	}
	c.rows = version
	var changed []*Item
	// Rows of one prefix stand together: what is looked up is mostly looked up again.
	var prefix string
	var row *resources.Row
	c.state.keys.Scan(func(it *Item) bool {
		if it.Row != nil && it.Row.Custom == nil {
			return true // built-in rows stay
		}
		if prefix == "" || !strings.HasPrefix(it.Key, prefix) {
			row, prefix = c.rowOf(it.Key), ""
			if row != nil {
				prefix = row.Prefix + "/"
			}
		}
		if row != it.Row {
			changed = append(changed, it)
		}
		return true
	})
	for _, it := range changed {
		row := c.rowOf(it.Key)
		if row != nil && it.Row == nil {
			if next, err := c.typed(nil, row, store.KV{Key: it.Key, Value: it.Raw(), CreateRev: it.CreateRev, ModRev: it.Rev}); err == nil {
				c.state.set(next, it)
				it.leave()
				c.arrived(row)
			}
			continue
		}
		c.state.set(it.with(row), it)
	}
	for key, t := range c.topics {
		if t.row != nil && t.row.Custom != nil && !sameKind(t.row, c.rowOf(key.at+"/")) {
			t.gone = true
			t.wake()
			delete(c.topics, key)
		}
	}
	c.newest.Store(nil)
}

func sameKind(a, b *resources.Row) bool { return b != nil && a.Custom == b.Custom }

// arrived notes that objects of a row have appeared that the log knows nothing of: a watch
// from an earlier revision would miss them. Called with mu held.
func (c *Cache) arrived(row *resources.Row) {
	if c.since == nil {
		c.since = map[string]int64{}
	}
	c.since[row.Prefix] = c.rev
}

// Ready is closed when the cache has been loaded once.
func (c *Cache) Ready() <-chan struct{} { return c.ready }

// Alive reports an error while the store does not answer.
func (c *Cache) Alive() error {
	if since := c.away.Load(); since != nil {
		return fmt.Errorf("the store has not answered since %s", since.UTC().Format(time.RFC3339))
	}
	return nil
}

// Rev is the revision of the newest state.
func (c *Cache) Rev() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rev
}

// Snapshot is the newest state.
func (c *Cache) Snapshot() *Snapshot {
	if s := c.newest.Load(); s != nil {
		return s
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.snapshot()
}

func (c *Cache) snapshot() *Snapshot {
	s := c.newest.Load()
	if s == nil {
		s = &Snapshot{rev: c.rev, trees: c.state.copy()}
		c.newest.Store(s)
	}
	return s
}

// SnapshotAt is the state at an earlier revision: one that was kept, or one made
// by undoing what the log has recorded since.
//
// Errors: ErrTooOld, ErrTooNew.
func (c *Cache) SnapshotAt(rev int64) (*Snapshot, error) {
	c.mu.Lock()
	newest := c.snapshot()
	if rev == newest.rev {
		c.mu.Unlock()
		return newest, nil
	}
	for _, k := range c.kept {
		if k.s.rev == rev {
			c.mu.Unlock()
			return k.s, nil
		}
	}
	log, start := c.log, c.start
	var s *Snapshot
	if rev >= start && rev < newest.rev {
		s = &Snapshot{rev: rev, trees: c.state.copy()}
	}
	c.mu.Unlock()
	if rev > newest.rev {
		return nil, ErrTooNew
	}
	if s == nil {
		return nil, ErrTooOld
	}
	for i := len(log) - 1; i >= 0 && log[i].rev > rev; i-- {
		s.set(log[i].prev, log[i].item)
	}
	c.Keep(s)
	return s, nil
}

// Keep holds a snapshot for SnapshotAt after its revision has left the log: for a list that will be continued.
func (c *Cache) Keep(s *Snapshot) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, k := range c.kept {
		if k.s.rev == s.rev {
			return
		}
	}
	c.kept = append(c.kept, keptSnapshot{s, c.opts.Now()})
	if len(c.kept) > c.opts.Snapshots {
		c.kept = append([]keptSnapshot(nil), c.kept[1:]...)
	}
}

// Watch returns a cursor at from (exclusive). Errors: ErrTooOld, ErrTooNew.
func (c *Cache) Watch(sel Selection, from int64) (*Cursor, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if from < c.start || from < c.since[sel.Prefix] {
		return nil, ErrTooOld
	}
	if from > c.rev {
		return nil, ErrTooNew
	}
	return c.cursor(sel, from), nil
}

// ListAndWatch returns the newest state and a cursor that starts exactly there.
func (c *Cache) ListAndWatch(sel Selection) (*Snapshot, *Cursor, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.snapshot()
	return s, c.cursor(sel, s.rev), nil
}

func (c *Cache) cursor(sel Selection, from int64) *Cursor {
	q := sel.query()
	return c.newCursor(q, c.follow(q.topic(), c.reg.ByPrefix(sel.Prefix)), from)
}

// Reader reads the newest state.
func (c *Cache) Reader() resources.Reader { return reader{c} }

// Certain reads the newest state too, but before its Get says that an object does not exist the cache
// catches up with the store: for refusals, and for requests that follow a write at once, maybe through
// another server. A Get of what does not exist costs a question to the store.
func (c *Cache) Certain() resources.Reader { return certain{reader{c}} }

// Stats is what the cache holds, for /debug/watchcache and metrics.
type Stats struct {
	Rev, Start          int64
	Objects             int
	LogEvents, LogBytes int
	Topics, Cursors     int
	KeptSnapshots       int
	Forms               int
	FormBytes           int64
}

// Stats counts without walking.
func (c *Cache) Stats() Stats {
	c.mu.Lock()
	s := Stats{
		Rev: c.rev, Start: c.start, Objects: c.state.keys.Len(), LogEvents: len(c.log), LogBytes: c.logBytes,
		Topics: len(c.topics), KeptSnapshots: len(c.kept),
	}
	for _, t := range c.topics {
		s.Cursors += t.cursors
	}
	c.mu.Unlock()
	for _, b := range []*budget{&c.budget.texts, &c.budget.objects} {
		b.mu.Lock()
		s.Forms += len(b.fifo) - b.head
		s.FormBytes += b.used
		b.mu.Unlock()
	}
	return s
}
