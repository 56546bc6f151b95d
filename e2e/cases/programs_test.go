package cases

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
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

// Story 11: programs that know nothing of Keelson work unmodified: helm, an operator on
// controller-runtime, and what client-go offers. The first two are built in ../clients.
func TestPrograms(t *testing.T) {
	s := begin(t, "programs", 15*time.Minute)
	t.Run("helm", func(t *testing.T) { s.sub(t).helmStory() })
	t.Run("operator", func(t *testing.T) { s.sub(t).operatorStory() })
	t.Run("client-go: types found at run time, typed apply", func(t *testing.T) { s.sub(t).mapperStory() })
	t.Run("client-go: caches outlive the apiserver", func(t *testing.T) { s.sub(t).cachesStory() })
}

// build compiles a program of ../clients, a module outside the workspace, and returns its path.
func (s *story) build(pkg string) string {
	s.Helper()
	path := filepath.Join(s.TempDir(), filepath.Base(pkg))
	cmd := exec.CommandContext(s.ctx, "go", "build", "-ldflags=-s -w", "-o", path, pkg)
	cmd.Dir = filepath.Join("..", "clients")
	cmd.Env = append(os.Environ(), "GOWORK=off", "CGO_ENABLED=0")
	began := time.Now()
	if out, err := cmd.CombinedOutput(); err != nil {
		s.Fatalf("build %s: %v\n%s", pkg, err, out)
	}
	s.Logf("%s built in %s", pkg, time.Since(began).Round(time.Second))
	return path
}

func (s *story) helmStory() {
	helm, home := s.build("helm.sh/helm/v4/cmd/helm"), s.TempDir()
	run := func(args ...string) (string, error) {
		var out bytes.Buffer
		cmd := exec.CommandContext(s.ctx, helm, append([]string{"--kubeconfig", cluster.Kubeconfig, "--namespace", s.ns}, args...)...)
		cmd.Env = append(os.Environ(), "HELM_CACHE_HOME="+home, "HELM_CONFIG_HOME="+home, "HELM_DATA_HOME="+home)
		cmd.Stdout, cmd.Stderr = &out, &out
		err := cmd.Run()
		return out.String(), err
	}
	must := func(args ...string) string {
		s.Helper()
		out, err := run(args...)
		if err != nil {
			s.Fatalf("helm %s: %v\n%s", strings.Join(args, " "), err, out)
		}
		return out
	}
	greeting := func() string { return s.kubectl("get", "configmap", "shelf", "-o", "jsonpath={.data.greeting}") }
	const chart = "testdata/shelf"

	s.says(must("install", "shelf", chart, "--set", "image="+images.Test, "--wait", "--timeout", "90s"), "STATUS: deployed", "REVISION: 1", "shelf says one.")
	if got := s.kubectl("get", "deployment", "shelf", "-o", "jsonpath={.status.readyReplicas}"); got != "1" {
		s.Errorf("helm install --wait came back with %q replicas ready", got)
	}
	s.says(s.kubectl("get", "books"), "TITLE", "shelf", "one")
	if got := s.kubectl("get", "book", "shelf", "-o", "jsonpath={.spec.pages}"); got != "100" {
		s.Errorf("the book's default: %q pages", got)
	}
	s.refused([]string{"not found"}, "get", "job", "shelf-before") // its hook has succeeded
	s.says(s.kubectl("get", "secrets", "-l", "owner=helm"), "sh.helm.release.v1.shelf.v1")
	s.says(must("list"), "shelf", "deployed", "shelf-0.1.0")
	s.says(must("test", "shelf"), "Succeeded")

	s.says(must("upgrade", "shelf", chart, "--reuse-values", "--set", "greeting=two,replicas=2", "--wait", "--timeout", "90s"), "STATUS: deployed", "REVISION: 2", "shelf says two.")
	if got := greeting(); got != "two" {
		s.Errorf("after the upgrade: %q", got)
	}
	s.running(30*time.Second, "app=shelf", 2)
	// What the server refuses fails the release, and a rollback mends it.
	out, err := run("upgrade", "shelf", chart, "--reuse-values", "--set", "greeting=three,replicas=-1")
	if err == nil {
		s.Errorf("an upgrade to -1 replicas succeeded:\n%s", out)
	}
	s.says(out, "spec.replicas", "must be greater than or equal to 0")
	s.says(must("list"), "failed")
	s.says(must("rollback", "shelf", "1", "--wait", "--timeout", "90s"), "Rollback was a success")
	if got := greeting(); got != "one" {
		s.Errorf("after the rollback: %q", got)
	}
	s.running(30*time.Second, "app=shelf", 1)
	s.says(must("history", "shelf"), "superseded", "failed", "Rollback to 1")
	s.says(must("get", "manifest", "shelf"), "kind: PodDisruptionBudget", "kind: Book")

	s.says(must("uninstall", "shelf", "--wait", "--timeout", "60s"), `release "shelf" uninstalled`)
	if out := s.kubectl("get", "deployments,services,configmaps,books,poddisruptionbudgets,secrets", "-o", "name"); strings.Contains(out, "shelf") {
		s.Errorf("after the uninstall there is still: %s", out)
	}
	s.kubectl("delete", "crd", "books.shelf.example.com") // helm leaves definitions to people
}

