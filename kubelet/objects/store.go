package objects

import (
	"context"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
)

// Store reads objects from the API server and keeps those that pods of this node use.
//
// Each object in use has a watch of its own (metadata.name as field selector: the node
// authorizer allows no more), which also keeps the copy fresh. Use and Release count the
// pods; an object that is read without being in use is read from the server each time.
type Store struct {
	client   kubernetes.Interface
	onChange []func(string, types.NamespacedName)

	mu    sync.Mutex
	ctx   context.Context // set by Run; guarded by mu
	items map[ref]*item   // guarded by mu
	wg    sync.WaitGroup
}

type ref struct {
	kind string
	key  types.NamespacedName
}

// item is one object that is watched. Its fields are guarded by Store.mu.
type item struct {
	users  map[types.UID]bool
	cancel context.CancelFunc
	fresh  bool // object is what the watch last said
	object runtime.Object
}

var _ Reader = (*Store)(nil)

// NewStore starts nothing.
func NewStore(client kubernetes.Interface) *Store {
	return &Store{client: client, items: map[ref]*item{}}
}

// OnChange implements Reader.
func (s *Store) OnChange(f func(string, types.NamespacedName)) { s.onChange = append(s.onChange, f) }

// Run keeps the watches until ctx ends.
func (s *Store) Run(ctx context.Context) error {
	s.mu.Lock()
	s.ctx = ctx
	for r, it := range s.items {
		s.start(r, it)
	}
	s.mu.Unlock()
	<-ctx.Done()
	s.wg.Wait()
	return nil
}

// Use says that the pod uses all objects that its spec names, and no others from now on.
func (s *Store) Use(p *corev1.Pod) {
	want := Names(p)
	s.mu.Lock()
	defer s.mu.Unlock()
	for r := range want {
		it := s.items[r]
		if it == nil {
			it = &item{users: map[types.UID]bool{}}
			s.items[r] = it
			if s.ctx != nil {
				s.start(r, it)
			}
		}
		it.users[p.UID] = true
	}
	s.drop(p.UID, want)
}

// Release says that the pod uses nothing any more.
func (s *Store) Release(uid types.UID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.drop(uid, nil)
}

func (s *Store) drop(uid types.UID, keep map[ref]bool) {
	for r, it := range s.items {
		if it.users[uid] && !keep[r] {
			delete(it.users, uid)
			if len(it.users) == 0 {
				if it.cancel != nil {
					it.cancel()
				}
				delete(s.items, r)
			}
		}
	}
}

// start begins the watch of one object. Called with mu held.
func (s *Store) start(r ref, it *item) {
	ctx, cancel := context.WithCancel(s.ctx)
	it.cancel = cancel
	s.wg.Go(func() { s.follow(ctx, r, it) })
}

// follow keeps one object fresh until ctx ends: a watch that begins with the state of now.
func (s *Store) follow(ctx context.Context, r ref, it *item) {
	for delay := 200 * time.Millisecond; ctx.Err() == nil; {
		began := time.Now()
		w, err := s.watch(ctx, r)
		if err == nil {
			s.read(ctx, r, it, w)
			w.Stop()
		}
		if time.Since(began) > 10*time.Second {
			delay = 200 * time.Millisecond
		}
		select {
		case <-ctx.Done():
		case <-time.After(delay):
			delay = min(2*delay, 10*time.Second)
		}
	}
}

func (s *Store) watch(ctx context.Context, r ref) (watch.Interface, error) {
	o := metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector("metadata.name", r.key.Name).String()}
	if r.kind == "Secret" {
		return s.client.CoreV1().Secrets(r.key.Namespace).Watch(ctx, o)
	}
	return s.client.CoreV1().ConfigMaps(r.key.Namespace).Watch(ctx, o)
}

