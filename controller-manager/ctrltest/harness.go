package ctrltest

import (
	"context"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	kruntime "k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"

	"github.com/keelson/keelson/controller-manager/runtime"
)

// Harness is one controller, or several, at work on a memory API.
type Harness struct {
	t       *testing.T
	API     *API
	Client  kubernetes.Interface
	Manager *runtime.Manager
}

// Test runs f in a bubble of fake time with the rows at work on objects.
func Test(t *testing.T, rows []runtime.Row, objects []kruntime.Object, f func(t *testing.T, h *Harness)) {
	t.Helper()
	TestWith(t, runtime.DefaultSettings(), rows, objects, f)
}

// TestWith is Test with settings other than the default ones.
func TestWith(t *testing.T, settings runtime.Settings, rows []runtime.Row, objects []kruntime.Object, f func(t *testing.T, h *Harness)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		api := newAPI()
		rc, client := connect(api)
		h := &Harness{t: t, API: api, Client: client}
		for _, o := range objects {
			h.Add(o)
		}
		api.Writes()
		m, err := runtime.New(rows, runtime.Options{Client: client, REST: rc, Log: slog.New(slog.NewTextHandler(testLog{t}, nil)), Settings: settings})
		if err != nil {
			t.Fatal(err)
		}
		h.Manager = m
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- m.Run(ctx, nil) }()
		defer func() {
			cancel()
			if err := <-done; err != nil {
				t.Errorf("the manager ended with: %v", err)
			}
			// Timers of client-go that nobody stops end by themselves.
			time.Sleep(time.Hour)
		}()
		h.Rest()
		f(t, h)
	})
}

// Client is a clientset on an empty memory API, for tests that need no Harness.
func Client() kubernetes.Interface {
	_, c := connect(newAPI())
	return c
}

func connect(api *API) (*rest.Config, kubernetes.Interface) {
	rc := &rest.Config{Host: "http://memory", Transport: http.RoundTripper(api), QPS: -1, ContentConfig: rest.ContentConfig{ContentType: "application/json"}}
	return rc, Must(kubernetes.NewForConfig(rc))
}

// testLog shows the controller's log with a failing test.
type testLog struct{ t *testing.T }

func (l testLog) Write(b []byte) (int, error) {
	l.t.Log(strings.TrimSpace(string(b)))
	return len(b), nil
}

// Rest returns when nothing moves: every event was handled, every write came back.
// Gathered events are waited for; other times are not.
func (h *Harness) Rest() {
	for range 5 {
		synctest.Wait()
		time.Sleep(250 * time.Millisecond)
	}
	synctest.Wait()
}

// After lets time pass and the controller come to rest.
func (h *Harness) After(d time.Duration) {
	time.Sleep(d)
	h.Rest()
}

// Add stores an object as it is.
func (h *Harness) Add(o kruntime.Object) {
	h.t.Helper()
	m, err := kruntime.DefaultUnstructuredConverter.ToUnstructured(o)
	if err != nil {
		h.t.Fatal(err)
	}
	u := &object{Object: m}
	gvks, _, err := scheme.Scheme.ObjectKinds(o)
	if err != nil {
		h.t.Fatal(err)
	}
	u.SetGroupVersionKind(gvks[0])
	prefix := "apis/" + gvks[0].GroupVersion().String() + "/" + plural(gvks[0].Kind)
	if gvks[0].Group == "" {
		prefix = "api/v1/" + plural(gvks[0].Kind)
	}
	h.API.mu.Lock()
	defer h.API.mu.Unlock()
	if _, failure := h.API.create(request{prefix: prefix}, u); failure != nil {
		h.t.Fatal(failure.Message)
	}
}

// Writes returns the writes since the last call, sorted: "create pods web-1". Status
// writes are left out unless all is true.
func (h *Harness) Writes(all ...bool) string {
	var some []string
	for _, w := range h.API.Writes() {
		if len(all) > 0 && all[0] || !strings.Contains(w, "/status ") {
			some = append(some, w)
		}
	}
	slices.Sort(some)
	return strings.Join(some, "\n")
}

// Writes returns what was written since the last call, in order.
func (a *API) Writes() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	w := a.writes
	a.writes = nil
	return w
}

// Refuse makes writes fail with 403 where f returns an error.
func (a *API) Refuse(f func(verb, resource string) error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.refuse = f
}

// Answer makes creations of a resource (reviews, tokens) be answered by f, which
// fills in the object; nothing is kept of them.
func (a *API) Answer(resource string, f func(o *unstructured.Unstructured)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.answers[resource] = f
}

