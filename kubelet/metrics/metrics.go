// Package metrics counts what the rooms of the kubelet do, under upstream's names, so that dashboards and
// alerts made for upstream's kubelet work.
//
// [New] makes the series, a prometheus.Collector; rooms get the [Metrics] and call the method of what they
// have done. A nil Metrics counts nothing: tests need none. Labels have few values each: operations,
// kinds, plugins; never names of pods. What there is at a moment (pods, containers, volumes) is not kept
// here but counted by the room that owns it, when it is asked.
//
// Source: Kubernetes metrics reference, kubelet_* and storage_operation_*; the groups of
// kubernetes-mixin's kubelet dashboard and alerts.
package metrics

import (
	"math"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics is made by New. Its methods may be called from any goroutine.
type Metrics struct {
	all []prometheus.Collector

	calls, callFailures *prometheus.CounterVec
	callSeconds         *prometheus.HistogramVec
	sandboxSeconds      *prometheus.HistogramVec
	sandboxFailures     *prometheus.CounterVec
	relist, interval    prometheus.Histogram
	lastSeen            prometheus.Gauge

	passSeconds       *prometheus.HistogramVec
	podStart          prometheus.Histogram
	statusSeconds     prometheus.Histogram
	pods, podFailures prometheus.Counter
	containers        *prometheus.CounterVec
	containerFailures *prometheus.CounterVec
	rejections        *prometheus.CounterVec
	cgroupSeconds     *prometheus.HistogramVec
	storageSeconds    *prometheus.HistogramVec
	evictions         *prometheus.CounterVec
	evictionAge       *prometheus.HistogramVec
	volumeSeconds     *prometheus.HistogramVec
	preemptions       *prometheus.CounterVec
	imagesCollected   *prometheus.CounterVec
	pullSeconds       *prometheus.HistogramVec
	nodeName          *prometheus.GaugeVec
	cgroupVersion     prometheus.Gauge
	sleepsCut         prometheus.Counter
	downBegan         prometheus.Gauge
	downEnded         prometheus.Gauge

	workerStart, startSLI, startTotal, perPod prometheus.Histogram
	terminated, resizesAsked, deferredDone    *prometheus.CounterVec
	resizeMillis                              *prometheus.HistogramVec
	orphans, plainHooks                       prometheus.Counter
	images                                    *prometheus.CounterVec

	preKubelet, preRegistration, registration, postRegistration, startup prometheus.Gauge

	mu       sync.Mutex // guards what follows
	relisted time.Time
	birth    birth
}

// New makes all series.
func New() *Metrics {
	m := &Metrics{}
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
		m.all = append(m.all, c)
		return c
	}
	histogram := func(name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
		h := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets}, labels)
		m.all = append(m.all, h)
		return h
	}
	gauge := func(name, help string, labels ...string) *prometheus.GaugeVec {
		g := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, labels)
		m.all = append(m.all, g)
		return g
	}
	one := func(h *prometheus.HistogramVec) prometheus.Histogram {
		return h.WithLabelValues().(prometheus.Histogram)
	}
	usual := prometheus.DefBuckets
	starts := []float64{0.5, 1, 2, 3, 4, 5, 6, 8, 10, 20, 30, 45, 60, 120, 180, 240, 300, 360, 480, 600, 900, 1200, 1800, 2700, 3600}

	m.calls = counter("kubelet_runtime_operations_total", "Calls to the container runtime.", "operation_type")
	m.callFailures = counter("kubelet_runtime_operations_errors_total", "Calls to the container runtime that failed.", "operation_type")
	m.callSeconds = histogram("kubelet_runtime_operations_duration_seconds", "Time of calls to the container runtime.", prometheus.ExponentialBuckets(0.005, 2.5, 14), "operation_type")
	m.sandboxSeconds = histogram("kubelet_run_podsandbox_duration_seconds", "Time to make and start a sandbox.", usual, "runtime_handler")
	m.sandboxFailures = counter("kubelet_run_podsandbox_errors_total", "Sandboxes that could not be made or started.", "runtime_handler")
	m.relist = one(histogram("kubelet_pleg_relist_duration_seconds", "Time of one listing of sandboxes and containers.", usual))
	m.interval = one(histogram("kubelet_pleg_relist_interval_seconds", "Time from one listing to the next.", usual))
	m.lastSeen = gauge("kubelet_pleg_last_seen_seconds", "When the runtime last answered a listing, as a Unix time.").WithLabelValues()

	m.passSeconds = histogram("kubelet_pod_worker_duration_seconds", "Time of one pass over a pod: to observe, decide and begin the steps, which run aside.", usual, "operation_type")
	m.podStart = one(histogram("kubelet_pod_start_duration_seconds", "Time from the kubelet's first sight of a pod until it runs.", starts))
	m.statusSeconds = one(histogram("kubelet_pod_status_sync_duration_seconds", "Time to write a pod's status to the API server.", []float64{0.010, 0.050, 0.100, 0.500, 1, 5, 10, 20, 30, 45, 60}))
	m.pods = counter("kubelet_started_pods_total", "Sandboxes begun.").WithLabelValues()
	m.podFailures = counter("kubelet_started_pods_errors_total", "Sandboxes that could not be begun.").WithLabelValues()
	m.containers = counter("kubelet_started_containers_total", "Containers begun, by kind.", "container_type")
	m.containerFailures = counter("kubelet_started_containers_errors_total", "Containers that could not be started, by kind and reason.", "container_type", "code")
	m.rejections = counter("kubelet_admission_rejections_total", "Pods that the node did not take, by reason.", "reason")
	m.cgroupSeconds = histogram("kubelet_cgroup_manager_duration_seconds", "Time of an operation on a pod's control group.", usual, "operation_type")
	m.storageSeconds = histogram("storage_operation_duration_seconds", "Time of an operation on a volume.",
		[]float64{.1, .25, .5, 1, 2.5, 5, 10, 15, 25, 50, 120, 300, 600}, "volume_plugin", "operation_name", "status", "migrated")
	m.preemptions = counter("kubelet_preemptions", "Pods ended for a critical pod, by the resource that it lacked.", "preemption_signal")
	m.evictions = counter("kubelet_evictions", "Pods evicted, by what the node ran short of.", "eviction_signal")
	m.evictionAge = histogram("kubelet_eviction_stats_age_seconds", "Age of what was measured when a pod is evicted for it, by what the node ran short of.", usual, "eviction_signal")
	m.volumeSeconds = histogram("kubelet_volume_metric_collection_duration_seconds", "Time to measure a volume whose space is not asked of its file system.", usual, "metric_source")
	m.preKubelet = gauge("kubelet_node_startup_pre_kubelet_duration_seconds", "Time from the machine's boot to the kubelet's start, on a node that is new.").WithLabelValues()
	m.preRegistration = gauge("kubelet_node_startup_pre_registration_duration_seconds", "Time from the kubelet's start to its first attempt to register a node that is new.").WithLabelValues()
	m.registration = gauge("kubelet_node_startup_registration_duration_seconds", "Time from the first attempt to register a new node until that was done.").WithLabelValues()
	m.postRegistration = gauge("kubelet_node_startup_post_registration_duration_seconds", "Time from the registration of a new node until it was ready.").WithLabelValues()
	m.startup = gauge("kubelet_node_startup_duration_seconds", "Time from the machine's boot until a new node was ready.").WithLabelValues()
	m.imagesCollected = counter("kubelet_image_garbage_collected_total", "Images removed, because of their age or for space.", "reason")
	m.pullSeconds = histogram("kubelet_image_pull_duration_seconds", "Time to pull an image, by its size.",
		[]float64{1, 5, 10, 20, 30, 60, 120, 180, 240, 300, 360, 480, 600, 900, 1200, 1800, 2700, 3600}, "image_size_in_bytes")
	m.nodeName = gauge("kubelet_node_name", "Always 1; the label is the node's name.", "node")
	m.cgroupVersion = gauge("kubelet_cgroup_version", "Version of the control groups: 1 or 2.").WithLabelValues()
	m.sleepsCut = counter("kubelet_sleep_action_terminated_early_total", "Sleep actions that were cut short.").WithLabelValues()
	m.downBegan = gauge("kubelet_graceful_shutdown_start_time_seconds", "When the machine's last shutdown began, in seconds since 1970.").WithLabelValues()
	m.downEnded = gauge("kubelet_graceful_shutdown_end_time_seconds", "When the pods had ended for the machine's last shutdown, in seconds since 1970; 0 until then.").WithLabelValues()
	m.workerStart = one(histogram("kubelet_pod_worker_start_duration_seconds", "Time from the kubelet's first sight of a pod to the first pass over it.", usual))
	m.startSLI = one(histogram("kubelet_pod_start_sli_duration_seconds", "Time from a pod's creation until its containers run, without pulling images and init containers.", starts))
	m.startTotal = one(histogram("kubelet_pod_start_total_duration_seconds", "Time from a pod's creation until its containers run.", starts))
	m.perPod = one(histogram("kubelet_containers_per_pod_count", "Containers of a pod.", prometheus.ExponentialBuckets(1, 2, 5)))
	m.terminated = counter("kubelet_terminated_containers_total", "Containers that have ended, by kind, exit code and reason.", "container_type", "exit_code", "reason")
	m.orphans = counter("kubelet_orphaned_runtime_pods_total", "Pods that the runtime had when the kubelet started and that no source wanted.").WithLabelValues()
	m.plainHooks = counter("kubelet_lifecycle_handler_http_fallbacks_total", "Lifecycle handlers that named HTTPS and succeeded over HTTP.").WithLabelValues()
	m.resizesAsked = counter("kubelet_container_requested_resizes_total", "Changes of a running container's resources that were asked for.", "resource", "requirement", "operation")
	m.resizeMillis = histogram("kubelet_pod_resize_duration_milliseconds", "Time to give a container other resources.",
		[]float64{10, 50, 100, 500, 1000, 2000, 5000, 10000, 20000, 30000, 60000, 120000, 300000, 600000}, "success")
	m.deferredDone = counter("kubelet_pod_deferred_accepted_resizes_total", "Resizes that were carried out after they had waited.", "retry_trigger")
	m.images = counter("kubelet_image_manager_ensure_image_requests_total", "Images that containers needed.", "pull_policy", "present_locally", "pull_required")
	return m
}

