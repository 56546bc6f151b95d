package cases

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/wait"
	appsapply "k8s.io/client-go/applyconfigurations/apps/v1"
	coreapply "k8s.io/client-go/applyconfigurations/core/v1"
	metaapply "k8s.io/client-go/applyconfigurations/meta/v1"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/dynamic/dynamicinformer"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/metadata/metadatainformer"
	"k8s.io/client-go/restmapper"
	"k8s.io/client-go/tools/cache"

	"github.com/keelson/keelson/e2e/images"
)

// Story 11: what client-go offers to programs works unmodified.
func TestPrograms(t *testing.T) {
	s := begin(t, "programs", 10*time.Minute)
	t.Run("types found at run time, typed apply", func(t *testing.T) { s.sub(t).mapperStory() })
	t.Run("caches outlive the apiserver", func(t *testing.T) { s.sub(t).cachesStory() })
}

func (s *story) mapperStory() {
	mapper := restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(cluster.Client.Discovery()))
	for _, row := range []struct{ group, kind, resource, scope string }{
		{"", "Pod", "/v1, Resource=pods", "namespace"},
		{"apps", "Deployment", "apps/v1, Resource=deployments", "namespace"},
		{"autoscaling", "HorizontalPodAutoscaler", "autoscaling/v2, Resource=horizontalpodautoscalers", "namespace"},
		{"rbac.authorization.k8s.io", "ClusterRole", "rbac.authorization.k8s.io/v1, Resource=clusterroles", "root"},
		{"apiregistration.k8s.io", "APIService", "apiregistration.k8s.io/v1, Resource=apiservices", "root"},
	} {
		m, err := mapper.RESTMapping(schema.GroupKind{Group: row.group, Kind: row.kind})
		if err != nil {
			s.Errorf("map %s: %v", row.kind, err)
			continue
		}
		if got := fmt.Sprint(m.Resource, " ", m.Scope.Name()); got != row.resource+" "+row.scope {
			s.Errorf("%s maps to %s, want %s %s", row.kind, got, row.resource, row.scope)
		}
	}
	if got, err := mapper.ResourceFor(schema.GroupVersionResource{Resource: "endpointslice"}); err != nil || got.Group != "discovery.k8s.io" {
		s.Errorf("a singular name: %v %v", got, err)
	}

	conf := coreapply.ConfigMap("typed", s.ns).WithData(map[string]string{"a": "1"}).WithLabels(map[string]string{"by": "apply"})
	maps := cluster.Client.CoreV1().ConfigMaps(s.ns)
	if _, err := maps.Apply(s.ctx, conf, metav1.ApplyOptions{FieldManager: "first"}); err != nil {
		s.Fatalf("typed apply: %v", err)
	}
	_, err := maps.Apply(s.ctx, coreapply.ConfigMap("typed", s.ns).WithData(map[string]string{"a": "2"}), metav1.ApplyOptions{FieldManager: "second"})
	if !apierrors.IsConflict(err) || !strings.Contains(err.Error(), `conflict with "first"`) {
		s.Errorf("typed apply of another's field: %v", err)
	}
	live, err := maps.Get(s.ctx, "typed", metav1.GetOptions{})
	if err != nil {
		s.Fatal(err)
	}
	mine, err := coreapply.ExtractConfigMap(live, "first")
	if err != nil || mine.Data["a"] != "1" || mine.Labels["by"] != "apply" {
		s.Errorf("what the first manager owns: %+v %v", mine, err)
	}
	web := map[string]string{"app": "typed"}
	d := appsapply.Deployment("typed", s.ns).WithSpec(appsapply.DeploymentSpec().WithReplicas(1).WithSelector(metaapply.LabelSelector().WithMatchLabels(web)).
		WithTemplate(coreapply.PodTemplateSpec().WithLabels(web).WithSpec(coreapply.PodSpec().WithTerminationGracePeriodSeconds(1).
			WithContainers(coreapply.Container().WithName("web").WithImage(images.Test)))))
	for range 2 {
		if _, err := cluster.Client.AppsV1().Deployments(s.ns).Apply(s.ctx, d, metav1.ApplyOptions{FieldManager: "first"}); err != nil {
			s.Fatalf("typed apply of a deployment: %v", err)
		}
	}
	if got, err := cluster.Client.AppsV1().Deployments(s.ns).Get(s.ctx, "typed", metav1.GetOptions{}); err != nil || got.Generation != 1 {
		s.Errorf("the same applied twice: generation %d, %v", got.Generation, err)
	}
	s.running(30*time.Second, "app=typed", 1)
	s.kubectl("delete", "deployment", "typed")
}

