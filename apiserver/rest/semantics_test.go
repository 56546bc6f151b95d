package rest

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metav1beta1 "k8s.io/apimachinery/pkg/apis/meta/v1beta1"

	"github.com/keelson/keelson/apiserver/codec"
)

const maps = "/api/v1/namespaces/default/configmaps"

func configMap(name string) string {
	return fmt.Sprintf(`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":%q,"labels":{"n":%q}},"data":{"k":"v"}}`, name, name)
}

type mapList struct {
	Metadata metav1.ListMeta
	Items    []struct{ Metadata metav1.ObjectMeta }
}

func (l mapList) names() string {
	var out []string
	for _, it := range l.Items {
		out = append(out, it.Metadata.Name)
	}
	return strings.Join(out, " ")
}

func (h *harness) list(path string) (l mapList) {
	h.t.Helper()
	if err := json.Unmarshal(h.must(200, "GET", path, "").body, &l); err != nil {
		h.t.Fatal(err)
	}
	return l
}

func TestPagesShowOneState(t *testing.T) {
	h := newHarness(t)
	for _, n := range []string{"a", "b", "c", "d", "e"} {
		h.must(201, "POST", maps, configMap(n))
	}
	first := h.list(maps + "?limit=2")
	if first.names() != "a b" || first.Metadata.RemainingItemCount == nil || *first.Metadata.RemainingItemCount != 3 {
		t.Fatalf("first page: %s, left %v", first.names(), first.Metadata.RemainingItemCount)
	}
	h.must(201, "POST", maps, configMap("bb"))
	h.must(200, "DELETE", maps+"/d", "")
	second := h.list(maps + "?limit=2&continue=" + first.Metadata.Continue)
	third := h.list(maps + "?limit=2&continue=" + second.Metadata.Continue)
	if got := second.names() + " " + third.names(); got != "c d e" || third.Metadata.Continue != "" {
		t.Errorf("the rest is %q, continue %q", got, third.Metadata.Continue)
	}
	if second.Metadata.ResourceVersion != first.Metadata.ResourceVersion {
		t.Errorf("pages are of revisions %s and %s", first.Metadata.ResourceVersion, second.Metadata.ResourceVersion)
	}
	if exact := h.list(maps + "?resourceVersionMatch=Exact&resourceVersion=" + first.Metadata.ResourceVersion); exact.names() != "a b c d e" {
		t.Errorf("exact: %s", exact.names())
	}
	if now := h.list(maps); now.names() != "a b bb c e" {
		t.Errorf("now: %s", now.names())
	}
	for _, c := range []struct {
		path, start string
		rev         int64
		want        string
	}{
		{maps, "/b\x00", -1, "bb c e"},
		{maps, "b\x00", -1, "bb c e"}, // a server that wrote no slash
		{maps, "/b\x00", -7, "bb c e"},
		{"/api/v1/configmaps", "/default/b\x00", -1, "bb c e"},
		{"/api/v1/configmaps", "default/b\x00", -1, "bb c e"},
	} {
		if l := h.list(c.path + "?continue=" + token{Rev: c.rev, Start: c.start}.String()); l.names() != c.want {
			t.Errorf("%s after %q of revision %d: want %s, got %s", c.path, c.start, c.rev, c.want, l.names())
		}
	}
	// What a token says is below what is listed, so that it is good for another namespace too, and leads out of none.
	for path, want := range map[string]string{maps: `"start":"/b\u0000"`, "/api/v1/configmaps": `"start":"/default/b\u0000"`} {
		l := h.list(path + "?limit=1&fieldSelector=metadata.name!%3Da")
		if raw, err := base64.RawURLEncoding.DecodeString(l.Metadata.Continue); err != nil || !strings.Contains(string(raw), want) {
			t.Errorf("%s: want a token with %s, got %s, %v", path, want, raw, err)
		}
	}
	for _, start := range []string{"../a", "/../a", "//a", "/a/", "a/../b", "/."} {
		if r := h.must(400, "GET", maps+"?continue="+token{Rev: -1, Start: start}.String(), ""); !strings.Contains(string(r.body), "continue key is not valid: "+start) {
			t.Errorf("start %q: %s", start, r.body)
		}
	}
	if l := h.list(maps + "?limit=1&labelSelector=n+in+(b,c)"); l.names() != "b" || l.Metadata.RemainingItemCount != nil {
		t.Errorf("page of a selection: %s, %v", l.names(), l.Metadata.RemainingItemCount)
	}
}

func TestWatchSemantics(t *testing.T) {
	h := newHarness(t)
	h.must(201, "POST", maps, configMap("a"))
	rv := h.list(maps).Metadata.ResourceVersion
	h.must(201, "POST", maps, configMap("b"))
	h.must(200, "PATCH", maps+"/a", `{"metadata":{"labels":{"n":"x"}}}`, "Content-Type", "application/merge-patch+json")
	h.must(200, "DELETE", maps+"/b", "")
	for _, c := range []struct{ query, want string }{
		{"resourceVersion=" + rv, "ADDED MODIFIED DELETED"},
		{"resourceVersion=" + rv + "&labelSelector=n%3Da", "DELETED"},
		{"resourceVersion=" + rv + "&labelSelector=n%3Dx", "ADDED"},
		{"resourceVersion=" + rv + "&fieldSelector=metadata.name%3Db", "ADDED DELETED"},
		{"resourceVersion=0", "ADDED"},
		{"", "ADDED"},
		{"sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true", "ADDED BOOKMARK"},
		{"sendInitialEvents=false&resourceVersionMatch=NotOlderThan&resourceVersion=" + rv, "ADDED MODIFIED DELETED"},
	} {
		got := strings.Join(h.watch(maps+"?watch=1&timeoutSeconds=1&"+c.query, 9), " ")
		if got != c.want {
			t.Errorf("watch?%s:\n got %s\nwant %s", c.query, got, c.want)
		}
	}
	// Who watches from a revision that is still to come waits for what follows it.
	now, err := strconv.Atoi(h.list(maps).Metadata.ResourceVersion)
	if err != nil {
		t.Fatal(err)
	}
	if got := h.watch(fmt.Sprintf("%s?watch=1&timeoutSeconds=1&allowWatchBookmarks=true&resourceVersion=%d", maps, now+100), 9); len(got) > 0 {
		t.Errorf("from the far future: %v", got)
	}
	next := make(chan []string)
	go func() {
		next <- h.watch(fmt.Sprintf("%s?watch=1&timeoutSeconds=10&resourceVersion=%d", maps, now+2), 1)
	}()
	for i := range 2 {
		h.must(200, "PATCH", maps+"/a", fmt.Sprintf(`{"metadata":{"labels":{"n":"%d"}}}`, i), "Content-Type", "application/merge-patch+json")
	}
	h.must(200, "DELETE", maps+"/a", "")
	if got := <-next; len(got) != 1 || got[0] != "DELETED" {
		t.Errorf("from the near future: %v", got)
	}
	h.must(201, "POST", maps, configMap("a"))
	// A state that is not reached in time is refused inside the stream.
	if got := h.watch(fmt.Sprintf("%s?watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&resourceVersion=%d", maps, now+100), 9); len(got) != 1 || got[0] != "ERROR" {
		t.Errorf("a state of the future: %v", got)
	}
	if got := h.watch("/api/v1/watch/namespaces/default/configmaps/a?timeoutSeconds=1", 1); len(got) != 1 || got[0] != "ADDED" {
		t.Errorf("old watch path: %v", got)
	}
}

