package crd_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	crdv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/keelson/keelson/apiserver/crd"
	"github.com/keelson/keelson/apiserver/resources"
	"github.com/keelson/keelson/apiserver/rest"
	"github.com/keelson/keelson/apiserver/store/memory"
	"github.com/keelson/keelson/apiserver/watchcache"
)

// server is the API over the memory store, with a Keeper beside it.
type server struct {
	t   *testing.T
	url string
	reg *resources.Registry
	k   *crd.Keeper

	counts *prometheus.Registry
	client *http.Client
}

// writer writes as the server does.
type writer struct {
	reg *resources.Registry
	o   *rest.Objects
}

func (w writer) UpdateStatus(ctx context.Context, name string, change func(*crdv1.CustomResourceDefinition) error) error {
	row := w.reg.Storage(crdv1.Resource("customresourcedefinitions"))
	_, _, err := w.o.Update(ctx, &resources.Request{}, row, "status", "", name, func(o resources.Object) (resources.Object, error) {
		c := o.DeepCopyObject().(*crdv1.CustomResourceDefinition)
		return c, change(c)
	}, rest.WriteOptions{Retry: true, NoHooks: true, NoAdmission: true})
	return err
}

func (w writer) DeleteAll(ctx context.Context, row *resources.Row) error {
	_, err := w.o.DeleteAll(ctx, &resources.Request{}, row, watchcache.Selection{Prefix: row.Prefix, Namespaced: row.Namespaced}, &metav1.DeleteOptions{})
	return err
}

// send is crd.Config.Send.
type send func(ctx context.Context, client *crdv1.WebhookClientConfig, body []byte) ([]byte, error)

func start(t *testing.T) *server { return startWith(t, nil) }

func startWith(t *testing.T, webhook send) *server {
	t.Helper()
	reg, err := resources.NewRegistry(resources.Table())
	if err != nil {
		t.Fatal(err)
	}
	st := memory.New()
	cache := watchcache.New(st, reg, watchcache.Options{})
	handler := rest.New(rest.Config{Registry: reg, Cache: cache, Store: st, Version: "v1.36.6+test"})
	counts := prometheus.NewRegistry()
	k := crd.New(crd.Config{Registry: reg, Cache: cache, Writer: writer{reg, handler.Objects()}, Send: webhook, Metrics: crd.NewMetrics(counts)})
	ctx, cancel := context.WithCancel(context.Background())
	cached, kept := make(chan struct{}), make(chan struct{})
	go func() { defer close(cached); _ = cache.Run(ctx) }()
	go func() { defer close(kept); _ = k.Run(ctx) }()
	<-cache.Ready()
	srv := httptest.NewServer(handler)
	t.Cleanup(func() {
		srv.CloseClientConnections()
		srv.Close()
		cancel()
		<-cached
		<-kept
	})
	return &server{t, srv.URL, reg, k, counts, http.DefaultClient}
}

type object = map[string]any

// ask returns code, answer and warnings. The content type of a PATCH is a header of its own.
func (s *server) ask(method, path, body string, headers ...string) (int, object, []string) {
	s.t.Helper()
	req, err := http.NewRequest(method, s.url+path, strings.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", "tester/1")
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	res, err := s.client.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	out := object{}
	if err := json.Unmarshal(text, &out); err != nil {
		out["text"] = string(text)
	}
	return res.StatusCode, out, res.Header.Values("Warning")
}

func (s *server) must(code int, method, path, body string, headers ...string) object {
	s.t.Helper()
	got, out, _ := s.ask(method, path, body, headers...)
	if got != code {
		s.t.Fatalf("%s %s: got %d, want %d: %v", method, path, got, code, out)
	}
	return out
}

func at(o object, path string) any {
	var v any = map[string]any(o)
	for _, p := range strings.Split(path, ".") {
		m, ok := v.(map[string]any)
		if !ok {
			return nil
		}
		v = m[p]
	}
	return v
}

func (s *server) until(what string, done func() bool) {
	s.t.Helper()
	for end := time.Now().Add(10 * time.Second); !done(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			s.t.Fatalf("not seen: %s", what)
		}
	}
}

const (
	crds = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
	v1   = "/apis/shop.example.com/v1/namespaces/default/widgets"
	v2   = "/apis/shop.example.com/v2/namespaces/default/widgets"

	merge = "application/merge-patch+json"
	apply = "application/apply-patch+yaml"
)

