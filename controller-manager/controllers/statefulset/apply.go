package statefulset

import (
	"context"
	"errors"
	"fmt"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"github.com/keelson/keelson/controller-manager/podset"
	"github.com/keelson/keelson/controller-manager/revisions"
	"github.com/keelson/keelson/controller-manager/runtime"
	"github.com/keelson/keelson/libs/informer"
)

// Row is this controller's line of the table.
var Row = runtime.Row{
	Name:   "statefulset-controller",
	Reads:  []string{"statefulsets.apps", "controllerrevisions.apps", "pods", "persistentvolumeclaims"},
	Writes: []string{"statefulsets.apps/status", "controllerrevisions.apps", "pods", "persistentvolumeclaims"},
	New:    build,
	Plan:   plan,
}

var gvk = appsv1.SchemeGroupVersion.WithKind("StatefulSet")

type controller struct {
	env       *runtime.Env
	sets      *informer.Cache[*appsv1.StatefulSet]
	revisions *informer.Cache[*appsv1.ControllerRevision]
	pods      *informer.Cache[*corev1.Pod]
	claims    *informer.Cache[*corev1.PersistentVolumeClaim]
	client    kubernetes.Interface
}

func build(e *runtime.Env) error {
	c := &controller{
		env: e, sets: runtime.Read[*appsv1.StatefulSet](e), revisions: runtime.Read[*appsv1.ControllerRevision](e),
		pods: runtime.Read[*corev1.Pod](e), claims: runtime.Read[*corev1.PersistentVolumeClaim](e), client: e.Client(),
	}
	selector := func(s *appsv1.StatefulSet) labels.Selector { return runtime.Selector(s.Spec.Selector) }
	q := e.Keyed("", 8, c.pass)
	runtime.On(q, c.sets, runtime.Self[*appsv1.StatefulSet])
	runtime.On(q, c.pods, runtime.Claimants[*corev1.Pod](c.sets, gvk.Kind, selector))
	runtime.On(q, c.revisions, runtime.Claimants[*appsv1.ControllerRevision](c.sets, gvk.Kind, selector))
	runtime.On(q, c.claims, c.setOfClaim)
	return nil
}

// setOfClaim wakes the set whose pod waits for a claim to go or to come. Claim
// names end in the pod's name: "data-web-0".
func (c *controller) setOfClaim(ev informer.Event[*corev1.PersistentVolumeClaim]) []types.NamespacedName {
	if ev.Kind != informer.Deleted {
		return nil
	}
	rest, n := ordinal(ev.Old.Name)
	if n < 0 {
		return nil
	}
	var keys []types.NamespacedName
	for i := range rest {
		if rest[i] == '-' {
			k := types.NamespacedName{Namespace: ev.Old.Namespace, Name: rest[i+1:]}
			if _, ok := c.sets.Get(k); ok {
				keys = append(keys, k)
			}
		}
	}
	return keys
}