func TestWatchOverWebSocket(t *testing.T) {
	h := newHarness(t)
	url := "ws" + strings.TrimPrefix(h.srv.URL, "http") + maps + "?watch=1"
	conn, _, err := websocket.DefaultDialer.Dial(url, http.Header{})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	h.must(201, "POST", maps, configMap("a"))
	_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	kind, text, err := conn.ReadMessage()
	var e metav1.WatchEvent
	if err != nil || kind != websocket.TextMessage || json.Unmarshal(text, &e) != nil || e.Type != "ADDED" {
		t.Fatalf("message %d %q: %v", kind, text, err)
	}
}

// TestBadInput is one line for each thing that a client can get wrong.
func TestBadInput(t *testing.T) {
	h := newHarness(t)
	h.must(201, "POST", maps, configMap("a"))
	const apply, merge, strategic, ops = "application/apply-patch+yaml", "application/merge-patch+json", "application/strategic-merge-patch+json", "application/json-patch+json"
	bomb := "a: &a [x,x,x,x,x,x,x,x,x]\n"
	for i := 'b'; i < 'k'; i++ {
		bomb += fmt.Sprintf("%c: &%c [*%c,*%c,*%c,*%c,*%c,*%c,*%c,*%c,*%c]\n", i, i, i-1, i-1, i-1, i-1, i-1, i-1, i-1, i-1, i-1)
	}
	const reviews = "/apis/authorization.k8s.io/v1/"
	for _, c := range []struct {
		method, path, kind, body string
		code                     int
		message                  string
	}{
		{"POST", maps, "", "{", 400, "the object provided is unrecognized (must be of type ConfigMap): couldn't get version/kind; json parse error: unexpected end of JSON input ({)"},
		{"POST", maps, "application/json", "nope", 400, "invalid character"},
		{"POST", maps, "text/plain", "x", 415, "accepted media types include: application/json"},
		{"POST", maps, "application/yaml", bomb, 400, ""},
		{"POST", maps, "application/vnd.kubernetes.protobuf", "k8s\x00garbage", 400, ""},
		{"POST", maps, "application/vnd.kubernetes.protobuf", "{}", 400, "does not appear to be a protobuf message"},
		{"POST", maps, "", `{"kind":"Pod","apiVersion":"v1"}`, 400, `Pod in version "v1" cannot be handled as a ConfigMap`},
		{"POST", maps, "", `{"kind":"ConfigMap","apiVersion":"v7"}`, 400, "the API version in the data (v7) does not match the expected API version (v1)"},
		{"POST", maps, "", `{"metadata":{"name":"x","namespace":"other"}}`, 400, "the namespace of the provided object does not match the namespace sent on the request"},
		{"POST", maps, "", `{"metadata":{}}`, 422, "name or generateName is required"},
		{"POST", maps, "", `{"metadata":{"name":"A B"}}`, 422, "metadata.name"},
		{"POST", maps, "", configMap("a"), 409, `configmaps "a" already exists`},
		{"POST", maps, "", `{"metadata":{"name":"x"},"data":{"a":"` + strings.Repeat("x", 1100000) + `"}}`, 422, "may not be more than 1048576 bytes"},
		{"POST", "/api/v1/namespaces/default/pods", "", `{"metadata":{"name":"x"},"spec":{"containers":[{"name":"c","image":"i","env":[{"name":"A","value":"` + strings.Repeat("x", 1600000) + `"}]}]}}`, 413, "limit is 1572864"},
		{"POST", maps, "", `{"metadata":{"name":"x"},"data":{"a":"` + strings.Repeat("x", 3200000) + `"}}`, 413, "Request entity too large: limit is 3145728"},
		{"POST", maps + "?fieldValidation=Strict", "", `{"metadata":{"name":"x"},"foo":1,"data":{"a":"1","a":"2"}}`, 400, `strict decoding error: unknown field "foo", duplicate field "data.a"`},
		{"POST", maps + "?fieldValidation=Sometimes", "", configMap("x"), 422, "fieldValidation"},
		{"POST", maps + "?dryRun=Some", "", configMap("x"), 422, "dryRun"},
		{"PUT", maps + "/a", "", `{"metadata":{"name":"b"}}`, 400, "the name of the object (b) does not match the name on the URL (a)"},
		{"PUT", maps + "/a", "", `{"metadata":{"name":"a","resourceVersion":"1"}}`, 409, "the object has been modified; please apply your changes to the latest version and try again"},
		{"PUT", maps + "/a", "", `{"metadata":{"name":"a","resourceVersion":"999999"}}`, 409, "the object has been modified"},
		{"PUT", maps + "/a", "", `{"metadata":{"name":"a","uid":"other"}}`, 409, "Precondition failed: UID in precondition: other"},
		{"PUT", maps + "/b", "", `{"metadata":{"name":"b"}}`, 404, `configmaps "b" not found`},
		{"PATCH", maps + "/a", merge, `{"metadata":{"uid":"other"}}`, 422, "metadata.uid: Invalid value: \"other\": field is immutable"},
		{"PATCH", maps + "/a", merge, `{"metadata":{"namespace":"other"}}`, 400, "the namespace of the provided object does not match the namespace sent on the request"},
		{"PATCH", maps + "/a", merge, `{"metadata":{"generateName":"a/b"}}`, 422, "metadata.generateName: Invalid value: \"a/b\": may not contain '/'"},
		{"PATCH", maps + "/a", merge, `{"metadata":{"finalizers":["_"]}}`, 422, "metadata.finalizers: Invalid value: \"_\": name part must consist of"},
		{"PUT", "/apis/apps/v1/namespaces/default/deployments/x/scale", "", `{"kind":"Scale","apiVersion":"autoscaling/v1","metadata":{"name":"x","namespace":"other"}}`, 400,
			"the namespace of the provided object does not match the namespace sent on the request"},
		{"PATCH", maps + "/a", merge, `{"metadata":null}`, 400, "the name of the object (a based on URL) was undeterminable: name must be provided"},
		{"PATCH", maps + "/a?fieldValidation=Strict", ops, `[{"op":"test","path":"/metadata/name","value":"a","odd":1}]`, 422, `json patch unknown field "[0].odd"`},
		{"POST", maps, "", `{"metadata":{"name":"x","finalizers":["plain"]}}`, 422, "metadata.finalizers[0]: Invalid value: \"plain\": name is neither a standard finalizer name nor is it fully qualified"},
		{"GET", maps + "/a?resourceVersion=x", "", "", 500, `resourceVersion: Invalid value: "x": strconv.ParseUint: parsing "x": invalid syntax`},
		{"GET", maps + "?watch=1&resourceVersion=x", "", "", 500, `resourceVersion: Invalid value: "x"`},
		{"GET", maps + "?watch=1&continue=x", "", "", 422, "resourceVersionMatch is forbidden when continue is provided"},
		{"GET", "/api/v1/watch/bindings", "", "", 404, "the server could not find the requested resource"},
		{"GET", "/api/v1/watch/namespaces/default/configmaps/a/status", "", "", 404, "the server could not find the requested resource"},
		{"POST", "/api/v1/watch/namespaces/default/configmaps", "", "{}", 405, "the server does not allow this method on the requested resource"},
		{"PUT", maps, "", configMap("a"), 405, ""},
		{"PATCH", maps + "/a", "application/json", `{}`, 415, ""},
		{"PATCH", maps + "/a", merge, `[]`, 400, ""},
		{"PATCH", maps + "/a", merge, `{"data":{"a":1}}`, 422, "cannot unmarshal number"},
		{"PATCH", maps + "/a", merge, `{"metadata":{"name":"b"}}`, 400, "does not match the name on the URL"},
		{"PATCH", maps + "/a", merge, `{"metadata":{"resourceVersion":"1"}}`, 409, "the object has been modified"},
		{"PATCH", maps + "/a", strategic, `{"data":{"a":1}}`, 422, "cannot convert int64 to string"},
		{"PATCH", maps + "/a?fieldValidation=Strict", strategic, `{"foo":1}`, 422, `unknown field "foo"`},
		{"PATCH", maps + "/a", ops, `[{"op":"test","path":"/data/k","value":"w"}]`, 422, "the server rejected our request due to an error in our request"},
		{"PATCH", maps + "/a", ops, `[` + strings.Repeat(`{"op":"test","path":"/data/k","value":"v"},`, 10000) + `{"op":"test","path":"/data/k","value":"v"}]`, 413, "The allowed maximum operations in a JSON patch is 10000, got 10001"},
		{"PATCH", maps + "/a", apply, `{}`, 422, "fieldManager: Required value: is required for apply patch"},
		{"PATCH", maps + "/a?fieldManager=m", apply, "a: [", 400, "error decoding YAML"},
		{"PATCH", maps + "/a?fieldManager=m", apply, bomb, 400, ""},
		{"PATCH", maps + "/a?fieldManager=m", apply, `{"apiVersion":"v1","kind":"ConfigMap","foo":1}`, 500, "field not declared in schema"},
		{"PATCH", maps + "/b?fieldManager=m", apply, `{"apiVersion":"v1","kind":"ConfigMap"}`, 400, "name must be provided"},
		{"PATCH", maps + "/a?fieldManager=m", apply, `{"apiVersion":"v1","kind":"ConfigMap","data":{"k":"w"}}`, 409, `Apply failed with 1 conflict: conflict with "tester" using v1: .data.k`},
		{"PATCH", maps + "/a?force=true", merge, `{}`, 422, "may not be specified for non-apply patch"},
		{"DELETE", maps + "/a", "", `{"preconditions":{"uid":"x"}}`, 409, "the UID in the precondition (x) does not match the UID in record"},
		{"DELETE", maps + "/a", "", `{"propagationPolicy":"Nope"}`, 422, "propagationPolicy"},
		{"GET", maps + "?limit=x", "", "", 400, "invalid syntax"},
		{"GET", maps + "?labelSelector=a%3D%3D%3Db", "", "", 400, "unable to parse requirement"},
		{"GET", maps + "?fieldSelector=spec.foo%3Db", "", "", 400, "is not a known field selector"},
		{"GET", "/api/v1/pods?fieldSelector=spec.foo%3Db", "", "", 400, "field label not supported: spec.foo"},
		{"GET", "/apis/batch/v1/jobs?fieldSelector=spec.foo%3Db", "", "", 400, `field label "spec.foo" not supported for Job`},
		{"GET", "/apis/events.k8s.io/v1/events?fieldSelector=source%3Db", "", "", 400, "field label not supported: source"},
		{"GET", "/api/v1/namespaces?fieldSelector=name%3Db", "", "", 400, "field label not supported: name"},
		{"POST", maps, "text/yaml", `{}`, 415, "unknown format"},
		{"GET", "/api/v1/nodes?fieldSelector=metadata.namespace%3Db", "", "", 400, "field label not supported: metadata.namespace"},
		{"GET", "/api/v1/persistentvolumes?fieldSelector=name%3Db", "", "", 400, "is not a known field selector"},
		{"GET", "/apis/apps/v1/replicasets?fieldSelector=status.replicas%3D1", "", "", 400, "is not a known field selector"},
		{"GET", maps + "?continue=%21", "", "", 400, "continue key is not valid"},
		{"GET", maps + "?continue=%21&resourceVersion=1", "", "", 400, "continue key is not valid"}, // whatever else is wrong
		{"GET", maps + "?continue=%21&resourceVersion=abc", "", "", 400, "continue key is not valid"},
		{"GET", maps + "?limit=", "", "", 400, `strconv.ParseInt: parsing "": invalid syntax`},
		{"GET", maps + "?timeoutSeconds=", "", "", 400, `strconv.ParseInt: parsing "": invalid syntax`},
		{"GET", maps + "?resourceVersion=%2B1", "", "", 400, `parsing "+1": invalid syntax`},
		{"DELETE", maps + "/none-such?gracePeriodSeconds=", "", "", 400, `strconv.ParseInt: parsing "": invalid syntax`},
		{"DELETE", maps + "/a?resourceVersion=99", "", "", 409, "the ResourceVersion in the precondition (99) does not match"},
		{"DELETE", maps + "/a?uid=x", "", "", 409, "the UID in the precondition (x) does not match"},
		{"GET", maps + "?resourceVersion=x", "", "", 400, "invalid resource version"},
		{"GET", maps + "?resourceVersionMatch=Exact", "", "", 422, "resourceVersionMatch is forbidden unless resourceVersion is provided"},
		{"GET", maps + "?sendInitialEvents=true", "", "", 422, "sendInitialEvents is forbidden for list"},
		{"GET", "/api/v1/namespaces/default/nope", "", "", 404, "the server could not find the requested resource"},
		{"GET", maps + "/a/scale", "", "", 404, "the server could not find the requested resource"},
		{"DELETE", "/api/v1/configmaps", "", "", 405, "the server does not allow this method on the requested resource"},
		{"POST", "/api/v1/configmaps", "", configMap("x"), 405, "the server does not allow this method on the requested resource"},
		{"OPTIONS", maps, "", "", 405, "the server does not allow this method on the requested resource"},
		{"GET", "/api/v1/bindings", "", "", 404, "the server could not find the requested resource"},
		{"GET", "/api/v1/namespaces/default/bindings", "", "", 405, "the server does not allow this method on the requested resource"},
		{"GET", "/api/v1/namespaces/default/bindings/x", "", "", 404, "the server could not find the requested resource"},
		{"GET", "/api/v1/namespaces/default/pods/x/status/y", "", "", 404, "the server could not find the requested resource"},
		{"POST", "/api", "", "", 405, "the server does not allow this method on the requested resource"},
		{"PUT", "/api/v1", "", "", 405, "the server does not allow this method on the requested resource"},
		{"PUT", maps + "/a", "", `{"metadata":{"name":"a","resourceVersion":"abc"}}`, 500, `strconv.ParseUint: parsing "abc": invalid syntax`},
		{"PUT", maps + "/a", "", `{"metadata":{"name":"a","generateName":"Bad_"}}`, 422, `metadata.generateName: Invalid value: "Bad_": a lowercase RFC 1123 subdomain`},
		{"PATCH", maps + "/a", merge, `{"kind":"Pod"}`, 422, `no kind "Pod" is registered for version "v1"`},
		{"DELETE", maps + "/a", "", `{"kind":"Nope","apiVersion":"v1"}`, 400, `no kind "Nope" is registered for version "v1"`},
		{"POST", maps, "application/vnd.kubernetes.protobuf", "", 400, "the object provided is unrecognized (must be of type ConfigMap): empty data (<empty>)"},
		{"POST", maps, "application/vnd.kubernetes.protobuf", "k8s\x00", 400, "(must be of type ConfigMap): empty body (6b387300)"},
		{"POST", maps, "application/vnd.kubernetes.protobuf", "k8s\x00\x0a\x0f", 400, "(must be of type ConfigMap): unexpected EOF (6b3873000a0f)"},
		{"POST", maps, "application/vnd.kubernetes.protobuf", "k8s\x00\x12\x01\xff", 400, `ConfigMap in version "v1" cannot be handled as a ConfigMap: unexpected EOF`},
		{"DELETE", maps + "/nope", "", `{"kind":"DeleteOptions","apiVersion":"v2"}`, 404, `configmaps "nope" not found`},
		{"PUT", "/apis/apps/v1/namespaces/default/deployments/x/scale", "", `{}`, 400, "the name of the object (x based on URL) was undeterminable: name must be provided"},
		{"POST", reviews + "selfsubjectaccessreviews", "", `{"spec":{"resourceAttributes":{"fieldSelector":{}}}}`, 422, "spec.resourceAttributes.fieldSelector.requirements: Required value: when spec.resourceAttributes.fieldSelector is specified, requirements or rawSelector is required"},
		{"POST", reviews + "selfsubjectaccessreviews", "", `{"spec":{"resourceAttributes":{"labelSelector":{"rawSelector":"a=b","requirements":[{"key":"a","operator":"Exists"}]}}}}`, 422, `spec.resourceAttributes.labelSelector.rawSelector: Invalid value: "a=b": may not specified at the same time as requirements`},
	} {
		var headers []string
		if c.kind != "" {
			headers = []string{"Content-Type", c.kind}
		}
		r := h.do(c.method, c.path, c.body, headers...)
		st := r.status(t)
		if r.code != c.code || !strings.Contains(st.Message, c.message) {
			t.Errorf("%s %s %.60s\n got %d %.300s\nwant %d …%s…", c.method, c.path, c.body, r.code, st.Message, c.code, c.message)
		}
	}
	// What is to be deleted is said by the body alone, when there is one.
	h.must(201, "POST", maps, configMap("b"))
	h.must(200, "DELETE", maps+"/b?dryRun=All", `{}`)
	if l := h.list(maps); l.names() != "a" {
		t.Errorf("after all that there are %s", l.names())
	}
	if r := h.do("GET", "//api/v1/namespaces", ""); r.code != 404 {
		t.Errorf("an empty first element: %d", r.code)
	}
	if r := h.do("HEAD", maps+"/a", ""); r.code != 405 {
		t.Errorf("HEAD: %d", r.code)
	}
	// A strategic patch is of the value, in which kind and version have no place.
	h.must(200, "PATCH", maps+"/a", `{"kind":"Pod"}`, "Content-Type", strategic)
	if r := h.do("GET", maps+"/a?pretty=1", ""); !strings.HasSuffix(string(r.body), "\n}") {
		t.Errorf("indented: it ends with %q", r.body[len(r.body)-3:])
	}
	if r := h.do("GET", maps+"/a", "", "Accept", "text/html"); r.code != 406 || !strings.HasSuffix(string(r.body), "\n}") {
		t.Errorf("text/html: %d %s", r.code, r.body)
	}
	for _, accept := range []string{"application/vnd.kubernetes.protobuf;as=PartialObjectMetadata;g=meta.k8s.io;v=v1", "application/yaml;as=Table;g=meta.k8s.io;v=v1"} {
		if r := h.do("GET", maps+"/none", "", "Accept", accept); r.code != 404 || !strings.HasPrefix(string(r.body), "{\n  \"kind\": \"Status\"") {
			t.Errorf("%s: %d %s", accept, r.code, r.body)
		}
	}
	if r := h.do("GET", maps+"/none", "", "Accept", "application/json;as=Table;g=meta.k8s.io;v=v1,application/yaml"); !strings.HasPrefix(string(r.body), "apiVersion: v1\n") {
		t.Errorf("a Status in the second form: %s", r.body)
	}
	if r := h.must(201, "POST", maps, `{"metadata":{"name":"w"},"foo":1}`); r.header.Get("Warning") != `299 - "unknown field \"foo\""` {
		t.Errorf("warning: %q", r.header.Get("Warning"))
	}
}

