package apiserver

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/keelson/keelson/apiserver/authn"
	"github.com/keelson/keelson/apiserver/resources"
	"github.com/keelson/keelson/apiserver/rest"
	"github.com/keelson/keelson/apiserver/series"
	"github.com/keelson/keelson/apiserver/watchcache"
)

// metrics have upstream's names, so that dashboards and alerts work.
type metrics struct {
	total    *prometheus.CounterVec
	duration *prometheus.HistogramVec
	sli      *prometheus.HistogramVec
	sizes    *prometheus.HistogramVec
	rejected prometheus.Counter
	ended    *prometheus.CounterVec // before they were answered as they should be
	aborted  *prometheus.CounterVec
	checked  *prometheus.HistogramVec
	filters  [len(filterNames)]prometheus.Observer
	open     *prometheus.GaugeVec

	attempts, users, decisions *prometheus.CounterVec
	authnTook, authzTook       *prometheus.HistogramVec
	impersonations, questions  byMode

	served func(group, version, plural string) bool // unknown resources must not become labels

	// Looking labels up costs more than counting.
	kept     sync.Map // metricKey → observers
	lasts    series.Kept[metricKey, prometheus.Gauge]
	results  series.Kept[string, result] // of authentication
	verdicts series.Kept[string, result] // of authorization
	names    series.Kept[string, prometheus.Counter]
}

// filter is what a request passes before its handler.
type filter uint8

const (
	authentication filter = iota
	auditing
	impersonating
	queueing
	authorization
)

// Source: kube-apiserver 1.36.
var filterNames = [...]string{
	authentication: "authentication", auditing: "audit", impersonating: "constrainedimpersonation",
	queueing: "priorityandfairness", authorization: "authorization",
}

// result counts one outcome.
type result struct {
	n    prometheus.Counter
	took prometheus.Observer
}

type metricKey struct {
	verb, group, version, plural, sub, scope, dry, validation string

	code int
	long bool
}

type observers struct {
	total         prometheus.Counter
	duration, sli prometheus.Observer
	checked       prometheus.Observer // by field validation; nil: of an answer to what is no write of an object
	sizes         prometheus.Observer // nil: of an answer that is no read
}

// seconds are the bounds of request durations.
var seconds = []float64{0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1, 1.25, 1.5, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 45, 60}

