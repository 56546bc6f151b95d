package worker

import (
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// sized is a container with limits, and requests of the same size.
func sized(name, cpu, memory string) corev1.Container {
	c := image(name, "serve:1")
	list := corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(cpu), corev1.ResourceMemory: resource.MustParse(memory)}
	c.Resources = corev1.ResourceRequirements{Requests: list, Limits: list.DeepCopy()}
	return c
}

// resize changes what a pod's container asks for, as the resize subresource does.
func (b *bench) resize(name, cpu, memory string) {
	b.t.Helper()
	synctest.Wait()
	p := b.pod(name).DeepCopy()
	p.Spec.Containers[0].Resources = sized("", cpu, memory).Resources
	p.Generation++
	if err := b.api.Tracker().Update(corev1.SchemeGroupVersion.WithResource("pods"), p, "default"); err != nil {
		b.t.Fatal(err)
	}
}

// has reports what the pod's status says of its first container.
func (b *bench) has(name string) (allocated, actual string) {
	s := b.pod(name).Status.ContainerStatuses[0]
	return s.AllocatedResources.Cpu().String(), s.Resources.Limits.Cpu().String()
}

func (b *bench) condition(name string, kind corev1.PodConditionType) *corev1.PodCondition {
	for _, c := range b.pod(name).Status.Conditions {
		if c.Type == kind {
			return &c
		}
	}
	return nil
}

func TestAResizeWaitsForRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, testPod("a", sized("app", "600m", "100Mi")), testPod("b", sized("other", "300m", "100Mi")))
		defer b.end()
		b.start()
		b.until(time.Second, "pods run", func() bool { return running(b.pod("a")) && running(b.pod("b")) })

		b.resize("a", "900m", "100Mi")
		b.until(time.Second, "it is deferred", func() bool { return b.condition("a", corev1.PodResizePending) != nil })
		c := b.condition("a", corev1.PodResizePending)
		if want := "Node didn't have enough resource: cpu, requested: 900, used: 300, capacity: 1000"; c.Reason != "Deferred" || c.Message != want || c.ObservedGeneration != 1 {
			t.Errorf("condition %+v, want Deferred: %s", c, want)
		}
		if allocated, actual := b.has("a"); allocated != "600m" || actual != "600m" {
			t.Errorf("while it waits: allocated %s, actual %s; want 600m", allocated, actual)
		}

		// The kubelet that starts knows what it has given, though the object says more.
		b.stop()
		b.start()
		b.until(time.Second, "it is still deferred", func() bool { return running(b.pod("a")) && b.condition("a", corev1.PodResizePending) != nil })
		if n := slices.Index(b.runtime.Calls(), "UpdateContainerResources"); n >= 0 {
			t.Errorf("changed without room: %v", b.runtime.Calls())
		}

		b.delete("b", 1)
		b.until(5*time.Second, "it is carried out", func() bool {
			allocated, actual := b.has("a")
			return allocated == "900m" && actual == "900m" && b.condition("a", corev1.PodResizePending) == nil && b.condition("a", corev1.PodResizeInProgress) == nil
		})
		if got := b.pod("a").Status.ContainerStatuses[0].RestartCount; got != 0 {
			t.Errorf("restarted %d times", got)
		}
	})
}

// Who waits for a resize waits for the generation and looks then at the conditions: a status that has the one has the others.
func TestAGenerationIsObservedWhenItIsJudged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, testPod("a", sized("app", "100m", "100Mi")))
		defer b.end()
		b.start()
		b.until(time.Second, "the pod runs", func() bool { return running(b.pod("a")) })
		told, err := b.api.CoreV1().Pods("default").Watch(t.Context(), metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		const times = 20
		for i := range times {
			b.resize("a", strconv.Itoa(200+i)+"m", "100Mi")
		}
		last := strconv.Itoa(200+times-1) + "m"
		b.until(time.Second, "it has the last", func() bool { _, actual := b.has("a"); return actual == last })
		told.Stop()
		observed := 0
		for e := range told.ResultChan() {
			p := e.Object.(*corev1.Pod)
			st := p.Status
			if st.ObservedGeneration != p.Generation || slices.ContainsFunc(st.Conditions, func(c corev1.PodCondition) bool { return c.Type == corev1.PodResizeInProgress }) {
				continue
			}
			observed++
			if want, got := p.Spec.Containers[0].Resources.Limits.Cpu(), st.ContainerStatuses[0].Resources.Limits.Cpu(); !want.Equal(*got) {
				t.Errorf("generation %d is observed and nothing goes on, but the container has %s, not %s", p.Generation, got, want)
			}
		}
		if observed == 0 {
			t.Error("no generation was observed")
		}
	})
}

func TestAResizeThatIsTakenBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, testPod("a", sized("app", "600m", "100Mi")))
		defer b.end()
		b.start()
		b.until(time.Second, "the pod runs", func() bool { return running(b.pod("a")) })
		b.resize("a", "5", "100Mi")
		b.until(time.Second, "it is deferred", func() bool { return b.condition("a", corev1.PodResizePending) != nil })
		b.resize("a", "600m", "100Mi")
		b.until(time.Second, "nothing is pending", func() bool { return b.condition("a", corev1.PodResizePending) == nil })
	})
}

func TestAMemoryLimitBelowUse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, testPod("a", sized("app", "100m", "100Mi")))
		b.runtime.Used = 50 << 20
		defer b.end()
		b.start()
		b.until(time.Second, "the pod runs", func() bool { return running(b.pod("a")) })
		b.resize("a", "100m", "40Mi")
		b.until(time.Second, "it is refused", func() bool {
			c := b.condition("a", corev1.PodResizeInProgress)
			return c != nil && c.Reason == "Error"
		})
		if c := b.condition("a", corev1.PodResizeInProgress); !strings.Contains(c.Message, `cannot decrease memory limits: attempting to set container "app" memory limit (41943040) below current usage (52428800)`) {
			t.Errorf("says %q", c.Message)
		}
		for changes, limit := range []string{"40Mi", "41Mi"} {
			b.resize("a", "100m", limit)
			_, before := b.said.times("step failed")
			b.until(time.Minute, "it is tried some times", func() bool {
				_, told := b.said.times("step failed")
				return told >= before+3
			})
			if warnings, told := b.said.times("step failed"); warnings != changes+1 {
				t.Errorf("after %d changes %d warnings of %d failures, want one for each change", changes+1, warnings, told)
			}
		}
		b.runtime.Used = 10 << 20
		b.until(time.Minute, "it is done once the container uses less", func() bool {
			return b.condition("a", corev1.PodResizeInProgress) == nil && b.pod("a").Status.ContainerStatuses[0].Resources.Limits.Memory().String() == "41Mi"
		})
	})
}

func TestAResizeThatRestarts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := sized("app", "100m", "100Mi")
		c.ResizePolicy = []corev1.ContainerResizePolicy{{ResourceName: corev1.ResourceCPU, RestartPolicy: corev1.RestartContainer}}
		b := newBench(t, testPod("a", c))
		defer b.end()
		b.start()
		b.until(time.Second, "the pod runs", func() bool { return running(b.pod("a")) })
		b.resize("a", "200m", "100Mi")
		b.until(time.Minute, "it runs anew with more", func() bool {
			_, actual := b.has("a")
			s := b.pod("a").Status.ContainerStatuses[0]
			return actual == "200m" && s.RestartCount == 1 && s.State.Running != nil && b.condition("a", corev1.PodResizeInProgress) == nil
		})
	})
}

func TestThePodsOwnResources(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := testPod("a", image("app", "serve:1"))
		p.Spec.Resources = &corev1.ResourceRequirements{Limits: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("200m")},
			Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("200m")}}
		b := newBench(t, p)
		defer b.end()
		b.start()
		b.until(time.Second, "the pod runs", func() bool { return running(b.pod("a")) })
		synctest.Wait()
		q := b.pod("a").DeepCopy()
		for _, list := range []corev1.ResourceList{q.Spec.Resources.Limits, q.Spec.Resources.Requests} {
			list[corev1.ResourceCPU] = resource.MustParse("300m")
		}
		q.Generation++
		if err := b.api.Tracker().Update(corev1.SchemeGroupVersion.WithResource("pods"), q, "default"); err != nil {
			t.Fatal(err)
		}
		b.until(time.Second, "it has more", func() bool {
			st := b.pod("a").Status
			return st.AllocatedResources.Cpu().String() == "300m" && st.Resources.Limits.Cpu().String() == "300m" && b.condition("a", corev1.PodResizeInProgress) == nil
		})
		n := 0
		for _, call := range b.runtime.Calls() {
			if strings.HasPrefix(call, "UpdateContainerResources") {
				n++
			}
		}
		if n != 1 {
			t.Errorf("the container was told %d times of the limit that it inherits, want once", n)
		}
	})
}
