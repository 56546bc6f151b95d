package sync

import (
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/keelson/keelson/kube-proxy/model"
	"github.com/keelson/keelson/kube-proxy/rules"
)

// Metrics are the series of all families, under upstream's names. They are a prometheus.Collector.
//
// Source: Kubernetes metrics reference, kubeproxy_*.
type Metrics struct {
	vectors []prometheus.Collector

	took, full, partial, programming *prometheus.HistogramVec
	applied, queued                  *prometheus.GaugeVec
	failures, partialFailures        *prometheus.CounterVec
	written                          *prometheus.GaugeVec

	services, endpoints atomic.Int64 // changes seen so far

	mu       sync.Mutex
	families []*Syncer // guarded by mu
}

// NewMetrics makes the series.
func NewMetrics() *Metrics {
	m := &Metrics{}
	histogram := func(name, help string, buckets []float64) *prometheus.HistogramVec {
		h := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "kubeproxy_" + name, Help: help, Buckets: buckets}, []string{"ip_family"})
		m.vectors = append(m.vectors, h)
		return h
	}
	gauge := func(name, help string, labels ...string) *prometheus.GaugeVec {
		g := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "kubeproxy_" + name, Help: help}, append(labels, "ip_family"))
		m.vectors = append(m.vectors, g)
		return g
	}
	counter := func(name, help string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "kubeproxy_" + name, Help: help}, []string{"ip_family"})
		m.vectors = append(m.vectors, c)
		return c
	}
	usual := prometheus.ExponentialBuckets(0.001, 2, 15)
	m.took = histogram("sync_proxy_rules_duration_seconds", "Time of a pass that changed rules, or failed.", usual)
	m.full = histogram("sync_full_proxy_rules_duration_seconds", "The same, of passes that wrote all chains.", usual)
	m.partial = histogram("sync_partial_proxy_rules_duration_seconds", "The same, of passes that wrote only changed chains.", usual)
	m.programming = histogram("network_programming_duration_seconds", "Time from the change of a pod or service that is the cause until the rules follow.", programmingBuckets())
	m.applied = gauge("sync_proxy_rules_last_timestamp_seconds", "When the rules were last known to be right, as a Unix time.")
	m.queued = gauge("sync_proxy_rules_last_queued_timestamp_seconds", "When a pass was last asked for, as a Unix time.")
	m.failures = counter("sync_proxy_rules_iptables_restore_failures_total", "Restores that failed.")
	m.partialFailures = counter("sync_proxy_rules_iptables_partial_restore_failures_total", "Restores of changed chains that failed.")
	m.written = gauge("sync_proxy_rules_iptables_last", "Rules written by the last pass that wrote any.", "table")
	return m
}

// programmingBuckets are upstream's: quarters of a second, then seconds to a minute, then coarser to 5 minutes.
func programmingBuckets() []float64 {
	out := prometheus.LinearBuckets(0.25, 0.25, 2)
	out = append(out, prometheus.LinearBuckets(1, 1, 59)...)
	out = append(out, prometheus.LinearBuckets(60, 5, 12)...)
	return append(out, prometheus.LinearBuckets(120, 30, 7)...)
}

// ServiceChanged and EndpointsChanged count what the watches bring.
func (m *Metrics) ServiceChanged() { m.services.Add(1) }

// EndpointsChanged is ServiceChanged for EndpointSlices.
func (m *Metrics) EndpointsChanged() { m.endpoints.Add(1) }

func (m *Metrics) add(s *Syncer) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.families = append(m.families, s)
}

func label(f model.Family) string { return fmt.Sprintf("IPv%d", f) }

func unix(t time.Time) float64 { return float64(t.UnixNano()) / float64(time.Second) }

// pass is the end of one pass over the rules.
type pass struct {
	began, ended time.Time
	full         bool
	written      map[string]int // rules by table
	err          error
}

