package cronjob

import (
	"strings"
	"testing"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kruntime "k8s.io/apimachinery/pkg/runtime"
	"k8s.io/utils/ptr"

	"github.com/keelson/keelson/controller-manager/ctrltest"
	"github.com/keelson/keelson/controller-manager/runtime"
)

var noon = time.Date(2026, 3, 28, 12, 0, 0, 0, time.UTC)

func cronJob(schedule string, change ...func(*batchv1.CronJob)) *batchv1.CronJob {
	c := &batchv1.CronJob{
		ObjectMeta: metav1.ObjectMeta{Name: "c", Namespace: "ns", UID: "cron", CreationTimestamp: metav1.NewTime(noon)},
		Spec:       batchv1.CronJobSpec{Schedule: schedule, TimeZone: ptr.To("UTC"), ConcurrencyPolicy: batchv1.AllowConcurrent},
	}
	for _, f := range change {
		f(c)
	}
	return c
}

func job(name string, c *batchv1.CronJob, end batchv1.JobConditionType, started time.Time) *batchv1.Job {
	j := newJob(c, started, time.UTC)
	j.Name, j.UID = name, "uid-"+"x"
	j.UID = "uid-" + j.UID
	j.Status.StartTime = &metav1.Time{Time: started}
	if end != "" {
		j.Status.Conditions = []batchv1.JobCondition{{Type: end, Status: corev1.ConditionTrue}}
		j.Status.CompletionTime = &metav1.Time{Time: started.Add(time.Minute)}
	}
	return j
}

func text(d Decision) string {
	l := d.Lines()
	for _, e := range d.Events {
		l = append(l, e.Reason)
	}
	return strings.Join(l, ", ")
}

func TestDecide(t *testing.T) {
	at := func(s string) time.Time {
		v, err := time.Parse("2006-01-02 15:04:05", s)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	running := func(c *batchv1.CronJob) []*batchv1.Job {
		j := job("running", c, "", noon)
		c.Status.Active = []corev1.ObjectReference{{Name: "running", UID: j.UID}}
		return []*batchv1.Job{j}
	}
	for _, r := range []struct {
		name  string
		cron  *batchv1.CronJob
		jobs  func(*batchv1.CronJob) []*batchv1.Job
		now   string
		want  string
		again string
	}{
		{name: "nothing is due yet", cron: cronJob("0 * * * *"), now: "2026-03-28 12:59:59", again: "2026-03-28 13:00:00"},
		{name: "the hour has come", cron: cronJob("0 * * * *"), now: "2026-03-28 13:00:00", want: "start job c-29578380 of 2026-03-28T13:00:00Z", again: "2026-03-28 14:00:00"},
		{name: "of several missed times the latest is started", cron: cronJob("0 * * * *"), now: "2026-03-28 15:30:00", want: "start job c-29578500 of 2026-03-28T15:00:00Z", again: "2026-03-28 16:00:00"},
		{name: "a time is started once", cron: cronJob("0 * * * *", func(c *batchv1.CronJob) { c.Status.LastScheduleTime = &metav1.Time{Time: at("2026-03-28 13:00:00")} }),
			now: "2026-03-28 13:00:10", again: "2026-03-28 14:00:00"},
		{name: "too late for the deadline", cron: cronJob("0 * * * *", func(c *batchv1.CronJob) { c.Spec.StartingDeadlineSeconds = ptr.To(int64(10)) }),
			now: "2026-03-28 13:00:20", again: "2026-03-28 14:00:00"},
		{name: "suspended", cron: cronJob("0 * * * *", func(c *batchv1.CronJob) { c.Spec.Suspend = ptr.To(true) }), now: "2026-03-28 13:00:00"},
		{name: "Forbid waits for the running job", cron: cronJob("0 * * * *", func(c *batchv1.CronJob) { c.Spec.ConcurrencyPolicy = batchv1.ForbidConcurrent }), jobs: running,
			now: "2026-03-28 13:00:00", want: "JobAlreadyActive", again: "2026-03-28 14:00:00"},
		{name: "Replace ends the running job", cron: cronJob("0 * * * *", func(c *batchv1.CronJob) { c.Spec.ConcurrencyPolicy = batchv1.ReplaceConcurrent }), jobs: running,
			now: "2026-03-28 13:00:00", want: "delete job running, start job c-29578380 of 2026-03-28T13:00:00Z", again: "2026-03-28 14:00:00"},
		{name: "time zones count", cron: cronJob("30 6 * * *", func(c *batchv1.CronJob) { c.Spec.TimeZone = ptr.To("Asia/Kolkata") }), now: "2026-03-29 01:00:00",
			want: "start job c-29579100 of 2026-03-29T01:00:00Z", again: "2026-03-30 01:00:00"},
		{name: "an unknown time zone", cron: cronJob("0 * * * *", func(c *batchv1.CronJob) { c.Spec.TimeZone = ptr.To("Mars/Base") }), now: "2026-03-28 13:00:00", want: "UnknownTimeZone"},
		{name: "a schedule that cannot be read", cron: cronJob("often"), now: "2026-03-28 13:00:00", want: "UnparseableSchedule"},
		{name: "a month of missed minutes", cron: cronJob("* * * * *"), now: "2026-04-28 12:00:30", want: "start job c-29622960 of 2026-04-28T12:00:00Z, TooManyMissedTimes", again: "2026-04-28 12:01:00"},
		{name: "history beyond the limits goes, oldest first", cron: cronJob("0 0 1 1 *", func(c *batchv1.CronJob) {
			c.Spec.SuccessfulJobsHistoryLimit, c.Spec.FailedJobsHistoryLimit = ptr.To(int32(1)), ptr.To(int32(0))
		}), jobs: func(c *batchv1.CronJob) []*batchv1.Job {
			return []*batchv1.Job{job("new", c, batchv1.JobComplete, noon.Add(time.Hour)), job("old", c, batchv1.JobComplete, noon), job("bad", c, batchv1.JobFailed, noon)}
		}, now: "2026-03-28 13:00:00", want: "delete job old, delete job bad", again: "2027-01-01 00:00:00"},
	} {
		var jobs []*batchv1.Job
		if r.jobs != nil {
			jobs = r.jobs(r.cron)
		}
		d := Decide(r.cron, jobs, at(r.now))
		if got := text(d); got != r.want {
			t.Errorf("%s: want %q, got %q", r.name, r.want, got)
		}
		if r.again != "" && d.Again.Truncate(time.Second) != at(r.again) || r.again == "" && !d.Again.IsZero() {
			t.Errorf("%s: looks again at %s, want %s", r.name, d.Again, r.again)
		}
	}
}

func TestStartsByTheClock(t *testing.T) {
	ctrltest.Test(t, []runtime.Row{Row}, []kruntime.Object{cronJob("*/10 * * * *", func(c *batchv1.CronJob) { c.CreationTimestamp = metav1.Time{} })}, func(t *testing.T, h *ctrltest.Harness) {
		h.Writes()
		h.After(30*time.Minute + time.Second)
		if w := h.Writes(); strings.Count(w, "create jobs") != 3 {
			t.Errorf("want a job every ten minutes:\n%s", w)
		}
	})
}
