package model_test

import (
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"github.com/keelson/keelson/kube-proxy/model"
)

func service(change func(*corev1.Service)) *corev1.Service {
	s := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "web"},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeClusterIP, ClusterIP: "10.96.0.7", ClusterIPs: []string{"10.96.0.7"},
			Ports: []corev1.ServicePort{{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP}},
		},
	}
	if change != nil {
		change(s)
	}
	return s
}

// endpoint reads "address@node" followed by any of !ready, serving, terminating, zone=z.
func endpoint(text string) discoveryv1.Endpoint {
	f := strings.Fields(text)
	ip, node, _ := strings.Cut(f[0], "@")
	e := discoveryv1.Endpoint{Addresses: []string{ip}, NodeName: &node, Conditions: discoveryv1.EndpointConditions{Ready: ptr.To(true)}}
	for _, w := range f[1:] {
		switch w {
		case "!ready":
			e.Conditions.Ready = ptr.To(false)
		case "serving":
			e.Conditions.Serving = ptr.To(true)
		case "terminating":
			e.Conditions.Terminating = ptr.To(true)
		default:
			z, _ := strings.CutPrefix(w, "zone=")
			e.Hints = &discoveryv1.EndpointHints{ForZones: []discoveryv1.ForZone{{Name: z}}}
		}
	}
	return e
}

func slice(endpoints ...string) *discoveryv1.EndpointSlice {
	s := &discoveryv1.EndpointSlice{
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: ptr.To("http"), Port: ptr.To(int32(8080)), Protocol: ptr.To(corev1.ProtocolTCP)}},
	}
	for _, e := range endpoints {
		s.Endpoints = append(s.Endpoints, endpoint(e))
	}
	return s
}

func list(es []model.Endpoint) string {
	var out []string
	for _, e := range es {
		out = append(out, e.Addr.Addr().String())
	}
	return strings.Join(out, " ")
}

func TestEndpoints(t *testing.T) {
	local := corev1.ServiceInternalTrafficPolicyLocal
	for _, c := range []struct {
		text          string
		change        func(*corev1.Service)
		endpoints     []string
		cluster, here string
		anywhere      bool
	}{
		{"ready ones, sorted", nil, []string{"10.0.0.2@a", "10.0.0.1@b"}, "10.0.0.1 10.0.0.2", "", true},
		{"not ready ones are left out", nil, []string{"10.0.0.1@a !ready", "10.0.0.2@b"}, "10.0.0.2", "", true},
		{"terminating ones only when nobody is ready", nil, []string{"10.0.0.1@a !ready serving terminating"}, "10.0.0.1", "", true},
		{"terminating ones not beside a ready one", nil, []string{"10.0.0.1@a !ready serving terminating", "10.0.0.2@b"}, "10.0.0.2", "", true},
		{"nobody", nil, nil, "", "", false},
		{"hints of all for this zone", nil, []string{"10.0.0.1@a zone=here", "10.0.0.2@b zone=there"}, "10.0.0.1", "", true},
		{"hints of some are no hints", nil, []string{"10.0.0.1@a zone=here", "10.0.0.2@b"}, "10.0.0.1 10.0.0.2", "", true},
		{"hints that leave nobody are no hints", nil, []string{"10.0.0.2@b zone=there"}, "10.0.0.2", "", true},
		{"a local policy", func(s *corev1.Service) { s.Spec.InternalTrafficPolicy = &local }, []string{"10.0.0.1@self", "10.0.0.2@b"}, "10.0.0.1 10.0.0.2", "10.0.0.1", true},
		{"a local policy far from everybody", func(s *corev1.Service) { s.Spec.InternalTrafficPolicy = &local }, []string{"10.0.0.2@b"}, "10.0.0.2", "", true},
		{"another port's name", func(s *corev1.Service) { s.Spec.Ports[0].Name = "other" }, []string{"10.0.0.2@b"}, "", "", false},
	} {
		ports := model.Build(model.IPv4, model.Node{Name: "self", Zone: "here"}, []*corev1.Service{service(c.change)},
			func(types.NamespacedName) []*discoveryv1.EndpointSlice {
				return []*discoveryv1.EndpointSlice{slice(c.endpoints...)}
			})
		if len(ports) != 1 {
			t.Errorf("%s: got %d ports, want 1", c.text, len(ports))
			continue
		}
		p := ports[0]
		if list(p.Cluster) != c.cluster || list(p.Local) != c.here || p.Anywhere != c.anywhere {
			t.Errorf("%s: got cluster %q local %q anywhere %v, want %q %q %v", c.text, list(p.Cluster), list(p.Local), p.Anywhere, c.cluster, c.here, c.anywhere)
		}
	}
}

func TestHeadlessSlicesAreForDNSAlone(t *testing.T) {
	headless := slice("10.0.0.1@a")
	headless.Labels = map[string]string{corev1.IsHeadlessService: ""}
	got := model.Of(model.IPv4, model.Node{Name: "self"}, service(nil), func(types.NamespacedName) []*discoveryv1.EndpointSlice {
		return []*discoveryv1.EndpointSlice{headless, slice("10.0.0.2@b")}
	})
	if len(got) != 1 || list(got[0].Cluster) != "10.0.0.2" {
		t.Errorf("got %v, want one port with 10.0.0.2", fmt.Sprint(got))
	}
}

func TestServicesOfOthers(t *testing.T) {
	for text, change := range map[string]func(*corev1.Service){
		"headless":      func(s *corev1.Service) { s.Spec.ClusterIP, s.Spec.ClusterIPs = "None", []string{"None"} },
		"external name": func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeExternalName },
		"other proxy":   func(s *corev1.Service) { s.Labels = map[string]string{"service.kubernetes.io/service-proxy-name": "x"} },
		"nobody's":      func(s *corev1.Service) { s.Labels = map[string]string{"service.kubernetes.io/service-proxy-name": ""} },
		"other family":  func(s *corev1.Service) { s.Spec.ClusterIP, s.Spec.ClusterIPs = "fd00::1", []string{"fd00::1"} },
	} {
		got := model.Of(model.IPv4, model.Node{}, service(change), func(types.NamespacedName) []*discoveryv1.EndpointSlice { return nil })
		if len(got) != 0 {
			t.Errorf("%s: got %v, want nothing", text, fmt.Sprint(got))
		}
	}
}
