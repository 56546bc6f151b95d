package nodeipam

import (
	"errors"
	"net/netip"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

func node(ranges ...string) *corev1.Node {
	return &corev1.Node{Spec: corev1.NodeSpec{PodCIDRs: ranges}}
}

func TestRanges(t *testing.T) {
	for _, c := range []struct {
		text         string
		cluster      []string
		nodes        []*corev1.Node
		reserved     string
		want         []string
		full         bool
		mask4, mask6 int
	}{
		{"the first", []string{"10.244.0.0/16"}, nil, "", []string{"10.244.0.0/24"}, false, 24, 64},
		{"the next", []string{"10.244.0.0/16"}, []*corev1.Node{node("10.244.0.0/24")}, "", []string{"10.244.1.0/24"}, false, 24, 64},
		{"a gap", []string{"10.244.0.0/16"}, []*corev1.Node{node("10.244.0.0/24"), node("10.244.2.0/24")}, "", []string{"10.244.1.0/24"}, false, 24, 64},
		{"beside a larger one", []string{"10.244.0.0/16"}, []*corev1.Node{node("10.244.0.0/22")}, "", []string{"10.244.4.0/24"}, false, 24, 64},
		{"beside the services", []string{"10.0.0.0/15"}, nil, "10.0.0.0/16", []string{"10.1.0.0/24"}, false, 24, 64},
		{"two families", []string{"10.244.0.0/16", "fd00::/48"}, []*corev1.Node{node("10.244.0.0/24", "fd00::/64")}, "", []string{"10.244.1.0/24", "fd00:0:0:1::/64"}, false, 24, 64},
		{"none left", []string{"10.244.0.0/25"}, []*corev1.Node{node("10.244.0.0/26"), node("10.244.0.64/26")}, "", nil, true, 26, 64},
	} {
		var cluster, reserved []netip.Prefix
		for _, s := range c.cluster {
			cluster = append(cluster, netip.MustParsePrefix(s))
		}
		if c.reserved != "" {
			reserved = append(reserved, netip.MustParsePrefix(c.reserved))
		}
		got, err := Ranges(cluster, c.mask4, c.mask6, c.nodes, reserved)
		if errors.Is(err, ErrFull) != c.full || !slices.Equal(got, c.want) {
			t.Errorf("%s: got %v, %v; want %v", c.text, got, err, c.want)
		}
	}
}
