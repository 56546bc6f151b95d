// Package endpointslice keeps the EndpointSlices of every service with a selector.
//
// What a slice holds is decided by k8s.io/endpointslice, which packs, balances and
// hints as upstream does; this package feeds it and says when a service has to be
// looked at: only when something changed that an endpoint shows.
package endpointslice

import (
	"context"
	"fmt"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	lib "k8s.io/endpointslice"
	"k8s.io/endpointslice/topologycache"
	"k8s.io/endpointslice/util"
	"k8s.io/klog/v2"

	"github.com/keelson/keelson/controller-manager/runtime"
	"github.com/keelson/keelson/libs/informer"
)

// Row is this controller's line of the table.
var Row = runtime.Row{
	Name:   name,
	Reads:  []string{"services", "pods", "nodes", "endpointslices.discovery.k8s.io"},
	Writes: []string{"endpointslices.discovery.k8s.io"},
	New:    build,
}

const (
	name       = "endpointslice-controller"
	managedBy  = "endpointslice-controller.k8s.io"
	maxPerPage = 100
)

type controller struct {
	services *informer.Cache[*corev1.Service]
	pods     *informer.Cache[*corev1.Pod]
	slices   *informer.Cache[*discoveryv1.EndpointSlice]
	log      klog.Logger
	packer   *lib.Reconciler
	tracker  *util.EndpointSliceTracker
	times    *util.TriggerTimeTracker
	zones    *topologycache.TopologyCache
}

func build(e *runtime.Env) error {
	nodes := runtime.Read[*corev1.Node](e)
	c := &controller{
		services: runtime.Read[*corev1.Service](e), pods: runtime.Read[*corev1.Pod](e), slices: runtime.Read[*discoveryv1.EndpointSlice](e),
		log: klog.LoggerWithName(klog.Background(), name), tracker: util.NewEndpointSliceTracker(), times: util.NewTriggerTimeTracker(),
		zones: topologycache.NewTopologyCache(),
	}
	c.packer = lib.NewReconciler(e.Client(), lister{nodes}, maxPerPage, c.tracker, c.zones, e.Recorder(), managedBy,
		lib.WithPreferSameTrafficDistributionEnabled(true))
	q := e.Keyed("", 8, c.pass)
	runtime.On(q, c.services, runtime.Self[*corev1.Service])
	runtime.On(q, c.pods, c.servicesOf)
	runtime.On(q, c.slices, c.sliceSeen)
	runtime.On(q, nodes, func(ev informer.Event[*corev1.Node]) []types.NamespacedName {
		if ev.Kind == informer.Updated && sameNode(ev.Old, ev.New) {
			return nil
		}
		c.zones.SetNodes(c.log, nodes.List())
		var keys []types.NamespacedName
		for _, s := range c.zones.GetOverloadedServices() {
			if ns, n, ok := cut(s); ok {
				keys = append(keys, types.NamespacedName{Namespace: ns, Name: n})
			}
		}
		return keys
	})
	e.Debug(func() any { return map[string]int{"services": c.services.Len(), "slices": c.slices.Len()} })
	return nil
}

// sameNode: what matters of a node is where it is, how large, and whether it is ready.
func sameNode(a, b *corev1.Node) bool {
	ready := func(n *corev1.Node) bool {
		return slices.ContainsFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool {
			return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
		})
	}
	return ready(a) == ready(b) && maps.Equal(a.Labels, b.Labels) && a.Status.Allocatable.Cpu().Cmp(*b.Status.Allocatable.Cpu()) == 0
}

// sliceSeen tells the tracker, and wakes the service when a slice is not as we left it.
func (c *controller) sliceSeen(ev informer.Event[*discoveryv1.EndpointSlice]) []types.NamespacedName {
	s := ev.Last()
	key := types.NamespacedName{Namespace: s.Namespace, Name: s.Labels[discoveryv1.LabelServiceName]}
	switch ev.Kind {
	case informer.Deleted:
		if s.Labels[discoveryv1.LabelManagedBy] != managedBy || !c.tracker.Has(s) || c.tracker.HandleDeletion(s) {
			return nil
		}
	case informer.Updated:
		if ev.Old.Labels[discoveryv1.LabelManagedBy] == managedBy && ev.Old.Labels[discoveryv1.LabelServiceName] != key.Name {
			return []types.NamespacedName{key, {Namespace: s.Namespace, Name: ev.Old.Labels[discoveryv1.LabelServiceName]}}
		}
		fallthrough
	case informer.Added:
		if s.Labels[discoveryv1.LabelManagedBy] != managedBy || !c.tracker.ShouldSync(s) {
			return nil
		}
	}
	return []types.NamespacedName{key}
}

