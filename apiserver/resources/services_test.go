package resources

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"pgregory.net/rapid"
)

func svc(name string, change func(*corev1.Service)) *corev1.Service {
	s := &corev1.Service{
		TypeMeta:   metav1.TypeMeta{Kind: "Service", APIVersion: "v1"},
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "d"},
		Spec:       corev1.ServiceSpec{Selector: map[string]string{"a": "b"}, Ports: []corev1.ServicePort{{Port: 80}}},
	}
	if change != nil {
		change(s)
	}
	return s
}

func dualStack() Config {
	cfg := DefaultConfig()
	cfg.ServiceCIDRs = append(cfg.ServiceCIDRs, netip.MustParsePrefix("fd00:10::/112"))
	return cfg
}

// write runs a Service through a creation or an update, allocation included.
func write(row *Row, rq *Request, s, old *corev1.Service) error {
	var was Object
	if old != nil {
		was = old
	}
	row.Default(s)
	row.Main.Prepare(rq, s, was)
	if errs := row.Main.Validate(rq, s, was); len(errs) > 0 {
		return errs.ToAggregate()
	}
	_, err := row.Allocate(rq, s, was)
	return err
}

func describe(s *corev1.Service) string {
	var ports []string
	for _, p := range s.Spec.Ports {
		ports = append(ports, map[bool]string{true: "node", false: "-"}[p.NodePort != 0])
	}
	var families []string
	for i, f := range s.Spec.IPFamilies {
		ip := "-"
		if i < len(s.Spec.ClusterIPs) && s.Spec.ClusterIPs[i] != "None" {
			ip = "ip"
		}
		families = append(families, string(f)+":"+ip)
	}
	return fmt.Sprintf("%s %s %s health=%v", valueOr(s.Spec.IPFamilyPolicy, "-"), strings.Join(families, ","), strings.Join(ports, ","), s.Spec.HealthCheckNodePort != 0)
}