func newMetrics(reg prometheus.Registerer, rows *resources.Registry, cache *watchcache.Cache, reading, writing *atomic.Int64) *metrics {
	labels := []string{"verb", "group", "version", "resource", "subresource", "scope", "component"}
	m := &metrics{
		total: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "apiserver_request_total", Help: "Requests by verb, resource and status code.",
		}, append([]string{"code", "dry_run"}, labels...)),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "apiserver_request_duration_seconds", Help: "Time to answer, but for watches and streams.",
			// Source: kube-apiserver 1.36; the rules of kubernetes-mixin ask for le="1", "5" and "30".
			Buckets: append([]float64{0.005, 0.025}, seconds...),
		}, append([]string{"dry_run"}, labels...)),
		sli: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "apiserver_request_sli_duration_seconds",
			Help:    "The same without what webhooks take and without the wait for a seat, for service level indicators.",
			Buckets: seconds,
		}, labels),
		sizes: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "apiserver_response_sizes", Help: "Size of the answers to GET and LIST, in bytes as sent.", Buckets: prometheus.ExponentialBuckets(1000, 10, 7),
		}, labels),
		rejected: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "apiserver_rejected_requests_total", Help: "Requests refused with 429 because too many were in flight.",
		}),
	}
	doublings := prometheus.ExponentialBuckets(0.001, 2, 15)
	m.open = prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "apiserver_longrunning_requests", Help: "Open watches and streams."}, labels)
	m.attempts = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "authentication_attempts", Help: "Requests by whether it is known who asks."}, []string{"result"})
	m.users = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "authenticated_user_requests", Help: "Requests of whom it is known who asks."}, []string{"username"})
	m.authnTook = series.Histogram(reg, "authentication_duration_seconds", "Time to find out who asks.", doublings, "result")
	m.decisions = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "authorization_attempts_total", Help: "Requests by whether they are allowed."}, []string{"result"})
	m.authzTook = series.Histogram(reg, "authorization_duration_seconds", "Time to find out whether a request is allowed.", doublings, "result")
	m.impersonations = newByMode(reg, "attempts", "of requests on somebody's behalf", doublings)
	m.questions = newByMode(reg, "authorization_attempts", "of the questions whether somebody may act for another", doublings)
	m.served = func(group, version, plural string) bool {
		return rows != nil && rows.Lookup(group, version, plural) != nil
	}
	m.ended = series.Counter(reg, "apiserver_request_terminations_total", "Requests ended to protect the server: refused because too many wait, or not answered in time.", append([]string{"code"}, labels...)...)
	m.aborted = series.Counter(reg, "apiserver_request_aborts_total", "Requests whose connection was broken by the server because the answer had begun and could not be finished.", labels[:6]...)
	m.checked = series.Histogram(reg, "field_validation_request_duration_seconds", "Time to answer writes, by what the client has asked to be done about unknown fields.",
		seconds, "field_validation")
	filters := series.Histogram(reg, "apiserver_request_filter_duration_seconds", "Time that each of the steps before the handler takes.",
		[]float64{0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 5, 10, 15, 30}, "filter")
	for f, name := range filterNames {
		m.filters[f] = filters.WithLabelValues(name)
	}
	reg.MustRegister(m.open, m.attempts, m.users, m.decisions)
	inflight := func(kind string, n *atomic.Int64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "apiserver_current_inflight_requests", Help: "Requests being served.",
			ConstLabels: prometheus.Labels{"request_kind": kind},
		}, func() float64 { return float64(n.Load()) })
	}
	reg.MustRegister(m.total, m.duration, m.sli, m.sizes, m.rejected, inflight("readOnly", reading), inflight("mutating", writing), cacheMetrics{cache, rows})
	return m
}

func (m *metrics) observe(in *rest.Info, w *answer, long bool, took time.Duration) {
	code := w.code
	if code == 0 {
		code = http.StatusOK
	}
	k := metricKey{verb: in.Verb, code: code, long: long, dry: in.DryRun, validation: in.FieldValidation}
	if in.Resource && code != http.StatusNotFound { // unknown resources must not become labels
		k.group, k.version, k.plural, k.sub = in.Group, in.Version, in.Plural, in.Subresource
	}
	k.scope = in.Scope()
	var o observers
	if v, ok := m.kept.Load(k); ok {
		o = v.(observers)
	} else {
		labels := []string{upper(in), k.group, k.version, k.plural, k.sub, k.scope, "apiserver"}
		o.total = m.total.WithLabelValues(append([]string{strconv.Itoa(code), k.dry}, labels...)...)
		if !long { // of what lasts there shall be no empty histograms either
			o.duration, o.sli = m.duration.WithLabelValues(append([]string{k.dry}, labels...)...), m.sli.WithLabelValues(labels...)
		}
		if in.Resource && (in.Verb == "create" || in.Verb == "update" || in.Verb == "patch") {
			o.checked = m.checked.WithLabelValues(k.validation)
		}
		if labels[0] == "GET" || labels[0] == "LIST" {
			o.sizes = m.sizes.WithLabelValues(labels...)
		}
		m.kept.Store(k, o)
	}
	o.total.Inc()
	if !long {
		o.duration.Observe(took.Seconds())
		o.sli.Observe((took - in.Waited).Seconds())
		if o.checked != nil {
			o.checked.Observe(took.Seconds())
		}
	}
	if !long && o.sizes != nil {
		o.sizes.Observe(float64(w.bytes))
	}
}

// terminated counts a request that was ended, with this code, to protect the server.
func (m *metrics) terminated(in *rest.Info, code int) {
	m.ended.WithLabelValues(append([]string{strconv.Itoa(code)}, m.labels(in)...)...).Inc()
}

