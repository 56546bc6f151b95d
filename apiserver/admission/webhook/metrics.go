package webhook

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/keelson/keelson/apiserver/admission"
	"github.com/keelson/keelson/apiserver/admission/expr"
)

// Metrics have upstream's names. A call goes over the network, so that looking labels up costs nothing.
type Metrics struct {
	took             *prometheus.HistogramVec
	asked            *prometheus.CounterVec
	rejections       *prometheus.CounterVec
	failOpen         *prometheus.CounterVec
	conditionMetrics *expr.Metrics
}

// NewMetrics registers them; conditions are shared with policies.
func NewMetrics(reg prometheus.Registerer, conditions *expr.Metrics) *Metrics {
	m := &Metrics{
		conditionMetrics: conditions,
		took: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "apiserver_admission_webhook_admission_duration_seconds", Help: "Time that an admission webhook takes.",
			Buckets: []float64{0.005, 0.025, 0.1, 0.5, 1, 2.5, 10, 25},
		}, []string{"name", "type", "operation", "rejected"}),
		asked: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "apiserver_admission_webhook_request_total", Help: "Calls of admission webhooks, by the code of what they mean for the request.",
		}, []string{"name", "type", "operation", "code", "rejected"}),
		rejections: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "apiserver_admission_webhook_rejection_count", Help: "Requests that an admission webhook has refused, or that were refused because it failed.",
		}, []string{"name", "type", "operation", "error_type", "rejection_code"}),
		failOpen: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "apiserver_admission_webhook_fail_open_count", Help: "Failures of admission webhooks in spite of which the request went on.",
		}, []string{"name", "type"}),
	}
	reg.MustRegister(m.took, m.asked, m.rejections, m.failOpen)
	return m
}

// Where a webhook stands in the chain.
const (
	admitting  = "admit"
	validating = "validating"
)

// asks counts one call and its result: nil, a *failure, a *rejection, or what went wrong here.
func (m *Metrics) asks(ctx context.Context, a *admission.Attributes, h *hook, took time.Duration, err error) {
	if m == nil {
		return
	}
	where := h.where
	op, code, rejected := string(a.Operation), http.StatusOK, true
	var failed *failure
	var said *rejection
	switch {
	case err == nil:
		rejected = false
	case errors.As(err, &failed):
		code = http.StatusInternalServerError
		if as := apierrors.APIStatus(nil); errors.As(failed.reason, &as) {
			code = int(as.Status().Code)
		}
		switch gone := errors.Is(failed.reason, context.Canceled); {
		case h.failOpen:
			rejected = false
			if !gone {
				m.failOpen.WithLabelValues(h.name, where).Inc()
			}
		case !gone:
			m.rejected(h.name, where, op, "calling_webhook_error", code)
		}
	case errors.As(err, &said):
		code = int(said.ErrStatus.Code)
		m.rejected(h.name, where, op, "no_error", code)
	default:
		code = 0
		m.rejected(h.name, where, op, "apiserver_internal_error", code)
	}
	m.asked.WithLabelValues(h.name, where, op, codeOf(code), strconv.FormatBool(rejected)).Inc()
	m.took.WithLabelValues(h.name, where, op, strconv.FormatBool(rejected)).Observe(took.Seconds())
}

// conditions are whose match conditions are looked at.
func (m *Metrics) conditions(h *hook, operation string) expr.About {
	a := expr.About{Name: h.name, Kind: "webhook", Type: h.where, Excluded: h.where, Operation: operation}
	if h.where == validating {
		a.Excluded = "validate"
	}
	if m != nil {
		a.Metrics = m.conditionMetrics
	}
	return a
}

func (m *Metrics) rejected(name, where, op, kind string, code int) {
	m.rejections.WithLabelValues(name, where, op, kind, codeOf(code)).Inc()
}

// codeOf bounds the label: codes are what webhooks say.
func codeOf(code int) string { return strconv.Itoa(min(code, 600)) }
