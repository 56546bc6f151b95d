package deployment

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kruntime "k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"
	"pgregory.net/rapid"

	"github.com/keelson/keelson/controller-manager/controllers/replicaset"
	"github.com/keelson/keelson/controller-manager/ctrltest"
	"github.com/keelson/keelson/controller-manager/runtime"
)

var both = []runtime.Row{Row, replicaset.Row}

func deployment(replicas int32, change ...func(*appsv1.Deployment)) *appsv1.Deployment {
	l := map[string]string{"app": "web"}
	quarter := intstr.FromString("25%")
	d := &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "ns", UID: "dep", Generation: 1},
		Spec: appsv1.DeploymentSpec{
			Replicas: &replicas, Selector: &metav1.LabelSelector{MatchLabels: l},
			Template:                template("a:1"),
			Strategy:                appsv1.DeploymentStrategy{Type: appsv1.RollingUpdateDeploymentStrategyType, RollingUpdate: &appsv1.RollingUpdateDeployment{MaxSurge: &quarter, MaxUnavailable: &quarter}},
			ProgressDeadlineSeconds: ptr.To(int32(600)), RevisionHistoryLimit: ptr.To(int32(10)),
		},
	}
	for _, f := range change {
		f(d)
	}
	return d
}

func template(image string) corev1.PodTemplateSpec {
	return corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": "web"}},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: image}}}}
}

func get(h *ctrltest.Harness) *appsv1.Deployment {
	return ctrltest.Must(h.Client.AppsV1().Deployments("ns").Get(context.Background(), "web", metav1.GetOptions{}))
}

func change(h *ctrltest.Harness, f func(*appsv1.Deployment)) {
	d := get(h)
	f(d)
	ctrltest.Must(h.Client.AppsV1().Deployments("ns").Update(context.Background(), d, metav1.UpdateOptions{}))
	h.Rest()
}

func progressing(d *appsv1.Deployment) string {
	c := condition(d.Status, appsv1.DeploymentProgressing)
	if c == nil {
		return ""
	}
	return string(c.Status) + " " + c.Reason
}

// sets are the replica sets by revision: "1:0 2:10".
func sets(h *ctrltest.Harness) string {
	l := ctrltest.Must(h.Client.AppsV1().ReplicaSets("ns").List(context.Background(), metav1.ListOptions{}))
	by := map[string]string{}
	for _, s := range l.Items {
		by[s.Annotations[RevisionAnnotation]] = fmt.Sprint(*s.Spec.Replicas)
	}
	var out []string
	for i := range 20 {
		if n, ok := by[fmt.Sprint(i)]; ok {
			out = append(out, fmt.Sprintf("%d:%s", i, n))
		}
	}
	return strings.Join(out, " ")
}

// finish lets pods come and go until the roll-out is through, and checks on the
// way that never too many pods exist and never too few serve.
func finish(t *testing.T, h *ctrltest.Harness, most, least int) {
	t.Helper()
	for range 200 {
		d := get(h)
		if complete(d, &d.Status) {
			return
		}
		live, serving := 0, 0
		for _, p := range h.Pods("ns") {
			if p.DeletionTimestamp != nil {
				continue
			}
			live++
			if p.Status.Phase == corev1.PodRunning {
				serving++
			}
		}
		if live > most || serving < least {
			t.Fatalf("during the roll-out %d pods live (most %d), %d serve (least %d); sets %s", live, most, serving, least, sets(h))
		}
		h.Kill("ns")
		h.Serve("ns")
		h.Rest()
	}
	t.Fatalf("roll-out does not end: %s, %+v", sets(h), get(h).Status)
}