const shopCRD = `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: shops.operator.example.com}
spec:
  group: operator.example.com
  scope: Namespaced
  names: {plural: shops, singular: shop, kind: Shop, listKind: ShopList}
  versions:
  - name: v1
    served: true
    storage: true
    subresources: {status: {}}
    schema:
      openAPIV3Schema:
        type: object
        required: [spec]
        properties:
          spec:
            type: object
            required: [image]
            properties: {replicas: {type: integer, minimum: 0, default: 1}, image: {type: string}}
          status: {type: object, x-kubernetes-preserve-unknown-fields: true}
`

func (s *story) operatorStory() {
	path := s.build("./manager")
	s.apply(shopCRD)
	s.kubectl("wait", "--for=condition=Established", "crd/shops.operator.example.com", "--timeout", "20s")
	s.Cleanup(func() { s.deleted("crd", "shops.operator.example.com") })
	one, two := s.manager(path, "one"), s.manager(path, "two")
	var leader, other *manager
	s.eventually(30*time.Second, "one of two managers leads", func() (bool, string) {
		if leader, other = one, two; !one.leads() {
			leader, other = two, one
		}
		return leader.leads(), one.text() + two.text()
	})
	shop := func(replicas int) string {
		return fmt.Sprintf("apiVersion: operator.example.com/v1\nkind: Shop\nmetadata: {name: corner}\nspec: {image: $TEST, replicas: %d}\n", replicas)
	}
	settled := func(n int) {
		s.Helper()
		s.becomes(60*time.Second, fmt.Sprintf("%d %d", n, n), "get", "shop", "corner", "-o", "jsonpath={.spec.replicas} {.status.ready}")
	}
	s.apply(shop(1))
	settled(1)
	// What is owned comes back, and a change made by somebody else is undone.
	uid := s.kubectl("get", "deployment", "corner", "-o", "jsonpath={.metadata.uid}")
	s.kubectl("delete", "deployment", "corner")
	s.eventually(30*time.Second, "another deployment takes the place of the deleted one", func() (bool, string) {
		now, err := s.try("get", "deployment", "corner", "-o", "jsonpath={.metadata.uid}")
		return err == nil && now != uid, now
	})
	s.kubectl("scale", "deployment", "corner", "--replicas", "3")
	s.becomes(30*time.Second, "1", "get", "deployment", "corner", "-o", "jsonpath={.spec.replicas}")

	leader.kill()
	if other.leads() {
		s.Error("both managers lead")
	}
	s.apply(shop(2))
	s.eventually(30*time.Second, "the other manager leads", func() (bool, string) { return other.leads(), other.text() })
	settled(2)
	if err := cluster.Nodes[0].Kill(s.ctx, "apiserver"); err != nil {
		s.Fatal(err)
	}
	s.eventually(60*time.Second, "the apiserver is back", func() (bool, string) {
		out, err := s.tryApply(shop(1))
		return err == nil, out
	})
	if other.ended() { // it lost its lease meanwhile, and says so by ending: as operators are, it is started again
		other = s.manager(path, "two again")
	}
	settled(1)
	s.kubectl("delete", "shop", "corner", "--timeout", "30s") // its finalizer is taken off
	s.eventually(30*time.Second, "what the shop owned is gone", func() (bool, string) {
		out, err := s.try("get", "deployments,pods", "-l", "shop=corner", "-o", "name")
		return err == nil && out == "", out
	})
	other.kill()
}

// manager is a running copy of ../clients/manager.
type manager struct {
	cmd  *exec.Cmd
	done chan struct{}
	mu   sync.Mutex // guards out
	out  bytes.Buffer
}

func (m *manager) Write(b []byte) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.out.Write(b)
}

func (m *manager) text() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.out.String()
}

func (m *manager) leads() bool { return strings.Contains(m.text(), " leads\n") }

func (m *manager) ended() bool {
	select {
	case <-m.done:
		return true
	default:
		return false
	}
}

// kill ends it without a word, and waits until it has ended.
func (m *manager) kill() {
	_ = m.cmd.Process.Kill()
	<-m.done
}

func (s *story) manager(path, id string) *manager {
	s.Helper()
	m := &manager{cmd: exec.Command(path, "--config", cluster.Kubeconfig, "--in", s.ns, "--id", id), done: make(chan struct{})}
	m.cmd.Stdout, m.cmd.Stderr = m, m
	if err := m.cmd.Start(); err != nil {
		s.Fatal(err)
	}
	go func() { _ = m.cmd.Wait(); close(m.done) }()
	s.Cleanup(func() {
		m.kill()
		if s.Failed() {
			s.Logf("manager %s:\n%s", id, m.text())
		}
	})
	return m
}

// deleted deletes an object of the cluster after a story.
func (s *story) deleted(kind, name string) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	after := &story{T: s.T, ns: s.ns, ctx: ctx}
	if out, err := after.try("delete", kind, name, "--ignore-not-found"); err != nil {
		s.Errorf("delete %s %s: %v\n%s", kind, name, err, out)
	}
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
