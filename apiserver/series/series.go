// Package series helps rooms to count what they do for /metrics.
//
// A family is registered with [Counter] or [Histogram]. To look a series up by its labels costs more than
// to count, so that what is counted for every request is looked up once and kept: [Kept].
//
// Names and labels are upstream's, so that dashboards and alerts work. The package starts nothing, and a room
// whose metrics are nil counts nothing.
package series

import (
	"sync"

	"github.com/prometheus/client_golang/prometheus"
)

// Kept holds what was made for a key. Looking up costs no lock.
type Kept[K comparable, V any] struct{ m sync.Map }

// Of returns the value of k, made by make the first time.
func (c *Kept[K, V]) Of(k K, make func(K) V) V {
	if v, ok := c.m.Load(k); ok {
		return v.(V)
	}
	v, _ := c.m.LoadOrStore(k, make(k))
	return v.(V)
}

// Counter returns a registered family.
func Counter(reg prometheus.Registerer, name, help string, labels ...string) *prometheus.CounterVec {
	v := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	reg.MustRegister(v)
	return v
}

// Histogram returns a registered family.
func Histogram(reg prometheus.Registerer, name, help string, bounds []float64, labels ...string) *prometheus.HistogramVec {
	v := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: bounds}, labels)
	reg.MustRegister(v)
	return v
}
