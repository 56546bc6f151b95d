package rest

import (
	"crypto/tls"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	gomaps "maps"
	"net/http"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/keelson/keelson/apiserver/resources"
)

// What is wrong is not written down by hand: for every row that can be created, its smallest
// valid object is spoilt in every way that the kind's Go type and the object itself suggest.
// What the answers must be is what upstream v1.36 answered to the same requests, which is kept
// in testdata/badinput.txt:
//
//	go test ./apiserver/rest -run TestBadInputOfEveryKind -peer https://ADDRESS -peer-token TOKEN
//
// rewrites it from a running kube-apiserver without admission plugins. Nothing is stored there
// but one object of each kind, which is deleted again. Answers of ours that are known to be others
// are in testdata/badinput-differs.txt, with the reason; a line there that has become wrong fails the test.
var (
	peer      = flag.String("peer", "", "URL of an upstream API server: rewrite testdata/badinput.txt with its answers")
	oddFile   = flag.String("odd", "", "file to write the answers to that are not as upstream's")
	peerToken = flag.String("peer-token", "", "bearer token of an administrator of the peer")
)

// asked is one request.
type asked struct {
	name, method, path, kind, body string
}

// answered is what matters of an answer, as text: code, reason, and for an invalid object the fields
// with what is wrong with them. Messages are compared in other tests.
func answered(code int, body []byte) string {
	if code < 300 {
		return fmt.Sprint(code)
	}
	var s metav1.Status
	if json.Unmarshal(body, &s) != nil || s.Kind != "Status" {
		return fmt.Sprintf("%d without a Status", code)
	}
	out := strings.TrimSuffix(fmt.Sprintf("%d %s", code, s.Reason), " ")
	var causes []string
	if s.Details != nil {
		for _, c := range s.Details.Causes {
			causes = append(causes, c.Field+" "+strings.TrimPrefix(string(c.Type), "FieldValue"))
		}
	}
	if len(causes) == 0 {
		return out
	}
	slices.Sort(causes)
	return out + ": " + strings.Join(slices.Compact(causes), ", ")
}

// spoiler makes requests of one row.
type spoiler struct {
	row        *resources.Row
	root, name string
	content    map[string]any
	out        []asked
}

// step is one step of a path: a name, or the first element of a list.
type step struct {
	name  string
	first bool
}

func pathText(path []step) string {
	var b strings.Builder
	for i, s := range path {
		if s.first {
			b.WriteString("[0]")
			continue
		}
		if i > 0 {
			b.WriteByte('.')
		}
		b.WriteString(s.name)
	}
	return b.String()
}

// with returns content with a value at a path, making what is missing on the way. nil removes.
func with(content any, path []step, value any) any {
	if len(path) == 0 {
		return value
	}
	s, rest := path[0], path[1:]
	if s.first {
		list, _ := content.([]any)
		list = slices.Clone(list)
		if len(list) == 0 {
			list = []any{nil}
		}
		if len(rest) == 0 && value == nil {
			return list[1:]
		}
		list[0] = with(list[0], rest, value)
		return list
	}
	m, _ := content.(map[string]any)
	out := map[string]any{}
	for k, v := range m {
		out[k] = v
	}
	if len(rest) == 0 && value == nil {
		delete(out, s.name)
		return out
	}
	out[s.name] = with(out[s.name], rest, value)
	return out
}

func (s *spoiler) add(name, method, path, kind string, body any) {
	text, ok := body.(string)
	if !ok {
		raw, err := json.Marshal(body)
		if err != nil {
			panic(err)
		}
		text = string(raw)
	}
	s.out = append(s.out, asked{name, method, path, kind, text})
}

const dry = "?dryRun=All"

func (s *spoiler) create(name string, body any) {
	s.add("create: "+name, "POST", s.root+dry, "application/json", body)
}

