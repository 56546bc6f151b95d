// Package ttlafterfinished deletes Jobs some time after they have finished, as their
// spec.ttlSecondsAfterFinished says.
package ttlafterfinished

import (
	"context"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/keelson/keelson/controller-manager/runtime"
	"github.com/keelson/keelson/libs/informer"
)

// Row is this controller's line of the table.
var Row = runtime.Row{
	Name:   "ttl-after-finished-controller",
	Reads:  []string{"jobs.batch"},
	Writes: []string{"delete jobs.batch"},
	New:    build,
}

type controller struct {
	jobs   *informer.Cache[*batchv1.Job]
	client kubernetes.Interface
}

func build(e *runtime.Env) error {
	c := &controller{jobs: runtime.Read[*batchv1.Job](e), client: e.Client()}
	q := e.Keyed("", 4, c.pass)
	runtime.On(q, c.jobs, runtime.Self[*batchv1.Job])
	return nil
}

// Due is when the job may go; false when it has no such time.
func Due(job *batchv1.Job) (time.Time, bool) {
	if job.Spec.TTLSecondsAfterFinished == nil || job.DeletionTimestamp != nil {
		return time.Time{}, false
	}
	for _, c := range job.Status.Conditions {
		if (c.Type == batchv1.JobComplete || c.Type == batchv1.JobFailed) && c.Status == corev1.ConditionTrue {
			return c.LastTransitionTime.Add(time.Duration(*job.Spec.TTLSecondsAfterFinished) * time.Second), true
		}
	}
	return time.Time{}, false
}

func (c *controller) pass(ctx context.Context, p *runtime.Pass) (runtime.Result, error) {
	job, ok := c.jobs.Get(p.Key)
	if !ok {
		return runtime.Result{}, nil
	}
	due, ok := Due(job)
	if !ok {
		return runtime.Result{}, nil
	}
	if p.Now.Before(due) {
		return runtime.Result{Again: due}, nil
	}
	// The time to live may have been prolonged a moment ago: ask before what cannot be undone.
	live, err := c.client.BatchV1().Jobs(job.Namespace).Get(ctx, job.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return runtime.Result{}, nil
	}
	if err != nil {
		return runtime.Result{}, err
	}
	if due, ok = Due(live); !ok || p.Now.Before(due) {
		return runtime.Result{Again: due}, nil
	}
	p.Note("delete: its time to live is over")
	return runtime.Result{}, runtime.Delete(ctx, p, c.client.BatchV1().Jobs(job.Namespace), live, func(o *metav1.DeleteOptions) {
		foreground := metav1.DeletePropagationForeground
		o.PropagationPolicy = &foreground
		o.Preconditions.ResourceVersion = &live.ResourceVersion
	})
}