// Describe is prometheus.Collector's.
func (m *Metrics) Describe(ch chan<- *prometheus.Desc) {
	for _, c := range m.all {
		c.Describe(ch)
	}
}

// Collect is prometheus.Collector's.
func (m *Metrics) Collect(ch chan<- prometheus.Metric) {
	for _, c := range m.all {
		c.Collect(ch)
	}
}

// Node says who and what the node is.
func (m *Metrics) Node(name string, cgroupV2 bool) {
	if m == nil {
		return
	}
	m.nodeName.WithLabelValues(name).Set(1)
	m.cgroupVersion.Set(1)
	if cgroupV2 {
		m.cgroupVersion.Set(2)
	}
}

// Call is one call to the runtime.
func (m *Metrics) Call(operation string, took time.Duration, err error) {
	if m == nil {
		return
	}
	m.calls.WithLabelValues(operation).Inc()
	m.callSeconds.WithLabelValues(operation).Observe(took.Seconds())
	if err != nil {
		m.callFailures.WithLabelValues(operation).Inc()
	}
}

// Sandbox is one attempt to make a sandbox.
func (m *Metrics) Sandbox(handler string, took time.Duration, err error) {
	if m == nil {
		return
	}
	m.sandboxSeconds.WithLabelValues(handler).Observe(took.Seconds())
	if err != nil {
		m.sandboxFailures.WithLabelValues(handler).Inc()
	}
}

