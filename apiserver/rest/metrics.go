package rest

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/keelson/keelson/apiserver/resources"
	"github.com/keelson/keelson/apiserver/series"
	"github.com/keelson/keelson/apiserver/watchcache"
)

// Metrics count what the verbs do, under upstream's names. nil counts nothing.
type Metrics struct {
	lists, fetched, returned *prometheus.CounterVec
	consistent               *prometheus.CounterVec
	waited                   *prometheus.HistogramVec
	bodies                   *prometheus.HistogramVec
	initial                  *prometheus.HistogramVec
	began, sent              *prometheus.CounterVec
	sentSizes                *prometheus.HistogramVec
	old                      *prometheus.GaugeVec

	keptLists  series.Kept[listKey, *listSeries]
	keptWaits  series.Kept[schema.GroupResource, waitSeries]
	keptBodies series.Kept[bodyKey, prometheus.Observer]
	keptSent   series.Kept[schema.GroupVersionResource, func(int)]
}

type listKey struct {
	schema.GroupResource
	index string
}

type listSeries struct{ lists, fetched, returned prometheus.Counter }

type waitSeries struct {
	took         prometheus.Observer
	fresh, stale prometheus.Counter
}

type bodyKey struct {
	schema.GroupResource
	verb string
}

// NewMetrics registers them.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	kind, kindVersion := []string{"group", "resource"}, []string{"group", "version", "resource"}
	m := &Metrics{
		lists:      series.Counter(reg, "apiserver_cache_list_total", "Lists answered from memory, by the index that was used.", "group", "resource", "index"),
		fetched:    series.Counter(reg, "apiserver_cache_list_fetched_objects_total", "Objects looked at to answer lists from memory.", "group", "resource", "index"),
		returned:   series.Counter(reg, "apiserver_cache_list_returned_objects_total", "Objects that lists from memory have shown.", kind...),
		consistent: series.Counter(reg, "apiserver_watch_cache_consistent_read_total", "Lists of the newest state answered from memory; here none falls back to the store.", "group", "resource", "success", "fallback"),
		waited: series.Histogram(reg, "apiserver_watch_cache_read_wait_seconds", "Time that reads wait until the state in memory is as new as they ask.",
			[]float64{0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1, 1.25, 1.5, 2, 3}, kind...),
		bodies: series.Histogram(reg, "apiserver_request_body_size_bytes", "Size of the bodies of writes, in bytes.",
			prometheus.LinearBuckets(50_000, 100_000, 31), "group", "resource", "verb"),
		initial: series.Histogram(reg, "apiserver_watch_list_duration_seconds", "Time until a watch that begins with the state has sent all of it.",
			[]float64{0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1, 2, 4, 6, 8, 10, 15, 20, 30, 45, 60}, "group", "version", "resource", "scope"),
		began:     series.Counter(reg, "apiserver_init_events_total", "Objects sent to watches that begin with the state.", kind...),
		sent:      series.Counter(reg, "apiserver_watch_events_total", "Events sent to watches.", kindVersion...),
		sentSizes: series.Histogram(reg, "apiserver_watch_events_sizes", "Size of the events sent to watches, in bytes.", prometheus.ExponentialBuckets(1024, 2, 8), kindVersion...),
		old: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "apiserver_requested_deprecated_apis", Help: "1 for each kind, or version of it, that is deprecated and has been asked for.",
		}, []string{"group", "version", "resource", "subresource", "removed_release"}),
	}
	reg.MustRegister(m.old)
	return m
}

// listed counts a list of kind gr: how many objects were looked at, and how many shown.
func (m *Metrics) listed(gr schema.GroupResource, sel watchcache.Selection, fetched int64, returned int) {
	if m == nil {
		return
	}
	s := m.keptLists.Of(listKey{gr, sel.Index()}, func(k listKey) *listSeries {
		return &listSeries{
			m.lists.WithLabelValues(k.Group, k.Resource, k.index), m.fetched.WithLabelValues(k.Group, k.Resource, k.index),
			m.returned.WithLabelValues(k.Group, k.Resource),
		}
	})
	s.lists.Inc()
	s.fetched.Add(float64(fetched))
	s.returned.Add(float64(returned))
}

// settled counts the wait of a read; newest says that it asked for the newest state of all.
func (m *Metrics) settled(gr schema.GroupResource, list, newest bool, took time.Duration, err error) {
	if m == nil {
		return
	}
	s := m.keptWaits.Of(gr, func(k schema.GroupResource) waitSeries {
		return waitSeries{
			m.waited.WithLabelValues(k.Group, k.Resource),
			m.consistent.WithLabelValues(k.Group, k.Resource, "true", "false"), m.consistent.WithLabelValues(k.Group, k.Resource, "false", "false"),
		}
	})
	s.took.Observe(took.Seconds())
	switch {
	case !list || !newest:
	case err == nil:
		s.fresh.Inc()
	default:
		s.stale.Inc()
	}
}

// bodyVerbs are the verbs whose bodies are counted, as the label names them.
var bodyVerbs = map[string]string{
	"create": "create", "update": "update", "patch": "patch", "delete": "delete", "deletecollection": "delete_collection",
}

func (m *Metrics) body(in *Info, gr schema.GroupResource, bytes int) {
	verb := bodyVerbs[in.Verb]
	if m == nil || verb == "" {
		return
	}
	m.keptBodies.Of(bodyKey{gr, verb}, func(k bodyKey) prometheus.Observer {
		return m.bodies.WithLabelValues(k.Group, k.Resource, k.verb)
	}).Observe(float64(bytes))
}

// begun counts a watch that has sent the state that it began with.
func (m *Metrics) begun(in *Info, row *resources.Row, took time.Duration) {
	if m != nil {
		m.initial.WithLabelValues(row.Group, row.Version, row.Plural, in.Scope()).Observe(took.Seconds())
	}
}

// shown counts the objects of the state that a watch begins with.
func (m *Metrics) shown(row *resources.Row, objects int) {
	if m != nil && objects > 0 {
		gr := row.Storage().GR()
		m.began.WithLabelValues(gr.Group, gr.Resource).Add(float64(objects))
	}
}

// events returns what is told the size of every event that a watch of row sends.
func (m *Metrics) events(row *resources.Row) func(bytes int) {
	if m == nil {
		return func(int) {}
	}
	return m.keptSent.Of(row.GVR(), func(r schema.GroupVersionResource) func(int) {
		n, size := m.sent.WithLabelValues(r.Group, r.Version, r.Resource), m.sentSizes.WithLabelValues(r.Group, r.Version, r.Resource)
		return func(bytes int) {
			n.Inc()
			size.Observe(float64(bytes))
		}
	})
}

// deprecated notes that somebody has asked for what shall not be used any more.
func (m *Metrics) deprecated(in *Info, row *resources.Row) {
	if m != nil {
		m.old.WithLabelValues(row.Group, row.Version, row.Plural, in.Subresource, "").Set(1)
	}
}
