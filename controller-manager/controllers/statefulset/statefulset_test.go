package statefulset

import (
	"context"
	"fmt"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kruntime "k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"

	"github.com/keelson/keelson/controller-manager/ctrltest"
	"github.com/keelson/keelson/controller-manager/runtime"
)

func set(replicas int32, change ...func(*appsv1.StatefulSet)) *appsv1.StatefulSet {
	l := map[string]string{"app": "db"}
	s := &appsv1.StatefulSet{
		ObjectMeta: metav1.ObjectMeta{Name: "db", Namespace: "ns", UID: "sts"},
		Spec: appsv1.StatefulSetSpec{
			Replicas: &replicas, ServiceName: "db", Selector: &metav1.LabelSelector{MatchLabels: l},
			Template:             corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: l}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "a:1"}}}},
			PodManagementPolicy:  appsv1.OrderedReadyPodManagement,
			UpdateStrategy:       appsv1.StatefulSetUpdateStrategy{Type: appsv1.RollingUpdateStatefulSetStrategyType, RollingUpdate: &appsv1.RollingUpdateStatefulSetStrategy{Partition: ptr.To(int32(0))}},
			RevisionHistoryLimit: ptr.To(int32(10)),
		},
	}
	for _, f := range change {
		f(s)
	}
	return s
}

func get(h *ctrltest.Harness) *appsv1.StatefulSet {
	return ctrltest.Must(h.Client.AppsV1().StatefulSets("ns").Get(context.Background(), "db", metav1.GetOptions{}))
}

func change(h *ctrltest.Harness, f func(*appsv1.StatefulSet)) {
	s := get(h)
	f(s)
	ctrltest.Must(h.Client.AppsV1().StatefulSets("ns").Update(context.Background(), s, metav1.UpdateOptions{}))
	h.Rest()
}

// images are the pods with their image tags: "db-0:1 db-1:2"; a minus stands
// before those that are being deleted.
func images(h *ctrltest.Harness) string {
	var l []string
	for _, p := range h.Pods("ns") {
		n := p.Name + strings.TrimPrefix(p.Spec.Containers[0].Image, "a")
		if p.DeletionTimestamp != nil {
			n = "-" + n
		}
		l = append(l, n)
	}
	return strings.Join(l, " ")
}

// step lets pending pods serve and deleted pods end.
func step(h *ctrltest.Harness) {
	h.Step("ns", func(*corev1.Pod) string { return "node" })
}

func expect(t *testing.T, h *ctrltest.Harness, want, why string) {
	t.Helper()
	if got := images(h); got != want {
		t.Errorf("%s: want %q, got %q", why, want, got)
	}
}

func TestOrder(t *testing.T) {
	ctrltest.Test(t, []runtime.Row{Row}, []kruntime.Object{set(3)}, func(t *testing.T, h *ctrltest.Harness) {
		expect(t, h, "db-0:1", "the second pod waits for the first")
		h.Serve("ns")
		h.Rest()
		expect(t, h, "db-0:1 db-1:1", "the third waits for the second")
		step(h)
		step(h)
		p := h.Pods("ns")[2]
		if p.Labels[appsv1.PodIndexLabel] != "2" || p.Labels[appsv1.StatefulSetPodNameLabel] != "db-2" || p.Spec.Hostname != "db-2" || p.Spec.Subdomain != "db" {
			t.Errorf("identity of db-2: %v %s.%s", p.Labels, p.Spec.Hostname, p.Spec.Subdomain)
		}
		if s := get(h).Status; s.ReadyReplicas != 3 || s.AvailableReplicas != 3 || s.CurrentReplicas != 3 || s.CurrentRevision != s.UpdateRevision {
			t.Errorf("status of three ready pods: %+v", s)
		}
		h.Phase(h.Pods("ns")[0], corev1.PodPending)
		h.Rest()
		change(h, func(s *appsv1.StatefulSet) { s.Spec.Replicas = ptr.To(int32(0)) })
		expect(t, h, "db-0:1 db-1:1 -db-2:1", "scaling down begins at the top and one by one")
		h.Kill("ns")
		h.Rest()
		expect(t, h, "db-0:1 -db-1:1", "then the next")
	})
}

