package server

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
)

// resourceMetrics is /metrics/resource: what metrics-server needs. Names, labels and
// timestamps are those of upstream's stable metrics.
type resourceMetrics struct{ stats *Stats }

var (
	nodeCPU         = prometheus.NewDesc("node_cpu_usage_seconds_total", "Cumulative cpu time consumed by the node in core-seconds", nil, nil)
	nodeMemory      = prometheus.NewDesc("node_memory_working_set_bytes", "Current working set of the node in bytes", nil, nil)
	nodeSwap        = prometheus.NewDesc("node_swap_usage_bytes", "Current swap usage of the node in bytes. Reported only on non-windows systems", nil, nil)
	containerCPU    = prometheus.NewDesc("container_cpu_usage_seconds_total", "Cumulative cpu time consumed by the container in core-seconds", []string{"container", "pod", "namespace"}, nil)
	containerMemory = prometheus.NewDesc("container_memory_working_set_bytes", "Current working set of the container in bytes", []string{"container", "pod", "namespace"}, nil)
	containerStart  = prometheus.NewDesc("container_start_time_seconds", "Start time of the container since unix epoch in seconds", []string{"container", "pod", "namespace"}, nil)
	podCPU          = prometheus.NewDesc("pod_cpu_usage_seconds_total", "Cumulative cpu time consumed by the pod in core-seconds", []string{"pod", "namespace"}, nil)
	podMemory       = prometheus.NewDesc("pod_memory_working_set_bytes", "Current working set of the pod in bytes", []string{"pod", "namespace"}, nil)
	scrapeError     = prometheus.NewDesc("resource_scrape_error", "1 if there was an error while getting container metrics, 0 otherwise", nil, nil)
	scrapeErrorOld  = prometheus.NewDesc("scrape_error", "1 if there was an error while getting container metrics, 0 otherwise", nil, nil)
)

// Describe sends nothing: the set of metrics follows the pods.
func (resourceMetrics) Describe(chan<- *prometheus.Desc) {}

func (m resourceMetrics) Collect(out chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	sum, err := m.stats.Summary(ctx)
	failed := 0.0
	if err != nil {
		failed = 1
	}
	out <- prometheus.MustNewConstMetric(scrapeError, prometheus.GaugeValue, failed)
	out <- prometheus.MustNewConstMetric(scrapeErrorOld, prometheus.GaugeValue, failed)
	if err != nil {
		return
	}
	cpu := func(d *prometheus.Desc, c *statsapi.CPUStats, labels ...string) {
		if c != nil && c.UsageCoreNanoSeconds != nil {
			v := float64(*c.UsageCoreNanoSeconds) / float64(time.Second)
			out <- prometheus.NewMetricWithTimestamp(c.Time.Time, prometheus.MustNewConstMetric(d, prometheus.CounterValue, v, labels...))
		}
	}
	memory := func(d *prometheus.Desc, s *statsapi.MemoryStats, labels ...string) {
		if s != nil && s.WorkingSetBytes != nil {
			out <- prometheus.NewMetricWithTimestamp(s.Time.Time, prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(*s.WorkingSetBytes), labels...))
		}
	}
	cpu(nodeCPU, sum.Node.CPU)
	memory(nodeMemory, sum.Node.Memory)
	if s := sum.Node.Swap; s != nil && s.SwapUsageBytes != nil {
		out <- prometheus.NewMetricWithTimestamp(s.Time.Time, prometheus.MustNewConstMetric(nodeSwap, prometheus.GaugeValue, float64(*s.SwapUsageBytes)))
	}
	for _, p := range sum.Pods {
		for _, c := range p.Containers {
			if c.CPU != nil {
				out <- prometheus.MustNewConstMetric(containerStart, prometheus.GaugeValue, float64(c.StartTime.UnixNano())/float64(time.Second), c.Name, p.PodRef.Name, p.PodRef.Namespace)
			}
			cpu(containerCPU, c.CPU, c.Name, p.PodRef.Name, p.PodRef.Namespace)
			memory(containerMemory, c.Memory, c.Name, p.PodRef.Name, p.PodRef.Namespace)
		}
		cpu(podCPU, p.CPU, p.PodRef.Name, p.PodRef.Namespace)
		memory(podMemory, p.Memory, p.PodRef.Name, p.PodRef.Namespace)
	}
}