// follower checks what an informer tells of the story's counters: each that was made is added, no
// count goes back, each that was taken away is deleted.
type follower struct {
	name  string
	count func(obj any) (counter string, n int, ok bool)

	mu     sync.Mutex // guards what follows
	last   map[string]int
	gone   map[string]bool
	faults []string
}

func (f *follower) see(obj any) {
	name, n, ok := f.count(obj)
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case !ok:
	case f.gone[name]:
		f.faults = append(f.faults, fmt.Sprintf("%s is back at %d after its deletion", name, n))
	case n < f.last[name]:
		f.faults = append(f.faults, fmt.Sprintf("%s went from %d back to %d", name, f.last[name], n))
	default:
		f.last[name] = n
	}
}

func (f *follower) lose(obj any) {
	if d, ok := obj.(cache.DeletedFinalStateUnknown); ok {
		obj = d.Obj
	}
	if name, _, ok := f.count(obj); ok {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.gone[name] = true
	}
}

// missing says what is not yet as want (counts) and gone have it.
func (f *follower) missing(want map[string]int, gone map[string]bool) (out []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for name, n := range want {
		if f.last[name] != n {
			out = append(out, fmt.Sprintf("%s: %s is at %d, not %d", f.name, name, f.last[name], n))
		}
	}
	for name := range gone {
		// What came and went while the apiserver was away was never seen.
		if _, seen := f.last[name]; seen && !f.gone[name] {
			out = append(out, fmt.Sprintf("%s: the end of %s", f.name, name))
		}
	}
	return out
}