// present walks what the object has.
func (s *spoiler) present(path []step, v any) {
	if len(path) > 0 {
		text := pathText(path)
		s.create("without "+text, with(s.content, path, nil))
		var wrong any = "x"
		if _, ok := v.(string); ok {
			wrong = 7
		}
		s.create(text+" of another type", with(s.content, path, wrong))
	}
	switch v := v.(type) {
	case map[string]any:
		for _, k := range slices.Sorted(gomaps.Keys(v)) {
			if len(path) == 0 && (k == "apiVersion" || k == "kind") {
				continue
			}
			s.present(append(slices.Clone(path), step{name: k}), v[k])
		}
	case []any:
		if len(v) > 0 {
			s.present(append(slices.Clone(path), step{first: true}), v[0])
		}
	}
}

var (
	templateType = reflect.TypeFor[corev1.PodTemplateSpec]()
	metaType     = reflect.TypeFor[metav1.ObjectMeta]()
	marshaler    = reflect.TypeFor[json.Marshaler]()
)

// typed walks the kind's Go type: each text, number and list of texts gets a value that no
// rule can like. Pod templates are walked once, in pods.
func (s *spoiler) typed(path []step, t reflect.Type, depth int) {
	switch {
	case t.Kind() == reflect.Pointer:
		s.typed(path, t.Elem(), depth)
		return
	case len(path) > 0 && (t == templateType || t == metaType || reflect.PointerTo(t).Implements(marshaler)):
		return
	}
	set := func(v any) { s.create(fmt.Sprintf("%s=%v", pathText(path), v), with(s.content, path, v)) }
	switch t.Kind() {
	case reflect.String:
		set("Wrong Value!")
	case reflect.Int32, reflect.Int64:
		set(-2)
	case reflect.Slice:
		if t.Elem().Kind() == reflect.Uint8 {
			return
		}
		s.typed(append(slices.Clone(path), step{first: true}), t.Elem(), depth+1)
	case reflect.Struct:
		if depth > 4 {
			return
		}
		for i := range t.NumField() {
			f := t.Field(i)
			name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
			if len(path) == 0 && (name == "status" || name == "metadata" || strings.Contains(options, "inline")) {
				continue
			}
			if strings.Contains(options, "inline") || name == "" {
				s.typed(path, f.Type, depth)
				continue
			}
			s.typed(append(slices.Clone(path), step{name: name}), f.Type, depth+1)
		}
	}
}

