package crd_test

import (
	"crypto/tls"
	"encoding/json"
	"flag"
	"fmt"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// A good object of a custom kind is spoilt in every way that its schema knows of. What the answers must be,
// with every cause's field, reason and message, is what upstream v1.36 answered, kept in testdata/badinput.txt:
//
//	go test ./apiserver/crd -run TestBadCustomResources -peer https://ADDRESS -peer-token TOKEN
//
// rewrites it from a running kube-apiserver. The definition that is made there is deleted again.
var (
	peer      = flag.String("peer", "", "URL of an upstream API server: rewrite testdata/badinput.txt with its answers")
	peerToken = flag.String("peer-token", "", "bearer token of an administrator of the peer")
)

const badInput = "testdata/badinput.txt"

const badSchema = `{"type":"object","required":["name","n"],"properties":{
  "name":{"type":"string","minLength":2,"maxLength":5,"pattern":"^[a-z]+$"},
  "n":{"type":"integer","minimum":1,"maximum":10},
  "above":{"type":"number","minimum":0,"exclusiveMinimum":true,"maximum":1,"exclusiveMaximum":true},
  "step":{"type":"number","multipleOf":0.5},
  "color":{"type":"string","enum":["red","green"]},
  "level":{"type":"integer","enum":[1,2]},
  "on":{"type":"boolean"},
  "small":{"type":"integer","format":"int32"},
  "when":{"type":"string","format":"date-time"},
  "day":{"type":"string","format":"date"},
  "ip":{"type":"string","format":"ipv4"},
  "ip6":{"type":"string","format":"ipv6"},
  "net":{"type":"string","format":"cidr"},
  "mail":{"type":"string","format":"email"},
  "host":{"type":"string","format":"hostname"},
  "link":{"type":"string","format":"uri"},
  "id":{"type":"string","format":"uuid"},
  "raw":{"type":"string","format":"byte"},
  "wait":{"type":"string","format":"duration"},
  "unheard":{"type":"string","format":"of-nothing"},
  "either":{"x-kubernetes-int-or-string":true},
  "maybe":{"type":"string","nullable":true},
  "tags":{"type":"array","x-kubernetes-list-type":"set","items":{"type":"string","maxLength":3},"maxItems":3},
  "some":{"type":"array","items":{"type":"string"},"minItems":1,"maxItems":2},
  "ports":{"type":"array","x-kubernetes-list-type":"map","x-kubernetes-list-map-keys":["number","protocol"],
    "items":{"type":"object","required":["number"],"properties":{"number":{"type":"integer","maximum":65535},"protocol":{"type":"string","default":"TCP"},"note":{"type":"string"}},
      "x-kubernetes-validations":[{"rule":"self.number != 22","message":"no shells here","fieldPath":".number"}]}},
  "limits":{"type":"object","additionalProperties":{"type":"integer","minimum":0},"minProperties":1,"maxProperties":2},
  "pick":{"type":"object","properties":{"a":{"type":"string"},"b":{"type":"string"}},"oneOf":[{"required":["a"]},{"required":["b"]}]},
  "any":{"type":"object","properties":{"a":{"type":"string"},"b":{"type":"string"}},"anyOf":[{"required":["a"]},{"required":["b"]}]},
  "all":{"type":"object","properties":{"a":{"type":"string"}},"allOf":[{"required":["a"]},{"properties":{"a":{"minLength":2}}}]},
  "never":{"type":"object","properties":{"a":{"type":"string"}},"not":{"required":["a"]}},
  "inner":{"type":"object","x-kubernetes-embedded-resource":true,"x-kubernetes-preserve-unknown-fields":true},
  "ruled":{"type":"object","properties":{"low":{"type":"integer"},"high":{"type":"integer"},"label":{"type":"string","maxLength":10},"list":{"type":"array","maxItems":5,"items":{"type":"integer"}}},
    "x-kubernetes-validations":[
      {"rule":"!has(self.low) || !has(self.high) || self.low <= self.high","messageExpression":"has(self.label) ? self.label + ' is above high' : 'low is above high'","fieldPath":".low"},
      {"rule":"!has(self.label) || self.label != 'forbidden'","reason":"FieldValueForbidden","message":"not this label","fieldPath":".label"},
      {"rule":"!has(self.label) || self.label != 'twice'","reason":"FieldValueDuplicate","fieldPath":".label"},
      {"rule":"!has(self.label) || self.label != 'lonely' || has(self.high)","reason":"FieldValueRequired","message":"high goes with lonely","fieldPath":".high"},
      {"rule":"!has(self.list) || self.list.all(x, x > 0)","messageExpression":"self.list[7] > 0 ? 'a' : 'b'","message":"all above nothing"},
      {"rule":"!has(self.list) || self.list[1] > self.list[0]","message":"grows"}]},
  "fixed":{"type":"string","x-kubernetes-validations":[{"rule":"self == oldSelf","message":"stays"}]},
  "grows":{"type":"integer","x-kubernetes-validations":[{"rule":"!oldSelf.hasValue() || self > oldSelf.value()","optionalOldSelf":true,"messageExpression":"oldSelf.value() > 3 ? 'after much' : 'after little'"}]}},
 "x-kubernetes-validations":[{"rule":"self.n != 7 || self.name == 'seven'","message":"only seven has 7"},{"rule":"!has(oldSelf.color) || has(self.color)","message":"the color stays"}]}`

func badDefinition() string {
	return `{"apiVersion":"apiextensions.k8s.io/v1","kind":"CustomResourceDefinition","metadata":{"name":"bads.test.example.com"},"spec":{
	 "group":"test.example.com","scope":"Namespaced","names":{"plural":"bads","singular":"bad","kind":"Bad"},
	 "versions":[{"name":"v1","served":true,"storage":true,"subresources":{"status":{},"scale":{"specReplicasPath":".spec.n","statusReplicasPath":".status.count"}},
	  "selectableFields":[{"jsonPath":".spec.color"}],
	  "schema":{"openAPIV3Schema":{"type":"object","required":["spec"],
	   "x-kubernetes-validations":[{"rule":"self.metadata.name != 'reserved'","message":"this name is taken","reason":"FieldValueForbidden"}],
	   "properties":{"spec":` + badSchema + `,"status":{"type":"object","required":["count"],"properties":{"count":{"type":"integer","minimum":0}}}}}}}]}}`
}

const (
	bads    = "/apis/test.example.com/v1/namespaces/default/bads"
	goodBad = `{"apiVersion":"test.example.com/v1","kind":"Bad","metadata":{"name":"x"},"spec":{"name":"abc","n":5}}`
)

// creations are laid over the good object.
func creations() []string {
	out := []string{
		`{}`, `{"spec":"(none)"}`, `{"spec":null}`, `{"spec":{"name":"(none)","n":"(none)"}}`, `{"spec":[]}`, `{"spec":"x"}`, `{"apiVersion":"(none)"}`, `{"kind":"(none)"}`, `{"kind":null}`, `{"apiVersion":"test.example.com/v2"}`, `{"apiVersion":"v1"}`, `{"kind":"Good"}`,
		`{"metadata":null}`, `{"metadata":{"name":""}}`, `{"metadata":{"name":"A_b"}}`, `{"metadata":{"name":"reserved"}}`, `{"metadata":{"namespace":"other"}}`,
		`{"metadata":{"name":"` + strings.Repeat("x", 254) + `"}}`, `{"metadata":{"name":"(none)","generateName":"A_"}}`, `{"metadata":{"labels":{"a b":"c"}}}`, `{"metadata":{"labels":{"a":"-"}}}`,
		`{"metadata":{"annotations":{"a b":"c"}}}`, `{"metadata":{"finalizers":["x"]}}`, `{"metadata":{"ownerReferences":[{}]}}`, `{"metadata":{"resourceVersion":"1"}}`, `{"metadata":{"generation":-1}}`,
		`{"status":{}}`, `{"status":{"count":-1}}`, `{"spec":{"name":1,"n":"x","color":[]}}`, `{"spec":{"name":"A","n":11,"color":"blue","on":1}}`,
	}
	for field, values := range map[string][]string{
		"name":  {`null`, `"(none)"`, `""`, `"a"`, `"abcdef"`, `"AB"`, `1`, `{}`},
		"n":     {`null`, `"(none)"`, `0`, `11`, `7`, `1.5`, `"5"`, `true`, `9223372036854775808`},
		"above": {`0`, `1`, `"x"`}, "step": {`0.7`}, "color": {`"blue"`, `1`, `null`}, "level": {`3`, `1.0`}, "on": {`"true"`, `1`},
		"small": {`2147483648`, `-2147483649`}, "when": {`"yesterday"`, `""`, `"2026-11-27"`}, "day": {`"2026-13-01"`}, "ip": {`"300.1.1.1"`, `"::1"`}, "ip6": {`"1.2.3.4"`}, "net": {`"10.0.0.0"`},
		"mail": {`"nobody"`}, "host": {`"-a"`}, "link": {`"no link"`}, "id": {`"7"`}, "raw": {`"%%%"`}, "wait": {`"long"`}, "unheard": {`"x"`}, "either": {`1.5`, `true`, `{}`}, "maybe": {`1`, `null`},
		"tags": {`["a","a"]`, `["a","b","c","d"]`, `["long!"]`, `[1]`, `"a"`, `{}`, `[null]`}, "some": {`[]`, `["a","b","c"]`, `null`},
		"ports": {`[{}]`, `[{"number":1},{"number":1}]`, `[{"number":1},{"number":1,"protocol":"UDP"}]`, `[{"number":70000}]`, `[{"number":22}]`, `[{"number":"a"}]`, `[null]`, `["a"]`,
			`[{"number":1,"protocol":"TCP"},{"number":1},{"number":2},{"number":2}]`},
		"limits": {`{}`, `{"a":1,"b":2,"c":3}`, `{"a":-1}`, `{"a":"x"}`, `[]`},
		"pick":   {`{}`, `{"a":"1","b":"2"}`}, "any": {`{}`}, "all": {`{}`, `{"a":"x"}`}, "never": {`{"a":"x"}`},
		"inner": {`{}`, `{"apiVersion":"v1"}`, `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"A_b"}}`, `{"apiVersion":"a/b/c","kind":"Pod"}`, `{"apiVersion":"v1","kind":"p d"}`, `{"apiVersion":"v1","kind":"Pod","metadata":{"labels":{"a":"-"}}}`},
		"ruled": {`{"low":2,"high":1}`, `{"low":2,"high":1,"label":"low"}`, `{"label":"forbidden"}`, `{"label":"twice"}`, `{"label":"lonely"}`, `{"list":[0,1]}`, `{"list":[2,1]}`, `{"list":[1]}`, `{"low":2,"high":1,"label":"forbidden"}`, `{"low":"a","high":1}`},
		"fixed": {`1`}, "grows": {`"x"`}, "nope": {`1`},
	} {
		for _, v := range values {
			out = append(out, fmt.Sprintf(`{"spec":{%q:%s}}`, field, v))
		}
	}
	slices.Sort(out)
	return out
}

// updates are merge patches over the object that is there.
var updates = []string{
	`{"spec":{"fixed":"b"}}`, `{"spec":{"fixed":null}}`, `{"spec":{"grows":3}}`, `{"spec":{"grows":6}}`, `{"spec":{"color":null}}`, `{"spec":{"color":"blue"}}`, `{"spec":null}`, `{"spec":{"n":7}}`,
	`{"metadata":{"uid":"x"}}`, `{"metadata":{"resourceVersion":"1"}}`, `{"metadata":{"name":"y"}}`, `{"metadata":{"creationTimestamp":"2020-01-01T00:00:00Z"}}`, `{"metadata":{"generation":40}}`,
	`{"metadata":{"finalizers":["x"]}}`, `{"kind":"Good"}`, `{"apiVersion":"test.example.com/v2"}`, `{"spec":{"ports":[{"number":1},{"number":1}]}}`, `{"spec":{"old":"short"}}`,
}

// varying are parts of messages that are others each time: UIDs, made up names, and the object that a patch
// has made, with all its times.
var varying = regexp.MustCompile(`[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|\bA_[a-z0-9]{5}\b|^Invalid value: "\{.*\}"`)

func vary(message string) string { return varying.ReplaceAllString(message, "(...)") }

// causes is what matters of an answer, as text. Upstream looks at fields in no particular order.
func causes(code int, o object) string {
	if code < 300 {
		return fmt.Sprintln(code)
	}
	var s metav1.Status
	text, err := json.Marshal(o)
	if err != nil || json.Unmarshal(text, &s) != nil {
		return fmt.Sprintln(code, "without a Status")
	}
	if s.Details == nil || len(s.Details.Causes) == 0 {
		return fmt.Sprintf("%d %s %q\n", code, s.Reason, vary(s.Message))
	}
	var lines []string
	for _, c := range s.Details.Causes {
		lines = append(lines, fmt.Sprintf("  %s %s %q\n", c.Field, c.Type, vary(c.Message)))
	}
	slices.Sort(lines)
	return fmt.Sprintf("%d %s\n%s", code, s.Reason, strings.Join(lines, ""))
}

// bearer sends a token with every request.
type bearer struct {
	to    http.RoundTripper
	token string
}

func (b bearer) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer "+b.token)
	return b.to.RoundTrip(r)
}

