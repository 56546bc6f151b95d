package apiserver

import (
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/keelson/keelson/apiserver/rest"
)

func TestRequestsAreCountedAsUpstreamDoes(t *testing.T) {
	reg := prometheus.NewRegistry()
	var reading, writing atomic.Int64
	m := newMetrics(reg, nil, &reading, &writing)
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
		return `apiserver_request_total{code="` + code + `",component="apiserver",group="",resource="pods",scope="` + scope + `",subresource="` + sub + `",verb="` + verb + `",version="v1"} 1` + "\n"
	}
	want := "# HELP apiserver_request_total Requests by verb, resource and status code.\n# TYPE apiserver_request_total counter\n" +
		line("101", "resource", "exec", "CONNECT") + line("200", "namespace", "", "LIST") + line("200", "namespace", "", "WATCH") + line("200", "resource", "", "GET") + line("201", "resource", "", "POST") +
		`apiserver_request_total{code="200",component="apiserver",group="",resource="",scope="",subresource="",verb="GET",version=""} 1` + "\n"
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