// Relisted is one listing of all that the runtime has, begun at a time.
func (m *Metrics) Relisted(began, ended time.Time) {
	if m == nil {
		return
	}
	m.relist.Observe(ended.Sub(began).Seconds())
	m.lastSeen.Set(float64(ended.UnixNano()) / float64(time.Second))
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.relisted.IsZero() {
		m.interval.Observe(began.Sub(m.relisted).Seconds())
	}
	m.relisted = began
}

// Pass is one pass over a pod; kind is create, update, sync or kill.
func (m *Metrics) Pass(kind string, took time.Duration) {
	if m != nil {
		m.passSeconds.WithLabelValues(kind).Observe(took.Seconds())
	}
}

// PodRuns is a pod that has come to run; took is the time since the kubelet first saw it.
func (m *Metrics) PodRuns(took time.Duration) {
	if m != nil {
		m.podStart.Observe(took.Seconds())
	}
}

// StatusWritten is one status that the API server took.
func (m *Metrics) StatusWritten(took time.Duration) {
	if m != nil {
		m.statusSeconds.Observe(took.Seconds())
	}
}

// PodStarted is one attempt to give a pod its sandbox.
func (m *Metrics) PodStarted(err error) {
	if m == nil {
		return
	}
	m.pods.Inc()
	if err != nil {
		m.podFailures.Inc()
	}
}

