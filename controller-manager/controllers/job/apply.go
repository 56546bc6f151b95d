package job

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	batchv1 "k8s.io/api/batch/v1"
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
	Name:   "job-controller",
	Reads:  []string{"jobs.batch", "pods"},
	Writes: []string{"jobs.batch/status", "pods"},
	New:    build,
	Plan:   plan,
}

var gvk = batchv1.SchemeGroupVersion.WithKind("Job")

// gather collects pod events before a Job is looked at again: pods of a Job end
// in crowds, and every status write costs.
const gather = 50 * time.Millisecond

type controller struct {
	jobs   *informer.Cache[*batchv1.Job]
	pods   *informer.Cache[*corev1.Pod]
	client kubernetes.Interface

	mu      sync.Mutex // guards streaks
	streaks map[types.UID]Streak
}

func build(e *runtime.Env) error {
	c := &controller{jobs: runtime.Read[*batchv1.Job](e), pods: runtime.Read[*corev1.Pod](e), client: e.Client(), streaks: map[types.UID]Streak{}}
	q := e.Keyed("", 8, c.pass)
	runtime.On(q, c.jobs, runtime.Self[*batchv1.Job])
	runtime.On(q, c.pods, runtime.Claimants[*corev1.Pod](c.jobs, gvk.Kind, func(j *batchv1.Job) labels.Selector {
		return runtime.Selector(j.Spec.Selector)
	}))
	c.jobs.OnEvent(func(ev informer.Event[*batchv1.Job]) {
		if ev.Kind == informer.Deleted {
			c.remember(ev.Old.UID, Streak{})
		}
	})

	// Pods whose Job is gone or over must not keep the finalizer.
	left := e.Keyed("orphan-pods", 4, c.release)
	runtime.On(left, c.pods, func(ev informer.Event[*corev1.Pod]) []types.NamespacedName {
		if ev.Kind == informer.Deleted || !tracked(ev.New) || !c.abandoned(ev.New) {
			return nil
		}
		return []types.NamespacedName{runtime.KeyOf(ev.New)}
	})
	runtime.On(left, c.jobs, func(ev informer.Event[*batchv1.Job]) []types.NamespacedName {
		j := ev.New
		if ev.Kind == informer.Deleted {
			j = ev.Old
		} else if !over(j.Status) {
			return nil
		}
		var keys []types.NamespacedName
		for _, p := range c.pods.By(runtime.ByController, string(j.UID)) {
			if tracked(p) {
				keys = append(keys, runtime.KeyOf(p))
			}
		}
		return keys
	})
	return nil
}

// external says that another controller looks after the Job.
func external(j *batchv1.Job) bool {
	return j.Spec.ManagedBy != nil && *j.Spec.ManagedBy != batchv1.JobControllerName
}

// abandoned says that no running Job needs the pod's finalizer.
func (c *controller) abandoned(p *corev1.Pod) bool {
	ref := metav1.GetControllerOfNoCopy(p)
	if ref == nil {
		return true
	}
	if ref.Kind != gvk.Kind {
		return false
	}
	j, ok := c.jobs.Get(types.NamespacedName{Namespace: p.Namespace, Name: ref.Name})
	if !ok || j.UID != ref.UID {
		return true
	}
	return over(j.Status) && !external(j)
}

func (c *controller) release(ctx context.Context, p *runtime.Pass) (runtime.Result, error) {
	pod, ok := c.pods.Get(p.Key)
	if !ok || !tracked(pod) || !c.abandoned(pod) {
		return runtime.Result{}, nil
	}
	if ref := metav1.GetControllerOfNoCopy(pod); ref != nil {
		if _, ok := c.jobs.Get(types.NamespacedName{Namespace: pod.Namespace, Name: ref.Name}); !ok {
			// The cache may be behind: a Job that was just made has pods already.
			live, err := c.client.BatchV1().Jobs(pod.Namespace).Get(ctx, ref.Name, metav1.GetOptions{})
			if err == nil && live.UID == ref.UID {
				return runtime.Result{Again: p.Now.Add(time.Second)}, nil
			}
			if err != nil && !apierrors.IsNotFound(err) {
				return runtime.Result{}, err
			}
		}
	} else if c.wouldAdopt(pod) {
		return runtime.Result{}, nil
	}
	p.Note("release %s", pod.Name)
	return runtime.Result{}, runtime.DropFinalizer(ctx, p, c.client.CoreV1().Pods(pod.Namespace), pod, batchv1.JobTrackingFinalizer)
}

