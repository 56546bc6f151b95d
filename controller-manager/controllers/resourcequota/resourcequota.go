// Package resourcequota counts what namespaces use of their quotas.
//
// Admission books growth at once; this controller counts what is really there: it
// gives back what was deleted, and puts right what a crash left booked. What an
// object uses is package libs/quota's knowledge, shared with admission.
package resourcequota

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	resourcev1 "k8s.io/api/resource/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/restmapper"
	"k8s.io/utils/ptr"

	"github.com/keelson/keelson/controller-manager/runtime"
	"github.com/keelson/keelson/libs/informer"
	"github.com/keelson/keelson/libs/quota"
)

// Row is this controller's line of the table.
var Row = runtime.Row{
	Name: "resourcequota-controller",
	Reads: []string{
		"resourcequotas", "pods", "services", "persistentvolumeclaims", "replicationcontrollers", "secrets", "configmaps",
		"deployments.apps", "replicasets.apps", "statefulsets.apps", "daemonsets.apps", "jobs.batch", "cronjobs.batch",
		"resourceclaims.resource.k8s.io", "deviceclasses.resource.k8s.io",
	},
	Writes: []string{"resourcequotas/status"},
	Extra:  []rbacv1.PolicyRule{{APIGroups: []string{"*"}, Resources: []string{"*"}, Verbs: []string{"list"}}},
	New:    build,
}

const (
	recount = 5 * time.Minute
	// poll is how often kinds without a cache are counted, while a quota limits them.
	poll = 5 * time.Second
	page = 500
	// relearnAfter is how long a kind that is not served stays unknown.
	relearnAfter = 30 * time.Second
)

type controller struct {
	quotas *informer.Cache[*corev1.ResourceQuota]
	around cluster
	client kubernetes.Interface
	cached map[schema.GroupResource]func(namespace string) []any
	meta   metadata.Interface
	mapper meta.ResettableRESTMapper

	mu     sync.Mutex
	learnt time.Time // when discovery was asked last; guarded by mu
}

func build(e *runtime.Env) error {
	c := &controller{quotas: runtime.Read[*corev1.ResourceQuota](e), client: e.Client(), cached: map[schema.GroupResource]func(string) []any{}}
	c.around = cluster{e.Now, runtime.Read[*resourcev1.DeviceClass](e), runtime.Read[*corev1.Pod](e), runtime.Read[*resourcev1.ResourceClaim](e)}
	if rc := e.REST(); rc != nil {
		m, err := metadata.NewForConfig(rc)
		if err != nil {
			return err
		}
		c.meta = m
		c.mapper = restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(e.Client().Discovery()))
	}
	q := e.Keyed("", 4, c.pass)
	runtime.On(q, c.quotas, func(ev informer.Event[*corev1.ResourceQuota]) []types.NamespacedName {
		// A booking by admission precedes the object that it is for: counting now would take it back.
		if ev.Kind == informer.Updated && quota.Equal(ev.Old.Spec.Hard, ev.New.Spec.Hard) && quota.Equal(ev.New.Spec.Hard, ev.New.Status.Hard) {
			return nil
		}
		return runtime.Self(ev)
	})
	count[*corev1.ResourceQuota](e, q, c, "resourcequotas", nil)
	count(e, q, c, "pods", func(old, now *corev1.Pod) bool {
		return quota.Finished(old) != quota.Finished(now) || c.differs(pods, old, now) || (old.DeletionTimestamp == nil) != (now.DeletionTimestamp == nil) ||
			claimOf(old) != claimOf(now)
	})
	count(e, q, c, "services", func(old, now *corev1.Service) bool { return c.differs(services, old, now) })
	count(e, q, c, "persistentvolumeclaims", func(old, now *corev1.PersistentVolumeClaim) bool { return c.differs(claims, old, now) })
	count[*corev1.ReplicationController](e, q, c, "replicationcontrollers", nil)
	count[*corev1.Secret](e, q, c, "secrets", nil)
	count[*corev1.ConfigMap](e, q, c, "configmaps", nil)
	count[*appsv1.Deployment](e, q, c, "deployments.apps", nil)
	count[*appsv1.ReplicaSet](e, q, c, "replicasets.apps", nil)
	count[*appsv1.StatefulSet](e, q, c, "statefulsets.apps", nil)
	count[*appsv1.DaemonSet](e, q, c, "daemonsets.apps", nil)
	count[*batchv1.Job](e, q, c, "jobs.batch", nil)
	count[*batchv1.CronJob](e, q, c, "cronjobs.batch", nil)
	count(e, q, c, "resourceclaims.resource.k8s.io", func(old, now *resourcev1.ResourceClaim) bool { return c.differs(deviceClaims, old, now) })
	runtime.On(q, c.around.classes, func(ev informer.Event[*resourcev1.DeviceClass]) []types.NamespacedName {
		if ev.Kind == informer.Updated && ptr.Equal(ev.Old.Spec.ExtendedResourceName, ev.New.Spec.ExtendedResourceName) {
			return nil
		}
		return keys(c.quotas.List(), deviceClaims)
	})
	return nil
}