// ContainerStarted is one attempt to start a container: container, init_container or
// ephemeral_container. reason is why it failed, empty when it did not.
func (m *Metrics) ContainerStarted(kind, reason string) {
	if m == nil {
		return
	}
	m.containers.WithLabelValues(kind).Inc()
	if reason != "" {
		m.containerFailures.WithLabelValues(kind, reason).Inc()
	}
}

// Rejected is a pod that the node did not take.
func (m *Metrics) Rejected(reason string) {
	if m != nil {
		m.rejections.WithLabelValues(reason).Inc()
	}
}

// Cgroup is an operation on a pod's control group: create, update or destroy.
func (m *Metrics) Cgroup(operation string, took time.Duration) {
	if m != nil {
		m.cgroupSeconds.WithLabelValues(operation).Observe(took.Seconds())
	}
}

// Storage is an operation on a volume: volume_mount or volume_unmount. plugin is like
// "kubernetes.io/empty-dir".
func (m *Metrics) Storage(plugin, operation string, took time.Duration, err error) {
	if m == nil {
		return
	}
	status := "success"
	if err != nil {
		status = "fail-unknown"
	}
	m.storageSeconds.WithLabelValues(plugin, operation, status, "false").Observe(took.Seconds())
}

// CertificateLife shows how long a certificate, "client" or "server", is good still. ends says when it ends, or
// that there is none.
func CertificateLife(which string, ends func() (time.Time, bool)) prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "kubelet_certificate_manager_" + which + "_ttl_seconds",
		Help: "Seconds until the kubelet's " + which + " certificate ends, negative when it has; +Inf when it has none from a file.",
	}, func() float64 {
		at, ok := ends()
		if !ok {
			return math.Inf(1)
		}
		return math.Trunc(time.Until(at).Seconds())
	})
}

// birth is when a node that is new in the cluster has come how far.
type birth struct{ boot, start, attempt, registered, ready time.Time }

// Started is the start of the kubelet on a machine that was booted at a time; zero: it is not known.
func (m *Metrics) Started(boot, now time.Time) {
	if m != nil {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.birth = birth{boot: boot, start: now}
	}
}

// Registering is an attempt to register the node. Only the first counts.
func (m *Metrics) Registering(now time.Time) {
	if m != nil {
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.birth.attempt.IsZero() {
			m.birth.attempt = now
		}
	}
}

// Registered is a node that was made: it was not known before.
func (m *Metrics) Registered(now time.Time) {
	if m == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	b := &m.birth
	if b.attempt.IsZero() || !b.registered.IsZero() {
		return
	}
	b.registered = now
	if !b.boot.IsZero() {
		m.preKubelet.Set(b.start.Sub(b.boot).Seconds())
	}
	m.preRegistration.Set(b.attempt.Sub(b.start).Seconds())
	m.registration.Set(now.Sub(b.attempt).Seconds())
}

// NodeReady is a status by which the node is ready. Only the first of a new node counts.
func (m *Metrics) NodeReady(now time.Time) {
	if m == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	b := &m.birth
	if b.registered.IsZero() || !b.ready.IsZero() {
		return
	}
	b.ready = now
	m.postRegistration.Set(now.Sub(b.registered).Seconds())
	if !b.boot.IsZero() {
		m.startup.Set(now.Sub(b.boot).Seconds())
	}
}

// VolumeMeasured is a volume whose space was found out by a source ("du").
func (m *Metrics) VolumeMeasured(source string, took time.Duration) {
	if m != nil {
		m.volumeSeconds.WithLabelValues(source).Observe(took.Seconds())
	}
}

// EvictsFor is a decision to evict for a signal, made on what was measured some time ago.
func (m *Metrics) EvictsFor(signal string, age time.Duration) {
	if m != nil {
		m.evictionAge.WithLabelValues(signal).Observe(age.Seconds())
	}
}

// Evicted is a pod that had to go because of the signal.
func (m *Metrics) Evicted(signal string) {
	if m != nil {
		m.evictions.WithLabelValues(signal).Inc()
	}
}

// Preempted is a pod that had to go for a critical one, which lacked a resource.
func (m *Metrics) Preempted(resource string) {
	if m != nil {
		m.preemptions.WithLabelValues(resource).Inc()
	}
}

