package crd

import (
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/keelson/keelson/apiserver/series"
)

// Metrics of conversion webhooks have upstream's names.
type Metrics struct {
	asked     *prometheus.CounterVec
	took      *prometheus.HistogramVec
	converted *prometheus.HistogramVec

	compiling, evaluating prometheus.Observer
}

// NewMetrics registers them, and those of CEL rules.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	m := &Metrics{
		asked: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "apiserver_conversion_webhook_request_total", Help: "Calls of conversion webhooks.",
		}, []string{"result", "failure_type"}),
		took: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "apiserver_conversion_webhook_duration_seconds", Help: "Time that a conversion webhook takes.",
			Buckets: []float64{0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 45, 60},
		}, []string{"result", "failure_type"}),
		converted: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "apiserver_crd_conversion_webhook_duration_seconds", Help: "The same, by definition and versions.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 15),
		}, []string{"crd_name", "from_version", "to_version", "succeeded"}),
	}
	reg.MustRegister(m.asked, m.took, m.converted)
	m.compiling = series.Histogram(reg, "apiserver_cel_compilation_duration_seconds", "Time to compile the CEL rules of a version of a custom kind.", prometheus.DefBuckets).WithLabelValues()
	m.evaluating = series.Histogram(reg, "apiserver_cel_evaluation_duration_seconds", "Time to evaluate the CEL rules of a custom object.", prometheus.DefBuckets).WithLabelValues()
	return m
}

func (m *Metrics) compiled(began time.Time) {
	if m != nil {
		m.compiling.Observe(time.Since(began).Seconds())
	}
}

func (m *Metrics) evaluated(began time.Time) {
	if m != nil {
		m.evaluating.Observe(time.Since(began).Seconds())
	}
}

// How a conversion fails.
const (
	callFails     = "conversion_webhook_call_failure"
	badAnswer     = "conversion_webhook_malformed_response_failure"
	partialAnswer = "conversion_webhook_partial_response_failure"
	noObjects     = "conversion_webhook_no_objects_returned_failure"
	badObject     = "conversion_webhook_invalid_converted_object_failure"
)

func (m *Metrics) asks(name, from, to, failure string, took time.Duration, err error) {
	if m == nil {
		return
	}
	result := "failure"
	if err == nil {
		result, failure = "success", ""
	}
	m.asked.WithLabelValues(result, failure).Inc()
	m.took.WithLabelValues(result, failure).Observe(took.Seconds())
	m.converted.WithLabelValues(name, from, to, strconv.FormatBool(err == nil)).Observe(took.Seconds())
}
