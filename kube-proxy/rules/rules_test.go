package rules_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/keelson/keelson/kube-proxy/model"
	"github.com/keelson/keelson/kube-proxy/packettest"
	"github.com/keelson/keelson/kube-proxy/rules"
)

var config = rules.Config{
	Family: model.IPv4, PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")}, LocalhostNodePorts: true,
	OwnPods: []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24")},
}

func endpoints(list string) []model.Endpoint {
	var out []model.Endpoint
	for _, s := range strings.Fields(list) {
		e := model.Endpoint{Addr: netip.MustParseAddrPort(s)}
		e.Local = strings.HasPrefix(s, "10.244.1.")
		out = append(out, e)
	}
	return out
}

func port(change func(*model.Port)) model.Port {
	p := model.Port{
		Service: types.NamespacedName{Namespace: "ns", Name: "web"}, Name: "http", Protocol: corev1.ProtocolTCP, Number: 80,
		ClusterIP: netip.MustParseAddr("10.96.0.7"),
	}
	p.Cluster = endpoints("10.244.1.5:8080 10.244.2.6:8080")
	p.Anywhere = true
	if change != nil {
		change(&p)
	}
	return p
}

// packet reads "from to[:port]"; a name of "node" is one of the node's addresses.
func packet(text string) packettest.Packet {
	f := strings.Fields(text)
	p := packettest.Packet{Proto: "tcp"}
	const node = "192.168.0.1"
	p.FromHere, p.ToHere = f[0] == "node", strings.HasPrefix(f[1], "node:")
	p.From = netip.MustParseAddr(strings.ReplaceAll(f[0], "node", node))
	p.To = netip.MustParseAddrPort(strings.ReplaceAll(f[1], "node", node))
	return p
}

func TestWhereTrafficGoes(t *testing.T) {
	const both = "10.244.1.5:8080 10.244.2.6:8080"
	nodePort := func(p *model.Port) { p.NodePort = 30080 }
	localOnly := func(p *model.Port) {
		p.NodePort, p.ExternalLocal = 30080, true
		p.Local = endpoints("10.244.1.5:8080")
	}
	farOnly := func(p *model.Port) {
		p.NodePort, p.ExternalLocal = 30080, true
		p.Cluster = endpoints("10.244.2.6:8080")
	}
	nobody := func(p *model.Port) { p.NodePort, p.Cluster, p.Anywhere = 30080, nil, false }
	balanced := func(p *model.Port) {
		p.NodePort = 30080
		p.Ingress = []netip.Addr{netip.MustParseAddr("203.0.113.9")}
		p.SourceRanges = []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}
	}
	for _, c := range []struct {
		text   string
		change func(*model.Port)
		packet string
		want   string
	}{
		{"a pod to the cluster address", nil, "10.244.1.9 10.96.0.7:80", both},
		{"a machine outside to the cluster address", nil, "192.168.0.9 10.96.0.7:80", both + " masqueraded"},
		{"the node itself to the cluster address", nil, "node 10.96.0.7:80", both + " masqueraded"},
		{"a pod to itself", func(p *model.Port) { p.Cluster = endpoints("10.244.1.5:8080") }, "10.244.1.5 10.96.0.7:80", "10.244.1.5:8080 masqueraded"},
		{"another port", nil, "10.244.1.9 10.96.0.7:81", "10.96.0.7:81"},
		{"nobody answers", nobody, "10.244.1.9 10.96.0.7:80", "REJECT"},
		{"nobody answers on the node port", nobody, "192.168.0.9 node:30080", "REJECT"},
		{"a node port", nodePort, "192.168.0.9 node:30080", both + " masqueraded"},
		{"a node port of another node", nodePort, "192.168.0.9 192.168.0.2:30080", "192.168.0.2:30080"},
		{"a node port with a local policy", localOnly, "192.168.0.9 node:30080", "10.244.1.5:8080"},
		{"a pod to a node port with a local policy", localOnly, "10.244.1.9 node:30080", both},
		{"the node to its node port with a local policy", localOnly, "node node:30080", both + " masqueraded"},
		{"a node port with a local policy, far from everybody", farOnly, "192.168.0.9 node:30080", "DROP"},
		{"an internal local policy", func(p *model.Port) {
			p.InternalLocal, p.Local = true, endpoints("10.244.1.5:8080")
		}, "10.244.1.9 10.96.0.7:80", "10.244.1.5:8080"},
		{"an internal local policy, far from everybody", func(p *model.Port) { p.InternalLocal = true }, "10.244.1.9 10.96.0.7:80", "DROP"},
		{"a balancer's address from its clients", balanced, "198.51.100.4 203.0.113.9:80", both + " masqueraded"},
		{"a balancer's address from others", balanced, "192.0.2.1 203.0.113.9:80", "DROP"},
		{"an external address", func(p *model.Port) { p.ExternalIPs = []netip.Addr{netip.MustParseAddr("203.0.113.1")} }, "192.0.2.1 203.0.113.1:80", both + " masqueraded"},
		{"client affinity", func(p *model.Port) { p.AffinitySeconds = 60 }, "10.244.1.9 10.96.0.7:80", both},
	} {
		set := rules.Build(config, []model.Port{port(c.change)})
		fate, err := packettest.Walk(set, packet(c.packet))
		if err != nil {
			t.Errorf("%s: %v", c.text, err)
			continue
		}
		if fate.String() != c.want {
			t.Errorf("%s: %s: got %q, want %q", c.text, c.packet, fate, c.want)
		}
	}
}

func TestEqualShares(t *testing.T) {
	p := port(func(p *model.Port) { p.Cluster = endpoints("10.244.1.1:80 10.244.1.2:80 10.244.1.3:80") })
	text := string(rules.Build(config, []model.Port{p}).NAT[rules.ServiceChain(&p)])
	for _, want := range []string{"--probability 0.33333333333", "--probability 0.50000000000"} {
		if !strings.Contains(text, want) {
			t.Errorf("%s is missing in:\n%s", want, text)
		}
	}
}

func TestOnlyChangedChainsAreRestored(t *testing.T) {
	var ports []model.Port
	for i := range 100 {
		ports = append(ports, port(func(p *model.Port) {
			p.Service.Name = fmt.Sprintf("s%d", i)
			p.ClusterIP = netip.AddrFrom4([4]byte{10, 96, 1, byte(i)})
		}))
	}
	was := rules.Build(config, ports)
	if _, n := rules.Diff("nat", was.NAT, rules.Build(config, ports).NAT); n != 0 {
		t.Errorf("equal input touches %d chains", n)
	}
	ports[7].Cluster = endpoints("10.244.1.5:8080 10.244.2.9:8080")
	text, n := rules.Diff("nat", was.NAT, rules.Build(config, ports).NAT)
	if n != 3 { // the service's chain, one endpoint less, one more
		t.Errorf("one endpoint moved and %d chains are touched:\n%s", n, text)
	}
	if !strings.HasSuffix(string(text), "COMMIT\n") || !strings.Contains(string(text), "-X KUBE-SEP-") {
		t.Errorf("restore text:\n%s", text)
	}
}