// A pod gets back the labels of its place, and nothing that the controller's cache does not hold is lost by that.
func TestIdentityIsRestored(t *testing.T) {
	own := corev1.Volume{Name: "tmp", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}
	ctrltest.Test(t, []runtime.Row{Row}, []kruntime.Object{set(1, func(s *appsv1.StatefulSet) {
		s.Spec.Template.Spec.Volumes = []corev1.Volume{own}
	})}, func(t *testing.T, h *ctrltest.Harness) {
		step(h)
		p := h.Pods("ns")[0].DeepCopy()
		delete(p.Labels, appsv1.StatefulSetPodNameLabel)
		ctrltest.Must(h.Client.CoreV1().Pods("ns").Update(context.Background(), p, metav1.UpdateOptions{}))
		h.Rest()
		now := h.Pods("ns")[0]
		if now.Labels[appsv1.StatefulSetPodNameLabel] != "db-0" || len(now.Spec.Volumes) != 1 || now.Spec.Volumes[0].EmptyDir == nil {
			t.Errorf("labels %v, volumes %v", now.Labels, now.Spec.Volumes)
		}
	})
}

func TestUnhealthyHaltsScaling(t *testing.T) {
	ctrltest.Test(t, []runtime.Row{Row}, []kruntime.Object{set(2)}, func(t *testing.T, h *ctrltest.Harness) {
		step(h)
		step(h)
		h.Phase(h.Pods("ns")[0], corev1.PodPending)
		h.Rest()
		change(h, func(s *appsv1.StatefulSet) { s.Spec.Replicas = ptr.To(int32(4)) })
		expect(t, h, "db-0:1 db-1:1", "no new pod while an earlier one is not ready")
		h.Serve("ns")
		h.Rest()
		expect(t, h, "db-0:1 db-1:1 db-2:1", "it goes on when the pod is ready")
	})
}

func TestParallel(t *testing.T) {
	ctrltest.Test(t, []runtime.Row{Row}, []kruntime.Object{set(3, func(s *appsv1.StatefulSet) {
		s.Spec.PodManagementPolicy = appsv1.ParallelPodManagement
		s.Spec.Ordinals = &appsv1.StatefulSetOrdinals{Start: 5}
	})}, func(t *testing.T, h *ctrltest.Harness) {
		expect(t, h, "db-5:1 db-6:1 db-7:1", "all at once, from the start ordinal")
		step(h)
		change(h, func(s *appsv1.StatefulSet) { s.Spec.Replicas = ptr.To(int32(1)) })
		expect(t, h, "db-5:1 -db-6:1 -db-7:1", "and all at once down")
	})
}

func TestRollingUpdateWithPartition(t *testing.T) {
	ctrltest.Test(t, []runtime.Row{Row}, []kruntime.Object{set(3)}, func(t *testing.T, h *ctrltest.Harness) {
		for range 3 {
			step(h)
		}
		change(h, func(s *appsv1.StatefulSet) {
			s.Spec.UpdateStrategy.RollingUpdate.Partition = ptr.To(int32(2))
			s.Spec.Template.Spec.Containers[0].Image = "a:2"
		})
		expect(t, h, "db-0:1 db-1:1 -db-2:1", "only pods from the partition on are updated")
		step(h)
		step(h)
		expect(t, h, "db-0:1 db-1:1 db-2:2", "the canary")
		if s := get(h).Status; s.UpdatedReplicas != 1 || s.CurrentReplicas != 2 || s.CurrentRevision == s.UpdateRevision {
			t.Errorf("status of a canary: %+v", s)
		}
		none := int64(0)
		if err := h.Client.CoreV1().Pods("ns").Delete(context.Background(), "db-0", metav1.DeleteOptions{GracePeriodSeconds: &none}); err != nil {
			t.Fatal(err)
		}
		h.Rest()
		step(h)
		expect(t, h, "db-0:1 db-1:1 db-2:2", "a lost pod below the partition comes back with the old template")
		change(h, func(s *appsv1.StatefulSet) { s.Spec.UpdateStrategy.RollingUpdate.Partition = ptr.To(int32(0)) })
		expect(t, h, "db-0:1 -db-1:1 db-2:2", "the rest follows downwards, one at a time")
		for range 5 {
			step(h)
		}
		expect(t, h, "db-0:2 db-1:2 db-2:2", "all updated")
		if s := get(h).Status; s.CurrentRevision != s.UpdateRevision || s.CurrentReplicas != 3 {
			t.Errorf("status after the update: %+v", s)
		}
		revs := ctrltest.Must(h.Client.AppsV1().ControllerRevisions("ns").List(context.Background(), metav1.ListOptions{}))
		if len(revs.Items) != 2 {
			t.Errorf("want two revisions, got %d", len(revs.Items))
		}
	})
}

