package meter_test

import (
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/keelson/keelson/apiserver/meter"
)

// A histogram shows what Prometheus' own shows of the same values.
func TestLikePrometheus(t *testing.T) {
	bounds := []float64{0.001, 0.5, 1}
	ours, theirs := prometheus.NewRegistry(), prometheus.NewRegistry()
	a := meter.Seconds(ours, "x_seconds", "X.", bounds, "verb", "code")
	b := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "x_seconds", Help: "X.", Buckets: bounds}, []string{"verb", "code"})
	theirs.MustRegister(b)
	var all sync.WaitGroup
	for _, d := range []time.Duration{0, time.Millisecond, time.Millisecond + 1, 500 * time.Millisecond, time.Second, time.Minute} {
		b.WithLabelValues("GET", "200").Observe(d.Seconds())
		all.Go(func() { a.With("GET", "200").Took(d) })
	}
	b.WithLabelValues("", "").Observe(2)
	a.With("", "").Took(2 * time.Second)
	all.Wait()
	want, err := theirs.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got, err := ours.Gather()
	if err != nil {
		t.Fatal(err)
	}
	if problems, err := testutil.GatherAndLint(ours); err != nil || len(problems) > 0 {
		t.Errorf("%v %v", problems, err)
	}
	for i, m := range got[0].Metric {
		w := want[0].Metric[i]
		if m.Histogram.GetSampleCount() != w.Histogram.GetSampleCount() || m.Histogram.GetSampleSum() < w.Histogram.GetSampleSum()-1e-6 {
			t.Errorf("%v, want %v", m, w)
		}
		for j, bucket := range m.Histogram.Bucket {
			if x := w.Histogram.Bucket[j]; bucket.GetCumulativeCount() != x.GetCumulativeCount() || bucket.GetUpperBound() != x.GetUpperBound() {
				t.Errorf("bucket %v, want %v", bucket, x)
			}
		}
	}
}

func TestKeptIsMadeOnce(t *testing.T) {
	var c meter.Kept[int, *int]
	make := func(k int) *int { return &k }
	if c.Of(1, make) != c.Of(1, make) || *c.Of(2, make) != 2 {
		t.Error("another value for the same key")
	}
}

func BenchmarkTook(b *testing.B) {
	h := meter.Seconds(prometheus.NewRegistry(), "x_seconds", "X.", prometheus.DefBuckets).With()
	b.ReportAllocs()
	for b.Loop() {
		h.Took(time.Millisecond)
	}
}
