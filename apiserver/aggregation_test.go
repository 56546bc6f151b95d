package apiserver

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// extension is an aggregated API server: one kind, Gizmo, that is not stored anywhere.
type extension struct {
	mu      sync.Mutex // guards what follows
	seen    []http.Header
	peer    string
	version string
}

func (e *extension) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	e.mu.Lock()
	e.seen = append(e.seen, r.Header.Clone())
	if len(r.TLS.PeerCertificates) > 0 {
		e.peer = r.TLS.PeerCertificates[0].Subject.CommonName
	}
	e.mu.Unlock()
	gv := "gizmos.example.com/v1"
	answer := func(contentType string, v any) {
		w.Header().Set("Content-Type", contentType)
		_ = json.NewEncoder(w).Encode(v)
	}
	type object = map[string]any
	switch {
	case r.URL.Path == "/apis":
		http.Error(w, "a server from before aggregated discovery", http.StatusNotFound)
	case r.URL.Path == "/apis/"+gv:
		answer("application/json", object{"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": gv, "resources": []object{
			{"name": "gizmos", "singularName": "gizmo", "namespaced": true, "kind": "Gizmo", "verbs": []string{"get", "list", "watch"}, "shortNames": []string{"gz"}},
			{"name": "gizmos/status", "namespaced": true, "kind": "Gizmo", "verbs": []string{"get"}},
		}})
	case r.URL.Path == "/openapi/v2":
		ref := object{"schema": object{"$ref": "#/definitions/com.example.gizmos.v1.Gizmo"}}
		w.Header().Set("ETag", `"1"`)
		answer("application/json", object{"swagger": "2.0", "paths": object{
			"/apis/" + gv + "/gizmos": object{"get": object{"responses": object{"200": ref}}},
			"/apis/other/v1/x":        object{"get": object{"responses": object{}}},
		}, "definitions": object{
			"com.example.gizmos.v1.Gizmo": object{"type": "object", "properties": object{
				"metadata": object{"$ref": "#/definitions/io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"},
			}},
			"io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta": object{"type": "object", "description": "of another version"},
		}})
	case r.URL.Path == "/openapi/v3":
		answer("application/json", object{"paths": object{"apis/" + gv: object{"serverRelativeURL": "/openapi/v3/apis/" + gv + "?hash=H"}}})
	case r.URL.Path == "/openapi/v3/apis/"+gv:
		answer("application/json", object{"openapi": "3.0.0", "info": object{"title": "gizmos"}})
	case r.URL.Query().Get("watch") == "true":
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write([]byte(`{"type":"ADDED","object":{"kind":"Gizmo","apiVersion":"` + gv + `","metadata":{"name":"a"}}}` + "\n"))
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	case strings.HasSuffix(r.URL.Path, "/connect"):
		conn, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		_, _ = rw.WriteString("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
		_ = rw.Flush()
		if line, err := rw.ReadString('\n'); err == nil {
			_, _ = rw.WriteString("echo " + line)
			_ = rw.Flush()
		}
	case strings.HasPrefix(r.URL.Path, "/apis/"+gv+"/namespaces/default/gizmos"):
		answer("application/json", object{"kind": "GizmoList", "apiVersion": gv, "metadata": object{}, "items": []object{}})
	default:
		http.NotFound(w, r)
	}
}

// eventually waits for a condition, and tells what was seen last.
func eventually(t *testing.T, what string, look func() (bool, any)) {
	t.Helper()
	until(t, time.Minute, what, func() error {
		if ok, last := look(); !ok {
			return fmt.Errorf("last seen: %v", last)
		}
		return nil
	})
}