func TestServiceGetsWhatItsTypeNeeds(t *testing.T) {
	headless := func(s *corev1.Service) { s.Spec.ClusterIP = "None" }
	for _, c := range []struct {
		name   string
		cfg    Config
		change func(*corev1.Service)
		want   string
	}{
		{"plain", DefaultConfig(), nil, "SingleStack IPv4:ip - health=false"},
		{"headless", DefaultConfig(), headless, "SingleStack IPv4:- - health=false"},
		{"headless without selector", DefaultConfig(), func(s *corev1.Service) { headless(s); s.Spec.Selector = nil }, "RequireDualStack IPv4:-,IPv6:- - health=false"},
		{"node port", DefaultConfig(), func(s *corev1.Service) { s.Spec.Type = "NodePort" }, "SingleStack IPv4:ip node health=false"},
		{"load balancer, local", DefaultConfig(), func(s *corev1.Service) {
			s.Spec.Type, s.Spec.ExternalTrafficPolicy = "LoadBalancer", "Local"
		}, "SingleStack IPv4:ip node health=true"},
		{"load balancer without node ports", DefaultConfig(), func(s *corev1.Service) {
			s.Spec.Type, s.Spec.AllocateLoadBalancerNodePorts = "LoadBalancer", ptr(false)
		}, "SingleStack IPv4:ip - health=false"},
		{"external name", DefaultConfig(), func(s *corev1.Service) { s.Spec.Type, s.Spec.ExternalName = "ExternalName", "x.example.com" }, "-  - health=false"},
		{"prefers two families, has one", DefaultConfig(), func(s *corev1.Service) { s.Spec.IPFamilyPolicy = ptr(corev1.IPFamilyPolicyPreferDualStack) }, "PreferDualStack IPv4:ip - health=false"},
		{"prefers two families, has both", dualStack(), func(s *corev1.Service) { s.Spec.IPFamilyPolicy = ptr(corev1.IPFamilyPolicyPreferDualStack) }, "PreferDualStack IPv4:ip,IPv6:ip - health=false"},
		{"second family only", dualStack(), func(s *corev1.Service) { s.Spec.IPFamilies = []corev1.IPFamily{"IPv6"} }, "SingleStack IPv6:ip - health=false"},
		{"both, six first", dualStack(), func(s *corev1.Service) {
			s.Spec.IPFamilyPolicy, s.Spec.IPFamilies = ptr(corev1.IPFamilyPolicyRequireDualStack), []corev1.IPFamily{"IPv6"}
		}, "RequireDualStack IPv6:ip,IPv4:ip - health=false"},
	} {
		t.Run(c.name, func(t *testing.T) {
			row := services(c.cfg).Row()
			s := svc("a", c.change)
			if err := write(row, request(), s, nil); err != nil {
				t.Fatal(err)
			}
			if got := describe(s); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

func TestServiceIsRefused(t *testing.T) {
	taken := svc("other", func(s *corev1.Service) {
		s.Spec.Type, s.Spec.ClusterIP, s.Spec.ClusterIPs = "NodePort", "10.96.7.7", []string{"10.96.7.7"}
		s.Spec.Ports[0].Protocol, s.Spec.Ports[0].NodePort = "TCP", 30777
	})
	for _, c := range []struct {
		want   string
		change func(*corev1.Service)
	}{
		{"provided IP is already allocated", func(s *corev1.Service) { s.Spec.ClusterIP = "10.96.7.7" }},
		{"is not in the valid range. The range of valid IPs is 10.96.0.0/16", func(s *corev1.Service) { s.Spec.ClusterIP = "10.1.0.1" }},
		{"spec.ports[0].nodePort: Invalid value: 30777: provided port is already allocated", func(s *corev1.Service) { s.Spec.Type, s.Spec.Ports[0].NodePort = "NodePort", 30777 }},
		{"provided port is not in the valid range. The range of valid ports is 30000-32767", func(s *corev1.Service) { s.Spec.Type, s.Spec.Ports[0].NodePort = "NodePort", 99 }},
		{"may not be used when `type` is 'ClusterIP'", func(s *corev1.Service) { s.Spec.Ports[0].NodePort = 30000 }},
		{"this cluster is not configured for dual-stack services", func(s *corev1.Service) { s.Spec.IPFamilyPolicy = ptr(corev1.IPFamilyPolicyRequireDualStack) }},
		{"spec.ipFamilies[0]: Invalid value: \"IPv6\": not configured on this cluster", func(s *corev1.Service) { s.Spec.IPFamilies = []corev1.IPFamily{"IPv6"} }},
		{"spec.type: Unsupported value: \"X\": supported values: \"ClusterIP\", \"ExternalName\", \"LoadBalancer\", \"NodePort\"", func(s *corev1.Service) { s.Spec.Type = "X" }},
		{"spec.ports[1].name: Required value", func(s *corev1.Service) { s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{Port: 81}) }},
		{"may not be set to 'None' for NodePort services", func(s *corev1.Service) { s.Spec.Type, s.Spec.ClusterIP = "NodePort", "None" }},
	} {
		err := write(services(DefaultConfig()).Row(), request(taken), svc("a", c.change), nil)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("want %q, got %v", c.want, err)
		}
	}
}

func TestServiceChanges(t *testing.T) {
	row := services(DefaultConfig()).Row()
	old := svc("a", func(s *corev1.Service) { s.Spec.Type = "NodePort" })
	if err := write(row, request(), old, nil); err != nil {
		t.Fatal(err)
	}
	kept := svc("a", func(s *corev1.Service) { s.Spec.Type = "NodePort" })
	if err := write(row, request(old), kept, old); err != nil {
		t.Fatal(err)
	}
	if kept.Spec.ClusterIP != old.Spec.ClusterIP || kept.Spec.Ports[0].NodePort != old.Spec.Ports[0].NodePort {
		t.Errorf("a PUT that leaves them out lost address or port: %+v, had %+v", kept.Spec, old.Spec)
	}
	released := old.DeepCopy()
	released.Spec.Type = "ClusterIP"
	if err := write(row, request(old), released, old); err != nil {
		t.Fatal(err)
	}
	if released.Spec.Ports[0].NodePort != 0 || released.Spec.ExternalTrafficPolicy != "" {
		t.Errorf("the node port was not released: %+v", released.Spec)
	}
	external := old.DeepCopy()
	external.Spec.Type, external.Spec.ExternalName = "ExternalName", "x.example.com"
	if err := write(row, request(old), external, old); err != nil {
		t.Fatal(err)
	}
	if external.Spec.ClusterIP != "" || len(external.Spec.IPFamilies) != 0 {
		t.Errorf("the address was not released: %+v", external.Spec)
	}
	back := external.DeepCopy()
	back.Spec.Type, back.Spec.ExternalName = "ClusterIP", ""
	if err := write(row, request(external), back, external); err != nil {
		t.Fatal(err)
	}
	if back.Spec.ClusterIP == "" {
		t.Error("no address after the change back")
	}
	moved := old.DeepCopy()
	moved.Spec.ClusterIP, moved.Spec.ClusterIPs = "10.96.200.1", []string{"10.96.200.1"}
	if err := write(row, request(old), moved, old); err == nil || !strings.Contains(err.Error(), "may not change once set") {
		t.Errorf("an address may not change: %v", err)
	}
}

// TestNoTwoServicesShare: whatever the order of creations and deletions, and however
// late the tree shows them, no address and no node port has two owners.
func TestNoTwoServicesShare(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		cfg := DefaultConfig()
		cfg.ServiceCIDRs = []netip.Prefix{netip.MustParsePrefix("10.96.0.0/27")}
		cfg.NodePorts = PortRange{30000, 30031}
		row := services(cfg).Row()
		now := time.Unix(1_800_000_000, 0)
		var all, shown []Object
		for i := range rapid.IntRange(1, 25).Draw(t, "services") {
			rq := request(shown...)
			rq.Now = now
			s := svc(fmt.Sprintf("s%d", i), func(s *corev1.Service) { s.Spec.Type = "NodePort" })
			if err := write(row, rq, s, nil); err != nil {
				t.Fatalf("service %d of 30 addresses: %v", i, err)
			}
			all = append(all, s)
			if rapid.Bool().Draw(t, "shown") {
				shown = append([]Object(nil), all...)
			}
			now = now.Add(time.Duration(rapid.IntRange(0, 300).Draw(t, "wait")) * time.Millisecond)
		}
		ips, ports := map[string]string{}, map[int32]string{}
		for _, o := range all {
			s := o.(*corev1.Service)
			if other, ok := ips[s.Spec.ClusterIP]; ok {
				t.Fatalf("%s and %s share %s", other, s.Name, s.Spec.ClusterIP)
			}
			ips[s.Spec.ClusterIP] = s.Name
			if other, ok := ports[s.Spec.Ports[0].NodePort]; ok {
				t.Fatalf("%s and %s share port %d", other, s.Name, s.Spec.Ports[0].NodePort)
			}
			ports[s.Spec.Ports[0].NodePort] = s.Name
		}
	})
}