// spoil returns the requests of one row. The object itself must exist when those behind
// "make" are asked.
func spoil(row *resources.Row) []asked {
	name, body := sample(row)
	s := &spoiler{row: row, root: "/api/" + row.Version, name: name}
	if row.Group != "" {
		s.root = "/apis/" + row.Group + "/" + row.Version
	}
	if row.Namespaced {
		s.root += "/namespaces/default"
	}
	s.root += "/" + row.Plural
	one := s.root + "/" + name
	if err := json.Unmarshal([]byte(body), &s.content); err != nil {
		panic(err)
	}
	j := "application/json"
	at := func(names ...string) (p []step) {
		for _, n := range names {
			p = append(p, step{name: n})
		}
		return p
	}
	s.create("as it should be", s.content)
	s.present(nil, s.content)
	s.typed(nil, reflect.TypeOf(row.New()).Elem(), 0)
	for _, n := range []string{"", "A B", ".", "..", "a/b", "-a", "a%b", "ä", strings.Repeat("a", 254)} {
		s.create(fmt.Sprintf("metadata.name=%.20q", n), with(s.content, at("metadata", "name"), n))
	}
	for field, v := range map[string]any{
		"labels": map[string]any{"a b": "c"}, "annotations": map[string]any{"": "c"}, "finalizers": []any{"x"}, "resourceVersion": "1", "generation": -1,
		"ownerReferences": []any{map[string]any{"kind": "K"}}, "generateName": "A!", "namespace": "other", "managedFields": []any{map[string]any{"operation": "X"}},
		"uid": "u", "creationTimestamp": "yesterday", "deletionGracePeriodSeconds": -1,
	} {
		s.out = append(s.out, asked{fmt.Sprintf("create: metadata.%s=%v", field, v), "POST", s.root + dry, j, mustJSON(with(s.content, at("metadata", field), v))})
	}
	slices.SortFunc(s.out, func(a, b asked) int { return strings.Compare(a.name, b.name) })

	unknown := with(s.content, at("unknown"), 1)
	twice := strings.Replace(body, `"metadata"`, `"kind":"`+row.Kind+`","metadata"`, 1)
	for _, v := range []string{"Strict", "Warn", "Ignore", "Other"} {
		s.add("unknown field, "+v, "POST", s.root+dry+"&fieldValidation="+v, j, unknown)
		s.add("duplicate field, "+v, "POST", s.root+dry+"&fieldValidation="+v, j, twice)
	}
	s.create("another kind", with(s.content, at("kind"), "Other"))
	s.create("another version", with(s.content, at("apiVersion"), "v9"))
	s.create("another group", with(s.content, at("apiVersion"), "other.io/v1"))
	s.create("no JSON", "{")
	s.create("an empty body", "")
	s.create("a list", "[]")
	s.create("too large", with(s.content, at("metadata", "annotations"), map[string]any{"a": strings.Repeat("x", 300<<10)}))
	for _, ct := range []string{"text/plain", "application/xml", "nonsense"} {
		s.add("create: content type "+ct, "POST", s.root+dry, ct, s.content)
	}
	s.add("create: YAML that grows", "POST", s.root+dry, "application/yaml", yamlBomb())
	s.add("create: broken protobuf", "POST", s.root+dry, "application/vnd.kubernetes.protobuf", "k8s\x00\xff\xff")
	s.add("create: at a name", "POST", one, j, s.content)
	s.add("update: nothing there", "PUT", one+dry, j, with(s.content, at("metadata", "resourceVersion"), "1"))
	s.add("patch: nothing there", "PATCH", one+dry, "application/merge-patch+json", "{}")
	s.add("delete: nothing there", "DELETE", one, j, "")
	s.add("make", "POST", s.root, j, s.content)
	s.add("create: exists", "POST", s.root+dry, j, s.content)
	s.add("update: stale", "PUT", one+dry, j, with(s.content, at("metadata", "resourceVersion"), "1"))
	s.add("update: another name", "PUT", one+dry, j, with(s.content, at("metadata", "name"), "other"))
	s.add("update: another uid", "PUT", one+dry, j, with(s.content, at("metadata", "uid"), "u"))
	s.add("update: another kind", "PUT", one+dry, j, with(s.content, at("kind"), "Other"))
	s.add("update: no JSON", "PUT", one+dry, j, "{")
	s.changes(one, nil, s.content)
	for _, c := range []struct{ name, kind, body string }{
		{"of an unknown type", "application/json", `{}`}, {"that is no object", "application/merge-patch+json", `[]`}, {"that is no list", "application/json-patch+json", `{}`},
		{"of a path that is not there", "application/json-patch+json", `[{"op":"remove","path":"/nothing"}]`},
		{"that breaks a label", "application/merge-patch+json", `{"metadata":{"labels":{"a b":"c"}}}`},
		{"of the name", "application/merge-patch+json", `{"metadata":{"name":"other"}}`}, {"of the uid", "application/merge-patch+json", `{"metadata":{"uid":"other"}}`},
		{"of a stale object", "application/merge-patch+json", `{"metadata":{"resourceVersion":"1"}}`},
		{"of metadata as text", "application/merge-patch+json", `{"metadata":"x"}`}, {"of metadata as text, strategic", "application/strategic-merge-patch+json", `{"metadata":"x"}`},
	} {
		s.add("patch: "+c.name, "PATCH", one+dry, c.kind, c.body)
	}
	group := fmt.Sprintf(`"apiVersion":%q,"kind":%q`, row.GVK().GroupVersion(), row.Kind)
	for _, c := range []struct{ name, query, body string }{
		{"without a manager", dry, "{" + group + "}"}, {"of no kind", dry + "&fieldManager=m", `{"metadata":{"labels":{"a":"b"}}}`},
		{"of an unknown field", dry + "&fieldManager=m", "{" + group + `,"unknown":1}`}, {"of another name", dry + "&fieldManager=m", "{" + group + `,"metadata":{"name":"other"}}`},
		{"with managed fields", dry + "&fieldManager=m", "{" + group + fmt.Sprintf(`,"metadata":{"name":%q,"managedFields":[]}}`, name)},
	} {
		s.add("apply: "+c.name, "PATCH", one+c.query, "application/apply-patch+yaml", c.body)
	}
	s.add("delete: another uid", "DELETE", one, j, `{"preconditions":{"uid":"u"}}`)
	s.add("delete: another revision", "DELETE", one, j, `{"preconditions":{"resourceVersion":"1"}}`)
	s.add("delete: an unknown policy", "DELETE", one, j, `{"propagationPolicy":"Other"}`)
	s.add("delete: two policies", "DELETE", one, j, `{"propagationPolicy":"Orphan","orphanDependents":true}`)
	s.add("delete: another kind of options", "DELETE", one, j, `{"kind":"Other","apiVersion":"v1"}`)
	s.add("remove", "DELETE", one, j, `{"gracePeriodSeconds":0,"propagationPolicy":"Background"}`)
	return s.out
}

