package ranges

import (
	"net/netip"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/keelson/keelson/apiserver/resources"
	"github.com/keelson/keelson/apiserver/resources/alloc"
)

func service(name, ip string, ports ...int32) *corev1.Service {
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "d", Name: name, ResourceVersion: "9"}}
	if ip != "" {
		s.Spec.ClusterIPs = []string{ip}
	}
	for _, n := range ports {
		s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{NodePort: n})
	}
	return s
}

func address(ip, of string) *networkingv1.IPAddress {
	a := resources.NewIPAddress(netip.MustParseAddr(ip), "d", of)
	a.ResourceVersion = "8"
	return a
}

func ports(list ...int32) *corev1.RangeAllocation {
	p := &alloc.Ports{First: 30000, Last: 30009}
	for _, n := range list {
		p.Take(n)
	}
	return &corev1.RangeAllocation{ObjectMeta: metav1.ObjectMeta{ResourceVersion: "7"}, Range: p.Range(), Data: p.Data()}
}

func TestDecide(t *testing.T) {
	foreign := address("10.0.0.9", "x")
	foreign.Labels = nil
	for _, c := range []struct {
		name                  string
		s                     State
		steps, faults, unused []string
	}{
		{name: "all in order", s: State{
			Services:  []*corev1.Service{service("a", "10.0.0.1", 30001, 30001)},
			Addresses: map[string]*networkingv1.IPAddress{"10.0.0.1": address("10.0.0.1", "a")}, Ports: ports(30001),
		}},
		{name: "addresses that are spelled otherwise than they are booked", s: State{
			Services:  []*corev1.Service{service("a", "FD00:0::1"), service("b", "010.0.0.1")},
			Addresses: map[string]*networkingv1.IPAddress{"fd00::1": address("fd00::1", "a"), "10.0.0.1": address("10.0.0.1", "b")},
		}},
		{name: "an address was not booked", s: State{Services: []*corev1.Service{service("a", "10.0.0.1")}},
			steps: []string{"book address 10.0.0.1 of service d/a"}},
		{name: "an address is of a service that has gone: noted first", s: State{Addresses: map[string]*networkingv1.IPAddress{"10.0.0.1": address("10.0.0.1", "a")}},
			unused: []string{"10.0.0.1"}},
		{name: "and freed when it is found again", s: State{
			Addresses: map[string]*networkingv1.IPAddress{"10.0.0.1": address("10.0.0.1", "a")}, Unused: map[string]bool{"10.0.0.1": true},
		}, steps: []string{"free address 10.0.0.1, which service d/a does not hold"}},
		{name: "an address of a service that has another", s: State{
			Services:  []*corev1.Service{service("a", "10.0.0.2")},
			Addresses: map[string]*networkingv1.IPAddress{"10.0.0.1": address("10.0.0.1", "a"), "10.0.0.2": address("10.0.0.2", "a")},
			Unused:    map[string]bool{"10.0.0.1": true},
		}, steps: []string{"free address 10.0.0.1, which service d/a does not hold"}},
		{name: "somebody's own address", s: State{Addresses: map[string]*networkingv1.IPAddress{"10.0.0.9": foreign}, Unused: map[string]bool{"10.0.0.9": true}}},
		{name: "an address twice", s: State{
			Services:  []*corev1.Service{service("a", "10.0.0.1"), service("b", "10.0.0.1")},
			Addresses: map[string]*networkingv1.IPAddress{"10.0.0.1": address("10.0.0.1", "a")},
		}, faults: []string{"address 10.0.0.1 is held by services d/a and d/b: recreate one of them"}},
		{name: "ports", s: State{Services: []*corev1.Service{service("a", "", 30001, 30002)}, Ports: ports(30002, 30003, 30004), Unused: map[string]bool{"port/30003": true}},
			steps: []string{"book 1 node ports and free 1"}, unused: []string{"port/30004"}},
		{name: "a port twice", s: State{Services: []*corev1.Service{service("a", "", 30001), service("b", "", 30001)}, Ports: ports(30001)},
			faults: []string{"node port 30001 is held by services d/a and d/b: recreate one of them"}},
	} {
		c.s.Range = resources.PortRange{First: 30000, Last: 30009}
		steps, faults, unused := Decide(c.s)
		var did, left []string
		for _, s := range steps {
			did = append(did, s.String())
		}
		for u := range unused {
			left = append(left, u)
		}
		if !slices.Equal(did, c.steps) || !slices.Equal(faults, c.faults) || !slices.Equal(left, c.unused) {
			t.Errorf("%s: steps %q, faults %q, unused %q; want %q, %q, %q", c.name, did, faults, left, c.steps, c.faults, c.unused)
		}
	}
}
