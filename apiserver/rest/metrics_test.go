package rest

import (
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// What is read, written and watched is counted under upstream's names.
func TestVerbsAreCounted(t *testing.T) {
	h := newHarness(t)
	const maps, pods = "/api/v1/namespaces/default/configmaps", "/api/v1/namespaces/default/pods"
	for _, name := range []string{"a", "b", "c"} {
		h.must(201, "POST", maps, `{"metadata":{"name":"`+name+`","labels":{"n":"`+name+`"}}}`)
	}
	h.must(200, "GET", maps, "")
	h.must(200, "GET", maps+"?resourceVersion=0&limit=1", "")
	h.must(200, "GET", maps+"?limit=2", "")
	h.must(200, "GET", maps+"?labelSelector=n%3Da", "")
	h.must(200, "GET", maps+"?fieldSelector=metadata.name!%3Da", "")
	h.must(200, "GET", maps+"/a", "")
	h.must(200, "GET", pods+"?fieldSelector=spec.nodeName%3Dn", "")
	h.must(200, "GET", "/api/v1/namespaces/default/endpoints", "")
	h.must(200, "GET", maps+"?watch=1&timeoutSeconds=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true", "")
	h.must(200, "DELETE", maps+"/a", "")
	w := httptest.NewRecorder()
	promhttp.HandlerFor(h.counts, promhttp.HandlerOpts{}).ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	text := w.Body.String()
	for _, want := range []string{
		`apiserver_cache_list_total{group="",index="",resource="configmaps"} 5`,
		`apiserver_cache_list_fetched_objects_total{group="",index="",resource="configmaps"} 13`,
		`apiserver_cache_list_returned_objects_total{group="",resource="configmaps"} 11`,
		`apiserver_cache_list_total{group="",index="f:spec.nodeName",resource="pods"} 1`,
		`apiserver_watch_cache_consistent_read_total{fallback="false",group="",resource="configmaps",success="true"} 4`,
		`apiserver_watch_cache_read_wait_seconds_count{group="",resource="configmaps"} 6`,
		`apiserver_request_body_size_bytes_count{group="",resource="configmaps",verb="create"} 3`,
		`apiserver_request_body_size_bytes_bucket{group="",resource="configmaps",verb="create",le="50000"} 3`,
		`apiserver_watch_list_duration_seconds_count{group="",resource="configmaps",scope="namespace",version="v1"} 1`,
		`apiserver_init_events_total{group="",resource="configmaps"} 3`,
		`apiserver_watch_events_total{group="",resource="configmaps",version="v1"} 3`,
		`apiserver_requested_deprecated_apis{group="",removed_release="",resource="endpoints",subresource="",version="v1"} 1`,
	} {
		if !strings.Contains(text, want+"\n") {
			t.Errorf("not shown: %s in\n%s", want, text)
		}
	}
}
