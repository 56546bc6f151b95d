package replicationcontroller

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/kubernetes"

	"github.com/keelson/keelson/controller-manager/controllers/replicaset"
	"github.com/keelson/keelson/controller-manager/runtime"
	"github.com/keelson/keelson/libs/informer"
)

// Row is this controller's line of the table.
var Row = runtime.Row{
	Name:   "replicationcontroller-controller",
	Reads:  []string{"replicationcontrollers", "pods"},
	Writes: []string{"pods", "replicationcontrollers/status"},
	New:    build,
	Plan:   plan,
}

var gvk = corev1.SchemeGroupVersion.WithKind("ReplicationController")

type controller struct {
	rcs    *informer.Cache[*corev1.ReplicationController]
	pods   *informer.Cache[*corev1.Pod]
	client kubernetes.Interface
}

func build(e *runtime.Env) error {
	c := &controller{rcs: runtime.Read[*corev1.ReplicationController](e), pods: runtime.Read[*corev1.Pod](e), client: e.Client()}
	q := e.Keyed("", 4, c.pass)
	runtime.On(q, c.rcs, runtime.Self[*corev1.ReplicationController])
	runtime.On(q, c.pods, runtime.Claimants[*corev1.Pod](c.rcs, gvk.Kind, selectorOf))
	return nil
}

// selectorOf is nil for an empty selector: it would select everything.
func selectorOf(rc *corev1.ReplicationController) labels.Selector {
	if len(rc.Spec.Selector) == 0 {
		return nil
	}
	return labels.SelectorFromSet(rc.Spec.Selector)
}

func (c *controller) pass(ctx context.Context, p *runtime.Pass) (runtime.Result, error) {
	rc, ok := c.rcs.Get(p.Key)
	if !ok || rc.Spec.Template == nil {
		return runtime.Result{}, nil
	}
	selector := selectorOf(rc)
	if selector == nil {
		return runtime.Result{}, nil
	}
	api := c.client.CoreV1().ReplicationControllers(rc.Namespace)
	fresh := func(ctx context.Context) (metav1.Object, error) { return api.Get(ctx, rc.Name, metav1.GetOptions{}) }
	pods, err := replicaset.Claim(ctx, p, c.client, c.pods, rc, gvk, selector, fresh)
	if err != nil {
		return runtime.Result{}, err
	}
	set := asSet(rc)
	fault := replicaset.Apply(ctx, p, replicaset.Decide(set, pods, pods, p.Now), rc, set, gvk, fresh)
	seen, next := replicaset.Status(set, pods, fault, p.Now)
	if status := asController(seen); !equality.Semantic.DeepEqual(status, rc.Status) {
		rc = rc.DeepCopy()
		rc.Status = status
		p.Note("status: replicas %d ready %d available %d", status.Replicas, status.ReadyReplicas, status.AvailableReplicas)
		if _, err := runtime.UpdateStatus(ctx, p, api, rc); err != nil {
			return runtime.Result{}, err
		}
	}
	return runtime.Result{Again: next, Gather: runtime.GatherFor(len(pods))}, fault
}

func plan(in runtime.Objects, now time.Time) ([]string, error) {
	var lines []string
	for _, rc := range runtime.Pick[*corev1.ReplicationController](in) {
		pods := runtime.OwnedBy[*corev1.Pod](in, rc.UID)
		for _, l := range replicaset.Decide(asSet(rc), pods, pods, now).Lines() {
			lines = append(lines, runtime.KeyOf(rc).String()+": "+l)
		}
	}
	return lines, nil
}
