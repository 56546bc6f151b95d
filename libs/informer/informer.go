// Package informer keeps a typed copy of one kind of object in memory, over client-go's Reflector.
//
// The main call is [Of], with a source made by [From]:
//
//	pods := informer.Of(informer.From(client.CoreV1().Pods("")), informer.Options[*corev1.Pod]{})
//	pods.OnEvent(func(e informer.Event[*corev1.Pod]) { ... })
//	go pods.Run(ctx); <-pods.Synced()
//
// What it promises:
//
//   - Get, List and By answer from one state that the API server had, or is about to be told of by
//     the next event; objects are shared and must not be changed (test builds check).
//   - Handlers are called one event at a time, on the goroutine of Run, in the order in which the
//     server told the changes; the handlers of one event in the order of registration. When a handler
//     runs, Get already shows the event's new state, or a later one never.
//   - For each key the events are Added, any number of Updated, Deleted, and so on; an Updated's Old
//     is the New of the event before. After a broken watch several changes of one object may arrive as
//     one event; an object that was deleted and created anew meanwhile arrives as Deleted and Added.
//   - Deleted carries the last known state as Old. It also is New, unless the watch told a later one.
//   - Rev is raised after the handlers have returned: once WaitFor(rev) returns, the cache shows every
//     write up to rev, and the handlers have seen it.
//   - Synced is closed when the first list is in the cache and its handlers have been called.
//
// What it does not promise: every intermediate state, or that the copy is fresh. While the server is
// away the copy stays as it was.
//
// The first fill is a streaming list (sendInitialEvents) where the server has it, else a paged list
// from its cache. Lost watches are opened again from the last revision, or by a new list when that is
// too old; Run retries for ever, between 0.2 and 10 seconds apart.
//
// Goroutines: Run owns all of them. To debug: Rev and Len tell how far the copy has come. To test
// against it: a Source is two functions, and client-go's fake clients are accepted by From.
package informer

import (
	"context"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"

	"github.com/keelson/keelson/libs/invariant"
)

// Object is a pointer to an API type.
type Object interface {
	metav1.Object
	runtime.Object
}

// Kind is what happened to an object.
type Kind uint8

// The kinds of event.
const (
	Added Kind = iota
	Updated
	Deleted
)

func (k Kind) String() string { return [...]string{"Added", "Updated", "Deleted"}[k] }

// Event is one change. Old is not set for Added.
type Event[T Object] struct {
	Kind     Kind
	Old, New T
}

// Last is the newest known state of the object: New, or Old of a deleted one.
func (e Event[T]) Last() T {
	if e.Kind == Deleted {
		return e.Old
	}
	return e.New
}

// Source is where objects come from.
type Source interface {
	List(ctx context.Context, opts metav1.ListOptions) (runtime.Object, error)
	Watch(ctx context.Context, opts metav1.ListOptions) (watch.Interface, error)
}

// Client is what every typed client of client-go has.
type Client[L runtime.Object] interface {
	List(ctx context.Context, opts metav1.ListOptions) (L, error)
	Watch(ctx context.Context, opts metav1.ListOptions) (watch.Interface, error)
}

// From makes a source of a typed client: From(client.CoreV1().Pods(namespace)).
func From[L runtime.Object](c Client[L]) Source { return source[L]{c} }

type source[L runtime.Object] struct{ c Client[L] }

func (s source[L]) List(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
	return s.c.List(ctx, o)
}
func (s source[L]) Watch(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
	return s.c.Watch(ctx, o)
}

// IsWatchListSemanticsUnSupported is the question that Reflector asks of fakes: client-go's fake
// clients, which all live in packages named fake, do not send initial events.
func (s source[L]) IsWatchListSemanticsUnSupported() bool {
	t := reflect.TypeOf(s.c)
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	return strings.HasSuffix(t.PkgPath(), "/fake")
}

// Options of a cache. The zero value caches everything with no index.
type Options[T Object] struct {
	// Indexes give, by name, the values under which By finds an object.
	Indexes       map[string]func(T) []string
	LabelSelector string
	FieldSelector string
	// Transform may drop parts of an object that nobody needs before it is stored. It owns the object.
	Transform func(T) T
	// Resync, when not 0, repeats every object to the handlers as Updated (Old equals New) this often.
	Resync time.Duration
}

