package discovery

import (
	"encoding/json"
	"net/http/httptest"
	"strings"
	"testing"

	openapiv2 "github.com/google/gnostic-models/openapiv2"
	apidiscovery "k8s.io/api/apidiscovery/v2"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/kube-openapi/pkg/spec3"

	"github.com/keelson/keelson/apiserver/resources"
)

func server(t *testing.T) *Server {
	t.Helper()
	reg, err := resources.NewRegistry(resources.Table())
	if err != nil {
		t.Fatal(err)
	}
	return New(reg, nil, "v1.36.6+test")
}

func ask(t *testing.T, s *Server, path string, headers ...string) *httptest.ResponseRecorder {
	t.Helper()
	r := httptest.NewRequest("GET", path, nil)
	for i := 0; i+1 < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	w := httptest.NewRecorder()
	s.ServeHTTP(w, r)
	return w
}

const wantsAggregated = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json"

func TestAggregatedAndClassicAgree(t *testing.T) {
	s := server(t)
	var groups metav1.APIGroupList
	if err := json.Unmarshal(ask(t, s, "/apis").Body.Bytes(), &groups); err != nil {
		t.Fatal(err)
	}
	w := ask(t, s, "/apis", "Accept", wantsAggregated)
	var all apidiscovery.APIGroupDiscoveryList
	if err := json.Unmarshal(w.Body.Bytes(), &all); err != nil || !strings.Contains(w.Header().Get("Content-Type"), "as=APIGroupDiscoveryList") {
		t.Fatal(err, w.Header())
	}
	if len(all.Items) != len(groups.Groups) {
		t.Fatalf("%d groups aggregated, %d one by one", len(all.Items), len(groups.Groups))
	}
	for i, g := range groups.Groups {
		if all.Items[i].Name != g.Name || all.Items[i].Versions[0].Version != g.PreferredVersion.Version {
			t.Errorf("group %d is %s and %s", i, g.Name, all.Items[i].Name)
		}
		for j, v := range g.Versions {
			var list metav1.APIResourceList
			if err := json.Unmarshal(ask(t, s, "/apis/"+v.GroupVersion).Body.Bytes(), &list); err != nil {
				t.Fatal(err)
			}
			n := 0
			for _, r := range all.Items[i].Versions[j].Resources {
				n += 1 + len(r.Subresources)
			}
			if n != len(list.APIResources) {
				t.Errorf("%s: %d resources aggregated, %d one by one", v.GroupVersion, n, len(list.APIResources))
			}
		}
	}
	again := ask(t, s, "/apis", "Accept", wantsAggregated, "If-None-Match", w.Header().Get("ETag"))
	if again.Code != 304 || again.Body.Len() != 0 {
		t.Errorf("a known document: %d, %d bytes", again.Code, again.Body.Len())
	}
	if ask(t, s, "/apis/nope/v1").Code != 404 || ask(t, s, "/api/v9").Code != 404 {
		t.Error("what is not served is found")
	}
}

// As upstream: lists of groups answer whatever the method, the rest can only be read, and clients that
// name another form beside plain JSON get plain JSON.
func TestMethodsAndForms(t *testing.T) {
	s := server(t)
	for _, c := range []struct {
		method, path, accept string
		code                 int
		form                 string
	}{
		{"POST", "/apis", "", 200, "application/json"},
		{"OPTIONS", "/apis/apps", "", 200, "application/json"},
		{"PUT", "/openapi/v3", "", 200, "application/json"},
		{"GET", "/openapi/v3/api/v1", "", 200, "application/json"},
		{"GET", "/openapi/v3/api/v1/", "", 404, "text/plain; charset=utf-8"},
		{"HEAD", "/api", "", 405, "application/json"},
		{"POST", "/api/v1", "", 405, "application/json"},
		{"DELETE", "/apis/apps/v1", "", 405, "application/json"},
		{"POST", "/apis/nothing/v1", "", 404, "text/plain; charset=utf-8"},
		{"GET", "/apis/apps", "application/json;as=Table;v=v1;g=meta.k8s.io,application/json", 200, "application/json"},
		{"GET", "/apis/apps", "application/json;as=Table;v=v1;g=meta.k8s.io", 406, "application/json"},
		{"GET", "/apis", "application/json,application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList", 200, "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"},
	} {
		r := httptest.NewRequest(c.method, c.path, nil)
		r.Header.Set("Accept", c.accept)
		w := httptest.NewRecorder()
		s.ServeHTTP(w, r)
		if got := w.Header().Get("Content-Type"); w.Code != c.code || got != c.form {
			t.Errorf("%s %s (%s): %d %s, want %d %s", c.method, c.path, c.accept, w.Code, got, c.code, c.form)
		}
	}
}

