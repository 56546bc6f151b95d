package pod

import (
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func list(cpu, memory string) corev1.ResourceList {
	out := corev1.ResourceList{}
	if cpu != "" {
		out[corev1.ResourceCPU] = resource.MustParse(cpu)
	}
	if memory != "" {
		out[corev1.ResourceMemory] = resource.MustParse(memory)
	}
	return out
}

func asking(name string, priority int32, requests, limits corev1.ResourceList) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.PodSpec{Priority: &priority,
		Containers: []corev1.Container{{Name: "c", Resources: corev1.ResourceRequirements{Requests: requests, Limits: limits}}}}}
}

func TestAllocationFollowsOnlyWhenGiven(t *testing.T) {
	old := asking("p", 0, list("1", "1Gi"), nil)
	a := Allocate(old)
	if given, pending := a.Of(old); pending || given != old {
		t.Error("the same pod must come back as it is")
	}
	more := asking("p", 0, list("2", "1Gi"), nil)
	given, pending := a.Of(more)
	if !pending || given.Spec.Containers[0].Resources.Requests.Cpu().String() != "1" || more.Spec.Containers[0].Resources.Requests.Cpu().String() != "2" {
		t.Errorf("pending %t, given %v", pending, given.Spec.Containers[0].Resources)
	}
	if given, pending := (Allocation{}).Of(more); pending || given != more {
		t.Error("nothing known must give everything")
	}
}

func TestUrgency(t *testing.T) {
	at := time.Unix(1000, 0)
	small := list("1", "1Gi")
	wait := func(name string, priority int32, requests, limits corev1.ResourceList, since time.Time) Waiting {
		return Waiting{Pod: asking(name, priority, requests, limits), Given: asking(name, priority, small, nil), Since: since}
	}
	all := []Waiting{
		wait("new", 0, list("2", "1Gi"), nil, time.Time{}),
		wait("later", 0, list("2", "1Gi"), nil, at.Add(time.Second)),
		wait("first", 0, list("2", "1Gi"), nil, at),
		wait("guaranteed", 0, list("2", "1Gi"), list("2", "1Gi"), at.Add(time.Hour)),
		wait("important", 9, list("2", "1Gi"), nil, at.Add(time.Hour)),
		wait("shrinking", -5, list("500m", "1Gi"), nil, at.Add(time.Hour)),
	}
	slices.SortStableFunc(all, Urgency)
	var got []string
	for _, w := range all {
		got = append(got, w.Pod.Name)
	}
	if want := []string{"shrinking", "important", "guaranteed", "first", "later", "new"}; !slices.Equal(got, want) {
		t.Errorf("order %v, want %v", got, want)
	}
}

func TestWider(t *testing.T) {
	for _, x := range []struct {
		what                                string
		requests, limits, wasReq, wasLim    corev1.ResourceList
		wantRequestCPU, wantCPU, wantMemory string
	}{
		{"more of one, less of the other", list("2", "1Gi"), list("2", "1Gi"), list("1", "2Gi"), list("1", "2Gi"), "2", "2", "2Gi"},
		{"no limit so far", list("1", ""), list("1", "1Gi"), list("1", ""), list("1", ""), "1", "1", "0"},
		{"no limit any more", list("1", ""), nil, list("2", ""), list("2", "2Gi"), "2", "0", "0"},
	} {
		got := Wider(asking("p", 0, x.requests, x.limits), map[string]corev1.ResourceRequirements{"c": {Requests: x.wasReq, Limits: x.wasLim}}).Spec.Containers[0].Resources
		if r, c, m := got.Requests.Cpu().String(), got.Limits.Cpu().String(), got.Limits.Memory().String(); r != x.wantRequestCPU || c != x.wantCPU || m != x.wantMemory {
			t.Errorf("%s: request %s, limits %s and %s; want %s, %s, %s", x.what, r, c, m, x.wantRequestCPU, x.wantCPU, x.wantMemory)
		}
	}
}

func TestResizeText(t *testing.T) {
	got := ResizeText("Pod resize OutOfcpu", asking("p", 0, list("2", ""), nil), 3, "no room")
	if want := `Pod resize OutOfcpu: {"containers":[{"name":"c","resources":{"requests":{"cpu":"2"}}}],"generation":3,"error":"no room"}`; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestAsksFor(t *testing.T) {
	got := AsksFor(asking("p", 0, list("1", "1Gi"), list("", "1Gi")), asking("p", 0, list("2", "1Gi"), list("2", "")))
	want := []Asked{{"memory", "limits", "remove"}, {"cpu", "requests", "increase"}, {"cpu", "limits", "add"}}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}