func (c *controller) pass(ctx context.Context, p *runtime.Pass) (runtime.Result, error) {
	set, ok := c.sets.Get(p.Key)
	if !ok {
		return runtime.Result{}, nil
	}
	selector, err := metav1.LabelSelectorAsSelector(set.Spec.Selector)
	if err != nil {
		return runtime.Result{}, runtime.Permanent(fmt.Errorf("selector: %w", err))
	}
	fresh := func(ctx context.Context) (metav1.Object, error) {
		return c.client.AppsV1().StatefulSets(set.Namespace).Get(ctx, set.Name, metav1.GetOptions{})
	}
	candidates := append(c.pods.By(runtime.ByController, string(set.UID)), mine(set, c.pods.By(runtime.Orphans, set.Namespace))...)
	owned := podset.Claim(set, selector, candidates)
	adopted, err := runtime.Own(ctx, p, c.client.CoreV1().Pods(set.Namespace), set, gvk, owned.Adopt, owned.Release, fresh)
	if err != nil {
		return runtime.Result{}, err
	}
	pods := mine(set, append(owned.Mine, adopted...))

	history, update, collisions, err := c.env.History(ctx, p, c.revisions, set, gvk, selector, &set.Spec.Template, set.Status.CollisionCount, "", fresh)
	if err != nil {
		return runtime.Result{}, err
	}
	seen := Seen{Pods: pods, Update: Revision{Name: update.Name, Template: &set.Spec.Template}, Claim: c.claim(set.Namespace)}
	if collisions != nil {
		seen.Collisions = *collisions
	}
	seen.Current = seen.Update
	for _, r := range history {
		if r.Name == set.Status.CurrentRevision && r.Name != update.Name {
			t, err := revisions.Template(r)
			if err != nil {
				return runtime.Result{}, runtime.Permanent(err)
			}
			seen.Current = Revision{Name: r.Name, Template: t}
		}
	}
	decision := Decide(set, seen, p.Now)
	fault := c.apply(ctx, p, set, decision)
	if err := c.write(ctx, p, set, decision.Status); err != nil {
		return runtime.Result{}, errors.Join(fault, err)
	}
	if fault == nil {
		fault = c.forget(ctx, p, set, history, seen)
	}
	return runtime.Result{Again: decision.Again, Gather: runtime.GatherFor(len(pods) / 4)}, fault
}

func (c *controller) claim(ns string) func(string) *corev1.PersistentVolumeClaim {
	return func(name string) *corev1.PersistentVolumeClaim {
		pvc, ok := c.claims.Get(types.NamespacedName{Namespace: ns, Name: name})
		if !ok {
			return nil
		}
		return pvc
	}
}

// apply makes the steps: in order one by one, otherwise all steps of a pod one
// after the other and the pods together.
func (c *controller) apply(ctx context.Context, p *runtime.Pass, set *appsv1.StatefulSet, d Decision) error {
	if d.InOrder {
		for _, s := range d.Steps {
			if err := c.step(ctx, p, set, s); err != nil {
				return err
			}
		}
		return nil
	}
	var claims, rest []Step
	for _, s := range d.Steps {
		if s.Verb == CreateClaim {
			claims = append(claims, s)
		} else {
			rest = append(rest, s)
		}
	}
	for _, batch := range [][]Step{claims, rest} {
		if _, err := runtime.Together(ctx, len(batch), func(ctx context.Context, i int) error { return c.step(ctx, p, set, batch[i]) }); err != nil {
			return err
		}
	}
	return nil
}

func (c *controller) step(ctx context.Context, p *runtime.Pass, set *appsv1.StatefulSet, s Step) error {
	pods, pvcs := c.client.CoreV1().Pods(set.Namespace), c.client.CoreV1().PersistentVolumeClaims(set.Namespace)
	p.Note("%s", s)
	report := func(verb, reason string, err error) error {
		if err == nil {
			p.Normal(set, "Successful"+reason, "%s Pod %s in StatefulSet %s successful", verb, s.Pod.Name, set.Name)
			return nil
		}
		p.Warning(set, "Failed"+reason, "%s Pod %s in StatefulSet %s failed error: %s", verb, s.Pod.Name, set.Name, err)
		return fmt.Errorf("%s: %w", s, err)
	}
	switch s.Verb {
	case Create:
		_, err := runtime.Create(ctx, p, pods, s.Pod)
		if runtime.NamespaceEnding(err) {
			return nil
		}
		if apierrors.IsAlreadyExists(err) {
			return fmt.Errorf("%s: %w", s, err)
		}
		return report("Create", "Create", err)
	case Delete:
		return report("Delete", "Delete", runtime.Delete(ctx, p, pods, s.Pod))
	case Identify:
		// The pod as the cache has it is not whole.
		body := map[string]any{"metadata": map[string]any{"uid": s.Pod.UID, "resourceVersion": s.Pod.ResourceVersion, "labels": s.Pod.Labels}}
		if s.Volumes != nil {
			body["spec"] = map[string]any{"volumes": s.Volumes}
		}
		_, err := runtime.Patch(ctx, p, pods, s.Pod.Name, body)
		return report("Update", "Update", err)
	case CreateClaim:
		_, n := ordinal(s.Claim.Name)
		pod := podName(set, n)
		_, err := runtime.Create(ctx, p, pvcs, s.Claim)
		switch {
		case err == nil:
			p.Normal(set, "SuccessfulCreate", "Create Claim %s Pod %s in StatefulSet %s success", s.Claim.Name, pod, set.Name)
		case apierrors.IsAlreadyExists(err):
			return nil
		default:
			p.Warning(set, "FailedCreate", "Create Claim %s for Pod %s in StatefulSet %s failed error: %s", s.Claim.Name, pod, set.Name, err)
			return fmt.Errorf("%s: %w", s, err)
		}
	case OwnClaim:
		if _, err := runtime.Update(ctx, p, pvcs, s.Claim); err != nil {
			return fmt.Errorf("%s: %w", s, err)
		}
	case Conflict:
		p.Warning(set, "ConflictingController", "PersistentVolumeClaim %s has a conflicting OwnerReference that acts as a manging controller, the retention policy is ignored for this claim", s.Claim.Name)
	}
	return nil
}

