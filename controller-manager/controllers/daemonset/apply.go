package daemonset

import (
	"context"
	"errors"
	"fmt"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/util/flowcontrol"

	"github.com/keelson/keelson/controller-manager/podset"
	"github.com/keelson/keelson/controller-manager/revisions"
	"github.com/keelson/keelson/controller-manager/runtime"
	"github.com/keelson/keelson/libs/informer"
)

// Row is this controller's line of the table.
var Row = runtime.Row{
	Name:   "daemonset-controller",
	Reads:  []string{"daemonsets.apps", "controllerrevisions.apps", "pods", "nodes"},
	Writes: []string{"daemonsets.apps/status", "controllerrevisions.apps", "pods"},
	New:    build,
	Plan:   plan,
}

var gvk = appsv1.SchemeGroupVersion.WithKind("DaemonSet")

type controller struct {
	env       *runtime.Env
	sets      *informer.Cache[*appsv1.DaemonSet]
	revisions *informer.Cache[*appsv1.ControllerRevision]
	pods      *informer.Cache[*corev1.Pod]
	nodes     *informer.Cache[*corev1.Node]
	client    kubernetes.Interface
	failures  *flowcontrol.Backoff // by set UID and node; forgets by itself
}

func build(e *runtime.Env) error {
	c := &controller{
		env: e, sets: runtime.Read[*appsv1.DaemonSet](e), revisions: runtime.Read[*appsv1.ControllerRevision](e),
		pods: runtime.Read[*corev1.Pod](e), nodes: runtime.Read[*corev1.Node](e), client: e.Client(),
		failures: flowcontrol.NewBackOff(time.Second, 15*time.Minute),
	}
	selector := func(s *appsv1.DaemonSet) labels.Selector { return runtime.Selector(s.Spec.Selector) }
	q := e.Keyed("", 4, c.pass)
	runtime.On(q, c.sets, runtime.Self[*appsv1.DaemonSet])
	runtime.On(q, c.pods, runtime.Claimants[*corev1.Pod](c.sets, gvk.Kind, selector))
	runtime.On(q, c.revisions, runtime.Claimants[*appsv1.ControllerRevision](c.sets, gvk.Kind, selector))
	runtime.On(q, c.nodes, c.allSets)
	e.Go("forget failures", func(ctx context.Context) error {
		tick := time.NewTicker(time.Minute)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-tick.C:
				c.failures.GC()
			}
		}
	})
	return nil
}

// allSets wakes every set when a node changes in what decides about fitting.
func (c *controller) allSets(ev informer.Event[*corev1.Node]) []types.NamespacedName {
	if ev.Kind == informer.Updated && labels.Equals(ev.Old.Labels, ev.New.Labels) && equality.Semantic.DeepEqual(ev.Old.Spec.Taints, ev.New.Spec.Taints) {
		return nil
	}
	var keys []types.NamespacedName
	for _, s := range c.sets.List() {
		keys = append(keys, runtime.KeyOf(s))
	}
	return keys
}

func (c *controller) pass(ctx context.Context, p *runtime.Pass) (runtime.Result, error) {
	set, ok := c.sets.Get(p.Key)
	if !ok || set.DeletionTimestamp != nil {
		return runtime.Result{}, nil
	}
	selector, err := metav1.LabelSelectorAsSelector(set.Spec.Selector)
	if err != nil {
		return runtime.Result{}, runtime.Permanent(fmt.Errorf("selector: %w", err))
	}
	if selector.Empty() {
		p.Warning(set, "SelectingAll", "This daemon set is selecting all pods. A non-empty selector is required.")
		return runtime.Result{}, nil
	}
	fresh := func(ctx context.Context) (metav1.Object, error) {
		return c.client.AppsV1().DaemonSets(set.Namespace).Get(ctx, set.Name, metav1.GetOptions{})
	}
	history, present, collisions, err := c.env.History(ctx, p, c.revisions, set, gvk, selector, &set.Spec.Template, set.Status.CollisionCount,
		appsv1.DefaultDaemonSetUniqueLabelKey, fresh)
	if err != nil {
		return runtime.Result{}, err
	}
	candidates := append(c.pods.By(runtime.ByController, string(set.UID)), c.pods.By(runtime.Orphans, set.Namespace)...)
	claims := podset.Claim(set, selector, candidates)
	adopted, err := runtime.Own(ctx, p, c.client.CoreV1().Pods(set.Namespace), set, gvk, claims.Adopt, claims.Release, fresh)
	if err != nil {
		return runtime.Result{}, err
	}
	pods := append(claims.Mine, adopted...)
	hash := present.Labels[appsv1.DefaultDaemonSetUniqueLabelKey]
	decision := Decide(set, Seen{Nodes: c.nodes.List(), Pods: pods, Hash: hash, Wait: func(node string) time.Duration {
		key := backoffKey(set, node)
		if !c.failures.IsInBackOffSinceUpdate(key, p.Now) {
			return 0
		}
		return c.failures.Get(key)
	}}, p.Now)
	decision.Status.CollisionCount = collisions

	fault := c.apply(ctx, p, set, hash, decision, fresh)
	if !equality.Semantic.DeepEqual(decision.Status, set.Status) {
		s := set.DeepCopy()
		s.Status = decision.Status
		p.Note("status: desired %d ready %d updated %d", s.Status.DesiredNumberScheduled, s.Status.NumberReady, s.Status.UpdatedNumberScheduled)
		if _, err := runtime.UpdateStatus(ctx, p, c.client.AppsV1().DaemonSets(set.Namespace), s); err != nil {
			return runtime.Result{}, errors.Join(fault, err)
		}
	}
	if fault == nil {
		fault = c.forget(ctx, p, set, history, present, pods)
	}
	return runtime.Result{Again: decision.Again, Gather: runtime.GatherFor(len(pods))}, fault
}