const spec = `{"type":"object","required":["color"],
  "x-kubernetes-validations":[{"rule":"self.replicas <= 10","message":"too many"},{"rule":"oldSelf.color != 'red' || self.color == 'red'","message":"red stays"}],
  "properties":{
    "color":{"type":"string","enum":["red","green","blue"]},
    "replicas":{"type":"integer","default":1},
    "port":{"x-kubernetes-int-or-string":true},
    "any":{"type":"object","x-kubernetes-preserve-unknown-fields":true,"properties":{"known":{"type":"object","properties":{"a":{"type":"string"}}}}},
    "tags":{"type":"array","x-kubernetes-list-type":"set","items":{"type":"string"}},
    "parts":{"type":"array","x-kubernetes-list-type":"map","x-kubernetes-list-map-keys":["name"],
      "items":{"type":"object","required":["name"],"properties":{"name":{"type":"string"},"size":{"type":"integer"}}}}}}`

func version(name, spec string, more ...string) string {
	out := `{"name":"` + name + `","served":true,"storage":` + fmt.Sprint(name == "v1") + `,
	 "schema":{"openAPIV3Schema":{"type":"object","properties":{"spec":` + spec + `,"status":{"type":"object","properties":{"replicas":{"type":"integer"}}}}}}`
	for _, m := range more {
		out += "," + m
	}
	return out + "}"
}

const parts = `"subresources":{"status":{},"scale":{"specReplicasPath":".spec.replicas","statusReplicasPath":".status.replicas"}},
 "selectableFields":[{"jsonPath":".spec.color"}],
 "additionalPrinterColumns":[{"name":"Color","type":"string","jsonPath":".spec.color"},{"name":"N","type":"integer","jsonPath":".spec.replicas"},
  {"name":"Since","type":"date","jsonPath":".metadata.creationTimestamp"}]`

const v2spec = `{"type":"object","properties":{"color":{"type":"string"},"replicas":{"type":"integer"}}}`

func definition(versions ...string) string {
	return `{"apiVersion":"apiextensions.k8s.io/v1","kind":"CustomResourceDefinition","metadata":{"name":"widgets.shop.example.com"},"spec":{
	 "group":"shop.example.com","scope":"Namespaced","names":{"plural":"widgets","singular":"widget","kind":"Widget","shortNames":["wg"],"categories":["all"]},
	 "versions":[` + strings.Join(versions, ",") + `]}}`
}

func condition(c object, kind string) string {
	list, _ := at(c, "status.conditions").([]any)
	for _, e := range list {
		if e.(object)["type"] == kind {
			return fmt.Sprint(e.(object)["status"], " ", e.(object)["reason"])
		}
	}
	return ""
}

func (s *server) define(text string) {
	s.t.Helper()
	c := s.must(201, "POST", crds, text)
	name := at(c, "metadata.name").(string)
	s.until("Established of "+name, func() bool {
		return condition(s.must(200, "GET", crds+"/"+name, ""), "Established") == "True InitialNamesAccepted"
	})
}

func widget(name, spec string) string {
	return `{"apiVersion":"shop.example.com/v1","kind":"Widget","metadata":{"name":"` + name + `"},"spec":` + spec + `}`
}