// Events are the events of a namespace as "Reason: message", sorted, each once.
func (h *Harness) Events(ns string) []string {
	h.t.Helper()
	l, err := h.Client.CoreV1().Events(ns).List(context.Background(), metav1.ListOptions{})
	if err != nil {
		h.t.Fatal(err)
	}
	var out []string
	for i := range l.Items {
		out = append(out, l.Items[i].Reason+": "+l.Items[i].Message)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// Lag makes watches of the resources, of all when none is named, tell of a change only after d: caches are behind.
func (a *API) Lag(d time.Duration, resources ...string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(resources) == 0 {
		resources = []string{""}
	}
	if a.lag == nil {
		a.lag = map[string]time.Duration{}
	}
	for _, r := range resources {
		a.lag[r] = d
	}
}

// Pods are the pods of a namespace, by name.
func (h *Harness) Pods(ns string) []*corev1.Pod {
	h.t.Helper()
	l, err := h.Client.CoreV1().Pods(ns).List(context.Background(), metav1.ListOptions{})
	if err != nil {
		h.t.Fatal(err)
	}
	var pods []*corev1.Pod
	for i := range l.Items {
		pods = append(pods, &l.Items[i])
	}
	return pods
}

// Names are the names of pods, comma-separated, those that are being deleted with
// a minus before them.
func (h *Harness) Names(ns string) string {
	var names []string
	for _, p := range h.Pods(ns) {
		n := p.Name
		if p.DeletionTimestamp != nil {
			n = "-" + n
		}
		names = append(names, n)
	}
	return strings.Join(names, ",")
}

// Serve makes pods that are not Running be bound, Running and ready, as a scheduler
// and a kubelet would.
func (h *Harness) Serve(ns string) {
	for _, p := range h.Pods(ns) {
		if p.Status.Phase == corev1.PodPending && p.DeletionTimestamp == nil {
			h.Bind(p, "node")
			h.Phase(p, corev1.PodRunning)
		}
	}
}

// Step does what scheduler and kubelets would do next about the pods that are there
// now: pending ones are bound (where says to which node) and serve, deleted ones end.
// Pods that the controller makes meanwhile wait for the next step.
func (h *Harness) Step(ns string, where func(*corev1.Pod) string) {
	h.t.Helper()
	none := int64(0)
	for _, p := range h.Pods(ns) {
		switch {
		case p.DeletionTimestamp != nil:
			if err := h.Client.CoreV1().Pods(ns).Delete(context.Background(), p.Name, metav1.DeleteOptions{GracePeriodSeconds: &none}); err != nil {
				h.t.Fatal(err)
			}
		case p.Status.Phase == corev1.PodPending:
			h.Bind(p, where(p))
			h.Phase(p, corev1.PodRunning)
		}
	}
	h.Rest()
}

// Bind puts a pod on a node.
func (h *Harness) Bind(p *corev1.Pod, node string) {
	h.t.Helper()
	if p.Spec.NodeName != "" {
		return
	}
	c := p.DeepCopy()
	c.ResourceVersion = ""
	c.Spec.NodeName = node
	if _, err := h.Client.CoreV1().Pods(p.Namespace).Update(context.Background(), c, metav1.UpdateOptions{}); err != nil {
		h.t.Fatal(err)
	}
}

// Phase sets a pod's phase; a Running pod is ready, others are not.
func (h *Harness) Phase(p *corev1.Pod, phase corev1.PodPhase) {
	h.t.Helper()
	c := p.DeepCopy()
	c.ResourceVersion = ""
	c.Status.Phase = phase
	ready := corev1.ConditionFalse
	if phase == corev1.PodRunning {
		ready = corev1.ConditionTrue
	}
	c.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: ready, LastTransitionTime: metav1.Now()}}
	if _, err := h.Client.CoreV1().Pods(p.Namespace).UpdateStatus(context.Background(), c, metav1.UpdateOptions{}); err != nil {
		h.t.Fatal(err)
	}
}

// Kill ends the grace period of pods that are being deleted, as a kubelet would.
func (h *Harness) Kill(ns string) {
	h.t.Helper()
	none := int64(0)
	for _, p := range h.Pods(ns) {
		if p.DeletionTimestamp != nil {
			if err := h.Client.CoreV1().Pods(ns).Delete(context.Background(), p.Name, metav1.DeleteOptions{GracePeriodSeconds: &none}); err != nil {
				h.t.Fatal(err)
			}
		}
	}
}

// Must stops the test at an error.
func Must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
