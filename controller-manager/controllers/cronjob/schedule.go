package cronjob

import (
	"fmt"
	"time"
	_ "time/tzdata" // time zones must not depend on what the machine has installed

	"github.com/robfig/cron/v3"
	batchv1 "k8s.io/api/batch/v1"
)

// mostMissed is the number of missed times above which a warning is given.
const mostMissed = 100

// schedule is a CronJob's schedule in its time zone.
type schedule struct {
	cron.Schedule
	zone *time.Location
}

type scheduleError struct {
	text string
	zone bool
}

func parse(cj *batchv1.CronJob) (schedule, *scheduleError) {
	s := schedule{zone: time.Local}
	text := cj.Spec.Schedule
	if z := cj.Spec.TimeZone; z != nil {
		zone, err := time.LoadLocation(*z)
		if err != nil {
			return s, &scheduleError{text: fmt.Sprintf("invalid timeZone: %q: %s", *z, err), zone: true}
		}
		s.zone = zone
		text = fmt.Sprintf("TZ=%s %s", *z, text)
	}
	parsed, err := cron.ParseStandard(text)
	if err != nil {
		return s, &scheduleError{text: fmt.Sprintf("unparseable schedule: %q : %s", cj.Spec.Schedule, err)}
	}
	s.Schedule = parsed
	return s, nil
}

// due is the latest scheduled time that is not after now and after the last one
// (or the CronJob's creation, or the starting deadline, whichever is latest). It is
// zero when there is none. missed counts the scheduled times since then, up to one
// more than mostMissed.
func (s schedule) due(cj *batchv1.CronJob, now time.Time) (at time.Time, missed int) {
	since := cj.CreationTimestamp.Time
	if cj.Status.LastScheduleTime != nil {
		since = cj.Status.LastScheduleTime.Time
	}
	if l := cj.Spec.StartingDeadlineSeconds; l != nil {
		if d := now.Add(-time.Duration(*l) * time.Second); d.After(since) {
			since = d
		}
	}
	for t := s.Next(since); !t.IsZero() && !t.After(now) && missed <= mostMissed; t = s.Next(t) {
		at = t
		missed++
	}
	if missed <= mostMissed {
		return at, missed
	}
	// Too many to walk over: look back from now in growing steps.
	for back := time.Minute; ; back *= 2 {
		from := now.Add(-back)
		if from.Before(since) {
			from = since
		}
		t := s.Next(from)
		if t.IsZero() || t.After(now) {
			continue
		}
		for ; !t.IsZero() && !t.After(now); t = s.Next(t) {
			at = t
		}
		return at, missed
	}
}
