// Package endpoints keeps the Endpoints object of every service with a selector, for
// clients that do not read EndpointSlices yet.
//
// [Subsets] decides and is pure. Source: API reference, Endpoints (deprecated in v1.33).
package endpoints

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	lib "k8s.io/endpointslice"
	"k8s.io/endpointslice/util"

	"github.com/keelson/keelson/controller-manager/runtime"
	"github.com/keelson/keelson/libs/informer"
)

// Row is this controller's line of the table.
var Row = runtime.Row{
	Name:   "endpoints-controller",
	Reads:  []string{"services", "pods", "endpoints"},
	Writes: []string{"endpoints"},
	New:    build,
}

const (
	// Managed marks Endpoints that this controller makes.
	Managed    = "endpoints.kubernetes.io/managed-by"
	me         = "endpoint-controller"
	overLimit  = "endpoints.kubernetes.io/over-capacity"
	maxAddress = 1000
)

type controller struct {
	services  *informer.Cache[*corev1.Service]
	pods      *informer.Cache[*corev1.Pod]
	endpoints *informer.Cache[*corev1.Endpoints]
	client    kubernetes.Interface
}

func build(e *runtime.Env) error {
	c := &controller{services: runtime.Read[*corev1.Service](e), pods: runtime.Read[*corev1.Pod](e), endpoints: runtime.Read[*corev1.Endpoints](e), client: e.Client()}
	q := e.Keyed("", 4, c.pass)
	runtime.On(q, c.services, runtime.Self[*corev1.Service])
	runtime.On(q, c.endpoints, func(ev informer.Event[*corev1.Endpoints]) []types.NamespacedName {
		key := runtime.KeyOf(ev.Last())
		if ev.Kind == informer.Added && ours(ev.New) { // left over from before we ran?
			if _, ok := c.services.Get(key); !ok {
				return []types.NamespacedName{key}
			}
		}
		if ev.Kind == informer.Deleted {
			return []types.NamespacedName{key}
		}
		return nil
	})
	runtime.On(q, c.pods, c.servicesOf)
	return nil
}

func ours(e *corev1.Endpoints) bool { return e.Labels[Managed] == me }

func isElection(e *corev1.Endpoints) bool {
	_, ok := e.Annotations["control-plane.alpha.kubernetes.io/leader"]
	return ok
}

func (c *controller) servicesOf(ev informer.Event[*corev1.Pod]) []types.NamespacedName {
	pod := ev.Last()
	if ev.Kind == informer.Updated && ev.Old.Status.PodIP == pod.Status.PodIP && util.IsPodReady(ev.Old) == util.IsPodReady(pod) &&
		util.ShouldPodBeInEndpoints(ev.Old, false) == util.ShouldPodBeInEndpoints(pod, false) && maps.Equal(ev.Old.Labels, pod.Labels) {
		return nil
	}
	var keys []types.NamespacedName
	for _, s := range c.services.By(runtime.ByNamespace, pod.Namespace) {
		if len(s.Spec.Selector) == 0 {
			continue
		}
		sel := labels.SelectorFromValidatedSet(s.Spec.Selector)
		if sel.Matches(labels.Set(pod.Labels)) || ev.Kind == informer.Updated && sel.Matches(labels.Set(ev.Old.Labels)) {
			keys = append(keys, runtime.KeyOf(s))
		}
	}
	return keys
}

