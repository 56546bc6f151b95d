package resourcequota

import (
	"context"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	resourcev1 "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kruntime "k8s.io/apimachinery/pkg/runtime"

	"github.com/keelson/keelson/controller-manager/ctrltest"
	"github.com/keelson/keelson/controller-manager/runtime"
)

var ctx = context.Background()

func limits(pairs ...string) corev1.ResourceList {
	l := corev1.ResourceList{}
	for i := 0; i < len(pairs); i += 2 {
		l[corev1.ResourceName(pairs[i])] = resource.MustParse(pairs[i+1])
	}
	return l
}

func pod(name, cpu string, phase corev1.PodPhase) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name}, Status: corev1.PodStatus{Phase: phase}, Spec: corev1.PodSpec{Containers: []corev1.Container{
		{Name: "c", Resources: corev1.ResourceRequirements{Requests: limits("cpu", cpu)}},
	}}}
}

func TestUseIsCounted(t *testing.T) {
	objects := []kruntime.Object{
		&corev1.ResourceQuota{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "q"}, Spec: corev1.ResourceQuotaSpec{Hard: limits("pods", "5", "requests.cpu", "4", "configmaps", "9", "count/networkpolicies.networking.k8s.io", "3", "count/nonsense.example.com", "1")}},
		&corev1.ResourceQuota{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "best-effort"}, Spec: corev1.ResourceQuotaSpec{Hard: limits("pods", "5"), Scopes: []corev1.ResourceQuotaScope{corev1.ResourceQuotaScopeBestEffort}}},
		pod("a", "500m", corev1.PodRunning), pod("b", "1", corev1.PodRunning), pod("done", "2", corev1.PodSucceeded),
		&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "m"}}, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "other", Name: "m"}},
		&networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "p"}},
	}
	ctrltest.Test(t, []runtime.Row{Row}, objects, func(t *testing.T, h *ctrltest.Harness) {
		api := h.Client.CoreV1().ResourceQuotas("ns")
		check := func(name string, pairs ...string) {
			t.Helper()
			q := ctrltest.Must(api.Get(ctx, name, metav1.GetOptions{}))
			for i := 0; i < len(pairs); i += 2 {
				if got := q.Status.Used[corev1.ResourceName(pairs[i])]; got.Cmp(resource.MustParse(pairs[i+1])) != 0 {
					t.Errorf("%s of %s: want %s, got %s", pairs[i], name, pairs[i+1], got.String())
				}
			}
			if len(q.Status.Hard) != len(q.Spec.Hard) || len(q.Status.Used) != len(q.Spec.Hard) {
				t.Errorf("%s: every limit is shown: %+v", name, q.Status)
			}
		}
		check("q", "pods", "2", "requests.cpu", "1500m", "configmaps", "1", "count/networkpolicies.networking.k8s.io", "1", "count/nonsense.example.com", "0")
		check("best-effort", "pods", "0")
		h.Phase(h.Pods("ns")[0], corev1.PodFailed)
		if err := h.Client.CoreV1().ConfigMaps("ns").Delete(ctx, "m", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		h.Rest()
		check("q", "pods", "1", "requests.cpu", "1", "configmaps", "0")
		if err := h.Client.NetworkingV1().NetworkPolicies("ns").Delete(ctx, "p", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		h.After(poll)
		check("q", "count/networkpolicies.networking.k8s.io", "0")
		h.Writes(true)
		h.After(10 * time.Minute)
		if w := h.Writes(true); w != "" {
			t.Errorf("at rest: %s", w)
		}
	})
}

// Claims count by the extended resource of their class, but for what their pod counts for.
func TestExtendedResourcesAreCounted(t *testing.T) {
	gpu, yes := "example.com/gpu", true
	class := &resourcev1.DeviceClass{ObjectMeta: metav1.ObjectMeta{Name: "gold"}}
	claim := func(name string) *resourcev1.ResourceClaim {
		return &resourcev1.ResourceClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name}, Spec: resourcev1.ResourceClaimSpec{Devices: resourcev1.DeviceClaim{
			Requests: []resourcev1.DeviceRequest{{Exactly: &resourcev1.ExactDeviceRequest{DeviceClassName: "gold", AllocationMode: resourcev1.DeviceAllocationModeExactCount, Count: 2}}}}}}
	}
	made := claim("made")
	made.Annotations = map[string]string{resourcev1.ExtendedResourceClaimAnnotation: "true"}
	made.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "Pod", Name: "p", UID: "u", Controller: &yes}}
	p := pod("p", "1", corev1.PodRunning)
	p.UID = "u"
	p.Spec.Containers[0].Resources.Requests["example.com/gpu"] = resource.MustParse("2")
	objects := []kruntime.Object{
		&corev1.ResourceQuota{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "q"}, Spec: corev1.ResourceQuotaSpec{Hard: limits("requests.example.com/gpu", "9")}},
		class, claim("plain"), made, p,
	}
	ctrltest.Test(t, []runtime.Row{Row}, objects, func(t *testing.T, h *ctrltest.Harness) {
		check := func(when, want string) {
			t.Helper()
			h.Rest()
			q := ctrltest.Must(h.Client.CoreV1().ResourceQuotas("ns").Get(ctx, "q", metav1.GetOptions{}))
			if got := q.Status.Used["requests.example.com/gpu"]; got.Cmp(resource.MustParse(want)) != 0 {
				t.Errorf("%s: want %s, got %s", when, want, got.String())
			}
		}
		check("the class serves no resource", "2")
		class = class.DeepCopy()
		class.Spec.ExtendedResourceName = &gpu
		ctrltest.Must(h.Client.ResourceV1().DeviceClasses().Update(ctx, class, metav1.UpdateOptions{}))
		check("it serves one", "4")
		p = ctrltest.Must(h.Client.CoreV1().Pods("ns").Get(ctx, "p", metav1.GetOptions{}))
		p.Status.ExtendedResourceClaimStatus = &corev1.PodExtendedResourceClaimStatus{ResourceClaimName: "other"}
		p = ctrltest.Must(h.Client.CoreV1().Pods("ns").UpdateStatus(ctx, p, metav1.UpdateOptions{}))
		check("the pod has another claim", "6")
		p.Status.ExtendedResourceClaimStatus.ResourceClaimName = "made"
		ctrltest.Must(h.Client.CoreV1().Pods("ns").UpdateStatus(ctx, p, metav1.UpdateOptions{}))
		check("the pod has this claim", "4")
		made = ctrltest.Must(h.Client.ResourceV1().ResourceClaims("ns").Get(ctx, "made", metav1.GetOptions{}))
		made.Annotations = nil
		ctrltest.Must(h.Client.ResourceV1().ResourceClaims("ns").Update(ctx, made, metav1.UpdateOptions{}))
		check("the claim is none for extended resources", "6")
		h.Phase(h.Pods("ns")[0], corev1.PodFailed)
		check("the pod has ended", "4")
	})
}
