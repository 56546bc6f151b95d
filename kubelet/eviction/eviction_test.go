package eviction

import (
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
)

const mi = int64(1 << 20)

func TestParse(t *testing.T) {
	got, err := Parse(Options{EvictionHard: "memory.available<100Mi,nodefs.available<10%,pid.available<0", EvictionSoft: "memory.available<200Mi",
		EvictionSoftGracePeriod: "memory.available=1m", EvictionMinimumReclaim: "nodefs.available=1Gi"})
	if err != nil || len(got) != 3 || got[1].Least.Of(1000) != 100 || got[1].Reclaim.Of(0) != 1<<30 || got[2].Grace != time.Minute {
		t.Errorf("%+v %v", got, err)
	}
	if w := Withheld(got, corev1.ResourceList{"memory": resource.MustParse("1Gi"), "ephemeral-storage": resource.MustParse("1000")}); w.Memory().String() != "100Mi" || w.StorageEphemeral().Value() != 100 {
		t.Errorf("withheld %v", w)
	}
	if _, err := Parse(DefaultOptions()); err != nil {
		t.Error(err)
	}
	for _, bad := range []string{"allocatableMemory.available<1Gi", "memory.available", "memory.available<x", "air.available<1", "nodefs.available<101%", "memory.available<1,memory.available<2"} {
		if _, err := Parse(Options{EvictionHard: bad}); err == nil {
			t.Errorf("%s is accepted", bad)
		}
	}
	if _, err := Parse(Options{EvictionSoft: "memory.available<1Gi"}); err == nil {
		t.Error("a soft threshold without grace is accepted")
	}
}

// pod has one container c, with a memory request in MiB, and a priority.
func podUsing(name string, requestMi int64, priority int32) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID(name)}}
	p.Spec.Priority = &priority
	p.Spec.Containers = []corev1.Container{{Name: "c", Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{"memory": *resource.NewQuantity(requestMi*mi, resource.BinarySI)}}}}
	return p
}

func using(memoryMi int64) Usage {
	return Usage{MemoryBytes: memoryMi * mi, Containers: map[string]ContainerUsage{"c": {MemoryBytes: memoryMi * mi}}}
}

// What all pods together may use ends before the node's memory does: then they are evicted just the same.
func TestTheirOwnLimit(t *testing.T) {
	thresholds, _ := Parse(Options{EvictionHard: "memory.available<100Mi,nodefs.available<10%"})
	bytes := func(mib int64) *uint64 { return new(uint64(mib * mi)) }
	sum := &statsapi.Summary{}
	sum.Node.Memory = &statsapi.MemoryStats{AvailableBytes: bytes(2000), WorkingSetBytes: bytes(1000)}
	sum.Node.SystemContainers = []statsapi.ContainerStats{
		{Name: statsapi.SystemContainerKubelet, Memory: &statsapi.MemoryStats{AvailableBytes: bytes(1), WorkingSetBytes: bytes(1)}},
		{Name: statsapi.SystemContainerPods, Memory: &statsapi.MemoryStats{AvailableBytes: bytes(60), WorkingSetBytes: bytes(940)}},
	}
	p := podUsing("p", 0, 0)
	sum.Pods = []statsapi.PodStats{{PodRef: statsapi.PodReference{UID: "p"}, Memory: &statsapi.MemoryStats{WorkingSetBytes: bytes(930)},
		Containers: []statsapi.ContainerStats{{Name: "c", Memory: &statsapi.MemoryStats{WorkingSetBytes: bytes(5)}}}}}
	seen := observe(sum, []*corev1.Pod{p})
	if got := seen.Usage["p"].MemoryBytes; got != 930*mi {
		t.Errorf("the pod uses %d bytes, want all that its cgroup has", got)
	}
	if d := Decide(thresholds, Options{}, Memory{}, seen, time.Unix(0, 0)); len(d.Evict) != 0 || len(d.Conditions) != 0 {
		t.Errorf("without a limit of the pods: %+v", d)
	}
	limited := Enforced(thresholds)
	if len(thresholds) != 2 || len(limited) != 3 {
		t.Fatalf("%d thresholds become %d", len(thresholds), len(limited))
	}
	d := Decide(limited, Options{}, Memory{}, seen, time.Unix(0, 0))
	if len(d.Evict) != 1 || d.Evict[0].Signal != "allocatableMemory.available" || d.Reclaim != corev1.ResourceMemory ||
		!strings.HasPrefix(d.Evict[0].Message, "The node was low on resource: memory. Threshold quantity: 100Mi, available: 60Mi. ") {
		t.Errorf("%+v", d)
	}
	if w := Withheld(limited, corev1.ResourceList{"memory": resource.MustParse("1Gi")}); w.Memory().String() != "100Mi" {
		t.Errorf("withheld %v: counted once", w)
	}
	soft, _ := Parse(Options{EvictionSoft: "memory.available<200Mi", EvictionSoftGracePeriod: "memory.available=1m"})
	if len(Enforced(soft)) != 1 {
		t.Error("a soft threshold acts on the pods' limit")
	}
}

