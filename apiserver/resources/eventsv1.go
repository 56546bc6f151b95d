package resources

import (
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// eventsV1 is the view of core events as events.k8s.io/v1: the same objects
// under renamed fields (note is message, regarding is involvedObject, the
// deprecated fields are the core ones).
func eventsV1(core *Row) Resource[eventsv1.Event] {
	return Resource[eventsv1.Event]{
		Group: "events.k8s.io", Version: "v1", Kind: "Event", Plural: "events", Short: []string{"ev"},
		List:           func() runtime.Object { return &eventsv1.EventList{} },
		CreateOnUpdate: true, NoGeneration: true, NoDependents: true,
		Main: Part[eventsv1.Event]{
			Validate: func(rq *Request, obj, old *eventsv1.Event) field.ErrorList { return validateEventV1(obj, old) },
		},
		Fields:     func(e *eventsv1.Event) fields.Set { return eventFields(eventFromV1(e)) },
		FieldNames: []string{"reason", "type"},
		FieldAlias: map[string]string{
			"regarding.kind": "involvedObject.kind", "regarding.namespace": "involvedObject.namespace", "regarding.name": "involvedObject.name",
			"regarding.uid": "involvedObject.uid", "regarding.apiVersion": "involvedObject.apiVersion",
			"regarding.resourceVersion": "involvedObject.resourceVersion", "regarding.fieldPath": "involvedObject.fieldPath",
			"reportingController": "reportingComponent",
		},
		Stored:     core,
		ToStored:   func(e *eventsv1.Event) Object { return eventFromV1(e) },
		FromStored: func(o Object) *eventsv1.Event { return eventToV1(o.(*corev1.Event)) },
		Docs:       eventDocs,
		Columns:    viewColumns(eventColumns, eventFromV1),
	}
}

// viewColumns prints a view's objects with the columns of the stored kind.
func viewColumns[V, S any](cols []Column[S], to func(*V) *S) []Column[V] {
	out := make([]Column[V], len(cols))
	for i, c := range cols {
		out[i] = Column[V]{Name: c.Name, Type: c.Type, Format: c.Format, Description: c.Description, Priority: c.Priority}
		cell := c.Cell
		out[i].Cell = func(v *V, now timeT) any { return cell(to(v), now) }
	}
	return out
}

func eventFromV1(e *eventsv1.Event) *corev1.Event {
	c := &corev1.Event{
		TypeMeta: e.TypeMeta, ObjectMeta: e.ObjectMeta,
		InvolvedObject: e.Regarding, Reason: e.Reason, Message: e.Note, Type: e.Type,
		Source: e.DeprecatedSource, FirstTimestamp: e.DeprecatedFirstTimestamp, LastTimestamp: e.DeprecatedLastTimestamp,
		Count: e.DeprecatedCount, EventTime: e.EventTime, Action: e.Action, Related: e.Related,
		ReportingController: e.ReportingController, ReportingInstance: e.ReportingInstance,
	}
	if c.TypeMeta.Kind != "" {
		c.TypeMeta.APIVersion = "v1"
	}
	if e.Series != nil {
		c.Series = &corev1.EventSeries{Count: e.Series.Count, LastObservedTime: e.Series.LastObservedTime}
	}
	return c
}

func eventToV1(c *corev1.Event) *eventsv1.Event {
	e := &eventsv1.Event{
		TypeMeta: c.TypeMeta, ObjectMeta: c.ObjectMeta,
		Regarding: c.InvolvedObject, Reason: c.Reason, Note: c.Message, Type: c.Type,
		DeprecatedSource: c.Source, DeprecatedFirstTimestamp: c.FirstTimestamp, DeprecatedLastTimestamp: c.LastTimestamp,
		DeprecatedCount: c.Count, EventTime: c.EventTime, Action: c.Action, Related: c.Related,
		ReportingController: c.ReportingController, ReportingInstance: c.ReportingInstance,
	}
	if e.TypeMeta.Kind != "" {
		e.TypeMeta.APIVersion = "events.k8s.io/v1"
	}
	if c.Series != nil {
		e.Series = &eventsv1.EventSeries{Count: c.Series.Count, LastObservedTime: c.Series.LastObservedTime}
	}
	return e
}