func TestDeletionTakesItsTime(t *testing.T) {
	h := newHarness(t)
	h.must(201, "POST", maps, `{"metadata":{"name":"f","finalizers":["x.io/keep"]}}`)
	meta := func(r reply) map[string]any { return r.object(t)["metadata"].(map[string]any) }
	if m := meta(h.must(200, "DELETE", maps+"/f", `{"propagationPolicy":"Foreground"}`)); m["deletionTimestamp"] == nil || fmt.Sprint(m["finalizers"]) != "[x.io/keep foregroundDeletion]" {
		t.Errorf("held by a finalizer: %v", m)
	}
	h.must(422, "PATCH", maps+"/f", `{"metadata":{"finalizers":["x.io/keep","foregroundDeletion","x.io/more"]}}`, "Content-Type", "application/merge-patch+json")
	h.must(200, "PATCH", maps+"/f", `{"metadata":{"finalizers":null}}`, "Content-Type", "application/merge-patch+json")
	h.must(404, "GET", maps+"/f", "")

	const pods = "/api/v1/namespaces/default/pods"
	h.must(201, "POST", pods, `{"metadata":{"name":"p"},"spec":{"nodeName":"n","containers":[{"name":"c","image":"i"}]}}`)
	if m := meta(h.must(200, "DELETE", pods+"/p", "")); m["deletionGracePeriodSeconds"] != 30.0 || m["generation"] != 2.0 {
		t.Errorf("graceful: %v", m)
	}
	if m := meta(h.must(200, "DELETE", pods+"/p", `{"gracePeriodSeconds":60}`)); m["deletionGracePeriodSeconds"] != 30.0 {
		t.Errorf("longer: %v", m)
	}
	if m := meta(h.must(200, "DELETE", pods+"/p", `{"gracePeriodSeconds":5}`)); m["deletionGracePeriodSeconds"] != 5.0 {
		t.Errorf("shorter: %v", m)
	}
	h.must(200, "DELETE", pods+"/p", `{"gracePeriodSeconds":0}`)
	h.must(404, "GET", pods+"/p", "")
}

