package bind

import (
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/keelson/keelson/scheduler/cycle"
	"github.com/keelson/keelson/scheduler/queue"
)

// Metrics have upstream's names, labels and buckets where upstream has the same thing.
type Metrics struct {
	attempts           *prometheus.CounterVec
	attemptSeconds     *prometheus.HistogramVec
	algorithm          prometheus.Histogram
	sli                *prometheus.HistogramVec
	podAttempts        prometheus.Histogram
	preemptionAttempts prometheus.Counter
	preemptionVictims  prometheus.Histogram
	eventsDropped      prometheus.Counter
	points             *prometheus.HistogramVec
}

// NewMetrics makes the metrics and registers them.
func NewMetrics(r prometheus.Registerer) *Metrics {
	m := &Metrics{
		attempts: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "scheduler_schedule_attempts_total",
			Help: "Attempts to schedule pods, by result: scheduled, unschedulable (no node takes the pod now), error (of the scheduler or the API)."}, []string{"result", "profile"}),
		attemptSeconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "scheduler_scheduling_attempt_duration_seconds",
			Help: "Time of one attempt: decision and binding.", Buckets: prometheus.ExponentialBuckets(0.001, 2, 15)}, []string{"result", "profile"}),
		algorithm: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "scheduler_scheduling_algorithm_duration_seconds",
			Help: "Time of one decision.", Buckets: prometheus.ExponentialBuckets(0.00001, 2, 18)}),
		sli: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "scheduler_pod_scheduling_sli_duration_seconds",
			Help: "Time from a pod's entering the queue to its being bound, over all attempts.", Buckets: prometheus.ExponentialBuckets(0.01, 2, 20)}, []string{"attempts"}),
		podAttempts: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "scheduler_pod_scheduling_attempts",
			Help: "Attempts that it took to schedule a pod.", Buckets: prometheus.ExponentialBuckets(1, 2, 5)}),
		preemptionAttempts: prometheus.NewCounter(prometheus.CounterOpts{Name: "scheduler_preemption_attempts_total", Help: "Preemptions carried out."}),
		preemptionVictims: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "scheduler_preemption_victims",
			Help: "Pods evicted by one preemption.", Buckets: prometheus.ExponentialBuckets(1, 2, 7)}),
		eventsDropped: prometheus.NewCounter(prometheus.CounterOpts{Name: "keelson_scheduler_events_dropped_total", Help: "Events that were not written because the buffer was full."}),
		points: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "scheduler_framework_extension_point_duration_seconds",
			Help:    "Time of an extension point's part of one attempt. The nodes' own scores are worked out with their filters, and count there.",
			Buckets: prometheus.ExponentialBuckets(0.0001, 2, 12)}, []string{"extension_point", "status", "profile"}),
	}
	r.MustRegister(m.points, m.attempts, m.attemptSeconds, m.algorithm, m.sli, m.podAttempts, m.preemptionAttempts, m.preemptionVictims, m.eventsDropped)
	return m
}

func (m *Metrics) attempt(result, profile string, took time.Duration) {
	m.attempts.WithLabelValues(result, profile).Inc()
	m.attemptSeconds.WithLabelValues(result, profile).Observe(took.Seconds())
}

func (m *Metrics) scheduled(attempts int, took time.Duration) {
	m.podAttempts.Observe(float64(attempts))
	label := "16+"
	if attempts < 16 {
		label = strconv.Itoa(attempts)
	}
	m.sli.WithLabelValues(label).Observe(took.Seconds())
}

// point notes how long an extension point took, and how it ended.
func (m *Metrics) point(name, status, profile string, took time.Duration) {
	m.points.WithLabelValues(name, status, profile).Observe(took.Seconds())
}

func statusOf(err error) string {
	if err != nil {
		return "Error"
	}
	return "Success"
}

// laps times the phases of one decision. It belongs to the loop.
type laps struct {
	last time.Time
	took [cycle.Phases]time.Duration
}

func (l *laps) start(now time.Time) { *l = laps{last: now} }

func (l *laps) lap(p cycle.Phase) {
	now := time.Now()
	l.took[p] += now.Sub(l.last)
	l.last = now
}

// decided notes the phases of a decision.
func (m *Metrics) decided(l *laps, out *cycle.Outcome, profile string) {
	for p, took := range l.took {
		if took == 0 {
			continue // not reached
		}
		status := "Success"
		switch phase := cycle.Phase(p); {
		case phase == cycle.PreFilter && out.Node == nil && l.took[cycle.PostFilter] == 0,
			phase == cycle.PostFilter && out.Preempt == nil:
			status = "Unschedulable"
		}
		m.point(cycle.Phase(p).String(), status, profile, took)
	}
}

var (
	pendingDesc  = prometheus.NewDesc("scheduler_pending_pods", "Pods that wait, by queue: active, backoff, unschedulable, gated.", []string{"queue"}, nil)
	incomingDesc = prometheus.NewDesc("scheduler_queue_incoming_pods_total", "Pods that came to a queue, by queue and by what moved them.", []string{"queue", "event"}, nil)
	refusedDesc  = prometheus.NewDesc("scheduler_unschedulable_pods", "Unschedulable pods by each plugin that refused them: a pod counts once for every one of them.", []string{"plugin", "profile"}, nil)
	cacheDesc    = prometheus.NewDesc("scheduler_cache_size", "Objects in the scheduler's cache.", []string{"type"}, nil)
	workDesc     = prometheus.NewDesc("scheduler_goroutines", "Goroutines at work, by what they do.", []string{"operation"}, nil)
)

// Describe and Collect make the scheduler a collector of what its loop owns.
func (s *Scheduler) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{pendingDesc, incomingDesc, refusedDesc, cacheDesc, workDesc} {
		ch <- d
	}
}

// Collect asks the loop.
func (s *Scheduler) Collect(ch chan<- prometheus.Metric) {
	var lens map[queue.Place]int
	var arrivals []queue.Arrival
	var refused map[string]int
	var nodes, pods, assumed, binding int
	if s.ask(func() {
		lens, arrivals, refused = s.queue.Lens(), s.queue.Arrivals(), s.queue.Refused()
		nodes, binding = s.cache.Snapshot().Live, s.inFlight
		pods, assumed = s.cache.Pods()
	}) != nil {
		return
	}
	gauge := func(d *prometheus.Desc, v int, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(v), labels...)
	}
	for _, place := range []queue.Place{queue.Active, queue.BackingOff, queue.Unschedulable, queue.Gated} {
		gauge(pendingDesc, lens[place], place.String())
	}
	for _, a := range arrivals {
		ch <- prometheus.MustNewConstMetric(incomingDesc, prometheus.CounterValue, float64(a.Pods), a.Place.String(), a.Event)
	}
	for plugin, n := range refused {
		gauge(refusedDesc, n, plugin, s.cfg.SchedulerName)
	}
	gauge(cacheDesc, nodes, "nodes")
	gauge(cacheDesc, pods, "pods")
	gauge(cacheDesc, assumed, "assumed_pods")
	gauge(workDesc, binding, "binding")
}
