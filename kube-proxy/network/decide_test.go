package network

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func node(name, ip, pods string) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
	n.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: ip}}
	if pods != "" {
		n.Spec.PodCIDRs = []string{pods}
	}
	return n
}

func TestDecide(t *testing.T) {
	link := Link{Index: 2, Name: "eth0", MTU: 1500, Subnet: netip.MustParsePrefix("192.168.0.0/24")}
	self := node("a", "192.168.0.1", "10.244.0.0/24")
	for _, c := range []struct {
		text  string
		nodes []*corev1.Node
		want  string
		mtu   int
	}{
		{"alone", []*corev1.Node{self}, "", 1500},
		{"a neighbour", []*corev1.Node{self, node("b", "192.168.0.2", "10.244.1.0/24")}, "10.244.1.0/24 via 192.168.0.2", 1500},
		{"a neighbour without a range", []*corev1.Node{self, node("b", "192.168.0.2", "")}, "", 1500},
		{"a node elsewhere", []*corev1.Node{self, node("b", "172.16.0.2", "10.244.1.0/24")}, "10.244.1.0/24 via 10.244.1.0 through the tunnel", 1450},
	} {
		p := Decide(Config{}, "a", link, c.nodes, false)
		var got []string
		for _, r := range p.Routes {
			s := fmt.Sprintf("%s via %s", r.To, r.Via)
			if r.Tunnel {
				s += " through the tunnel"
			}
			got = append(got, s)
		}
		if strings.Join(got, "; ") != c.want || p.MTU != c.mtu || !strings.Contains(string(p.CNI), `"subnet": "10.244.0.0/24"`) {
			t.Errorf("%s: got %q, MTU %d, CNI %s; want %q, MTU %d", c.text, got, p.MTU, p.CNI, c.want, c.mtu)
		}
	}
	if p := Decide(Config{}, "a", link, []*corev1.Node{node("a", "192.168.0.1", "")}, true); p.CNI != nil {
		t.Error("a CNI configuration is written before the node has a range")
	}
}

// The runtime's plugin decides who connects the pods.
func TestPlugins(t *testing.T) {
	n := node("a", "192.168.0.1", "10.244.0.0/24")
	n.Spec.PodCIDRs = append(n.Spec.PodCIDRs, "fd00::/64")
	for plugin, want := range map[bool]string{
		true: `{"cniVersion":"0.4.0","name":"keelson","plugins":[` +
			`{"bridge":"cni0","capabilities":{"portMappings":true},"mtu":1500,"ranges":["10.244.0.0/24","fd00::/64"],"type":"keelson-net"}]}`,
		false: `{"cniVersion":"0.4.0","name":"keelson","plugins":[` +
			`{"bridge":"cni0","hairpinMode":true,"ipMasq":false,"ipam":{"ranges":[[{"subnet":"10.244.0.0/24"}],[{"subnet":"fd00::/64"}]],` +
			`"routes":[{"dst":"0.0.0.0/0"},{"dst":"::/0"}],"type":"host-local"},"isGateway":true,"mtu":1500,"type":"bridge"},` +
			`{"capabilities":{"portMappings":true},"type":"portmap"}]}`,
	} {
		var got bytes.Buffer
		if err := json.Compact(&got, Decide(Config{}, "a", Link{MTU: 1500}, []*corev1.Node{n}, plugin).CNI); err != nil || got.String() != want {
			t.Errorf("with our plugin %t: %v\n%s, want\n%s", plugin, err, &got, want)
		}
	}
}
