package rest

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	gomaps "maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"pgregory.net/rapid"

	"github.com/keelson/keelson/apiserver/codec"
	"github.com/keelson/keelson/apiserver/resources"
	"github.com/keelson/keelson/apiserver/store/memory"
	"github.com/keelson/keelson/apiserver/watchcache"
)

// twinPod is what selectors can see of a pod.
type twinPod struct {
	namespace, name, app, node, phase string
	rev                               int64
}

func (p twinPod) key() string { return p.namespace + "/" + p.name }

// twin is the naive server: every state that ever was, in full.
type twin struct {
	revs   []int64
	states []map[string]twinPod
}

func (tw *twin) record(rev int64, change func(map[string]twinPod)) {
	next := map[string]twinPod{}
	if n := len(tw.states); n > 0 {
		for k, v := range tw.states[n-1] {
			next[k] = v
		}
	}
	change(next)
	tw.revs, tw.states = append(tw.revs, rev), append(tw.states, next)
}

func (tw *twin) last() int64 { return tw.revs[len(tw.revs)-1] }

func (tw *twin) now() map[string]twinPod { return tw.states[len(tw.states)-1] }

func (tw *twin) at(rev int64) map[string]twinPod {
	return tw.states[sort.Search(len(tw.revs), func(i int) bool { return tw.revs[i] > rev })-1]
}

// view is what a client asks for: a place and selectors, as the URL has them. match is a
// pod that it sees.
type view struct {
	namespace, label, field string
	match                   twinPod
}

var views = []view{
	{match: twinPod{namespace: "a", name: "end"}},
	{namespace: "a", match: twinPod{namespace: "a", name: "end"}},
	{namespace: "ab", label: "app", match: twinPod{namespace: "ab", name: "end", app: "x"}},
	{label: "app=x", match: twinPod{namespace: "b", name: "end", app: "x"}},
	{label: "app notin (x),app", match: twinPod{namespace: "b", name: "end", app: "y"}},
	{label: "!app", match: twinPod{namespace: "b", name: "end"}},
	{label: "app in (x,y)", field: "spec.nodeName=n1", match: twinPod{namespace: "b", name: "end", app: "y", node: "n1"}},
	{field: "spec.nodeName=n1", match: twinPod{namespace: "a", name: "end", node: "n1"}},
	{namespace: "a", field: "spec.nodeName=n2", match: twinPod{namespace: "a", name: "end", node: "n2"}},
	{field: "spec.nodeName!=n1", match: twinPod{namespace: "a", name: "end", node: "n2"}},
	{field: "spec.nodeName=", match: twinPod{namespace: "a", name: "end"}},
	{field: "metadata.name=p1", match: twinPod{namespace: "a", name: "p1"}},
	{namespace: "a", field: "metadata.name=p1", match: twinPod{namespace: "a", name: "p1"}},
	{field: "metadata.namespace=ab", match: twinPod{namespace: "ab", name: "end"}},
	{field: "metadata.namespace=b,metadata.name=p2", match: twinPod{namespace: "b", name: "p2"}},
	{field: "status.phase=Running", match: twinPod{namespace: "b", name: "end", phase: "Running"}},
	{namespace: "b", label: "app=x", field: "status.phase!=Running,spec.nodeName!=n2", match: twinPod{namespace: "b", name: "end", app: "x"}},
}

func (v view) path() string {
	if v.namespace != "" {
		return "/api/v1/namespaces/" + v.namespace + "/pods"
	}
	return "/api/v1/pods"
}

func (v view) query() url.Values {
	q := url.Values{}
	if v.label != "" {
		q.Set("labelSelector", v.label)
	}
	if v.field != "" {
		q.Set("fieldSelector", v.field)
	}
	return q
}

func (v view) sees(p twinPod) bool {
	label, err := labels.Parse(v.label)
	if err != nil {
		panic(err)
	}
	set := labels.Set{}
	if p.app != "" {
		set["app"] = p.app
	}
	return p.name != "" && (v.namespace == "" || v.namespace == p.namespace) && label.Matches(set) &&
		fields.ParseSelectorOrDie(v.field).Matches(fields.Set{
			"metadata.name": p.name, "metadata.namespace": p.namespace, "spec.nodeName": p.node, "status.phase": p.phase,
		})
}

