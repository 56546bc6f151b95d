package bind

import (
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

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
	}
	r.MustRegister(m.attempts, m.attemptSeconds, m.algorithm, m.sli, m.podAttempts, m.preemptionAttempts, m.preemptionVictims, m.eventsDropped)
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

var (
	pendingDesc = prometheus.NewDesc("scheduler_pending_pods", "Pods that wait, by queue: active, backoff, unschedulable, gated.", []string{"queue"}, nil)
	cacheDesc   = prometheus.NewDesc("scheduler_cache_size", "Objects in the scheduler's cache.", []string{"type"}, nil)
)

// Describe and Collect make the scheduler a collector of what its loop owns.
func (s *Scheduler) Describe(ch chan<- *prometheus.Desc) { ch <- pendingDesc; ch <- cacheDesc }

// Collect asks the loop.
func (s *Scheduler) Collect(ch chan<- prometheus.Metric) {
	var lens map[queue.Place]int
	var nodes, assumed int
	if s.ask(func() { lens, nodes, assumed = s.queue.Lens(), s.cache.Snapshot().Live, s.inFlight }) != nil {
		return
	}
	for _, place := range []queue.Place{queue.Active, queue.BackingOff, queue.Unschedulable, queue.Gated} {
		ch <- prometheus.MustNewConstMetric(pendingDesc, prometheus.GaugeValue, float64(lens[place]), place.String())
	}
	ch <- prometheus.MustNewConstMetric(cacheDesc, prometheus.GaugeValue, float64(nodes), "nodes")
	ch <- prometheus.MustNewConstMetric(cacheDesc, prometheus.GaugeValue, float64(assumed), "assumed_pods")
}