func TestWhoGoesFirst(t *testing.T) {
	thresholds, _ := Parse(Options{EvictionHard: "memory.available<100Mi"})
	short := map[Signal]Left{MemoryAvailable: {Capacity: 1000 * mi, Available: 50 * mi}}
	for name, row := range map[string]struct {
		pods  []*corev1.Pod
		usage []int64
		want  string
	}{
		"over its request before under it":     {[]*corev1.Pod{podUsing("under", 900, 0), podUsing("over", 1, 100)}, []int64{800, 2}, "over"},
		"lower priority before larger excess":  {[]*corev1.Pod{podUsing("big", 0, 10), podUsing("low", 0, 5)}, []int64{500, 1}, "low"},
		"larger excess among equals":           {[]*corev1.Pod{podUsing("small", 0, 0), podUsing("big", 0, 0)}, []int64{1, 2}, "big"},
		"somebody goes, even if all are under": {[]*corev1.Pod{podUsing("a", 100, 0), podUsing("b", 100, 0)}, []int64{10, 50}, "b"},
		"never a critical pod":                 {[]*corev1.Pod{podUsing("system", 0, 2_000_000_000)}, []int64{900}, ""},
	} {
		seen := Seen{Left: short, Pods: row.pods, Usage: map[types.UID]Usage{}}
		for i, p := range row.pods {
			seen.Usage[p.UID] = using(row.usage[i])
		}
		d := Decide(thresholds, Options{}, Memory{}, seen, time.Unix(0, 0))
		got := ""
		if len(d.Evict) > 0 {
			got = d.Evict[0].Pod.Name
		}
		if got != row.want || len(d.Conditions) != 1 || d.Conditions[0] != corev1.NodeMemoryPressure {
			t.Errorf("%s: %q %v, want %q", name, got, d.Conditions, row.want)
		}
	}
	p := podUsing("p", 0, 0)
	d := Decide(thresholds, Options{}, Memory{}, Seen{Left: short, Pods: []*corev1.Pod{p}, Usage: map[types.UID]Usage{"p": using(300)}}, time.Unix(0, 0))
	want := "The node was low on resource: memory. Threshold quantity: 100Mi, available: 50Mi. Container c was using 300Mi, request is 0, has larger consumption of memory. "
	if d.Evict[0].Message != want || d.Evict[0].Grace != 1 {
		t.Errorf("got %+v, want %q", d.Evict[0], want)
	}
}