func (s *Store) read(ctx context.Context, r ref, it *item, w watch.Interface) {
	for {
		select {
		case <-ctx.Done():
			return
		case e, ok := <-w.ResultChan():
			if !ok || e.Type == watch.Error {
				// What is known may be old from here on: readers ask the server.
				s.mu.Lock()
				it.fresh = false
				s.mu.Unlock()
				return
			}
			if e.Type == watch.Bookmark {
				continue
			}
			s.mu.Lock()
			old := it.object
			it.object, it.fresh = e.Object, e.Type != watch.Deleted
			s.mu.Unlock()
			if old == nil || version(old) != version(e.Object) || e.Type == watch.Deleted {
				for _, f := range s.onChange {
					f(r.kind, r.key)
				}
			}
		}
	}
}

func version(o runtime.Object) string {
	if m, ok := o.(metav1.Object); ok {
		return m.GetResourceVersion()
	}
	return ""
}

// ConfigMap implements Reader.
func (s *Store) ConfigMap(ctx context.Context, key types.NamespacedName) (*corev1.ConfigMap, error) {
	if o, ok := s.fresh("ConfigMap", key).(*corev1.ConfigMap); ok {
		return o, nil
	}
	o, err := s.client.CoreV1().ConfigMaps(key.Namespace).Get(ctx, key.Name, metav1.GetOptions{})
	if err != nil {
		return nil, missing(err, "configmap", key)
	}
	return o, nil
}

// Secret implements Reader.
func (s *Store) Secret(ctx context.Context, key types.NamespacedName) (*corev1.Secret, error) {
	if o, ok := s.fresh("Secret", key).(*corev1.Secret); ok {
		return o, nil
	}
	o, err := s.client.CoreV1().Secrets(key.Namespace).Get(ctx, key.Name, metav1.GetOptions{})
	if err != nil {
		return nil, missing(err, "secret", key)
	}
	return o, nil
}

// missing words a not-found error as upstream's kubelet does, which users search for.
func missing(err error, kind string, key types.NamespacedName) error {
	if apierrors.IsNotFound(err) {
		return apierrors.NewNotFound(schema.GroupResource{Resource: kind}, key.Name)
	}
	return err
}

func (s *Store) fresh(kind string, key types.NamespacedName) runtime.Object {
	s.mu.Lock()
	defer s.mu.Unlock()
	if it := s.items[ref{kind, key}]; it != nil && it.fresh {
		return it.object
	}
	return nil
}

// Names are the ConfigMaps and Secrets that a pod's spec refers to by name.
func Names(p *corev1.Pod) map[ref]bool {
	out := map[ref]bool{}
	add := func(kind, name string) {
		if name != "" {
			out[ref{kind, types.NamespacedName{Namespace: p.Namespace, Name: name}}] = true
		}
	}
	env := func(from []corev1.EnvFromSource, vars []corev1.EnvVar) {
		for _, f := range from {
			if f.ConfigMapRef != nil {
				add("ConfigMap", f.ConfigMapRef.Name)
			}
			if f.SecretRef != nil {
				add("Secret", f.SecretRef.Name)
			}
		}
		for _, v := range vars {
			if v.ValueFrom == nil {
				continue
			}
			if r := v.ValueFrom.ConfigMapKeyRef; r != nil {
				add("ConfigMap", r.Name)
			}
			if r := v.ValueFrom.SecretKeyRef; r != nil {
				add("Secret", r.Name)
			}
		}
	}
	for _, list := range [][]corev1.Container{p.Spec.InitContainers, p.Spec.Containers} {
		for i := range list {
			env(list[i].EnvFrom, list[i].Env)
		}
	}
	for i := range p.Spec.EphemeralContainers {
		env(p.Spec.EphemeralContainers[i].EnvFrom, p.Spec.EphemeralContainers[i].Env)
	}
	for _, s := range p.Spec.ImagePullSecrets {
		add("Secret", s.Name)
	}
	for _, v := range p.Spec.Volumes {
		if v.ConfigMap != nil {
			add("ConfigMap", v.ConfigMap.Name)
		}
		if v.Secret != nil {
			add("Secret", v.Secret.SecretName)
		}
		if v.Projected == nil {
			continue
		}
		for _, src := range v.Projected.Sources {
			if src.ConfigMap != nil {
				add("ConfigMap", src.ConfigMap.Name)
			}
			if src.Secret != nil {
				add("Secret", src.Secret.Name)
			}
		}
	}
	return out
}
