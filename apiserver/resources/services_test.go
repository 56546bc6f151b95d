package resources

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/keelson/keelson/apiserver/resources/alloc"
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
		{"failed to allocate IP 10.1.0.1: the provided network does not match the current range", func(s *corev1.Service) { s.Spec.ClusterIP = "10.1.0.1" }},
		{"failed to allocate IP 10.96.0.0: the provided network does not match the current range", func(s *corev1.Service) { s.Spec.ClusterIP = "10.96.0.0" }},
		{"spec.ports[0].nodePort: Invalid value: 30777: provided port is already allocated", func(s *corev1.Service) { s.Spec.Type, s.Spec.Ports[0].NodePort = "NodePort", 30777 }},
		{"provided port is not in the valid range. The range of valid ports is 30000-32767", func(s *corev1.Service) { s.Spec.Type, s.Spec.Ports[0].NodePort = "NodePort", 99 }},
		{"spec.healthCheckNodePort: Invalid value: 30001: provided port is already allocated", func(s *corev1.Service) {
			s.Spec.Type, s.Spec.ExternalTrafficPolicy, s.Spec.HealthCheckNodePort, s.Spec.Ports[0].NodePort = "LoadBalancer", "Local", 30001, 30001
		}},
		{"may not be used when `type` is 'ClusterIP'", func(s *corev1.Service) { s.Spec.Ports[0].NodePort = 30000 }},
		{"this cluster is not configured for dual-stack services", func(s *corev1.Service) { s.Spec.IPFamilyPolicy = ptr(corev1.IPFamilyPolicyRequireDualStack) }},
		{"spec.ipFamilies[0]: Invalid value: \"IPv6\": not configured on this cluster", func(s *corev1.Service) { s.Spec.IPFamilies = []corev1.IPFamily{"IPv6"} }},
		{"spec.type: Unsupported value: \"X\": supported values: \"ClusterIP\", \"ExternalName\", \"LoadBalancer\", \"NodePort\"", func(s *corev1.Service) { s.Spec.Type = "X" }},
		{"spec.ports[1].name: Required value", func(s *corev1.Service) { s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{Port: 81}) }},
		{"may not be set to 'None' for NodePort services", func(s *corev1.Service) { s.Spec.Type, s.Spec.ClusterIP = "NodePort", "None" }},
	} {
		err := write(services(DefaultConfig()).Row(), request(taken, NewIPAddress(netip.MustParseAddr("10.96.7.7"), "d", "other")), svc("a", c.change), nil)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("want %q, got %v", c.want, err)
		}
	}
	// Of several things that others have the first one is told.
	several := svc("a", func(s *corev1.Service) {
		s.Spec.Type, s.Spec.ExternalTrafficPolicy, s.Spec.HealthCheckNodePort, s.Spec.Ports[0].NodePort, s.Spec.ClusterIP = "LoadBalancer", "Local", 30777, 30777, "10.96.7.7"
	})
	for _, want := range []string{"spec.clusterIPs", "spec.ports[0].nodePort"} {
		err := write(services(DefaultConfig()).Row(), request(taken, NewIPAddress(netip.MustParseAddr("10.96.7.7"), "d", "other")), several.DeepCopy(), nil)
		var status apierrors.APIStatus
		if !errors.As(err, &status) || len(status.Status().Details.Causes) != 1 || status.Status().Details.Causes[0].Field != want {
			t.Errorf("want %s alone, got %v", want, err)
		}
		several.Spec.ClusterIP = ""
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
	external.Spec.Type, external.Spec.ExternalName, external.Spec.InternalTrafficPolicy = "ExternalName", "x.example.com", ptr(corev1.ServiceInternalTrafficPolicyLocal)
	row.Default(external)
	if external.Spec.InternalTrafficPolicy != nil {
		t.Error("a name elsewhere has a policy of traffic inside")
	}
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

// A removal frees addresses and ports, and an update those that are not kept.
func TestServiceFrees(t *testing.T) {
	row := services(dualStack()).Row()
	both := svc("a", func(s *corev1.Service) {
		s.Spec.Type, s.Spec.IPFamilyPolicy = "NodePort", ptr(corev1.IPFamilyPolicyRequireDualStack)
	})
	row.Default(both)
	row.Main.Prepare(request(), both, nil)
	made, err := row.Allocate(request(), both, nil)
	if err != nil {
		t.Fatal(err)
	}
	tree := []Object{both, &corev1.Endpoints{ObjectMeta: metav1.ObjectMeta{Namespace: "d", Name: "a", ResourceVersion: "7"}}}
	for _, b := range made {
		b.Object.SetResourceVersion("7")
		b.Object.SetName(b.Name)
		tree = append(tree, b.Object)
	}
	if got, want := steps(made), []string{"write " + both.Spec.ClusterIPs[0], "write " + both.Spec.ClusterIPs[1], "write servicenodeports: 1 taken"}; !slices.Equal(got, want) {
		t.Errorf("creation: got %q, want %q", got, want)
	}
	gone, err := row.Allocate(request(tree...), nil, both)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := steps(gone), []string{"remove " + both.Spec.ClusterIPs[0], "remove " + both.Spec.ClusterIPs[1], "remove a", "write servicenodeports: 0 taken"}; !slices.Equal(got, want) {
		t.Errorf("removal: got %q, want %q", got, want)
	}
	one := both.DeepCopy()
	one.Spec.IPFamilyPolicy = ptr(corev1.IPFamilyPolicySingleStack)
	row.Main.Prepare(request(tree...), one, both)
	less, err := row.Allocate(request(tree...), one, both)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := steps(less), []string{"remove " + both.Spec.ClusterIPs[1]}; !slices.Equal(got, want) {
		t.Errorf("second family given up: got %q, want %q", got, want)
	}
}

func steps(beside []Beside) []string {
	var out []string
	for _, b := range beside {
		text := map[Do]string{DoWrite: "write ", DoRemove: "remove ", DoCheck: "check "}[b.Do] + b.Name
		if r, ok := b.Object.(*corev1.RangeAllocation); ok {
			p, err := alloc.ReadPorts(30000, 32767, r.Range, r.Data)
			if err != nil {
				return []string{err.Error()}
			}
			text += fmt.Sprintf(": %d taken", p.Count())
		}
		out = append(out, text)
	}
	return out
}

// Addresses come from every range that is ready, and from none that goes.
func TestServiceRanges(t *testing.T) {
	row := services(DefaultConfig()).Row()
	cidr := func(name, r string, ready, going bool) *networkingv1.ServiceCIDR {
		c := &networkingv1.ServiceCIDR{ObjectMeta: metav1.ObjectMeta{Name: name, ResourceVersion: "5"}, Spec: networkingv1.ServiceCIDRSpec{CIDRs: []string{r}}}
		if ready {
			c.Status.Conditions = []metav1.Condition{{Type: networkingv1.ServiceCIDRConditionReady, Status: metav1.ConditionTrue}}
		}
		if going {
			c.DeletionTimestamp = &metav1.Time{}
		}
		return c
	}
	allocated := func(tree ...Object) (string, []string, error) {
		s := svc("a", nil)
		row.Default(s)
		row.Main.Prepare(request(tree...), s, nil)
		beside, err := row.Allocate(request(tree...), s, nil)
		return s.Spec.ClusterIP, steps(beside), err
	}
	full := []Object{cidr("kubernetes", "10.0.0.0/30", true, false), NewIPAddress(netip.MustParseAddr("10.0.0.1"), "d", "x"), NewIPAddress(netip.MustParseAddr("10.0.0.2"), "d", "y")}
	if _, _, err := allocated(full...); err == nil || !strings.Contains(err.Error(), `failed to allocate a serviceIP for Service "a": range is full`) {
		t.Errorf("a full range: %v", err)
	}
	for _, other := range []*networkingv1.ServiceCIDR{cidr("other", "10.9.0.0/24", false, false), cidr("other", "10.9.0.0/24", true, true)} {
		if ip, _, err := allocated(append(full, other)...); err == nil {
			t.Errorf("%s is from a range that is not ready or goes", ip)
		}
	}
	ip, did, err := allocated(append(full, cidr("other", "10.9.0.0/24", true, false))...)
	if err != nil || !strings.HasPrefix(ip, "10.9.0.") || !slices.Equal(did, []string{"write " + ip, "check other"}) {
		t.Errorf("a second range: %s, %q, %v", ip, did, err)
	}
}

// What the server stores for itself stays when the served rows change: custom resources come and go.
func TestHiddenRowsStay(t *testing.T) {
	reg, err := NewRegistry(Table())
	if err != nil {
		t.Fatal(err)
	}
	if err := reg.Replace(reg.All()); err != nil {
		t.Fatal(err)
	}
	if reg.Storage(rangeAllocationsGR) == nil || reg.ByPrefix("ranges") == nil || reg.Lookup("", "v1", "rangeallocations") != nil {
		t.Error("the storage of node ports is gone, or it is served")
	}
}

// A definition as upstream stores it keeps its schema.
func TestUpgradeDefinition(t *testing.T) {
	text, err := customResourceDefinitions.Row().Upgrade("v1beta1", []byte(`{"kind":"CustomResourceDefinition","apiVersion":"apiextensions.k8s.io/v1beta1",
		"metadata":{"name":"gadgets.x.example.com","uid":"u"},"spec":{"group":"x.example.com","version":"v1","names":{"plural":"gadgets","kind":"Gadget"},
		"scope":"Namespaced","validation":{"openAPIV3Schema":{"type":"object"}},"subresources":{"status":{}},"versions":[{"name":"v1","served":true,"storage":true}],"preserveUnknownFields":false}}`))
	if err != nil {
		t.Fatal(err)
	}
	var got crd
	if err := json.Unmarshal(text, &got); err != nil {
		t.Fatal(err)
	}
	v := got.Spec.Versions[0]
	if got.UID != "u" || v.Schema == nil || v.Schema.OpenAPIV3Schema.Type != "object" || v.Subresources == nil || v.Subresources.Status == nil {
		t.Errorf("got %s", text)
	}
}