func FuzzToken(f *testing.F) {
	f.Add(token{Rev: 7, Start: "default/a\x00"}.String())
	f.Add("!")
	f.Fuzz(func(t *testing.T, s string) {
		if k, err := parseToken(s); err == nil {
			if again, err := parseToken(k.String()); err != nil || again != k {
				t.Errorf("%q reads as %v, and that as %v, %v", s, k, again, err)
			}
		}
	})
}

// Whoever deletes a Job without saying what becomes of its pods leaves them, and is told so.
func TestJobsLeaveTheirPods(t *testing.T) {
	const jobs = "/apis/batch/v1/namespaces/default/jobs"
	h := newHarness(t)
	for i, c := range []struct {
		query, body string
		finalizers  string // of the object that stays
		warned      bool
	}{
		{"", "", "orphan", true},
		{"", `{"kind":"DeleteOptions","apiVersion":"v1"}`, "orphan", true},
		{"?propagationPolicy=Orphan", "", "orphan", false},
		{"?orphanDependents=true", "", "orphan", false},
		{"?propagationPolicy=Background", "", "", false},
		{"?propagationPolicy=Foreground", "", "foregroundDeletion", false},
	} {
		name := fmt.Sprintf("j%d", i)
		h.must(201, "POST", jobs, fmt.Sprintf(`{"apiVersion":"batch/v1","kind":"Job","metadata":{"name":%q},"spec":{"template":{"spec":{"restartPolicy":"Never","containers":[{"name":"c","image":"i"}]}}}}`, name))
		r := h.must(200, "DELETE", jobs+"/"+name+c.query, c.body)
		var left struct{ Metadata metav1.ObjectMeta }
		if err := json.Unmarshal(r.body, &left); err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(left.Metadata.Finalizers, " "); got != c.finalizers {
			t.Errorf("%s %s: finalizers %q, want %q", c.query, c.body, got, c.finalizers)
		}
		if warned := strings.Contains(r.header.Get("Warning"), "child pods are preserved by default"); warned != c.warned {
			t.Errorf("%s %s: warning %q", c.query, c.body, r.header.Get("Warning"))
		}
	}
	h.must(201, "POST", jobs, `{"apiVersion":"batch/v1","kind":"Job","metadata":{"name":"many"},"spec":{"template":{"spec":{"restartPolicy":"Never","containers":[{"name":"c","image":"i"}]}}}}`)
	if r := h.must(200, "DELETE", jobs, ""); r.header.Get("Warning") == "" {
		t.Error("a whole collection was deleted without a warning")
	}
}

