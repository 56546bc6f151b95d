package apiserver

import (
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/keelson/keelson/apiserver/rest"
	"github.com/keelson/keelson/apiserver/watchcache"
)

// metrics have upstream's names, so that dashboards and alerts work.
type metrics struct {
	total    *prometheus.CounterVec
	duration *prometheus.HistogramVec
	rejected prometheus.Counter

	kept sync.Map // metricKey → observers: looking labels up costs more than counting
}

type metricKey struct {
	verb, group, version, plural, sub string
	code                              int
}

type observers struct {
	total    prometheus.Counter
	duration prometheus.Observer
}

func newMetrics(reg prometheus.Registerer, cache *watchcache.Cache, reading, writing *atomic.Int64) *metrics {
	labels := []string{"verb", "group", "version", "resource", "subresource", "scope", "component"}
	m := &metrics{
		total: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "apiserver_request_total", Help: "Requests by verb, resource and status code.",
		}, append([]string{"code"}, labels...)),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "apiserver_request_duration_seconds", Help: "Time to answer, but for watches and streams.",
			Buckets: []float64{0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60},
		}, labels),
		rejected: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "apiserver_rejected_requests_total", Help: "Requests refused with 429 because too many were in flight.",
		}),
	}
	inflight := func(kind string, n *atomic.Int64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "apiserver_current_inflight_requests", Help: "Requests being served.",
			ConstLabels: prometheus.Labels{"request_kind": kind},
		}, func() float64 { return float64(n.Load()) })
	}
	reg.MustRegister(m.total, m.duration, m.rejected, inflight("readOnly", reading), inflight("mutating", writing), cacheMetrics{cache})
	return m
}

func (m *metrics) observe(in *rest.Info, w *answer, long bool, took time.Duration) {
	code := w.code
	if code == 0 {
		code = http.StatusOK
	}
	k := metricKey{verb: in.Verb, code: code}
	if in.Resource && code != http.StatusNotFound { // unknown resources must not become labels
		k.group, k.version, k.plural, k.sub = in.Group, in.Version, in.Plural, in.Subresource
	}
	var o observers
	if v, ok := m.kept.Load(k); ok {
		o = v.(observers)
	} else {
		scope := ""
		if in.Resource {
			scope = "resource"
			if in.Name == "" {
				scope = "namespace"
				if in.Namespace == "" {
					scope = "cluster"
				}
			}
		}
		verb := upper(k.verb)
		o.total = m.total.WithLabelValues(strconv.Itoa(code), verb, k.group, k.version, k.plural, k.sub, scope, "apiserver")
		o.duration = m.duration.WithLabelValues(verb, k.group, k.version, k.plural, k.sub, scope, "apiserver")
		m.kept.Store(k, o)
	}
	o.total.Inc()
	if !long {
		o.duration.Observe(took.Seconds())
	}
}

var verbs = map[string]string{
	"get": "GET", "list": "LIST", "watch": "WATCH", "create": "POST", "update": "PUT", "patch": "PATCH",
	"delete": "DELETE", "deletecollection": "DELETECOLLECTION", "post": "POST", "put": "PUT", "head": "HEAD",
}

func upper(verb string) string {
	if v, ok := verbs[verb]; ok {
		return v
	}
	return "other"
}

// cacheMetrics reads the cache's numbers when they are asked for.
type cacheMetrics struct{ c *watchcache.Cache }

var (
	objectsDesc  = prometheus.NewDesc("apiserver_storage_objects", "Stored objects by resource.", []string{"resource"}, nil)
	revisionDesc = prometheus.NewDesc("apiserver_watch_cache_resource_version", "Revision of the newest state in memory.", nil, nil)
	watchesDesc  = prometheus.NewDesc("apiserver_registered_watchers", "Open watches.", nil, nil)
)

func (m cacheMetrics) Describe(ch chan<- *prometheus.Desc) {
	ch <- objectsDesc
	ch <- revisionDesc
	ch <- watchesDesc
}

func (m cacheMetrics) Collect(ch chan<- prometheus.Metric) {
	s := m.c.Stats()
	ch <- prometheus.MustNewConstMetric(revisionDesc, prometheus.GaugeValue, float64(s.Rev))
	ch <- prometheus.MustNewConstMetric(watchesDesc, prometheus.GaugeValue, float64(s.Cursors))
	for resource, n := range m.c.Snapshot().Counts() {
		ch <- prometheus.MustNewConstMetric(objectsDesc, prometheus.GaugeValue, float64(n), resource)
	}
}
