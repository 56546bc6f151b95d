package conntrack

import (
	"net"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/keelson/keelson/kube-proxy/model"
)

func at(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

func port(change func(*model.Port)) model.Port {
	p := model.Port{
		Protocol: corev1.ProtocolUDP, ClusterIP: netip.MustParseAddr("10.96.0.7"), Number: 53, NodePort: 30053,
		ExternalIPs: []netip.Addr{netip.MustParseAddr("192.0.2.1")}, Ingress: []netip.Addr{netip.MustParseAddr("192.0.2.2")},
		Serving: []netip.AddrPort{at("10.244.0.5:53"), at("10.244.1.5:53")},
	}
	if change != nil {
		change(&p)
	}
	return p
}

func TestStale(t *testing.T) {
	w := Of([]model.Port{port(nil)}, nil)
	for _, c := range []struct {
		why       string
		dst, from string
		want      bool
	}{
		{"answered by an endpoint", "10.96.0.7:53", "10.244.0.5:53", false},
		{"its endpoint is gone", "10.96.0.7:53", "10.244.0.9:53", true},
		{"sent before there was an endpoint: nobody translated it", "10.96.0.7:53", "10.96.0.7:53", true},
		{"external address", "192.0.2.1:53", "10.244.0.9:53", true},
		{"balancer's address", "192.0.2.2:53", "10.244.1.5:53", false},
		{"node port", "192.0.2.77:30053", "10.244.0.9:53", true},
		{"node port with an endpoint", "192.0.2.77:30053", "10.244.0.5:53", false},
		{"another port of the address", "10.96.0.7:54", "10.244.0.9:54", false},
		{"not ours", "10.96.0.8:53", "10.244.0.9:53", false},
	} {
		if got := w.Stale(at(c.dst), at(c.from)); got != c.want {
			t.Errorf("%s: %s answered by %s: stale %v, want %v", c.why, c.dst, c.from, got, c.want)
		}
	}
}

func TestWhatIsLeftAlone(t *testing.T) {
	for why, ports := range map[string][]model.Port{
		"TCP notices by itself":    {port(func(p *model.Port) { p.Protocol = corev1.ProtocolTCP })},
		"no endpoint, none better": {port(func(p *model.Port) { p.Serving = nil })},
	} {
		if w := Of(ports, nil); !w.Empty() {
			t.Errorf("%s: %+v", why, w)
		}
	}
	own := netip.MustParseAddr("10.96.0.7")
	if w := Of([]model.Port{port(nil)}, func(a netip.Addr) bool { return a == own }); !w.Empty() {
		t.Error("an address that the node answers itself loses its flows")
	}
	f := &netlink.ConntrackFlow{Forward: netlink.IPTuple{Protocol: unix.IPPROTO_TCP, DstIP: net.ParseIP("10.96.0.7"), DstPort: 53},
		Reverse: netlink.IPTuple{SrcIP: net.ParseIP("10.244.0.9"), SrcPort: 53}}
	if Of([]model.Port{port(nil)}, nil).MatchConntrackFlow(f) {
		t.Error("a TCP flow is removed")
	}
	f.Forward.Protocol = unix.IPPROTO_UDP
	if !Of([]model.Port{port(nil)}, nil).MatchConntrackFlow(f) {
		t.Error("a stale UDP flow stays")
	}
}

func TestEqual(t *testing.T) {
	w := Of([]model.Port{port(nil)}, nil)
	if !w.Equal(Of([]model.Port{port(nil)}, nil)) {
		t.Error("the same ports differ")
	}
	if w.Equal(Of([]model.Port{port(func(p *model.Port) { p.Serving = p.Serving[:1] })}, nil)) {
		t.Error("a lost endpoint makes no difference")
	}
}
