package crd_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"
	crdv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// splitter converts endpoints: v1 has hostPort, v2 has host and port.
type splitter struct {
	mu      sync.Mutex // guards what follows
	reviews int
	spoil   func(review, response object) // changes an answer before it is sent
	down    error
	hold    chan struct{} // not nil: answers wait until it is closed
}

func (s *splitter) send(ctx context.Context, client *crdv1.WebhookClientConfig, body []byte) ([]byte, error) {
	s.mu.Lock()
	hold := s.hold
	s.mu.Unlock()
	if hold != nil {
		select {
		case <-hold:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.down != nil {
		return nil, s.down
	}
	if *client.URL != "https://convert.example.com/" {
		return nil, fmt.Errorf("asked at %s", *client.URL)
	}
	s.reviews++
	var review object
	if err := json.Unmarshal(body, &review); err != nil {
		return nil, err
	}
	rq := review["request"].(object)
	want := rq["desiredAPIVersion"].(string)
	var out []any
	for _, o := range rq["objects"].([]any) {
		o := o.(object)
		o["apiVersion"] = want
		if joined, ok := o["hostPort"].(string); ok && strings.HasSuffix(want, "v2") {
			o["host"], o["port"], _ = strings.Cut(joined, ":")
			delete(o, "hostPort")
		} else if host, ok := o["host"].(string); ok && strings.HasSuffix(want, "v1") {
			o["hostPort"] = host + ":" + o["port"].(string)
			delete(o, "host")
			delete(o, "port")
		}
		out = append(out, o)
	}
	response := object{"uid": rq["uid"], "result": object{"status": "Success"}, "convertedObjects": out}
	review["response"] = response
	delete(review, "request")
	if s.spoil != nil {
		s.spoil(review, response)
	}
	return json.Marshal(review)
}

func (s *splitter) set(spoil func(review, response object), down error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.spoil, s.down = spoil, down
}

func (s *splitter) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.reviews
}

func endpointCRD(stored string) string {
	version := func(name, props, fields string) string {
		return fmt.Sprintf(`{"name":%q,"served":true,"storage":%t,"subresources":{"status":{}},"schema":{"openAPIV3Schema":{"type":"object","properties":%s}},%s}`, name, name == stored, props, fields)
	}
	return `{"apiVersion":"apiextensions.k8s.io/v1","kind":"CustomResourceDefinition","metadata":{"name":"ends.net.example.com"},"spec":{
		"group":"net.example.com","scope":"Namespaced","names":{"plural":"ends","singular":"end","kind":"End","listKind":"EndList"},
		"conversion":{"strategy":"Webhook","webhook":{"conversionReviewVersions":["v7","v1"],"clientConfig":{"url":"https://convert.example.com/"}}},
		"versions":[` + version("v1", `{"hostPort":{"type":"string"},"status":{"type":"object","properties":{"up":{"type":"boolean"}}}}`, `"selectableFields":[{"jsonPath":".hostPort"}]`) + "," +
		version("v2", `{"host":{"type":"string"},"port":{"type":"string"},"kind2":{"type":"string","default":"set"},"status":{"type":"object","properties":{"up":{"type":"boolean"}}}}`, `"selectableFields":[{"jsonPath":".host"},{"jsonPath":".port"}]`) + `]}}`
}

const (
	endsV1 = "/apis/net.example.com/v1/namespaces/d/ends"
	endsV2 = "/apis/net.example.com/v2/namespaces/d/ends"
)

// ends serves endpoints, stored as v1 and converted by the returned webhook.
func ends(t *testing.T) (*server, *splitter) {
	hook := &splitter{}
	s := startWith(t, hook.send)
	s.must(201, "POST", "/api/v1/namespaces", `{"metadata":{"name":"d"}}`)
	s.must(201, "POST", crds, endpointCRD("v1"))
	s.until("both versions are served", func() bool {
		a, _, _ := s.ask("GET", endsV1, "")
		b, _, _ := s.ask("GET", endsV2, "")
		return a == 200 && b == 200
	})
	return s, hook
}

// store makes v the version that is stored from now on.
func (s *server) store(v string) {
	s.t.Helper()
	def := s.must(200, "GET", crds+"/ends.net.example.com", "")
	var next object
	if err := json.Unmarshal([]byte(endpointCRD(v)), &next); err != nil {
		s.t.Fatal(err)
	}
	def["spec"].(object)["versions"] = next["spec"].(object)["versions"]
	raw, _ := json.Marshal(def)
	s.must(200, "PUT", crds+"/ends.net.example.com", string(raw))
	s.until(v+" is stored", func() bool {
		row := s.reg.Lookup("net.example.com", v, "ends")
		return row != nil && row.Stored == nil
	})
}

// names are those of a list, in its order.
func names(list object) (out []string) {
	for _, it := range list["items"].([]any) {
		out = append(out, at(it.(object), "metadata.name").(string))
	}
	return out
}

// watch yields the events of a watch as they come.
func (s *server) watch(path string) func() object {
	s.t.Helper()
	res, err := http.Get(s.url + path)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = res.Body.Close() })
	lines := bufio.NewScanner(res.Body)
	return func() object {
		s.t.Helper()
		if !lines.Scan() {
			s.t.Fatalf("the watch of %s has ended: %v", path, lines.Err())
		}
		var e object
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			s.t.Fatal(err)
		}
		return e
	}
}

