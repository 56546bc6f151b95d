// Package tainteviction deletes pods that do not tolerate a NoExecute taint of their
// node: at once, or when the time that they tolerate it for is over.
//
// [Decide] is pure. Source: Kubernetes documentation, "Taints and Tolerations".
package tainteviction

import (
	"context"
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/klog/v2"

	"github.com/keelson/keelson/controller-manager/runtime"
	"github.com/keelson/keelson/libs/informer"
)

// Row is this controller's line of the table.
var Row = runtime.Row{
	Name:   "taint-eviction-controller",
	Reads:  []string{"nodes", "pods"},
	Writes: []string{"delete pods", "pods/status"},
	New:    build,
}

// Decide says when a pod has to leave; the zero time means never. since is when a
// taint without a time of its own was first seen.
func Decide(pod *corev1.Pod, taints []corev1.Taint, since func(*corev1.Taint) time.Time) time.Time {
	var due time.Time
	sooner := func(t time.Time) {
		if due.IsZero() || t.Before(due) {
			due = t
		}
	}
	for i := range taints {
		t := &taints[i]
		if t.Effect != corev1.TaintEffectNoExecute {
			continue
		}
		var at time.Time
		if t.TimeAdded != nil {
			at = t.TimeAdded.Time
		} else {
			at = since(t)
		}
		tolerated, limited := false, false
		var shortest time.Duration
		for j := range pod.Spec.Tolerations {
			tol := &pod.Spec.Tolerations[j]
			if !tol.ToleratesTaint(klog.Background(), t, false) {
				continue
			}
			tolerated = true
			if tol.TolerationSeconds == nil {
				continue
			}
			// Of several tolerations of one taint the shortest counts.
			if d := time.Duration(max(*tol.TolerationSeconds, 0)) * time.Second; !limited || d < shortest {
				limited, shortest = true, d
			}
		}
		switch {
		case !tolerated:
			sooner(at)
		case limited:
			sooner(at.Add(shortest))
		}
	}
	return due
}

type controller struct {
	nodes  *informer.Cache[*corev1.Node]
	pods   *informer.Cache[*corev1.Pod]
	client kubernetes.Interface

	mu   sync.Mutex
	seen map[string]map[string]time.Time // node, taint: when a taint that bears no time was first seen; guarded by mu
}

// note keeps c.seen for a node as its taints now are.
func (c *controller) note(node string, taints []corev1.Taint, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	was := c.seen[node]
	delete(c.seen, node)
	for i := range taints {
		if taints[i].TimeAdded != nil {
			continue
		}
		if c.seen[node] == nil {
			c.seen[node] = map[string]time.Time{}
		}
		k := taints[i].ToString()
		c.seen[node][k] = now
		if at, ok := was[k]; ok {
			c.seen[node][k] = at
		}
	}
}

func build(e *runtime.Env) error {
	c := &controller{nodes: runtime.Read[*corev1.Node](e), pods: runtime.Read[*corev1.Pod](e), client: e.Client(), seen: map[string]map[string]time.Time{}}
	q := e.Keyed("", 8, c.pass)
	runtime.On(q, c.pods, func(ev informer.Event[*corev1.Pod]) []types.NamespacedName {
		if ev.Kind == informer.Deleted || ev.New.Spec.NodeName == "" {
			return nil
		}
		if ev.Kind == informer.Updated && ev.Old.Spec.NodeName == ev.New.Spec.NodeName && len(ev.Old.Spec.Tolerations) == len(ev.New.Spec.Tolerations) {
			return nil
		}
		if len(c.taints(ev.New.Spec.NodeName)) == 0 {
			return nil
		}
		return runtime.Self(ev)
	})
	runtime.On(q, c.nodes, func(ev informer.Event[*corev1.Node]) []types.NamespacedName {
		n := ev.Last()
		if ev.Kind == informer.Deleted {
			c.note(n.Name, nil, time.Time{})
		} else {
			c.note(n.Name, noExecute(n.Spec.Taints), e.Now())
		}
		if ev.Kind == informer.Deleted || ev.Kind == informer.Updated && same(noExecute(ev.Old.Spec.Taints), noExecute(ev.New.Spec.Taints)) {
			return nil
		}
		if len(noExecute(n.Spec.Taints)) == 0 {
			return nil // passes that were due find nothing to do
		}
		var keys []types.NamespacedName
		for _, p := range c.pods.By(runtime.ByNode, n.Name) {
			keys = append(keys, runtime.KeyOf(p))
		}
		return keys
	})
	return nil
}

func same(a, b []corev1.Taint) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if !a[i].MatchTaint(&b[i]) || a[i].Value != b[i].Value {
			return false
		}
	}
	return true
}

func noExecute(taints []corev1.Taint) []corev1.Taint {
	var out []corev1.Taint
	for _, t := range taints {
		if t.Effect == corev1.TaintEffectNoExecute {
			out = append(out, t)
		}
	}
	return out
}

func (c *controller) taints(node string) []corev1.Taint {
	n, ok := c.nodes.Get(types.NamespacedName{Name: node})
	if !ok {
		return nil
	}
	return noExecute(n.Spec.Taints)
}

func (c *controller) pass(ctx context.Context, p *runtime.Pass) (runtime.Result, error) {
	pod, ok := c.pods.Get(p.Key)
	if !ok || pod.DeletionTimestamp != nil || pod.Spec.NodeName == "" {
		return runtime.Result{}, nil
	}
	due := Decide(pod, c.taints(pod.Spec.NodeName), func(t *corev1.Taint) time.Time {
		c.mu.Lock()
		defer c.mu.Unlock()
		if at, ok := c.seen[pod.Spec.NodeName][t.ToString()]; ok {
			return at
		}
		return p.Now // the event of the taint is on its way, and wakes the pod again
	})
	if due.IsZero() {
		return runtime.Result{}, nil
	}
	if p.Now.Before(due) {
		return runtime.Result{Again: due}, nil
	}
	p.Note("delete: it does not tolerate the taints of %s", pod.Spec.NodeName)
	p.Normal(pod, "TaintManagerEviction", "Marking for deletion Pod %s/%s", pod.Namespace, pod.Name)
	api := c.client.CoreV1().Pods(pod.Namespace)
	marked := pod.DeepCopy()
	mark(marked, corev1.PodCondition{
		Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, Reason: "DeletionByTaintManager",
		Message: "Taint manager: deleting due to NoExecute taint", LastTransitionTime: metav1.NewTime(p.Now), ObservedGeneration: pod.Generation,
	})
	if _, err := runtime.UpdateStatus(ctx, p, api, marked); err != nil {
		if apierrors.IsNotFound(err) {
			return runtime.Result{}, nil
		}
		return runtime.Result{}, fmt.Errorf("mark pod for deletion: %w", err)
	}
	return runtime.Result{}, runtime.Delete(ctx, p, api, pod)
}

func mark(pod *corev1.Pod, c corev1.PodCondition) {
	for i := range pod.Status.Conditions {
		if pod.Status.Conditions[i].Type == c.Type {
			pod.Status.Conditions[i] = c
			return
		}
	}
	pod.Status.Conditions = append(pod.Status.Conditions, c)
}
