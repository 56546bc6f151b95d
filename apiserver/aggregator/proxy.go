package aggregator

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/httpstream"
	"k8s.io/apimachinery/pkg/util/proxy"
	"k8s.io/client-go/transport"

	"github.com/keelson/keelson/apiserver/authn"
	"github.com/prometheus/client_golang/prometheus"
)

const openapiV3 = "/openapi/v3/"

// For returns the handler of a path that another server answers, nil when this one does.
func (a *Aggregator) For(path string) http.Handler {
	remotes := a.view.Load().remotes
	if len(remotes) == 0 {
		return nil
	}
	gv, ok := groupVersion(strings.TrimPrefix(path, strings.TrimSuffix(openapiV3, "/")))
	if !ok {
		return nil
	}
	if r := remotes[gv]; r != nil {
		return r
	}
	return nil
}

// groupVersion reads /apis/<group>/<version>/... and /api/<version>/....
func groupVersion(path string) (gv schema.GroupVersion, ok bool) {
	rest, ok := strings.CutPrefix(path, "/apis/")
	if ok {
		if gv.Group, rest, ok = strings.Cut(rest, "/"); !ok {
			return gv, false
		}
	} else if rest, ok = strings.CutPrefix(path, "/api/"); !ok {
		return gv, false
	}
	gv.Version, _, _ = strings.Cut(rest, "/")
	return gv, gv.Version != ""
}

// ServeHTTP passes a request on.
func (r *remote) ServeHTTP(w http.ResponseWriter, rq *http.Request) {
	unavailable := func() { http.Error(w, "service unavailable", http.StatusServiceUnavailable) } // in upstream's form
	if !r.available.Load() {
		unavailable()
		return
	}
	if r.broken != nil {
		http.Error(w, r.broken.Error(), http.StatusInternalServerError)
		return
	}
	user := authn.From(rq.Context())
	if user == nil {
		http.Error(w, "missing user", http.StatusInternalServerError)
		return
	}
	host, err := r.endpoint()
	if err != nil {
		r.a.cfg.Log.Debug("aggregated API has no endpoint", "apiservice", r.name, "err", err)
		unavailable()
		return
	}
	to := &url.URL{Scheme: "https", Host: host, Path: rq.URL.Path, RawPath: rq.URL.RawPath, RawQuery: rq.URL.RawQuery}
	out := rq.Clone(rq.Context())
	out.URL = to
	out.RequestURI = ""
	transport.SetAuthProxyHeaders(out, user.Name, user.UID, user.Groups, user.Extra)
	// Whether an answer may be kept is the other server's to say; its audit id is ours.
	id := w.Header().Get("Audit-Id")
	out.Header.Set("Audit-Id", id)
	w.Header().Del("Cache-Control")
	w.Header().Del("Audit-Id")
	h := proxy.NewUpgradeAwareHandler(to, r.via, true, httpstream.IsUpgradeRequest(rq), responder{r})
	h.ServeHTTP(w, out)
}

type responder struct{ r *remote }

// Error answers when the server cannot be reached.
func (e responder) Error(w http.ResponseWriter, rq *http.Request, err error) {
	e.r.a.cfg.Log.Debug("aggregated API did not answer", "apiservice", e.r.name, "err", err)
	e.r.a.cfg.Fail(w, rq, apierrors.NewServiceUnavailable(fmt.Sprintf("error trying to reach service: %v", err)))
}

// failures counts by APIService and reason how often one became unavailable.
type failures struct {
	mu sync.Mutex
	n  map[[2]string]float64
}

func (f *failures) add(name, reason string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.n == nil {
		f.n = map[[2]string]float64{}
	}
	f.n[[2]string{name, reason}]++
}

var (
	unavailableNow = prometheus.NewDesc("aggregator_unavailable_apiservice",
		"APIServices which are marked as unavailable.", []string{"name"}, nil)
	unavailableEver = prometheus.NewDesc("aggregator_unavailable_apiservice_total",
		"Times that an APIService became unavailable, by name and reason.", []string{"name", "reason"}, nil)
)

// Describe is prometheus.Collector's.
func (a *Aggregator) Describe(ch chan<- *prometheus.Desc) {
	ch <- unavailableNow
	ch <- unavailableEver
}

// Collect is prometheus.Collector's.
func (a *Aggregator) Collect(ch chan<- prometheus.Metric) {
	remotes := a.view.Load().remotes
	for gv := range a.view.Load().priorities {
		if remotes[gv] == nil { // answered for here
			ch <- prometheus.MustNewConstMetric(unavailableNow, prometheus.GaugeValue, 0, gv.Version+"."+gv.Group)
		}
	}
	for _, r := range remotes {
		v := 1.0
		if r.available.Load() {
			v = 0
		}
		ch <- prometheus.MustNewConstMetric(unavailableNow, prometheus.GaugeValue, v, r.name)
	}
	a.failures.mu.Lock()
	defer a.failures.mu.Unlock()
	for k, n := range a.failures.n {
		ch <- prometheus.MustNewConstMetric(unavailableEver, prometheus.CounterValue, n, k[0], k[1])
	}
}