func TestLifeOfACustomResource(t *testing.T) {
	s := start(t)
	s.must(404, "GET", v1, "")
	s.define(definition(version("v1", spec, parts), version("v2", v2spec)))

	a := s.must(201, "POST", v1, widget("a", `{"color":"red","nope":1,"port":"http","any":{"x":{"y":1}},"parts":[{"name":"p","size":1}]}`))
	if at(a, "spec.replicas") != 1.0 || at(a, "spec.nope") != nil || at(a, "spec.any.x.y") != 1.0 || at(a, "metadata.generation") != 1.0 {
		t.Errorf("created: %v", a)
	}
	if b := s.must(200, "GET", v2+"/a", ""); at(b, "apiVersion") != "shop.example.com/v2" || at(b, "spec.parts") != nil || at(b, "spec.color") != "red" {
		t.Errorf("as v2: %v", b)
	}
	if got := s.must(200, "GET", v1+"?fieldSelector=spec.color%3Dred", "")["items"].([]any); len(got) != 1 {
		t.Errorf("by color: %v", got)
	}
	s.must(400, "GET", v1+"?fieldSelector=spec.replicas%3D1", "")
	s.must(415, "PATCH", v1+"/a", `{}`, "Content-Type", "application/strategic-merge-patch+json")
	s.must(406, "GET", v1+"/a", "", "Accept", "application/vnd.kubernetes.protobuf")
	s.must(200, "GET", v1+"/a", "", "Accept", "application/vnd.kubernetes.protobuf,application/json")

	// spec grows the generation; status does not, and neither reaches the other.
	a = s.must(200, "PATCH", v1+"/a", `{"spec":{"replicas":2},"status":{"replicas":7}}`, "Content-Type", merge)
	if at(a, "metadata.generation") != 2.0 || a["status"] != nil {
		t.Errorf("patched: %v", a)
	}
	a = s.must(200, "PATCH", v1+"/a/status", `{"spec":{"replicas":5},"status":{"replicas":2}}`, "Content-Type", merge)
	if at(a, "metadata.generation") != 2.0 || at(a, "spec.replicas") != 2.0 || at(a, "status.replicas") != 2.0 {
		t.Errorf("status patched: %v", a)
	}
	// A subresource that this version does not have is an object that is not there.
	for _, path := range []string{"/a/bogus", "/a/status/x", "/a/scale/x"} {
		if st := s.must(404, "GET", v1+path, ""); at(st, "message") != `widgets.shop.example.com "a" not found` || at(st, "details.name") != "a" {
			t.Errorf("%s: %v", path, st)
		}
	}
	scale := s.must(200, "PATCH", v1+"/a/scale", `{"spec":{"replicas":4}}`, "Content-Type", merge)
	if at(scale, "spec.replicas") != 4.0 || at(scale, "status.replicas") != 2.0 || scale["kind"] != "Scale" {
		t.Errorf("scale: %v", scale)
	}
	s.must(422, "PATCH", v1+"/a/scale", `{"spec":{"replicas":40}}`, "Content-Type", merge)

	applied := s.must(200, "PATCH", v1+"/a?fieldManager=x", `{"apiVersion":"shop.example.com/v1","kind":"Widget","metadata":{"name":"a"},"spec":{"parts":[{"name":"q"}]}}`, "Content-Type", apply)
	if n := len(at(applied, "spec.parts").([]any)); n != 2 {
		t.Errorf("parts after apply: %v", at(applied, "spec.parts"))
	}
	if _, got, _ := s.ask("PATCH", v1+"/a?fieldManager=x", `{"apiVersion":"shop.example.com/v1","kind":"Widget","metadata":{"name":"a"},"extra":1}`, "Content-Type", apply); !strings.Contains(fmt.Sprint(got["message"]), ".extra: field not declared in schema") {
		t.Errorf("unknown field applied: %v", got)
	}

	table := s.must(200, "GET", v1, "", "Accept", "application/json;as=Table;v=v1;g=meta.k8s.io")
	var names []string
	for _, c := range table["columnDefinitions"].([]any) {
		names = append(names, c.(object)["name"].(string))
	}
	cells := table["rows"].([]any)[0].(object)["cells"].([]any)
	if !slices.Equal(names, []string{"Name", "Color", "N", "Since"}) || cells[1] != "red" || cells[2] != 4.0 {
		t.Errorf("table: %v %v", names, cells)
	}
	if m := s.must(200, "GET", v1+"/a", "", "Accept", "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io"); m["spec"] != nil || at(m, "metadata.name") != "a" {
		t.Errorf("metadata: %v", m)
	}
	dry := s.must(201, "POST", v1+"?dryRun=All", widget("dry", `{"color":"red"}`))
	if s.must(404, "GET", v1+"/dry", ""); at(dry, "metadata.name") != "dry" {
		t.Errorf("dry run: %v", dry)
	}
	s.must(201, "POST", v2, strings.Replace(widget("b", `{"color":"blue"}`), "/v1", "/v2", 1))
	if b := s.must(200, "GET", v1+"/b", ""); at(b, "spec.replicas") != 1.0 {
		t.Errorf("written as v2, read as v1: %v", b)
	}
	// Fields that were set through one version are known to writers through the other.
	_, got, _ := s.ask("PATCH", v1+"/b?fieldManager=x", `{"apiVersion":"shop.example.com/v1","kind":"Widget","metadata":{"name":"b"},"spec":{"color":"green","parts":[{"name":"q"}]}}`, "Content-Type", apply)
	if got["code"] != 409.0 || !strings.Contains(fmt.Sprint(got["message"]), "conflict with \"tester\" using shop.example.com/v2") {
		t.Errorf("applied over another version: %v", got)
	}
	b := s.must(200, "PATCH", v1+"/b?fieldManager=x&force=true", `{"apiVersion":"shop.example.com/v1","kind":"Widget","metadata":{"name":"b"},"spec":{"color":"green","parts":[{"name":"q"}]}}`, "Content-Type", apply)
	if at(b, "spec.color") != "green" {
		t.Errorf("forced: %v", b)
	}
	s.must(200, "DELETE", v1, "")
	if left := s.must(200, "GET", v1, "")["items"].([]any); len(left) != 0 {
		t.Errorf("after deletecollection: %v", left)
	}
}

