package server

import (
	"context"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"

	"github.com/keelson/keelson/kubelet/cgroups"
)

// containerMetrics is /metrics/cadvisor: the names and labels that dashboards and rules ask for. What the
// runtime tells comes from the summary, the rest from the kernel's counters of the cgroups.
//
// A container has all labels; the pod as a whole has empty ones for container, image and name, and the
// machine has only id="/". Source: cAdvisor, "Monitoring cAdvisor with Prometheus"; the rules of
// kubernetes-mixin, which select by image!="" and container!="".
type containerMetrics struct{ stats *Stats }

func (containerMetrics) Describe(chan<- *prometheus.Desc) {}

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, labels, nil)
}

// of describes a series with the labels of a container, after those that come first.
func of(name, help string, first ...string) *prometheus.Desc {
	return desc(name, help, append(first, "container", "id", "image", "name", "namespace", "pod")...)
}

var (
	cadvisorCPU        = of("container_cpu_usage_seconds_total", "Cumulative cpu time consumed in seconds.", "cpu")
	cadvisorUser       = of("container_cpu_user_seconds_total", "Cumulative user cpu time consumed in seconds.")
	cadvisorSystem     = of("container_cpu_system_seconds_total", "Cumulative system cpu time consumed in seconds.")
	cadvisorPeriods    = of("container_cpu_cfs_periods_total", "Number of elapsed enforcement period intervals.")
	cadvisorThrottled  = of("container_cpu_cfs_throttled_periods_total", "Number of throttled period intervals.")
	cadvisorStood      = of("container_cpu_cfs_throttled_seconds_total", "Total time duration the container has been throttled.")
	cadvisorWorking    = of("container_memory_working_set_bytes", "Current working set in bytes.")
	cadvisorUsage      = of("container_memory_usage_bytes", "Current memory usage in bytes, including all memory regardless of when it was accessed")
	cadvisorMost       = of("container_memory_max_usage_bytes", "Maximum memory usage recorded in bytes")
	cadvisorRSS        = of("container_memory_rss", "Size of RSS in bytes.")
	cadvisorCache      = of("container_memory_cache", "Number of bytes of page cache memory.")
	cadvisorMapped     = of("container_memory_mapped_file", "Size of memory mapped files in bytes.")
	cadvisorSwap       = of("container_memory_swap", "Container swap usage in bytes.")
	cadvisorOOM        = of("container_oom_events_total", "Count of out of memory events observed for the container")
	cadvisorProcesses  = of("container_threads", "Number of threads running inside the container")
	cadvisorCPUFull    = of("container_pressure_cpu_stalled_seconds_total", "Total time duration no tasks in the container could make progress due to CPU congestion.")
	cadvisorCPUSome    = of("container_pressure_cpu_waiting_seconds_total", "Total time duration tasks in the container have waited due to CPU congestion.")
	cadvisorMemoryFull = of("container_pressure_memory_stalled_seconds_total", "Total time duration no tasks in the container could make progress due to memory congestion.")
	cadvisorMemorySome = of("container_pressure_memory_waiting_seconds_total", "Total time duration tasks in the container have waited due to memory congestion.")
	cadvisorIOFull     = of("container_pressure_io_stalled_seconds_total", "Total time duration no tasks in the container could make progress due to IO congestion.")
	cadvisorIOSome     = of("container_pressure_io_waiting_seconds_total", "Total time duration tasks in the container have waited due to IO congestion.")
	cadvisorFs         = of("container_fs_usage_bytes", "Number of bytes that are consumed by the container on this filesystem.", "device")
	cadvisorFsLimit    = of("container_fs_limit_bytes", "Number of bytes that can be consumed by the container on this filesystem.", "device")
	cadvisorReads      = of("container_fs_reads_total", "Cumulative count of reads completed", "device")
	cadvisorWrites     = of("container_fs_writes_total", "Cumulative count of writes completed", "device")
	cadvisorReadBytes  = of("container_fs_reads_bytes_total", "Cumulative count of bytes read", "device")
	cadvisorWriteBytes = of("container_fs_writes_bytes_total", "Cumulative count of bytes written", "device")
	cadvisorStart      = of("container_start_time_seconds", "Start time of the container since unix epoch in seconds.")
	cadvisorSeen       = of("container_last_seen", "Last time a container was seen by the exporter")
	cadvisorNet        = [...]*prometheus.Desc{
		rxBytes:   of("container_network_receive_bytes_total", "Cumulative count of bytes received", "interface"),
		rxPackets: of("container_network_receive_packets_total", "Cumulative count of packets received", "interface"),
		rxErrors:  of("container_network_receive_errors_total", "Cumulative count of errors encountered while receiving", "interface"),
		rxDropped: of("container_network_receive_packets_dropped_total", "Cumulative count of packets dropped while receiving", "interface"),
		txBytes:   of("container_network_transmit_bytes_total", "Cumulative count of bytes transmitted", "interface"),
		txPackets: of("container_network_transmit_packets_total", "Cumulative count of packets transmitted", "interface"),
		txErrors:  of("container_network_transmit_errors_total", "Cumulative count of errors encountered while transmitting", "interface"),
		txDropped: of("container_network_transmit_packets_dropped_total", "Cumulative count of packets dropped while transmitting", "interface"),
	}
	machineCores  = desc("machine_cpu_cores", "Number of logical CPU cores.")
	machineMemory = desc("machine_memory_bytes", "Amount of memory installed on the machine.")
)

