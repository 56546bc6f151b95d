package rest

import (
	"context"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/keelson/keelson/apiserver/resources"
)

// twoComponents are what the harness observes.
func twoComponents(_ context.Context, name string) []resources.Object {
	var out []resources.Object
	for _, n := range []string{"etcd-0", "scheduler"} {
		if name == "" || name == n {
			out = append(out, &corev1.ComponentStatus{
				ObjectMeta: metav1.ObjectMeta{Name: n},
				Conditions: []corev1.ComponentCondition{{Type: corev1.ComponentHealthy, Status: corev1.ConditionTrue, Message: "ok"}},
			})
		}
	}
	return out
}

func TestObservedKindsAreReadAsOthers(t *testing.T) {
	h := newHarness(t)
	const (
		path = "/api/v1/componentstatuses"
		etcd = `{"metadata":{"name":"etcd-0"},"conditions":[{"type":"Healthy","status":"True","message":"ok"}]}`
		next = `{"metadata":{"name":"scheduler"},"conditions":[{"type":"Healthy","status":"True","message":"ok"}]}`
	)
	list := func(items string) string {
		return `{"kind":"ComponentStatusList","apiVersion":"v1","metadata":{},"items":[` + items + `]}`
	}
	for _, row := range []struct {
		query string
		code  int
		want  string
	}{
		{"", 200, list(etcd + "," + next)},
		{"?limit=1", 200, list(etcd + "," + next)},
		{"?resourceVersion=0", 200, list(etcd + "," + next)},
		{"?fieldSelector=metadata.name%3Dscheduler", 200, list(next)},
		{"?fieldSelector=metadata.name%21%3Dscheduler", 200, list(etcd)},
		{"?fieldSelector=metadata.name%3Dnobody", 200, list("")},
		{"?labelSelector=a%3Db", 200, list("")},
		{"?labelSelector=%21a", 200, list(etcd + "," + next)},
		{"?fieldSelector=kind%3Db", 400, `\"kind\" is not a known field selector`},
		{"/etcd-0", 200, `{"kind":"ComponentStatus","apiVersion":"v1",` + etcd[1:]},
		{"/nobody", 404, `componentstatus \"nobody\" not found`},
		{"?watch=1", 405, "MethodNotAllowed"},
	} {
		r := h.do("GET", path+row.query, "")
		if got := strings.TrimSpace(string(r.body)); r.code != row.code || (row.code == 200 && got != row.want) || !strings.Contains(got, row.want) {
			t.Errorf("%s: %d %s\nwant %d %s", row.query, r.code, got, row.code, row.want)
		}
		if w := r.header.Get("Warning"); row.code == 200 && !strings.Contains(w, "v1 ComponentStatus is deprecated in v1.19+") {
			t.Errorf("%s: warning %q", row.query, w)
		}
	}
	r := h.do("GET", path, "", "Accept", "application/json;as=Table;v=v1;g=meta.k8s.io")
	if got := string(r.body); r.code != 200 || !strings.Contains(got, `"cells":["scheduler","Healthy","ok",""]`) {
		t.Errorf("table: %d %s", r.code, got)
	}
}
