package rest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/keelson/keelson/apiserver/codec"
	"github.com/keelson/keelson/apiserver/resources"
	"github.com/keelson/keelson/apiserver/store/memory"
	"github.com/keelson/keelson/apiserver/watchcache"
)

// plain is a Server without a socket, with a few objects in it.
type plain struct {
	handler http.Handler
	stop    func()
}

func newPlain(f interface{ Fatal(...any) }) *plain {
	reg, err := resources.NewRegistry(resources.Table())
	if err != nil {
		f.Fatal(err)
	}
	st := memory.New()
	cache := watchcache.New(st, reg, watchcache.Options{})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = cache.Run(ctx) }()
	<-cache.Ready()
	p := &plain{New(Config{Registry: reg, Cache: cache, Store: st, Version: "v1.36.6+test"}), func() { cancel(); <-done }}
	for _, o := range [][2]string{
		{maps, configMap("a")}, {maps, configMap("b")}, {maps, configMap("c")}, {"/api/v1/namespaces/other/configmaps", configMap("a")},
		{"/api/v1/namespaces/default/pods", `{"metadata":{"name":"p"},"spec":{"containers":[{"name":"c","image":"i"}]}}`},
		{"/apis/apps/v1/namespaces/default/deployments", `{"metadata":{"name":"d"},"spec":{"selector":{"matchLabels":{"a":"b"}},"template":` + template + `}}`},
	} {
		if w := p.do(request("POST", o[0], "", []byte(o[1]))); w.Code != 201 {
			f.Fatal(w.Code, w.Body)
		}
	}
	return p
}

// request is one that no client library would have to be able to make.
func request(method, path, query string, body []byte) *http.Request {
	r := httptest.NewRequest("GET", "http://test/", bytes.NewReader(body))
	r.Method = method
	r.URL = &url.URL{Path: path, RawQuery: query}
	r.RequestURI = r.URL.RequestURI()
	r.Header.Set("User-Agent", "fuzz/1")
	return r
}

// do asks, for at most as long as any answer may take; a watch is cut short.
func (p *plain) do(r *http.Request) *httptest.ResponseRecorder {
	limit := 20 * time.Second
	if in := ParseInfo(r); in.Long {
		limit = 20 * time.Millisecond
	}
	ctx, cancel := context.WithTimeout(r.Context(), limit)
	defer cancel()
	w := httptest.NewRecorder()
	p.handler.ServeHTTP(w, r.WithContext(ctx))
	return w
}

// sane checks what holds for every answer: no fault of the server, and an error is a Status.
func sane(t *testing.T, r *http.Request, w *httptest.ResponseRecorder) {
	t.Helper()
	switch {
	case w.Code == 500 && strings.Contains(w.Body.String(), "not declared in schema"): // as upstream: apply of an unknown field
	case w.Code == 500 && strings.Contains(w.Body.String(), "failed to create"): // as upstream: apply that does not fit the type
	case w.Code == 504: // a revision from the future
	case w.Code >= 500:
		t.Fatalf("%s %s?%s (%s): %d %.500s", r.Method, r.URL.Path, r.URL.RawQuery, r.Header.Get("Content-Type"), w.Code, w.Body)
	}
	if w.Code < 400 || w.Body.Len() == 0 && strings.HasPrefix(r.URL.Path, "/openapi/") { // as upstream
		return
	}
	if kind, err := codec.KindOf(w.Header().Get("Content-Type")); err != nil || kind != codec.JSON {
		return
	}
	var s metav1.Status
	if err := json.Unmarshal(w.Body.Bytes(), &s); err != nil || s.Kind != "Status" || int(s.Code) != w.Code || s.Status != "Failure" {
		t.Fatalf("%s %s: error %d is no Status: %v %.300s", r.Method, r.URL.Path, w.Code, err, w.Body)
	}
}

// Any request is answered, and never with a fault of the server's own.
func FuzzRequest(f *testing.F) {
	pod := `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"q"},"spec":{"containers":[{"name":"c","image":"i"}]}}`
	for _, s := range [][6]string{
		{"GET", maps, "limit=1&labelSelector=n", "", "application/json;as=Table;v=v1;g=meta.k8s.io", ""},
		{"POST", "/api/v1/namespaces/default/pods", "fieldValidation=Strict&dryRun=All", "application/json", "", pod},
		{"PUT", maps + "/a", "", "application/yaml", "application/yaml", "metadata: {name: a}\ndata: {k: w}\n"},
		{"PATCH", maps + "/a", "fieldManager=f&force=1", "application/apply-patch+yaml", "", `{"apiVersion":"v1","kind":"ConfigMap","data":{"x":"y"}}`},
		{"PATCH", maps + "/a", "", "application/json-patch+json", "", `[{"op":"replace","path":"/data","value":{"z":"1"}}]`},
		{"PATCH", "/api/v1/namespaces/default/pods/p", "", "application/strategic-merge-patch+json", "", `{"spec":{"containers":[{"name":"c","$patch":"replace"}]}}`},
		{"PATCH", "/apis/apps/v1/namespaces/default/deployments/d/scale", "", "application/merge-patch+json", "", `{"spec":{"replicas":3}}`},
		{"PATCH", "/apis/apps/v1/namespaces/default/deployments/d/status", "", "application/merge-patch+json", "", `{"status":{"replicas":1}}`},
		{"DELETE", maps, "labelSelector=n=c", "application/json", "", `{"kind":"DeleteOptions","apiVersion":"v1","preconditions":{"uid":"x"}}`},
		{"GET", maps, "watch=1&allowWatchBookmarks=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan", "", "application/vnd.kubernetes.protobuf;stream=watch", ""},
		{"GET", "/apis", "", "", "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList", ""},
		{"GET", "/openapi/v3/api/v1", "hash=x", "", "", ""},
		{"GET", "/api/v1/watch/namespaces/default/configmaps/a", "", "", "", ""},
	} {
		f.Add(s[0], s[1], s[2], s[3], s[4], []byte(s[5]))
	}
	p := newPlain(f)
	f.Cleanup(func() { p.stop() })
	n := 0
	f.Fuzz(func(t *testing.T, method, path, query, contentType, accept string, body []byte) {
		if n++; n%500 == 0 { // what was written piles up
			p.stop()
			p = newPlain(t)
		}
		if strings.Contains(query, "resourceVersion=") && strings.Contains(query, "000") {
			return // waits for a revision of the future: three seconds each
		}
		if !strings.HasPrefix(path, "/") { // no server takes it
			path = "/" + path
		}
		r := request(method, path, query, body)
		r.Header["Content-Type"], r.Header["Accept"] = []string{contentType}, []string{accept}
		sane(t, r, p.do(r))
	})
}