func TestMaxUnavailableAndOnDelete(t *testing.T) {
	ctrltest.Test(t, []runtime.Row{Row}, []kruntime.Object{set(4, func(s *appsv1.StatefulSet) {
		s.Spec.PodManagementPolicy = appsv1.ParallelPodManagement
		two := intstr.FromInt32(2)
		s.Spec.UpdateStrategy.RollingUpdate.MaxUnavailable = &two
	})}, func(t *testing.T, h *ctrltest.Harness) {
		step(h)
		change(h, func(s *appsv1.StatefulSet) { s.Spec.Template.Spec.Containers[0].Image = "a:2" })
		expect(t, h, "db-0:1 db-1:1 -db-2:1 -db-3:1", "two at a time")
		for range 4 {
			step(h)
		}
		change(h, func(s *appsv1.StatefulSet) {
			s.Spec.UpdateStrategy = appsv1.StatefulSetUpdateStrategy{Type: appsv1.OnDeleteStatefulSetStrategyType}
			s.Spec.Template.Spec.Containers[0].Image = "a:3"
		})
		expect(t, h, "db-0:2 db-1:2 db-2:2 db-3:2", "OnDelete waits for the user")
	})
}

func TestFailedPodIsReplaced(t *testing.T) {
	ctrltest.Test(t, []runtime.Row{Row}, []kruntime.Object{set(1)}, func(t *testing.T, h *ctrltest.Harness) {
		step(h)
		h.Phase(h.Pods("ns")[0], corev1.PodFailed)
		h.Rest()
		if p := h.Pods("ns"); len(p) != 1 || p[0].Status.Phase != corev1.PodPending {
			t.Errorf("want a new pending db-0, got %v", images(h))
		}
	})
}

func TestClaimsAndRetention(t *testing.T) {
	ctrltest.Test(t, []runtime.Row{Row}, []kruntime.Object{set(2, func(s *appsv1.StatefulSet) {
		s.Spec.PodManagementPolicy = appsv1.ParallelPodManagement
		s.Spec.VolumeClaimTemplates = []corev1.PersistentVolumeClaim{{ObjectMeta: metav1.ObjectMeta{Name: "data"}}}
		s.Spec.PersistentVolumeClaimRetentionPolicy = &appsv1.StatefulSetPersistentVolumeClaimRetentionPolicy{
			WhenDeleted: appsv1.RetainPersistentVolumeClaimRetentionPolicyType, WhenScaled: appsv1.DeletePersistentVolumeClaimRetentionPolicyType}
	})}, func(t *testing.T, h *ctrltest.Harness) {
		claims := func() string {
			l := ctrltest.Must(h.Client.CoreV1().PersistentVolumeClaims("ns").List(context.Background(), metav1.ListOptions{}))
			var out []string
			for _, c := range l.Items {
				owner := ""
				for _, r := range c.OwnerReferences {
					owner += "<" + r.Name
				}
				out = append(out, c.Name+owner)
			}
			return strings.Join(out, " ")
		}
		step(h)
		if got := claims(); got != "data-db-0 data-db-1" {
			t.Errorf("claims without owners while the pods are wanted: %s", got)
		}
		if v := h.Pods("ns")[1].Spec.Volumes; len(v) != 1 || v[0].PersistentVolumeClaim.ClaimName != "data-db-1" {
			t.Errorf("volumes of db-1: %v", v)
		}
		change(h, func(s *appsv1.StatefulSet) { s.Spec.Replicas = ptr.To(int32(1)) })
		if got := claims(); got != "data-db-0 data-db-1<db-1" {
			t.Errorf("the claim of a condemned pod goes with the pod: %s", got)
		}
		h.Kill("ns")
		h.Rest()
		if got := claims(); got != "data-db-0" {
			t.Errorf("after the scale-down: %s", got)
		}
	})
}

func TestOrdinals(t *testing.T) {
	for _, c := range []struct {
		name, set string
		n         int
	}{{"db-0", "db", 0}, {"a-b-12", "a-b", 12}, {"db", "", -1}, {"db-x", "", -1}, {"db--1", "db-", 1}, {"db-99999999999", "", -1}} {
		if set, n := ordinal(c.name); set != c.set || n != c.n {
			t.Errorf("%s: want %s, got %s", c.name, fmt.Sprint(c.set, c.n), fmt.Sprint(set, n))
		}
	}
}
