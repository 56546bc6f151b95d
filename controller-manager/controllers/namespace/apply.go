package namespace

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"

	"github.com/keelson/keelson/controller-manager/runtime"
	"github.com/keelson/keelson/libs/informer"
)

// Row is this controller's line of the table.
var Row = runtime.Row{
	Name:   "namespace-controller",
	Reads:  []string{"namespaces"},
	Writes: []string{"namespaces/status", "update namespaces/finalize"},
	Extra: []rbacv1.PolicyRule{{
		APIGroups: []string{"*"}, Resources: []string{"*"}, Verbs: []string{"delete", "deletecollection", "get", "list"},
	}},
	New: build,
}

const (
	workers      = 10
	parallel     = 16 // deletions of one namespace that run at once
	soon, latest = 50 * time.Millisecond, 5 * time.Second
	// maxListed bounds what is counted for the conditions.
	maxListed = 500
)

type controller struct {
	namespaces *informer.Cache[*corev1.Namespace]
	client     kubernetes.Interface
	meta       metadata.Interface
	resources  *catalogue
	mu         sync.Mutex
	ending     map[string]*ending // namespaces that are being deleted; guarded by mu
}

// ending is what is remembered of a namespace while it is being deleted.
type ending struct {
	since time.Time // when this process first saw it
	tries int
}

func build(e *runtime.Env) error {
	m, err := metadata.NewForConfig(e.REST())
	if err != nil {
		return err
	}
	c := &controller{
		namespaces: runtime.Read[*corev1.Namespace](e), client: e.Client(), meta: m,
		resources: &catalogue{from: e.Client().Discovery()}, ending: map[string]*ending{},
	}
	q := e.Keyed("", workers, c.pass)
	runtime.On(q, c.namespaces, runtime.Self[*corev1.Namespace])
	return nil
}

func (c *controller) pass(ctx context.Context, p *runtime.Pass) (runtime.Result, error) {
	ns, ok := c.namespaces.Get(p.Key)
	if !ok || ns.DeletionTimestamp == nil {
		c.forget(p.Key.Name)
		return runtime.Result{}, nil
	}
	if !slices.Contains(ns.Spec.Finalizers, corev1.FinalizerKubernetes) {
		return runtime.Result{}, nil // others hold it
	}
	if ns.Status.Phase != corev1.NamespaceTerminating {
		t := ns.DeepCopy()
		t.Status.Phase = corev1.NamespaceTerminating
		got, err := runtime.UpdateStatus(ctx, p, c.client.CoreV1().Namespaces(), t)
		if err != nil {
			return runtime.Result{}, gone(err)
		}
		ns = got
	}
	e := c.begin(ns.Name, p.Now)
	found := c.empty(ctx, ns.Name, e.since)
	if !found.Left() {
		p.Note("nothing is left; finalize")
		c.forget(ns.Name)
		return runtime.Result{}, gone(c.finalize(ctx, ns.Name))
	}
	p.Note("left: %v %v %v", found.Remaining, found.Content, found.Discovery)
	if want := Conditions(ns.Status.Conditions, found, metav1.NewTime(p.Now)); e.tries > 2 && !equality.Semantic.DeepEqual(want, ns.Status.Conditions) {
		t := ns.DeepCopy()
		t.Status.Conditions = want
		if _, err := runtime.UpdateStatus(ctx, p, c.client.CoreV1().Namespaces(), t); err != nil {
			return runtime.Result{}, gone(err)
		}
	}
	return runtime.Result{Again: p.Now.Add(wait(e.tries))}, nil
}

// gone: a namespace that is not there any more is what was wanted.
func gone(err error) error {
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

func (c *controller) forget(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.ending, name)
}

// begin counts a pass.
func (c *controller) begin(name string, now time.Time) ending {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.ending[name]
	if e == nil {
		e = &ending{since: now}
		c.ending[name] = e
	}
	e.tries++
	return *e
}

// wait grows with the number of passes: most namespaces are empty at once, some wait for long.
func wait(tries int) time.Duration { return min(soon<<min(tries, 10), latest) }

// finalize removes our finalizer, again if somebody else changed the namespace meanwhile.
func (c *controller) finalize(ctx context.Context, name string) error {
	for range 5 {
		ns, err := c.client.CoreV1().Namespaces().Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		ns.Spec.Finalizers = slices.DeleteFunc(ns.Spec.Finalizers, func(f corev1.FinalizerName) bool { return f == corev1.FinalizerKubernetes })
		if _, err = c.client.CoreV1().Namespaces().Finalize(ctx, ns, metav1.UpdateOptions{}); !apierrors.IsConflict(err) {
			return err
		}
	}
	return errors.New("the namespace changes too often to be finalized")
}