func backoffKey(set *appsv1.DaemonSet, node string) string {
	return fmt.Sprintf("%s/%d/%s", set.UID, set.Status.ObservedGeneration, node)
}

func (c *controller) apply(ctx context.Context, p *runtime.Pass, set *appsv1.DaemonSet, hash string, d Decision, fresh runtime.Fresh) error {
	for _, pod := range d.Failed {
		c.failures.Next(backoffKey(set, target(pod)), p.Now)
		p.Warning(set, "FailedDaemonPod", "Found failed daemon pod %s/%s on node %s, will try to kill it", pod.Namespace, pod.Name, target(pod))
	}
	for _, pod := range d.Ended {
		p.Normal(set, "SucceededDaemonPod", "Found succeeded daemon pod %s/%s on node %s, will try to delete it", pod.Namespace, pod.Name, target(pod))
	}
	_, err := runtime.CreatePods(ctx, p, set, fresh, len(d.Create), func(i int) *corev1.Pod { return newPod(set, hash, d.Create[i]) })
	return errors.Join(err, runtime.AllTogether(ctx, len(d.Delete), func(ctx context.Context, i int) error {
		return runtime.DeletePod(ctx, p, set, d.Delete[i])
	}))
}

// forget deletes revisions beyond the history limit that no pod is of.
func (c *controller) forget(ctx context.Context, p *runtime.Pass, set *appsv1.DaemonSet, history []*appsv1.ControllerRevision, present *appsv1.ControllerRevision, pods []*corev1.Pod) error {
	live := map[string]bool{}
	for _, pod := range pods {
		live[pod.Labels[appsv1.DefaultDaemonSetUniqueLabelKey]] = true
	}
	for _, r := range revisions.Surplus(history, set.Spec.RevisionHistoryLimit, func(r *appsv1.ControllerRevision) bool {
		return r.UID == present.UID || live[r.Labels[appsv1.DefaultDaemonSetUniqueLabelKey]]
	}) {
		p.Note("delete revision %s", r.Name)
		if err := runtime.Delete(ctx, p, c.client.AppsV1().ControllerRevisions(set.Namespace), r); err != nil {
			return err
		}
	}
	return nil
}

func plan(in runtime.Objects, now time.Time) ([]string, error) {
	var lines []string
	for _, set := range runtime.Pick[*appsv1.DaemonSet](in) {
		history := runtime.OwnedBy[*appsv1.ControllerRevision](in, set.UID)
		revisions.Sort(history)
		planned := revisions.Plan(set, gvk, &set.Spec.Template, history, set.Status.CollisionCount)
		hash := ""
		for _, r := range []*appsv1.ControllerRevision{planned.Have, planned.Raise, planned.Create} {
			if r != nil {
				hash = r.Labels[revisions.HashLabel]
			}
		}
		seen := Seen{Nodes: runtime.Pick[*corev1.Node](in), Pods: runtime.OwnedBy[*corev1.Pod](in, set.UID), Hash: hash, Wait: func(string) time.Duration { return 0 }}
		for _, l := range Decide(set, seen, now).Lines() {
			lines = append(lines, runtime.KeyOf(set).String()+": "+l)
		}
	}
	return lines, nil
}