func TestRefusals(t *testing.T) {
	s := start(t)
	s.define(definition(version("v1", spec, parts)))
	for _, c := range []struct{ name, spec, want string }{
		{"a missing field", `{}`, "spec.color: Required value"},
		{"an unknown value", `{"color":"pink"}`, `spec.color: Unsupported value: "pink": supported values: "red", "green", "blue"`},
		{"a wrong type", `{"color":"red","replicas":"x"}`, `spec.replicas: Invalid value: "string": spec.replicas in body must be of type integer: "string"`},
		{"a rule", `{"color":"red","replicas":11}`, "spec: Invalid value: too many"},
		{"a set with a duplicate", `{"color":"red","tags":["a","a"]}`, `spec.tags[1]: Duplicate value: "a"`},
		{"a map with a duplicate", `{"color":"red","parts":[{"name":"a"},{"name":"a"}]}`, `spec.parts[1]: Duplicate value`},
	} {
		_, got, _ := s.ask("POST", v1, widget("x", c.spec))
		if got["code"] != 422.0 || !strings.Contains(fmt.Sprint(got["message"]), c.want) {
			t.Errorf("%s: %v, want %s", c.name, got["message"], c.want)
		}
	}
	if code, got, _ := s.ask("POST", v1, `{"spec":{}}`); code != 400 || !strings.Contains(fmt.Sprint(got["message"]), `Object 'Kind' is missing in '{"spec":{}}'`) {
		t.Errorf("no kind: %d %v", code, got["message"])
	}
	if c, ok := s.must(200, "GET", v1, "")["metadata"].(object)["continue"]; !ok || c != "" {
		t.Errorf("continue of an empty list: %v", c)
	}
	s.must(201, "POST", v1, widget("red", `{"color":"red"}`))
	if _, got, _ := s.ask("PATCH", v1+"/red", `{"spec":{"color":"blue"}}`, "Content-Type", merge); !strings.Contains(fmt.Sprint(got["message"]), "red stays") {
		t.Errorf("a transition rule: %v", got)
	}
	s.must(422, "PUT", v1+"/red", widget("red", `{"color":"red"}`)) // no resourceVersion

	odd := `{"color":"red","nope":1,"any":{"known":{"b":1},"x":1},"color":"red"}`
	_, got, _ := s.ask("POST", v1+"?fieldValidation=Strict", strings.Replace(widget("odd", odd), `"name":"odd"`, `"name":"odd","bad":1`, 1))
	for _, want := range []string{"strict decoding error", `unknown field "metadata.bad"`, `unknown field "spec.nope"`, `unknown field "spec.any.known.b"`, `duplicate field "spec.color"`} {
		if !strings.Contains(fmt.Sprint(got["message"]), want) {
			t.Errorf("strict: %v lacks %s", got["message"], want)
		}
	}
	if code, _, warned := s.ask("POST", v1+"?fieldValidation=Warn", widget("odd", odd)); code != 201 || !strings.Contains(fmt.Sprint(warned), "spec.nope") {
		t.Errorf("warn: %d %v", code, warned)
	}
	if code, _, warned := s.ask("POST", v1+"?fieldValidation=Ignore", widget("odder", odd)); code != 201 || len(warned) > 0 {
		t.Errorf("ignore: %d %v", code, warned)
	}
}