// What is left over time, and what follows: P pressure, E a pod is evicted.
func TestOverTime(t *testing.T) {
	o := Options{EvictionHard: "memory.available<100Mi", EvictionSoft: "memory.available<200Mi", EvictionSoftGracePeriod: "memory.available=30s",
		EvictionMinimumReclaim: "memory.available=50Mi", EvictionPressureTransitionPeriod: metav1.Duration{Duration: 20 * time.Second}}
	thresholds, err := Parse(o)
	if err != nil {
		t.Fatal(err)
	}
	var memory Memory
	var story []string
	p := podUsing("p", 0, 0)
	for i, leftMi := range []int64{300, 190, 190, 190, 190, 240, 260, 260, 260, 90, 140, 300} {
		seen := Seen{Left: map[Signal]Left{MemoryAvailable: {Capacity: 1000 * mi, Available: leftMi * mi}}, Pods: []*corev1.Pod{p}, Usage: map[types.UID]Usage{"p": using(1)}}
		d := Decide(thresholds, o, memory, seen, time.Unix(int64(i*10), 0))
		memory = d.Memory
		word := "-"
		if len(d.Conditions) > 0 {
			word = "P"
		}
		if len(d.Evict) > 0 {
			word += "E"
		}
		story = append(story, word)
	}
	// 190: soft, and acts after 30 s; 240 is not yet 200+50; 260 is, but pressure stays for
	// 20 s; 90 is hard; 140 is not yet 100+50.
	if got, want := strings.Join(story, " "), "- P P P PE PE P - - PE PE P"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestLimits(t *testing.T) {
	limit := resource.MustParse("10Mi")
	p := podUsing("p", 0, 0)
	p.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{SizeLimit: &limit}}}}
	decide := func(u Usage) string {
		d := Decide(nil, Options{}, Memory{}, Seen{Pods: []*corev1.Pod{p}, Usage: map[types.UID]Usage{"p": u}}, time.Unix(0, 0))
		if len(d.Evict) == 0 {
			return ""
		}
		return d.Evict[0].Message
	}
	if got := decide(Usage{EmptyDirs: map[string]int64{"v": 10 * mi}}); got != "" {
		t.Errorf("at the limit: %q", got)
	}
	if got := decide(Usage{EmptyDirs: map[string]int64{"v": 11 * mi}}); got != `Usage of EmptyDir volume "v" exceeds the limit "10Mi". ` {
		t.Errorf("emptyDir: %q", got)
	}
	p.Spec.Containers[0].Resources.Limits = corev1.ResourceList{"ephemeral-storage": resource.MustParse("5Mi")}
	if got := decide(Usage{DiskBytes: 6 * mi}); got != "Pod ephemeral local storage usage exceeds the total limit of containers 5Mi. " {
		t.Errorf("pod: %q", got)
	}
	if got := decide(Usage{Containers: map[string]ContainerUsage{"c": {DiskBytes: 6 * mi}}}); got != `Container c exceeded its local ephemeral storage limit "5Mi". ` {
		t.Errorf("container: %q", got)
	}
}

func TestAdmit(t *testing.T) {
	memory, disk := []corev1.NodeConditionType{corev1.NodeMemoryPressure}, []corev1.NodeConditionType{corev1.NodeDiskPressure}
	tolerant := podUsing("t", 0, 0)
	tolerant.Spec.Tolerations = []corev1.Toleration{{Key: corev1.TaintNodeMemoryPressure, Operator: corev1.TolerationOpExists}}
	for name, row := range map[string]struct {
		pod        *corev1.Pod
		conditions []corev1.NodeConditionType
		bestEffort bool
		refused    bool
	}{
		"no pressure":                    {podUsing("p", 0, 0), nil, true, false},
		"memory, best effort":            {podUsing("p", 0, 0), memory, true, true},
		"memory, with requests":          {podUsing("p", 1, 0), memory, false, false},
		"memory, tolerated":              {tolerant, memory, true, false},
		"disk, tolerating memory":        {tolerant, disk, true, true},
		"disk":                           {podUsing("p", 1, 0), disk, false, true},
		"disk, critical":                 {podUsing("p", 1, 2_000_000_000), disk, false, false},
		"memory and disk, with requests": {podUsing("p", 1, 0), append(disk, memory...), false, true},
	} {
		r := Admit(row.pod, row.conditions, row.bestEffort)
		if (r != nil) != row.refused {
			t.Errorf("%s: %+v", name, r)
		}
	}
	if r := Admit(podUsing("p", 0, 0), disk, true); r.Message != "The node had condition: [DiskPressure]. " || r.Reason != "Evicted" {
		t.Errorf("%+v", r)
	}
}
