package nodelifecycle

import (
	"context"
	"sync"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"github.com/keelson/keelson/controller-manager/runtime"
	"github.com/keelson/keelson/libs/informer"
)

// Row is this controller's line of the table.
var Row = runtime.Row{
	Name:   "node-lifecycle-controller",
	Reads:  []string{"nodes", "pods", "leases.coordination.k8s.io"},
	Writes: []string{"update nodes", "nodes/status", "pods/status"},
	New:    build,
}

type controller struct {
	nodes   *informer.Cache[*corev1.Node]
	pods    *informer.Cache[*corev1.Pod]
	leases  *informer.Cache[*coordinationv1.Lease]
	client  kubernetes.Interface
	grace   time.Duration
	startup time.Duration // the grace of a node that has said nothing yet
	rate    float64

	mu    sync.Mutex // guards signs and next
	signs map[string]Sign
	next  map[string]time.Time // by zone: when another node may be evicted
}

func build(e *runtime.Env) error {
	s := e.Settings()
	c := &controller{
		nodes: runtime.Read[*corev1.Node](e), pods: runtime.Read[*corev1.Pod](e), leases: runtime.Read[*coordinationv1.Lease](e),
		client: e.Client(), grace: s.NodeGrace.Duration, startup: s.NodeStartupGrace.Duration, rate: s.NodeEvictionRate, signs: map[string]Sign{}, next: map[string]time.Time{},
	}
	q := e.Keyed("", 8, c.pass)
	runtime.On(q, c.nodes, runtime.Self[*corev1.Node])
	// A renewed lease only moves the time at which silence begins: the pass that is due then looks at it.
	// It matters at once where the node is thought to be silent.
	runtime.On(q, c.leases, func(ev informer.Event[*coordinationv1.Lease]) []types.NamespacedName {
		l := ev.Last()
		if l.Namespace != corev1.NamespaceNodeLease || ev.Kind == informer.Deleted {
			return nil
		}
		c.look(l.Name, l.Spec.RenewTime, e.Now())
		return nil
	})
	e.Debug(func() any {
		c.mu.Lock()
		defer c.mu.Unlock()
		out := map[string]string{}
		for n, s := range c.signs {
			out[n] = s.Seen.Format(time.RFC3339)
		}
		return out
	})
	return nil
}

// look notes a sign of life and returns the newest.
func (c *controller) look(name string, renew *metav1.MicroTime, now time.Time) Sign {
	node, ok := c.nodes.Get(types.NamespacedName{Name: name})
	c.mu.Lock()
	defer c.mu.Unlock()
	if !ok {
		delete(c.signs, name)
		return Sign{Seen: now}
	}
	s := c.signs[name].Next(node, renew, now)
	c.signs[name] = s
	return s
}

func (c *controller) pass(ctx context.Context, p *runtime.Pass) (runtime.Result, error) {
	node, ok := c.nodes.Get(p.Key)
	if !ok {
		c.mu.Lock()
		delete(c.signs, p.Key.Name)
		c.mu.Unlock()
		return runtime.Result{}, nil
	}
	var renew *metav1.MicroTime
	if l, ok := c.leases.Get(types.NamespacedName{Namespace: corev1.NamespaceNodeLease, Name: node.Name}); ok {
		renew = l.Spec.RenewTime
	}
	grace := c.grace
	if condition(node, corev1.NodeReady) == nil {
		grace = c.startup
	}
	silent, until := c.look(node.Name, renew, p.Now).Silent(grace, p.Now)
	res := runtime.Result{Again: until}
	if silent {
		res.Again = p.Now.Add(c.grace)
		if conditions, changed := Unknown(node, metav1.NewTime(p.Now)); changed {
			p.Note("mark unknown: no sign for %s", grace)
			was := Ready(node)
			n := node.DeepCopy()
			n.Status.Conditions = conditions
			got, err := runtime.UpdateStatus(ctx, p, c.client.CoreV1().Nodes(), n)
			if err != nil {
				return res, ignoreGone(err)
			}
			if was {
				p.Normal(node, "NodeNotReady", "Node %s status is now: NodeNotReady", node.Name)
			}
			node = got
		}
	}
	if !Ready(node) {
		if err := c.markPods(ctx, p, node); err != nil {
			return res, err
		}
	}
	evict, at := c.mayEvict(node, p.Now)
	taints, changed, late := Taints(node, evict, metav1.NewTime(p.Now))
	if late && !at.IsZero() && at.Before(res.Again) {
		res.Again = at
	}
	if !changed {
		return res, nil
	}
	p.Note("taints: %v", taints)
	n := node.DeepCopy()
	n.Spec.Taints = taints
	_, err := runtime.Update(ctx, p, c.client.CoreV1().Nodes(), n)
	return res, ignoreGone(err)
}

func ignoreGone(err error) error {
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// mayEvict takes a turn for the node if it needs one: at most rate nodes a second in a zone.
func (c *controller) mayEvict(node *corev1.Node, now time.Time) (bool, time.Time) {
	if Ready(node) || tainted(node) {
		return true, time.Time{}
	}
	zone := node.Labels[corev1.LabelTopologyRegion] + "/" + node.Labels[corev1.LabelTopologyZone]
	ready, notReady := 0, 0
	for _, n := range c.nodes.List() {
		if n.Labels[corev1.LabelTopologyRegion]+"/"+n.Labels[corev1.LabelTopologyZone] != zone {
			continue
		}
		if Ready(n) {
			ready++
		} else {
			notReady++
		}
	}
	rate := Calm(ready, notReady, c.rate)
	if rate <= 0 {
		return false, now.Add(5 * time.Second)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if at := c.next[zone]; now.Before(at) {
		return false, at
	}
	c.next[zone] = now.Add(time.Duration(float64(time.Second) / rate))
	return true, time.Time{}
}

func tainted(n *corev1.Node) bool {
	for _, t := range n.Spec.Taints {
		if t.Effect == corev1.TaintEffectNoExecute && (t.Key == corev1.TaintNodeNotReady || t.Key == corev1.TaintNodeUnreachable) {
			return true
		}
	}
	return false
}

// markPods takes the node's pods out of their Services.
func (c *controller) markPods(ctx context.Context, p *runtime.Pass, node *corev1.Node) error {
	pods := c.pods.By(runtime.ByNode, node.Name)
	return runtime.AllTogether(ctx, len(pods), func(ctx context.Context, i int) error {
		conditions, changed := NotReadyPod(pods[i], metav1.NewTime(p.Now))
		if !changed {
			return nil
		}
		pod := pods[i].DeepCopy()
		pod.Status.Conditions = conditions
		_, err := runtime.UpdateStatus(ctx, p, c.client.CoreV1().Pods(pod.Namespace), pod)
		if apierrors.IsConflict(err) {
			err = nil // its event brings us back
		}
		if err == nil {
			p.Warning(pod, "NodeNotReady", "Node is not ready")
		}
		return ignoreGone(err)
	})
}