func (m *Metrics) passed(f model.Family, p pass) {
	family := label(f)
	if p.err == nil {
		m.applied.WithLabelValues(family).Set(unix(p.ended))
	}
	if len(p.written) == 0 && p.err == nil {
		return // it changed nothing
	}
	took := p.ended.Sub(p.began).Seconds()
	m.took.WithLabelValues(family).Observe(took)
	if p.full {
		m.full.WithLabelValues(family).Observe(took)
	} else {
		m.partial.WithLabelValues(family).Observe(took)
	}
	if p.err != nil {
		m.failures.WithLabelValues(family).Inc()
		if !p.full {
			m.partialFailures.WithLabelValues(family).Inc()
		}
		return
	}
	for table, n := range p.written {
		m.written.WithLabelValues(table, family).Set(float64(n))
	}
}

var (
	totalDesc    = prometheus.NewDesc("kubeproxy_sync_proxy_rules_iptables_total", "Rules that stand.", []string{"table", "ip_family"}, nil)
	noLocalDesc  = prometheus.NewDesc("kubeproxy_sync_proxy_rules_no_local_endpoints_total", "Service ports whose traffic must stay on the node, and that have endpoints only elsewhere.", []string{"traffic_policy", "ip_family"}, nil)
	servicesDesc = prometheus.NewDesc("kubeproxy_sync_proxy_rules_service_changes_total", "Changes of services seen.", nil, nil)
	servicesWait = prometheus.NewDesc("kubeproxy_sync_proxy_rules_service_changes_pending", "Changes of services that the rules do not follow yet.", nil, nil)
	endpointDesc = prometheus.NewDesc("kubeproxy_sync_proxy_rules_endpoint_changes_total", "Changes of endpoint slices seen.", nil, nil)
	endpointWait = prometheus.NewDesc("kubeproxy_sync_proxy_rules_endpoint_changes_pending", "Changes of endpoint slices that the rules do not follow yet.", nil, nil)
)

// Describe is prometheus.Collector's.
func (m *Metrics) Describe(ch chan<- *prometheus.Desc) {
	for _, v := range m.vectors {
		v.Describe(ch)
	}
	for _, d := range []*prometheus.Desc{totalDesc, noLocalDesc, servicesDesc, servicesWait, endpointDesc, endpointWait} {
		ch <- d
	}
}

// Collect is prometheus.Collector's. What stands is counted when it is asked for.
func (m *Metrics) Collect(ch chan<- prometheus.Metric) {
	for _, v := range m.vectors {
		v.Collect(ch)
	}
	m.mu.Lock()
	families := m.families
	m.mu.Unlock()
	services, endpoints := m.services.Load(), m.endpoints.Load()
	served, followed := services, endpoints
	gauge := func(d *prometheus.Desc, n int, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(n), labels...)
	}
	for _, s := range families {
		served, followed = min(served, s.served.Load()), min(followed, s.followed.Load())
		shown := s.shown.Load()
		if shown == nil {
			continue
		}
		for table, chains := range shown.tables {
			gauge(totalDesc, count(chains), table, label(s.cfg.Family))
		}
		internal, external := 0, 0
		for i := range shown.ports {
			p := &shown.ports[i]
			if !p.Anywhere || len(p.Local) > 0 {
				continue
			}
			if p.InternalLocal {
				internal++
			}
			if p.ExternalLocal && p.External() {
				external++
			}
		}
		gauge(noLocalDesc, internal, "internal", label(s.cfg.Family))
		gauge(noLocalDesc, external, "external", label(s.cfg.Family))
	}
	for d, n := range map[*prometheus.Desc]int64{servicesDesc: services, endpointDesc: endpoints} {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n))
	}
	gauge(servicesWait, int(services-served))
	gauge(endpointWait, int(endpoints-followed))
}

func count(chains rules.Table) (n int) {
	for _, c := range chains {
		n += strings.Count(string(c), "\n")
	}
	return n
}