func (tw *twin) list(v view, rev int64) (out []string) {
	state := tw.at(rev)
	for _, key := range slices.Sorted(gomaps.Keys(state)) {
		if p := state[key]; v.sees(p) {
			out = append(out, fmt.Sprintf("%s@%d", key, p.rev))
		}
	}
	return out
}

// events is what a watch shows after from. Each revision changes one pod.
func (tw *twin) events(v view, from int64) (out []string) {
	for i, rev := range tw.revs {
		if rev <= from || i == 0 {
			continue
		}
		was, is := tw.states[i-1], tw.states[i]
		both := gomaps.Clone(was)
		gomaps.Copy(both, is)
		for key := range both {
			if was[key] == is[key] {
				continue
			}
			switch before, now := v.sees(was[key]), v.sees(is[key]); {
			case before && now:
				out = append(out, fmt.Sprintf("MODIFIED %s@%d", key, rev))
			case now:
				out = append(out, fmt.Sprintf("ADDED %s@%d", key, rev))
			case before:
				out = append(out, fmt.Sprintf("DELETED %s@%d", key, rev))
			}
		}
	}
	return out
}

// mortal is a server that can be replaced by another over the same store.
type mortal struct {
	reg   *resources.Registry
	st    *memory.Store
	opts  watchcache.Options
	cache *watchcache.Cache
	srv   *httptest.Server
	stop  func()
}

func (m *mortal) start() {
	m.cache = watchcache.New(m.st, m.reg, m.opts)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	cache := m.cache
	go func() { defer close(done); _ = cache.Run(ctx) }()
	<-cache.Ready()
	m.srv = httptest.NewServer(New(Config{Registry: m.reg, Cache: cache, Store: m.st, Version: "v1.36.6+test"}))
	m.stop = func() {
		m.srv.CloseClientConnections()
		m.srv.Close()
		cancel()
		<-done
	}
}

func (m *mortal) ask(rt *rapid.T, method, path, body, contentType, accept string) (int, []byte) {
	req, err := http.NewRequest(method, m.srv.URL+path, strings.NewReader(body))
	if err != nil {
		rt.Fatal(err)
	}
	req.Header.Set("Content-Type", contentType)
	req.Header.Set("Accept", accept)
	res, err := m.srv.Client().Do(req)
	if err != nil {
		rt.Fatal(err)
	}
	defer res.Body.Close()
	var b strings.Builder
	if _, err := bufio.NewReader(res.Body).WriteTo(&b); err != nil {
		rt.Fatal(err)
	}
	return res.StatusCode, []byte(b.String())
}

// page is a list in any form, as far as it matters.
type page struct {
	metav1.ListMeta
	items []string // namespace/name@revision
}

var listForms = []string{
	"application/json", "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io", "application/json;as=Table;v=v1;g=meta.k8s.io",
	"application/vnd.kubernetes.protobuf", "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io", "application/yaml",
}

func readPage(rt *rapid.T, accept string, body []byte) (out page) {
	add := func(m metav1.ObjectMeta) { out.items = append(out.items, m.Namespace+"/"+m.Name+"@"+m.ResourceVersion) }
	var into runtime.Object = &corev1.PodList{}
	kind := schema.GroupVersionKind{Version: "v1", Kind: "PodList"}
	switch {
	case strings.Contains(accept, "Table"):
		into, kind = &metav1.Table{}, schema.GroupVersionKind{Group: "meta.k8s.io", Version: "v1", Kind: "Table"}
	case strings.Contains(accept, "Partial"):
		into, kind = &metav1.PartialObjectMetadataList{}, schema.GroupVersionKind{Group: "meta.k8s.io", Version: "v1", Kind: "PartialObjectMetadataList"}
	}
	media, _, _ := strings.Cut(accept, ";")
	if _, err := codec.DecodeRequest(media, body, kind, func(got schema.GroupVersionKind) (runtime.Object, error) {
		if got != kind {
			return nil, fmt.Errorf("got %v, want %v", got, kind)
		}
		return into, nil
	}); err != nil {
		rt.Fatalf("%s: %v: %.200q", accept, err, body)
	}
	switch l := into.(type) {
	case *corev1.PodList:
		out.ListMeta = l.ListMeta
		for i := range l.Items {
			add(l.Items[i].ObjectMeta)
		}
	case *metav1.PartialObjectMetadataList:
		out.ListMeta = l.ListMeta
		for i := range l.Items {
			add(l.Items[i].ObjectMeta)
		}
	case *metav1.Table:
		out.ListMeta = l.ListMeta
		for i := range l.Rows {
			var p metav1.PartialObjectMetadata
			if err := json.Unmarshal(l.Rows[i].Object.Raw, &p); err != nil {
				rt.Fatal(err)
			}
			add(p.ObjectMeta)
		}
	}
	return out
}