// A Table goes with one and with many; metadata has a kind for each, which must be the right one.
func TestMetadataOfOneAndOfMany(t *testing.T) {
	h := newHarness(t)
	h.must(201, "POST", maps, configMap("a"))
	as := func(kind string) string { return "application/json;as=" + kind + ";v=v1;g=meta.k8s.io" }
	for _, c := range []struct {
		path, accept string
		code         int
		says         string
	}{
		{maps, as("PartialObjectMetadataList"), 200, ""},
		{maps + "/a", as("PartialObjectMetadata"), 200, ""},
		{maps, as("PartialObjectMetadata"), 406, "you requested PartialObjectMetadata, but the requested object is a list (ConfigMapList)"},
		{maps + "/a", as("PartialObjectMetadataList") + ",application/json", 406, "you requested PartialObjectMetadataList, but the requested object is not a list (ConfigMap)"},
		{maps, "application/*", 406, "Available representations"},
		{maps + "/a", "application/*, application/json", 200, ""},
		{maps, "application/json;stream=bogus", 406, "only the following media types are accepted"},
		{maps + "?watch=1&timeoutSeconds=1", "application/yaml", 406, "application/json;stream=watch,"},
		{"/api", "application/*", 406, "Available representations"},
		{"/apis", "application/*", 200, ""},
	} {
		if r := h.must(c.code, "GET", c.path, "", "Accept", c.accept); c.code != 200 && !strings.Contains(string(r.body), c.says) {
			t.Errorf("%s %s: %s", c.path, c.accept, r.body)
		}
	}
	// The two versions of the list number their fields differently.
	for version, list := range map[string]interface {
		Unmarshal([]byte) error
		GetResourceVersion() string
	}{"v1": &metav1.PartialObjectMetadataList{}, "v1beta1": &metav1beta1.PartialObjectMetadataList{}} {
		r := h.must(200, "GET", maps, "", "Accept", "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;g=meta.k8s.io;v="+version)
		raw, _, err := codec.Unwrap(r.body)
		if err != nil || list.Unmarshal(raw) != nil {
			t.Fatalf("%s: %v", version, err)
		}
		if text, _ := json.Marshal(list); list.GetResourceVersion() == "" || !strings.Contains(string(text), `"name":"a"`) {
			t.Errorf("%s: %s", version, text)
		}
	}
}

// A Table and metadata are those of the kind, not of the version that is asked for.
func TestFormsOfVersions(t *testing.T) {
	const scalers = "/namespaces/default/horizontalpodautoscalers"
	h := newHarness(t)
	h.must(201, "POST", "/apis/autoscaling/v2"+scalers, `{"apiVersion":"autoscaling/v2","kind":"HorizontalPodAutoscaler","metadata":{"name":"h"},"spec":{"maxReplicas":3,
		"scaleTargetRef":{"apiVersion":"apps/v1","kind":"Deployment","name":"x"},"metrics":[{"type":"Resource","resource":{"name":"memory","target":{"type":"AverageValue","averageValue":"1Gi"}}},
		{"type":"Resource","resource":{"name":"cpu","target":{"type":"Utilization","averageUtilization":50}}}]}}`)
	for _, form := range []string{"application/json;as=Table;v=v1;g=meta.k8s.io", "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io", "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io"} {
		path := scalers
		if strings.Contains(form, "Metadata;") {
			path += "/h"
		}
		v1, v2 := h.must(200, "GET", "/apis/autoscaling/v1"+path, "", "Accept", form), h.must(200, "GET", "/apis/autoscaling/v2"+path, "", "Accept", form)
		if string(v1.body) != string(v2.body) {
			t.Errorf("%s\nv1 %s\nv2 %s", form, v1.body, v2.body)
		}
	}
	r := h.must(200, "GET", "/apis/autoscaling/v1"+scalers+"?includeObject=Object", "", "Accept", "application/json;as=Table;v=v1;g=meta.k8s.io")
	if !strings.Contains(string(r.body), `"apiVersion":"autoscaling/v1"`) {
		t.Errorf("the whole object is of another version: %s", r.body)
	}
	if r := h.must(200, "GET", "/apis/rbac.authorization.k8s.io/v1/clusterroles", "", "Accept", "application/json;as=Table;v=v1;g=meta.k8s.io"); !strings.Contains(string(r.body), `"rows":null`) {
		t.Errorf("a kind without columns of its own: %s", r.body)
	}
}

