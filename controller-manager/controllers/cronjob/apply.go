package cronjob

import (
	"context"
	"fmt"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/keelson/keelson/controller-manager/runtime"
	"github.com/keelson/keelson/libs/informer"
)

// Row is this controller's line of the table.
var Row = runtime.Row{
	Name:   "cronjob-controller",
	Reads:  []string{"cronjobs.batch", "jobs.batch"},
	Writes: []string{"cronjobs.batch/status", "jobs.batch"},
	New:    build,
	Plan:   plan,
}

var gvk = batchv1.SchemeGroupVersion.WithKind("CronJob")

type controller struct {
	crons  *informer.Cache[*batchv1.CronJob]
	jobs   *informer.Cache[*batchv1.Job]
	client kubernetes.Interface
}

func build(e *runtime.Env) error {
	c := &controller{crons: runtime.Read[*batchv1.CronJob](e), jobs: runtime.Read[*batchv1.Job](e), client: e.Client()}
	q := e.Keyed("", 4, c.pass)
	runtime.On(q, c.crons, runtime.Self[*batchv1.CronJob])
	runtime.On(q, c.jobs, runtime.OwnerKeys[*batchv1.Job](gvk.Kind))
	return nil
}

func (c *controller) pass(ctx context.Context, p *runtime.Pass) (runtime.Result, error) {
	cj, ok := c.crons.Get(p.Key)
	if !ok {
		return runtime.Result{}, nil
	}
	d := Decide(cj, c.jobs.By(runtime.ByController, string(cj.UID)), p.Now)
	return runtime.Result{Again: d.Again}, c.apply(ctx, p, cj, d)
}

func (c *controller) apply(ctx context.Context, p *runtime.Pass, cj *batchv1.CronJob, d Decision) error {
	for _, h := range d.Events {
		p.Event(cj, h.Kind, h.Reason, "%s", h.Message)
	}
	for _, l := range d.Lines() {
		p.Note("%s", l)
	}
	jobs := c.client.BatchV1().Jobs(cj.Namespace)
	background := func(o *metav1.DeleteOptions) {
		policy := metav1.DeletePropagationBackground
		o.PropagationPolicy = &policy
	}
	for _, j := range d.Delete {
		if err := runtime.Delete(ctx, p, jobs, j, background); err != nil {
			p.Warning(cj, "FailedDelete", "Deleted job: %v", err)
			return fmt.Errorf("delete job %s: %w", j.Name, err)
		}
		p.Normal(cj, "SuccessfulDelete", "Deleted job %v", j.Name)
	}
	if d.Start != nil {
		if err := c.start(ctx, p, cj, &d); err != nil {
			return err
		}
	}
	if equality.Semantic.DeepEqual(d.Status, cj.Status) {
		return nil
	}
	fresh := cj.DeepCopy()
	fresh.Status = d.Status
	_, err := runtime.UpdateStatus(ctx, p, c.client.BatchV1().CronJobs(cj.Namespace), fresh)
	return err
}

// start creates the Job and lists it as active. A Job of that name which is this
// CronJob's own was started by a pass that could not store the status.
func (c *controller) start(ctx context.Context, p *runtime.Pass, cj *batchv1.CronJob, d *Decision) error {
	jobs := c.client.BatchV1().Jobs(cj.Namespace)
	job, err := runtime.Create(ctx, p, jobs, d.Start)
	switch {
	case runtime.NamespaceEnding(err):
		d.Status = cj.Status
		return nil
	case apierrors.IsAlreadyExists(err):
		job, err = jobs.Get(ctx, d.Start.Name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if !metav1.IsControlledBy(job, cj) {
			p.Warning(cj, "FailedCreate", "Error creating job: %s exists and belongs to somebody else", job.Name)
			d.Status = cj.Status
			return nil
		}
	case err != nil:
		p.Warning(cj, "FailedCreate", "Error creating job: %v", err)
		return fmt.Errorf("create job %s: %w", d.Start.Name, err)
	default:
		p.Normal(cj, "SuccessfulCreate", "Created job %v", job.Name)
	}
	if ended(job) == "" {
		d.Status.Active = append(d.Status.Active, corev1.ObjectReference{
			Kind: "Job", APIVersion: "batch/v1", Name: job.Name, Namespace: job.Namespace, UID: job.UID, ResourceVersion: job.ResourceVersion,
		})
	}
	return nil
}

func plan(in runtime.Objects, now time.Time) ([]string, error) {
	var lines []string
	for _, cj := range runtime.Pick[*batchv1.CronJob](in) {
		for _, l := range Decide(cj, runtime.OwnedBy[*batchv1.Job](in, cj.UID), now).Lines() {
			lines = append(lines, runtime.KeyOf(cj).String()+": "+l)
		}
	}
	return lines, nil
}