// series are the labels of one container, pod or machine, and where its values go.
type series struct {
	out    chan<- prometheus.Metric
	labels []string // container, id, image, name, namespace, pod
}

func (s series) send(d *prometheus.Desc, kind prometheus.ValueType, v float64, first ...string) {
	s.out <- prometheus.MustNewConstMetric(d, kind, v, append(first, s.labels...)...)
}

func (s series) counter(d *prometheus.Desc, v float64, first ...string) {
	s.send(d, prometheus.CounterValue, v, first...)
}

func (s series) gauge(d *prometheus.Desc, v *uint64, first ...string) {
	if v != nil {
		s.send(d, prometheus.GaugeValue, float64(*v), first...)
	}
}

// told is what the runtime has told. rss and usage are left to the kernel where it is asked as well:
// some runtimes do not know them.
func (s series) told(cpu *statsapi.CPUStats, memory *statsapi.MemoryStats, kernel bool) {
	if cpu != nil && cpu.UsageCoreNanoSeconds != nil {
		s.counter(cadvisorCPU, float64(*cpu.UsageCoreNanoSeconds)/float64(time.Second), "total")
	}
	if memory == nil {
		return
	}
	s.gauge(cadvisorWorking, memory.WorkingSetBytes)
	if !kernel {
		s.gauge(cadvisorUsage, memory.UsageBytes)
		s.gauge(cadvisorRSS, memory.RSSBytes)
	}
}

// pressed is how long tasks had to wait.
func (s series) pressed(u *cgroups.Usage) {
	for _, p := range []struct {
		of         *cgroups.Pressure
		some, full *prometheus.Desc
	}{{u.CPUPressure, cadvisorCPUSome, cadvisorCPUFull}, {u.MemoryPressure, cadvisorMemorySome, cadvisorMemoryFull}, {u.IOPressure, cadvisorIOSome, cadvisorIOFull}} {
		if p.of != nil {
			s.counter(p.some, float64(p.of.Some.TotalMicros)/1e6)
			s.counter(p.full, float64(p.of.Full.TotalMicros)/1e6)
		}
	}
}

