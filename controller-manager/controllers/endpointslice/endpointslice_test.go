package endpointslice

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kruntime "k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/keelson/keelson/controller-manager/ctrltest"
	"github.com/keelson/keelson/controller-manager/runtime"
)

var ctx = context.Background()

func service(selector map[string]string) *corev1.Service {
	return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "web", UID: "svc"}, Spec: corev1.ServiceSpec{
		Selector: selector, ClusterIP: "10.0.0.1", IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol},
		Ports: []corev1.ServicePort{{Port: 80, Protocol: corev1.ProtocolTCP, TargetPort: intstr.FromInt32(8080)}},
	}}
}

func pod(i int) *corev1.Pod {
	ip := fmt.Sprintf("10.1.%d.%d", i/200, i%200+1)
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: fmt.Sprintf("p%03d", i), UID: types.UID(fmt.Sprint("p", i)), Labels: map[string]string{"app": "web"}}, Spec: corev1.PodSpec{NodeName: "n"},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIP: ip, PodIPs: []corev1.PodIP{{IP: ip}}, Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}}}
}

// look counts slices, endpoints and ready endpoints.
func look(h *ctrltest.Harness) string {
	slices, all, ready := 0, 0, 0
	for _, s := range ctrltest.Must(h.Client.DiscoveryV1().EndpointSlices("ns").List(ctx, metav1.ListOptions{})).Items {
		slices++
		if s.Labels[discoveryv1.LabelServiceName] != "web" || s.Labels[discoveryv1.LabelManagedBy] != managedBy {
			return fmt.Sprintf("labels %v", s.Labels)
		}
		for _, e := range s.Endpoints {
			all++
			if *e.Conditions.Ready {
				ready++
			}
		}
	}
	return fmt.Sprintf("%d slices, %d endpoints, %d ready", slices, all, ready)
}

func TestSlicesFollowPods(t *testing.T) {
	objects := []kruntime.Object{&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}}, service(map[string]string{"app": "web"})}
	for i := range 150 {
		objects = append(objects, pod(i))
	}
	ctrltest.Test(t, []runtime.Row{Row}, objects, func(t *testing.T, h *ctrltest.Harness) {
		h.After(time.Minute)
		if got := look(h); got != "2 slices, 150 endpoints, 150 ready" {
			t.Fatal(got)
		}
		h.Writes()
		h.After(time.Minute)
		if w := h.Writes(); w != "" {
			t.Fatalf("at rest: %s", w)
		}
		api := h.Client.CoreV1().Pods("ns")
		p := ctrltest.Must(api.Get(ctx, "p000", metav1.GetOptions{}))
		p.Labels = map[string]string{"app": "other"}
		ctrltest.Must(api.Update(ctx, p, metav1.UpdateOptions{}))
		if err := api.Delete(ctx, "p001", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		h.Rest()
		if got := look(h); got != "2 slices, 149 endpoints, 148 ready" {
			t.Errorf("one relabelled, one terminating: %s", got)
		}
		h.Kill("ns")
		h.Rest()
		if got := look(h); got != "2 slices, 148 endpoints, 148 ready" {
			t.Error(got)
		}
		// Somebody deletes a slice.
		victim := ctrltest.Must(h.Client.DiscoveryV1().EndpointSlices("ns").List(ctx, metav1.ListOptions{})).Items[0].Name
		if err := h.Client.DiscoveryV1().EndpointSlices("ns").Delete(ctx, victim, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		h.After(time.Minute)
		if got := look(h); !strings.Contains(got, "148 endpoints, 148 ready") {
			t.Errorf("what is deleted comes back: %s", got)
		}
	})
}

func TestServicesWithoutSelectorAreLeftAlone(t *testing.T) {
	mine := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "mine", Labels: map[string]string{discoveryv1.LabelServiceName: "web"}}, AddressType: discoveryv1.AddressTypeIPv4}
	ctrltest.Test(t, []runtime.Row{Row}, []kruntime.Object{service(nil), pod(1), mine}, func(t *testing.T, h *ctrltest.Harness) {
		if w := h.Writes(); w != "" {
			t.Error(w)
		}
	})
}
