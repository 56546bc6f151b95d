package encrypt

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Metrics have upstream's names. A nil Metrics counts nothing.
type Metrics struct {
	operations *prometheus.CounterVec
	took       *prometheus.HistogramVec
	reloads    *prometheus.CounterVec
	reloadedAt *prometheus.GaugeVec
	calls      *prometheus.HistogramVec
	seedCount  *prometheus.GaugeVec
}

// NewMetrics registers them.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	m := &Metrics{
		operations: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "apiserver_storage_transformation_operations_total", Help: "Values encrypted and decrypted.",
		}, []string{"resource", "transformation_type", "transformer_prefix", "status"}),
		took: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "apiserver_storage_transformation_duration_seconds", Help: "Time to encrypt or decrypt a value.",
			Buckets: prometheus.ExponentialBuckets(5e-6, 2, 25),
		}, []string{"transformation_type", "transformer_prefix"}),
		reloads: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "apiserver_encryption_config_controller_automatic_reloads_total", Help: "Changes of the encryption configuration, used or refused.",
		}, []string{"status"}),
		reloadedAt: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "apiserver_encryption_config_controller_automatic_reload_last_timestamp_seconds", Help: "When the encryption configuration was last changed, used or refused.",
		}, []string{"status"}),
		calls: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "apiserver_envelope_encryption_kms_operations_latency_seconds", Help: "Time that a KMS plugin takes to answer.",
			Buckets: prometheus.ExponentialBuckets(0.0001, 2, 15),
		}, []string{"provider_name", "method_name", "grpc_status_code"}),
		seedCount: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "apiserver_envelope_encryption_dek_source_cache_size", Help: "Seeds of a KMS plugin that are kept open.",
		}, []string{"provider_name"}),
	}
	reg.MustRegister(m.operations, m.took, m.reloads, m.reloadedAt, m.calls, m.seedCount)
	return m
}

func (m *Metrics) did(what string, gr schema.GroupResource, prefix string, started time.Time, err error) {
	if m == nil {
		return
	}
	outcome := "OK"
	if err != nil {
		outcome = "Error"
	}
	m.operations.WithLabelValues(gr.String(), what, prefix, outcome).Inc()
	m.took.WithLabelValues(what, prefix).Observe(time.Since(started).Seconds())
}

func (m *Metrics) reloaded(err error) {
	if m == nil {
		return
	}
	outcome := "success"
	if err != nil {
		outcome = "failure"
	}
	m.reloads.WithLabelValues(outcome).Inc()
	m.reloadedAt.WithLabelValues(outcome).SetToCurrentTime()
}

func (m *Metrics) called(plugin, method, code string, took time.Duration) {
	if m != nil {
		m.calls.WithLabelValues(plugin, method, code).Observe(took.Seconds())
	}
}

func (m *Metrics) seeds(plugin string, n int) {
	if m != nil {
		m.seedCount.WithLabelValues(plugin).Set(float64(n))
	}
}