// wouldAdopt says that a running Job selects a pod without owner.
func (c *controller) wouldAdopt(p *corev1.Pod) bool {
	if p.DeletionTimestamp != nil {
		return false
	}
	for _, j := range c.jobs.By(runtime.ByNamespace, p.Namespace) {
		if over(j.Status) || j.DeletionTimestamp != nil {
			continue
		}
		if s := runtime.Selector(j.Spec.Selector); s != nil && s.Matches(labels.Set(p.Labels)) {
			return true
		}
	}
	return false
}

func (c *controller) streak(uid types.UID) Streak {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.streaks[uid]
}

func (c *controller) remember(uid types.UID, s Streak) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.Failures == 0 {
		delete(c.streaks, uid)
	} else {
		c.streaks[uid] = s
	}
}

func (c *controller) pass(ctx context.Context, p *runtime.Pass) (runtime.Result, error) {
	j, ok := c.jobs.Get(p.Key)
	if !ok || external(j) {
		return runtime.Result{}, nil
	}
	if over(j.Status) {
		c.remember(j.UID, Streak{})
		return runtime.Result{}, nil
	}
	if m := j.Spec.CompletionMode; m != nil && *m != batchv1.NonIndexedCompletion && *m != batchv1.IndexedCompletion {
		p.Warning(j, "UnknownCompletionMode", "Skipped Job sync because completion mode is unknown")
		return runtime.Result{}, nil
	}
	selector, err := metav1.LabelSelectorAsSelector(j.Spec.Selector)
	if err != nil {
		return runtime.Result{}, runtime.Permanent(fmt.Errorf("selector: %w", err))
	}
	candidates := append(c.pods.By(runtime.ByController, string(j.UID)), c.pods.By(runtime.Orphans, j.Namespace)...)
	claims := podset.Claim(j, selector, candidates)
	fresh := func(ctx context.Context) (metav1.Object, error) {
		return c.client.BatchV1().Jobs(j.Namespace).Get(ctx, j.Name, metav1.GetOptions{})
	}
	adopted, err := runtime.Own(ctx, p, c.client.CoreV1().Pods(j.Namespace), j, gvk, claims.Adopt, claims.Release, fresh)
	if err != nil {
		return runtime.Result{}, err
	}
	d := Decide(j, append(claims.Mine, adopted...), c.streak(j.UID), p.Now)
	return runtime.Result{Again: d.Again, Gather: gather}, c.apply(ctx, p, j, d, fresh)
}

func (c *controller) apply(ctx context.Context, p *runtime.Pass, j *batchv1.Job, d Decision, fresh runtime.Fresh) error {
	pods := c.client.CoreV1().Pods(j.Namespace)
	drop := func(list []*corev1.Pod) error {
		return runtime.AllTogether(ctx, len(list), func(ctx context.Context, i int) error {
			if err := runtime.DropFinalizer(ctx, p, pods, list[i], batchv1.JobTrackingFinalizer); err != nil {
				return fmt.Errorf("remove the finalizer of pod %s: %w", list[i].Name, err)
			}
			return nil
		})
	}
	if err := drop(d.Untrack); err != nil {
		return err
	}
	if err := runtime.AllTogether(ctx, len(d.Delete), func(ctx context.Context, i int) error {
		return runtime.DeletePod(ctx, p, j, d.Delete[i])
	}); err != nil {
		return err
	}
	made, fault := runtime.CreatePods(ctx, p, j, fresh, len(d.Create), func(i int) *corev1.Pod { return newPod(j, d.Create[i]) })
	d.Status.Active -= int32(len(d.Create) - made)
	if !equality.Semantic.DeepEqual(d.Status, j.Status) {
		next := j.DeepCopy()
		next.Status = d.Status
		p.Note("status: active %d succeeded %d failed %d", d.Status.Active, d.Status.Succeeded, d.Status.Failed)
		if _, err := runtime.UpdateStatus(ctx, p, c.client.BatchV1().Jobs(j.Namespace), next); err != nil {
			return errors.Join(fault, fmt.Errorf("update status: %w", err))
		}
	}
	c.remember(j.UID, d.Streak)
	for _, h := range d.Events {
		p.Event(j, h.Kind, h.Reason, "%s", h.Message)
	}
	for _, pod := range d.Count {
		p.Note("count pod %s", pod.Name)
	}
	return errors.Join(fault, drop(d.Count))
}

func plan(in runtime.Objects, now time.Time) ([]string, error) {
	var lines []string
	for _, j := range runtime.Pick[*batchv1.Job](in) {
		pods := runtime.OwnedBy[*corev1.Pod](in, j.UID)
		slices.SortFunc(pods, byName)
		for _, l := range Decide(j, pods, Streak{}, now).Lines() {
			lines = append(lines, runtime.KeyOf(j).String()+": "+l)
		}
	}
	return lines, nil
}
