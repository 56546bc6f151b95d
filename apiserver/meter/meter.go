// Package meter counts where it must cost next to nothing: a histogram here is two atomic additions,
// and a series is looked up once by who keeps it. It shows itself to Prometheus like any other.
package meter

import (
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Histogram is one series.
type Histogram struct {
	labels []string
	bounds []int64
	counts []atomic.Uint64 // one more than bounds: what is above them all
	sum    atomic.Int64
}

// Observe takes a value in the family's unit.
func (h *Histogram) Observe(v int64) {
	i := 0
	for i < len(h.bounds) && v > h.bounds[i] {
		i++
	}
	h.counts[i].Add(1)
	h.sum.Add(v)
}

// Took observes a time; the family's unit is the nanosecond.
func (h *Histogram) Took(d time.Duration) { h.Observe(int64(d)) }

// Histograms is a family: the series of one name.
type Histograms struct {
	desc   *prometheus.Desc
	unit   float64 // what the shown value is divided by
	bounds []float64

	mu     sync.Mutex // guards series
	series map[string]*Histogram
}

// Seconds returns a family of times, registered. Bounds are in seconds.
func Seconds(reg prometheus.Registerer, name, help string, bounds []float64, labels ...string) *Histograms {
	return family(reg, name, help, float64(time.Second), bounds, labels)
}

// Sizes returns a family of plain numbers, registered.
func Sizes(reg prometheus.Registerer, name, help string, bounds []float64, labels ...string) *Histograms {
	return family(reg, name, help, 1, bounds, labels)
}

func family(reg prometheus.Registerer, name, help string, unit float64, bounds []float64, labels []string) *Histograms {
	f := &Histograms{desc: prometheus.NewDesc(name, help, labels, nil), unit: unit, bounds: bounds, series: map[string]*Histogram{}}
	reg.MustRegister(f)
	return f
}

// With returns the series of some label values, in the order of the labels. Who asks often keeps it.
func (f *Histograms) With(values ...string) *Histogram {
	key := strings.Join(values, "\x00")
	f.mu.Lock()
	defer f.mu.Unlock()
	h := f.series[key]
	if h == nil {
		h = &Histogram{labels: slices.Clone(values), bounds: make([]int64, len(f.bounds)), counts: make([]atomic.Uint64, len(f.bounds)+1)}
		for i, b := range f.bounds {
			h.bounds[i] = int64(b * f.unit)
		}
		f.series[key] = h
	}
	return h
}

// Describe is prometheus.Collector's.
func (f *Histograms) Describe(ch chan<- *prometheus.Desc) { ch <- f.desc }

// Collect is prometheus.Collector's.
func (f *Histograms) Collect(ch chan<- prometheus.Metric) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, h := range f.series {
		buckets, n := make(map[float64]uint64, len(f.bounds)), uint64(0)
		for i, b := range f.bounds {
			n += h.counts[i].Load()
			buckets[b] = n
		}
		n += h.counts[len(f.bounds)].Load()
		ch <- prometheus.MustNewConstHistogram(f.desc, n, float64(h.sum.Load())/f.unit, buckets, h.labels...)
	}
}

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
