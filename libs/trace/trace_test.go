package trace

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
)

func TestOffMakesNothing(t *testing.T) {
	stop, err := Setup(t.Context(), Config{}, "test")
	if err != nil {
		t.Fatal(err)
	}
	allocs := testing.AllocsPerRun(100, func() {
		_, span := Start(context.Background(), "work")
		span.End(nil)
	})
	if allocs != 0 || On() {
		t.Errorf("off: %v allocations a span, on: %v", allocs, On())
	}
	if err := stop(t.Context()); err != nil {
		t.Error(err)
	}
}

// kept is an exporter that keeps what it is given.
type kept struct {
	mu    sync.Mutex
	spans []sdktrace.ReadOnlySpan
}

func (k *kept) ExportSpans(_ context.Context, s []sdktrace.ReadOnlySpan) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.spans = append(k.spans, s...)
	return nil
}
func (k *kept) Shutdown(context.Context) error { return nil }

func TestSpanCrossesARequest(t *testing.T) {
	exporter := &kept{}
	stop := setup(exporter, Config{SamplingRatePerMillion: 1_000_000}, "test")
	server := httptest.NewServer(Handler(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, span := Start(r.Context(), "inner")
		span.End(errors.New("broken"))
	})))
	defer server.Close()

	ctx, span := Start(t.Context(), "outer", "pod", "a/b")
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, server.URL+"/x", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := (&http.Client{Transport: RoundTripper(http.DefaultTransport)}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	span.End(nil)
	if err := stop(t.Context()); err != nil {
		t.Fatal(err)
	}

	byName := map[string]sdktrace.ReadOnlySpan{}
	for _, s := range exporter.spans {
		byName[s.Name()] = s
	}
	outer, server2, inner := byName["outer"], byName["GET /x"], byName["inner"]
	if outer == nil || server2 == nil || inner == nil {
		t.Fatalf("want spans outer, GET /x and inner, got %v", byName)
	}
	if server2.Parent().SpanID() != outer.SpanContext().SpanID() || inner.SpanContext().TraceID() != outer.SpanContext().TraceID() {
		t.Error("the server's spans are not below the client's")
	}
	if inner.Status().Description != "broken" {
		t.Errorf("status of inner: %v", inner.Status())
	}
}