func (c *controller) write(ctx context.Context, p *runtime.Pass, set *appsv1.StatefulSet, status appsv1.StatefulSetStatus) error {
	if equality.Semantic.DeepEqual(status, set.Status) {
		return nil
	}
	set = set.DeepCopy()
	set.Status = status
	p.Note("status: replicas %d ready %d updated %d", status.Replicas, status.ReadyReplicas, status.UpdatedReplicas)
	_, err := runtime.UpdateStatus(ctx, p, c.client.AppsV1().StatefulSets(set.Namespace), set)
	return err
}

// forget deletes revisions beyond the history limit.
func (c *controller) forget(ctx context.Context, p *runtime.Pass, set *appsv1.StatefulSet, history []*appsv1.ControllerRevision, seen Seen) error {
	live := map[string]bool{seen.Current.Name: true, seen.Update.Name: true}
	for _, pod := range seen.Pods {
		live[podRevision(pod)] = true
	}
	for _, r := range revisions.Surplus(history, set.Spec.RevisionHistoryLimit, func(r *appsv1.ControllerRevision) bool { return live[r.Name] }) {
		p.Note("delete revision %s", r.Name)
		if err := runtime.Delete(ctx, p, c.client.AppsV1().ControllerRevisions(set.Namespace), r); err != nil {
			return err
		}
	}
	return nil
}

func plan(in runtime.Objects, now time.Time) ([]string, error) {
	var lines []string
	for _, set := range runtime.Pick[*appsv1.StatefulSet](in) {
		history := runtime.OwnedBy[*appsv1.ControllerRevision](in, set.UID)
		revisions.Sort(history)
		planned := revisions.Plan(set, gvk, &set.Spec.Template, history, set.Status.CollisionCount)
		seen := Seen{Pods: mine(set, runtime.OwnedBy[*corev1.Pod](in, set.UID)), Claim: func(name string) *corev1.PersistentVolumeClaim {
			for _, pvc := range runtime.Pick[*corev1.PersistentVolumeClaim](in) {
				if pvc.Namespace == set.Namespace && pvc.Name == name {
					return pvc
				}
			}
			return nil
		}}
		for _, r := range []*appsv1.ControllerRevision{planned.Have, planned.Raise, planned.Create} {
			if r != nil {
				seen.Update = Revision{Name: r.Name, Template: &set.Spec.Template}
			}
		}
		seen.Current = seen.Update
		for _, s := range Decide(set, seen, now).Steps {
			lines = append(lines, fmt.Sprintf("%s: %s", runtime.KeyOf(set), s))
		}
	}
	return lines, nil
}
