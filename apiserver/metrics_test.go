package apiserver

import (
	"bytes"
	"errors"
	stdlog "log"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/keelson/keelson/apiserver/authn"
	"github.com/keelson/keelson/apiserver/resources"
	"github.com/keelson/keelson/apiserver/rest"
	"github.com/keelson/keelson/apiserver/store"
	"github.com/keelson/keelson/apiserver/store/memory"
	"github.com/keelson/keelson/apiserver/watchcache"
)

func TestRequestsAreCountedAsUpstreamDoes(t *testing.T) {
	reg := prometheus.NewRegistry()
	var reading, writing atomic.Int64
	m := newMetrics(reg, nil, nil, &reading, &writing)
	pods := rest.Info{Resource: true, Version: "v1", Plural: "pods", Namespace: "ns"}
	with := func(verb, name, sub string) *rest.Info {
		in := pods
		in.Verb, in.Name, in.Subresource = verb, name, sub
		return &in
	}
	m.observe(with("get", "a", ""), &answer{code: http.StatusOK, bytes: 2000}, false, time.Second)
	m.observe(with("list", "", ""), &answer{code: http.StatusOK, bytes: 2000}, false, time.Second)
	m.observe(with("create", "", ""), &answer{code: http.StatusCreated}, false, time.Second)
	m.observe(with("watch", "", ""), &answer{code: http.StatusOK}, true, time.Hour)
	m.observe(with("create", "a", "exec"), &answer{code: http.StatusSwitchingProtocols}, true, time.Hour)
	m.observe(&rest.Info{Verb: "get", Path: "/version"}, &answer{}, false, time.Second)
	line := func(code, scope, sub, verb string) string {
		return `apiserver_request_total{code="` + code + `",component="apiserver",dry_run="",group="",resource="pods",scope="` + scope + `",subresource="` + sub + `",verb="` + verb + `",version="v1"} 1` + "\n"
	}
	want := "# HELP apiserver_request_total Requests by verb, resource and status code.\n# TYPE apiserver_request_total counter\n" +
		line("101", "resource", "exec", "CONNECT") + line("200", "namespace", "", "LIST") + line("200", "namespace", "", "WATCH") + line("200", "resource", "", "GET") + line("201", "resource", "", "POST") +
		`apiserver_request_total{code="200",component="apiserver",dry_run="",group="",resource="",scope="",subresource="",verb="GET",version=""} 1` + "\n"
	if err := testutil.CollectAndCompare(m.total, strings.NewReader(want)); err != nil {
		t.Error(err)
	}
	for name, c := range map[string]struct {
		series prometheus.Collector
		want   int
	}{"durations": {m.duration, 4}, "indicators": {m.sli, 4}, "sizes": {m.sizes, 3}} {
		if n := testutil.CollectAndCount(c.series); n != c.want {
			t.Errorf("%d series of %s, want %d: what lasts has none", n, name, c.want)
		}
	}
}

