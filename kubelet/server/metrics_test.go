package server

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestInterfaces(t *testing.T) {
	path := filepath.Join(t.TempDir(), "dev")
	text := `Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:  900       9    0    0    0     0          0         0     900       9    0    0    0     0       0          0
  eth0: 1000      10    1    2    0     0          0         0    2000      20    3    4    0     0       0          0
`
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	got := interfaces(path)
	want := []netInterface{{"eth0", [netCounters]uint64{1000, 10, 1, 2, 2000, 20, 3, 4}}}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(netInterface{})); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	n := networkStats(got, metav1.Now())
	if n == nil || n.Name != "eth0" || *n.RxBytes != 1000 || *n.TxErrors != 3 {
		t.Errorf("%+v", n)
	}
	if networkStats(nil, metav1.Now()) != nil {
		t.Error("no interfaces are some network")
	}
}

func TestRoutesHaveUpstreamsNames(t *testing.T) {
	for pattern, want := range map[string]string{
		"GET /exec/{namespace}/{pod}/{uid}/{container}": "exec", "POST /portForward/{namespace}/{pod}": "portForward", "GET /pods": "pods", "GET /pods/{$}": "pods",
		"GET /containerLogs/{namespace}/{pod}/{container}": "containerLogs", "GET /metrics/cadvisor": "metrics/cadvisor", "GET /stats/summary": "stats", "GET /logs/": "logs",
	} {
		path, streams := route(pattern)
		if path != want || streams != (want == "exec" || want == "portForward") {
			t.Errorf("%s: %q, lasting %t; want %q", pattern, path, streams, want)
		}
	}
}
