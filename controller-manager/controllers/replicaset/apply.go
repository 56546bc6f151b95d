package replicaset

import (
	"context"
	"fmt"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes"

	"github.com/keelson/keelson/controller-manager/podset"
	"github.com/keelson/keelson/controller-manager/runtime"
	"github.com/keelson/keelson/libs/informer"
)

// Row is this controller's line of the table.
var Row = runtime.Row{
	Name:   "replicaset-controller",
	Reads:  []string{"replicasets.apps", "pods"},
	Writes: []string{"pods", "replicasets.apps/status"},
	New:    build,
	Plan:   plan,
}

var gvk = appsv1.SchemeGroupVersion.WithKind("ReplicaSet")

type controller struct {
	sets   *informer.Cache[*appsv1.ReplicaSet]
	pods   *informer.Cache[*corev1.Pod]
	client kubernetes.Interface
}

func build(e *runtime.Env) error {
	c := &controller{sets: runtime.Read[*appsv1.ReplicaSet](e), pods: runtime.Read[*corev1.Pod](e), client: e.Client()}
	q := e.Keyed("", 8, c.pass)
	runtime.On(q, c.sets, runtime.Self[*appsv1.ReplicaSet])
	runtime.On(q, c.pods, runtime.Claimants[*corev1.Pod](c.sets, gvk.Kind, func(s *appsv1.ReplicaSet) labels.Selector {
		return runtime.Selector(s.Spec.Selector)
	}))
	return nil
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
		return c.client.AppsV1().ReplicaSets(set.Namespace).Get(ctx, set.Name, metav1.GetOptions{})
	}
	pods, err := Claim(ctx, p, c.client, c.pods, set, gvk, selector, fresh)
	if err != nil {
		return runtime.Result{}, err
	}
	fault := Apply(ctx, p, Decide(set, pods, c.family(set, pods), p.Now), set, set, gvk, fresh)
	status, next := Status(set, pods, fault, p.Now)
	if !equality.Semantic.DeepEqual(status, set.Status) {
		set = set.DeepCopy()
		set.Status = status
		p.Note("status: replicas %d ready %d available %d", status.Replicas, status.ReadyReplicas, status.AvailableReplicas)
		if _, err := runtime.UpdateStatus(ctx, p, c.client.AppsV1().ReplicaSets(set.Namespace), set); err != nil {
			return runtime.Result{}, err
		}
	}
	return runtime.Result{Again: next, Gather: runtime.GatherFor(len(pods))}, fault
}

// family are the pods of all sets that have the same controller as this one.
func (c *controller) family(set *appsv1.ReplicaSet, pods []*corev1.Pod) []*corev1.Pod {
	ref := metav1.GetControllerOfNoCopy(set)
	if ref == nil || Want(set) >= len(pods) {
		return pods
	}
	var all []*corev1.Pod
	for _, s := range c.sets.By(runtime.ByController, string(ref.UID)) {
		all = append(all, c.pods.By(runtime.ByController, string(s.UID))...)
	}
	return all
}

// Claim returns the owner's pods after adopting and releasing what has to be.
func Claim(ctx context.Context, p *runtime.Pass, client kubernetes.Interface, pods *informer.Cache[*corev1.Pod], owner metav1.Object,
	gvk schema.GroupVersionKind, selector labels.Selector, fresh runtime.Fresh) ([]*corev1.Pod, error) {
	candidates := append(pods.By(runtime.ByController, string(owner.GetUID())), pods.By(runtime.Orphans, owner.GetNamespace())...)
	claims := podset.Claim(owner, selector, candidates)
	// A pod that has ended is left to whoever looks at it; only live ones are adopted.
	adopt := podset.ActiveOnly(claims.Adopt)
	got, err := runtime.Own(ctx, p, client.CoreV1().Pods(owner.GetNamespace()), owner, gvk, adopt, claims.Release, fresh)
	return append(claims.Mine, got...), err
}

// Apply creates and deletes pods as decided. owner gets the events.
func Apply(ctx context.Context, p *runtime.Pass, d Decision, owner informer.Object, set *appsv1.ReplicaSet, gvk schema.GroupVersionKind, fresh runtime.Fresh) error {
	_, err := runtime.CreatePods(ctx, p, owner, fresh, d.Create, func(int) *corev1.Pod { return podset.FromTemplate(&set.Spec.Template, set, gvk) })
	if err != nil {
		return err
	}
	return runtime.AllTogether(ctx, len(d.Delete), func(ctx context.Context, i int) error {
		return runtime.DeletePod(ctx, p, owner, d.Delete[i])
	})
}

func plan(in runtime.Objects, now time.Time) ([]string, error) {
	var lines []string
	for _, s := range runtime.Pick[*appsv1.ReplicaSet](in) {
		pods := runtime.OwnedBy[*corev1.Pod](in, s.UID)
		for _, l := range Decide(s, pods, pods, now).Lines() {
			lines = append(lines, runtime.KeyOf(s).String()+": "+l)
		}
	}
	return lines, nil
}