func (c *controller) pass(ctx context.Context, p *runtime.Pass) (runtime.Result, error) {
	svc, ok := c.services.Get(p.Key)
	have, found := c.endpoints.Get(p.Key)
	api := c.client.CoreV1().Endpoints(p.Key.Namespace)
	if !ok {
		// Whoever wrote it, it goes with its service; only records of old elections never had one.
		if found && have.DeletionTimestamp == nil && !isElection(have) {
			p.Note("delete: its service is gone")
			return runtime.Result{}, runtime.Delete(ctx, p, api, have)
		}
		return runtime.Result{}, nil
	}
	if len(svc.Spec.Selector) == 0 || svc.Spec.Type == corev1.ServiceTypeExternalName || svc.DeletionTimestamp != nil {
		return runtime.Result{}, nil
	}
	sel := labels.SelectorFromValidatedSet(svc.Spec.Selector)
	var pods []*corev1.Pod
	for _, pod := range c.pods.By(runtime.ByNamespace, svc.Namespace) {
		if sel.Matches(labels.Set(pod.Labels)) {
			pods = append(pods, pod)
		}
	}
	subsets, truncated := Subsets(svc, pods)
	want := &corev1.Endpoints{ObjectMeta: metav1.ObjectMeta{Namespace: svc.Namespace, Name: svc.Name, Labels: maps.Clone(svc.Labels)}, Subsets: subsets}
	if want.Labels == nil {
		want.Labels = map[string]string{}
	}
	want.Labels[Managed] = me
	if svc.Spec.ClusterIP == corev1.ClusterIPNone {
		want.Labels[corev1.IsHeadlessService] = ""
	} else {
		delete(want.Labels, corev1.IsHeadlessService)
	}
	if truncated {
		want.Annotations = map[string]string{overLimit: "truncated"}
	}
	var err error
	switch {
	case !found:
		_, err = runtime.Create(ctx, p, api, want)
		if apierrors.IsAlreadyExists(err) || runtime.NamespaceEnding(err) {
			err = nil
		}
	case apiequality.Semantic.DeepEqual(have.Subsets, want.Subsets) && apiequality.Semantic.DeepEqual(have.Labels, want.Labels) &&
		(have.Annotations[overLimit] != "") == truncated:
		return runtime.Result{}, nil
	default:
		n := have.DeepCopy()
		n.Subsets, n.Labels = want.Subsets, want.Labels
		delete(n.Annotations, overLimit)
		if truncated {
			if n.Annotations == nil {
				n.Annotations = map[string]string{}
			}
			n.Annotations[overLimit] = "truncated"
		}
		_, err = runtime.Update(ctx, p, api, n)
		if apierrors.IsNotFound(err) {
			err = nil
		}
	}
	return runtime.Result{}, err
}

// Subsets groups the pods' addresses by the ports that they offer, as the object
// wants them: sorted, ready and not ready apart. More than 1,000 addresses are cut.
func Subsets(svc *corev1.Service, pods []*corev1.Pod) (subsets []corev1.EndpointSubset, truncated bool) {
	type group struct {
		ports       []corev1.EndpointPort
		ready, late []corev1.EndpointAddress
	}
	groups := map[string]*group{}
	sorted := slices.SortedFunc(slices.Values(pods), func(a, b *corev1.Pod) int { return strings.Compare(a.Name, b.Name) })
	count := 0
	for _, pod := range sorted {
		ip := address(svc, pod)
		if ip == "" || !util.ShouldPodBeInEndpoints(pod, svc.Spec.PublishNotReadyAddresses) {
			continue
		}
		if count++; count > maxAddress {
			truncated = true
			break
		}
		var ports []corev1.EndpointPort
		var key strings.Builder
		for i := range svc.Spec.Ports {
			sp := &svc.Spec.Ports[i]
			n, err := lib.FindPort(pod, sp)
			if err != nil {
				continue // this pod has no such port
			}
			ep := corev1.EndpointPort{Name: sp.Name, Port: int32(n), Protocol: sp.Protocol, AppProtocol: sp.AppProtocol}
			ports = append(ports, ep)
			key.WriteString(ep.String())
		}
		if len(ports) == 0 && len(svc.Spec.Ports) > 0 {
			continue
		}
		g := groups[key.String()]
		if g == nil {
			g = &group{ports: ports}
			groups[key.String()] = g
		}
		a := corev1.EndpointAddress{
			IP: ip, NodeName: &pod.Spec.NodeName,
			TargetRef: &corev1.ObjectReference{Kind: "Pod", Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID},
		}
		if util.ShouldSetHostname(pod, svc) {
			a.Hostname = pod.Spec.Hostname
		}
		if svc.Spec.PublishNotReadyAddresses || util.IsPodReady(pod) {
			g.ready = append(g.ready, a)
		} else {
			g.late = append(g.late, a)
		}
	}
	for _, key := range slices.Sorted(maps.Keys(groups)) {
		g := groups[key]
		for _, l := range [][]corev1.EndpointAddress{g.ready, g.late} {
			slices.SortFunc(l, func(a, b corev1.EndpointAddress) int {
				return cmp.Or(strings.Compare(a.IP, b.IP), strings.Compare(string(a.TargetRef.UID), string(b.TargetRef.UID)))
			})
		}
		subsets = append(subsets, corev1.EndpointSubset{Addresses: g.ready, NotReadyAddresses: g.late, Ports: g.ports})
	}
	return subsets, truncated
}

// address is the pod's address of the service's first family.
func address(svc *corev1.Service, pod *corev1.Pod) string {
	v6 := len(svc.Spec.IPFamilies) > 0 && svc.Spec.IPFamilies[0] == corev1.IPv6Protocol
	for _, ip := range pod.Status.PodIPs {
		if strings.Contains(ip.IP, ":") == v6 {
			return ip.IP
		}
	}
	if strings.Contains(pod.Status.PodIP, ":") == v6 {
		return pod.Status.PodIP
	}
	return ""
}