// What a Scale says of the object that it stands for holds for that.
func TestScaleOfAnotherObject(t *testing.T) {
	const sets, merge = "/apis/apps/v1/namespaces/default/replicasets", "application/merge-patch+json"
	h := newHarness(t)
	h.must(201, "POST", sets, `{"metadata":{"name":"a"},"spec":{"selector":{"matchLabels":{"a":"b"}},"template":{"metadata":{"labels":{"a":"b"}},"spec":{"containers":[{"name":"c","image":"i"}],
		"topologySpreadConstraints":[{"maxSkew":1,"topologyKey":"z","whenUnsatisfiable":"DoNotSchedule"}]}},"replicas":2}}`)
	if st := h.do("PATCH", sets+"/a/scale", `{"metadata":{"uid":"x"}}`, "Content-Type", merge).status(t); st.Code != 409 || !strings.Contains(st.Message, "UID in precondition: x") {
		t.Errorf("another uid: %+v", st)
	}
	const apply = "application/apply-patch+yaml"
	for _, c := range []struct{ body, media, want string }{
		{`{"metadata":{"uid":"x"}}`, merge, `Operation cannot be fulfilled on replicasets/scale.apps "a": Precondition failed: UID in precondition: x`},
		{`{"kind":"Scale","apiVersion":"autoscaling/v1","metadata":{"uid":"x"},"spec":{"replicas":1}}`, apply, `Operation cannot be fulfilled on replicasets/scale.apps "a": Precondition failed: UID in precondition: x`},
		{`{"metadata":{"resourceVersion":"1"}}`, merge, `Operation cannot be fulfilled on replicasets.apps "a": the object has been modified`},
		{`{"kind":"Scale","apiVersion":"autoscaling/v1","metadata":{"resourceVersion":"1"},"spec":{"replicas":2}}`, apply, `Operation cannot be fulfilled on replicasets.apps "a": the object has been modified`},
		{`{"kind":"Scale","apiVersion":"autoscaling/v1","spec":{"replicas":7}}`, apply, `Apply failed with 1 conflict: conflict with "tester" using autoscaling/v1: .spec.replicas`},
	} {
		if st := h.do("PATCH", sets+"/a/scale?fieldManager=m", c.body, "Content-Type", c.media).status(t); st.Code != 409 || !strings.HasPrefix(st.Message, c.want) {
			t.Errorf("%s: want 409 %s, got %d %s", c.body, c.want, st.Code, st.Message)
		}
	}
	if st := h.do("PATCH", sets+"/a/scale", `{"kind":"X"}`, "Content-Type", merge).status(t); st.Code != 422 || !strings.Contains(st.Message, `no kind "X" is registered for version "autoscaling/v1"`) {
		t.Errorf("another kind: %+v", st)
	}
	if r := h.must(200, "PATCH", sets+"/a/scale", `{"spec":{"replicas":3}}`, "Content-Type", merge); !strings.Contains(r.header.Get("Warning"), "a null labelSelector results in matching no pod") {
		t.Errorf("warning: %q", r.header.Get("Warning"))
	}
}

// A field that a Scale does not have is treated as fieldValidation says, as in any other patch.
func TestUnknownFieldsOfScale(t *testing.T) {
	const path = "/apis/apps/v1/namespaces/default/deployments"
	h := newHarness(t)
	h.must(201, "POST", path, `{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"d"},"spec":{"selector":{"matchLabels":{"a":"b"}},"template":{"metadata":{"labels":{"a":"b"}},"spec":{"containers":[{"name":"c","image":"i"}]}}}}`)
	for _, media := range []string{"application/merge-patch+json", "application/strategic-merge-patch+json"} {
		const patch = `{"spec":{"replicas":2},"status":{"bogus":1}}`
		if r := h.must(200, "PATCH", path+"/d/scale", patch, "Content-Type", media); !strings.Contains(r.header.Get("Warning"), "status.bogus") {
			t.Errorf("%s: warning %q", media, r.header.Get("Warning"))
		}
		if r := h.must(200, "PATCH", path+"/d/scale?fieldValidation=Ignore", patch, "Content-Type", media); r.header.Get("Warning") != "" {
			t.Errorf("%s: warning %q of what is ignored", media, r.header.Get("Warning"))
		}
		h.must(422, "PATCH", path+"/d/scale?fieldValidation=Strict", patch, "Content-Type", media)
	}
}

// The generation of a CSIDriver counts the changes of its spec, from none on.
func TestGenerationOfDrivers(t *testing.T) {
	const path = "/apis/storage.k8s.io/v1/csidrivers"
	h := newHarness(t)
	generation := func(r reply) any { return r.object(t)["metadata"].(map[string]any)["generation"] }
	if g := generation(h.must(201, "POST", path, `{"apiVersion":"storage.k8s.io/v1","kind":"CSIDriver","metadata":{"name":"d.example.com"}}`)); g != nil {
		t.Errorf("created with generation %v", g)
	}
	for i, patch := range []string{`{"spec":{"podInfoOnMount":true}}`, `{"metadata":{"labels":{"a":"b"}}}`, `{"spec":{"podInfoOnMount":false}}`} {
		if g := generation(h.must(200, "PATCH", path+"/d.example.com", patch, "Content-Type", "application/merge-patch+json")); fmt.Sprint(g) != []string{"1", "1", "2"}[i] {
			t.Errorf("after %s: generation %v", patch, g)
		}
	}
}

// What is only tried has no revision, in whatever version it is asked for.
func TestDryRunHasNoRevision(t *testing.T) {
	h := newHarness(t)
	for path, body := range map[string]string{
		maps: configMap("a"),
		"/apis/events.k8s.io/v1/namespaces/default/events":                 `{"apiVersion":"events.k8s.io/v1","kind":"Event","metadata":{"name":"e"},"regarding":{"kind":"Pod","name":"p","namespace":"default"},"eventTime":"2026-01-02T03:04:05.000000Z","reportingController":"c","reportingInstance":"i","action":"Act","reason":"R","type":"Normal"}`,
		"/apis/autoscaling/v1/namespaces/default/horizontalpodautoscalers": `{"apiVersion":"autoscaling/v1","kind":"HorizontalPodAutoscaler","metadata":{"name":"h"},"spec":{"maxReplicas":3,"scaleTargetRef":{"apiVersion":"apps/v1","kind":"Deployment","name":"x"}}}`,
	} {
		if rv, ok := h.must(201, "POST", path+"?dryRun=All", body).object(t)["metadata"].(map[string]any)["resourceVersion"]; ok {
			t.Errorf("%s: resourceVersion %q", path, rv)
		}
	}
}

// What stands for a field of an earlier version is shown with the object, but not with its metadata alone.
func TestMetadataWithoutDisguisedFields(t *testing.T) {
	const path = "/apis/apps/v1/namespaces/default/daemonsets"
	h := newHarness(t)
	h.must(201, "POST", path, `{"apiVersion":"apps/v1","kind":"DaemonSet","metadata":{"name":"a","annotations":{"x":"y"}},"spec":{"selector":{"matchLabels":{"a":"b"}},"template":{"metadata":{"labels":{"a":"b"}},"spec":{"containers":[{"name":"c","image":"i"}]}}}}`)
	const one, all = ";as=PartialObjectMetadata;v=v1;g=meta.k8s.io", ";as=PartialObjectMetadataList;v=v1;g=meta.k8s.io"
	for _, c := range []struct {
		path, accept string
		shown        bool
	}{
		{"/a", "application/json", true},
		{"/a", "application/json" + one, false},
		{"/a", "application/vnd.kubernetes.protobuf" + one, false},
		{"", "application/json", true},
		{"", "application/json" + all, false},
		{"", "application/vnd.kubernetes.protobuf" + all, false},
		{"", "application/json;as=Table;v=v1;g=meta.k8s.io", false},
		{"?includeObject=Object", "application/json;as=Table;v=v1;g=meta.k8s.io", true},
		{"?watch=1&timeoutSeconds=1", "application/json" + one, false},
	} {
		// Managed fields name the annotation with "f:" before it.
		body := strings.ReplaceAll(string(h.must(200, "GET", path+c.path, "", "Accept", c.accept).body), "f:deprecated.", "")
		if got := strings.Contains(body, "deprecated.daemonset.template.generation"); got != c.shown {
			t.Errorf("%q as %s: shown %v, want %v:\n%s", c.path, c.accept, got, c.shown, body)
		}
	}
}

