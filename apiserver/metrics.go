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
	sli      *prometheus.HistogramVec
	sizes    *prometheus.HistogramVec
	rejected prometheus.Counter

	kept sync.Map // metricKey → observers: looking labels up costs more than counting
}

type metricKey struct {
	verb, group, version, plural, sub, scope string

	code int
	long bool
}

type observers struct {
	total         prometheus.Counter
	duration, sli prometheus.Observer
	sizes         prometheus.Observer // nil: of an answer that is no read
}

// seconds are the bounds of request durations.
var seconds = []float64{0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1, 1.25, 1.5, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 45, 60}

func newMetrics(reg prometheus.Registerer, cache *watchcache.Cache, reading, writing *atomic.Int64) *metrics {
	labels := []string{"verb", "group", "version", "resource", "subresource", "scope", "component"}
	m := &metrics{
		total: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "apiserver_request_total", Help: "Requests by verb, resource and status code.",
		}, append([]string{"code"}, labels...)),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "apiserver_request_duration_seconds", Help: "Time to answer, but for watches and streams.",
			// Source: kube-apiserver 1.36; the rules of kubernetes-mixin ask for le="1", "5" and "30".
			Buckets: append([]float64{0.005, 0.025}, seconds...),
		}, labels),
		sli: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "apiserver_request_sli_duration_seconds",
			Help:    "The same, for service level indicators. What webhooks take, and the wait for a seat, are in it.",
			Buckets: seconds,
		}, labels),
		sizes: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "apiserver_response_sizes", Help: "Size of the answers to GET and LIST, in bytes as sent.", Buckets: prometheus.ExponentialBuckets(1000, 10, 7),
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
	reg.MustRegister(m.total, m.duration, m.sli, m.sizes, m.rejected, inflight("readOnly", reading), inflight("mutating", writing), cacheMetrics{cache})
	return m
}

func (m *metrics) observe(in *rest.Info, w *answer, long bool, took time.Duration) {
	code := w.code
	if code == 0 {
		code = http.StatusOK
	}
	k := metricKey{verb: in.Verb, code: code, long: long}
	if in.Resource && code != http.StatusNotFound { // unknown resources must not become labels
		k.group, k.version, k.plural, k.sub = in.Group, in.Version, in.Plural, in.Subresource
	}
	k.scope = scopeOf(in)
	var o observers
	if v, ok := m.kept.Load(k); ok {
		o = v.(observers)
	} else {
		labels := []string{upper(in), k.group, k.version, k.plural, k.sub, k.scope, "apiserver"}
		o.total = m.total.WithLabelValues(append([]string{strconv.Itoa(code)}, labels...)...)
		if !long { // of what lasts there shall be no empty histograms either
			o.duration, o.sli = m.duration.WithLabelValues(labels...), m.sli.WithLabelValues(labels...)
		}
		if labels[0] == "GET" || labels[0] == "LIST" {
			o.sizes = m.sizes.WithLabelValues(labels...)
		}
		m.kept.Store(k, o)
	}
	o.total.Inc()
	if !long {
		o.duration.Observe(took.Seconds())
		o.sli.Observe(took.Seconds())
	}
	if !long && o.sizes != nil {
		o.sizes.Observe(float64(w.bytes))
	}
}

// scopeOf is how much of the cluster a request is about. A created object counts as one.
func scopeOf(in *rest.Info) string {
	switch {
	case !in.Resource:
		return ""
	case in.Name != "" || in.Verb == "create":
		return "resource"
	case in.Namespace != "":
		return "namespace"
	}
	return "cluster"
}

var verbs = map[string]string{
	"get": "GET", "list": "LIST", "watch": "WATCH", "create": "POST", "update": "PUT", "patch": "PATCH",
	"delete": "DELETE", "deletecollection": "DELETECOLLECTION", "post": "POST", "put": "PUT", "head": "HEAD",
}

// connects are the subresources whose requests are connections, by whatever method.
var connects = map[string]bool{"attach": true, "exec": true, "portforward": true, "proxy": true}

func upper(in *rest.Info) string {
	if in.Resource && connects[in.Subresource] {
		return "CONNECT"
	}
	if v, ok := verbs[in.Verb]; ok {
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