// empty deletes what is there, and reports what is left. The list of resources is no
// older than since: from then on nothing new can come into the namespace, so no kind
// of object that is in it can be missing from the list.
func (c *controller) empty(ctx context.Context, namespace string, since time.Time) *Findings {
	f := &Findings{Remaining: map[string]int{}, Finalizers: map[string]int{}}
	all, faults := c.resources.list(since)
	f.Discovery = faults
	var mu sync.Mutex
	each := func(list []resource) {
		var wg sync.WaitGroup
		slots := make(chan struct{}, parallel)
		for _, r := range list {
			wg.Add(1)
			slots <- struct{}{}
			go func() {
				defer func() { <-slots; wg.Done() }()
				left, finalizers, err := c.remove(ctx, namespace, r)
				mu.Lock()
				defer mu.Unlock()
				if err != nil {
					f.Content = append(f.Content, fmt.Sprintf("unexpected items still remain in namespace: %s for gvr: %s: %v", namespace, r.gvr, err))
				}
				if left > 0 {
					f.Remaining[r.name()] += left
				}
				for name, n := range finalizers {
					f.Finalizers[name] += n
				}
			}()
		}
		wg.Wait()
	}
	var pods, rest []resource
	for _, r := range all {
		if r.gvr.Group == "" && r.gvr.Resource == "pods" {
			pods = append(pods, r)
		} else {
			rest = append(rest, r)
		}
	}
	each(pods)
	if len(f.Remaining)+len(f.Content) == 0 {
		each(rest)
	}
	slices.Sort(f.Content)
	return f
}

// remove deletes every object of one resource in the namespace and counts what stays.
func (c *controller) remove(ctx context.Context, namespace string, r resource) (left int, finalizers map[string]int, err error) {
	api := c.meta.Resource(r.gvr).Namespace(namespace)
	background := metav1.DeletePropagationBackground
	opts := metav1.DeleteOptions{PropagationPolicy: &background}
	items, err := api.List(ctx, metav1.ListOptions{Limit: maxListed})
	if err != nil {
		return 0, nil, missing(err)
	}
	if len(items.Items) == 0 {
		return 0, nil, nil
	}
	if r.collection {
		err = api.DeleteCollection(ctx, opts, metav1.ListOptions{})
	} else {
		for i := range items.Items {
			if e := api.Delete(ctx, items.Items[i].Name, opts); e != nil && !apierrors.IsNotFound(e) {
				err = errors.Join(err, e)
			}
		}
	}
	if err != nil {
		return len(items.Items), nil, missing(err)
	}
	if items, err = api.List(ctx, metav1.ListOptions{Limit: maxListed}); err != nil {
		return 0, nil, missing(err)
	}
	finalizers = map[string]int{}
	for i := range items.Items {
		for _, name := range items.Items[i].Finalizers {
			finalizers[name]++
		}
	}
	return len(items.Items), finalizers, nil
}

// missing: a resource that is not served any more has no objects; one without the verb cannot be emptied.
func missing(err error) error {
	if apierrors.IsNotFound(err) || apierrors.IsMethodNotSupported(err) {
		return nil
	}
	return err
}

// resource is one kind of object that can be in a namespace.
type resource struct {
	gvr        schema.GroupVersionResource
	collection bool // deletecollection is offered
}

func (r resource) name() string { return r.gvr.GroupResource().String() }

// catalogue knows the namespaced resources that can be listed and deleted.
type catalogue struct {
	from discovery.DiscoveryInterface
	mu   sync.Mutex
	all  []resource
	old  time.Time
}

// fresh is how long discovery's answer is used: one deletion takes several passes.
const fresh = 2 * time.Second

func (k *catalogue) list(since time.Time) ([]resource, []string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.all != nil && time.Since(k.old) < fresh && !k.old.Before(since) {
		return k.all, nil
	}
	asked := time.Now()
	lists, err := discovery.ServerPreferredNamespacedResources(k.from)
	var faults []string
	if err != nil {
		faults = append(faults, err.Error())
	}
	var all []resource
	for _, l := range lists {
		gv, err := schema.ParseGroupVersion(l.GroupVersion)
		if err != nil {
			continue
		}
		for _, r := range l.APIResources {
			if !slices.Contains(r.Verbs, "list") || !slices.Contains(r.Verbs, "delete") && !slices.Contains(r.Verbs, "deletecollection") {
				continue
			}
			if gv.Group == "events.k8s.io" { // the same objects as the core group's
				continue
			}
			all = append(all, resource{gvr: gv.WithResource(r.Name), collection: slices.Contains(r.Verbs, "deletecollection")})
		}
	}
	if len(faults) == 0 {
		k.all, k.old = all, asked
	}
	return all, faults
}