// The template's number of a DaemonSet is an annotation that belongs to whoever creates or replaces the object.
func TestOwnerOfTheTemplateGeneration(t *testing.T) {
	const path = "/apis/apps/v1/namespaces/default/daemonsets"
	const spec = `"spec":{"selector":{"matchLabels":{"a":"b"}},"template":{"metadata":{"labels":{"a":"b"}},"spec":{"containers":[{"name":"c","image":"i"}]}}}`
	h := newHarness(t)
	owners := func(r reply) (out []string) {
		var o struct{ Metadata metav1.ObjectMeta }
		if err := json.Unmarshal(r.body, &o); err != nil {
			t.Fatal(err)
		}
		if o.Metadata.Annotations["deprecated.daemonset.template.generation"] != "1" {
			t.Errorf("annotations %v", o.Metadata.Annotations)
		}
		for _, m := range o.Metadata.ManagedFields {
			if strings.Contains(string(m.FieldsV1.Raw), "f:deprecated.daemonset.template.generation") {
				out = append(out, m.Manager)
			}
		}
		return out
	}
	for _, c := range []struct {
		method, path, body, media, want string
	}{
		{"POST", "?fieldManager=maker", `{"apiVersion":"apps/v1","kind":"DaemonSet","metadata":{"name":"a"},` + spec + `}`, "application/json", "maker"},
		{"PATCH", "/a?fieldManager=other", `{"metadata":{"labels":{"x":"y"}}}`, "application/merge-patch+json", "maker"},
		{"PUT", "/a?fieldManager=later", `{"apiVersion":"apps/v1","kind":"DaemonSet","metadata":{"name":"a"},` + spec + `}`, "application/json", "later"},
		{"PATCH", "/b?fieldManager=applier", `{"apiVersion":"apps/v1","kind":"DaemonSet","metadata":{"name":"b"},` + spec + `}`, "application/apply-patch+yaml", ""},
	} {
		r := h.do(c.method, path+c.path, c.body, "Content-Type", c.media)
		if got := strings.Join(owners(r), " "); r.code >= 300 || got != c.want {
			t.Errorf("%s %s: %d, owned by %q, want %q", c.method, c.path, r.code, got, c.want)
		}
	}
}

// Nobody would ever take the garbage collector's finalizers from an Event.
func TestEventsHaveNoDependents(t *testing.T) {
	const old, young = "/api/v1/namespaces/default/events", "/apis/events.k8s.io/v1/namespaces/default/events"
	h := newHarness(t)
	for i, path := range []string{old, young} {
		for _, query := range []string{"", "?propagationPolicy=Foreground", "?propagationPolicy=Orphan", "?orphanDependents=true"} {
			name := fmt.Sprintf("e%d", i)
			h.must(201, "POST", old, fmt.Sprintf(`{"apiVersion":"v1","kind":"Event","metadata":{"name":%q},"involvedObject":{"kind":"Pod","name":"p","namespace":"default"}}`, name))
			h.must(200, "DELETE", path+"/"+name+query, "")
			h.must(404, "GET", path+"/"+name, "")
		}
	}
}

// Names that are no names would be other keys; bodies that are too large are read and refused.
func TestPathsAndBodiesOutOfBounds(t *testing.T) {
	h := newHarness(t)
	h.must(201, "POST", maps, configMap("a"))
	for _, method := range []string{"GET", "DELETE"} {
		for _, name := range []string{"%2e%2e", "%2e", "a%25"} {
			if r := h.must(400, method, maps+"/"+name, ""); !strings.Contains(string(r.body), "Name parameter invalid: ") {
				t.Errorf("%s %s: %s", method, name, r.body)
			}
		}
	}
	h.must(413, "POST", maps, `{"metadata":{"name":"b"},"data":{"a":"`+strings.Repeat("x", 4<<20)+`"}}`)
	h.must(404, "GET", "/apis//apps/v1", "")
}

// Conflicts are told before names; what an applied object in no namespace says of one does not count.
func TestOrderOfApplyFaults(t *testing.T) {
	const apply = "application/apply-patch+yaml"
	h := newHarness(t)
	h.must(201, "PATCH", maps+"/a?fieldManager=one", `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"a"},"data":{"k":"1"}}`, "Content-Type", apply)
	h.must(409, "PATCH", maps+"/a?fieldManager=two", `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"b"},"data":{"k":"2"}}`, "Content-Type", apply)
	h.must(400, "PATCH", maps+"/a?fieldManager=two", `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"b"}}`, "Content-Type", apply)
	h.must(400, "PATCH", maps+"/new?fieldManager=two", `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"b"}}`, "Content-Type", apply)
	for _, text := range []string{`null`, `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"b"}}`} {
		if r := h.must(400, "PATCH", maps+"/new?fieldManager=two", text, "Content-Type", apply); !strings.Contains(string(r.body), "invalid object type") {
			t.Errorf("%s: %s", text, r.body)
		}
	}
	if r := h.must(400, "PATCH", maps+"/a?fieldManager=two", "a: b: c", "Content-Type", apply); !strings.Contains(string(r.body), "error decoding YAML: error converting YAML to JSON: yaml: ") {
		t.Errorf("%s", r.body)
	}
	if r := h.must(400, "PATCH", maps+"/a?fieldManager=two", "[]", "Content-Type", apply); !strings.Contains(string(r.body), "error decoding YAML: error unmarshaling JSON: while decoding JSON: json: cannot unmarshal array into Go value of type map[string]interface {}") {
		t.Errorf("%s", r.body)
	}
	h.must(201, "POST", "/api/v1/nodes", `{"metadata":{"name":"n"}}`)
	h.must(200, "PATCH", "/api/v1/nodes/n?fieldManager=one", `{"apiVersion":"v1","kind":"Node","metadata":{"name":"n","namespace":"x"},"spec":{"unschedulable":true}}`, "Content-Type", apply)
	h.must(200, "PATCH", "/api/v1/nodes/n", `{"metadata":{"namespace":"x"}}`, "Content-Type", "application/merge-patch+json")
	h.must(500, "PATCH", maps+"/a?fieldManager=two", `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"a","creationTimestamp":"x"}}`, "Content-Type", apply)
}

