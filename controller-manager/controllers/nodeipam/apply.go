package nodeipam

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/kubernetes"

	"github.com/keelson/keelson/controller-manager/runtime"
	"github.com/keelson/keelson/libs/informer"
)

// Row is this controller's line of the table.
var Row = runtime.Row{
	Name:   "node-ipam-controller",
	Reads:  []string{"nodes"},
	Writes: []string{"patch nodes"},
	New:    build,
}

type controller struct {
	nodes        *informer.Cache[*corev1.Node]
	client       kubernetes.Interface
	cluster      []netip.Prefix
	reserved     []netip.Prefix
	mask4, mask6 int
	given        map[string][]string // by node; what this process gave and the cache may not show yet. Owned by the one worker.
}

func build(e *runtime.Env) error {
	s := e.Settings()
	c := &controller{nodes: runtime.Read[*corev1.Node](e), client: e.Client(), mask4: s.NodeMaskIPv4, mask6: s.NodeMaskIPv6, given: map[string][]string{}}
	if !s.AllocateCIDRs {
		return nil
	}
	var err error
	if c.cluster, err = parse("--cluster-cidr", s.ClusterCIDR); err != nil {
		return err
	}
	if c.reserved, err = parse("--service-cluster-ip-range", s.ServiceCIDR); err != nil {
		return err
	}
	q := e.Keyed("", 1, c.pass)
	runtime.On(q, c.nodes, runtime.Self[*corev1.Node])
	return nil
}

func parse(flag string, list []string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, s := range list {
		p, err := netip.ParsePrefix(strings.TrimSpace(s))
		if err != nil {
			return nil, fmt.Errorf("%s %q: %w", flag, s, err)
		}
		out = append(out, p)
	}
	return out, nil
}

func (c *controller) pass(ctx context.Context, p *runtime.Pass) (runtime.Result, error) {
	node, ok := c.nodes.Get(p.Key)
	if !ok || len(of(node)) > 0 {
		delete(c.given, p.Key.Name)
		return runtime.Result{}, nil
	}
	if node.DeletionTimestamp != nil {
		return runtime.Result{}, nil
	}
	ranges, err := Ranges(c.cluster, c.mask4, c.mask6, c.view(), c.reserved)
	if errors.Is(err, ErrFull) {
		p.Event(node, corev1.EventTypeNormal, "CIDRNotAvailable", "Node %s status is now: CIDRNotAvailable", node.Name)
		return runtime.Result{Again: p.Now.Add(time.Minute)}, runtime.Permanent(err)
	}
	if err != nil {
		return runtime.Result{}, runtime.Permanent(err)
	}
	p.Note("give node %s %v", node.Name, ranges)
	_, err = runtime.Patch(ctx, p, c.client.CoreV1().Nodes(), node.Name, map[string]any{
		"metadata": map[string]any{"uid": node.UID},
		"spec":     map[string]any{"podCIDR": ranges[0], "podCIDRs": ranges},
	})
	if apierrors.IsNotFound(err) {
		return runtime.Result{}, nil
	}
	if err == nil {
		c.given[node.Name] = ranges
	}
	return runtime.Result{}, err
}

// view is every node with the ranges that it has, or has just been given.
func (c *controller) view() []*corev1.Node {
	nodes := c.nodes.List()
	out := make([]*corev1.Node, 0, len(nodes)+len(c.given))
	for _, n := range nodes {
		if len(of(n)) > 0 {
			out = append(out, n)
		}
	}
	for _, ranges := range c.given {
		out = append(out, &corev1.Node{Spec: corev1.NodeSpec{PodCIDRs: ranges}})
	}
	return out
}