func TestDefinitionsChange(t *testing.T) {
	s := start(t)
	s.define(definition(version("v1", spec, parts), version("v2", v2spec)))
	s.must(201, "POST", v1, widget("a", `{"color":"red","replicas":3}`))

	res, err := http.Get(s.url + v2 + "?watch=1&timeoutSeconds=60")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	events := bufio.NewReader(res.Body)
	if line, err := events.ReadString('\n'); err != nil || !strings.Contains(line, "ADDED") {
		t.Fatal(line, err)
	}
	change := func(f func(spec object)) {
		t.Helper()
		c := s.must(200, "GET", crds+"/widgets.shop.example.com", "")
		f(c["spec"].(object))
		raw, _ := json.Marshal(c)
		s.must(200, "PUT", crds+"/widgets.shop.example.com", string(raw))
	}
	change(func(spec object) { spec["versions"].([]any)[1].(object)["served"] = false })
	s.until("v2 is not served", func() bool { code, _, _ := s.ask("GET", v2, ""); return code == 404 })
	if rest, err := io.ReadAll(events); err != nil || bytes.Contains(rest, []byte("ERROR")) {
		t.Errorf("the watch ended with %s, %v", rest, err)
	}
	// A default that arrives later is seen in what is stored already.
	change(func(spec object) {
		v := spec["versions"].([]any)[0].(object)
		v["schema"].(object)["openAPIV3Schema"].(object)["properties"].(object)["spec"].(object)["properties"].(object)["late"] = object{"type": "string", "default": "yes"}
	})
	s.until("the new default", func() bool { return at(s.must(200, "GET", v1+"/a", ""), "spec.late") == "yes" })
	// A rule that arrives later is no reason to refuse what broke it before and is not touched, but to tell of it.
	change(func(spec object) {
		v := spec["versions"].([]any)[0].(object)
		v["schema"].(object)["openAPIV3Schema"].(object)["properties"].(object)["spec"].(object)["properties"].(object)["replicas"].(object)["x-kubernetes-validations"] = []any{object{"rule": "self != 3", "message": "not three"}}
	})
	s.until("a warning of the new rule", func() bool {
		code, _, warned := s.ask("PATCH", v1+"/a", `{"metadata":{"labels":{"at":"`+fmt.Sprint(time.Now().UnixNano())+`"}}}`, "Content-Type", merge)
		return code == 200 && strings.Contains(strings.Join(warned, "\n"), "spec.replicas: Invalid value: 3: not three")
	})
	// The storage version changes, and is hidden when it is not served.
	change(func(spec object) {
		vs := spec["versions"].([]any)
		vs[0].(object)["storage"], vs[1].(object)["storage"] = false, true
	})
	s.until("stored as v2", func() bool {
		row := s.reg.ByPrefix("shop.example.com/widgets")
		return row != nil && row.Version == "v2" && row.Hidden
	})
	if a := s.must(200, "GET", v1+"/a", ""); at(a, "spec.color") != "red" || at(a, "spec.replicas") != 3.0 {
		t.Errorf("read through another storage version: %v", a)
	}
	c := s.must(200, "GET", crds+"/widgets.shop.example.com", "")
	if got := fmt.Sprint(at(c, "status.storedVersions")); got != "[v1 v2]" {
		t.Errorf("stored versions: %s", got)
	}
}

