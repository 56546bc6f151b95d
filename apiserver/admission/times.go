package admission

import (
	"strconv"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

type step uint8

const (
	admitStep step = iota
	validateStep
)

var stepNames = [...]string{admitStep: "admit", validateStep: "validate"}

// times are how long one plugin, or the whole chain, takes: by step, operation and outcome. The zero
// value is a plugin that nobody times.
type times struct {
	of func(step, operation, rejected string) prometheus.Observer
	by [2][4][2]atomic.Pointer[prometheus.Observer] // looking labels up costs more than counting
}

func slot(op Operation) int {
	switch op {
	case Create:
		return 0
	case Update:
		return 1
	case Delete:
		return 2
	}
	return 3
}

// took counts what has passed since began, and returns the time.
func (t *times) took(s step, op Operation, rejected bool, began time.Time) time.Time {
	if t == nil {
		return began
	}
	now := time.Now()
	refused := 0
	if rejected {
		refused = 1
	}
	p := &t.by[s][slot(op)][refused]
	h := p.Load()
	if h == nil {
		made := t.of(stepNames[s], string(op), strconv.FormatBool(rejected))
		h = &made
		p.Store(h)
	}
	(*h).Observe(now.Sub(began).Seconds())
	return now
}

func (t *times) start() time.Time {
	if t == nil {
		return time.Time{}
	}
	return time.Now()
}

// Timed returns the chain with its times shown by reg, under upstream's names.
func (c Chain) Timed(reg prometheus.Registerer) Chain {
	bounds := []float64{0.005, 0.025, 0.1, 0.5, 1, 2.5}
	steps := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "apiserver_admission_step_admission_duration_seconds", Help: "Time that all admission plugins together take.", Buckets: bounds,
	}, []string{"type", "operation", "rejected"})
	plugins := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "apiserver_admission_controller_admission_duration_seconds", Help: "Time that an admission plugin takes.", Buckets: bounds,
	}, []string{"name", "type", "operation", "rejected"})
	reg.MustRegister(steps, plugins)
	whole := &times{of: func(step, op, rejected string) prometheus.Observer { return steps.WithLabelValues(step, op, rejected) }}
	out := make(Chain, len(c))
	for i, p := range c {
		p.times = &times{of: func(step, op, rejected string) prometheus.Observer {
			return plugins.WithLabelValues(p.Name, step, op, rejected)
		}}
		p.chain = whole
		out[i] = p
	}
	return out
}

// whole is where the times of the chain go.
func (c Chain) whole() *times {
	if len(c) == 0 {
		return nil
	}
	return c[0].chain
}