func (s *story) cachesStory() {
	maps := corev1.SchemeGroupVersion.WithResource("configmaps")
	dyn, err := dynamic.NewForConfig(cluster.Config)
	if err != nil {
		s.Fatal(err)
	}
	meta1, err := metadata.NewForConfig(cluster.Config)
	if err != nil {
		s.Fatal(err)
	}
	ctx, cancel := context.WithCancel(s.ctx)
	counters := func(o *metav1.ListOptions) { o.LabelSelector = "load=counters" }
	typed := informers.NewSharedInformerFactoryWithOptions(cluster.Client, 0, informers.WithNamespace(s.ns), informers.WithTweakListOptions(counters))
	loose := dynamicinformer.NewFilteredDynamicSharedInformerFactory(dyn, 0, s.ns, counters)
	heads := metadatainformer.NewFilteredSharedInformerFactory(meta1, 0, s.ns, counters)
	fromMeta := func(obj any) (string, int, bool) { // the count is an annotation too
		m, err := meta.Accessor(obj)
		if err != nil {
			return "", 0, false
		}
		var n int
		_, err = fmt.Sscan(m.GetAnnotations()["n"], &n)
		return m.GetName(), n, err == nil
	}
	all := []*follower{
		{name: "typed informer", count: func(obj any) (string, int, bool) {
			cm, ok := obj.(*corev1.ConfigMap)
			if !ok {
				return "", 0, false
			}
			var n int
			_, err := fmt.Sscan(cm.Data["n"], &n)
			return cm.Name, n, err == nil
		}},
		{name: "dynamic informer", count: func(obj any) (string, int, bool) {
			u, ok := obj.(*unstructured.Unstructured)
			if !ok {
				return "", 0, false
			}
			text, _, _ := unstructured.NestedString(u.Object, "data", "n")
			var n int
			_, err := fmt.Sscan(text, &n)
			return u.GetName(), n, err == nil
		}},
		{name: "metadata informer", count: fromMeta},
	}
	for i, informer := range []cache.SharedIndexInformer{typed.Core().V1().ConfigMaps().Informer(), loose.ForResource(maps).Informer(), heads.ForResource(maps).Informer()} {
		f := all[i]
		f.last, f.gone = map[string]int{}, map[string]bool{}
		if _, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
			AddFunc: f.see, UpdateFunc: func(_, now any) { f.see(now) }, DeleteFunc: f.lose,
		}); err != nil {
			s.Fatal(err)
		}
	}
	typed.Start(ctx.Done())
	loose.Start(ctx.Done())
	heads.Start(ctx.Done())
	defer func() {
		cancel()
		typed.Shutdown()
		loose.Shutdown()
		heads.Shutdown()
	}()
	typed.WaitForCacheSync(ctx.Done())
	loose.WaitForCacheSync(ctx.Done())
	heads.WaitForCacheSync(ctx.Done())

	// Writers count up, each its own counters, and take every third away when it is at ten.
	var mu sync.Mutex
	want, gone, done := map[string]int{}, map[string]bool{}, 0
	writing, stop := context.WithCancel(s.ctx)
	defer stop()
	var writers sync.WaitGroup
	for w := range 4 {
		writers.Go(func() {
			for i := 0; writing.Err() == nil; i++ {
				name := fmt.Sprintf("counter-%d-%d", w, i)
				for n := 1; n <= 10 && until(writing, func() error { return s.count(name, n) }); n++ {
					mu.Lock()
					want[name], done = n, done+1
					mu.Unlock()
				}
				if i%3 != 0 || writing.Err() != nil {
					continue
				}
				until(s.ctx, func() error {
					err := cluster.Client.CoreV1().ConfigMaps(s.ns).Delete(s.ctx, name, metav1.DeleteOptions{})
					if apierrors.IsNotFound(err) {
						return nil
					}
					return err
				})
				mu.Lock()
				gone[name] = true
				delete(want, name)
				mu.Unlock()
			}
		})
	}
	progress := func() int { mu.Lock(); defer mu.Unlock(); return done }
	for range 2 {
		at := progress()
		s.eventually(60*time.Second, "the counters go on", func() (bool, string) { n := progress(); return n > at+300, fmt.Sprint(n) })
		if err := cluster.Nodes[0].Kill(s.ctx, "apiserver"); err != nil {
			s.Fatal(err)
		}
	}
	at := progress()
	s.eventually(60*time.Second, "the counters go on after the second kill", func() (bool, string) { n := progress(); return n > at+300, fmt.Sprint(n) })
	stop()
	writers.Wait()

	// A count that was not acknowledged may have been stored: the store has the last word.
	list, err := cluster.Client.CoreV1().ConfigMaps(s.ns).List(s.ctx, metav1.ListOptions{LabelSelector: "load=counters"})
	if err != nil {
		s.Fatal(err)
	}
	there := map[string]int{}
	for i := range list.Items {
		name, n, _ := all[0].count(&list.Items[i])
		if there[name] = n; n < want[name] {
			s.Errorf("%s was at %d and is at %d", name, want[name], n)
		}
	}
	for name, n := range want {
		if _, ok := there[name]; !ok {
			s.Errorf("%s was at %d and is lost", name, n)
		}
	}
	for _, f := range all {
		s.eventually(60*time.Second, f.name+" knows everything", func() (bool, string) {
			left := f.missing(there, gone)
			return len(left) == 0, fmt.Sprint(len(left), " missing: ", left[:min(len(left), 5)])
		})
		f.mu.Lock()
		if len(f.faults) > 0 {
			s.Errorf("%s: %d faults: %v", f.name, len(f.faults), f.faults[:min(len(f.faults), 5)])
		}
		f.mu.Unlock()
	}
	s.Logf("%d writes acknowledged, %d counters left, %d deleted", done, len(there), len(gone))
}

// until tries until it succeeds, which it reports, or ctx ends.
func until(ctx context.Context, try func() error) bool {
	return wait.PollUntilContextCancel(ctx, 50*time.Millisecond, true, func(context.Context) (bool, error) { return try() == nil, nil }) == nil
}

// count writes a counter: the first count creates it.
func (s *story) count(name string, n int) error {
	ctx, cancel := context.WithTimeout(s.ctx, 10*time.Second)
	defer cancel()
	text := fmt.Sprint(n)
	maps := cluster.Client.CoreV1().ConfigMaps(s.ns)
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": map[string]string{"n": text}}, "data": map[string]string{"n": text}})
	if err != nil {
		return err
	}
	_, err = maps.Patch(ctx, name, "application/merge-patch+json", patch, metav1.PatchOptions{})
	if apierrors.IsNotFound(err) {
		_, err = maps.Create(ctx, &corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"load": "counters"}, Annotations: map[string]string{"n": text}}, Data: map[string]string{"n": text},
		}, metav1.CreateOptions{})
	}
	return err
}
