package policy

import (
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/keelson/keelson/apiserver/admission/expr"
	"github.com/keelson/keelson/apiserver/series"
)

// Metrics have upstream's names. An expression costs more than to look labels up. nil counts nothing.
type Metrics struct {
	checks, changes       *prometheus.CounterVec
	checkTook, changeTook *prometheus.HistogramVec
	Conditions            *expr.Metrics
}

// NewMetrics registers them; conditions are shared with webhooks.
func NewMetrics(reg prometheus.Registerer, conditions *expr.Metrics) *Metrics {
	bounds := []float64{0.0000005, 0.001, 0.01, 0.1, 1}
	change := []string{"policy", "policy_binding", "error_type"}
	check := append([]string{"enforcement_action"}, change...)
	return &Metrics{
		Conditions: conditions,
		checks: series.Counter(reg, "apiserver_validating_admission_policy_check_total",
			"Expressions of validating policies that have found something or have failed, by what became of the request.", check...),
		checkTook:  series.Histogram(reg, "apiserver_validating_admission_policy_check_duration_seconds", "Time that these expressions take.", bounds, check...),
		changes:    series.Counter(reg, "apiserver_mutating_admission_policy_check_total", "Mutations of mutating policies.", change...),
		changeTook: series.Histogram(reg, "apiserver_mutating_admission_policy_check_duration_seconds", "Time that a mutation takes.", bounds, change...),
	}
}

func (m *Metrics) checked(action, policy, binding string, err error, took time.Duration) {
	if m == nil {
		return
	}
	kind := faultOf(err)
	if err == nil { // the expression has said no: upstream has no word of its own for it
		kind = "invalid_error"
	}
	m.checks.WithLabelValues(action, policy, binding, kind).Inc()
	m.checkTook.WithLabelValues(action, policy, binding, kind).Observe(took.Seconds())
}

func (m *Metrics) changed(policy, binding string, err error, took time.Duration) {
	if m == nil {
		return
	}
	m.changes.WithLabelValues(policy, binding, faultOf(err)).Inc()
	m.changeTook.WithLabelValues(policy, binding, faultOf(err)).Observe(took.Seconds())
}

func faultOf(err error) string {
	switch {
	case err == nil:
		return "no_error"
	case errors.Is(err, expr.ErrCompile):
		return "compile_error"
	case errors.Is(err, expr.ErrBudget):
		return "out_of_budget"
	}
	return "invalid_error"
}

// conditions are whose match conditions are looked at.
func (m *Metrics) conditions(policy, operation string) expr.About {
	a := expr.About{Name: policy, Kind: "policy", Type: "validate", Excluded: "validate", Operation: operation}
	if m != nil {
		a.Metrics = m.Conditions
	}
	return a
}
