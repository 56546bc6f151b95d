// Package trace sends OpenTelemetry spans to an OTLP endpoint, when one is set.
//
// The main calls are [Setup] at the start of a daemon and [Start] around a piece of work; [Handler]
// and [RoundTripper] carry the span of a request from one daemon to the next (W3C trace context).
//
// It promises that tracing costs nothing while it is off: without an endpoint no exporter, goroutine
// or buffer exists, [Start] returns its context unchanged, and the wrappers return what they were
// given. Spans that the endpoint does not take in time are dropped; no work waits for it.
package trace

import (
	"context"
	"fmt"
	"net/http"
	"sync/atomic"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
)

// Config says where spans go.
type Config struct {
	// Endpoint is the host:port of an OTLP collector's gRPC port. Empty turns tracing off.
	Endpoint string
	// SamplingRatePerMillion is how many of a million traces that begin here are kept. Traces that
	// another daemon began are kept when that daemon kept them.
	SamplingRatePerMillion int32
}

// Span is one piece of work. A nil Span is valid and does nothing.
type Span struct{ s trace.Span }

// tracer is set once, by Setup, before any other room runs; nil means off.
var tracer atomic.Pointer[trace.Tracer]

var carrier = propagation.TraceContext{}

// Setup starts the exporter of a daemon. The function that it returns sends what is left and stops.
func Setup(ctx context.Context, cfg Config, service string) (stop func(context.Context) error, err error) {
	if cfg.Endpoint == "" {
		return func(context.Context) error { return nil }, nil
	}
	exporter, err := otlptracegrpc.New(ctx, otlptracegrpc.WithEndpoint(cfg.Endpoint), otlptracegrpc.WithInsecure())
	if err != nil {
		return nil, fmt.Errorf("tracing endpoint %s: %w", cfg.Endpoint, err)
	}
	return setup(exporter, cfg, service), nil
}

func setup(exporter sdktrace.SpanExporter, cfg Config, service string) func(context.Context) error {
	provider := sdktrace.NewTracerProvider(
		sdktrace.WithBatcher(exporter, sdktrace.WithMaxQueueSize(2048)), // full: spans are dropped
		sdktrace.WithSampler(sdktrace.ParentBased(sdktrace.TraceIDRatioBased(float64(cfg.SamplingRatePerMillion)/1e6))),
		sdktrace.WithResource(resource.NewSchemaless(attribute.String("service.name", service))),
	)
	t := provider.Tracer("github.com/keelson/keelson")
	tracer.Store(&t)
	return func(ctx context.Context) error {
		tracer.Store(nil)
		return provider.Shutdown(ctx)
	}
}

// On tells whether spans are made.
func On() bool { return tracer.Load() != nil }

// Start begins a span below the one in ctx. attrs are key, value pairs of strings.
func Start(ctx context.Context, name string, attrs ...string) (context.Context, *Span) {
	t := tracer.Load()
	if t == nil {
		return ctx, nil
	}
	kv := make([]attribute.KeyValue, 0, len(attrs)/2)
	for i := 0; i+1 < len(attrs); i += 2 {
		kv = append(kv, attribute.String(attrs[i], attrs[i+1]))
	}
	ctx, s := (*t).Start(ctx, name, trace.WithAttributes(kv...))
	return ctx, &Span{s}
}

// End ends the span; an error that is not nil marks it as failed.
func (s *Span) End(err error) {
	if s == nil {
		return
	}
	if err != nil {
		s.s.SetStatus(codes.Error, err.Error())
	}
	s.s.End()
}

// Handler continues the caller's trace in requests to next.
func Handler(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !On() {
			next.ServeHTTP(w, r)
			return
		}
		ctx := carrier.Extract(r.Context(), propagation.HeaderCarrier(r.Header))
		ctx, span := Start(ctx, r.Method+" "+r.URL.Path)
		defer span.End(nil)
		next.ServeHTTP(w, r.WithContext(ctx))
	})
}

// RoundTripper tells the server which span the request belongs to. It fits rest.Config.Wrap.
func RoundTripper(next http.RoundTripper) http.RoundTripper {
	if !On() {
		return next
	}
	return roundTripper{next}
}

type roundTripper struct{ next http.RoundTripper }

func (t roundTripper) RoundTrip(r *http.Request) (*http.Response, error) {
	if !trace.SpanContextFromContext(r.Context()).IsValid() {
		return t.next.RoundTrip(r)
	}
	r = r.Clone(r.Context())
	carrier.Inject(r.Context(), propagation.HeaderCarrier(r.Header))
	return t.next.RoundTrip(r)
}
