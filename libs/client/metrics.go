package client

import (
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics counts the requests of a daemon's clients, under upstream's names. It is a
// prometheus.Collector.
//
// Source: Kubernetes metrics reference, rest_client_*.
type Metrics struct {
	total *prometheus.CounterVec
	took  *prometheus.HistogramVec

	kept sync.Map // outcome → observers: looking labels up costs more than counting
}

type outcome struct {
	method, host string
	code         int // 0: no answer came
}

type observers struct {
	total prometheus.Counter
	took  prometheus.Observer
}

// NewMetrics makes the series; the caller registers them.
func NewMetrics() *Metrics {
	return &Metrics{
		total: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "rest_client_requests_total", Help: "Requests sent, by status code, method and host.",
		}, []string{"code", "method", "host"}),
		took: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "rest_client_request_duration_seconds", Help: "Time from a request to the head of its answer, by verb and host.",
			Buckets: []float64{0.005, 0.025, 0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60},
		}, []string{"verb", "host"}),
	}
}

// Describe is prometheus.Collector's.
func (m *Metrics) Describe(ch chan<- *prometheus.Desc) {
	m.total.Describe(ch)
	m.took.Describe(ch)
}

// Collect is prometheus.Collector's.
func (m *Metrics) Collect(ch chan<- prometheus.Metric) {
	m.total.Collect(ch)
	m.took.Collect(ch)
}

func (m *Metrics) observe(o outcome, took time.Duration) {
	v, ok := m.kept.Load(o)
	if !ok {
		code := "<error>"
		if o.code != 0 {
			code = strconv.Itoa(o.code)
		}
		v, _ = m.kept.LoadOrStore(o, observers{m.total.WithLabelValues(code, o.method, o.host), m.took.WithLabelValues(o.method, o.host)})
	}
	kept := v.(observers)
	kept.total.Inc()
	kept.took.Observe(took.Seconds())
}

// wrap counts what goes through next. It fits rest.Config.Wrap.
func (m *Metrics) wrap(next http.RoundTripper) http.RoundTripper { return counting{next, m} }

type counting struct {
	next http.RoundTripper
	m    *Metrics
}

func (c counting) RoundTrip(r *http.Request) (*http.Response, error) {
	began := time.Now()
	resp, err := c.next.RoundTrip(r)
	o := outcome{method: r.Method, host: r.URL.Host}
	if err == nil {
		o.code = resp.StatusCode
	}
	c.m.observe(o, time.Since(began))
	return resp, err
}

// WrappedRoundTripper lets client-go find the transport below.
func (c counting) WrappedRoundTripper() http.RoundTripper { return c.next }
