package rules_test

import (
	"net/netip"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/utils/ptr"

	"github.com/keelson/keelson/kube-proxy/model"
	"github.com/keelson/keelson/kube-proxy/packettest"
	"github.com/keelson/keelson/kube-proxy/rules"
)

func label(s string) bool { return len(validation.IsDNS1123Label(s)) == 0 }

// Whatever addresses, numbers and types a Service and its slices hold, the rules are text that can be
// restored: no line of them is anything but a rule of its own chain, and a packet finds its way through.
// Names are what an API server stores: they go into comments and identities as they are.
func FuzzRules(f *testing.F) {
	f.Add("ns", "web", "http", "TCP", "10.96.0.7", "203.0.113.1", "203.0.113.9", "198.51.100.0/24", "10.244.1.5", int32(80), int32(30080), int32(8080), int32(60), uint8(0))
	f.Add("a", "x", "", "SCTP", "::1", "1.2.3.4\n-A INPUT -j ACCEPT", "", "bad", "10.244.1.256", int32(-1), int32(70000), int32(0), int32(-5), uint8(255))
	f.Fuzz(func(t *testing.T, ns, name, portName, proto, ip, external, ingress, source, endpoint string, number, nodePort, target, affinity int32, bits uint8) {
		if !label(ns) || !label(name) || portName != "" && !label(portName) {
			return
		}
		svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}}
		svc.Spec.Type = []corev1.ServiceType{corev1.ServiceTypeClusterIP, corev1.ServiceTypeNodePort, corev1.ServiceTypeLoadBalancer, "Other"}[bits&3]
		svc.Spec.ClusterIP, svc.Spec.ClusterIPs = ip, []string{ip}
		svc.Spec.ExternalIPs, svc.Spec.LoadBalancerSourceRanges = []string{external}, []string{source}
		svc.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: ingress}}
		svc.Spec.Ports = []corev1.ServicePort{{Name: portName, Protocol: corev1.Protocol(proto), Port: number, NodePort: nodePort}}
		if bits&4 != 0 {
			svc.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
			svc.Spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: &affinity}}
		}
		if bits&8 != 0 {
			svc.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
		}
		slice := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "s", Labels: map[string]string{discoveryv1.LabelServiceName: name}},
			AddressType: discoveryv1.AddressTypeIPv4,
			Ports:       []discoveryv1.EndpointPort{{Name: &portName, Port: &target, Protocol: ptr.To(corev1.Protocol(proto))}},
			Endpoints:   []discoveryv1.Endpoint{{Addresses: []string{endpoint}, NodeName: ptr.To("node")}}}
		for _, family := range []model.Family{model.IPv4, model.IPv6} {
			ports := model.Build(family, model.Node{Name: "node"}, []*corev1.Service{svc}, func(types.NamespacedName) []*discoveryv1.EndpointSlice { return []*discoveryv1.EndpointSlice{slice} })
			cfg := config
			cfg.Family = family
			if family == model.IPv6 {
				cfg.PodCIDRs, cfg.OwnPods = nil, nil
			}
			set := rules.Build(cfg, ports)
			for _, table := range []rules.Table{set.NAT, set.Filter} {
				for chain, text := range table {
					for line := range strings.Lines(string(text)) {
						if !strings.HasPrefix(line, "-A "+chain+" ") || !strings.HasSuffix(line, "\n") || strings.Count(line, `"`)%2 != 0 {
							t.Fatalf("chain %s holds %q", chain, line)
						}
					}
				}
			}
			for i := range ports {
				p := &ports[i]
				from := netip.MustParseAddr("192.0.2.1")
				if family == model.IPv6 {
					from = netip.MustParseAddr("2001:db8::1")
				}
				if _, err := packettest.Walk(set, packettest.Packet{From: from, To: netip.AddrPortFrom(p.ClusterIP, p.Number), Proto: strings.ToLower(string(p.Protocol))}); err != nil {
					t.Fatal(err)
				}
			}
		}
	})
}
