package disruption

import (
	"context"
	"fmt"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"github.com/keelson/keelson/controller-manager/runtime"
	"github.com/keelson/keelson/libs/informer"
)

// Row is this controller's line of the table.
var Row = runtime.Row{
	Name:   "disruption-controller",
	Reads:  []string{"poddisruptionbudgets.policy", "pods", "deployments.apps", "replicasets.apps", "statefulsets.apps", "replicationcontrollers"},
	Writes: []string{"poddisruptionbudgets.policy/status", "pods/status"},
	Extra:  []rbacv1.PolicyRule{{APIGroups: []string{"*"}, Resources: []string{"*/scale"}, Verbs: []string{"get"}}},
	New:    build,
}

type controller struct {
	budgets     *informer.Cache[*policyv1.PodDisruptionBudget]
	pods        *informer.Cache[*corev1.Pod]
	deployments *informer.Cache[*appsv1.Deployment]
	sets        *informer.Cache[*appsv1.ReplicaSet]
	stateful    *informer.Cache[*appsv1.StatefulSet]
	rcs         *informer.Cache[*corev1.ReplicationController]
	client      kubernetes.Interface
}

func build(e *runtime.Env) error {
	c := &controller{
		budgets: runtime.Read[*policyv1.PodDisruptionBudget](e), pods: runtime.Read[*corev1.Pod](e), deployments: runtime.Read[*appsv1.Deployment](e),
		sets: runtime.Read[*appsv1.ReplicaSet](e), stateful: runtime.Read[*appsv1.StatefulSet](e), rcs: runtime.Read[*corev1.ReplicationController](e),
		client: e.Client(),
	}
	q := e.Keyed("", 2, c.pass)
	runtime.On(q, c.budgets, runtime.Self[*policyv1.PodDisruptionBudget])
	runtime.On(q, c.pods, c.budgetsOf)
	left := e.Keyed("stale-pods", 2, c.clear)
	runtime.On(left, c.pods, func(ev informer.Event[*corev1.Pod]) []types.NamespacedName {
		if ev.Kind == informer.Deleted {
			return nil
		}
		if _, ok := stale(ev.New); !ok {
			return nil
		}
		return []types.NamespacedName{runtime.KeyOf(ev.New)}
	})
	return nil
}

// budgetsOf are the budgets that select a pod, before or after the event.
func (c *controller) budgetsOf(ev informer.Event[*corev1.Pod]) []types.NamespacedName {
	ns := ev.Last().Namespace
	var keys []types.NamespacedName
	for _, b := range c.budgets.By(runtime.ByNamespace, ns) {
		s := runtime.Selector(b.Spec.Selector)
		if s == nil {
			continue
		}
		if ev.Kind != informer.Added && s.Matches(labels.Set(ev.Old.Labels)) || ev.Kind != informer.Deleted && s.Matches(labels.Set(ev.New.Labels)) {
			keys = append(keys, runtime.KeyOf(b))
		}
	}
	return keys
}

func (c *controller) pass(ctx context.Context, p *runtime.Pass) (runtime.Result, error) {
	b, ok := c.budgets.Get(p.Key)
	if !ok {
		return runtime.Result{}, nil
	}
	selector, err := metav1.LabelSelectorAsSelector(b.Spec.Selector)
	if err != nil {
		return runtime.Result{}, runtime.Permanent(fmt.Errorf("selector: %w", err))
	}
	var pods []*corev1.Pod
	for _, pod := range c.pods.By(runtime.ByNamespace, b.Namespace) {
		if selector.Matches(labels.Set(pod.Labels)) {
			pods = append(pods, pod)
		}
	}
	if len(pods) == 0 {
		p.Normal(b, "NoPods", "No matching pods found")
	}
	d, err := Decide(b, pods, func(ref *metav1.OwnerReference) (int32, error) { return c.wanted(ctx, b.Namespace, ref) }, p.Now)
	if err != nil {
		p.Warning(b, "CalculateExpectedPodCountFailed", "Failed to calculate the number of expected pods: %v", err)
		if werr := c.write(ctx, p, b, Failed(b, err, p.Now)); werr != nil {
			return runtime.Result{}, werr
		}
		return runtime.Result{}, err
	}
	if len(d.Unmanaged) > 0 {
		p.Warning(b, "UnmanagedPods", "Pods selected by this PodDisruptionBudget (selector: %v) were found "+
			"to be unmanaged. As a result, the status of the PDB cannot be calculated correctly, which may result in undefined behavior. "+
			"To account for these pods please set \".spec.minAvailable\" "+
			"field of the PDB to an integer value.", b.Spec.Selector)
	}
	for _, pod := range d.Stuck {
		p.Warning(pod, "NotDeleted", "Pod was expected by PDB %s/%s to be deleted but it wasn't", b.Namespace, b.Name)
	}
	return runtime.Result{Again: d.Again, Gather: runtime.GatherFor(len(pods))}, c.write(ctx, p, b, d.Status)
}