// differs reports whether a change of an object changes what it counts for.
func (c *controller) differs(gr schema.GroupResource, old, now any) bool {
	return !quota.Equal(quota.Usage(c.around, gr, old), quota.Usage(c.around, gr, now))
}

// claimOf names the claim for the extended resources of a pod.
func claimOf(p *corev1.Pod) string {
	if s := p.Status.ExtendedResourceClaimStatus; s != nil {
		return s.ResourceClaimName
	}
	return ""
}

// cluster is what the count of a resource claim takes from other objects.
type cluster struct {
	now     func() time.Time
	classes *informer.Cache[*resourcev1.DeviceClass]
	pods    *informer.Cache[*corev1.Pod]
	claims  *informer.Cache[*resourcev1.ResourceClaim]
}

func (c cluster) Now() time.Time { return c.now() }

func (c cluster) DeviceClass(name string) *resourcev1.DeviceClass {
	d, _ := c.classes.Get(types.NamespacedName{Name: name})
	return d
}

func (c cluster) Pod(namespace, name string) *corev1.Pod {
	p, _ := c.pods.Get(types.NamespacedName{Namespace: namespace, Name: name})
	return p
}

func (c cluster) Owned(pod *corev1.Pod) []*resourcev1.ResourceClaim {
	return c.claims.By(runtime.ByController, string(pod.UID))
}

var (
	pods     = schema.GroupResource{Resource: "pods"}
	services = schema.GroupResource{Resource: "services"}
	claims   = schema.GroupResource{Resource: "persistentvolumeclaims"}

	deviceClaims = schema.GroupResource{Group: "resource.k8s.io", Resource: "resourceclaims"}
)

// count makes a kind's cache known, and wakes the quotas of its namespace when what is used shrinks or
// changes. Creations are booked by admission. matters is nil where an update changes nothing.
func count[T informer.Object](e *runtime.Env, q *runtime.Queue, c *controller, name string, matters func(old, now T) bool) {
	cache := runtime.Read[T](e)
	gr := schema.ParseGroupResource(name)
	c.cached[gr] = func(namespace string) []any {
		list := cache.By(runtime.ByNamespace, namespace)
		out := make([]any, len(list))
		for i := range list {
			out[i] = list[i]
		}
		return out
	}
	runtime.On(q, cache, func(ev informer.Event[T]) []types.NamespacedName {
		if ev.Kind == informer.Updated && (matters == nil || !matters(ev.Old, ev.New)) {
			return nil
		}
		return keys(c.quotas.By(runtime.ByNamespace, ev.Last().GetNamespace()), gr)
	})
}