func TestBadCustomResources(t *testing.T) {
	var s *server
	if *peer == "" {
		s = start(t)
	} else {
		to := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
		t.Cleanup(to.CloseIdleConnections)
		s = &server{t: t, url: *peer, client: &http.Client{Transport: bearer{to, *peerToken}, Timeout: 30 * time.Second}}
	}
	s.define(badDefinition())
	if *peer != "" {
		t.Cleanup(func() { s.must(200, "DELETE", crds+"/bads.test.example.com", "") })
		s.until("the new kind", func() bool { code, _, _ := s.ask("GET", bads, ""); return code == 200 })
	}
	var got strings.Builder
	note := func(what string, code int, o object) { fmt.Fprintf(&got, "%s\n%s", what, causes(code, o)) }
	for _, patch := range creations() {
		code, o, _ := s.ask("POST", bads+"?dryRun=All", laid(t, goodBad, patch))
		note("create "+short(patch), code, o)
		code, o, _ = s.ask("POST", bads+"?dryRun=All&fieldValidation=Strict", laid(t, goodBad, patch))
		if code == 400 {
			note("create strictly "+short(patch), code, o)
		}
	}
	s.must(201, "POST", bads, laid(t, goodBad, `{"spec":{"fixed":"a","grows":5,"color":"red"}}`))
	for _, patch := range updates {
		code, o, _ := s.ask("PATCH", bads+"/x?dryRun=All", patch, "Content-Type", merge)
		note("patch "+patch, code, o)
		old, err := json.Marshal(s.must(200, "GET", bads+"/x", ""))
		if err != nil {
			t.Fatal(err)
		}
		code, o, _ = s.ask("PUT", bads+"/x?dryRun=All", laid(t, string(old), patch))
		note("put "+patch, code, o)
	}
	for _, c := range [][3]string{
		{"PATCH", "/x/status", `{"status":{}}`}, {"PATCH", "/x/status", `{"status":{"count":-1}}`}, {"PATCH", "/x/status", `{"spec":{"n":70},"status":{"count":1}}`},
		{"PATCH", "/x/scale", `{"spec":{"replicas":11}}`}, {"PATCH", "/x/scale", `{"spec":{"replicas":-1}}`}, {"PATCH", "/x/scale", `{"spec":{"replicas":"x"}}`}, {"PATCH", "/x/scale", `{"spec":null}`},
		{"PATCH", "/y", `{}`}, {"PATCH", "/x", `[]`}, {"PATCH", "/x", `{`},
	} {
		code, o, _ := s.ask(c[0], bads+c[1]+"?dryRun=All", c[2], "Content-Type", merge)
		note(strings.Join(c[:], " "), code, o)
	}
	for _, selector := range []string{"spec.color=red", "spec.n=5", "metadata.name=x,spec.color!=red", "spec.color", "=x"} {
		code, o, _ := s.ask("GET", bads+"?fieldSelector="+selector, "")
		note("select "+selector, code, o)
	}
	if *peer != "" {
		if err := os.WriteFile(badInput, []byte(got.String()), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(badInput)
	if err != nil {
		t.Fatal(err)
	}
	answers := func(text string) (names []string, of map[string]string) {
		of = map[string]string{}
		for _, line := range strings.SplitAfter(text, "\n") {
			if line != "" && line[0] >= 'a' && line[0] <= 'z' || strings.HasPrefix(line, "PATCH") {
				names = append(names, line)
			} else if len(names) > 0 {
				of[names[len(names)-1]] += line
			}
		}
		return names, of
	}
	names, ours := answers(got.String())
	known, upstream := answers(string(want))
	if !slices.Equal(names, known) {
		t.Error("other questions than upstream was asked; run with -peer")
	}
	for _, n := range names {
		if n == notAsUpstream {
			if ours[n] == upstream[n] {
				t.Errorf("%sis as upstream now", n)
			}
			continue
		}
		if ours[n] != upstream[n] {
			t.Errorf("%s\nours\n%supstream\n%s", n, ours[n], upstream[n])
		}
	}
	if len(names) < 150 {
		t.Errorf("only %d questions", len(names))
	}
}

// laid puts what over says over an object. Unlike in a merge patch null is a value; what shall go is "(none)".
func laid(t *testing.T, object, over string) string {
	t.Helper()
	var lay func(a, b any) any
	lay = func(a, b any) any {
		to, ok := a.(map[string]any)
		from, ok2 := b.(map[string]any)
		if !ok || !ok2 {
			return b
		}
		for k, v := range from {
			if v == "(none)" {
				delete(to, k)
			} else {
				to[k] = lay(to[k], v)
			}
		}
		return to
	}
	var values [2]any
	for i, text := range []string{object, over} {
		d := json.NewDecoder(strings.NewReader(text))
		d.UseNumber()
		if err := d.Decode(&values[i]); err != nil {
			t.Fatalf("%s: %v", text, err)
		}
	}
	out, err := json.Marshal(lay(values[0], values[1]))
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// notAsUpstream is the one question that is answered in another way: upstream says of an object of a version
// that does not exist that it has no field spec, before it says so of the version.
const notAsUpstream = `create strictly {"apiVersion":"test.example.com/v2"}` + "\n"

func short(s string) string {
	if len(s) > 100 {
		return s[:100] + "..."
	}
	return s
}