// An API that another server serves: registered, found, asked, lost, and removed.
func TestAggregation(t *testing.T) {
	p, front := newPKI(t), newPKI(t)
	front.make(t, "proxy", &x509.Certificate{Subject: pkix.Name{CommonName: "front-proxy-client"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	cfg := serving(t, p, 25051)
	cfg.RequestHeaderCAFile = front.file("ca.crt")
	cfg.ProxyClientCertFile, cfg.ProxyClientKeyFile = front.file("proxy.crt"), front.file("proxy.key")
	admin, nobody := p.client(t, "admin", "system:masters"), p.client(t, "")
	url := fmt.Sprintf("https://127.0.0.1:%d", cfg.Port)
	defer running(t, cfg, nobody)()
	defer admin.CloseIdleConnections()

	get := func(path string, headers ...string) (int, map[string]any) {
		return call(t, admin, "GET", url+path, "", headers...)
	}
	// What the server itself serves is registered.
	code, list := get("/apis/apiregistration.k8s.io/v1/apiservices")
	names := map[string]string{}
	for _, it := range list["items"].([]any) {
		o := it.(map[string]any)
		meta := o["metadata"].(map[string]any)
		cond := o["status"].(map[string]any)["conditions"].([]any)[0].(map[string]any)
		names[meta["name"].(string)] = fmt.Sprint(meta["labels"], cond["status"], cond["reason"])
	}
	for _, want := range []string{"v1.", "v1.apps", "v2.autoscaling", "v1.rbac.authorization.k8s.io"} {
		if names[want] != "map[kube-aggregator.kubernetes.io/automanaged:onstart]TrueLocal" {
			t.Errorf("%s: %q (code %d)", want, names[want], code)
		}
	}
	if _, own := names["v1.apiregistration.k8s.io"]; own {
		t.Error("the group of APIServices is registered as one")
	}

	ca := newPKI(t)
	ca.make(t, "gizmos", &x509.Certificate{Subject: pkix.Name{CommonName: "gizmos"}, DNSNames: []string{"gizmos.default.svc"}})
	pair, err := tls.LoadX509KeyPair(ca.file("gizmos.crt"), ca.file("gizmos.key"))
	if err != nil {
		t.Fatal(err)
	}
	ext := &extension{}
	srv := httptest.NewUnstartedServer(ext)
	srv.EnableHTTP2 = true
	srv.TLS = &tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequestClientCert}
	srv.StartTLS()
	defer srv.Close()
	port := srv.Listener.Addr().(*net.TCPAddr).Port
	bundle, err := os.ReadFile(ca.file("ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	const gv, name = "/apis/gizmos.example.com/v1", "v1.gizmos.example.com"
	registration := func(bundle []byte) string {
		return fmt.Sprintf(`{"apiVersion":"apiregistration.k8s.io/v1","kind":"APIService","metadata":{"name":%q},"spec":{
			"group":"gizmos.example.com","version":"v1","groupPriorityMinimum":19000,"versionPriority":15,"caBundle":%q,
			"service":{"namespace":"default","name":"gizmos","port":%d}}}`, name, base64.StdEncoding.EncodeToString(bundle), port)
	}
	if code, got := call(t, admin, "POST", url+"/apis/apiregistration.k8s.io/v1/apiservices", registration(bundle)); code != 201 {
		t.Fatalf("register: %d %v", code, got)
	}
	available := func(status, reason string) {
		t.Helper()
		eventually(t, status+" "+reason, func() (bool, any) {
			_, got := get("/apis/apiregistration.k8s.io/v1/apiservices/" + name)
			st, _ := got["status"].(map[string]any)
			conds, _ := st["conditions"].([]any)
			if len(conds) == 0 {
				return false, got
			}
			c := conds[0].(map[string]any)
			return c["status"] == status && c["reason"] == reason, c
		})
	}
	available("False", "ServiceNotFound")
	if code, got := get(gv + "/namespaces/default/gizmos"); code != 503 {
		t.Errorf("without a service: %d %v", code, got)
	}
	freshness := func() string {
		_, got := get("/apis", "Accept", "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList")
		for _, it := range got["items"].([]any) {
			g := it.(map[string]any)
			if g["metadata"].(map[string]any)["name"] == "gizmos.example.com" {
				v := g["versions"].([]any)[0].(map[string]any)
				res, _ := v["resources"].([]any)
				return fmt.Sprint(v["freshness"], len(res))
			}
		}
		return "absent"
	}
	if got := freshness(); got != "Stale0" {
		t.Errorf("discovery of what cannot be reached: %s", got)
	}
	if code, got := call(t, admin, "POST", url+"/api/v1/namespaces/default/services",
		`{"metadata":{"name":"gizmos"},"spec":{"type":"ExternalName","externalName":"localhost","ports":[{"port":`+fmt.Sprint(port)+`}]}}`); code != 201 {
		t.Fatalf("service: %d %v", code, got)
	}
	available("True", "Passed")
	eventually(t, "fresh discovery", func() (bool, any) { f := freshness(); return f == "Current1", f })

	// The caller's name arrives, and what a client claims to be does not.
	code, got := get(gv+"/namespaces/default/gizmos", "X-Remote-User", "forged", "X-Remote-Group", "forged", "Impersonate-User", "jane", "Impersonate-Group", "g1", "Impersonate-Extra-Scope", "s")
	if code != 403 { // jane may not
		t.Errorf("jane lists: %d %v", code, got)
	}
	call(t, admin, "POST", url+"/apis/rbac.authorization.k8s.io/v1/clusterroles", `{"metadata":{"name":"gizmos"},"rules":[{"apiGroups":["gizmos.example.com"],"resources":["*"],"verbs":["*"]}]}`)
	call(t, admin, "POST", url+"/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", `{"metadata":{"name":"gizmos"},"roleRef":{"apiGroup":"rbac.authorization.k8s.io","kind":"ClusterRole","name":"gizmos"},"subjects":[{"kind":"User","name":"jane","apiGroup":"rbac.authorization.k8s.io"}]}`)
	eventually(t, "jane may list", func() (bool, any) {
		code, got = get(gv+"/namespaces/default/gizmos", "X-Remote-User", "forged", "X-Remote-Group", "forged", "Impersonate-User", "jane", "Impersonate-Group", "g1", "Impersonate-Extra-Scope", "s")
		return code == 200 && got["kind"] == "GizmoList", got
	})
	ext.mu.Lock()
	i := slices.IndexFunc(ext.seen, func(h http.Header) bool { return h.Get("X-Remote-User") == "jane" })
	if i < 0 {
		t.Errorf("jane's request did not arrive under her name")
	} else if h := ext.seen[i]; h.Get("Authorization") != "" || slices.Contains(h["X-Remote-Group"], "forged") || !slices.Contains(h["X-Remote-Group"], "g1") || h.Get("X-Remote-Extra-Scope") != "s" {
		t.Errorf("headers: %v", h)
	}
	if ext.peer != "front-proxy-client" {
		t.Errorf("the front proxy shows %q", ext.peer)
	}
	ext.mu.Unlock()

	// A watch is passed on as it comes, and an upgraded connection in both directions.
	resp, err := admin.Get(url + gv + "/namespaces/default/gizmos?watch=true")
	if err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(resp.Body).ReadString('\n'); err != nil || !strings.Contains(line, `"ADDED"`) {
		t.Errorf("watch: %q %v", line, err)
	}
	resp.Body.Close()
	one := admin.Transport.(*http.Transport).TLSClientConfig.Clone()
	one.NextProtos = []string{"http/1.1"} // only there can a connection be upgraded
	conn, err := tls.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", cfg.Port), one)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "GET %s/namespaces/default/gizmos/a/connect HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n", gv)
	answer := bufio.NewReader(conn)
	if up, err := http.ReadResponse(answer, nil); err != nil || up.StatusCode != 101 {
		t.Errorf("upgrade: %v %v", up, err)
	} else {
		fmt.Fprint(conn, "hello\n")
		if line, err := answer.ReadString('\n'); err != nil || line != "echo hello\n" {
			t.Errorf("over the upgraded connection: %q %v", line, err)
		}
	}

	// Discovery and OpenAPI name it, in its place.
	_, groups := get("/apis")
	order := []string{}
	for _, g := range groups["groups"].([]any) {
		order = append(order, g.(map[string]any)["name"].(string))
	}
	if len(order) < 3 || order[0] != "apiregistration.k8s.io" || order[1] != "gizmos.example.com" || order[2] != "apps" {
		t.Errorf("groups in order of priority: %v", order)
	}
	if code, got := get(gv); code != 200 || got["groupVersion"] != "gizmos.example.com/v1" {
		t.Errorf("%s: %d %v", gv, code, got)
	}
	_, v2 := get("/openapi/v2")
	paths, defs := v2["paths"].(map[string]any), v2["definitions"].(map[string]any)
	gizmo, _ := json.Marshal(defs["com.example.gizmos.v1.Gizmo"])
	if paths[gv+"/gizmos"] == nil || paths["/apis/other/v1/x"] != nil || !strings.Contains(string(gizmo), "ObjectMeta_v2") || defs["io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta_v2"] == nil {
		t.Errorf("OpenAPI v2: gizmo %s", gizmo)
	}
	_, v3 := get("/openapi/v3")
	entry, _ := json.Marshal(v3["paths"].(map[string]any)["apis/gizmos.example.com/v1"])
	if string(entry) != `{"serverRelativeURL":"/openapi/v3/apis/gizmos.example.com/v1?hash=H"}` {
		t.Errorf("OpenAPI v3 index: %s", entry)
	}
	if code, got := get("/openapi/v3" + gv); code != 200 || fmt.Sprint(got["info"]) != "map[title:gizmos]" {
		t.Errorf("OpenAPI v3: %d %v", code, got)
	}

	// The wrong authority: nothing is sent, and discovery says that what it knows is old.
	_, old := get("/apis/apiregistration.k8s.io/v1/apiservices/" + name)
	old["spec"].(map[string]any)["caBundle"] = base64.StdEncoding.EncodeToString(mustRead(t, p.file("ca.crt")))
	raw, _ := json.Marshal(old)
	eventually(t, "another authority is set", func() (bool, any) {
		_, now := get("/apis/apiregistration.k8s.io/v1/apiservices/" + name)
		old["metadata"] = now["metadata"]
		raw, _ = json.Marshal(old)
		code, got := call(t, admin, "PUT", url+"/apis/apiregistration.k8s.io/v1/apiservices/"+name, string(raw))
		return code == 200, got
	})
	available("False", "FailedDiscoveryCheck")
	eventually(t, "503", func() (bool, any) { code, got := get(gv + "/namespaces/default/gizmos"); return code == 503, got })
	eventually(t, "stale discovery", func() (bool, any) { f := freshness(); return f == "Stale1", f })

	// Removed: as if it had never been.
	if code, got := call(t, admin, "DELETE", url+"/apis/apiregistration.k8s.io/v1/apiservices/"+name, ""); code != 200 {
		t.Fatalf("delete: %d %v", code, got)
	}
	eventually(t, "404", func() (bool, any) { code, got := get(gv + "/namespaces/default/gizmos"); return code == 404, got })
	if got := freshness(); got != "absent" {
		t.Errorf("discovery after removal: %s", got)
	}

	// A custom resource's group version comes and goes by itself.
	if code, got := call(t, admin, "POST", url+"/apis/apiextensions.k8s.io/v1/customresourcedefinitions", `{"metadata":{"name":"widgets.custom.example.com"},"spec":{"group":"custom.example.com","scope":"Namespaced","names":{"plural":"widgets","kind":"Widget"},"versions":[{"name":"v1","served":true,"storage":true,"schema":{"openAPIV3Schema":{"type":"object"}}}]}}`); code != 201 {
		t.Fatalf("definition: %d %v", code, got)
	}
	const custom = "/apis/apiregistration.k8s.io/v1/apiservices/v1.custom.example.com"
	eventually(t, "the custom group version is registered", func() (bool, any) { code, got := get(custom); return code == 200, got })
	call(t, admin, "DELETE", url+"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/widgets.custom.example.com", "")
	eventually(t, "and gone again", func() (bool, any) { code, got := get(custom); return code == 404, got })
}

func mustRead(t *testing.T, file string) []byte {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