// broken counts a request whose connection is broken.
func (m *metrics) broken(in *rest.Info) { m.aborted.WithLabelValues(m.labels(in)[:6]...).Inc() }

// labels are those of a request that has not reached its handler's end: unknown resources must not become labels.
func (m *metrics) labels(in *rest.Info) []string {
	l := []string{upper(in), "", "", "", "", in.Scope(), "apiserver"}
	if in.Resource && m.served(in.Group, in.Version, in.Plural) {
		l[1], l[2], l[3], l[4] = in.Group, in.Version, in.Plural, in.Subresource
	}
	return l
}

// lasting counts a watch or stream as open until the function returned is called.
func (m *metrics) lasting(in *rest.Info) (over func()) {
	k := metricKey{verb: upper(in), scope: in.Scope()}
	if in.Resource && m.served(in.Group, in.Version, in.Plural) {
		k.group, k.version, k.plural, k.sub = in.Group, in.Version, in.Plural, in.Subresource
	}
	g := m.lasts.Of(k, func(k metricKey) prometheus.Gauge {
		return m.open.WithLabelValues(k.verb, k.group, k.version, k.plural, k.sub, k.scope, "apiserver")
	})
	g.Inc()
	return g.Dec
}

// authenticated counts whether a request's credentials are good. Names are few here: those of a small
// installation, and what others have in common.
//
// Source: kube-apiserver 1.36.
func (m *metrics) authenticated(u *authn.User, err error, took time.Duration) {
	outcome := "success"
	if err != nil {
		outcome = "error"
		if errors.Is(err, authn.ErrUnauthorized) {
			outcome = "failure"
		}
	}
	r := m.results.Of(outcome, func(s string) result { return result{m.attempts.WithLabelValues(s), m.authnTook.WithLabelValues(s)} })
	r.n.Inc()
	r.took.Observe(took.Seconds())
	if err != nil {
		return
	}
	name := "other"
	switch u.Name {
	case "admin", "client", "kube_proxy", "kubelet", "system:serviceaccount:kube-system:default":
		name = u.Name
	default:
		if strings.Contains(u.Name, "@") {
			name = "email_id"
		}
	}
	m.names.Of(name, func(s string) prometheus.Counter { return m.users.WithLabelValues(s) }).Inc()
}

// authorized counts what an authorizer has said.
func (m *metrics) authorized(outcome string, took time.Duration) {
	r := m.verdicts.Of(outcome, func(s string) result { return result{m.decisions.WithLabelValues(s), m.authzTook.WithLabelValues(s)} })
	r.n.Inc()
	r.took.Observe(took.Seconds())
}

// byMode counts and times what is about impersonation.
type byMode struct {
	total *prometheus.CounterVec
	took  *prometheus.HistogramVec
}

func newByMode(reg prometheus.Registerer, name, of string, bounds []float64) byMode {
	b := byMode{prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "apiserver_impersonation_" + name + "_total", Help: "Number " + of + ", by mode and decision.",
	}, []string{"mode", "decision"}), series.Histogram(reg, "apiserver_impersonation_"+name+"_duration_seconds", "Time "+of+", by mode and decision.", bounds, "mode", "decision")}
	reg.MustRegister(b.total)
	return b
}

func (b byMode) observe(mode string, allowed bool, took time.Duration) {
	decision := "denied"
	if allowed {
		decision = "allowed"
	}
	b.total.WithLabelValues(mode, decision).Inc()
	b.took.WithLabelValues(mode, decision).Observe(took.Seconds())
}

// certificateLives shows how long the certificates of clients are still good. A connection shows its
// own once a minute at most, when it is looked at again.
func certificateLives(reg prometheus.Registerer) prometheus.Observer {
	const hour, day = 3600, 24 * 3600
	return series.Histogram(reg, "apiserver_client_certificate_expiration_seconds", "How long the certificates that clients show are still good.",
		[]float64{0, hour / 2, hour, 2 * hour, 6 * hour, 12 * hour, day, 2 * day, 4 * day, 7 * day, 30 * day, 90 * day, 180 * day, 360 * day}).WithLabelValues()
}

