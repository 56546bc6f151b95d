package endpoints

import (
	"context"
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kruntime "k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/keelson/keelson/controller-manager/ctrltest"
	"github.com/keelson/keelson/controller-manager/runtime"
)

var ctx = context.Background()

func service(change ...func(*corev1.Service)) *corev1.Service {
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "web", Labels: map[string]string{"l": "1"}}, Spec: corev1.ServiceSpec{
		Selector: map[string]string{"app": "web"}, ClusterIP: "10.0.0.1", IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol},
		Ports: []corev1.ServicePort{{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP, TargetPort: intstr.FromString("http")}},
	}}
	for _, f := range change {
		f(s)
	}
	return s
}

func pod(name string, port int32, ready bool, ips ...string) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: types.UID(name), Labels: map[string]string{"app": "web"}}, Spec: corev1.PodSpec{NodeName: "n"}, Status: corev1.PodStatus{Phase: corev1.PodRunning}}
	if port > 0 {
		p.Spec.Containers = []corev1.Container{{Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: port, Protocol: corev1.ProtocolTCP}}}}
	}
	for _, ip := range ips {
		p.Status.PodIPs = append(p.Status.PodIPs, corev1.PodIP{IP: ip})
		p.Status.PodIP = ips[0]
	}
	status := corev1.ConditionFalse
	if ready {
		status = corev1.ConditionTrue
	}
	p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: status}}
	return p
}

func text(subsets []corev1.EndpointSubset) string {
	var out []string
	for _, s := range subsets {
		var b strings.Builder
		for _, a := range s.Addresses {
			fmt.Fprintf(&b, "%s ", a.IP)
		}
		for _, a := range s.NotReadyAddresses {
			fmt.Fprintf(&b, "(%s) ", a.IP)
		}
		for _, p := range s.Ports {
			fmt.Fprintf(&b, ":%d", p.Port)
		}
		out = append(out, b.String())
	}
	return strings.Join(out, "; ")
}

func TestSubsets(t *testing.T) {
	six := func(s *corev1.Service) { s.Spec.IPFamilies = []corev1.IPFamily{corev1.IPv6Protocol} }
	all := func(s *corev1.Service) { s.Spec.PublishNotReadyAddresses = true }
	headless := func(s *corev1.Service) { s.Spec.ClusterIP, s.Spec.Ports = corev1.ClusterIPNone, nil }
	for _, c := range []struct {
		name string
		svc  *corev1.Service
		pods []*corev1.Pod
		want string
	}{
		{"nobody", service(), nil, ""},
		{"ready and not", service(), []*corev1.Pod{pod("a", 8080, true, "10.1.0.2"), pod("b", 8080, false, "10.1.0.1")}, "10.1.0.2 (10.1.0.1) :8080"},
		{"all are published", service(all), []*corev1.Pod{pod("b", 8080, false, "10.1.0.1")}, "10.1.0.1 :8080"},
		{"ports differ", service(), []*corev1.Pod{pod("a", 8080, true, "10.1.0.1"), pod("b", 9090, true, "10.1.0.2")}, "10.1.0.1 :8080; 10.1.0.2 :9090"},
		{"no such port", service(), []*corev1.Pod{pod("a", 0, true, "10.1.0.1")}, ""},
		{"no address yet", service(), []*corev1.Pod{pod("a", 8080, false)}, ""},
		{"the other family", service(six), []*corev1.Pod{pod("a", 8080, true, "10.1.0.1", "fd00::1"), pod("b", 8080, true, "10.1.0.2")}, "fd00::1 :8080"},
		{"headless without ports", service(headless), []*corev1.Pod{pod("a", 0, true, "10.1.0.1")}, "10.1.0.1 "},
	} {
		if got, _ := Subsets(c.svc, c.pods); text(got) != c.want {
			t.Errorf("%s: want %q, got %q", c.name, c.want, text(got))
		}
	}
	var many []*corev1.Pod
	for i := range 1001 {
		many = append(many, pod(fmt.Sprint(i), 8080, true, fmt.Sprintf("10.1.%d.%d", i/250, i%250)))
	}
	if got, cut := Subsets(service(), many); !cut || len(got[0].Addresses) != 1000 {
		t.Errorf("at most 1000 addresses: %d, %v", len(got[0].Addresses), cut)
	}
}

func TestEndpointsFollowTheirService(t *testing.T) {
	left := &corev1.Endpoints{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "left", Labels: map[string]string{Managed: me}}}
	own := &corev1.Endpoints{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "own"}}
	ctrltest.Test(t, []runtime.Row{Row}, []kruntime.Object{service(), pod("a", 8080, false, "10.1.0.1"), left, own}, func(t *testing.T, h *ctrltest.Harness) {
		api := h.Client.CoreV1().Endpoints("ns")
		if w := h.Writes(); w != "create endpoints web\ndelete endpoints left" {
			t.Fatalf("made for the service; what is left of another goes: %q", w)
		}
		h.Phase(h.Pods("ns")[0], corev1.PodRunning)
		h.Rest()
		e := ctrltest.Must(api.Get(ctx, "web", metav1.GetOptions{}))
		if text(e.Subsets) != "10.1.0.1 :8080" || e.Labels["l"] != "1" || e.Labels[Managed] != me {
			t.Errorf("the ready pod: %q, labels %v", text(e.Subsets), e.Labels)
		}
		h.Writes()
		h.Rest()
		if w := h.Writes(); w != "" {
			t.Errorf("at rest: %q", w)
		}
		if err := h.Client.CoreV1().Services("ns").Delete(ctx, "web", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		h.Rest()
		if _, err := api.Get(ctx, "web", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
			t.Errorf("they go with their service: %v", err)
		}
		ctrltest.Must(api.Get(ctx, "own", metav1.GetOptions{}))
	})
}