// servicesOf are the services that a change of a pod concerns.
func (c *controller) servicesOf(ev informer.Event[*corev1.Pod]) []types.NamespacedName {
	pod := ev.Last()
	relabelled := false
	if ev.Kind == informer.Updated {
		relabelled = !maps.Equal(ev.Old.Labels, ev.New.Labels)
		if !relabelled && sameEndpoint(ev.Old, ev.New) {
			return nil
		}
	}
	var keys []types.NamespacedName
	for _, s := range c.services.By(runtime.ByNamespace, pod.Namespace) {
		if len(s.Spec.Selector) == 0 {
			continue
		}
		sel := labels.SelectorFromValidatedSet(s.Spec.Selector)
		if sel.Matches(labels.Set(pod.Labels)) || relabelled && sel.Matches(labels.Set(ev.Old.Labels)) {
			keys = append(keys, runtime.KeyOf(s))
		}
	}
	return keys
}

// sameEndpoint compares what an endpoint shows of a pod.
func sameEndpoint(a, b *corev1.Pod) bool {
	return a.Status.PodIP == b.Status.PodIP && slices.Equal(a.Status.PodIPs, b.Status.PodIPs) && a.Spec.NodeName == b.Spec.NodeName &&
		a.Spec.Hostname == b.Spec.Hostname && a.Spec.Subdomain == b.Spec.Subdomain && a.Name == b.Name &&
		(a.DeletionTimestamp == nil) == (b.DeletionTimestamp == nil) && util.IsPodReady(a) == util.IsPodReady(b) &&
		util.ShouldPodBeInEndpoints(a, true) == util.ShouldPodBeInEndpoints(b, true)
}

func (c *controller) pass(ctx context.Context, p *runtime.Pass) (runtime.Result, error) {
	svc, ok := c.services.Get(p.Key)
	if !ok {
		c.times.DeleteService(p.Key.Namespace, p.Key.Name)
		c.packer.DeleteService(p.Key.Namespace, p.Key.Name)
		c.tracker.DeleteService(p.Key.Namespace, p.Key.Name)
		return runtime.Result{}, nil // the slices go with their owner
	}
	if svc.Spec.Type == corev1.ServiceTypeExternalName || svc.Spec.Selector == nil || svc.DeletionTimestamp != nil {
		return runtime.Result{}, nil // endpoints of such a service are somebody else's
	}
	sel := labels.SelectorFromValidatedSet(svc.Spec.Selector)
	var pods []*corev1.Pod
	for _, pod := range c.pods.By(runtime.ByNamespace, svc.Namespace) {
		if sel.Matches(labels.Set(pod.Labels)) {
			pods = append(pods, pod)
		}
	}
	var have []*discoveryv1.EndpointSlice
	for _, s := range c.slices.By(runtime.ByNamespace, svc.Namespace) {
		if s.Labels[discoveryv1.LabelServiceName] == svc.Name && s.Labels[discoveryv1.LabelManagedBy] == managedBy && s.DeletionTimestamp == nil {
			have = append(have, s)
		}
	}
	if c.tracker.StaleSlices(svc, have) {
		return runtime.Result{}, fmt.Errorf("the cache of endpoint slices is behind what was written; will look again")
	}
	changed := c.times.ComputeEndpointLastChangeTriggerTime(svc.Namespace, svc, pods)
	err := c.packer.Reconcile(c.log, svc, pods, have, changed)
	if runtime.NamespaceEnding(err) || apierrors.IsNotFound(err) {
		return runtime.Result{}, nil
	}
	if err != nil {
		p.Warning(svc, "FailedToUpdateEndpointSlices", "Error updating Endpoint Slices for Service %s/%s: %v", svc.Namespace, svc.Name, err)
	}
	return runtime.Result{}, err
}

func cut(key string) (namespace, name string, ok bool) {
	for i := range key {
		if key[i] == '/' {
			return key[:i], key[i+1:], true
		}
	}
	return "", "", false
}

// lister shows our cache of nodes to the library.
type lister struct{ c *informer.Cache[*corev1.Node] }

// List returns the nodes that sel selects.
func (l lister) List(sel labels.Selector) ([]*corev1.Node, error) {
	return slices.DeleteFunc(l.c.List(), func(n *corev1.Node) bool { return !sel.Matches(labels.Set(n.Labels)) }), nil
}

// Get returns one node.
func (l lister) Get(name string) (*corev1.Node, error) {
	if n, ok := l.c.Get(types.NamespacedName{Name: name}); ok {
		return n, nil
	}
	return nil, apierrors.NewNotFound(corev1.Resource("nodes"), name)
}