// handshakeLog counts failed handshakes among what net/http has to say.
type handshakeLog struct {
	to     io.Writer
	failed prometheus.Counter
}

func (l *handshakeLog) Write(b []byte) (int, error) {
	if bytes.HasPrefix(b, []byte("http: TLS handshake error from ")) {
		l.failed.Inc()
	}
	return l.to.Write(b)
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

// storageSize shows how large the database's file is, under the name that upstream gives the first of its etcds.
func storageSize(bytes func() int64) prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "apiserver_storage_size_bytes", Help: "Size of the database's file, in bytes.",
		ConstLabels: prometheus.Labels{"storage_cluster_id": "etcd-0"},
	}, func() float64 { return float64(bytes()) })
}

// cacheMetrics reads the cache's numbers when they are asked for. Upstream has a cache for every resource;
// here is one, so that all resources are at the same revision.
type cacheMetrics struct {
	c    *watchcache.Cache
	rows *resources.Registry
}

var (
	objectsDesc  = prometheus.NewDesc("apiserver_storage_objects", "Stored objects by resource.", []string{"resource"}, nil)
	numberDesc   = prometheus.NewDesc("apiserver_resource_objects", "Stored objects by group and resource.", []string{"group", "resource"}, nil)
	revisionDesc = prometheus.NewDesc("apiserver_watch_cache_resource_version", "Revision of the newest state in memory.", []string{"group", "resource"}, nil)
	receivedDesc = prometheus.NewDesc("apiserver_watch_cache_events_received_total", "Changes that memory was told of.", []string{"group", "resource"}, nil)
	offeredDesc  = prometheus.NewDesc("apiserver_watch_cache_events_dispatched_total", "Changes offered to watches: all that memory was told of, as watches read the one log.", []string{"group", "resource"}, nil)
	storedDesc   = prometheus.NewDesc("apiserver_storage_events_received_total", "Changes that etcd has told of.", []string{"group", "resource"}, nil)
	watchesDesc  = prometheus.NewDesc("apiserver_registered_watchers", "Open watches.", nil, nil)
)

func (m cacheMetrics) Describe(ch chan<- *prometheus.Desc) {
	ch <- objectsDesc
	ch <- numberDesc
	ch <- revisionDesc
	ch <- receivedDesc
	ch <- offeredDesc
	ch <- storedDesc
	ch <- watchesDesc
}

func (m cacheMetrics) Collect(ch chan<- prometheus.Metric) {
	s := m.c.Stats()
	ch <- prometheus.MustNewConstMetric(watchesDesc, prometheus.GaugeValue, float64(s.Cursors))
	for gr, n := range m.c.Received() {
		ch <- prometheus.MustNewConstMetric(receivedDesc, prometheus.CounterValue, float64(n), gr.Group, gr.Resource)
		ch <- prometheus.MustNewConstMetric(offeredDesc, prometheus.CounterValue, float64(n), gr.Group, gr.Resource)
		ch <- prometheus.MustNewConstMetric(storedDesc, prometheus.CounterValue, float64(n), gr.Group, gr.Resource)
	}
	counts := m.c.Snapshot().Counts()
	for resource, n := range counts {
		ch <- prometheus.MustNewConstMetric(objectsDesc, prometheus.GaugeValue, float64(n), resource)
	}
	seen := map[schema.GroupResource]bool{}
	for _, row := range m.rows.All() {
		gr := row.GR()
		if seen[gr] || row.Storage() != row || !row.Can("watch") {
			continue
		}
		seen[gr] = true
		ch <- prometheus.MustNewConstMetric(numberDesc, prometheus.GaugeValue, float64(counts[gr.String()]), gr.Group, gr.Resource)
		ch <- prometheus.MustNewConstMetric(revisionDesc, prometheus.GaugeValue, float64(s.Rev), gr.Group, gr.Resource)
	}
}
