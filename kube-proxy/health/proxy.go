package health

import (
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/keelson/keelson/kube-proxy/model"
)

// late is how long a change may wait for the rules before the proxy counts as broken.
//
// Source: kube-proxy 1.36, twice its sync period of 30 s.
const late = time.Minute

// Family is how the rules of one address family are. The zero value of a time is never.
type Family struct {
	Updated time.Time // when they were last known to be right
	Waiting time.Time // since when a change has not been applied
}

// Proxy answers /healthz and /livez of the health port, which load balancers ask: may new traffic be sent
// to this node, and does the proxy do its work. The form is upstream's.
//
// Source: KEP-3836; kube-proxy 1.36 as seen from outside.
type Proxy struct {
	now      func() time.Time
	families func() map[model.Family]Family
	// eligible tells whether the node is to stay: not being deleted, nor marked so by the autoscaler.
	eligible func() bool
	answers  map[string]*prometheus.CounterVec
}

// NewProxy keeps nothing: families and eligible are asked for each answer.
func NewProxy(families func() map[model.Family]Family, eligible func() bool, reg prometheus.Registerer) *Proxy {
	p := &Proxy{now: time.Now, families: families, eligible: eligible, answers: map[string]*prometheus.CounterVec{}}
	for _, path := range []string{"healthz", "livez"} {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "kubeproxy_proxy_" + path + "_total", Help: "Answers of /" + path + ", by code."}, []string{"code"})
		reg.MustRegister(c)
		p.answers[path] = c
	}
	return p
}

// status and familyStatus are the answer's JSON.
type status struct {
	LastUpdated  time.Time               `json:"lastUpdated"`
	CurrentTime  time.Time               `json:"currentTime"`
	NodeEligible *bool                   `json:"nodeEligible,omitempty"`
	Healthy      bool                    `json:"healthy"`
	Status       map[string]familyStatus `json:"status,omitempty"`
}

type familyStatus struct {
	LastUpdated time.Time `json:"lastUpdated"`
	Healthy     bool      `json:"healthy"`
}

// decide is the answer at a time. A family that has not been applied yet counts for nothing.
func decide(families map[model.Family]Family, now time.Time) status {
	s := status{CurrentTime: now, Healthy: true, Status: map[string]familyStatus{}}
	for f, at := range families {
		if at.Updated.IsZero() {
			continue
		}
		one := familyStatus{LastUpdated: at.Updated, Healthy: at.Waiting.IsZero() || now.Sub(at.Waiting) < late}
		if at.Updated.After(s.LastUpdated) {
			s.LastUpdated = at.Updated
		}
		s.Healthy = s.Healthy && one.Healthy
		s.Status[fmt.Sprintf("IPv%d", f)] = one
	}
	return s
}

// Healthy tells whether no change has waited for too long.
func (p *Proxy) Healthy() bool { return decide(p.families(), p.now()).Healthy }

// Live is /livez.
func (p *Proxy) Live() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		s := decide(p.families(), p.now())
		p.answer(w, "livez", s, s.Healthy)
	})
}

// Health is /healthz.
func (p *Proxy) Health() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		s := decide(p.families(), p.now())
		eligible := p.eligible()
		s.NodeEligible = &eligible
		p.answer(w, "healthz", s, s.Healthy && eligible)
	})
}

func (p *Proxy) answer(w http.ResponseWriter, path string, s status, good bool) {
	code := http.StatusServiceUnavailable
	if good {
		// Nothing waits, so the rules are right now, whenever they last had to change.
		code, s.LastUpdated = http.StatusOK, s.CurrentTime
	}
	p.answers[path].WithLabelValues(fmt.Sprint(code)).Inc()
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(s) // the client has gone: nobody to tell
}