// Query parameters: a list shows exactly what selectors, limit and continuation say, or is refused.
func FuzzQuery(f *testing.F) {
	for _, s := range []string{
		"limit=2", "labelSelector=n+in+(a,b)&limit=1", "fieldSelector=metadata.name!=a", "resourceVersion=0&limit=1", "resourceVersionMatch=Exact&resourceVersion=3",
		"continue=" + token{Rev: 4, Start: "default/a\x00"}.String(), "continue=" + token{Rev: -1, Start: "/default/b\x00"}.String() + "&limit=1",
		"pretty=1&timeoutSeconds=x", "sendInitialEvents", "limit=-1", "fieldSelector=metadata.namespace%3Dother", "a;b=c&%zz=1",
	} {
		f.Add(s)
	}
	p := newPlain(f)
	f.Cleanup(func() { p.stop() })
	all := []struct{ namespace, name string }{{"default", "a"}, {"default", "b"}, {"default", "c"}, {"other", "a"}}
	f.Fuzz(func(t *testing.T, query string) {
		q, _ := url.ParseQuery(query)
		if q.Has("watch") || len(q.Get("resourceVersion")) > 1 {
			q.Del("watch")
			q.Del("resourceVersion")
			query = q.Encode()
		}
		r := request("GET", "/api/v1/configmaps", query, nil)
		w := p.do(r)
		sane(t, r, w)
		if w.Code != 200 {
			return
		}
		var l mapList
		if err := json.Unmarshal(w.Body.Bytes(), &l); err != nil {
			t.Fatalf("%q: %v: %.200s", query, err, w.Body)
		}
		q = r.URL.Query()
		label, err := labels.Parse(q.Get("labelSelector"))
		if err != nil {
			t.Fatalf("%q is accepted: %v", query, err)
		}
		field, err := fields.ParseSelector(q.Get("fieldSelector"))
		if err != nil {
			t.Fatalf("%q is accepted: %v", query, err)
		}
		var want, got []string
		for _, o := range all {
			if label.Matches(labels.Set{"n": o.name}) && field.Matches(fields.Set{"metadata.name": o.name, "metadata.namespace": o.namespace}) {
				want = append(want, o.namespace+"/"+o.name)
			}
		}
		for _, it := range l.Items {
			got = append(got, it.Metadata.Namespace+"/"+it.Metadata.Name)
		}
		if q.Get("continue") == "" && q.Get("limit") == "" && q.Get("resourceVersion") == "" && !slices.Equal(got, want) {
			t.Fatalf("%q: got %v, want %v", query, got, want)
		}
		// In any case it is a part of that, in order.
		i := 0
		for _, g := range got {
			for i < len(want) && want[i] != g {
				i++
			}
			if i == len(want) {
				t.Fatalf("%q: got %v of %v", query, got, want)
			}
		}
		if l.Metadata.Continue == "" {
			return
		}
		k, err := parseToken(l.Metadata.Continue)
		if err != nil || k.Start != "/"+got[len(got)-1]+"\x00" || fmt.Sprint(k.Rev) != l.Metadata.ResourceVersion {
			t.Fatalf("%q: continues at %v, %v after %v", query, k, err, got)
		}
	})
}

// Info names what the path names, and the same for equal paths.
func FuzzInfo(f *testing.F) {
	f.Add("GET", "/api/v1/namespaces/default/pods/p/log", "follow=1")
	f.Add("DELETE", "/apis/apps/v1/namespaces/x/deployments", "")
	f.Add("GET", "/api/v1/watch/nodes", "fieldSelector=metadata.name=n")
	f.Add("GET", "/api/v1/namespaces/x/services/s:80/proxy/a//b/", "")
	f.Fuzz(func(t *testing.T, method, path, query string) {
		r := &http.Request{Method: method, URL: &url.URL{Path: path, RawQuery: query}}
		in := ParseInfo(r)
		if in.Path != path || in.Resource && (in.Plural == "" && !strings.Contains(path, "//") || in.Prefix == "api" && in.Group != "") {
			t.Fatalf("%s %s: %+v", method, path, in)
		}
		for _, part := range []string{in.Namespace, in.Plural, in.Subresource} {
			if strings.Contains(part, "/") {
				t.Fatalf("%s %s: %+v", method, path, in)
			}
		}
		if !in.Resource && (in.Namespace != "" || in.Name != "" || in.Subresource != "") {
			t.Fatalf("%s %s: %+v", method, path, in)
		}
		if in.Named() && !strings.Contains(path, in.Name) {
			t.Fatalf("%s %s names %q", method, path, in.Name)
		}
	})
}
