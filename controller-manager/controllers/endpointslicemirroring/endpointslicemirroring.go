// Package endpointslicemirroring copies Endpoints that people write themselves, for
// services without a selector, into EndpointSlices, which is what proxies read.
//
// [Mirror] decides and is pure. Source: KEP-0752, "EndpointSlice mirroring".
package endpointslicemirroring

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"github.com/keelson/keelson/controller-manager/runtime"
	"github.com/keelson/keelson/libs/informer"
)

// Row is this controller's line of the table.
var Row = runtime.Row{
	Name:   "endpointslice-mirroring-controller",
	Reads:  []string{"endpoints", "services", "endpointslices.discovery.k8s.io"},
	Writes: []string{"endpointslices.discovery.k8s.io"},
	New:    build,
}

const (
	managedBy = "endpointslicemirroring-controller.k8s.io"
	// maxMirrored addresses of one subset are copied.
	maxMirrored  = 1000
	lastApplied  = "kubectl.kubernetes.io/last-applied-configuration"
	triggerTime  = corev1.EndpointsLastChangeTriggerTime
	electionNote = "control-plane.alpha.kubernetes.io/leader"
)

// Mirror returns the slices that should be there for the Endpoints of a service:
// one for each subset and address family, unnamed.
func Mirror(e *corev1.Endpoints) []*discoveryv1.EndpointSlice {
	var out []*discoveryv1.EndpointSlice
	for i := range e.Subsets {
		s := &e.Subsets[i]
		for _, family := range []discoveryv1.AddressType{discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6} {
			var endpoints []discoveryv1.Endpoint
			add := func(list []corev1.EndpointAddress, ready bool) {
				for j := range list {
					a := &list[j]
					ip, err := netip.ParseAddr(a.IP)
					if err != nil || ip.Is4() != (family == discoveryv1.AddressTypeIPv4) || len(endpoints) >= maxMirrored {
						continue
					}
					ep := discoveryv1.Endpoint{Addresses: []string{a.IP}, Conditions: discoveryv1.EndpointConditions{Ready: &ready}, TargetRef: a.TargetRef, NodeName: a.NodeName}
					if a.Hostname != "" {
						ep.Hostname = &a.Hostname
					}
					endpoints = append(endpoints, ep)
				}
			}
			add(s.Addresses, true)
			add(s.NotReadyAddresses, false)
			if len(endpoints) == 0 {
				continue
			}
			slice := &discoveryv1.EndpointSlice{
				ObjectMeta: metav1.ObjectMeta{
					Namespace: e.Namespace, GenerateName: e.Name + "-", Labels: maps.Clone(e.Labels), Annotations: maps.Clone(e.Annotations),
					OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(e, corev1.SchemeGroupVersion.WithKind("Endpoints"))},
				},
				AddressType: family, Endpoints: endpoints,
			}
			if slice.Labels == nil {
				slice.Labels = map[string]string{}
			}
			slice.Labels[discoveryv1.LabelServiceName], slice.Labels[discoveryv1.LabelManagedBy] = e.Name, managedBy
			delete(slice.Annotations, lastApplied)
			delete(slice.Annotations, triggerTime)
			if len(slice.Annotations) == 0 {
				slice.Annotations = nil
			}
			for _, p := range s.Ports {
				slice.Ports = append(slice.Ports, discoveryv1.EndpointPort{Name: &p.Name, Port: &p.Port, Protocol: &p.Protocol, AppProtocol: p.AppProtocol})
			}
			out = append(out, slice)
		}
	}
	return out
}

// Wanted reports whether the Endpoints are to be mirrored for the service.
func Wanted(e *corev1.Endpoints, svc *corev1.Service) bool {
	_, election := e.Annotations[electionNote]
	return svc != nil && svc.Spec.Selector == nil && e.DeletionTimestamp == nil && svc.Spec.Type != corev1.ServiceTypeExternalName &&
		e.Labels[discoveryv1.LabelSkipMirror] != "true" && !election
}