// Names and labels are upstream's; what a request has waited for others is no fault of the server.
func TestOutcomes(t *testing.T) {
	reg := prometheus.NewRegistry()
	var reading, writing atomic.Int64
	rows, err := resources.NewRegistry(resources.Table())
	if err != nil {
		t.Fatal(err)
	}
	m := newMetrics(reg, rows, watchcache.New(memory.New(), rows, watchcache.Options{}), &reading, &writing)
	for _, c := range []struct {
		user *authn.User
		err  error
	}{
		{&authn.User{Name: "admin"}, nil}, {&authn.User{Name: "jane@example.com"}, nil}, {&authn.User{Name: "system:node:a"}, nil},
		{nil, authn.ErrUnauthorized}, {nil, errors.New("a token of yesterday")},
	} {
		m.authenticated(c.user, c.err, 3*time.Millisecond)
	}
	for _, outcome := range []string{"allowed", "allowed", "denied", "no-opinion", "error"} {
		m.authorized(outcome, time.Microsecond)
	}
	m.observe(&rest.Info{Resource: true, Verb: "create", Version: "v1", Plural: "pods", Namespace: "ns", DryRun: "All"}, &answer{code: http.StatusCreated}, false, time.Second)
	watch := m.lasting(&rest.Info{Resource: true, Verb: "watch", Version: "v1", Plural: "pods", Namespace: "ns"})
	m.lasting(&rest.Info{Resource: true, Verb: "watch", Group: "no.such", Version: "v1", Plural: "things"})
	m.lasting(&rest.Info{Resource: true, Verb: "create", Version: "v1", Plural: "pods", Namespace: "ns", Name: "a", Subresource: "exec"})()
	m.observe(&rest.Info{Resource: true, Verb: "get", Version: "v1", Plural: "pods", Name: "a", Waited: 3 * time.Second}, &answer{code: http.StatusOK}, false, 5*time.Second)
	failed := prometheus.NewCounter(prometheus.CounterOpts{Name: "apiserver_tls_handshake_errors_total", Help: "-"})
	var said bytes.Buffer
	log := stdlog.New(&handshakeLog{&said, failed}, "", 0)
	log.Print("http: TLS handshake error from 10.0.0.1:5: EOF")
	log.Print("http: something else")
	if said.String() != "http: TLS handshake error from 10.0.0.1:5: EOF\nhttp: something else\n" {
		t.Errorf("the log says %q", said.String())
	}
	certificateLives(reg).Observe(5 * 24 * 3600)
	m.terminated(&rest.Info{Resource: true, Verb: "list", Version: "v1", Plural: "pods"}, http.StatusTooManyRequests)
	m.terminated(&rest.Info{Resource: true, Verb: "list", Group: "no.such", Version: "v1", Plural: "things"}, http.StatusGatewayTimeout)
	m.broken(&rest.Info{Resource: true, Verb: "get", Version: "v1", Plural: "pods", Namespace: "ns", Name: "a"})
	m.filters[authorization].Observe(0.0002)
	m.observe(&rest.Info{Resource: true, Verb: "patch", Version: "v1", Plural: "pods", Name: "a", FieldValidation: "Strict"}, &answer{code: http.StatusOK}, false, time.Second)
	reg.MustRegister(failed)
	text := exposition(t, reg)
	for _, want := range []string{
		`authentication_attempts{result="success"} 3`, `authentication_attempts{result="failure"} 1`, `authentication_attempts{result="error"} 1`,
		`authenticated_user_requests{username="admin"} 1`, `authenticated_user_requests{username="email_id"} 1`, `authenticated_user_requests{username="other"} 1`,
		`authentication_duration_seconds_bucket{result="success",le="0.002"} 0`, `authentication_duration_seconds_bucket{result="success",le="0.004"} 3`,
		`authorization_attempts_total{result="allowed"} 2`, `authorization_attempts_total{result="denied"} 1`,
		`authorization_attempts_total{result="no-opinion"} 1`, `authorization_attempts_total{result="error"} 1`,
		`authorization_duration_seconds_count{result="allowed"} 2`,
		`apiserver_longrunning_requests{component="apiserver",group="",resource="pods",scope="namespace",subresource="",verb="WATCH",version="v1"} 1`,
		`apiserver_longrunning_requests{component="apiserver",group="",resource="",scope="cluster",subresource="",verb="WATCH",version=""} 1`,
		`apiserver_longrunning_requests{component="apiserver",group="",resource="pods",scope="resource",subresource="exec",verb="CONNECT",version="v1"} 0`,
		`apiserver_request_total{code="201",component="apiserver",dry_run="All",group="",resource="pods",scope="resource",subresource="",verb="POST",version="v1"} 1`,
		`apiserver_request_duration_seconds_count{component="apiserver",dry_run="All",group="",resource="pods",scope="resource",subresource="",verb="POST",version="v1"} 1`,
		`apiserver_resource_objects{group="apps",resource="deployments"} 0`, `apiserver_watch_cache_resource_version{group="",resource="pods"} 0`,
		`apiserver_request_duration_seconds_sum{component="apiserver",dry_run="",group="",resource="pods",scope="resource",subresource="",verb="GET",version="v1"} 5`,
		`apiserver_request_sli_duration_seconds_sum{component="apiserver",group="",resource="pods",scope="resource",subresource="",verb="GET",version="v1"} 2`,
		`apiserver_tls_handshake_errors_total 1`,
		`apiserver_client_certificate_expiration_seconds_bucket{le="345600"} 0`, `apiserver_client_certificate_expiration_seconds_bucket{le="604800"} 1`,
		`apiserver_request_terminations_total{code="429",component="apiserver",group="",resource="pods",scope="cluster",subresource="",verb="LIST",version="v1"} 1`,
		`apiserver_request_terminations_total{code="504",component="apiserver",group="",resource="",scope="cluster",subresource="",verb="LIST",version=""} 1`,
		`apiserver_request_aborts_total{group="",resource="pods",scope="resource",subresource="",verb="GET",version="v1"} 1`,
		`apiserver_request_filter_duration_seconds_bucket{filter="authorization",le="0.0001"} 0`, `apiserver_request_filter_duration_seconds_bucket{filter="authorization",le="0.0003"} 1`,
		`apiserver_request_filter_duration_seconds_count{filter="priorityandfairness"} 0`,
		`field_validation_request_duration_seconds_count{field_validation="Strict"} 1`,
	} {
		if !strings.Contains(text, want+"\n") {
			t.Errorf("not shown: %s", want)
		}
	}
	watch()
	if text := exposition(t, reg); !strings.Contains(text, `resource="pods",scope="namespace",subresource="",verb="WATCH",version="v1"} 0`) {
		t.Error("a watch that is over is shown as open")
	}
}

