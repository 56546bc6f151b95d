package informer

import (
	"context"
	"fmt"
	"maps"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/keelson/keelson/libs/invariant"
	"github.com/keelson/keelson/libs/testkit"
)

// scripted is a source whose list and watch the test holds in its hands.
type scripted struct {
	mu    sync.Mutex
	items []corev1.Pod
	rev   string
	w     chan watch.Event
	stop  func()
}

func (s *scripted) List(context.Context, metav1.ListOptions) (runtime.Object, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return &corev1.PodList{ListMeta: metav1.ListMeta{ResourceVersion: s.rev}, Items: append([]corev1.Pod(nil), s.items...)}, nil
}

func (s *scripted) Watch(context.Context, metav1.ListOptions) (watch.Interface, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.w = make(chan watch.Event)
	p := watch.NewProxyWatcher(s.w)
	return p, nil
}

func (s *scripted) IsWatchListSemanticsUnSupported() bool { return true }

func (s *scripted) send(t *testing.T, kind watch.EventType, o runtime.Object) {
	t.Helper()
	var w chan watch.Event
	testkit.Eventually(t, 5*time.Second, func() (bool, string) {
		s.mu.Lock()
		defer s.mu.Unlock()
		w = s.w
		return w != nil, "no watch"
	})
	w <- watch.Event{Type: kind, Object: o}
}

func pod(name, uid, rev, node string) *corev1.Pod {
	p := testkit.Pod("ns/"+name, testkit.On(node))
	p.UID, p.ResourceVersion = types.UID(uid), rev
	return p
}

func TestEventsInOrderAndTheStateTheyLeave(t *testing.T) {
	s := &scripted{rev: "10", items: []corev1.Pod{*pod("a", "1", "5", "n1"), *pod("b", "2", "6", "n1")}}
	c := Of(s, Options[*corev1.Pod]{Indexes: map[string]func(*corev1.Pod) []string{"node": func(p *corev1.Pod) []string { return []string{p.Spec.NodeName} }}})
	var mu sync.Mutex
	var seen []string
	c.OnEvent(func(e Event[*corev1.Pod]) {
		mu.Lock()
		defer mu.Unlock()
		old := ""
		if e.Old != nil {
			old = e.Old.ResourceVersion
		}
		_, has := c.Get(Key(e.Last()))
		seen = append(seen, fmt.Sprintf("%s %s %s>%s in cache: %v", e.Kind, e.Last().Name, old, e.New.ResourceVersion, has))
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	<-c.Synced()
	if c.Rev() != 10 || c.Len() != 2 || len(c.By("node", "n1")) != 2 {
		t.Fatalf("after the list: rev %d, %d objects", c.Rev(), c.Len())
	}
	s.send(t, watch.Modified, pod("a", "1", "11", "n2"))
	s.send(t, watch.Deleted, pod("b", "2", "12", "n1"))
	s.send(t, watch.Added, pod("c", "3", "13", "n2"))
	s.send(t, watch.Modified, pod("c", "4", "14", "n2"))
	s.send(t, watch.Bookmark, pod("", "", "20", ""))
	wctx, stop := context.WithTimeout(ctx, 5*time.Second)
	defer stop()
	if err := c.WaitFor(wctx, 20); err != nil {
		t.Fatal(err)
	}
	if n1, n2 := len(c.By("node", "n1")), len(c.By("node", "n2")); n1 != 0 || n2 != 2 {
		t.Errorf("index: n1 %d, n2 %d", n1, n2)
	}
	short, stop2 := context.WithTimeout(ctx, 10*time.Millisecond)
	defer stop2()
	if err := c.WaitFor(short, 21); err == nil || !strings.Contains(err.Error(), "is at revision 20, waited for 21") {
		t.Errorf("wait for a revision that does not come: %v", err)
	}

	// The watch breaks and the server has forgotten: the next list tells what happened meanwhile.
	s.mu.Lock()
	s.items, s.rev = []corev1.Pod{*pod("a", "1", "25", "n3"), *pod("d", "5", "26", "n3")}, "30"
	w := s.w
	s.w = nil
	s.mu.Unlock()
	w <- watch.Event{Type: watch.Error, Object: &metav1.Status{Code: 410, Reason: metav1.StatusReasonExpired}}
	close(w)
	if err := c.WaitFor(wctx, 30); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	mu.Lock()
	defer mu.Unlock()
	want := `Added a >5 in cache: true
Added b >6 in cache: true
Updated a 5>11 in cache: true
Deleted b 6>12 in cache: false
Added c >13 in cache: true
Deleted c 13>13 in cache: true
Added c >14 in cache: true
Deleted c 14>14 in cache: false
Updated a 11>25 in cache: true
Added d >26 in cache: true`
	if got := strings.Join(seen, "\n"); got != want {
		t.Errorf("want\n%s\ngot\n%s", want, got)
	}
}

func TestFakeClientsAreAccepted(t *testing.T) {
	client := fake.NewClientset(testkit.Node("n1"))
	c := Of(From(client.CoreV1().Nodes()), Options[*corev1.Node]{Transform: func(n *corev1.Node) *corev1.Node { n.Annotations = nil; return n }})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	select {
	case <-c.Synced():
	case <-time.After(10 * time.Second):
		t.Fatal("not synced")
	}
	if _, ok := c.Get(types.NamespacedName{Name: "n1"}); !ok || len(c.List()) != 1 {
		t.Error("n1 is missing")
	}
	cancel()
	<-done
}

func TestWritingToASharedObjectIsFound(t *testing.T) {
	if !invariant.Enabled {
		t.Skip("only in test builds (-race or -tags invariants)")
	}
	c := Of(&scripted{}, Options[*corev1.Pod]{})
	c.set(pod("a", "1", "1", ""))
	o, _ := c.Get(types.NamespacedName{Namespace: "ns", Name: "a"})
	o.Labels = map[string]string{"written": "here"}
	defer func() {
		if p := recover(); p == nil || !strings.Contains(fmt.Sprint(p), "was changed while the cache held it") {
			t.Errorf("got %v", p)
		}
	}()
	c.set(pod("a", "1", "2", ""))
}

func TestFollowBeginsWithWhatIsThere(t *testing.T) {
	s := &scripted{rev: "10", items: []corev1.Pod{*pod("a", "1", "5", "n1"), *pod("b", "2", "6", "n1")}}
	c := Of(s, Options[*corev1.Pod]{})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	<-c.Synced()
	var mu sync.Mutex
	seen := map[string]int{}
	f := func(e Event[*corev1.Pod]) {
		mu.Lock()
		defer mu.Unlock()
		seen[e.Kind.String()+" "+e.Last().Name]++
	}
	stop, stopOther := c.Follow(f), c.Follow(func(Event[*corev1.Pod]) {})
	reach := func(rev uint64) {
		t.Helper()
		wctx, stop := context.WithTimeout(ctx, 5*time.Second)
		defer stop()
		if err := c.WaitFor(wctx, rev); err != nil {
			t.Fatal(err)
		}
	}
	s.send(t, watch.Added, pod("c", "3", "11", "n1"))
	s.send(t, watch.Deleted, pod("a", "1", "12", "n1"))
	reach(12)
	stopOther()
	s.send(t, watch.Modified, pod("b", "2", "13", "n2"))
	reach(13)
	stop()
	s.send(t, watch.Deleted, pod("b", "2", "14", "n1"))
	reach(14)
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	want := map[string]int{"Added a": 1, "Added b": 1, "Added c": 1, "Deleted a": 1, "Updated b": 1}
	if !maps.Equal(seen, want) {
		t.Errorf("told %v, want %v", seen, want)
	}
}
