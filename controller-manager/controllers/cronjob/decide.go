// Package cronjob starts a Job at the times of a CronJob's schedule and keeps the
// list and the history of those Jobs.
//
// [Decide] is one look at a CronJob and pure; schedule.go finds the time that is
// due; apply.go has the writes and the table row.
//
// A Job is named after the minute that it is for, so that a start which was
// repeated after a crash finds its Job there already: one start per time.
//
// Source: Kubernetes documentation, "CronJob"; KEP-3140 (time zones).
package cronjob

import (
	"fmt"
	"slices"
	"strconv"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/keelson/keelson/controller-manager/podset"
)

// Happening is an event to be recorded.
type Happening struct{ Kind, Reason, Message string }

// Decision is what one pass wants done, in this order: Delete, Start, Status.
type Decision struct {
	Delete []*batchv1.Job
	Start  *batchv1.Job
	At     time.Time // the scheduled time that Start is for
	Status batchv1.CronJobStatus
	Events []Happening
	Again  time.Time
}

// Lines are the decision's steps as text.
func (d Decision) Lines() []string {
	var l []string
	for _, j := range d.Delete {
		l = append(l, "delete job "+j.Name)
	}
	if d.Start != nil {
		l = append(l, fmt.Sprintf("start job %s of %s", d.Start.Name, d.At.UTC().Format(time.RFC3339)))
	}
	return l
}

func (d *Decision) note(kind, reason, format string, args ...any) {
	d.Events = append(d.Events, Happening{kind, reason, fmt.Sprintf(format, args...)})
}

// Decide compares the CronJob with its Jobs.
func Decide(cj *batchv1.CronJob, jobs []*batchv1.Job, now time.Time) Decision {
	d := Decision{Status: *cj.Status.DeepCopy()}
	jobs = slices.Clone(jobs)
	slices.SortFunc(jobs, olderFirst)
	followUp(&d, jobs)
	if cj.DeletionTimestamp != nil {
		return d
	}
	history(&d, jobs, cj.Spec.SuccessfulJobsHistoryLimit, batchv1.JobComplete)
	history(&d, jobs, cj.Spec.FailedJobsHistoryLimit, batchv1.JobFailed)
	s, err := parse(cj)
	if err != nil {
		reason := "UnparseableSchedule"
		if err.zone {
			reason = "UnknownTimeZone"
		}
		d.note(corev1.EventTypeWarning, reason, "%s", err.text)
		return d
	}
	if cj.Spec.Suspend != nil && *cj.Spec.Suspend {
		return d
	}
	due, missed := s.due(cj, now)
	// A hair after the time, so that a clock read a moment early does not cost a minute.
	if next := s.Next(now); !next.IsZero() {
		d.Again = next.Add(20 * time.Millisecond)
	}
	if missed > mostMissed {
		d.note(corev1.EventTypeWarning, "TooManyMissedTimes",
			"too many missed start times: more than %d. Set or decrease .spec.startingDeadlineSeconds or check clock skew", mostMissed)
	}
	if due.IsZero() || cj.Status.LastScheduleTime != nil && !due.After(cj.Status.LastScheduleTime.Time) {
		return d
	}
	if l := cj.Spec.StartingDeadlineSeconds; l != nil && due.Add(time.Duration(*l)*time.Second).Before(now) {
		d.note(corev1.EventTypeWarning, "MissSchedule", "Missed scheduled time to start a job: %s", due.UTC().Format(time.RFC1123Z))
		return d
	}
	job := newJob(cj, due, s.zone)
	if slices.ContainsFunc(d.Status.Active, func(r corev1.ObjectReference) bool { return r.Name == job.Name }) {
		return d
	}
	switch cj.Spec.ConcurrencyPolicy {
	case batchv1.ForbidConcurrent:
		if len(d.Status.Active) > 0 {
			d.note(corev1.EventTypeNormal, "JobAlreadyActive", "Not starting job because prior execution is running and concurrency policy is Forbid")
			return d
		}
	case batchv1.ReplaceConcurrent:
		for _, j := range jobs {
			if ended(j) == "" && !slices.Contains(d.Delete, j) && j.DeletionTimestamp == nil {
				d.Delete = append(d.Delete, j)
			}
		}
		d.Status.Active = nil
	}
	d.Start, d.At = job, due
	d.Status.LastScheduleTime = &metav1.Time{Time: due}
	return d
}