// counted is what the kernel has counted.
func (s series) counted(u *cgroups.Usage) {
	s.pressed(u)
	s.counter(cadvisorUser, u.User.Seconds())
	s.counter(cadvisorSystem, u.System.Seconds())
	if u.Periods > 0 {
		s.counter(cadvisorPeriods, float64(u.Periods))
		s.counter(cadvisorThrottled, float64(u.ThrottledPeriods))
		s.counter(cadvisorStood, u.Throttled.Seconds())
	}
	s.gauge(cadvisorUsage, &u.UsageBytes)
	s.gauge(cadvisorMost, &u.MostBytes)
	s.gauge(cadvisorRSS, &u.RSSBytes)
	s.gauge(cadvisorCache, &u.CacheBytes)
	s.gauge(cadvisorMapped, &u.MappedBytes)
	s.gauge(cadvisorSwap, &u.SwapBytes)
	s.gauge(cadvisorProcesses, &u.Threads)
	s.counter(cadvisorOOM, float64(u.OOMKills))
	for _, d := range u.Disks {
		s.counter(cadvisorReads, float64(d.Reads), d.Device)
		s.counter(cadvisorWrites, float64(d.Writes), d.Device)
		s.counter(cadvisorReadBytes, float64(d.ReadBytes), d.Device)
		s.counter(cadvisorWriteBytes, float64(d.WrittenBytes), d.Device)
	}
}

func (m containerMetrics) Collect(out chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	out <- prometheus.MustNewConstMetric(machineCores, prometheus.GaugeValue, float64(processors()))
	out <- prometheus.MustNewConstMetric(machineMemory, prometheus.GaugeValue, float64(meminfo()["MemTotal"]))
	sum, err := m.stats.Summary(ctx)
	if err != nil {
		return
	}
	machine := series{out, []string{"", "/", "", "", "", ""}}
	machine.told(sum.Node.CPU, sum.Node.Memory, false)
	if groups := m.stats.o.Cgroups; groups != nil {
		if u, ok := groups.Usage("/"); ok {
			machine.pressed(&u)
		}
	}
	now := float64(time.Now().Unix())
	for i := range sum.Pods {
		p := &sum.Pods[i]
		object, ok := m.stats.o.Pods.Pod(p.PodRef.Namespace, p.PodRef.Name, types.UID(p.PodRef.UID))
		if !ok {
			continue // it has gone meanwhile
		}
		m.pod(out, p, object, now)
	}
}

func (m containerMetrics) pod(out chan<- prometheus.Metric, p *statsapi.PodStats, object *corev1.Pod, now float64) {
	groups := m.stats.o.Cgroups
	path, paths := "", map[string]string{}
	if groups != nil {
		path, paths = groups.Path(object), groups.Containers(object)
	}
	kernel := func(s series, path string) bool {
		if groups == nil || path == "" {
			return false
		}
		u, ok := groups.Usage(path)
		if ok {
			s.counted(&u)
		}
		return ok
	}
	whole := series{out, []string{"", path, "", "", p.PodRef.Namespace, p.PodRef.Name}}
	whole.told(p.CPU, p.Memory, kernel(whole, path))
	for i := range p.Containers {
		c := &p.Containers[i]
		id, image := identity(object, c.Name)
		if groups != nil && paths[id] == "" {
			continue // it has ended
		}
		one := series{out, []string{c.Name, paths[id], image, id, p.PodRef.Namespace, p.PodRef.Name}}
		one.told(c.CPU, c.Memory, kernel(one, paths[id]))
		if c.Rootfs != nil {
			one.gauge(cadvisorFs, c.Rootfs.UsedBytes, "")
			one.gauge(cadvisorFsLimit, c.Rootfs.CapacityBytes, "")
		}
		one.send(cadvisorStart, prometheus.GaugeValue, float64(c.StartTime.Unix()))
		one.send(cadvisorSeen, prometheus.GaugeValue, now)
	}
	if object.Spec.HostNetwork {
		return
	}
	for _, i := range m.stats.podInterfaces(object) {
		for which, d := range cadvisorNet {
			whole.counter(d, float64(i.counts[which]), i.name)
		}
	}
}

// identity is the runtime's ID and the image of a container, as the pod's status shows them.
func identity(pod *corev1.Pod, name string) (id, image string) {
	for _, list := range [][]corev1.ContainerStatus{pod.Status.ContainerStatuses, pod.Status.InitContainerStatuses, pod.Status.EphemeralContainerStatuses} {
		for i := range list {
			if list[i].Name == name {
				_, id, _ = strings.Cut(list[i].ContainerID, "://")
				return id, list[i].Image
			}
		}
	}
	return "", ""
}
