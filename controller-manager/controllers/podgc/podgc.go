// Package podgc deletes pods that nobody else will: pods of nodes that are gone,
// ended pods above the threshold, pods that were deleted before they had a node,
// and pods that still terminate on a node taken out of service.
//
// [Decide] is pure. Source: Kubernetes documentation, "Garbage collection of Pods";
// KEP-2268 (non-graceful node shutdown).
package podgc

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

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
	Name:   "pod-garbage-collector-controller",
	Reads:  []string{"pods", "nodes"},
	Writes: []string{"delete pods", "pods/status"},
	New:    build,
}

const (
	period = 20 * time.Second
	// quarantine is how long a node must be missing before its pods are orphans.
	quarantine = 40 * time.Second
)

// Removal is one pod to delete and why.
type Removal struct {
	Pod    *corev1.Pod
	Reason string
	Orphan bool // its node is gone, which its status will say
}

func (r Removal) String() string {
	return fmt.Sprintf("delete pod %s/%s: %s", r.Pod.Namespace, r.Pod.Name, r.Reason)
}

// Decide lists what to delete. missing tells since when a node has been missing;
// threshold is the number of ended pods that may stay, 0 for all.
func Decide(pods []*corev1.Pod, node func(string) *corev1.Node, missing map[string]time.Time, threshold int, now time.Time) []Removal {
	var out []Removal
	var ended []*corev1.Pod
	for _, p := range pods {
		if terminated(p) {
			ended = append(ended, p)
		}
		if p.Spec.NodeName == "" {
			if p.DeletionTimestamp != nil {
				out = append(out, Removal{Pod: p, Reason: "it was deleted before it was scheduled"})
			}
			continue
		}
		n := node(p.Spec.NodeName)
		if n == nil {
			if since, ok := missing[p.Spec.NodeName]; ok && now.Sub(since) >= quarantine {
				out = append(out, Removal{Pod: p, Reason: "its node is gone", Orphan: true})
			}
			continue
		}
		if p.DeletionTimestamp != nil && outOfService(n) {
			out = append(out, Removal{Pod: p, Reason: "its node is out of service"})
		}
	}
	if over := len(ended) - threshold; threshold > 0 && over > 0 {
		slices.SortFunc(ended, func(a, b *corev1.Pod) int {
			if c := a.CreationTimestamp.Compare(b.CreationTimestamp.Time); c != 0 {
				return c
			}
			return slices.Compare([]string{a.Namespace, a.Name}, []string{b.Namespace, b.Name})
		})
		for _, p := range ended[:over] {
			out = append(out, Removal{Pod: p, Reason: "too many pods have ended"})
		}
	}
	return out
}

func terminated(p *corev1.Pod) bool {
	return p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
}

func outOfService(n *corev1.Node) bool {
	ready := slices.ContainsFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool {
		return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
	})
	return !ready && slices.ContainsFunc(n.Spec.Taints, func(t corev1.Taint) bool { return t.Key == corev1.TaintNodeOutOfService })
}

type controller struct {
	pods      *informer.Cache[*corev1.Pod]
	nodes     *informer.Cache[*corev1.Node]
	client    kubernetes.Interface
	threshold int
	missing   map[string]time.Time // owned by the one worker
}

func build(e *runtime.Env) error {
	c := &controller{
		pods: runtime.Read[*corev1.Pod](e), nodes: runtime.Read[*corev1.Node](e), client: e.Client(),
		threshold: e.Settings().PodGCThreshold, missing: map[string]time.Time{},
	}
	q := e.Keyed("", 1, c.pass)
	all := []types.NamespacedName{{Name: "all"}}
	runtime.On(q, c.nodes, func(ev informer.Event[*corev1.Node]) []types.NamespacedName {
		if ev.Kind == informer.Updated && outOfService(ev.Old) == outOfService(ev.New) {
			return nil
		}
		return all
	})
	runtime.On(q, c.pods, func(ev informer.Event[*corev1.Pod]) []types.NamespacedName {
		if p := ev.New; ev.Kind != informer.Deleted && p.DeletionTimestamp != nil && p.Spec.NodeName == "" {
			return all
		}
		return nil
	})
	e.Go("start", func(ctx context.Context) error { q.Add(all[0]); <-ctx.Done(); return nil })
	return nil
}

func (c *controller) pass(ctx context.Context, p *runtime.Pass) (runtime.Result, error) {
	pods := c.pods.List()
	again := runtime.Result{Again: p.Now.Add(period)}
	if err := c.quarantined(ctx, pods, p.Now); err != nil {
		return again, err
	}
	var errs []error
	for _, r := range Decide(pods, c.node, c.missing, c.threshold, p.Now) {
		p.Note("%s", r)
		errs = append(errs, c.remove(ctx, p, r))
	}
	return again, errors.Join(errs...)
}

func (c *controller) node(name string) *corev1.Node {
	n, _ := c.nodes.Get(types.NamespacedName{Name: name})
	return n
}

// quarantined keeps the list of missing nodes; a node is asked for live before its pods are lost.
func (c *controller) quarantined(ctx context.Context, pods []*corev1.Pod, now time.Time) error {
	named := map[string]bool{}
	for _, p := range pods {
		if n := p.Spec.NodeName; n != "" && !named[n] {
			named[n] = true
			if c.node(n) != nil {
				continue
			}
			since, ok := c.missing[n]
			if !ok {
				c.missing[n] = now
				continue
			}
			if now.Sub(since) >= quarantine {
				if _, err := c.client.CoreV1().Nodes().Get(ctx, n, metav1.GetOptions{}); err == nil {
					c.missing[n] = now
				} else if !apierrors.IsNotFound(err) {
					return fmt.Errorf("look for node %s: %w", n, err)
				}
			}
		}
	}
	for n := range c.missing {
		if !named[n] || c.node(n) != nil {
			delete(c.missing, n)
		}
	}
	return nil
}

func (c *controller) remove(ctx context.Context, p *runtime.Pass, r Removal) error {
	api := c.client.CoreV1().Pods(r.Pod.Namespace)
	// No kubelet will say how it ended: those who wait for its end (jobs) have to hear it here.
	if !terminated(r.Pod) {
		pod := r.Pod.DeepCopy()
		pod.Status.Phase = corev1.PodFailed
		if r.Orphan {
			setCondition(pod, corev1.PodCondition{
				Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, Reason: "DeletionByPodGC",
				Message: "PodGC: node no longer exists", LastTransitionTime: metav1.NewTime(p.Now), ObservedGeneration: pod.Generation,
			})
		}
		if _, err := runtime.UpdateStatus(ctx, p, api, pod); err != nil {
			if apierrors.IsNotFound(err) {
				return nil
			}
			return err
		}
	}
	return runtime.Delete(ctx, p, api, r.Pod, func(o *metav1.DeleteOptions) {
		zero := int64(0)
		o.GracePeriodSeconds = &zero
	})
}

func setCondition(pod *corev1.Pod, c corev1.PodCondition) {
	for i := range pod.Status.Conditions {
		if pod.Status.Conditions[i].Type == c.Type {
			pod.Status.Conditions[i] = c
			return
		}
	}
	pod.Status.Conditions = append(pod.Status.Conditions, c)
}