func TestDeletionOfADefinition(t *testing.T) {
	s := start(t)
	s.define(definition(version("v1", spec, parts)))
	s.must(201, "POST", v1, widget("a", `{"color":"red"}`))
	s.must(201, "POST", v1, strings.Replace(widget("b", `{"color":"red"}`), `"name":"b"`, `"name":"b","finalizers":["x.io/y"]`, 1))
	if v := s.must(200, "GET", "/apis/shop.example.com/v1", "")["resources"].([]any); len(v) != 3 {
		t.Errorf("discovery: %v", v)
	}
	doc := s.must(200, "GET", "/openapi/v3/apis/shop.example.com/v1", "")
	if doc["components"].(object)["schemas"].(object)["com.example.shop.v1.Widget"] == nil {
		t.Error("OpenAPI v3 has no Widget")
	}
	if d := s.must(200, "GET", "/openapi/v2", "")["definitions"].(object)["com.example.shop.v1.Widget"]; d == nil || at(d.(object), "properties.spec.properties.color.type") != "string" {
		t.Errorf("OpenAPI v2: %v", d)
	}
	for path, want := range map[string]any{
		"post.requestBody.content.application/yaml.schema.$ref": "#/components/schemas/com.example.shop.v1.Widget",
		"post.requestBody.content.*/*":                          nil,
		"get.description":                                       "list objects of kind Widget",
		"delete.requestBody":                                    nil,
	} {
		var v any = doc["paths"].(object)[v1]
		if v == nil {
			v = doc["paths"].(object)["/apis/shop.example.com/v1/namespaces/{namespace}/widgets"]
		}
		for _, name := range strings.Split(path, ".") {
			m, _ := v.(object)
			v = m[name]
		}
		if v != want {
			t.Errorf("OpenAPI v3, %s: %v, want %v", path, v, want)
		}
	}
	if d := at(doc["components"].(object)["schemas"].(object)["com.example.shop.v1.WidgetList"].(object), "properties.metadata.description"); !strings.HasPrefix(fmt.Sprint(d), "Standard list metadata.") {
		t.Errorf("the metadata of lists: %v", d)
	}
	s.must(404, "GET", "/openapi/v3/apis/shop.example.com", "")
	gone := s.must(200, "DELETE", crds+"/widgets.shop.example.com", "")
	if condition(gone, "Terminating") != "True InstanceDeletionPending" {
		t.Errorf("deleted: %v", gone["status"])
	}
	if m := gone["metadata"].(object); m["deletionGracePeriodSeconds"] != nil || m["generation"] != 1.0 {
		t.Errorf("a definition is only marked with a time: %v", m)
	}
	s.until("a is gone", func() bool { code, _, _ := s.ask("GET", v1+"/a", ""); return code == 404 })
	s.must(403, "POST", v1, widget("c", `{"color":"red"}`))
	if r := s.must(200, "GET", "/apis/shop.example.com/v1", "")["resources"].([]any)[0].(object); fmt.Sprint(r["verbs"]) != "[delete deletecollection get list watch]" {
		t.Errorf("verbs of what is on its way out: %v", r["verbs"])
	}
	if c := s.must(200, "GET", crds+"/widgets.shop.example.com", ""); condition(c, "Terminating") != "True InstanceDeletionInProgress" {
		t.Errorf("while b is held: %v", c["status"])
	}
	s.must(200, "PATCH", v1+"/b", `{"metadata":{"finalizers":null}}`, "Content-Type", merge)
	s.until("the definition is gone", func() bool {
		code, _, _ := s.ask("GET", crds+"/widgets.shop.example.com", "")
		return code == 404
	})
	s.until("nothing is served", func() bool { return s.reg.Lookup("shop.example.com", "v1", "widgets") == nil })
	s.must(404, "GET", v1, "")
	if s.must(200, "GET", "/openapi/v2", "")["definitions"].(object)["com.example.shop.v1.Widget"] != nil {
		t.Error("OpenAPI v2 still has a Widget")
	}
}

func TestNamesInConflict(t *testing.T) {
	s := start(t)
	s.define(definition(version("v1", spec)))
	other := strings.NewReplacer(`"widgets.shop`, `"gadgets.shop`, `"plural":"widgets","singular":"widget"`, `"plural":"gadgets","singular":"gadget"`).Replace(definition(version("v1", spec)))
	s.must(201, "POST", crds, other)
	s.until("the refusal", func() bool {
		c := s.must(200, "GET", crds+"/gadgets.shop.example.com", "")
		return condition(c, "NamesAccepted") == "False ListKindConflict" && condition(c, "Established") == "False NotAccepted"
	})
	s.must(404, "GET", "/apis/shop.example.com/v1/gadgets", "")
	s.must(200, "DELETE", crds+"/widgets.shop.example.com", "")
	s.until("the names are free", func() bool {
		return condition(s.must(200, "GET", crds+"/gadgets.shop.example.com", ""), "Established") == "True InitialNamesAccepted"
	})
	s.must(200, "GET", "/apis/shop.example.com/v1/gadgets", "")
}

// What nobody may set at first has its default all the same.
func TestDefaultOfStatus(t *testing.T) {
	s := start(t)
	s.define(definition(`{"name":"v1","served":true,"storage":true,"subresources":{"status":{}},"schema":{"openAPIV3Schema":{"type":"object","properties":{
		"spec":{"type":"object","x-kubernetes-preserve-unknown-fields":true},"status":{"type":"object","default":{},"properties":{"phase":{"type":"string","default":"New"}}}}}}}`))
	for _, a := range []object{
		s.must(201, "POST", v1, `{"apiVersion":"shop.example.com/v1","kind":"Widget","metadata":{"name":"a"},"status":{"phase":"Old"}}`),
		s.must(200, "GET", v1+"/a", ""),
	} {
		if at(a, "status.phase") != "New" {
			t.Errorf("status: %v", a["status"])
		}
	}
}
