package runtime

import (
	"context"
	"crypto/x509"
	"fmt"
	"log/slog"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/record"

	"github.com/keelson/keelson/libs/informer"
)

type objectKey = types.NamespacedName

// shared is one kind's cache, used by all controllers that read the kind.
type shared struct {
	kind    *Kind
	cache   any // *informer.Cache[T]
	run     func(context.Context) error
	synced  <-chan struct{}
	rev     func() uint64
	waitFor func(context.Context, uint64) error
	lookup  func(objectKey) (metav1.Object, bool)
	count   func() int
	follow  func(f func(o metav1.Object, gone bool)) (stop func())
	each    func(f func(metav1.Object))
	graves  graves
}

// graves says when the deletion of an object has reached its cache: the object
// is gone from it, or is shown there with a deletion timestamp.
type graves struct {
	mu      sync.Mutex
	pending map[types.UID]chan struct{}
}

func (g *graves) dig(uid types.UID) chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.pending == nil {
		g.pending = map[types.UID]chan struct{}{}
	}
	ch := g.pending[uid]
	if ch == nil {
		ch = make(chan struct{})
		g.pending[uid] = ch
	}
	return ch
}

func (g *graves) gone(uid types.UID) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if ch := g.pending[uid]; ch != nil {
		close(ch)
		delete(g.pending, uid)
	}
}

// Env is what one controller gets of its surroundings.
type Env struct {
	row     Row
	manager *Manager
	log     *slog.Logger
	queues  []*Queue
	loops   []loop
	warm    []*shared
	debug   func() any
}

type loop struct {
	name string
	run  func(context.Context) error
}

// Read returns the shared cache of T. It panics when the row does not declare T
// among its reads or kinds.go does not know it: both are mistakes in the table,
// and show at start.
func Read[T informer.Object](e *Env) *informer.Cache[T] {
	k := kindFor(reflect.TypeFor[T]())
	if k == nil {
		panic(fmt.Sprintf("controller %s: kind of %s is not in the table of kinds", e.row.Name, reflect.TypeFor[T]()))
	}
	if !slices.Contains(e.row.Reads, k.Name) {
		panic(fmt.Sprintf("controller %s reads %s without declaring it", e.row.Name, k.Name))
	}
	s := e.manager.share(k)
	if !slices.Contains(e.warm, s) {
		e.warm = append(e.warm, s)
	}
	return s.cache.(*informer.Cache[T])
}

// Followed is a kind's shared cache as a controller sees it that cares for the metadata of all kinds.
type Followed struct {
	// Synced is closed when the first list has been told.
	Synced <-chan struct{}
	// Each calls f for every object. They are shared: read only.
	Each func(f func(metav1.Object))
	// Stop ends the calls. It may be called once.
	Stop func()
}

// Follow calls f for every object of a resource, and for every change (gone: it was deleted), through the
// cache that other controllers read. ok is false when none does. f must not block.
func (e *Env) Follow(r schema.GroupResource, f func(o metav1.Object, gone bool)) (_ Followed, ok bool) {
	k := KindNamed(r.String())
	if k == nil {
		return Followed{}, false
	}
	s := e.manager.shared(k)
	if s == nil {
		return Followed{}, false
	}
	return Followed{Synced: s.synced, Each: s.each, Stop: s.follow(f)}, true
}

// Client is the clientset shared by all controllers. Reads may use it freely (a
// live read before an adoption); writes go through this package's functions.
func (e *Env) Client() kubernetes.Interface { return e.manager.client }

// REST is the configuration behind Client, for dynamic and metadata clients. It
// is nil under ctrltest with a fake clientset.
func (e *Env) REST() *rest.Config { return e.manager.rest }

// Settings is the part of the daemon's configuration that controllers read.
func (e *Env) Settings() Settings { return e.manager.settings }

// RootCA is the bundle that clients of this cluster trust: --root-ca-file, or, as in
// upstream, the one of the kubeconfig. Empty when there is neither.
func (e *Env) RootCA() (string, error) {
	file := e.Settings().RootCAFile
	if rc := e.REST(); file == "" && rc != nil {
		if len(rc.CAData) > 0 {
			return string(rc.CAData), nil
		}
		file = rc.CAFile
	}
	if file == "" {
		return "", nil
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("--root-ca-file: %w", err)
	}
	if !x509.NewCertPool().AppendCertsFromPEM(data) {
		return "", fmt.Errorf("--root-ca-file %s: no PEM certificate found", file)
	}
	return string(data), nil
}

// Log is the controller's logger.
func (e *Env) Log() *slog.Logger { return e.log }

// Now is the time by which controllers decide.
func (e *Env) Now() time.Time { return e.manager.now() }

// Recorder writes events with this controller as their source.
func (e *Env) Recorder() record.EventRecorder { return e.manager.recorder(e.row.Name) }

// Go adds a goroutine that runs while this process leads and the caches are warm.
// An error from it ends the daemon.
func (e *Env) Go(name string, f func(context.Context) error) {
	e.loops = append(e.loops, loop{name: name, run: f})
}

// Debug adds f's answer to /debug/controllers under the controller's name.
func (e *Env) Debug(f func() any) { e.debug = f }

// mayWrite returns an error when the row does not declare the write.
func (e *Env) mayWrite(verb string, k *Kind, sub string) error {
	for _, w := range e.row.Writes {
		if verbs, n, s := writeOf(w); n == k.Name && s == sub && slices.Contains(verbs, verb) {
			return nil
		}
	}
	name := verb + " " + k.Name
	if sub != "" {
		name += "/" + sub
	}
	return fmt.Errorf("controller %s writes %s without declaring it (declared: %s)", e.row.Name, name, strings.Join(e.row.Writes, ", "))
}

// On maps events of a cache to keys of a queue. f returns the keys to look at; it
// must not block. For updates both states are in the event: an object that moved
// from one owner to another wakes both.
func On[T informer.Object](q *Queue, c *informer.Cache[T], f func(informer.Event[T]) []types.NamespacedName) {
	c.OnEvent(func(ev informer.Event[T]) {
		for _, k := range f(ev) {
			q.Add(k)
		}
	})
}

// Self is the mapping for the kind that the keys name.
func Self[T informer.Object](ev informer.Event[T]) []types.NamespacedName {
	o := ev.New
	if ev.Kind == informer.Deleted {
		o = ev.Old
	}
	return []types.NamespacedName{KeyOf(o)}
}

// KeyOf is the key of an object.
func KeyOf(o metav1.Object) types.NamespacedName {
	return types.NamespacedName{Namespace: o.GetNamespace(), Name: o.GetName()}
}

// OwnerKeys returns the keys of the controlling owners of the given kind ("ReplicaSet")
// before and after an event.
func OwnerKeys[T informer.Object](ownerKind string) func(informer.Event[T]) []types.NamespacedName {
	return func(ev informer.Event[T]) []types.NamespacedName {
		var keys []types.NamespacedName
		add := func(o T) {
			ref := metav1.GetControllerOfNoCopy(o)
			if ref == nil || ref.Kind != ownerKind {
				return
			}
			k := types.NamespacedName{Namespace: o.GetNamespace(), Name: ref.Name}
			if len(keys) == 0 || keys[0] != k {
				keys = append(keys, k)
			}
		}
		if ev.Kind != informer.Added {
			add(ev.Old)
		}
		if ev.Kind != informer.Deleted {
			add(ev.New)
		}
		return keys
	}
}