// Selectable fields are those of the version that is asked for.
func TestSelectByFieldsOfAnotherVersion(t *testing.T) {
	s, hook := ends(t)
	onHost := s.watch(endsV2 + "?watch=true&fieldSelector=host%3Dh1")
	onBoth := s.watch(endsV2 + "?watch=true&fieldSelector=host%3Dh1%2Cport%3D81")
	onV1 := s.watch(endsV1 + "?watch=true&fieldSelector=hostPort%3Dh1:80")
	for i, to := range []string{"h1:80", "h1:81", "h2:80"} {
		s.must(201, "POST", endsV1, fmt.Sprintf(`{"apiVersion":"net.example.com/v1","kind":"End","metadata":{"name":"e%d"},"hostPort":%q}`, i, to))
	}
	for _, row := range []struct{ path, want string }{
		{endsV2 + "?fieldSelector=host%3Dh1", "[e0 e1]"},
		{endsV2 + "?fieldSelector=host%3Dh1%2Cport%21%3D81", "[e0]"},
		{endsV1 + "?fieldSelector=hostPort%3Dh2:80", "[e2]"},
	} {
		if got := fmt.Sprint(names(s.must(200, "GET", row.path, ""))); got != row.want {
			t.Errorf("GET %s: %s, want %s", row.path, got, row.want)
		}
	}
	if code, _, _ := s.ask("GET", endsV2+"?fieldSelector=hostPort%3Dh1:80", ""); code != 400 {
		t.Errorf("a field of the other version: %d, want 400", code)
	}
	s.must(200, "PATCH", endsV2+"/e0", `{"host":"h3"}`, "Content-Type", merge)
	s.must(200, "DELETE", endsV1+"/e1", "")
	for _, row := range []struct {
		what  string
		next  func() object
		wants []string
	}{
		{"host", onHost, []string{"ADDED e0 h1", "ADDED e1 h1", "DELETED e0 h1", "DELETED e1 h1"}},
		{"host and port", onBoth, []string{"ADDED e1 h1", "DELETED e1 h1"}},
		{"hostPort", onV1, []string{"ADDED e0 <nil>", "DELETED e0 <nil>"}},
	} {
		for _, want := range row.wants {
			e := row.next()
			if got := fmt.Sprintf("%v %v %v", e["type"], at(e, "object.metadata.name"), at(e, "object.host")); got != want {
				t.Errorf("watched by %s: %s, want %s", row.what, got, want)
			}
		}
	}

	// What cannot be converted is an error, not an object that does not match.
	hook.set(nil, errors.New("nobody is there"))
	s.must(201, "POST", endsV1, `{"apiVersion":"net.example.com/v1","kind":"End","metadata":{"name":"e4"},"hostPort":"h1:84"}`)
	if code, got, _ := s.ask("GET", endsV2+"?fieldSelector=host%3Dh1", ""); code != 500 || !strings.Contains(fmt.Sprint(got["message"]), "nobody is there") {
		t.Errorf("a list by field without the webhook: %d %v", code, got)
	}
	if e := onHost(); e["type"] != "ERROR" || !strings.Contains(fmt.Sprint(at(e, "object.message")), "nobody is there") {
		t.Errorf("a watch by field without the webhook: %v", e)
	}
}