// keys are those of the quotas that count objects of a resource.
func keys(quotas []*corev1.ResourceQuota, gr schema.GroupResource) (keys []types.NamespacedName) {
	for _, rq := range quotas {
		for name := range rq.Spec.Hard {
			if quota.Counts(gr, name) {
				keys = append(keys, runtime.KeyOf(rq))
				break
			}
		}
	}
	return keys
}

func (c *controller) pass(ctx context.Context, p *runtime.Pass) (runtime.Result, error) {
	rq, ok := c.quotas.Get(p.Key)
	if !ok || rq.DeletionTimestamp != nil {
		return runtime.Result{}, nil
	}
	used, uncached, err := c.use(ctx, rq)
	if err != nil {
		return runtime.Result{}, err
	}
	again := runtime.Result{Again: p.Now.Add(recount), Gather: 20 * time.Millisecond}
	if uncached {
		again.Again = p.Now.Add(poll)
	}
	if quota.Equal(used, rq.Status.Used) && quota.Equal(rq.Spec.Hard, rq.Status.Hard) {
		return again, nil
	}
	p.Note("used: %v", used)
	rq = rq.DeepCopy()
	rq.Status.Hard, rq.Status.Used = rq.Spec.Hard.DeepCopy(), used
	_, err = runtime.UpdateStatus(ctx, p, c.client.CoreV1().ResourceQuotas(rq.Namespace), rq)
	if apierrors.IsNotFound(err) {
		err = nil
	}
	return again, err
}

// use counts what is there. uncached says that some of it had to be asked for.
func (c *controller) use(ctx context.Context, rq *corev1.ResourceQuota) (used corev1.ResourceList, uncached bool, err error) {
	used = corev1.ResourceList{}
	for name := range rq.Spec.Hard {
		used[name] = resource.Quantity{Format: resource.DecimalSI}
	}
	counted := map[corev1.ResourceName]bool{}
	for gr, list := range c.cached {
		relevant := false
		for name := range rq.Spec.Hard {
			if quota.Counts(gr, name) {
				relevant, counted[name] = true, true
			}
		}
		if !relevant {
			continue
		}
		for _, o := range list(rq.Namespace) {
			if quota.Matches(rq, o) {
				used = quota.Add(used, quota.Limited(rq.Spec.Hard, quota.Usage(c.around, gr, o)))
			}
		}
	}
	for name := range rq.Spec.Hard {
		rest, ok := strings.CutPrefix(string(name), "count/")
		if !ok || counted[name] || c.meta == nil {
			continue
		}
		uncached = true
		n, err := c.ask(ctx, schema.ParseGroupResource(rest), rq.Namespace)
		if err != nil {
			return nil, true, fmt.Errorf("count %s in %s: %w", rest, rq.Namespace, err)
		}
		q := used[name]
		q.Set(int64(n))
		used[name] = q
	}
	return used, uncached, nil
}

// relearn forgets what discovery has said, at most once in a while: a quota may name
// a kind that will never be.
func (c *controller) relearn() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if time.Since(c.learnt) < relearnAfter {
		return false
	}
	c.learnt = time.Now()
	c.mapper.Reset()
	return true
}

// ask counts objects of a kind without a cache; a kind that is not served has none.
func (c *controller) ask(ctx context.Context, gr schema.GroupResource, namespace string) (int, error) {
	gvr, err := c.mapper.ResourceFor(gr.WithVersion(""))
	if meta.IsNoMatchError(err) && c.relearn() {
		gvr, err = c.mapper.ResourceFor(gr.WithVersion(""))
	}
	if meta.IsNoMatchError(err) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	n, opts := 0, metav1.ListOptions{Limit: page}
	for {
		list, err := c.meta.Resource(gvr).Namespace(namespace).List(ctx, opts)
		if apierrors.IsNotFound(err) {
			c.relearn()
			return 0, nil
		}
		if err != nil {
			return 0, err
		}
		n += len(list.Items)
		if opts.Continue = list.Continue; opts.Continue == "" {
			return n, nil
		}
	}
}
