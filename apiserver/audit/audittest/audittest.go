// Package audittest records one request, for tests of rooms that annotate audit events.
package audittest

import (
	"context"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	auditv1 "k8s.io/apiserver/pkg/apis/audit/v1"

	"github.com/keelson/keelson/apiserver/audit"
)

type backend struct{ last *auditv1.Event }

func (b *backend) Send(ev *auditv1.Event) bool   { b.last = ev; return true }
func (b *backend) Run(ctx context.Context) error { <-ctx.Done(); return nil }

// Begin returns the context of a request that is recorded at this level, and a function that ends it and returns the
// annotations of its event.
func Begin(t *testing.T, level string) (ctx context.Context, end func() map[string]string) {
	policy, err := audit.ReadPolicy([]byte("apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: [{level: " + level + "}]"))
	if err != nil {
		t.Fatal(err)
	}
	b := &backend{}
	a := audit.New(audit.Config{Policy: policy, Backends: []audit.Backend{b}, Registry: prometheus.NewRegistry()})
	r, record, err := a.Begin(httptest.NewRequest(http.MethodPost, "/", nil), "id", audit.Subject{Verb: "create"}, false, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return r.Context(), func() map[string]string {
		record.End(nil, false)
		return b.last.Annotations
	}
}