// A webhook that is away, or slow, is felt by those who need it and by nobody else.
func TestWebhookAway(t *testing.T) {
	s, hook := ends(t)
	s.must(201, "POST", endsV1, `{"apiVersion":"net.example.com/v1","kind":"End","metadata":{"name":"one"},"hostPort":"h1:80"}`)
	s.must(200, "PATCH", endsV2+"/one?fieldManager=second", `{"apiVersion":"net.example.com/v2","kind":"End","port":"81"}`, "Content-Type", merge)
	events := s.watch(endsV2 + "?watch=true")
	events()

	hook.set(nil, errors.New("nobody is there"))
	got := s.must(200, "PATCH", endsV1+"/one?fieldManager=third", `{"hostPort":"h1:82"}`, "Content-Type", merge)
	var owners []string
	for _, m := range at(got, "metadata.managedFields").([]any) {
		owners = append(owners, fmt.Sprintf("%v %v", at(m.(object), "manager"), at(m.(object), "apiVersion")))
	}
	if text := fmt.Sprint(owners); !strings.Contains(text, "second net.example.com/v2") || !strings.Contains(text, "third net.example.com/v1") {
		t.Errorf("owners after a write that could not look at v2: %v", owners)
	}
	if e := events(); e["type"] != "ERROR" || at(e, "object.code") != 500.0 || !strings.Contains(fmt.Sprint(at(e, "object.message")), "nobody is there") {
		t.Errorf("the watch in v2: %v", e)
	}
	for _, path := range []string{endsV2, endsV2 + "/one"} {
		code, got, _ := s.ask("GET", path, "")
		if text := fmt.Sprint(got["message"]); code != 500 || !strings.Contains(text, "conversion webhook for net.example.com/v1, Kind=End failed: nobody is there") {
			t.Errorf("GET %s: %d %v", path, code, got)
		}
	}
	s.must(200, "GET", endsV1, "")
	for _, name := range []string{"apiserver_conversion_webhook_request_total", "apiserver_conversion_webhook_duration_seconds", "apiserver_crd_conversion_webhook_duration_seconds"} {
		if n, err := testutil.GatherAndCount(s.counts, name); err != nil || n < 2 {
			t.Errorf("%s has %d series, want those of calls that went well and of others: %v", name, n, err)
		}
	}
	hook.set(nil, nil)
	s.must(200, "GET", endsV2+"/one", "")

	// Many who want the same at the same time share one call; others do not wait for it.
	s.must(200, "PATCH", endsV1+"/one", `{"hostPort":"h1:83"}`, "Content-Type", merge)
	before := hook.count()
	hold := make(chan struct{})
	hook.mu.Lock()
	hook.hold = hold
	hook.mu.Unlock()
	const many = 20
	codes := make(chan int, many)
	for range many {
		go func() {
			res, err := http.Get(s.url + endsV2 + "/one")
			if err != nil {
				codes <- 0
				return
			}
			_ = res.Body.Close()
			codes <- res.StatusCode
		}()
	}
	s.must(201, "POST", "/api/v1/namespaces", `{"metadata":{"name":"other"}}`)
	s.must(200, "GET", "/api/v1/namespaces/other", "")
	s.must(201, "POST", endsV1, `{"apiVersion":"net.example.com/v1","kind":"End","metadata":{"name":"two"},"hostPort":"h2:80"}`)
	s.must(200, "GET", endsV1+"/two", "")
	close(hold)
	for range many {
		if code := <-codes; code != 200 {
			t.Errorf("one of many got %d", code)
		}
	}
	if n := hook.count() - before; n > 1 {
		t.Errorf("%d askers took %d reviews", many, n)
	}
}

