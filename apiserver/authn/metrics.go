package authn

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/keelson/keelson/apiserver/series"
)

// TokenMetrics count uses of service accounts' tokens, under upstream's names. nil counts nothing.
type TokenMetrics struct{ kept, auto, manual, stale, valid, gone prometheus.Counter }

// NewTokenMetrics registers them.
func NewTokenMetrics(reg prometheus.Registerer) *TokenMetrics {
	of := func(name, help string) prometheus.Counter {
		return series.Counter(reg, "serviceaccount_"+name+"_total", help).WithLabelValues()
	}
	return &TokenMetrics{
		kept:   of("legacy_tokens", "Uses of tokens that are kept in a Secret."),
		auto:   of("legacy_auto_token_uses", "Uses of such tokens that the cluster has made for an account by itself."),
		manual: of("legacy_manual_token_uses", "Uses of such tokens that somebody has asked for."),
		gone:   of("invalid_legacy_auto_token_uses", "Uses of such tokens after they were marked as out of use."),
		stale:  of("stale_tokens", "Uses of a pod's token after the time when its holder should have taken a newer one."),
		valid:  of("valid_tokens", "Uses of a pod's token before that time."),
	}
}

// bound counts a pod's token that its holder should renew; stale: it should have done so already.
func (m *TokenMetrics) bound(stale bool) {
	switch {
	case m == nil:
	case stale:
		m.stale.Inc()
	default:
		m.valid.Inc()
	}
}

func (m *TokenMetrics) invalid() {
	if m != nil {
		m.gone.Inc()
	}
}

// legacy counts a token of a Secret; named: the service account names the Secret, as only the cluster itself has done.
func (m *TokenMetrics) legacy(named bool) {
	if m == nil {
		return
	}
	m.kept.Inc()
	if named {
		m.auto.Inc()
	} else {
		m.manual.Inc()
	}
}
