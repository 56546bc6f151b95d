package deployment

import (
	"context"
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
	"github.com/keelson/keelson/controller-manager/runtime"
	"github.com/keelson/keelson/libs/informer"
)

// Row is this controller's line of the table.
var Row = runtime.Row{
	Name:   "deployment-controller",
	Reads:  []string{"deployments.apps", "replicasets.apps", "pods"},
	Writes: []string{"patch deployments.apps", "deployments.apps/status", "replicasets.apps"},
	New:    build,
	Plan:   plan,
}

var gvk = appsv1.SchemeGroupVersion.WithKind("Deployment")

type controller struct {
	deployments *informer.Cache[*appsv1.Deployment]
	sets        *informer.Cache[*appsv1.ReplicaSet]
	pods        *informer.Cache[*corev1.Pod]
	client      kubernetes.Interface
}

func build(e *runtime.Env) error {
	c := &controller{
		deployments: runtime.Read[*appsv1.Deployment](e), sets: runtime.Read[*appsv1.ReplicaSet](e), pods: runtime.Read[*corev1.Pod](e),
		client: e.Client(),
	}
	q := e.Keyed("", 8, c.pass)
	runtime.On(q, c.deployments, runtime.Self[*appsv1.Deployment])
	runtime.On(q, c.sets, runtime.Claimants[*appsv1.ReplicaSet](c.deployments, gvk.Kind, func(d *appsv1.Deployment) labels.Selector {
		return runtime.Selector(d.Spec.Selector)
	}))
	runtime.On(q, c.pods, c.recreatedBy)
	return nil
}

// recreatedBy wakes a Deployment that waits for the end of old pods.
func (c *controller) recreatedBy(ev informer.Event[*corev1.Pod]) []types.NamespacedName {
	over := ev.Kind == informer.Deleted || ev.Kind == informer.Updated && podset.Ended(ev.New) && !podset.Ended(ev.Old)
	if !over {
		return nil
	}
	ref := metav1.GetControllerOfNoCopy(ev.Old)
	if ref == nil || ref.Kind != "ReplicaSet" {
		return nil
	}
	set, ok := c.sets.Get(types.NamespacedName{Namespace: ev.Old.Namespace, Name: ref.Name})
	if !ok {
		return nil
	}
	owner := metav1.GetControllerOfNoCopy(set)
	if owner == nil || owner.Kind != gvk.Kind {
		return nil
	}
	key := types.NamespacedName{Namespace: set.Namespace, Name: owner.Name}
	if d, ok := c.deployments.Get(key); !ok || d.Spec.Strategy.Type != appsv1.RecreateDeploymentStrategyType {
		return nil
	}
	return []types.NamespacedName{key}
}

func (c *controller) pass(ctx context.Context, p *runtime.Pass) (runtime.Result, error) {
	d, ok := c.deployments.Get(p.Key)
	if !ok {
		return runtime.Result{}, nil
	}
	api := c.client.AppsV1().Deployments(d.Namespace)
	selector, err := metav1.LabelSelectorAsSelector(d.Spec.Selector)
	if err != nil {
		return runtime.Result{}, runtime.Permanent(fmt.Errorf("selector: %w", err))
	}
	if selector.Empty() {
		p.Warning(d, "SelectingAll", "This deployment is selecting all pods. A non-empty selector is required.")
		return runtime.Result{}, nil
	}
	candidates := append(c.sets.By(runtime.ByController, string(d.UID)), c.sets.By(runtime.Orphans, d.Namespace)...)
	claims := podset.Claim(d, selector, candidates)
	adopted, err := runtime.Own(ctx, p, c.client.AppsV1().ReplicaSets(d.Namespace), d, gvk, claims.Adopt, claims.Release,
		func(ctx context.Context) (metav1.Object, error) { return api.Get(ctx, d.Name, metav1.GetOptions{}) })
	if err != nil {
		return runtime.Result{}, err
	}
	decision := Decide(d, append(claims.Mine, adopted...), c.livePods, p.Now)
	return runtime.Result{Again: decision.Again}, c.apply(ctx, p, d, decision)
}

func (c *controller) livePods(s *appsv1.ReplicaSet) int {
	n := 0
	for _, pod := range c.pods.By(runtime.ByController, string(s.UID)) {
		if !podset.Ended(pod) {
			n++
		}
	}
	return n
}

