package runtime

import (
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/client-go/util/workqueue"
)

// metrics gives each queue its upstream-named workqueue_* series.
//
// Source: Kubernetes metrics reference, workqueue_*.
type metrics struct {
	depth, unfinished, longest *prometheus.GaugeVec
	adds, retries              *prometheus.CounterVec
	latency, work              *prometheus.HistogramVec
}

func newMetrics(reg prometheus.Registerer) *metrics {
	gauge := func(name, help string) *prometheus.GaugeVec {
		return prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, []string{"name"})
	}
	counter := func(name, help string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{"name"})
	}
	histogram := func(name, help string) *prometheus.HistogramVec {
		return prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: prometheus.ExponentialBuckets(10e-9, 10, 10)}, []string{"name"})
	}
	m := &metrics{
		depth:      gauge("workqueue_depth", "Keys that wait."),
		unfinished: gauge("workqueue_unfinished_work_seconds", "Seconds of work that is going on and not yet in work_duration."),
		longest:    gauge("workqueue_longest_running_processor_seconds", "Seconds that the longest running pass has taken so far."),
		adds:       counter("workqueue_adds_total", "Keys added."),
		retries:    counter("workqueue_retries_total", "Keys put back after a failure."),
		latency:    histogram("workqueue_queue_duration_seconds", "Seconds a key waits before its pass."),
		work:       histogram("workqueue_work_duration_seconds", "Seconds a pass takes."),
	}
	if reg != nil {
		reg.MustRegister(m.depth, m.unfinished, m.longest, m.adds, m.retries, m.latency, m.work)
	}
	return m
}

func queueName(controller string) string {
	return strings.ReplaceAll(strings.TrimSuffix(controller, "-controller"), "-", "_")
}

func (m *metrics) NewDepthMetric(name string) workqueue.GaugeMetric {
	return m.depth.WithLabelValues(name)
}
func (m *metrics) NewAddsMetric(name string) workqueue.CounterMetric {
	return m.adds.WithLabelValues(name)
}
func (m *metrics) NewLatencyMetric(name string) workqueue.HistogramMetric {
	return m.latency.WithLabelValues(name)
}
func (m *metrics) NewWorkDurationMetric(name string) workqueue.HistogramMetric {
	return m.work.WithLabelValues(name)
}
func (m *metrics) NewUnfinishedWorkSecondsMetric(name string) workqueue.SettableGaugeMetric {
	return m.unfinished.WithLabelValues(name)
}
func (m *metrics) NewLongestRunningProcessorSecondsMetric(name string) workqueue.SettableGaugeMetric {
	return m.longest.WithLabelValues(name)
}
func (m *metrics) NewRetriesMetric(name string) workqueue.CounterMetric {
	return m.retries.WithLabelValues(name)
}
