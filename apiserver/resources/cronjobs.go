package resources

import (
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/robfig/cron/v3"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/keelson/keelson/apiserver/resources/check"
	"github.com/keelson/keelson/apiserver/resources/podrules"
)

var cronJobs = Resource[batchv1.CronJob]{
	Group: "batch", Version: "v1", Kind: "CronJob", Plural: "cronjobs", Prefix: "cronjobs", Short: []string{"cj"}, Categories: []string{"all"},
	List: listOf[batchv1.CronJobList],
	Default: func(c *batchv1.CronJob) {
		def(&c.Spec.ConcurrencyPolicy, batchv1.AllowConcurrent)
		defPtr(&c.Spec.Suspend, false)
		defPtr(&c.Spec.SuccessfulJobsHistoryLimit, 3)
		defPtr(&c.Spec.FailedJobsHistoryLimit, 1)
		// The template's job gets its own defaults when it is created; only its pods are filled here.
		podrules.DefaultTemplate(&c.Spec.JobTemplate.Spec.Template)
	},
	Main: templated(withNameWarning(mainPart(func(c *batchv1.CronJob) *batchv1.CronJobStatus { return &c.Status }, validateCronJob)),
		func(c *batchv1.CronJob) *corev1.PodTemplateSpec { return &c.Spec.JobTemplate.Spec.Template }, "spec", "jobTemplate", "spec", "template"),
	Status: statusPart[batchv1.CronJob](func(c *batchv1.CronJob) *batchv1.CronJobSpec { return &c.Spec }, nil),
	Docs: map[string]string{
		"Schedule":      batchv1.CronJobSpec{}.SwaggerDoc()["schedule"],
		"Timezone":      batchv1.CronJobSpec{}.SwaggerDoc()["timeZone"],
		"Suspend":       batchv1.CronJobSpec{}.SwaggerDoc()["suspend"],
		"Active":        batchv1.CronJobStatus{}.SwaggerDoc()["active"],
		"Last Schedule": batchv1.CronJobStatus{}.SwaggerDoc()["lastScheduleTime"],
		"Selector":      batchv1.JobSpec{}.SwaggerDoc()["selector"],
	},
	Columns: append([]Column[batchv1.CronJob]{
		text("Schedule", func(c *batchv1.CronJob) string { return c.Spec.Schedule }),
		text("Timezone", func(c *batchv1.CronJob) string { return valueOr(c.Spec.TimeZone, "<none>") }),
		{Name: "Suspend", Type: "boolean", Cell: func(c *batchv1.CronJob, _ time.Time) any {
			if c.Spec.Suspend == nil {
				return "<unset>"
			}
			if *c.Spec.Suspend {
				return "True"
			}
			return "False"
		}},
		number("Active", func(c *batchv1.CronJob) int { return len(c.Status.Active) }),
		{Name: "Last Schedule", Type: "string", Cell: func(c *batchv1.CronJob, now time.Time) any {
			if c.Status.LastScheduleTime == nil {
				return "<none>"
			}
			return Age(*c.Status.LastScheduleTime, now)
		}},
		ageColumn[batchv1.CronJob](),
	}, workloadColumns(func(c *batchv1.CronJob) *corev1.PodSpec { return &c.Spec.JobTemplate.Spec.Template.Spec },
		func(c *batchv1.CronJob) string { return selectorText(c.Spec.JobTemplate.Spec.Selector) })...),
}

// timeZonePart is one component of an IANA zone name.
var timeZonePart = regexp.MustCompile(`^[A-Za-z.\-_0-9+]{1,14}$`)

func validateCronJob(c, old *batchv1.CronJob) field.ErrorList {
	var f check.Faults
	s, p := &c.Spec, field.NewPath("spec")
	if old == nil && len(c.Name) > 52 { // the controller adds 11 characters
		f.Invalid(field.NewPath("metadata", "name"), c.Name, "must be no more than 52 characters")
	}
	if f.Need(p.Child("schedule"), s.Schedule) {
		if err := parseSchedule(s.Schedule); err != nil {
			f.Invalid(p.Child("schedule"), s.Schedule, err.Error())
		}
		switch hadZone := old != nil && strings.Contains(old.Spec.Schedule, "TZ"); {
		case !strings.Contains(s.Schedule, "TZ"):
		case !hadZone:
			f.Invalid(p.Child("schedule"), s.Schedule, "cannot use TZ or CRON_TZ in schedule, use timeZone field instead")
		case s.TimeZone != nil:
			f.Invalid(p.Child("schedule"), s.Schedule, "cannot use both timeZone field and TZ or CRON_TZ in schedule")
		}
	}
	if s.TimeZone != nil && (old == nil || valueOr(old.Spec.TimeZone, "") != *s.TimeZone) {
		validateTimeZone(&f, *s.TimeZone, p.Child("timeZone"))
	}
	check.AtLeastZeroPtr(&f, p.Child("startingDeadlineSeconds"), s.StartingDeadlineSeconds)
	check.AtLeastZeroPtr(&f, p.Child("successfulJobsHistoryLimit"), s.SuccessfulJobsHistoryLimit)
	check.AtLeastZeroPtr(&f, p.Child("failedJobsHistoryLimit"), s.FailedJobsHistoryLimit)
	check.OneOf(&f, p.Child("concurrencyPolicy"), s.ConcurrencyPolicy, batchv1.AllowConcurrent, batchv1.ForbidConcurrent, batchv1.ReplaceConcurrent)
	at := p.Child("jobTemplate", "spec")
	validateJobSpec(&f, &s.JobTemplate.Spec, at)
	if sel := s.JobTemplate.Spec.Selector; sel != nil {
		f.Invalid(at.Child("selector"), sel, "`selector` will be auto-generated")
	}
	if valueOr(s.JobTemplate.Spec.ManualSelector, false) {
		f.Add(field.ErrorList{field.NotSupported(at.Child("manualSelector"), true, []string{"nil", "false"})})
	}
	return f.List()
}

// parseSchedule is cron's five fields or a descriptor; the parser is known to panic on some input.
func parseSchedule(schedule string) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("invalid schedule: %v", r)
		}
	}()
	_, err = cron.ParseStandard(schedule)
	return err
}

func validateTimeZone(f *check.Faults, zone string, p *field.Path) {
	if zone == "" {
		f.Invalid(p, zone, "timeZone must be nil or non-empty string")
		return
	}
	for _, part := range strings.Split(zone, "/") {
		if part == "." || part == ".." || strings.HasPrefix(part, "-") || !timeZonePart.MatchString(part) {
			f.Invalid(p, zone, "unknown time zone "+zone)
			return
		}
	}
	if strings.EqualFold(zone, "Local") {
		f.Invalid(p, zone, "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones")
	}
	if _, err := time.LoadLocation(zone); err != nil {
		f.Invalid(p, zone, err.Error())
	}
}
