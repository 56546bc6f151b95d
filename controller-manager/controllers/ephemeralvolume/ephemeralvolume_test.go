package ephemeralvolume

import (
	"context"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kruntime "k8s.io/apimachinery/pkg/runtime"

	"github.com/keelson/keelson/controller-manager/ctrltest"
	"github.com/keelson/keelson/controller-manager/runtime"
)

func pod(name string) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: "pod"}, Spec: corev1.PodSpec{Volumes: []corev1.Volume{
		{Name: "scratch", VolumeSource: corev1.VolumeSource{Ephemeral: &corev1.EphemeralVolumeSource{VolumeClaimTemplate: &corev1.PersistentVolumeClaimTemplate{
			ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"a": "b"}},
			Spec:       corev1.PersistentVolumeClaimSpec{AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}},
		}}}},
		{Name: "other", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}},
	}}}
}

func TestClaimComesAndGoesWithItsPod(t *testing.T) {
	ctx := context.Background()
	ctrltest.Test(t, []runtime.Row{Row}, []kruntime.Object{pod("web")}, func(t *testing.T, h *ctrltest.Harness) {
		api := h.Client.CoreV1().PersistentVolumeClaims("ns")
		c := ctrltest.Must(api.Get(ctx, "web-scratch", metav1.GetOptions{}))
		if ref := metav1.GetControllerOf(c); ref == nil || ref.UID != "pod" || c.Labels["a"] != "b" || len(c.Spec.AccessModes) != 1 {
			t.Fatalf("the claim is made of the template and belongs to the pod: %+v", c)
		}
		if err := api.Delete(ctx, c.Name, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		h.Rest()
		if w := h.Writes(); strings.Count(w, "create persistentvolumeclaims") != 2 {
			t.Errorf("while the pod is there the claim is made again:\n%s", w)
		}
	})
}

func TestNameThatIsTaken(t *testing.T) {
	taken := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "web-scratch"}}
	ctrltest.Test(t, []runtime.Row{Row}, []kruntime.Object{taken, pod("web")}, func(t *testing.T, h *ctrltest.Harness) {
		if w := h.Writes(); w != "" {
			t.Errorf("somebody else's claim is left alone:\n%s", w)
		}
		if !slices.ContainsFunc(h.Events("ns"), func(e string) bool {
			return strings.HasPrefix(e, "FailedBinding: ephemeral volume scratch: PVC ns/web-scratch was not created for pod ns/web (pod is not owner)")
		}) {
			t.Errorf("the pod's user is told: %q", h.Events("ns"))
		}
	})
}