func (c *controller) write(ctx context.Context, p *runtime.Pass, b *policyv1.PodDisruptionBudget, s policyv1.PodDisruptionBudgetStatus) error {
	if equality.Semantic.DeepEqual(s, b.Status) {
		return nil
	}
	b = b.DeepCopy()
	b.Status = s
	p.Note("status: healthy %d of %d, least %d, allowed %d", s.CurrentHealthy, s.ExpectedPods, s.DesiredHealthy, s.DisruptionsAllowed)
	_, err := runtime.UpdateStatus(ctx, p, c.client.PolicyV1().PodDisruptionBudgets(b.Namespace), b)
	return err
}

func count(n *int32) int32 {
	if n == nil {
		return 1
	}
	return *n
}

// wanted is the number of pods that an owner asks for. An owner that is gone asks
// for none. A ReplicaSet of a Deployment stands for the Deployment.
func (c *controller) wanted(ctx context.Context, ns string, ref *metav1.OwnerReference) (int32, error) {
	key := types.NamespacedName{Namespace: ns, Name: ref.Name}
	switch {
	case ref.Kind == "ReplicaSet" && ref.APIVersion == "apps/v1":
		s, ok := c.sets.Get(key)
		if !ok || s.UID != ref.UID {
			return 0, nil
		}
		if owner := metav1.GetControllerOfNoCopy(s); owner != nil && owner.Kind == "Deployment" && owner.APIVersion == "apps/v1" {
			d, ok := c.deployments.Get(types.NamespacedName{Namespace: ns, Name: owner.Name})
			if ok && d.UID == owner.UID {
				// Two sets of one Deployment must not count it twice.
				return c.share(d, s), nil
			}
		}
		return count(s.Spec.Replicas), nil
	case ref.Kind == "StatefulSet" && ref.APIVersion == "apps/v1":
		if s, ok := c.stateful.Get(key); ok && s.UID == ref.UID {
			return count(s.Spec.Replicas), nil
		}
		return 0, nil
	case ref.Kind == "ReplicationController" && ref.APIVersion == "v1":
		if r, ok := c.rcs.Get(key); ok && r.UID == ref.UID {
			return count(r.Spec.Replicas), nil
		}
		return 0, nil
	}
	return c.scaleOf(ctx, ns, ref)
}

// share is the Deployment's replicas for the first of its sets that has pods, and
// nothing for the others.
func (c *controller) share(d *appsv1.Deployment, s *appsv1.ReplicaSet) int32 {
	for _, other := range c.sets.By(runtime.ByController, string(d.UID)) {
		if other.Name < s.Name && len(c.pods.By(runtime.ByController, string(other.UID))) > 0 {
			return 0
		}
	}
	return count(d.Spec.Replicas)
}

// scaleOf reads the scale subresource of an owner of any other kind.
func (c *controller) scaleOf(ctx context.Context, ns string, ref *metav1.OwnerReference) (int32, error) {
	list, err := c.client.Discovery().ServerResourcesForGroupVersion(ref.APIVersion)
	if err != nil {
		return 0, fmt.Errorf("kind %s of %s: %w", ref.Kind, ref.APIVersion, err)
	}
	resource, scalable := "", map[string]bool{}
	for _, r := range list.APIResources {
		if r.Kind == ref.Kind && resource == "" {
			resource = r.Name
		}
		scalable[r.Name] = true
	}
	if resource == "" || !scalable[resource+"/scale"] {
		return 0, fmt.Errorf("%s of %s does not implement the scale subresource", ref.Kind, ref.APIVersion)
	}
	root := "/apis/" + ref.APIVersion
	if ref.APIVersion == "v1" {
		root = "/api/v1"
	}
	var s autoscalingv1.Scale
	err = c.client.AutoscalingV1().RESTClient().Get().AbsPath(root, "namespaces", ns, resource, ref.Name, "scale").Do(ctx).Into(&s)
	switch {
	case apierrors.IsNotFound(err):
		return 0, nil
	case err != nil:
		return 0, err
	case s.UID != ref.UID:
		return 0, nil
	}
	return s.Spec.Replicas, nil
}

// clear takes back a DisruptionTarget condition that came to nothing.
func (c *controller) clear(ctx context.Context, p *runtime.Pass) (runtime.Result, error) {
	pod, ok := c.pods.Get(p.Key)
	if !ok {
		return runtime.Result{}, nil
	}
	from, ok := stale(pod)
	if !ok {
		return runtime.Result{}, nil
	}
	if p.Now.Before(from) {
		return runtime.Result{Again: from}, nil
	}
	pod = pod.DeepCopy()
	for i := range pod.Status.Conditions {
		if cond := &pod.Status.Conditions[i]; cond.Type == corev1.DisruptionTarget {
			*cond = corev1.PodCondition{Type: corev1.DisruptionTarget, Status: corev1.ConditionFalse, LastTransitionTime: metav1.NewTime(p.Now)}
		}
	}
	p.Note("clear DisruptionTarget of %s", pod.Name)
	_, err := runtime.UpdateStatus(ctx, p, c.client.CoreV1().Pods(pod.Namespace), pod)
	return runtime.Result{}, err
}
