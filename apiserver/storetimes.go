package apiserver

import (
	"context"
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/keelson/keelson/apiserver/series"
	"github.com/keelson/keelson/apiserver/store"
)

// timed is a store whose requests are counted, under upstream's names. What is at a key is not
// looked at; the resource is told from the key.
type timed struct {
	store.Store
	resource func(key string) schema.GroupResource
	took     *prometheus.HistogramVec
	asked    *prometheus.CounterVec
	failed   *prometheus.CounterVec
	kept     series.Kept[request, *requests]
}

// request is what requests are told apart by.
type request struct {
	operation string
	schema.GroupResource
}

type requests struct {
	took          prometheus.Observer
	asked, failed prometheus.Counter
}

func newTimed(below store.Store, resource func(string) schema.GroupResource, reg prometheus.Registerer) *timed {
	labels := []string{"operation", "group", "resource"}
	t := &timed{
		Store: below, resource: resource,
		took: series.Histogram(reg, "etcd_request_duration_seconds", "Time that a request to etcd takes.",
			append([]float64{0.005, 0.025}, seconds...), labels...),
		asked:  prometheus.NewCounterVec(prometheus.CounterOpts{Name: "etcd_requests_total", Help: "Requests to etcd."}, labels),
		failed: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "etcd_request_errors_total", Help: "Requests to etcd that have failed."}, labels),
	}
	reg.MustRegister(t.asked, t.failed)
	return t
}

func (t *timed) done(operation, key string, began time.Time, err error) {
	r := t.kept.Of(request{operation, t.resource(key)}, func(k request) *requests {
		return &requests{
			t.took.WithLabelValues(k.operation, k.Group, k.Resource), t.asked.WithLabelValues(k.operation, k.Group, k.Resource),
			t.failed.WithLabelValues(k.operation, k.Group, k.Resource),
		}
	})
	r.took.Observe(time.Since(began).Seconds())
	r.asked.Inc()
	if err != nil && !errors.Is(err, store.ErrConflict) { // to lose a race is an answer
		r.failed.Inc()
	}
}

func (t *timed) Put(ctx context.Context, key string, value []byte, seen int64, ttl time.Duration) (int64, error) {
	operation, began := "update", time.Now()
	if seen == 0 {
		operation = "create"
	}
	rev, err := t.Store.Put(ctx, key, value, seen, ttl)
	t.done(operation, key, began, err)
	return rev, err
}

func (t *timed) Delete(ctx context.Context, key string, seen int64) (int64, error) {
	began := time.Now()
	rev, err := t.Store.Delete(ctx, key, seen)
	t.done("delete", key, began, err)
	return rev, err
}

// Commit counts as what becomes of its first key, which is the object's own.
func (t *timed) Commit(ctx context.Context, ops []store.Op) (int64, error) {
	began := time.Now()
	rev, err := t.Store.Commit(ctx, ops)
	if len(ops) > 0 {
		operation := "update"
		switch {
		case ops[0].Do == store.Remove:
			operation = "delete"
		case ops[0].Seen == 0:
			operation = "create"
		}
		t.done(operation, ops[0].Key, began, err)
	}
	return rev, err
}

func (t *timed) Get(ctx context.Context, key string) (*store.KV, error) {
	began := time.Now()
	kv, err := t.Store.Get(ctx, key)
	t.done("get", key, began, err)
	return kv, err
}

func (t *timed) Range(ctx context.Context, prefix string, fn func([]store.KV) error) (int64, error) {
	if prefix == "" { // everything, at the start: of no resource
		return t.Store.Range(ctx, prefix, fn)
	}
	began := time.Now()
	rev, err := t.Store.Range(ctx, prefix, fn)
	t.done("list", prefix, began, err)
	return rev, err
}