// reader is an open watch.
type reader struct {
	v    view
	from int64 // -1: the state that it begins with is told, or unknown
	end  func()
	mu   sync.Mutex // guards what follows
	got  []string   // without bookmarks
	rev  int64      // the last that was seen
	gone bool       // the server has told it to list again
	over bool       // the stream has ended
	mark int        // events before the bookmark that ends the initial ones; -1: not seen
	at   int64      // that bookmark's revision
	odd  string
}

func (m *mortal) open(rt *rapid.T, r *reader, query url.Values) (code int) {
	ctx, cancel := context.WithCancel(context.Background())
	query.Set("watch", "1")
	req, err := http.NewRequestWithContext(ctx, "GET", m.srv.URL+r.v.path()+"?"+query.Encode(), nil)
	if err != nil {
		rt.Fatal(err)
	}
	res, err := m.srv.Client().Do(req)
	if err != nil {
		rt.Fatal(err)
	}
	r.over, r.mark = false, -1
	ended := make(chan struct{})
	r.end = func() { cancel(); <-ended }
	go func() {
		defer close(ended)
		defer res.Body.Close()
		r.read(res)
	}()
	return res.StatusCode
}

func (r *reader) read(res *http.Response) {
	dec := json.NewDecoder(res.Body)
	for {
		var e struct {
			Type   string
			Object metav1.PartialObjectMetadata
		}
		err := dec.Decode(&e)
		r.mu.Lock()
		if err != nil {
			r.over = true
			r.mu.Unlock()
			return
		}
		rev, _ := strconv.ParseInt(e.Object.ResourceVersion, 10, 64)
		switch {
		case e.Type == "ERROR":
			r.gone = true
		case e.Type == "BOOKMARK":
			if e.Object.Annotations[codec.InitialEventsEnd] == "true" {
				r.mark, r.at = len(r.got), rev
			}
			r.rev = max(r.rev, rev)
		default:
			if r.mark >= 0 && rev <= r.rev {
				r.odd = fmt.Sprintf("event of %d after %d", rev, r.rev)
			}
			r.rev = max(r.rev, rev)
			r.got = append(r.got, fmt.Sprintf("%s %s/%s@%d", e.Type, e.Object.Namespace, e.Object.Name, rev))
		}
		r.mu.Unlock()
	}
}

// expect is what the reader must have got by now, for each state that it may have begun with.
func (r *reader) expect(tw *twin) [][]string {
	begin := func(rev int64) []string {
		var out []string
		for _, it := range tw.list(r.v, rev) {
			out = append(out, "ADDED "+it)
		}
		return append(out, tw.events(r.v, rev)...)
	}
	switch {
	case r.from >= 0:
		return [][]string{tw.events(r.v, r.from)}
	case r.mark >= 0:
		return [][]string{begin(r.at)}
	}
	var out [][]string
	for _, rev := range tw.revs {
		out = append(out, begin(rev))
	}
	return out
}

// check compares; whole says that everything must have come.
func (r *reader) check(rt *rapid.T, tw *twin, whole bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.odd != "" {
		rt.Fatalf("watch of %+v: %s", r.v, r.odd)
	}
	all := r.expect(tw)
	for _, want := range all {
		if !whole && len(want) > len(r.got) {
			want = want[:len(r.got)]
		}
		if slices.Equal(want, r.got) {
			return
		}
	}
	rt.Fatalf("watch of %+v from %d:\ngot  %q\nwant %q", r.v, r.from, r.got, all)
}