// What was stored before another version became the stored one.
func TestStoredAsAnOlderVersion(t *testing.T) {
	s, hook := ends(t)
	for i := range 30 {
		s.must(201, "POST", endsV1, fmt.Sprintf(`{"apiVersion":"net.example.com/v1","kind":"End","metadata":{"name":"e%02d"},"hostPort":"h%d:80"}`, i, i))
	}
	s.store("v2")
	before := hook.count()
	list := s.must(200, "GET", endsV2, "")
	if n := hook.count() - before; len(names(list)) != 30 || n != 1 {
		t.Errorf("a list of %d old objects took %d reviews, want 1", len(names(list)), n)
	}
	// In the version that they are stored as, nobody has to be asked.
	hook.set(nil, errors.New("nobody is there"))
	for _, it := range s.must(200, "GET", endsV1, "")["items"].([]any) {
		if it.(object)["hostPort"] == nil {
			t.Errorf("in v1: %v", it)
		}
	}
	s.must(200, "GET", endsV1+"/e07", "")
	hook.set(nil, nil)

	// A write that changes nothing brings it to the stored version.
	seen := s.must(200, "GET", endsV2+"/e07", "")
	text, _ := json.Marshal(seen)
	wrote := s.must(200, "PUT", endsV2+"/e07", string(text))
	if at(wrote, "metadata.resourceVersion") == at(seen, "metadata.resourceVersion") {
		t.Error("an old object was not written anew")
	}
	hook.set(nil, errors.New("nobody is there"))
	if got := s.must(200, "GET", endsV2+"/e07", ""); got["host"] != "h7" {
		t.Errorf("migrated: %v", got)
	}
	hook.set(nil, nil)
	if n := len(s.must(200, "DELETE", endsV2, "")["items"].([]any)); n != 30 {
		t.Errorf("%d deleted", n)
	}
}

// Status, apply and dry runs in a version that is not stored.
func TestWritesInAnotherVersion(t *testing.T) {
	s, _ := ends(t)
	s.must(201, "PATCH", endsV2+"/one?fieldManager=a", `{"apiVersion":"net.example.com/v2","kind":"End","metadata":{"name":"one"},"host":"h1","port":"80"}`, "Content-Type", apply)
	got := s.must(200, "PATCH", endsV2+"/one/status", `{"host":"other","status":{"up":true}}`, "Content-Type", merge)
	if at(got, "status.up") != true || got["host"] != "h1" {
		t.Errorf("status in v2: %v", got)
	}
	if got := s.must(200, "GET", endsV1+"/one", ""); at(got, "status.up") != true || got["hostPort"] != "h1:80" {
		t.Errorf("then in v1: %v", got)
	}
	got = s.must(200, "GET", endsV2+"/one", "")
	got["status"], got["port"] = object{"up": false}, "81"
	text, _ := json.Marshal(got)
	if got := s.must(200, "PUT", endsV2+"/one", string(text)); at(got, "status.up") != true || got["port"] != "81" {
		t.Errorf("an update in v2 must not touch status: %v", got)
	}
	// The same manager in the other version, where its field has another name.
	if code, got, _ := s.ask("PATCH", endsV1+"/one?fieldManager=b", `{"apiVersion":"net.example.com/v1","kind":"End","metadata":{"name":"one"},"hostPort":"h9:99"}`, "Content-Type", apply); code != 409 {
		t.Errorf("what another applier owns in v2: %d %v", code, got)
	}
	got = s.must(200, "PATCH", endsV1+"/one?fieldManager=a&force=true", `{"apiVersion":"net.example.com/v1","kind":"End","metadata":{"name":"one"},"hostPort":"h2:82"}`, "Content-Type", apply)
	if got["hostPort"] != "h2:82" {
		t.Errorf("applied in v1: %v", got)
	}
	if got := s.must(200, "GET", endsV2+"/one", ""); got["host"] != "h2" || got["port"] != "82" {
		t.Errorf("then in v2: %v", got)
	}
	if got := s.must(200, "PATCH", endsV2+"/one?dryRun=All", `{"port":"83"}`, "Content-Type", merge); got["port"] != "83" || got["host"] != "h2" {
		t.Errorf("dry run: %v", got)
	}
	if got := s.must(200, "GET", endsV1+"/one", ""); got["hostPort"] != "h2:82" {
		t.Errorf("a dry run has changed something: %v", got)
	}
	table := s.must(200, "GET", endsV2, "", "Accept", "application/json;as=Table;v=v1;g=meta.k8s.io")
	if at(table["rows"].([]any)[0].(object), "object.apiVersion") != "meta.k8s.io/v1" {
		t.Errorf("table: %v", table)
	}
	if got := s.must(200, "GET", endsV2+"/one", "", "Accept", "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io"); at(got, "metadata.name") != "one" {
		t.Errorf("metadata alone: %v", got)
	}
}