// Cache is made by Of.
type Cache[T Object] struct {
	src      Source
	o        Options[T]
	handlers []func(Event[T])

	mu      sync.RWMutex // guards the fields below; held for memory work only
	objects map[types.NamespacedName]T
	indexes map[string]map[string]map[types.NamespacedName]T
	copies  map[types.NamespacedName]runtime.Object // test builds: what objects looked like when stored
	waiting map[chan struct{}]uint64

	telling   sync.Mutex        // held while handlers run
	followers []*func(Event[T]) // guarded by telling

	rev    atomic.Uint64
	synced chan struct{}
	once   sync.Once
}

// Of returns an empty cache; Run fills it.
func Of[T Object](src Source, o Options[T]) *Cache[T] {
	c := &Cache[T]{
		src: src, o: o,
		objects: map[types.NamespacedName]T{},
		indexes: map[string]map[string]map[types.NamespacedName]T{},
		waiting: map[chan struct{}]uint64{},
		synced:  make(chan struct{}),
	}
	for name := range o.Indexes {
		c.indexes[name] = map[string]map[types.NamespacedName]T{}
	}
	if invariant.Enabled {
		c.copies = map[types.NamespacedName]runtime.Object{}
	}
	return c
}

// OnEvent registers a handler. It must be called before Run, and f must not block: while it runs, no
// other event is taken in.
func (c *Cache[T]) OnEvent(f func(Event[T])) { c.handlers = append(c.handlers, f) }

// Follow is OnEvent for a handler that comes late: f is called with Added for each object that is there,
// and for every event from then on. It may be told once more of a deletion that List did not show. f must
// not block, and not call Follow or stop. stop may be called once; f is not called after it.
func (c *Cache[T]) Follow(f func(Event[T])) (stop func()) {
	c.telling.Lock()
	defer c.telling.Unlock()
	for _, o := range c.List() {
		f(Event[T]{Kind: Added, New: o})
	}
	mine := &f
	c.followers = append(c.followers, mine)
	return func() {
		c.telling.Lock()
		defer c.telling.Unlock()
		c.followers = slices.DeleteFunc(c.followers, func(other *func(Event[T])) bool { return other == mine })
	}
}

// Run keeps the cache until ctx ends. It returns nil then.
func (c *Cache[T]) Run(ctx context.Context) error {
	var zero T
	expected := reflect.New(reflect.TypeOf(zero).Elem()).Interface()
	r := cache.NewReflectorWithOptions(listWatch[T]{c}, expected, store[T]{c}, cache.ReflectorOptions{
		Name:         fmt.Sprintf("%T", zero),
		ResyncPeriod: c.o.Resync,
		Backoff:      &wait.Backoff{Duration: 200 * time.Millisecond, Factor: 2, Jitter: 0.5, Steps: 6, Cap: 10 * time.Second},
	})
	r.RunWithContext(ctx)
	return nil
}

// Synced is closed when the cache shows the first list and the handlers have been told.
func (c *Cache[T]) Synced() <-chan struct{} { return c.synced }

// HasSynced is Synced as a question.
func (c *Cache[T]) HasSynced() bool {
	select {
	case <-c.synced:
		return true
	default:
		return false
	}
}

// Get finds an object. It is shared: read only.
func (c *Cache[T]) Get(key types.NamespacedName) (T, bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	o, ok := c.objects[key]
	return o, ok
}

// Len is the number of objects.
func (c *Cache[T]) Len() int {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return len(c.objects)
}

// List gives all objects in no order. The slice is the caller's, the objects are shared.
func (c *Cache[T]) List() []T {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return slices.AppendSeq(make([]T, 0, len(c.objects)), maps.Values(c.objects))
}

// By gives the objects that have value under the named index of Options, in no order.
func (c *Cache[T]) By(index, value string) []T {
	c.mu.RLock()
	defer c.mu.RUnlock()
	ix, ok := c.indexes[index]
	if !ok {
		panic(fmt.Sprintf("informer: no index %q on %T", index, *new(T)))
	}
	return slices.AppendSeq(make([]T, 0, len(ix[value])), maps.Values(ix[value]))
}

// Rev is the newest resourceVersion that the cache has taken in, of events and bookmarks.
func (c *Cache[T]) Rev() uint64 { return c.rev.Load() }

// WaitFor returns when Rev is rev or more, or with the cause when ctx ends before.
//
// rev must be the resourceVersion of a write of this kind that the cache's selectors cover: only then
// is an event or bookmark sure to come.
func (c *Cache[T]) WaitFor(ctx context.Context, rev uint64) error {
	if c.rev.Load() >= rev {
		return nil
	}
	ch := make(chan struct{})
	c.mu.Lock()
	if c.rev.Load() >= rev {
		c.mu.Unlock()
		return nil
	}
	c.waiting[ch] = rev
	c.mu.Unlock()
	select {
	case <-ch:
		return nil
	case <-ctx.Done():
		c.mu.Lock()
		delete(c.waiting, ch)
		c.mu.Unlock()
		return fmt.Errorf("cache of %T is at revision %d, waited for %d: %w", *new(T), c.rev.Load(), rev, context.Cause(ctx))
	}
}

