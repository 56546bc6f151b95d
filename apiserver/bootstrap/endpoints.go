package bootstrap

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/utils/ptr"

	"github.com/keelson/keelson/apiserver/resources"
	"github.com/keelson/keelson/apiserver/store"
)

var (
	grEndpoints = schema.GroupResource{Resource: "endpoints"}
	grSlices    = schema.GroupResource{Group: "discovery.k8s.io", Resource: "endpointslices"}
)

// Masters keeps the endpoints of the service default/kubernetes: the addresses
// of the API servers that are alive. Each server holds a key with a short life;
// who finds a key has found a server.
//
// The keys are /registry/masterleases/<address>, as upstream has them.
type Masters struct {
	Store    store.Store
	API      API
	Address  netip.Addr // of this server
	Port     int32
	Life     time.Duration // default 15 s
	Interval time.Duration // default 10 s
	Log      *slog.Logger
}

const masterLeases = "masterleases/"

// Run announces this server until ctx ends, and then takes it away.
func (m *Masters) Run(ctx context.Context) error {
	if m.Life == 0 {
		m.Life = 15 * time.Second
	}
	if m.Interval == 0 {
		m.Interval = 10 * time.Second
	}
	for {
		if err := m.once(ctx); err != nil && ctx.Err() == nil {
			m.Log.Warn("cannot publish the endpoints of default/kubernetes; will try again", "err", err)
		}
		select {
		case <-ctx.Done():
			stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
			defer cancel()
			return m.leave(stop)
		case <-time.After(m.Interval):
		}
	}
}

func (m *Masters) key() string { return masterLeases + m.Address.String() }

func (m *Masters) once(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, m.Interval)
	defer cancel()
	value := []byte(m.Address.String())
	for range 3 {
		have, err := m.Store.Get(ctx, m.key())
		if err != nil {
			return err
		}
		seen := int64(0)
		if have != nil {
			seen = have.ModRev
		}
		_, err = m.Store.Put(ctx, m.key(), value, seen, m.Life)
		if err == nil {
			break
		}
		if !errors.Is(err, store.ErrConflict) {
			return err
		}
	}
	return m.publish(ctx)
}

func (m *Masters) leave(ctx context.Context) error {
	have, err := m.Store.Get(ctx, m.key())
	if err != nil || have == nil {
		return err
	}
	if _, err := m.Store.Delete(ctx, m.key(), have.ModRev); err != nil {
		return err
	}
	return m.publish(ctx)
}

// publish writes the living servers into the Endpoints and the EndpointSlice of the service.
func (m *Masters) publish(ctx context.Context) error {
	var ips []string
	if _, err := m.Store.Range(ctx, masterLeases, func(page []store.KV) error {
		for _, kv := range page {
			if a, err := netip.ParseAddr(strings.TrimPrefix(kv.Key, masterLeases)); err == nil {
				ips = append(ips, a.String())
			}
		}
		return nil
	}); err != nil {
		return err
	}
	slices.Sort(ips)
	if len(ips) == 0 {
		return nil // the last server leaves its address behind: another is as good as none
	}
	return errors.Join(m.ensure(ctx, grEndpoints, m.endpoints(ips)), m.ensure(ctx, grSlices, m.slice(ips)))
}

func (m *Masters) endpoints(ips []string) resources.Object {
	e := &corev1.Endpoints{
		ObjectMeta: metav1.ObjectMeta{
			Name: "kubernetes", Namespace: metav1.NamespaceDefault,
			Labels: map[string]string{discoveryv1.LabelSkipMirror: "true"},
		},
		Subsets: []corev1.EndpointSubset{{Ports: []corev1.EndpointPort{{Name: "https", Port: m.Port, Protocol: corev1.ProtocolTCP}}}},
	}
	for _, ip := range ips {
		e.Subsets[0].Addresses = append(e.Subsets[0].Addresses, corev1.EndpointAddress{IP: ip})
	}
	return e
}

func (m *Masters) slice(ips []string) resources.Object {
	family := discoveryv1.AddressTypeIPv4
	if m.Address.Is6() {
		family = discoveryv1.AddressTypeIPv6
	}
	s := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Name: "kubernetes", Namespace: metav1.NamespaceDefault,
			Labels: map[string]string{discoveryv1.LabelServiceName: "kubernetes"},
		},
		AddressType: family,
		Ports:       []discoveryv1.EndpointPort{{Name: ptr.To("https"), Port: ptr.To(m.Port), Protocol: ptr.To(corev1.ProtocolTCP)}},
	}
	for _, ip := range ips {
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{
			Addresses: []string{ip}, Conditions: discoveryv1.EndpointConditions{Ready: ptr.To(true)},
		})
	}
	return s
}

func (m *Masters) ensure(ctx context.Context, gr schema.GroupResource, want resources.Object) error {
	have, err := m.API.Get(ctx, gr, want.GetNamespace(), want.GetName())
	if err != nil && !apierrors.IsNotFound(err) {
		return err
	}
	if have == nil {
		if err := m.API.Create(ctx, gr, want); err == nil || !apierrors.IsAlreadyExists(err) {
			return err
		}
	}
	return m.API.Update(ctx, gr, "", want.GetNamespace(), want.GetName(), func(o resources.Object) (resources.Object, error) {
		c := o.DeepCopyObject().(resources.Object)
		switch w := want.(type) {
		case *corev1.Endpoints:
			have := c.(*corev1.Endpoints)
			if apiequality.Semantic.DeepEqual(have.Subsets, w.Subsets) {
				return o, nil
			}
			have.Subsets = w.Subsets
		case *discoveryv1.EndpointSlice:
			have := c.(*discoveryv1.EndpointSlice)
			if apiequality.Semantic.DeepEqual(have.Endpoints, w.Endpoints) && apiequality.Semantic.DeepEqual(have.Ports, w.Ports) {
				return o, nil
			}
			have.Endpoints, have.Ports = w.Endpoints, w.Ports
		}
		return c, nil
	})
}