func (c *controller) apply(ctx context.Context, p *runtime.Pass, d *appsv1.Deployment, decision Decision) error {
	sets := c.client.AppsV1().ReplicaSets(d.Namespace)
	for _, l := range decision.Lines() {
		p.Note("%s", l)
	}
	if s := decision.Create; s != nil {
		if _, err := runtime.Create(ctx, p, sets, s); err != nil {
			return c.notCreated(ctx, p, d, s, err)
		}
		if n := *s.Spec.Replicas; n > 0 {
			p.Normal(d, "ScalingReplicaSet", "Scaled up replica set %s from 0 to %d", s.Name, n)
		}
	}
	for _, w := range decision.Write {
		if _, err := runtime.Update(ctx, p, sets, w.Set); err != nil {
			return fmt.Errorf("update replica set %s: %w", w.Set.Name, err)
		}
		switch {
		case w.From < w.To:
			p.Normal(d, "ScalingReplicaSet", "Scaled up replica set %s from %d to %d", w.Set.Name, w.From, w.To)
		case w.From > w.To:
			p.Normal(d, "ScalingReplicaSet", "Scaled down replica set %s from %d to %d", w.Set.Name, w.From, w.To)
		}
	}
	for _, s := range decision.Delete {
		if err := runtime.Delete(ctx, p, sets, s); err != nil {
			return fmt.Errorf("delete replica set %s: %w", s.Name, err)
		}
	}
	return c.write(ctx, p, d, decision.Revision, decision.Status)
}

// write stores status and revision. The API takes a changed annotation with the
// status; where it does not, the annotation is patched.
func (c *controller) write(ctx context.Context, p *runtime.Pass, d *appsv1.Deployment, rev string, status appsv1.DeploymentStatus) error {
	sameRev := rev == "" || d.Annotations[RevisionAnnotation] == rev
	if sameRev && equality.Semantic.DeepEqual(status, d.Status) {
		return nil
	}
	api := c.client.AppsV1().Deployments(d.Namespace)
	d = d.DeepCopy()
	d.Status = status
	if !sameRev {
		if d.Annotations == nil {
			d.Annotations = map[string]string{}
		}
		d.Annotations[RevisionAnnotation] = rev
	}
	p.Note("status: replicas %d updated %d ready %d available %d", status.Replicas, status.UpdatedReplicas, status.ReadyReplicas, status.AvailableReplicas)
	got, err := runtime.UpdateStatus(ctx, p, api, d)
	if err != nil {
		return fmt.Errorf("update status: %w", err)
	}
	if sameRev || got.Annotations[RevisionAnnotation] == rev {
		return nil
	}
	_, err = runtime.Patch(ctx, p, api, d.Name, map[string]any{"metadata": map[string]any{
		"uid": d.UID, "annotations": map[string]string{RevisionAnnotation: rev},
	}})
	return err
}

// notCreated deals with a set that could not be created. A name that is taken by a
// set of another template is a collision of hashes: the collision count, which is
// part of the hash, is raised. The error makes the pass run again.
func (c *controller) notCreated(ctx context.Context, p *runtime.Pass, d *appsv1.Deployment, s *appsv1.ReplicaSet, err error) error {
	switch {
	case runtime.NamespaceEnding(err):
		return nil
	case apierrors.IsAlreadyExists(err):
		there, rerr := c.client.AppsV1().ReplicaSets(d.Namespace).Get(ctx, s.Name, metav1.GetOptions{})
		if rerr != nil {
			return rerr
		}
		if metav1.IsControlledBy(there, d) && sameTemplate(&there.Spec.Template, &d.Spec.Template) {
			return fmt.Errorf("replica set %s is there already; the cache will show it", s.Name)
		}
		status := *d.Status.DeepCopy()
		n := int32(1)
		if status.CollisionCount != nil {
			n += *status.CollisionCount
		}
		status.CollisionCount = &n
		p.Note("name %s is taken: collision count %d", s.Name, n)
		if err := c.write(ctx, p, d, "", status); err != nil {
			return err
		}
		return fmt.Errorf("create replica set %s: %w", s.Name, err)
	}
	message := fmt.Sprintf("Failed to create new replica set %q: %v", s.Name, err)
	if hasDeadline(d) {
		status := *d.Status.DeepCopy()
		v := &view{d: d, now: p.Now}
		setCondition(&status, v.condition(appsv1.DeploymentProgressing, corev1.ConditionFalse, "ReplicaSetCreateError", message))
		_ = c.write(ctx, p, d, "", status) // the pass fails anyway, and runs again
	}
	p.Warning(d, "ReplicaSetCreateError", "%s", message)
	return fmt.Errorf("create replica set %s: %w", s.Name, err)
}

func plan(in runtime.Objects, now time.Time) ([]string, error) {
	var lines []string
	for _, d := range runtime.Pick[*appsv1.Deployment](in) {
		live := func(s *appsv1.ReplicaSet) int { return len(runtime.OwnedBy[*corev1.Pod](in, s.UID)) }
		for _, l := range Decide(d, runtime.OwnedBy[*appsv1.ReplicaSet](in, d.UID), live, now).Lines() {
			lines = append(lines, runtime.KeyOf(d).String()+": "+l)
		}
	}
	return lines, nil
}