// changes updates each scalar that the object has: some of them must not change.
func (s *spoiler) changes(one string, path []step, v any) {
	set := func(to any) {
		s.add(fmt.Sprintf("update: %s becomes %v", pathText(path), to), "PUT", one+dry, "application/json", with(s.content, path, to))
	}
	switch v := v.(type) {
	case map[string]any:
		for _, k := range slices.Sorted(gomaps.Keys(v)) {
			if len(path) > 0 || k != "apiVersion" && k != "kind" && k != "metadata" {
				s.changes(one, append(slices.Clone(path), step{name: k}), v[k])
			}
		}
	case []any:
		if len(v) > 0 {
			s.changes(one, append(slices.Clone(path), step{first: true}), v[0])
		}
	case string:
		if len(v) < 100 { // not what this run has made, such as a certificate request
			set(v + "x")
		}
	case float64:
		set(v + 1)
	case bool:
		set(!v)
	}
}

func mustJSON(v any) string {
	raw, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(raw)
}

func yamlBomb() string {
	b := "a: &a [x,x,x,x,x,x,x,x,x]\n"
	for i := 'b'; i < 'k'; i++ {
		b += fmt.Sprintf("%c: &%c [*%c,*%c,*%c,*%c,*%c,*%c,*%c,*%c,*%c]\n", i, i, i-1, i-1, i-1, i-1, i-1, i-1, i-1, i-1, i-1)
	}
	return b
}

// The answers are kept by case: as most kinds are asked the same and answer the same, the answer
// that most of them give comes first and those of the others below it, each with its kinds.
const answersFile = "testdata/badinput.txt"

// tally has the kinds that gave an answer, by case and answer.
type tally map[string]map[string][]string

func (t tally) add(name, answer, kind string) {
	if t[name] == nil {
		t[name] = map[string][]string{}
	}
	t[name][answer] = append(t[name][answer], kind)
}