func TestZipped(t *testing.T) {
	for header, want := range map[string]bool{
		"": false, "gzip": true, "GZIP": true, "br, gzip": true, "gzip;q=0": false, "gzip; q=0.5": true, "identity": false, "x-gzip": false,
	} {
		if got := zipped(header); got != want {
			t.Errorf("%q: %v", header, got)
		}
	}
}

func TestOpenAPIv3(t *testing.T) {
	s := server(t)
	var index struct {
		Paths map[string]struct{ ServerRelativeURL string }
	}
	if err := json.Unmarshal(ask(t, s, "/openapi/v3").Body.Bytes(), &index); err != nil {
		t.Fatal(err)
	}
	urls := map[string]string{}
	for path, e := range index.Paths {
		if other := urls[e.ServerRelativeURL[strings.Index(e.ServerRelativeURL, "?"):]]; other != "" {
			t.Errorf("%s and %s have one hash", path, other)
		}
		urls[e.ServerRelativeURL[strings.Index(e.ServerRelativeURL, "?"):]] = path
		w := ask(t, s, e.ServerRelativeURL)
		var doc spec3.OpenAPI
		if err := json.Unmarshal(w.Body.Bytes(), &doc); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		if !strings.Contains(w.Header().Get("Cache-Control"), "immutable") {
			t.Errorf("%s is not immutable", path)
		}
		for _, ref := range strings.Split(w.Body.String(), `"$ref":"#/components/schemas/`)[1:] {
			name := ref[:strings.IndexByte(ref, '"')]
			if doc.Components.Schemas[name] == nil {
				t.Errorf("%s refers to %s", path, name)
			}
		}
		ids := map[string]bool{}
		for p, item := range doc.Paths.Paths {
			for _, op := range []*spec3.Operation{item.Get, item.Put, item.Post, item.Delete, item.Patch} {
				if op == nil {
					continue
				}
				if ids[op.OperationId] {
					t.Errorf("%s: operation %s is there twice", p, op.OperationId)
				}
				ids[op.OperationId] = true
			}
		}
	}
	if w := ask(t, s, "/openapi/v3/apis/apps/v1?hash=OLD"); w.Code != 301 {
		t.Errorf("an old hash: %d", w.Code)
	}
	if w := ask(t, s, "/openapi/v3/api/v1", "Accept", protoV3Old); w.Code != 200 || w.Header().Get("Content-Type") != protoV3 {
		t.Errorf("protobuf: %d %s", w.Code, w.Header().Get("Content-Type"))
	}
}

func TestOpenAPIv2(t *testing.T) {
	s := server(t)
	doc, err := openapiv2.ParseDocument(ask(t, s, "/openapi/v2").Body.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	kinds := 0
	for _, d := range doc.GetDefinitions().GetAdditionalProperties() {
		for _, e := range d.GetValue().GetVendorExtension() {
			if e.GetName() == "x-kubernetes-group-version-kind" {
				kinds++
			}
		}
	}
	if kinds < 100 || len(doc.GetPaths().GetPath()) < 300 {
		t.Errorf("%d kinds, %d paths", kinds, len(doc.GetPaths().GetPath()))
	}
	if w := ask(t, s, "/openapi/v2", "Accept", protoV2Old); w.Code != 200 {
		t.Errorf("protobuf: %d", w.Code)
	}
}

// Names of shared parameters are made of their text, so that documents of all versions
// agree; clients find them by the name. The expected ones are those of upstream's v1.36.
func TestSharedParameters(t *testing.T) {
	var doc struct {
		Parameters map[string]any
		Paths      map[string]map[string]any
	}
	if err := json.Unmarshal(ask(t, server(t), "/openapi/v2").Body.Bytes(), &doc); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"allowWatchBookmarks-HC2hJt-J", "body-2Y1dVQaQ", "namespace-vgWSWtn3", "pretty-tJGM1-ng", "ports-91KROJmm"} {
		if doc.Parameters[name] == nil {
			t.Errorf("no parameter %s", name)
		}
	}
	for path, want := range map[string][]string{
		"/apis/apps/v1/":                    {"get"},
		"/apis/apps/":                       {"get"},
		"/version/":                         {"get"},
		"/api/v1/nodes/{name}/proxy/{path}": {"delete", "get", "head", "options", "patch", "post", "put"},
		"/apis/apps/v1/namespaces/{namespace}/deployments":   {"delete", "get", "post"},
		"/apis/authorization.k8s.io/v1/subjectaccessreviews": {"post"},
	} {
		for _, method := range want {
			if doc.Paths[path][method] == nil {
				t.Errorf("%s: no %s", path, method)
			}
		}
	}
	if doc.Paths["/apis/authorization.k8s.io/v1/localsubjectaccessreviews"] != nil {
		t.Error("a kind of a namespace that is only created has a path without one")
	}
}
