package resources

import (
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/duration"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/keelson/keelson/apiserver/resources/check"
)

func events(cfg Config) Resource[corev1.Event] {
	return Resource[corev1.Event]{
		Group: "", Version: "v1", Kind: "Event", Plural: "events", AnyFinalizer: true, Short: []string{"ev"},
		List:         func() runtime.Object { return &corev1.EventList{} },
		NoGeneration: true, NoDependents: true, CreateOnUpdate: true, Name: PathSegment,
		Main: Part[corev1.Event]{
			Validate: func(_ *Request, obj, _ *corev1.Event) field.ErrorList {
				return validateEvent(obj, "reportingComponent")
			},
		},
		TTL:        func(*corev1.Event) time.Duration { return time.Duration(cfg.EventTTLSeconds) * time.Second },
		Fields:     eventFields,
		FieldNames: eventFieldNames,
		Docs:       eventDocs,
		Columns:    eventColumns,
	}
}

var eventFieldNames = []string{
	"involvedObject.kind", "involvedObject.namespace", "involvedObject.name", "involvedObject.uid",
	"involvedObject.apiVersion", "involvedObject.resourceVersion", "involvedObject.fieldPath",
	"reason", "reportingComponent", "source", "type",
}

func eventFields(e *corev1.Event) fields.Set {
	source := e.Source.Component
	def(&source, e.ReportingController)
	return fields.Set{
		"involvedObject.kind":            e.InvolvedObject.Kind,
		"involvedObject.namespace":       e.InvolvedObject.Namespace,
		"involvedObject.name":            e.InvolvedObject.Name,
		"involvedObject.uid":             string(e.InvolvedObject.UID),
		"involvedObject.apiVersion":      e.InvolvedObject.APIVersion,
		"involvedObject.resourceVersion": e.InvolvedObject.ResourceVersion,
		"involvedObject.fieldPath":       e.InvolvedObject.FieldPath,
		"reason":                         e.Reason,
		"reportingComponent":             e.ReportingController,
		"source":                         source,
		"type":                           e.Type,
	}
}

// Limits of the "new" events, those with an eventTime.
// Source: events.k8s.io/v1 API reference.
const (
	eventNameMax = 128
	eventNoteMax = 1024
)

// validateEvent checks what both versions demand. controller is the name of
// the reporting field in the version asked.
func validateEvent(e *corev1.Event, controller string) field.ErrorList {
	var f check.Faults
	at := field.NewPath
	regarding := e.InvolvedObject.Namespace
	mismatch := func() {
		f.Invalid(at("involvedObject", "namespace"), regarding, "does not match event.namespace")
	}
	if e.EventTime.IsZero() {
		// Events about cluster-scoped objects are in "default".
		if regarding == "" && e.Namespace != "" && e.Namespace != metav1.NamespaceDefault || regarding != "" && regarding != e.Namespace {
			mismatch()
		}
	} else {
		if regarding == "" && e.Namespace != metav1.NamespaceDefault && e.Namespace != metav1.NamespaceSystem {
			mismatch()
		}
		bounded := func(name, value string, required bool, max int) {
			if required && value == "" {
				f.Required(at(name), "")
			}
			if len(value) > max {
				f.Invalid(at(name), "", fmt.Sprintf("can have at most %v characters", max))
			}
		}
		if e.ReportingController == "" {
			f.Required(at(controller), "")
		}
		f.QualifiedName(at(controller), e.ReportingController)
		bounded("reportingInstance", e.ReportingInstance, true, eventNameMax)
		bounded("action", e.Action, true, eventNameMax)
		bounded("reason", e.Reason, true, eventNameMax)
		bounded("message", e.Message, false, eventNoteMax)
	}
	f.Subdomain(at("namespace"), e.Namespace)
	return f.List()
}

