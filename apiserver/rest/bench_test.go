package rest

import (
	"fmt"
	"net/http/httptest"
	"strings"
	"testing"
)

// BenchmarkPod measures one write of a pod of ordinary size, without network and disk.
func BenchmarkPod(b *testing.B) {
	env := make([]string, 20)
	for i := range env {
		env[i] = fmt.Sprintf(`{"name":"VARIABLE_%d","value":"some value of ordinary length %d"}`, i, i)
	}
	pod := `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"p","labels":{"app":"web","tier":"front"},"annotations":{"n":"%d"}},"spec":{"containers":[{"name":"c","image":"nginx","ports":[{"containerPort":80}],"resources":{"requests":{"cpu":"100m","memory":"64Mi"}},"env":[` + strings.Join(env, ",") + `]}]}}`
	const pods = "/api/v1/namespaces/default/pods"
	for _, c := range []struct{ name, method, path, kind, body string }{
		{"get", "GET", pods + "/p", "", ""},
		{"update", "PUT", pods + "/p", "application/json", pod},
		{"patch", "PATCH", pods + "/p", "application/merge-patch+json", `{"metadata":{"annotations":{"n":"%d"}}}`},
		{"strategic", "PATCH", pods + "/p/status", "application/strategic-merge-patch+json", `{"status":{"conditions":[{"type":"Ready","status":"True","message":"%d"}]}}`},
		{"apply", "PATCH", pods + "/p?fieldManager=tester&force=true", "application/apply-patch+yaml", pod},
	} {
		b.Run(c.name, func(b *testing.B) {
			h := newHarness(b)
			h.must(201, "POST", pods, fmt.Sprintf(pod, 0))
			b.ReportAllocs()
			b.ResetTimer()
			for i := range b.N {
				body := c.body
				if strings.Contains(body, "%d") {
					body = fmt.Sprintf(body, i+1)
				}
				r := httptest.NewRequest(c.method, c.path, strings.NewReader(body))
				r.Header.Set("Content-Type", c.kind)
				r.Header.Set("User-Agent", "tester/1")
				w := httptest.NewRecorder()
				h.srv.Config.Handler.ServeHTTP(w, r)
				if w.Code != 200 {
					b.Fatalf("%d %s", w.Code, w.Body)
				}
			}
		})
	}
}