func (t tally) text() string {
	var b strings.Builder
	for _, name := range slices.Sorted(gomaps.Keys(t)) {
		answers := slices.SortedFunc(gomaps.Keys(t[name]), func(x, y string) int {
			if n := len(t[name][y]) - len(t[name][x]); n != 0 {
				return n
			}
			return strings.Compare(x, y)
		})
		fmt.Fprintf(&b, "%s\n", name)
		for i, a := range answers {
			kinds := ""
			if i > 0 || len(t[name][a]) < 10 {
				kinds = " ← " + strings.Join(t[name][a], " ")
			}
			fmt.Fprintf(&b, "\t%s%s\n", a, kinds)
		}
	}
	return b.String()
}

// expected are upstream's answers; differs those of ours that are not like them.
type expected struct {
	rest map[string]string            // of a case, for kinds that are not named
	own  map[string]map[string]string // of a case, by kind
}

func readAnswers(t *testing.T, file string) (e expected) {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	e = expected{map[string]string{}, map[string]map[string]string{}}
	name := ""
	for line := range strings.Lines(string(data)) {
		line = strings.TrimSuffix(line, "\n")
		answer, isAnswer := strings.CutPrefix(line, "\t")
		if line == "" || line[0] == '#' {
			continue
		}
		if !isAnswer {
			name, e.own[line] = line, map[string]string{}
			continue
		}
		answer, kinds, some := strings.Cut(answer, " ← ")
		if !some {
			e.rest[name] = answer
		}
		for _, k := range strings.Fields(kinds) {
			e.own[name][k] = answer
		}
	}
	return e
}

func (e expected) of(name, kind string) string {
	if a, ok := e.own[name][kind]; ok {
		return a
	}
	return e.rest[name]
}

func TestBadInputOfEveryKind(t *testing.T) {
	h := newHarness(t)
	ask := func(a asked) string {
		r := h.do(a.method, a.path, a.body, "Content-Type", a.kind)
		return answered(r.code, r.body)
	}
	var want, differs expected
	if *peer != "" {
		client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
		defer client.CloseIdleConnections()
		ask = func(a asked) string {
			req, err := http.NewRequest(a.method, *peer+a.path, strings.NewReader(a.body))
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Content-Type", a.kind)
			req.Header.Set("User-Agent", "tester/1")
			req.Header.Set("Authorization", "Bearer "+*peerToken)
			res, err := client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			body, err := io.ReadAll(res.Body)
			if err != nil {
				t.Fatal(err)
			}
			return answered(res.StatusCode, body)
		}
	} else {
		want, differs = readAnswers(t, answersFile), readAnswers(t, "testdata/badinput-differs.txt")
	}
	asked, odd := tally{}, tally{}
	seen := 0
	for _, row := range h.reg.All() {
		if !row.Can("create") || !row.Can("get") || row.Hidden {
			continue
		}
		kind := strings.TrimPrefix(row.Group+"/"+row.Version+"/"+row.Plural, "/")
		for _, a := range spoil(row) {
			got := ask(a)
			asked.add(a.name, got, kind)
			if *peer != "" {
				continue
			}
			seen++
			upstream, ours := want.of(a.name, kind), differs.own[a.name][kind]
			if got != upstream {
				odd.add(a.name, got, kind)
			}
			switch {
			case upstream == "":
				t.Errorf("%s: %s: upstream has not been asked; run with -peer", kind, a.name)
			case ours != "" && got == upstream:
				t.Errorf("%s: %s: is as upstream now; take it out of testdata/badinput-differs.txt", kind, a.name)
			case ours != "" && got != ours:
				t.Errorf("%s: %s:\n     got %s\nexpected %s\nupstream %s", kind, a.name, got, ours, upstream)
			case ours == "" && got != upstream:
				t.Errorf("%s: %s:\n     got %s\nupstream %s\n%.300q", kind, a.name, got, upstream, a.body)
			}
		}
	}
	if *peer != "" {
		if err := os.WriteFile(answersFile, []byte(asked.text()), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if seen < 5000 {
		t.Errorf("only %d requests", seen)
	}
	if *oddFile != "" {
		if err := os.WriteFile(*oddFile, []byte(odd.text()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}
