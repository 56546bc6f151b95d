// Package schedtest runs the whole scheduler against an API in memory, in fake time.
//
// The main call is [Run]: it starts the scheduler over a set of objects inside a testing/synctest bubble,
// calls the test, and stops everything. Inside, [Cluster.Settle] waits until nobody has anything left to
// do, and Pass moves the clock at once.
//
// It promises: what the scheduler writes is applied (binding sets the node, deletion removes the pod) and
// recorded in order, see [Cluster.Writes]. The memory API keeps no resourceVersions and checks only the
// preconditions that the scheduler uses.
package schedtest

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	k8stesting "k8s.io/client-go/testing"

	"github.com/keelson/keelson/libs/log"
	"github.com/keelson/keelson/scheduler/bind"
	"github.com/keelson/keelson/scheduler/framework"
	"github.com/keelson/keelson/scheduler/queue"
)

// Cluster is a running scheduler and its API.
type Cluster struct {
	API *fake.Clientset
	S   *bind.Scheduler
	// Metrics is what the scheduler shows.
	Metrics *prometheus.Registry

	t *testing.T

	mu     sync.Mutex // guards the fields below
	writes []string
	fail   map[string]int // pod → binds that are still to fail
}

// Run starts the scheduler over objects, calls f, and stops it.
func Run(t *testing.T, objects []runtime.Object, f func(c *Cluster)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		c := &Cluster{API: fake.NewClientset(objects...), t: t, fail: map[string]int{}, Metrics: prometheus.NewRegistry()}
		c.API.PrependReactor("create", "pods", c.bind)
		c.API.PrependReactor("*", "*", c.record)
		c.S = bind.New(bind.Config{
			SchedulerName: corev1.DefaultSchedulerName, Binders: 4, Instance: "test",
			Queue: queue.Config{InitialBackoff: time.Second, MaxBackoff: 10 * time.Second, StayUnschedulable: 5 * time.Minute},
			Args:  framework.Args{HardPodAffinityWeight: 1, DefaultingType: "System"},
		}, c.API, bind.NewMetrics(c.Metrics), log.Discard())
		c.Metrics.MustRegister(c.S)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 2)
		go func() { ended <- c.S.Run(ctx) }()
		lctx, stop := context.WithCancel(t.Context())
		led := make(chan error, 1)
		go func() { led <- c.S.Lead(lctx) }()
		c.Settle()
		f(c)
		stop()
		if err := <-led; err != nil {
			t.Errorf("lead: %v", err)
		}
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("run: %v", err)
		}
	})
}

// Settle waits until every goroutine waits for an event or the clock.
func (c *Cluster) Settle() { synctest.Wait() }

// Pass moves the bubble's clock forward, which takes no time, and settles.
func (c *Cluster) Pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// FailBinds makes the next n binds of the pod fail.
func (c *Cluster) FailBinds(pod string, n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fail[pod] = n
}

// Writes are what the scheduler has written so far, sorted: binds, evictions, conditions and events.
func (c *Cluster) Writes() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := slices.Clone(c.writes)
	slices.Sort(out)
	return out
}

// Node is the node of a pod in namespace default.
func (c *Cluster) Node(pod string) string { return c.Pod(pod).Spec.NodeName }

// Pod reads a pod of namespace default from the API.
func (c *Cluster) Pod(name string) *corev1.Pod {
	c.t.Helper()
	p, err := c.API.CoreV1().Pods(metav1.NamespaceDefault).Get(context.Background(), name, metav1.GetOptions{})
	if err != nil {
		c.t.Fatal(err)
	}
	return p
}

// Create adds a pod.
func (c *Cluster) Create(p *corev1.Pod) {
	c.t.Helper()
	if err := c.API.Tracker().Create(corev1.SchemeGroupVersion.WithResource("pods"), p, p.Namespace); err != nil {
		c.t.Fatal(err)
	}
}

func (c *Cluster) note(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.writes = append(c.writes, fmt.Sprintf(format, args...))
}

// bind answers the binding subresource as the API server does.
func (c *Cluster) bind(a k8stesting.Action) (bool, runtime.Object, error) {
	create, ok := a.(k8stesting.CreateAction)
	if !ok || a.GetSubresource() != "binding" {
		return false, nil, nil
	}
	b, ok := create.GetObject().(*corev1.Binding)
	if !ok {
		return false, nil, nil
	}
	c.mu.Lock()
	failing := c.fail[b.Name] > 0
	if failing {
		c.fail[b.Name]--
	}
	c.mu.Unlock()
	if failing {
		c.note("bind %s fails", b.Name)
		return true, nil, apierrors.NewInternalError(fmt.Errorf("no quorum"))
	}
	pods := corev1.SchemeGroupVersion.WithResource("pods")
	o, err := c.API.Tracker().Get(pods, a.GetNamespace(), b.Name)
	if err != nil {
		return true, nil, err
	}
	p, ok := o.(*corev1.Pod)
	if !ok || p.UID != b.UID {
		return true, nil, apierrors.NewConflict(pods.GroupResource(), b.Name, fmt.Errorf("another UID"))
	}
	if p.Spec.NodeName != "" {
		return true, nil, apierrors.NewConflict(pods.GroupResource(), b.Name, fmt.Errorf("pod %s is already assigned to node %q", b.Name, p.Spec.NodeName))
	}
	p = p.DeepCopy()
	p.Spec.NodeName = b.Target.Name
	c.note("bind %s to %s", b.Name, b.Target.Name)
	return true, nil, c.API.Tracker().Update(pods, p, p.Namespace)
}

func (c *Cluster) record(a k8stesting.Action) (bool, runtime.Object, error) {
	switch a := a.(type) {
	case k8stesting.DeleteAction:
		c.note("delete %s", a.GetName())
	case k8stesting.PatchAction:
		c.note("patch %s/%s", a.GetName(), a.GetSubresource())
	case k8stesting.CreateAction:
		if e, ok := a.GetObject().(*eventsv1.Event); ok {
			c.note("event %s %s: %s", e.Regarding.Name, e.Reason, e.Note)
		}
	}
	return false, nil, nil
}