// validateEventV1 adds what only events.k8s.io/v1 demands: the deprecated
// fields stay empty, and after creation nothing but the series changes.
func validateEventV1(e, old *eventsv1.Event) field.ErrorList {
	var f check.Faults
	f.Add(validateEvent(eventFromV1(e), "reportingController"))
	at := field.NewPath
	series := func() {
		if e.Series == nil {
			return
		}
		if e.Series.Count < 2 {
			f.Invalid(at("series.count"), "", "should be at least 2")
		}
		if e.Series.LastObservedTime.IsZero() {
			f.Required(at("series.lastObservedTime"), "")
		}
	}
	if old != nil {
		if (e.Series == nil) != (old.Series == nil) || e.Series != nil && *e.Series != *old.Series {
			series()
		}
		for _, c := range []struct {
			name     string
			now, was any
		}{
			{"involvedObject", e.Regarding, old.Regarding}, {"reason", e.Reason, old.Reason}, {"message", e.Note, old.Note},
			{"source", e.DeprecatedSource, old.DeprecatedSource},
			{"firstTimestamp", e.DeprecatedFirstTimestamp, old.DeprecatedFirstTimestamp},
			{"lastTimestamp", e.DeprecatedLastTimestamp, old.DeprecatedLastTimestamp},
			{"count", e.DeprecatedCount, old.DeprecatedCount}, {"type", e.Type, old.Type},
			{"eventTime", metav1.NewMicroTime(e.EventTime.Truncate(time.Microsecond).UTC()), metav1.NewMicroTime(old.EventTime.Truncate(time.Microsecond).UTC())},
			{"action", e.Action, old.Action}, {"related", e.Related, old.Related},
			{"reportingController", e.ReportingController, old.ReportingController},
			{"reportingInstance", e.ReportingInstance, old.ReportingInstance},
		} {
			f.Same(at(c.name), c.now, c.was)
		}
		return f.List()
	}
	series()
	if e.EventTime.IsZero() {
		f.Required(at("eventTime"), "")
	}
	if e.Type != corev1.EventTypeNormal && e.Type != corev1.EventTypeWarning {
		f.Invalid(at("type"), "", fmt.Sprintf("has invalid value: %v", e.Type))
	}
	for name, set := range map[string]bool{
		"firstTimestamp": !e.DeprecatedFirstTimestamp.IsZero(), "lastTimestamp": !e.DeprecatedLastTimestamp.IsZero(),
		"count": e.DeprecatedCount != 0, "source": e.DeprecatedSource != (corev1.EventSource{}),
	} {
		if set {
			f.Invalid(at(name), "", "needs to be unset")
		}
	}
	return f.List()
}

// eventTimes returns when the event was first and last seen, and how often.
func eventTimes(e *corev1.Event) (first, last time.Time, count int64) {
	first = e.FirstTimestamp.Time
	if first.IsZero() {
		first = e.EventTime.Time
	}
	last, count = e.LastTimestamp.Time, int64(e.Count)
	if e.Series != nil {
		last, count = e.Series.LastObservedTime.Time, int64(e.Series.Count)
	}
	if last.IsZero() {
		last = first
	}
	return first, last, max(count, 1)
}

func since(t, now time.Time) string {
	if t.IsZero() {
		return "<unknown>"
	}
	return duration.HumanDuration(now.Sub(t))
}

// eventColumns lack the leading Name: kubectl prints it last, in the wide form.
var eventColumns = []Column[corev1.Event]{
	{Name: "Last Seen", Type: "string", Cell: func(e *corev1.Event, now time.Time) any {
		_, last, _ := eventTimes(e)
		return since(last, now)
	}},
	text("Type", func(e *corev1.Event) string { return e.Type }),
	text("Reason", func(e *corev1.Event) string { return e.Reason }),
	text("Object", func(e *corev1.Event) string {
		if e.InvolvedObject.Kind == "" {
			return e.InvolvedObject.Name
		}
		return lower(e.InvolvedObject.Kind) + "/" + e.InvolvedObject.Name
	}),
	wide(text("Subobject", func(e *corev1.Event) string { return e.InvolvedObject.FieldPath })),
	wide(text("Source", func(e *corev1.Event) string {
		source, host := e.Source.Component, e.Source.Host
		def(&source, e.ReportingController)
		def(&host, e.ReportingInstance)
		if host == "" {
			return source
		}
		return source + ", " + host
	})),
	text("Message", func(e *corev1.Event) string { return trimSpace(e.Message) }),
	{Name: "First Seen", Type: "string", Priority: 1, Cell: func(e *corev1.Event, now time.Time) any {
		first, _, _ := eventTimes(e)
		return since(first, now)
	}},
	wide(counted("Count", func(e *corev1.Event) int64 { _, _, n := eventTimes(e); return n })),
	{Name: "Name", Type: "string", Format: "name", Priority: 1, Description: metav1.ObjectMeta{}.SwaggerDoc()["name"], Cell: func(e *corev1.Event, _ time.Time) any { return e.Name }},
}

var eventDocs = map[string]string{
	"Last Seen":  corev1.Event{}.SwaggerDoc()["lastTimestamp"],
	"Type":       corev1.Event{}.SwaggerDoc()["type"],
	"Reason":     corev1.Event{}.SwaggerDoc()["reason"],
	"Object":     corev1.Event{}.SwaggerDoc()["involvedObject"],
	"Subobject":  corev1.ObjectReference{}.SwaggerDoc()["fieldPath"],
	"Source":     corev1.Event{}.SwaggerDoc()["source"],
	"Message":    corev1.Event{}.SwaggerDoc()["message"],
	"First Seen": corev1.Event{}.SwaggerDoc()["firstTimestamp"],
	"Count":      corev1.Event{}.SwaggerDoc()["count"],
}