type controller struct {
	endpoints *informer.Cache[*corev1.Endpoints]
	services  *informer.Cache[*corev1.Service]
	slices    *informer.Cache[*discoveryv1.EndpointSlice]
	client    kubernetes.Interface
}

func build(e *runtime.Env) error {
	c := &controller{endpoints: runtime.Read[*corev1.Endpoints](e), services: runtime.Read[*corev1.Service](e), slices: runtime.Read[*discoveryv1.EndpointSlice](e), client: e.Client()}
	q := e.Keyed("", 2, c.pass)
	runtime.On(q, c.endpoints, runtime.Self[*corev1.Endpoints])
	runtime.On(q, c.services, runtime.Self[*corev1.Service])
	runtime.On(q, c.slices, func(ev informer.Event[*discoveryv1.EndpointSlice]) []types.NamespacedName {
		if s := ev.Last(); s.Labels[discoveryv1.LabelManagedBy] == managedBy {
			return []types.NamespacedName{{Namespace: s.Namespace, Name: s.Labels[discoveryv1.LabelServiceName]}}
		}
		return nil
	})
	return nil
}

func (c *controller) pass(ctx context.Context, p *runtime.Pass) (runtime.Result, error) {
	var have []*discoveryv1.EndpointSlice
	for _, s := range c.slices.By(runtime.ByNamespace, p.Key.Namespace) {
		if s.Labels[discoveryv1.LabelManagedBy] == managedBy && s.Labels[discoveryv1.LabelServiceName] == p.Key.Name && s.DeletionTimestamp == nil {
			have = append(have, s)
		}
	}
	slices.SortFunc(have, func(a, b *discoveryv1.EndpointSlice) int { return strings.Compare(a.Name, b.Name) })
	var want []*discoveryv1.EndpointSlice
	e, ok := c.endpoints.Get(p.Key)
	svc, _ := c.services.Get(p.Key)
	if ok && Wanted(e, svc) {
		want = Mirror(e)
	}
	api := c.client.DiscoveryV1().EndpointSlices(p.Key.Namespace)
	// A slice that is right stays; another of the same family is changed before one is made anew.
	want = slices.DeleteFunc(want, func(w *discoveryv1.EndpointSlice) bool {
		i := slices.IndexFunc(have, func(h *discoveryv1.EndpointSlice) bool { return equal(h, w) })
		if i >= 0 {
			have = slices.Delete(have, i, i+1)
		}
		return i >= 0
	})
	for _, w := range want {
		var err error
		if i := slices.IndexFunc(have, func(h *discoveryv1.EndpointSlice) bool { return h.AddressType == w.AddressType }); i >= 0 {
			n := have[i].DeepCopy()
			n.Endpoints, n.Ports, n.Labels, n.Annotations = w.Endpoints, w.Ports, w.Labels, w.Annotations
			have = slices.Delete(have, i, i+1)
			p.Note("update slice %s", n.Name)
			_, err = runtime.Update(ctx, p, api, n)
		} else {
			p.Note("create a slice of %d endpoints", len(w.Endpoints))
			_, err = runtime.Create(ctx, p, api, w)
		}
		if runtime.NamespaceEnding(err) {
			return runtime.Result{}, nil
		}
		if err != nil && !apierrors.IsNotFound(err) {
			return runtime.Result{}, fmt.Errorf("mirror endpoints: %w", err)
		}
	}
	for _, h := range have {
		p.Note("delete slice %s", h.Name)
		if err := runtime.Delete(ctx, p, api, h); err != nil {
			return runtime.Result{}, err
		}
	}
	return runtime.Result{}, nil
}

func equal(a, b *discoveryv1.EndpointSlice) bool {
	return a.AddressType == b.AddressType && apiequality.Semantic.DeepEqual(a.Endpoints, b.Endpoints) &&
		apiequality.Semantic.DeepEqual(a.Ports, b.Ports) && apiequality.Semantic.DeepEqual(a.Labels, b.Labels) && apiequality.Semantic.DeepEqual(a.Annotations, b.Annotations)
}