// few makes rapid try ten histories unless -rapid.checks says how many: a server is made for each.
func few(t *testing.T) {
	told := false
	flag.Visit(func(f *flag.Flag) { told = told || f.Name == "rapid.checks" })
	if told {
		return
	}
	if err := flag.Set("rapid.checks", "10"); err != nil {
		t.Fatal(err)
	}
}

// Over HTTP the server answers as its naive twin: lists by every combination of
// resourceVersion, resourceVersionMatch, limit, continue and selectors, in every form; watches
// from every revision and with initial events; through restarts, compaction and a
// store that goes away. No event is lost, doubled or out of order.
func TestTwin(t *testing.T) {
	// Pods alone, so that a server is made in no time.
	rows := slices.DeleteFunc(resources.Table(), func(row *resources.Row) bool { return row.Kind != "Pod" })
	reg, err := resources.NewRegistry(rows)
	if err != nil {
		t.Fatal(err)
	}
	few(t)
	rapid.Check(t, func(rt *rapid.T) {
		m := &mortal{reg: reg, st: memory.New(), opts: watchcache.Options{LogEvents: rapid.SampledFrom([]int{4, 1000}).Draw(rt, "log")}}
		m.start()
		defer func() { m.stop() }()
		tw := &twin{}
		tw.record(1, func(map[string]twinPod) {})
		var readers []*reader
		defer func() {
			for _, r := range readers {
				r.end()
			}
		}()

		created := 0
		create := func(p twinPod) {
			created++
			label := ""
			if p.app != "" {
				label = fmt.Sprintf(`,"labels":{"app":%q}`, p.app)
			}
			body := fmt.Sprintf(`{"metadata":{"name":%q%s},"spec":{"nodeName":%q,"containers":[{"name":"c","image":"i"}]}}`, p.name, label, p.node)
			path := "/api/v1/namespaces/" + p.namespace + "/pods"
			code, out := m.ask(rt, "POST", path, body, "application/json", "application/json")
			var made metav1.PartialObjectMetadata
			if code != 201 || json.Unmarshal(out, &made) != nil {
				rt.Fatalf("create %+v: %d %s", p, code, out)
			}
			phase := p.phase
			p.rev, _ = strconv.ParseInt(made.ResourceVersion, 10, 64)
			p.phase = "Pending"
			tw.record(p.rev, func(s map[string]twinPod) { s[p.key()] = p })
			if phase == "" || phase == "Pending" {
				return
			}
			code, out = m.ask(rt, "PATCH", path+"/"+p.name+"/status", fmt.Sprintf(`{"status":{"phase":%q}}`, phase), "application/merge-patch+json", "application/json")
			if code != 200 || json.Unmarshal(out, &made) != nil {
				rt.Fatalf("phase of %+v: %d %s", p, code, out)
			}
			p.rev, _ = strconv.ParseInt(made.ResourceVersion, 10, 64)
			p.phase = phase
			tw.record(p.rev, func(s map[string]twinPod) { s[p.key()] = p })
		}
		remove := func(p twinPod) {
			code, out := m.ask(rt, "DELETE", "/api/v1/namespaces/"+p.namespace+"/pods/"+p.name, `{"gracePeriodSeconds":0}`, "application/json", "application/json")
			if code != 200 {
				rt.Fatalf("delete %+v: %d %s", p, code, out)
			}
			rev, _ := m.st.Rev(context.Background())
			tw.record(rev, func(s map[string]twinPod) { delete(s, p.key()) })
		}
		ask := func(v view, q url.Values) (int, page, []byte) {
			form := rapid.SampledFrom(listForms).Draw(rt, "form")
			code, body := m.ask(rt, "GET", v.path()+"?"+q.Encode(), "", "", form)
			if code != 200 {
				return code, page{}, body
			}
			return code, readPage(rt, form, body), body
		}
		draw := func() view { return rapid.SampledFrom(views).Draw(rt, "view") }
		past := func() int64 { return rapid.SampledFrom(tw.revs).Draw(rt, "revision") }

		rt.Repeat(map[string]func(*rapid.T){
			"write": func(rt *rapid.T) {
				p := twinPod{
					namespace: rapid.SampledFrom([]string{"a", "b", "ab"}).Draw(rt, "namespace"), name: rapid.SampledFrom([]string{"p1", "p2", "p"}).Draw(rt, "name"),
					app: rapid.SampledFrom([]string{"", "x", "y"}).Draw(rt, "app"), node: rapid.SampledFrom([]string{"", "n1", "n2"}).Draw(rt, "node"),
					phase: rapid.SampledFrom([]string{"Pending", "Running"}).Draw(rt, "phase"),
				}
				old, there := tw.now()[p.key()]
				switch {
				case !there:
					create(p)
				case rapid.IntRange(0, 2).Draw(rt, "delete") == 0:
					remove(old)
				case old.app != p.app:
					label := "null"
					if p.app != "" {
						label = strconv.Quote(p.app)
					}
					code, out := m.ask(rt, "PATCH", "/api/v1/namespaces/"+p.namespace+"/pods/"+p.name, `{"metadata":{"labels":{"app":`+label+`}}}`, "application/merge-patch+json", "application/json")
					var made metav1.PartialObjectMetadata
					if code != 200 || json.Unmarshal(out, &made) != nil {
						rt.Fatalf("patch %+v: %d %s", p, code, out)
					}
					old.app = p.app
					old.rev, _ = strconv.ParseInt(made.ResourceVersion, 10, 64)
					tw.record(old.rev, func(s map[string]twinPod) { s[old.key()] = old })
				}
			},
			"list": func(rt *rapid.T) {
				v := draw()
				q := v.query()
				match := rapid.SampledFrom([]string{"", "", "Exact", "NotOlderThan", "Other"}).Draw(rt, "match")
				rv := rapid.SampledFrom([]string{"", "0", "past"}).Draw(rt, "rv")
				limit := rapid.SampledFrom([]int{0, 0, 1, 2, 100}).Draw(rt, "limit")
				n := past()
				if rv == "past" {
					rv = strconv.FormatInt(n, 10)
				}
				if match != "" {
					q.Set("resourceVersionMatch", match)
				}
				if rv != "" {
					q.Set("resourceVersion", rv)
				}
				if limit > 0 {
					q.Set("limit", strconv.Itoa(limit))
				}
				start := m.cache.Stats().Start
				code, got, body := ask(v, q)
				if match == "Other" || match != "" && rv == "" || match == "Exact" && rv == "0" {
					if code != 422 && code != 400 {
						rt.Fatalf("%v: got %d", q, code)
					}
					return
				}
				exact := rv != "" && rv != "0" && (match == "Exact" || match == "" && limit > 0)
				if code == 410 && exact && n < max(start, m.cache.Stats().Start) {
					return
				}
				if code != 200 {
					rt.Fatalf("%v: %d %s", q, code, body)
				}
				at, _ := strconv.ParseInt(got.ResourceVersion, 10, 64)
				switch {
				case exact && at != n, rv == "" && at != tw.last(), !exact && rv != "" && rv != "0" && at < n, at > tw.last():
					rt.Fatalf("%v is answered at %d; asked for %d, the last is %d", q, at, n, tw.last())
				}
				want := tw.list(v, at)
				seen := got.items
				for got.Continue != "" {
					if left := got.RemainingItemCount; left != nil && int(*left) != len(want)-len(seen) {
						rt.Fatalf("%v: %d remain, says %d", q, len(want)-len(seen), *left)
					} else if left == nil && v.label == "" && v.field == "" {
						rt.Fatalf("%v: how many remain is not said", q)
					}
					if rapid.Bool().Draw(rt, "write between pages") {
						create(twinPod{namespace: "a", name: fmt.Sprintf("between%d", created), app: "x", node: "n1"})
					}
					more := v.query()
					more.Set("limit", strconv.Itoa(limit))
					more.Set("continue", got.Continue)
					if code, got, body = ask(v, more); code != 200 {
						if code == 410 && at < m.cache.Stats().Start {
							return
						}
						rt.Fatalf("%v: %d %s", more, code, body)
					}
					if got.ResourceVersion != strconv.FormatInt(at, 10) {
						rt.Fatalf("pages are of %s and %d", got.ResourceVersion, at)
					}
					seen = append(seen, got.items...)
				}
				if !slices.Equal(seen, want) {
					rt.Fatalf("%v at %d:\ngot  %q\nwant %q", q, at, seen, want)
				}
			},
			"watch": func(rt *rapid.T) {
				if len(readers) > 12 {
					return
				}
				r := &reader{v: draw(), from: -1}
				q := r.v.query()
				switch rapid.SampledFrom([]string{"from", "from", "any", "newest", "initial", "no initial"}).Draw(rt, "kind") {
				case "from":
					r.from = past()
					r.rev = r.from
					q.Set("resourceVersion", strconv.FormatInt(r.from, 10))
				case "any":
					q.Set("resourceVersion", "0")
				case "newest":
				case "initial":
					q.Set("sendInitialEvents", "true")
					q.Set("resourceVersionMatch", "NotOlderThan")
					q.Set("allowWatchBookmarks", "true")
					if rapid.Bool().Draw(rt, "not older") {
						q.Set("resourceVersion", strconv.FormatInt(past(), 10))
					}
				case "no initial":
					q.Set("sendInitialEvents", "false")
					q.Set("resourceVersionMatch", "NotOlderThan")
					r.from = tw.last()
					r.rev = r.from
				}
				if code := m.open(rt, r, q); code != 200 {
					rt.Fatalf("watch %v: %d", q, code)
				}
				readers = append(readers, r)
			},
			"compact": func(*rapid.T) { _ = m.st.Compact(context.Background(), past()) },
			"store away": func(rt *rapid.T) {
				m.st.Fail(func(call, _ string) error {
					if call == "watch" {
						return fmt.Errorf("the store is away")
					}
					return nil
				})
				for range rapid.IntRange(1, 3).Draw(rt, "writes") {
					create(twinPod{namespace: "a", name: fmt.Sprintf("away%d", created), app: "x", node: "n2"})
				}
				if rapid.Bool().Draw(rt, "compact") {
					_ = m.st.Compact(context.Background(), tw.last())
				}
				m.st.Fail(nil)
				wait, cancel := context.WithTimeout(context.Background(), 20*time.Second)
				defer cancel()
				if err := m.cache.WaitFor(wait, tw.last()); err != nil {
					rt.Fatal(err)
				}
			},
			"restart": func(rt *rapid.T) {
				m.stop()
				m.start()
				for _, r := range readers {
					r.end()
					r.check(rt, tw, false)
					if r.gone || r.from < 0 && r.mark < 0 {
						r.gone = true // a client that does not know where it is lists again
						continue
					}
					q := r.v.query()
					q.Set("resourceVersion", strconv.FormatInt(r.rev, 10))
					mark := r.mark
					if code := m.open(rt, r, q); code != 200 {
						rt.Fatalf("watch again from %d: %d", r.rev, code)
					}
					r.mu.Lock()
					r.mark = mark
					r.mu.Unlock()
				}
			},
		})

		// Each view sees one write more: what came before it is all that there was.
		for _, r := range readers {
			p := r.v.match
			if p.phase == "" {
				p.phase = "Pending"
			}
			if old, there := tw.now()[p.key()]; there {
				remove(old)
			}
			create(p)
		}
		for _, r := range readers {
			for limit := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
				r.mu.Lock()
				want := r.expect(tw)[0]
				newest := want[len(want)-1]
				done := r.gone || len(r.got) > 0 && r.got[len(r.got)-1] == newest
				seen := fmt.Sprint(r.got)
				r.mu.Unlock()
				if done {
					break
				}
				if time.Now().After(limit) {
					rt.Fatalf("watch of %+v from %d does not come to %s: %s", r.v, r.from, newest, seen)
				}
			}
			r.end()
			r.check(rt, tw, !r.gone)
		}
	})
}