// Rev reads an object's resourceVersion as a number; 0 when it has none.
func Rev(o metav1.Object) uint64 {
	n, err := strconv.ParseUint(o.GetResourceVersion(), 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// Key is an object's namespace and name.
func Key(o metav1.Object) types.NamespacedName {
	return types.NamespacedName{Namespace: o.GetNamespace(), Name: o.GetName()}
}

// listWatch adds the cache's selectors to what Reflector asks for.
type listWatch[T Object] struct{ c *Cache[T] }

func (l listWatch[T]) options(o metav1.ListOptions) metav1.ListOptions {
	o.LabelSelector, o.FieldSelector = l.c.o.LabelSelector, l.c.o.FieldSelector
	return o
}

func (l listWatch[T]) List(o metav1.ListOptions) (runtime.Object, error) {
	return l.c.src.List(context.Background(), l.options(o))
}

func (l listWatch[T]) Watch(o metav1.ListOptions) (watch.Interface, error) {
	return l.c.src.Watch(context.Background(), l.options(o))
}

func (l listWatch[T]) ListWithContext(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
	return l.c.src.List(ctx, l.options(o))
}

func (l listWatch[T]) WatchWithContext(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
	return l.c.src.Watch(ctx, l.options(o))
}

func (l listWatch[T]) IsWatchListSemanticsUnSupported() bool {
	s, ok := l.c.src.(interface{ IsWatchListSemanticsUnSupported() bool })
	return ok && s.IsWatchListSemanticsUnSupported()
}

// store is what Reflector writes to. All of its calls come from one goroutine.
type store[T Object] struct{ c *Cache[T] }

func (s store[T]) Add(obj any) error    { return s.put(obj) }
func (s store[T]) Update(obj any) error { return s.put(obj) }

func (s store[T]) put(obj any) error {
	o, err := s.typed(obj)
	if err != nil {
		return err
	}
	s.c.tell(s.c.set(o)...)
	s.c.reach(Rev(o))
	return nil
}

func (s store[T]) Delete(obj any) error {
	o, err := s.typed(obj)
	if err != nil {
		return err
	}
	if e, ok := s.c.remove(Key(o)); ok {
		e.New = o
		s.c.tell(e)
	}
	s.c.reach(Rev(o))
	return nil
}

func (s store[T]) Replace(list []any, rev string) error {
	keep := make(map[types.NamespacedName]struct{}, len(list))
	objects := make([]T, 0, len(list))
	for _, obj := range list {
		o, err := s.typed(obj)
		if err != nil {
			return err
		}
		keep[Key(o)] = struct{}{}
		objects = append(objects, o)
	}
	s.c.mu.RLock()
	var gone []types.NamespacedName
	for k := range s.c.objects {
		if _, ok := keep[k]; !ok {
			gone = append(gone, k)
		}
	}
	s.c.mu.RUnlock()
	for _, k := range gone {
		if e, ok := s.c.remove(k); ok {
			s.c.tell(e)
		}
	}
	for _, o := range objects {
		if old, ok := s.c.Get(Key(o)); ok && old.GetUID() == o.GetUID() && old.GetResourceVersion() == o.GetResourceVersion() {
			continue
		}
		s.c.tell(s.c.set(o)...)
	}
	if n, err := strconv.ParseUint(rev, 10, 64); err == nil {
		s.c.reach(n)
	}
	s.c.once.Do(func() { close(s.c.synced) })
	return nil
}

// Bookmark is Reflector's word that every change up to rev has been told.
func (s store[T]) Bookmark(rev string) error {
	if n, err := strconv.ParseUint(rev, 10, 64); err == nil {
		s.c.reach(n)
	}
	return nil
}

func (s store[T]) Resync() error {
	for _, o := range s.c.List() {
		s.c.tell(Event[T]{Kind: Updated, Old: o, New: o})
	}
	return nil
}

func (s store[T]) typed(obj any) (T, error) {
	o, ok := obj.(T)
	if !ok {
		return o, fmt.Errorf("have %T, want %T", obj, o)
	}
	if s.c.o.Transform != nil {
		o = s.c.o.Transform(o)
	}
	return o, nil
}
