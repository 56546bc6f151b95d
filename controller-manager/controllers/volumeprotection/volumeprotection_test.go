package volumeprotection

import (
	"context"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kruntime "k8s.io/apimachinery/pkg/runtime"

	"github.com/keelson/keelson/controller-manager/ctrltest"
	"github.com/keelson/keelson/controller-manager/runtime"
)

var ctx = context.Background()

func pod(name, node, claim string, phase corev1.PodPhase) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name}, Status: corev1.PodStatus{Phase: phase}, Spec: corev1.PodSpec{NodeName: node, Volumes: []corev1.Volume{
		{Name: "v", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claim}}},
	}}}
}

func claim(name string, finalizers ...string) *corev1.PersistentVolumeClaim {
	return &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, Finalizers: finalizers}}
}

func TestClaimStaysWhileAPodHasIt(t *testing.T) {
	objects := []kruntime.Object{claim("used"), claim("free", claimFinalizer, "example.com/x"), pod("p", "n", "used", corev1.PodSucceeded), pod("unplaced", "", "free", corev1.PodPending)}
	ctrltest.Test(t, []runtime.Row{Claims}, objects, func(t *testing.T, h *ctrltest.Harness) {
		api := h.Client.CoreV1().PersistentVolumeClaims("ns")
		if c := ctrltest.Must(api.Get(ctx, "used", metav1.GetOptions{})); len(c.Finalizers) != 1 {
			t.Fatalf("what came without protection gets it: %v", c.Finalizers)
		}
		for _, n := range []string{"used", "free"} {
			if err := api.Delete(ctx, n, metav1.DeleteOptions{}); err != nil {
				t.Fatal(err)
			}
		}
		h.Rest()
		if c := ctrltest.Must(api.Get(ctx, "free", metav1.GetOptions{})); len(c.Finalizers) != 1 || c.Finalizers[0] != "example.com/x" {
			t.Errorf("an unused claim loses our finalizer only: %v", c.Finalizers)
		}
		if c := ctrltest.Must(api.Get(ctx, "used", metav1.GetOptions{})); len(c.Finalizers) != 1 {
			t.Errorf("a claim stays while a pod that ended is still there: %v", c.Finalizers)
		}
		if err := h.Client.CoreV1().Pods("ns").Delete(ctx, "p", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		h.Rest()
		if _, err := api.Get(ctx, "used", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
			t.Errorf("then it goes: %v", err)
		}
	})
}

func TestVolumeStaysWhileBound(t *testing.T) {
	pv := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "v"}, Status: corev1.PersistentVolumeStatus{Phase: corev1.VolumeBound}}
	ctrltest.Test(t, []runtime.Row{Volumes}, []kruntime.Object{pv}, func(t *testing.T, h *ctrltest.Harness) {
		api := h.Client.CoreV1().PersistentVolumes()
		if err := api.Delete(ctx, "v", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		h.Rest()
		v := ctrltest.Must(api.Get(ctx, "v", metav1.GetOptions{}))
		v.Status.Phase = corev1.VolumeReleased
		ctrltest.Must(api.UpdateStatus(ctx, v, metav1.UpdateOptions{}))
		h.Rest()
		if _, err := api.Get(ctx, "v", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
			t.Errorf("released, it goes: %v", err)
		}
	})
}

func TestClassStaysWhileAClaimOrVolumeHasIt(t *testing.T) {
	class := func(name string) *storagev1.VolumeAttributesClass {
		return &storagev1.VolumeAttributesClass{ObjectMeta: metav1.ObjectMeta{Name: name}, DriverName: "d.example.com"}
	}
	gold, silver := "gold", "silver"
	c := claim("c")
	c.Spec.VolumeAttributesClassName = &silver
	c.Status.ModifyVolumeStatus = &corev1.ModifyVolumeStatus{TargetVolumeAttributesClassName: gold}
	v := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "v"}, Spec: corev1.PersistentVolumeSpec{VolumeAttributesClassName: &silver}}
	ctrltest.Test(t, []runtime.Row{Classes}, []kruntime.Object{class("gold"), class("silver"), class("free"), c, v}, func(t *testing.T, h *ctrltest.Harness) {
		api := h.Client.StorageV1().VolumeAttributesClasses()
		left := func() (out []string) {
			h.Rest()
			for _, c := range ctrltest.Must(api.List(ctx, metav1.ListOptions{})).Items {
				out = append(out, c.Name)
			}
			return out
		}
		expect := func(when string, want ...string) {
			t.Helper()
			if got := left(); !slices.Equal(got, want) {
				t.Errorf("%s: %q are left, want %q", when, got, want)
			}
		}
		if c := ctrltest.Must(api.Get(ctx, "free", metav1.GetOptions{})); len(c.Finalizers) != 1 || c.Finalizers[0] != classFinalizer {
			t.Fatalf("what came without protection gets it: %v", c.Finalizers)
		}
		for _, n := range []string{"gold", "silver", "free"} {
			if err := api.Delete(ctx, n, metav1.DeleteOptions{}); err != nil {
				t.Fatal(err)
			}
		}
		expect("deleted", "gold", "silver")
		claims := h.Client.CoreV1().PersistentVolumeClaims("ns")
		now := ctrltest.Must(claims.Get(ctx, "c", metav1.GetOptions{}))
		now.Status.ModifyVolumeStatus = nil
		ctrltest.Must(claims.UpdateStatus(ctx, now, metav1.UpdateOptions{}))
		expect("when the claim shall not get it any more", "silver")
		if err := claims.Delete(ctx, "c", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		expect("without the claim", "silver")
		if err := h.Client.CoreV1().PersistentVolumes().Delete(ctx, "v", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		expect("without the volume")
	})
}
