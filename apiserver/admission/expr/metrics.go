package expr

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/keelson/keelson/apiserver/series"
)

// Metrics of match conditions have upstream's names. nil counts nothing.
type Metrics struct {
	took          *prometheus.HistogramVec
	failed, unmet *prometheus.CounterVec
}

// NewMetrics registers them.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	labels := []string{"name", "kind", "type", "operation"}
	return &Metrics{
		took: series.Histogram(reg, "apiserver_admission_match_condition_evaluation_seconds", "Time to find out whether all match conditions hold.",
			[]float64{0.001, 0.005, 0.01, 0.025, 0.1, 0.2, 0.25}, labels...),
		failed: series.Counter(reg, "apiserver_admission_match_condition_evaluation_errors_total", "Match conditions that could not be worked out.", labels...),
		unmet:  series.Counter(reg, "apiserver_admission_match_condition_exclusions_total", "Requests that a webhook or policy was not asked about because a match condition does not hold.", labels...),
	}
}

// About says whose conditions are looked at.
type About struct {
	*Metrics
	Name, Kind, Type, Operation string
	// Excluded is the type under which upstream counts what does not match.
	Excluded string
}

func (a About) done(met bool, faults int, took time.Duration) {
	if a.Metrics == nil {
		return
	}
	a.took.WithLabelValues(a.Name, a.Kind, a.Type, a.Operation).Observe(took.Seconds())
	if faults > 0 {
		a.failed.WithLabelValues(a.Name, a.Kind, a.Type, a.Operation).Add(float64(faults))
	} else if !met {
		a.unmet.WithLabelValues(a.Name, a.Kind, a.Excluded, a.Operation).Inc()
	}
}