func TestWebhookConversion(t *testing.T) {
	s, hook := ends(t)
	const v1, v2 = endsV1, endsV2

	// A watch in one version sees what is written in the other.
	watch, err := http.Get(s.url + v2 + "?watch=true")
	if err != nil {
		t.Fatal(err)
	}
	defer watch.Body.Close()
	events := bufio.NewScanner(watch.Body)

	one := s.must(201, "POST", v1, `{"apiVersion":"net.example.com/v1","kind":"End","metadata":{"name":"one","labels":{"a":"b"}},"hostPort":"h1:80"}`)
	got := s.must(200, "GET", v2+"/one", "")
	if at(got, "host") != "h1" || at(got, "port") != "80" || got["hostPort"] != nil || got["apiVersion"] != "net.example.com/v2" ||
		at(got, "metadata.uid") != at(one, "metadata.uid") || at(got, "metadata.resourceVersion") != at(one, "metadata.resourceVersion") || at(got, "metadata.labels.a") != "b" {
		t.Errorf("v1 as v2: %v", got)
	}
	if !events.Scan() || !strings.Contains(events.Text(), `"host":"h1"`) || !strings.Contains(events.Text(), `"ADDED"`) {
		t.Errorf("watched as v2: %s", events.Text())
	}
	s.must(201, "POST", v2, `{"apiVersion":"net.example.com/v2","kind":"End","metadata":{"name":"two"},"host":"h2","port":"81"}`)
	if got := s.must(200, "GET", v1+"/two", ""); got["hostPort"] != "h2:81" || got["host"] != nil {
		t.Errorf("v2 as v1: %v", got)
	}
	got = s.must(200, "PATCH", v2+"/one", `{"port":"90"}`, "Content-Type", "application/merge-patch+json")
	if got := s.must(200, "GET", v1+"/one", ""); got["hostPort"] != "h1:90" {
		t.Errorf("patched as v2: %v", got)
	}
	s.must(201, "POST", v1, `{"apiVersion":"net.example.com/v1","kind":"End","metadata":{"name":"three"},"hostPort":"h3:82"}`)

	// A list costs one review, and the next one of the same state none.
	s.must(200, "PATCH", v1+"/one", `{"hostPort":"h1:91"}`, "Content-Type", "application/merge-patch+json")
	s.must(200, "PATCH", v1+"/three", `{"hostPort":"h3:92"}`, "Content-Type", "application/merge-patch+json")
	for events.Scan() && !strings.Contains(events.Text(), `"port":"92"`) { // the watch has asked for the same
	}
	before := hook.count()
	list := s.must(200, "GET", v2, "")
	if n := len(list["items"].([]any)); n != 3 || hook.count()-before > 1 {
		t.Errorf("list of %d took %d reviews", n, hook.count()-before)
	}
	before = hook.count()
	s.must(200, "GET", v2, "")
	if hook.count() != before {
		t.Errorf("the same list took %d more reviews", hook.count()-before)
	}

	// What a webhook must not do, and what happens when it cannot be asked.
	s.must(201, "POST", v1, `{"apiVersion":"net.example.com/v1","kind":"End","metadata":{"name":"four"},"hostPort":"h4:1"}`)
	if !events.Scan() {
		t.Fatal("the watch has ended")
	}
	first := func(r object) object { return r["convertedObjects"].([]any)[0].(object) }
	for i, row := range []struct {
		what  string
		spoil func(review, r object)
		down  error
		want  string
	}{
		{"changes the name", func(_, r object) { first(r)["metadata"].(object)["name"] = "other" }, nil, "must have the same name: four != other"},
		{"changes the UID", func(_, r object) { first(r)["metadata"].(object)["uid"] = "other" }, nil, "must have the same UID"},
		{"answers in another version", func(_, r object) { first(r)["apiVersion"] = "net.example.com/v3" }, nil, "invalid groupVersion"},
		{"returns nothing", func(_, r object) { r["convertedObjects"] = []any{} }, nil, "returned 0 objects, expected 1"},
		{"refuses", func(_, r object) { r["result"] = object{"status": "Failure", "message": "I cannot"} }, nil, "failed: I cannot"},
		{"answers another question", func(_, r object) { r["uid"] = "x" }, nil, "expected response.uid="},
		{"makes a label that is none", func(_, r object) { first(r)["metadata"].(object)["labels"] = object{"a": "not valid!"} }, nil, "metadata.labels: Invalid value"},
		{"makes another kind", func(_, r object) { first(r)["kind"] = "Other" }, nil, "returned invalid object at index 0: invalid kind (expected End, received Other)"},
		{"is away", nil, errors.New("nobody is there"), "failed: nobody is there"},
		{"answers with a status", nil, apierrors.NewForbidden(schema.GroupResource{Resource: "things"}, "x", nil), `failed: things "x" is forbidden`},
	} {
		hook.set(nil, nil)
		// A new state, which nobody has asked for yet.
		state := s.must(200, "PATCH", v1+"/four", fmt.Sprintf(`{"hostPort":"h4:%d"}`, 100+i), "Content-Type", "application/merge-patch+json")
		for events.Scan() && !strings.Contains(events.Text(), at(state, "metadata.resourceVersion").(string)) {
		}
		hook.set(row.spoil, row.down)
		// The watch has had this state converted: ask by a write, which always converts.
		code, got, _ := s.ask("PUT", v2+"/four", fmt.Sprintf(`{"apiVersion":"net.example.com/v2","kind":"End","metadata":{"name":"four","uid":%q,"resourceVersion":%q},"host":"x","port":"1"}`, at(state, "metadata.uid"), at(state, "metadata.resourceVersion")))
		if text := fmt.Sprint(got["message"]); code != 500 || !strings.Contains(text, "conversion webhook for net.example.com/v2, Kind=End") || !strings.Contains(text, row.want) {
			t.Errorf("a webhook that %s: %d %s", row.what, code, text)
		}
	}
	hook.set(nil, nil)

	// Another version is stored from now on: old content is converted as it is read.
	s.store("v2")
	s.must(201, "POST", v2, `{"apiVersion":"net.example.com/v2","kind":"End","metadata":{"name":"five"},"host":"h5","port":"85"}`)
	for path, want := range map[string]string{v1: "hostPort", v2: "host"} {
		for _, it := range s.must(200, "GET", path, "")["items"].([]any) {
			if it.(object)[want] == nil {
				t.Errorf("in a list of %s: %v", path, it)
			}
		}
	}
	// Defaults are those of the version that it is stored as, set before it is converted.
	if got := s.must(200, "GET", v2+"/two", ""); got["host"] != "h2" || got["port"] != "81" || got["kind2"] != nil {
		t.Errorf("stored as v1, read as v2: %v", got)
	}
}
