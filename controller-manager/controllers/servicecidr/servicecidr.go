// Package servicecidr makes ranges of service addresses ready to be used, and lets
// one go only when no address would be left without a range: it keeps the finalizer
// networking.k8s.io/service-cidr-finalizer and the condition Ready of ServiceCIDRs.
//
// [Needed] decides and is pure. The API server hands out addresses of a range only
// while it is Ready and not being deleted, and checks that in the same transaction.
//
// Source: KEP-1880, "Multiple Service CIDRs".
package servicecidr

import (
	"context"
	"net/netip"
	"slices"
	"time"

	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"github.com/keelson/keelson/controller-manager/runtime"
	"github.com/keelson/keelson/libs/informer"
)

const (
	finalizer = "networking.k8s.io/service-cidr-finalizer"
	// manager marks addresses that the API server has made for Services; others hold no range.
	manager = "ipallocator.k8s.io"
	// grace is left to API servers of which not all may have seen the deletion. Source: upstream.
	grace = 10 * time.Second
)

// Row is the table's line.
var Row = runtime.Row{
	Name: "service-cidr-controller", Reads: []string{"servicecidrs.networking.k8s.io", "ipaddresses.networking.k8s.io"},
	Writes: []string{"update,patch servicecidrs.networking.k8s.io", "update servicecidrs.networking.k8s.io/status"}, New: build,
}

type controller struct {
	ranges    *informer.Cache[*networkingv1.ServiceCIDR]
	addresses *informer.Cache[*networkingv1.IPAddress]
	client    kubernetes.Interface
}

func build(e *runtime.Env) error {
	c := &controller{ranges: runtime.Read[*networkingv1.ServiceCIDR](e), addresses: runtime.Read[*networkingv1.IPAddress](e), client: e.Client()}
	q := e.Keyed("", 1, c.pass)
	runtime.On(q, c.ranges, runtime.Self[*networkingv1.ServiceCIDR])
	// Another range may now cover the one that goes, and the last address of it may have gone.
	runtime.On(q, c.ranges, func(informer.Event[*networkingv1.ServiceCIDR]) []types.NamespacedName { return c.going() })
	runtime.On(q, c.addresses, func(ev informer.Event[*networkingv1.IPAddress]) []types.NamespacedName {
		if ev.Kind != informer.Deleted {
			return nil
		}
		return c.going()
	})
	return nil
}

// going are the ranges that are being deleted: mostly none.
func (c *controller) going() []types.NamespacedName {
	var keys []types.NamespacedName
	for _, r := range c.ranges.List() {
		if r.DeletionTimestamp != nil {
			keys = append(keys, types.NamespacedName{Name: r.Name})
		}
	}
	return keys
}

// Needed reports whether addresses would be left without a range if r went: some of them lie in it
// and in no other. Addresses that lie in no range at all hold nothing.
func Needed(r *networkingv1.ServiceCIDR, all []*networkingv1.ServiceCIDR, addresses []*networkingv1.IPAddress) bool {
	mine := prefixes(r)
	var others []netip.Prefix
	for _, o := range all {
		if o.Name != r.Name && o.DeletionTimestamp == nil {
			others = append(others, prefixes(o)...)
		}
	}
	in := func(list []netip.Prefix, ip netip.Addr) bool {
		return slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(ip) })
	}
	return slices.ContainsFunc(addresses, func(a *networkingv1.IPAddress) bool {
		ip, err := netip.ParseAddr(a.Name)
		return err == nil && a.Labels[networkingv1.LabelManagedBy] == manager && in(mine, ip) && !in(others, ip)
	})
}

func prefixes(r *networkingv1.ServiceCIDR) []netip.Prefix {
	var out []netip.Prefix
	for _, text := range r.Spec.CIDRs {
		if p, err := netip.ParsePrefix(text); err == nil {
			out = append(out, p)
		}
	}
	return out
}

func (c *controller) pass(ctx context.Context, p *runtime.Pass) (runtime.Result, error) {
	r, ok := c.ranges.Get(p.Key)
	if !ok {
		return runtime.Result{}, nil
	}
	api := c.client.NetworkingV1().ServiceCIDRs()
	has := slices.Contains(r.Finalizers, finalizer)
	if r.DeletionTimestamp == nil {
		if !has {
			p.Note("protect")
			r = r.DeepCopy()
			r.Finalizers = append(r.Finalizers, finalizer)
			var err error
			if r, err = runtime.Update(ctx, p, api, r); err != nil {
				return runtime.Result{}, err
			}
		}
		return runtime.Result{}, c.condition(ctx, p, r, metav1.Condition{
			Type: networkingv1.ServiceCIDRConditionReady, Status: metav1.ConditionTrue, Message: "Kubernetes Service CIDR is ready",
		})
	}
	if !has {
		return runtime.Result{}, nil
	}
	if Needed(r, c.ranges.List(), c.addresses.List()) {
		return runtime.Result{}, c.condition(ctx, p, r, metav1.Condition{
			Type: networkingv1.ServiceCIDRConditionReady, Status: metav1.ConditionFalse, Reason: networkingv1.ServiceCIDRReasonTerminating,
			Message: "There are still IPAddresses referencing the ServiceCIDR, please remove them or create a new ServiceCIDR",
		})
	}
	if free := r.DeletionTimestamp.Add(grace); p.Now.Before(free) {
		return runtime.Result{Again: free}, nil
	}
	p.Note("no address needs it")
	return runtime.Result{}, runtime.DropFinalizer(ctx, p, api, r, finalizer)
}

// condition sets the condition unless it says the same already.
func (c *controller) condition(ctx context.Context, p *runtime.Pass, r *networkingv1.ServiceCIDR, want metav1.Condition) error {
	if have := meta.FindStatusCondition(r.Status.Conditions, want.Type); have != nil && have.Status == want.Status && have.Reason == want.Reason {
		return nil
	}
	want.LastTransitionTime = metav1.NewTime(p.Now)
	r = r.DeepCopy()
	meta.SetStatusCondition(&r.Status.Conditions, want)
	_, err := runtime.UpdateStatus(ctx, p, c.client.NetworkingV1().ServiceCIDRs(), r)
	return err
}