func TestRollOutAndUndo(t *testing.T) {
	ctrltest.Test(t, both, []kruntime.Object{deployment(10)}, func(t *testing.T, h *ctrltest.Harness) {
		if got := progressing(get(h)); got != "True NewReplicaSetCreated" && got != "True ReplicaSetUpdated" {
			t.Errorf("a new deployment's Progressing condition: %s", got)
		}
		finish(t, h, 10, 0)
		if got := progressing(get(h)); got != "True NewReplicaSetAvailable" {
			t.Errorf("a finished deployment's Progressing condition: %s", got)
		}
		change(h, func(d *appsv1.Deployment) { d.Spec.Template = template("a:2") })
		finish(t, h, 13, 8)
		if got := sets(h); got != "1:0 2:10" {
			t.Errorf("after the roll-out: %s", got)
		}
		if got := get(h).Annotations[RevisionAnnotation]; got != "2" {
			t.Errorf("revision %s, want 2", got)
		}
		change(h, func(d *appsv1.Deployment) { d.Spec.Template = template("a:1") })
		finish(t, h, 13, 8)
		if got := sets(h); got != "2:0 3:10" {
			t.Errorf("after undo the old set is used again, with a new revision: %s", got)
		}
	})
}

func TestRecreateNeverMixes(t *testing.T) {
	ctrltest.Test(t, both, []kruntime.Object{deployment(3, func(d *appsv1.Deployment) {
		d.Spec.Strategy = appsv1.DeploymentStrategy{Type: appsv1.RecreateDeploymentStrategyType}
	})}, func(t *testing.T, h *ctrltest.Harness) {
		finish(t, h, 3, 0)
		change(h, func(d *appsv1.Deployment) { d.Spec.Template = template("a:2") })
		for _, p := range h.Pods("ns") {
			if p.Spec.Containers[0].Image == "a:2" {
				t.Fatalf("a new pod exists beside old ones that still terminate: %s", h.Names("ns"))
			}
		}
		h.Kill("ns")
		h.Rest()
		if got := sets(h); got != "1:0 2:3" {
			t.Errorf("when the old pods are gone the new ones come: %s", got)
		}
	})
}

func TestPauseResumeAndHistory(t *testing.T) {
	ctrltest.Test(t, both, []kruntime.Object{deployment(2, func(d *appsv1.Deployment) { d.Spec.RevisionHistoryLimit = ptr.To(int32(1)) })}, func(t *testing.T, h *ctrltest.Harness) {
		finish(t, h, 2, 0)
		change(h, func(d *appsv1.Deployment) { d.Spec.Paused, d.Spec.Template = true, template("a:2") })
		if got := sets(h); got != "1:2" || progressing(get(h)) != "Unknown DeploymentPaused" {
			t.Errorf("a paused deployment rolls nothing out: %s %s", got, progressing(get(h)))
		}
		change(h, func(d *appsv1.Deployment) { d.Spec.Replicas = ptr.To(int32(4)) })
		if got := sets(h); got != "1:4" {
			t.Errorf("but it scales: %s", got)
		}
		change(h, func(d *appsv1.Deployment) { d.Spec.Paused = false })
		finish(t, h, 5, 0)
		change(h, func(d *appsv1.Deployment) { d.Spec.Template = template("a:3") })
		finish(t, h, 5, 0)
		h.Rest()
		if got := sets(h); got != "2:0 3:4" {
			t.Errorf("one old set is kept: %s", got)
		}
	})
}

func TestDeadline(t *testing.T) {
	ctrltest.Test(t, both, []kruntime.Object{deployment(2, func(d *appsv1.Deployment) { d.Spec.ProgressDeadlineSeconds = ptr.To(int32(60)) })}, func(t *testing.T, h *ctrltest.Harness) {
		h.After(50 * time.Second)
		if got := progressing(get(h)); strings.HasPrefix(got, "False") {
			t.Errorf("before the deadline: %s", got)
		}
		h.After(15 * time.Second)
		if got := progressing(get(h)); got != "False ProgressDeadlineExceeded" {
			t.Errorf("after the deadline: %s", got)
		}
		h.Serve("ns")
		h.Rest()
		if got := progressing(get(h)); got != "True NewReplicaSetAvailable" {
			t.Errorf("when it comes through after all: %s", got)
		}
	})
}