// exposition is what /metrics answers.
func exposition(t *testing.T, reg *prometheus.Registry) string {
	w := httptest.NewRecorder()
	promhttp.HandlerFor(reg, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError}).ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	return w.Body.String()
}

func TestRequestsToEtcdAreCounted(t *testing.T) {
	reg := prometheus.NewRegistry()
	rows, err := resources.NewRegistry(resources.Table())
	if err != nil {
		t.Fatal(err)
	}
	st := newTimed(memory.New(), resourceAt(rows), reg)
	ctx := t.Context()
	rev, err := st.Put(ctx, "configmaps/ns/a", []byte("1"), 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	if rev, err = st.Put(ctx, "configmaps/ns/a", []byte("2"), rev, 0); err != nil {
		t.Fatal(err)
	}
	if _, err = st.Put(ctx, "configmaps/ns/a", nil, rev+7, 0); !errors.Is(err, store.ErrConflict) {
		t.Fatal(err)
	}
	if _, err = st.Get(ctx, "configmaps/ns/a"); err != nil {
		t.Fatal(err)
	}
	if _, err = st.Commit(ctx, []store.Op{{Key: "services/ns/s", Do: store.Write}, {Key: "configmaps/ns/a", Seen: rev, Do: store.Check}}); err != nil {
		t.Fatal(err)
	}
	if _, err = st.Delete(ctx, "configmaps/ns/a", rev); err != nil {
		t.Fatal(err)
	}
	if _, err = st.Range(ctx, "configmaps/", func([]store.KV) error { return nil }); err != nil {
		t.Fatal(err)
	}
	text := exposition(t, reg)
	for _, want := range []string{
		`etcd_requests_total{group="",operation="create",resource="configmaps"} 1`, `etcd_requests_total{group="",operation="update",resource="configmaps"} 2`,
		`etcd_requests_total{group="",operation="delete",resource="configmaps"} 1`, `etcd_requests_total{group="",operation="create",resource="services"} 1`,
		`etcd_request_duration_seconds_count{group="",operation="update",resource="configmaps"} 2`, `etcd_request_errors_total{group="",operation="update",resource="configmaps"} 0`,
		`etcd_request_duration_seconds_bucket{group="",operation="list",resource="configmaps",le="60"}`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("not shown: %s in\n%s", want, text)
		}
	}
}
