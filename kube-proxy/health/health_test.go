package health

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/types"

	"github.com/keelson/keelson/kube-proxy/model"
	"github.com/keelson/keelson/libs/log"
	"github.com/keelson/keelson/libs/testkit"
)

func ask(t *testing.T, port uint16) (int, map[string]any, http.Header) {
	t.Helper()
	resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/", port))
	if err != nil {
		return 0, nil, nil
	}
	defer resp.Body.Close()
	var body map[string]any
	if err := json.NewDecoder(resp.Body).Decode(&body); err != nil {
		t.Error(err)
	}
	return resp.StatusCode, body, resp.Header
}

func TestAPortInUseIsTriedAgain(t *testing.T) {
	other, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	port := uint16(other.Addr().(*net.TCPAddr).Port)
	healthy := true
	c := New(func() bool { return healthy }, log.Discard())
	c.every = 10 * time.Millisecond
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	ports := []model.Port{{Service: types.NamespacedName{Namespace: "ns", Name: "web"}, HealthCheckPort: port, LocalReady: 2}}
	c.Update(ports)
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, 10*time.Second, func() (bool, string) {
		code, _, _ := ask(t, port)
		return code == http.StatusOK, fmt.Sprintf("code %d", code)
	})
	_, body, header := ask(t, port)
	want := map[string]any{"service": map[string]any{"namespace": "ns", "name": "web"}, "localEndpoints": 2.0, "serviceProxyHealthy": true}
	if diff := cmp.Diff(want, body); diff != "" || header.Get("X-Load-Balancing-Endpoint-Weight") != "2" {
		t.Errorf("%v, -want +got:\n%s", header, diff)
	}
	ports[0].LocalReady = 0
	c.Update(ports)
	if code, _, _ := ask(t, port); code != http.StatusServiceUnavailable {
		t.Errorf("without local endpoints: %d", code)
	}
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if code, _, _ := ask(t, port); code != 0 {
		t.Errorf("answers %d after the end", code)
	}
}

func TestHowTheProxyIs(t *testing.T) {
	now := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	before := now.Add(-10 * time.Minute)
	for _, c := range []struct {
		why           string
		families      map[model.Family]Family
		eligible      bool
		live, healthy int
		updated       time.Time
	}{
		{"it starts", map[model.Family]Family{4: {}}, true, 200, 200, now},
		{"nothing has happened for long", map[model.Family]Family{4: {Updated: before}}, true, 200, 200, now},
		{"a change waits, not for long", map[model.Family]Family{4: {Updated: before, Waiting: now.Add(-59 * time.Second)}}, true, 200, 200, now},
		{"a change waits for too long", map[model.Family]Family{4: {Updated: before, Waiting: now.Add(-time.Minute)}, 6: {Updated: before}}, true, 503, 503, before},
		{"the node is to go", map[model.Family]Family{4: {Updated: before}}, false, 200, 503, before},
	} {
		p := NewProxy(func() map[model.Family]Family { return c.families }, func() bool { return c.eligible }, prometheus.NewRegistry())
		p.now = func() time.Time { return now }
		for path, want := range map[string]int{"livez": c.live, "healthz": c.healthy} {
			h := p.Live()
			if path == "healthz" {
				h = p.Health()
			}
			w := httptest.NewRecorder()
			h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/"+path, nil))
			var s status
			if err := json.Unmarshal(w.Body.Bytes(), &s); err != nil {
				t.Fatal(err)
			}
			if w.Code != want || w.Header().Get("Content-Type") != "application/json" {
				t.Errorf("%s: /%s answers %d, want %d: %s", c.why, path, w.Code, want, w.Body)
			}
			if (s.NodeEligible != nil) != (path == "healthz") {
				t.Errorf("%s: /%s: %s", c.why, path, w.Body)
			}
			if path == "healthz" && !s.LastUpdated.Equal(c.updated) {
				t.Errorf("%s: last updated %s, want %s", c.why, s.LastUpdated, c.updated)
			}
		}
	}
}