func TestProportionalScaling(t *testing.T) {
	ctrltest.Test(t, both, []kruntime.Object{deployment(10, func(d *appsv1.Deployment) {
		three, two := intstr.FromInt32(3), intstr.FromInt32(2)
		d.Spec.Strategy.RollingUpdate = &appsv1.RollingUpdateDeployment{MaxSurge: &three, MaxUnavailable: &two}
	})}, func(t *testing.T, h *ctrltest.Harness) {
		finish(t, h, 13, 0)
		change(h, func(d *appsv1.Deployment) { d.Spec.Template = template("broken") })
		if got := sets(h); got != "1:8 2:5" {
			t.Fatalf("a stuck roll-out: %s", got)
		}
		change(h, func(d *appsv1.Deployment) { d.Spec.Replicas = ptr.To(int32(30)) })
		if got := sets(h); got != "1:20 2:13" {
			t.Errorf("20 more replicas are shared in proportion (8:5 of 33): %s", got)
		}
	})
}

func TestHashCollision(t *testing.T) {
	d := deployment(1)
	v := newView(d, nil, time.Now())
	v.needNew()
	foreign := v.created.DeepCopy()
	foreign.OwnerReferences, foreign.Labels, foreign.Spec.Replicas = nil, map[string]string{"not": "mine"}, ptr.To(int32(0))
	ctrltest.Test(t, both, []kruntime.Object{foreign, d}, func(t *testing.T, h *ctrltest.Harness) {
		if n := get(h).Status.CollisionCount; n == nil || *n != 1 || len(h.Pods("ns")) != 1 {
			t.Errorf("a taken name raises the collision count and another name is used: count %v, pods %s", n, h.Names("ns"))
		}
	})
}

// A decision never goes beyond the fences of a rolling update, whatever state the
// sets are in.
func TestFencesHold(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := rapid.Int32Range(0, 50).Draw(t, "want")
		surge := intstr.FromInt32(rapid.Int32Range(0, 10).Draw(t, "surge"))
		unavailable := intstr.FromInt32(rapid.Int32Range(0, 10).Draw(t, "unavailable"))
		d := deployment(want)
		d.Spec.Strategy.RollingUpdate = &appsv1.RollingUpdateDeployment{MaxSurge: &surge, MaxUnavailable: &unavailable}
		v := newView(d, nil, time.Now())
		s, u := fences(d, want)
		var list []*appsv1.ReplicaSet
		var total, avail int32
		n := rapid.IntRange(1, 4).Draw(t, "sets")
		for i := range n {
			tpl := template(fmt.Sprint("old", i))
			if i == n-1 {
				tpl = template("a:1")
			}
			size := rapid.Int32Range(0, 30).Draw(t, "size")
			ok := rapid.Int32Range(0, size).Draw(t, "available")
			total, avail = total+size, avail+ok
			r := &appsv1.ReplicaSet{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint(i), UID: types.UID(fmt.Sprint(i)), Annotations: map[string]string{RevisionAnnotation: fmt.Sprint(i + 1)}},
				Spec:   appsv1.ReplicaSetSpec{Replicas: ptr.To(size), Template: tpl},
				Status: appsv1.ReplicaSetStatus{Replicas: size, AvailableReplicas: ok, ReadyReplicas: ok}}
			sizeAnnotations(r, want, want+v.maxSurge())
			list = append(list, r)
		}
		after, lost := total, int32(0)
		for _, w := range Decide(d, list, func(*appsv1.ReplicaSet) int { return 0 }, time.Now()).Write {
			after += w.To - w.From
			if w.To < w.From {
				lost += max(0, w.From-w.To-(w.From-w.Set.Status.AvailableReplicas))
			}
		}
		if after > total && after > want+s {
			t.Fatalf("grows to %d pods, most is %d", after, want+s)
		}
		if lost > 0 && avail-lost < want-min(u, want) && *list[n-1].Spec.Replicas <= want {
			t.Fatalf("of %d available pods %d go, but %d must stay", avail, lost, want-u)
		}
	})
}
