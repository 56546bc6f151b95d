package bind

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
)

// recorder writes events.k8s.io/v1 events. An event that repeats (same pod, reason and note) within
// seriesGap is counted in a series, written at most once a minute. Events beyond the buffer are dropped
// and counted: they inform, nothing depends on them.
type recorder struct {
	api                  kubernetes.Interface
	controller, instance string
	metrics              *Metrics
	log                  *slog.Logger
	todo                 chan *eventsv1.Event

	mu     sync.Mutex // guards series
	series map[seriesKey]*series
}

type seriesKey struct {
	regarding    types.UID
	reason, note string
}

type series struct {
	event   *eventsv1.Event
	count   int32
	last    time.Time
	written time.Time
}

const (
	eventBuffer  = 8192
	eventWriters = 8
	maxSeries    = 8192
	seriesGap    = 6 * time.Minute
	seriesWrite  = time.Minute
	maxNoteBytes = 1024 // the API refuses more
)

func newRecorder(api kubernetes.Interface, controller, instance string, m *Metrics, log *slog.Logger) *recorder {
	return &recorder{api: api, controller: controller, instance: instance, metrics: m, log: log, todo: make(chan *eventsv1.Event, eventBuffer), series: map[seriesKey]*series{}}
}

func reference(p *corev1.Pod) corev1.ObjectReference {
	return corev1.ObjectReference{APIVersion: "v1", Kind: "Pod", Namespace: p.Namespace, Name: p.Name, UID: p.UID, ResourceVersion: p.ResourceVersion}
}

func (r *recorder) record(p, related *corev1.Pod, kind, reason, action, note string) {
	if len(note) > maxNoteBytes {
		note = note[:maxNoteBytes-3] + "..."
	}
	now := time.Now()
	e := &eventsv1.Event{
		ObjectMeta: metav1.ObjectMeta{Namespace: p.Namespace, Name: fmt.Sprintf("%s.%x", p.Name, now.UnixNano())},
		EventTime:  metav1.NewMicroTime(now), ReportingController: r.controller, ReportingInstance: r.instance,
		Action: action, Reason: reason, Regarding: reference(p), Note: note, Type: kind,
	}
	if related != nil {
		ref := reference(related)
		e.Related = &ref
	}
	if kind == corev1.EventTypeWarning && r.repeated(e, now) {
		return
	}
	select {
	case r.todo <- e:
	default:
		r.metrics.eventsDropped.Inc()
	}
}

// repeated counts an event that was written not long ago, and sends the count now and then.
func (r *recorder) repeated(e *eventsv1.Event, now time.Time) bool {
	key := seriesKey{e.Regarding.UID, e.Reason, e.Note}
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.series[key]
	if s == nil || now.Sub(s.last) > seriesGap {
		if len(r.series) >= maxSeries {
			clear(r.series) // repeats are then written as new events: nothing is lost
		}
		r.series[key] = &series{event: e, count: 1, last: now, written: now}
		return false
	}
	s.count++
	s.last = now
	if now.Sub(s.written) >= seriesWrite {
		s.written = now
		counted := s.event.DeepCopy()
		counted.Series = &eventsv1.EventSeries{Count: s.count, LastObservedTime: metav1.NewMicroTime(now)}
		select {
		case r.todo <- counted:
		default:
			r.metrics.eventsDropped.Inc()
		}
	}
	return true
}

func (r *recorder) run(ctx context.Context) error {
	var wg sync.WaitGroup
	for range eventWriters {
		wg.Go(func() {
			for {
				select {
				case <-ctx.Done():
					return
				case e := <-r.todo:
					r.write(ctx, e)
				}
			}
		})
	}
	wg.Wait()
	return nil
}

func (r *recorder) write(ctx context.Context, e *eventsv1.Event) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	events := r.api.EventsV1().Events(e.Namespace)
	var err error
	if e.Series != nil {
		var patch []byte
		if patch, err = json.Marshal(map[string]any{"series": e.Series}); err == nil {
			_, err = events.Patch(ctx, e.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{})
		}
		if apierrors.IsNotFound(err) { // it has run out meanwhile
			e = e.DeepCopy()
			e.Series = nil
			_, err = events.Create(ctx, e, metav1.CreateOptions{})
		}
	} else {
		_, err = events.Create(ctx, e, metav1.CreateOptions{})
	}
	// A namespace that is being deleted takes no events, and a pod's last event may come too late.
	if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsForbidden(err) && !apierrors.IsAlreadyExists(err) && ctx.Err() == nil {
		r.log.Warn("event could not be written", "pod", e.Regarding.Namespace+"/"+e.Regarding.Name, "reason", e.Reason, "err", err)
	}
}
