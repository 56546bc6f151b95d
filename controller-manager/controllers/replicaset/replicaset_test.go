package replicaset

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kruntime "k8s.io/apimachinery/pkg/runtime"
	"k8s.io/utils/ptr"

	"github.com/keelson/keelson/controller-manager/ctrltest"
	"github.com/keelson/keelson/controller-manager/runtime"
)

func set(replicas int32) *appsv1.ReplicaSet {
	l := map[string]string{"app": "web"}
	return &appsv1.ReplicaSet{
		ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "ns", UID: "set"},
		Spec: appsv1.ReplicaSetSpec{Replicas: &replicas, Selector: &metav1.LabelSelector{MatchLabels: l},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: l}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c"}}}}},
	}
}

func pod(name string, change ...func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "ns", Labels: map[string]string{"app": "web"}}}
	for _, f := range change {
		f(p)
	}
	return p
}

func scale(h *ctrltest.Harness, n int32) {
	api := h.Client.AppsV1().ReplicaSets("ns")
	s := ctrltest.Must(api.Get(context.Background(), "web", metav1.GetOptions{}))
	s.Spec.Replicas = &n
	ctrltest.Must(api.Update(context.Background(), s, metav1.UpdateOptions{}))
	h.Rest()
}

func status(h *ctrltest.Harness) appsv1.ReplicaSetStatus {
	return ctrltest.Must(h.Client.AppsV1().ReplicaSets("ns").Get(context.Background(), "web", metav1.GetOptions{})).Status
}

func TestPodsFollowReplicas(t *testing.T) {
	ctrltest.Test(t, []runtime.Row{Row}, []kruntime.Object{set(3)}, func(t *testing.T, h *ctrltest.Harness) {
		if got := len(h.Pods("ns")); got != 3 {
			t.Fatalf("want 3 pods, got %d", got)
		}
		h.Serve("ns")
		h.Rest()
		if s := status(h); s.Replicas != 3 || s.ReadyReplicas != 3 || s.AvailableReplicas != 3 || s.ObservedGeneration != 1 {
			t.Errorf("status of three ready pods: %+v", s)
		}
		h.Writes()
		scale(h, 1)
		if got := strings.Count(h.Writes(), "delete pods"); got != 2 {
			t.Errorf("want 2 deletions after scaling to 1, got %d", got)
		}
		if s := status(h); s.Replicas != 1 || ptr.Deref(s.TerminatingReplicas, 0) != 2 {
			t.Errorf("status while two pods terminate: %+v", s)
		}
		scale(h, 400)
		if got := len(h.Pods("ns")); got != 402 { // two still terminate
			t.Errorf("want exactly 400 live pods and 2 terminating, got %d", got)
		}
	})
}

func TestOrphansAreAdoptedAndStrayPodsReleased(t *testing.T) {
	orphan := pod("orphan")
	other := pod("other", func(p *corev1.Pod) {
		p.OwnerReferences = []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: "x", UID: "x", Controller: ptr.To(true)}}
	})
	ctrltest.Test(t, []runtime.Row{Row}, []kruntime.Object{set(2), orphan, other}, func(t *testing.T, h *ctrltest.Harness) {
		if got := len(h.Pods("ns")); got != 3 {
			t.Fatalf("one orphan is adopted, one pod is made, the other owner's is left alone: %s", h.Names("ns"))
		}
		api := h.Client.CoreV1().Pods("ns")
		p := ctrltest.Must(api.Get(context.Background(), "orphan", metav1.GetOptions{}))
		if ref := metav1.GetControllerOf(p); ref == nil || ref.UID != "set" {
			t.Fatalf("orphan has owner %v", ref)
		}
		p.Labels = map[string]string{"app": "debug"}
		ctrltest.Must(api.Update(context.Background(), p, metav1.UpdateOptions{}))
		h.Rest()
		p = ctrltest.Must(api.Get(context.Background(), "orphan", metav1.GetOptions{}))
		if len(p.OwnerReferences) != 0 || len(h.Pods("ns")) != 4 {
			t.Errorf("a pod without the labels is released and replaced: owners %v, pods %s", p.OwnerReferences, h.Names("ns"))
		}
	})
}

func TestFailedCreationIsReportedAndRetried(t *testing.T) {
	ctrltest.Test(t, []runtime.Row{Row}, []kruntime.Object{set(0)}, func(t *testing.T, h *ctrltest.Harness) {
		h.API.Refuse(func(verb, resource string) error {
			if verb == "create" && resource == "pods" {
				return errors.New("exceeded quota")
			}
			return nil
		})
		scale(h, 100)
		s := status(h)
		if len(s.Conditions) != 1 || s.Conditions[0].Reason != "FailedCreate" || s.Replicas != 0 {
			t.Fatalf("want a ReplicaFailure condition, got %+v", s)
		}
		h.API.Refuse(nil)
		h.After(time.Minute)
		if s := status(h); s.Replicas != 100 || len(s.Conditions) != 0 {
			t.Errorf("want 100 pods and no condition when creation works again, got %+v", s)
		}
	})
}

func TestDeletedPodIsReplacedOnce(t *testing.T) {
	ctrltest.Test(t, []runtime.Row{Row}, []kruntime.Object{set(2)}, func(t *testing.T, h *ctrltest.Harness) {
		h.Serve("ns")
		h.Rest()
		victim := h.Pods("ns")[0]
		h.Writes()
		if err := h.Client.CoreV1().Pods("ns").Delete(context.Background(), victim.Name, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		h.Rest()
		if w := h.Writes(); strings.Count(w, "create pods") != 1 {
			t.Errorf("want one new pod:\n%s", w)
		}
		h.Kill("ns")
		h.Rest()
		if w := h.Writes(); strings.Contains(w, "create") {
			t.Errorf("the end of the old pod needs no further pod:\n%s", w)
		}
	})
}

// A set is deleted and its pods are orphaned, and the news of the pods come before those of the set.
func TestOrphanedPodsAreNotReplaced(t *testing.T) {
	s := set(2)
	s.Finalizers = []string{metav1.FinalizerOrphanDependents}
	ctrltest.Test(t, []runtime.Row{Row}, []kruntime.Object{s}, func(t *testing.T, h *ctrltest.Harness) {
		h.Serve("ns")
		h.Rest()
		h.API.Lag(10*time.Second, "replicasets")
		h.Writes()
		ctx := context.Background()
		if err := h.Client.AppsV1().ReplicaSets("ns").Delete(ctx, s.Name, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		pods := h.Pods("ns")
		for _, p := range pods {
			p.OwnerReferences = nil
			ctrltest.Must(h.Client.CoreV1().Pods("ns").Update(ctx, p, metav1.UpdateOptions{}))
		}
		h.After(time.Minute)
		if w := h.Writes(); len(pods) != 2 || strings.Contains(w, "create") {
			t.Errorf("%d pods were orphaned, and replaced:\n%s", len(pods), w)
		}
	})
}

func TestMinReadySeconds(t *testing.T) {
	s := set(1)
	s.Spec.MinReadySeconds = 30
	ctrltest.Test(t, []runtime.Row{Row}, []kruntime.Object{s}, func(t *testing.T, h *ctrltest.Harness) {
		h.Serve("ns")
		h.Rest()
		if s := status(h); s.ReadyReplicas != 1 || s.AvailableReplicas != 0 {
			t.Errorf("ready, not yet available: %+v", s)
		}
		h.After(31 * time.Second)
		if s := status(h); s.AvailableReplicas != 1 {
			t.Errorf("available after 30 s without any event: %+v", s)
		}
	})
}
