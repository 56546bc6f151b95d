package server

import (
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// requestMetrics count the requests to this server under upstream's names.
type requestMetrics struct {
	total    *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	inflight *prometheus.GaugeVec
	sockets  *prometheus.CounterVec
}

func newRequestMetrics(reg prometheus.Registerer) *requestMetrics {
	labels := []string{"method", "path", "server_type", "long_running"}
	m := &requestMetrics{
		total:    prometheus.NewCounterVec(prometheus.CounterOpts{Name: "kubelet_http_requests_total", Help: "Requests begun."}, labels),
		seconds:  prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "kubelet_http_requests_duration_seconds", Help: "Time to serve a request."}, labels),
		inflight: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "kubelet_http_inflight_requests", Help: "Requests being served."}, labels),
		sockets: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "kubelet_websocket_streaming_requests_total",
			Help: "Requests to run, attach or forward that came over WebSocket."}, []string{"subresource"}),
	}
	reg.MustRegister(m.total, m.seconds, m.inflight, m.sockets)
	return m
}

// route is what metrics call the paths of a pattern: the first part, and for those below /metrics two. streams
// says that requests to it last.
func route(pattern string) (path string, streams bool) {
	_, rest, _ := strings.Cut(pattern, " /")
	path, rest, _ = strings.Cut(rest, "/")
	if path == "metrics" {
		path += "/" + rest
	}
	return path, path == "exec" || path == "attach" || path == "portForward"
}

// handle serves a pattern and counts its requests.
func (s *Server) handle(pattern string, h http.Handler) {
	path, streams := route(pattern)
	m := s.requests
	s.Server.Handle(pattern, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		labels := []string{r.Method, path, "readwrite", strconv.FormatBool(streams)}
		m.total.WithLabelValues(labels...).Inc()
		if streams && strings.EqualFold(r.Header.Get("Upgrade"), "websocket") {
			m.sockets.WithLabelValues(strings.ToLower(path)).Inc()
		}
		inflight := m.inflight.WithLabelValues(labels...)
		inflight.Inc()
		began := time.Now()
		defer func() {
			inflight.Dec()
			m.seconds.WithLabelValues(labels...).Observe(time.Since(began).Seconds())
		}()
		h.ServeHTTP(w, r)
	}))
}