// An empty list that is written is null for the next writer, as it is in the store.
func TestEmptyListsAreStoredAsNull(t *testing.T) {
	const path, apply = "/apis/rbac.authorization.k8s.io/v1/namespaces/default/roles/r", "application/apply-patch+yaml"
	const role = `{"apiVersion":"rbac.authorization.k8s.io/v1","kind":"Role","metadata":{"name":"r"},"rules":[]}`
	h := newHarness(t)
	h.must(201, "PATCH", path+"?fieldManager=one", role, "Content-Type", apply)
	h.must(409, "PATCH", path+"?fieldManager=two", role, "Content-Type", apply)
	h.must(200, "PATCH", path+"?fieldManager=two", `{}`, "Content-Type", "application/strategic-merge-patch+json")
	if r := h.must(200, "GET", path, ""); strings.Contains(string(r.body), `"two"`) {
		t.Errorf("who changed nothing owns something: %s", r.body)
	}
}

// A collection is deleted by pages when the client asks for pages, and a precondition that fails is a fault.
func TestCollectionsAreDeletedByPages(t *testing.T) {
	h := newHarness(t)
	for _, name := range []string{"a", "b", "c"} {
		h.must(201, "POST", maps, configMap(name))
	}
	h.must(409, "DELETE", maps, `{"preconditions":{"uid":"x"}}`)
	var page struct {
		Metadata metav1.ListMeta
		Items    []metav1.PartialObjectMetadata
	}
	query := "?limit=2"
	for i, want := range []int{2, 1} {
		page.Metadata, page.Items = metav1.ListMeta{}, nil
		if err := json.Unmarshal(h.must(200, "DELETE", maps+query, "").body, &page); err != nil {
			t.Fatal(err)
		}
		if len(page.Items) != want || (page.Metadata.Continue == "") != (i == 1) {
			t.Errorf("page %d: %d items, %+v", i, len(page.Items), page.Metadata)
		}
		query = "?limit=2&continue=" + page.Metadata.Continue
	}
	h.must(400, "GET", maps+"/a?export=true", "")
	h.must(200, "DELETE", maps+"?dryRun=All", `{"ignoreStoreReadErrorWithClusterBreakingPotential":true,"dryRun":["All"]}`)
}

// A Scale has the forms that every object has.
func TestFormsOfScale(t *testing.T) {
	const path = "/apis/apps/v1/namespaces/default/deployments"
	h := newHarness(t)
	h.must(201, "POST", path, `{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"d"},"spec":{"replicas":2,"selector":{"matchLabels":{"a":"b"}},"template":{"metadata":{"labels":{"a":"b"}},"spec":{"containers":[{"name":"c","image":"i"}]}}}}`)
	as := func(kind string) string { return "application/json;as=" + kind + ";v=v1;g=meta.k8s.io" }
	var table metav1.Table
	if err := json.Unmarshal(h.must(200, "GET", path+"/d/scale", "", "Accept", as("Table")).body, &table); err != nil {
		t.Fatal(err)
	}
	if len(table.ColumnDefinitions) != 4 || len(table.Rows) != 1 || fmt.Sprint(table.Rows[0].Cells[:3]) != "[d 2 0]" || !strings.Contains(string(table.Rows[0].Object.Raw), `"kind":"PartialObjectMetadata"`) {
		t.Errorf("%+v", table)
	}
	if o := h.must(200, "GET", path+"/d/scale", "", "Accept", as("PartialObjectMetadata")).object(t); o["kind"] != "PartialObjectMetadata" || o["spec"] != nil {
		t.Errorf("%v", o)
	}
	h.must(400, "GET", path+"/d/scale?includeObject=x", "", "Accept", as("Table"))
	h.must(406, "GET", path+"/d/scale", "", "Accept", "text/html")
}

// Metadata of no objects is null, as upstream's; a list of no objects is empty.
func TestListOfNothing(t *testing.T) {
	h := newHarness(t)
	for accept, want := range map[string]string{
		"application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io":      `"items":null`,
		"application/json;as=PartialObjectMetadataList;v=v1beta1;g=meta.k8s.io": `"apiVersion":"meta.k8s.io/v1beta1"`,
		"application/json;as=Table;v=v1;g=meta.k8s.io":                          `"rows":[]`,
		"application/json": `"items":[]`,
	} {
		if r := h.must(200, "GET", "/api/v1/namespaces/default/secrets", "", "Accept", accept); !strings.Contains(string(r.body), want) {
			t.Errorf("%s: %s", accept, r.body)
		}
	}
}

// A dry run of a creation is refused for what the creation would be refused for.
func TestDryRunOfWhatExists(t *testing.T) {
	const path = "/api/v1/namespaces/default/services"
	service := func(name, more string) string {
		return `{"metadata":{"name":"` + name + `"},"spec":{"type":"NodePort","ports":[{"port":80` + more + `}]}}`
	}
	h := newHarness(t)
	h.must(201, "POST", path, service("a", `,"nodePort":30777`))
	for _, c := range []struct {
		body string
		code int32
		want string
	}{
		{service("a", `,"nodePort":30777`), 422, "provided port is already allocated"},
		{service("b", `,"nodePort":30777`), 422, "provided port is already allocated"},
		{service("a", `,"nodePort":30778`), 409, "already exists"},
		{service("a", ""), 409, "already exists"},
	} {
		for _, dry := range []string{"", "?dryRun=All"} {
			if st := h.do("POST", path+dry, c.body).status(t); st.Code != c.code || !strings.Contains(st.Message, c.want) {
				t.Errorf("%s %s: want %d %s, got %d %s", dry, c.body, c.code, c.want, st.Code, st.Message)
			}
		}
	}
}

// A fault of the metadata that an update leaves has as many causes as upstream finds it times.
func TestCausesOfMetadata(t *testing.T) {
	h := newHarness(t)
	for _, c := range []struct {
		path, body              string
		labels, uid, finalizers int
	}{
		{"/api/v1/namespaces/default/configmaps", `{}`, 4, 2, 2},
		{"/api/v1/namespaces/default/services", `{"spec":{"ports":[{"port":80}]}}`, 3, 2, 1},
		{"/apis/rbac.authorization.k8s.io/v1/namespaces/default/roles", `{}`, 4, 2, 2},
		{"/apis/policy/v1/namespaces/default/poddisruptionbudgets", `{"spec":{"selector":{"matchLabels":{"a":"b"}}}}`, 2, 1, 0},
		{"/apis/discovery.k8s.io/v1/namespaces/default/endpointslices", `{"addressType":"IPv4"}`, 3, 1, 1},
	} {
		h.must(201, "POST", c.path, strings.Replace(strings.Replace(c.body, "{", `{"metadata":{"name":"a"},`, 1), ",}", "}", 1))
		for change, want := range map[string]int{`"labels":{"a b":"c"}`: c.labels, `"uid":"x"`: c.uid, `"finalizers":["x"]`: c.finalizers} {
			if want == 0 {
				continue // it is no fault of this kind
			}
			st := h.do("PATCH", c.path+"/a?dryRun=All", `{"metadata":{`+change+`}}`, "Content-Type", "application/merge-patch+json").status(t)
			if st.Details == nil || len(st.Details.Causes) != want {
				t.Errorf("%s %s: want %d causes, got %+v", c.path, change, want, st)
			}
		}
	}
}