// ended is the condition by which a Job is over, empty while it is not.
func ended(j *batchv1.Job) batchv1.JobConditionType {
	for _, c := range j.Status.Conditions {
		if (c.Type == batchv1.JobComplete || c.Type == batchv1.JobFailed) && c.Status == corev1.ConditionTrue {
			return c.Type
		}
	}
	return ""
}

func olderFirst(a, b *batchv1.Job) int {
	at, bt := a.Status.StartTime, b.Status.StartTime
	switch {
	case at == nil && bt != nil:
		return 1
	case at != nil && bt == nil:
		return -1
	case at != nil && !at.Equal(bt):
		return at.Compare(bt.Time)
	case a.Name < b.Name:
		return -1
	}
	return 1
}

// followUp brings the list of active Jobs in line with the Jobs that are there.
func followUp(d *Decision, jobs []*batchv1.Job) {
	byUID := map[string]*batchv1.Job{}
	for _, j := range jobs {
		byUID[string(j.UID)] = j
	}
	var active []corev1.ObjectReference
	listed := map[string]bool{}
	for _, r := range d.Status.Active {
		listed[string(r.UID)] = true
		j := byUID[string(r.UID)]
		switch {
		case j == nil:
			d.note(corev1.EventTypeNormal, "MissingJob", "Active job went missing: %v", r.Name)
		case ended(j) != "":
			d.note(corev1.EventTypeNormal, "SawCompletedJob", "Saw completed job: %s, condition: %v", j.Name, ended(j))
		default:
			active = append(active, r)
		}
	}
	for _, j := range jobs {
		if !listed[string(j.UID)] && ended(j) == "" {
			d.note(corev1.EventTypeWarning, "UnexpectedJob", "Saw a job that the controller did not create or forgot: %s", j.Name)
		}
		if t := j.Status.CompletionTime; ended(j) == batchv1.JobComplete && t != nil &&
			(d.Status.LastSuccessfulTime == nil || t.After(d.Status.LastSuccessfulTime.Time)) {
			d.Status.LastSuccessfulTime = t
		}
	}
	d.Status.Active = active
}

// history deletes the oldest ended Jobs beyond the limit.
func history(d *Decision, jobs []*batchv1.Job, limit *int32, kind batchv1.JobConditionType) {
	if limit == nil {
		return
	}
	var list []*batchv1.Job
	for _, j := range jobs {
		if ended(j) == kind && j.DeletionTimestamp == nil {
			list = append(list, j)
		}
	}
	d.Delete = append(d.Delete, list[:max(0, len(list)-int(*limit))]...)
}

// newJob is the Job of a scheduled time.
func newJob(cj *batchv1.CronJob, due time.Time, zone *time.Location) *batchv1.Job {
	t := cj.Spec.JobTemplate.DeepCopy()
	if t.Annotations == nil {
		t.Annotations = map[string]string{}
	}
	t.Annotations[batchv1.CronJobScheduledTimestampAnnotation] = due.In(zone).Format(time.RFC3339)
	return &batchv1.Job{
		ObjectMeta: metav1.ObjectMeta{
			Name: cj.Name + "-" + strconv.FormatInt(due.Unix()/60, 10), Namespace: cj.Namespace,
			Labels: t.Labels, Annotations: t.Annotations,
			CreationTimestamp: metav1.Time{},
			OwnerReferences:   []metav1.OwnerReference{*podset.Ref(cj, gvk)},
		},
		Spec: t.Spec,
	}
}