// ImageCollected is an image that was removed, because of "age" or for "space".
func (m *Metrics) ImageCollected(reason string) {
	if m != nil {
		m.imagesCollected.WithLabelValues(reason).Inc()
	}
}

// Pulled is an image of a size that has come to the node.
func (m *Metrics) Pulled(sizeBytes uint64, took time.Duration) {
	if m != nil {
		m.pullSeconds.WithLabelValues(sizeClass(sizeBytes)).Observe(took.Seconds())
	}
}

// SleepCut is a sleep action that did not come to its end.
func (m *Metrics) SleepCut() {
	if m != nil {
		m.sleepsCut.Inc()
	}
}

// WorkerStarts is the first pass over a pod of so many containers, some time after it was first seen.
func (m *Metrics) WorkerStarts(took time.Duration, containers int) {
	if m != nil {
		m.workerStart.Observe(took.Seconds())
		m.perPod.Observe(float64(containers))
	}
}

// PodStarts is a pod whose containers run, some time after its creation; aside is what of it images and init
// containers took.
func (m *Metrics) PodStarts(took, aside time.Duration) {
	if m != nil {
		m.startTotal.Observe(took.Seconds())
		m.startSLI.Observe(max(took-aside, 0).Seconds())
	}
}

// ContainerEnded is a container that has ended: container, init_container or ephemeral_container.
func (m *Metrics) ContainerEnded(kind string, code int32, reason string) {
	if m != nil {
		m.terminated.WithLabelValues(kind, strconv.Itoa(int(code)), reason).Inc()
	}
}

// Orphan is a pod of the runtime that nobody wants.
func (m *Metrics) Orphan() {
	if m != nil {
		m.orphans.Inc()
	}
}

// PlainHook is a lifecycle handler that named HTTPS and succeeded over HTTP.
func (m *Metrics) PlainHook() {
	if m != nil {
		m.plainHooks.Inc()
	}
}

// ResizeAsked is one resource ("cpu") of one requirement ("requests", "limits") of a container for which another
// amount is asked for; operation is add, remove, increase or decrease.
func (m *Metrics) ResizeAsked(resource, requirement, operation string) {
	if m != nil {
		m.resizesAsked.WithLabelValues(resource, requirement, operation).Inc()
	}
}

// Resized is one try to give a container other resources.
func (m *Metrics) Resized(took time.Duration, err error) {
	if m != nil {
		m.resizeMillis.WithLabelValues(strconv.FormatBool(err == nil)).Observe(float64(took.Milliseconds()))
	}
}

// ResizeAfterAll is a resize that was deferred and then given, because of a trigger.
func (m *Metrics) ResizeAfterAll(trigger string) {
	if m != nil {
		m.deferredDone.WithLabelValues(trigger).Inc()
	}
}

// ImageWanted is an image that a container needs; present is "true", "false" or "unknown".
func (m *Metrics) ImageWanted(policy, present string, pull bool) {
	if m != nil {
		m.images.WithLabelValues(strings.ToLower(policy), present, strconv.FormatBool(pull)).Inc()
	}
}

// Shutdown is a shutdown of the machine for which the pods began to end, and had ended; zero: not yet.
func (m *Metrics) Shutdown(began, ended time.Time) {
	if m == nil {
		return
	}
	for g, t := range map[prometheus.Gauge]time.Time{m.downBegan: began, m.downEnded: ended} {
		if t.IsZero() {
			g.Set(0)
		} else {
			g.Set(float64(t.Unix()))
		}
	}
}

// sizeClass is upstream's label for the size of an image; its megabytes are 2^20 bytes.
func sizeClass(bytes uint64) string {
	const mib, gib = 1 << 20, 1 << 30
	for _, c := range []struct {
		upTo uint64
		name string
	}{
		{0, "N/A"}, {10 * mib, "0-10MB"}, {100 * mib, "10MB-100MB"}, {500 * mib, "100MB-500MB"}, {gib, "500MB-1GB"}, {5 * gib, "1GB-5GB"},
		{10 * gib, "5GB-10GB"}, {20 * gib, "10GB-20GB"}, {30 * gib, "20GB-30GB"}, {40 * gib, "30GB-40GB"}, {60 * gib, "40GB-60GB"}, {100 * gib, "60GB-100GB"},
	} {
		if bytes <= c.upTo {
			return c.name
		}
	}
	return "GT100GB"
}
