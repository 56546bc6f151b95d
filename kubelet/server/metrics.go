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

// containerMetrics is /metrics/cadvisor: the names that dashboards ask for, as far as the
// runtime tells them.
type containerMetrics struct{ stats *Stats }

func (containerMetrics) Describe(chan<- *prometheus.Desc) {}

var containerLabels = []string{"container", "pod", "namespace"}

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, labels, nil)
}

var (
	cadvisorCPU     = desc("container_cpu_usage_seconds_total", "Cumulative cpu time consumed in seconds.", append([]string{"cpu"}, containerLabels...)...)
	cadvisorWorking = desc("container_memory_working_set_bytes", "Current working set in bytes.", containerLabels...)
	cadvisorUsage   = desc("container_memory_usage_bytes", "Current memory usage in bytes, including all memory regardless of when it was accessed", containerLabels...)
	cadvisorRSS     = desc("container_memory_rss", "Size of RSS in bytes.", containerLabels...)
	cadvisorFs      = desc("container_fs_usage_bytes", "Number of bytes that are consumed by the container on this filesystem.", containerLabels...)
	cadvisorFsLimit = desc("container_fs_limit_bytes", "Number of bytes that can be consumed by the container on this filesystem.", containerLabels...)
	cadvisorStart   = desc("container_start_time_seconds", "Start time of the container since unix epoch in seconds.", containerLabels...)
	cadvisorSeen    = desc("container_last_seen", "Last time a container was seen by the exporter", containerLabels...)
	cadvisorRx      = desc("container_network_receive_bytes_total", "Cumulative count of bytes received", "interface", "pod", "namespace")
	cadvisorTx      = desc("container_network_transmit_bytes_total", "Cumulative count of bytes transmitted", "interface", "pod", "namespace")
	machineCores    = desc("machine_cpu_cores", "Number of logical CPU cores.")
	machineMemory   = desc("machine_memory_bytes", "Amount of memory installed on the machine.")
)

func (m containerMetrics) Collect(out chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	out <- prometheus.MustNewConstMetric(machineCores, prometheus.GaugeValue, float64(processors()))
	out <- prometheus.MustNewConstMetric(machineMemory, prometheus.GaugeValue, float64(meminfo()["MemTotal"]))
	sum, err := m.stats.Summary(ctx)
	if err != nil {
		return
	}
	gauge := func(d *prometheus.Desc, v *uint64, labels ...string) {
		if v != nil {
			out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(*v), labels...)
		}
	}
	seconds := func(cpu *statsapi.CPUStats, labels ...string) {
		if cpu != nil && cpu.UsageCoreNanoSeconds != nil {
			out <- prometheus.MustNewConstMetric(cadvisorCPU, prometheus.CounterValue, float64(*cpu.UsageCoreNanoSeconds)/float64(time.Second), append([]string{"total"}, labels...)...)
		}
	}
	memory := func(s *statsapi.MemoryStats, labels ...string) {
		if s != nil {
			gauge(cadvisorWorking, s.WorkingSetBytes, labels...)
			gauge(cadvisorUsage, s.UsageBytes, labels...)
			gauge(cadvisorRSS, s.RSSBytes, labels...)
		}
	}
	for _, p := range sum.Pods {
		// The pod as a whole has an empty container label.
		seconds(p.CPU, "", p.PodRef.Name, p.PodRef.Namespace)
		memory(p.Memory, "", p.PodRef.Name, p.PodRef.Namespace)
		for _, c := range p.Containers {
			labels := []string{c.Name, p.PodRef.Name, p.PodRef.Namespace}
			seconds(c.CPU, labels...)
			memory(c.Memory, labels...)
			if c.Rootfs != nil {
				gauge(cadvisorFs, c.Rootfs.UsedBytes, labels...)
				gauge(cadvisorFsLimit, c.Rootfs.CapacityBytes, labels...)
			}
			out <- prometheus.MustNewConstMetric(cadvisorStart, prometheus.GaugeValue, float64(c.StartTime.Unix()), labels...)
			out <- prometheus.MustNewConstMetric(cadvisorSeen, prometheus.GaugeValue, float64(time.Now().Unix()), labels...)
		}
		if p.Network != nil {
			for _, i := range p.Network.Interfaces {
				for d, v := range map[*prometheus.Desc]*uint64{cadvisorRx: i.RxBytes, cadvisorTx: i.TxBytes} {
					if v != nil {
						out <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(*v), i.Name, p.PodRef.Name, p.PodRef.Namespace)
					}
				}
			}
		}
	}
}
