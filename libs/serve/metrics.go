package serve

import (
	"context"
	"regexp"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/keelson/keelson/libs/config"
)

// common are the series of every daemon: Go, process, and what was built.
//
// Source: Kubernetes metrics reference, kubernetes_build_info.
func common(reg prometheus.Registerer) {
	b := config.Build()
	info := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "kubernetes_build_info", Help: "Always 1; the labels say what was built, when, and with what.",
		ConstLabels: prometheus.Labels{"major": b.Major, "minor": b.Minor, "git_version": b.GitVersion, "git_commit": b.GitCommit,
			"git_tree_state": b.GitTreeState, "build_date": b.BuildDate, "go_version": b.GoVersion, "compiler": b.Compiler, "platform": b.Platform},
	})
	info.Set(1)
	version := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "version_info", Help: "Always 1; the labels say which version of Kubernetes this is, which it behaves like, and which it gets along with.",
		ConstLabels: prometheus.Labels{"component": "kube", "binary": strings.TrimPrefix(b.GitVersion, "v"), "emulation": b.EmulationMajor + "." + b.EmulationMinor, "min_compat": b.MinCompatibilityMajor + "." + b.MinCompatibilityMinor},
	})
	version.Set(1)
	// What the runtime tells of its debugging settings is left out: three quarters of the series, and never other than 0.
	runtime := collectors.NewGoCollector(collectors.WithGoCollectorRuntimeMetrics(collectors.GoRuntimeMetricsRule{Matcher: regexp.MustCompile(`^/(cgo|cpu|gc|memory|sched|sync)/`)}))
	reg.MustRegister(version, runtime, collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), info)
}

// checked counts the outcomes of health checks; /metrics/slis shows it.
//
// Source: Kubernetes documentation, "Kubernetes Component SLI Metrics" (KEP-3466).
type checked struct {
	registry *prometheus.Registry
	now      *prometheus.GaugeVec
	total    *prometheus.CounterVec
}

func newChecked() checked {
	c := checked{
		registry: prometheus.NewRegistry(),
		now: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "kubernetes_healthcheck", Help: "Outcome of the check when it was last asked for: 1 when it passed, 0 when it failed.",
		}, []string{"name", "type"}),
		total: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "kubernetes_healthchecks_total", Help: "Checks that were asked for, by outcome.",
		}, []string{"name", "type", "status"}),
	}
	c.registry.MustRegister(c.now, c.total)
	return c
}

func (c checked) observe(name, kind string, err error) {
	passed, status := 1.0, "success"
	if err != nil {
		passed, status = 0, "error"
	}
	c.now.WithLabelValues(name, kind).Set(passed)
	c.total.WithLabelValues(name, kind, status).Inc()
}

// Leading wraps what a daemon does while it leads: /metrics says whether it does. name is the lease's.
func (s *Server) Leading(name string, lead func(context.Context) error) func(context.Context) error {
	leads := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "leader_election_master_status", Help: "1 while this copy holds the lease, 0 while it stands by.",
		ConstLabels: prometheus.Labels{"name": name},
	})
	s.registry.MustRegister(leads)
	return func(ctx context.Context) error {
		leads.Set(1)
		defer leads.Set(0)
		return lead(ctx)
	}
}
