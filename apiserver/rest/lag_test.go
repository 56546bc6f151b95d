package rest

import (
	"context"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/keelson/keelson/apiserver/codec"
	"github.com/keelson/keelson/apiserver/resources"
	"github.com/keelson/keelson/apiserver/store"
	"github.com/keelson/keelson/apiserver/store/memory"
	"github.com/keelson/keelson/apiserver/watchcache"
)

// laggard is a store whose news come when lag is closed.
type laggard struct {
	store.Store
	lag chan struct{}
}

func (l laggard) Watch(ctx context.Context, from int64, fn func(store.Batch) error) error {
	select {
	case <-l.lag:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	return l.Store.Watch(ctx, from, fn)
}

// A write that is refused for the sake of a state that is no more is tried again with the newest
// one: the cache may lag behind what the client has just done at another server.
func TestWritesBesideACacheThatLags(t *testing.T) {
	reg, err := resources.NewRegistry(resources.Table())
	if err != nil {
		t.Fatal(err)
	}
	const json, merge, ops = "application/json", "application/merge-patch+json", "application/json-patch+json"
	for _, c := range []struct {
		text   string
		change [][3]string // what happens at the other server: method, path, body
		// then at the server that has not heard of it; %UID is of the object as it is now
		method, path, kind, body string
		code                     int
		message                  string
	}{
		{"a patch tests a value that was just written", [][3]string{{"PUT", "/a", `{"metadata":{"name":"a"},"data":{"k":"new"}}`}},
			"PATCH", "/a", ops, `[{"op":"test","path":"/data/k","value":"new"},{"op":"add","path":"/data/l","value":"1"}]`, 200, ""},
		{"an update names the uid of an object that was just made anew", [][3]string{{"DELETE", "/a", ""}, {"POST", "", configMap("a")}},
			"PUT", "/a", json, `{"metadata":{"name":"a","uid":"%UID"}}`, 200, ""},
		{"a patch of an object that was immutable", [][3]string{{"DELETE", "/frozen", ""}, {"POST", "", configMap("frozen")}},
			"PATCH", "/frozen", merge, `{"data":{"k":"v2"}}`, 200, ""},
		{"a patch of an object that has gone", [][3]string{{"DELETE", "/a", ""}}, "PATCH", "/a", merge, `{"data":{"k":"x"}}`, 404, ""},
		{"a patch that fits the old state alone", [][3]string{{"PUT", "/a", `{"metadata":{"name":"a"},"data":{"k":"new"}}`}},
			"PATCH", "/a", ops, `[{"op":"test","path":"/data/k","value":"v"}]`, 422, "rejected our request"},
		{"a dry run of a creation that has happened", [][3]string{{"POST", "", configMap("c")}}, "POST", "?dryRun=All", json, configMap("c"), 409, "already exists"},
	} {
		t.Run(c.text, func(t *testing.T) {
			st := memory.New()
			lag := make(chan struct{})
			server := func(lags bool) *plain {
				kept := watchcache.New(st, reg, watchcache.Options{})
				if lags {
					kept = watchcache.New(laggard{st, lag}, reg, watchcache.Options{})
				}
				ctx, cancel := context.WithCancel(context.Background())
				done := make(chan struct{})
				go func() { defer close(done); _ = kept.Run(ctx) }()
				<-kept.Ready()
				p := &plain{New(Config{Registry: reg, Cache: kept, Store: st}), func() { cancel(); <-done }}
				t.Cleanup(p.stop)
				return p
			}
			other := server(false)
			ask := func(p *plain, method, path, kind, body string) *httptest.ResponseRecorder {
				path, query, _ := strings.Cut(path, "?")
				r := request(method, maps+path, query, []byte(body))
				r.Header.Set("Content-Type", kind)
				return p.do(r)
			}
			for _, body := range []string{configMap("a"), strings.Replace(configMap("frozen"), `"data"`, `"immutable":true,"data"`, 1)} {
				if w := ask(other, "POST", "", json, body); w.Code != 201 {
					t.Fatal(w.Code, w.Body)
				}
			}
			late := server(true)
			for _, ch := range c.change {
				if w := ask(other, ch[0], ch[1], json, ch[2]); w.Code > 201 {
					t.Fatal(w.Code, w.Body)
				}
			}
			uid := ""
			if strings.Contains(c.body, "%UID") {
				uid = reply{body: ask(other, "GET", c.path, "", "").Body.Bytes()}.object(t)["metadata"].(map[string]any)["uid"].(string)
			}
			time.AfterFunc(20*time.Millisecond, func() { close(lag) })
			w := ask(late, c.method, c.path, c.kind, strings.ReplaceAll(c.body, "%UID", uid))
			if w.Code != c.code || !strings.Contains(w.Body.String(), c.message) {
				t.Errorf("got %d, want %d: %s", w.Code, c.code, w.Body)
			}
		})
	}
}

// The namespace of a request, the account of a token: what was just created at another server exists.
func TestCertainReaderWaitsForACacheThatLags(t *testing.T) {
	reg, err := resources.NewRegistry(resources.Table())
	if err != nil {
		t.Fatal(err)
	}
	st := memory.New()
	lag := make(chan struct{})
	kept := watchcache.New(laggard{st, lag}, reg, watchcache.Options{})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = kept.Run(ctx) }()
	defer func() { cancel(); <-done }()
	<-kept.Ready()
	gr := schema.GroupResource{Resource: "configmaps"}
	row := reg.Storage(gr)
	value, _, err := codec.Value(row, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "a", Namespace: "default", UID: "u"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := st.Put(ctx, row.Key("default", "a"), value, 0, 0); err != nil {
		t.Fatal(err)
	}
	if obj, err := kept.Reader().Get(gr, "default", "a"); err != nil || obj != nil {
		t.Fatalf("the cache does not lag: %v, %v", obj, err)
	}
	time.AfterFunc(20*time.Millisecond, func() { close(lag) })
	if obj, err := kept.Certain().Get(gr, "default", "a"); err != nil || obj == nil || obj.GetUID() != "u" {
		t.Errorf("got %v, %v", obj, err)
	}
	if obj, err := kept.Certain().Get(gr, "default", "b"); err != nil || obj != nil {
		t.Errorf("what does not exist: %v, %v", obj, err)
	}
}
