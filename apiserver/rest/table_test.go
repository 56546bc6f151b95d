package rest

import (
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/keelson/keelson/apiserver/codec"
	"github.com/keelson/keelson/apiserver/resources"
	"github.com/keelson/keelson/apiserver/watchcache"
)

// A row that is kept says at any later time what one that is made then says.
func TestKeptRowsGrowOld(t *testing.T) {
	born := time.Unix(1e9, 0)
	pod := func(change func(*corev1.Pod)) *corev1.Pod {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "default", UID: "u", CreationTimestamp: metav1.NewTime(born)},
			Spec:   corev1.PodSpec{NodeName: "n1", Containers: []corev1.Container{{Name: "c"}}},
			Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIP: "10.0.0.1", ContainerStatuses: []corev1.ContainerStatus{{Name: "c", Ready: true}}}}
		if change != nil {
			change(p)
		}
		return p
	}
	ended := metav1.NewTime(born.Add(time.Minute))
	job := &batchv1.Job{ObjectMeta: metav1.ObjectMeta{Name: "j", Namespace: "default", CreationTimestamp: metav1.NewTime(born)}}
	job.Status.StartTime = &metav1.Time{Time: born}
	done := job.DeepCopy()
	done.Status.CompletionTime = &ended
	for _, row := range []struct {
		says   string
		prefix string
		obj    resources.Object
		kept   bool
	}{
		{"a pod", "pods", pod(nil), true},
		{"a pod that has ended, whose row says so", "pods", pod(func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed }), true},
		{"a pod that was never created", "pods", pod(func(p *corev1.Pod) { p.CreationTimestamp = metav1.Time{} }), true},
		{"a name with what JSON escapes", "pods", pod(func(p *corev1.Pod) { p.Status.Reason = `"<&>"` }), true},
		{"a pod that says when it was restarted", "pods", pod(func(p *corev1.Pod) {
			s := &p.Status.ContainerStatuses[0]
			s.RestartCount, s.LastTerminationState.Terminated = 1, &corev1.ContainerStateTerminated{FinishedAt: ended}
		}), false},
		{"a job under way", "jobs", job, false},
		{"a job that is done", "jobs", done, true},
		{"a kind whose own column tells the time", "events", &corev1.Event{ObjectMeta: metav1.ObjectMeta{Name: "e", Namespace: "default"}, LastTimestamp: ended}, false},
		{"a kind with columns behind Age", "services/specs", &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "s", Namespace: "default", CreationTimestamp: metav1.NewTime(born)},
			Spec: corev1.ServiceSpec{Type: "ClusterIP", Selector: map[string]string{"a": "b"}}}, true},
	} {
		kind := newHarness(t).reg.ByPrefix(row.prefix)
		raw, err := codec.Message(kind, row.obj)
		if err != nil {
			t.Fatal(err)
		}
		it, err := watchcache.NewItem(kind, row.prefix+"/default/x", raw, 5, 5, nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, after := range []time.Duration{time.Second, 90 * time.Second, 3 * time.Hour, 400 * 24 * time.Hour} {
			c := &Call{Row: kind, Query: url.Values{}, Request: &resources.Request{Now: born.Add(after)}, format: codec.Format{Version: "v1"}}
			w, err := c.newTable()
			if err != nil {
				t.Fatal(err)
			}
			got, err := w.cells(nil, it)
			if want := `{"cells":[` + string(w.ending(w.cellsOf(nil, row.obj), row.obj)); err != nil || string(got) != want {
				t.Errorf("%s, after %v: %s %v, want %s", row.says, after, got, err, want)
			}
		}
		kept, _ := it.Form(watchcache.FormCells, func() ([]byte, error) { return nil, fmt.Errorf("it was not made") })
		if over, says := row.prefix == "pods" && row.obj.(*corev1.Pod).Status.Phase == corev1.PodFailed, strings.Contains(string(kept), `],"conditions":[{"type":"Completed","status":"True","reason":"Failed"`); over != says {
			t.Errorf("%s: conditions of %q", row.says, kept)
		}
		if (len(kept) > 0) != row.kept {
			t.Errorf("%s: kept %q", row.says, kept)
		}
	}
}
