package endpointslicemirroring

import (
	"context"
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kruntime "k8s.io/apimachinery/pkg/runtime"

	"github.com/keelson/keelson/controller-manager/ctrltest"
	"github.com/keelson/keelson/controller-manager/runtime"
)

var ctx = context.Background()

func own(name string, change ...func(*corev1.Endpoints)) *corev1.Endpoints {
	e := &corev1.Endpoints{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: "e", Labels: map[string]string{"l": "1"}, Annotations: map[string]string{lastApplied: "{}", "a": "1"}},
		Subsets: []corev1.EndpointSubset{{
			Addresses: []corev1.EndpointAddress{{IP: "10.1.0.1"}, {IP: "fd00::1"}}, NotReadyAddresses: []corev1.EndpointAddress{{IP: "10.1.0.2"}},
			Ports: []corev1.EndpointPort{{Name: "p", Port: 80, Protocol: corev1.ProtocolTCP}, {Name: "q", Port: 81, Protocol: corev1.ProtocolTCP}},
		}},
	}
	for _, f := range change {
		f(e)
	}
	return e
}

func service(name string, selector map[string]string) *corev1.Service {
	return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name}, Spec: corev1.ServiceSpec{Selector: selector}}
}

func mirrored(h *ctrltest.Harness) string {
	var out []string
	for _, s := range ctrltest.Must(h.Client.DiscoveryV1().EndpointSlices("ns").List(ctx, metav1.ListOptions{})).Items {
		var b strings.Builder
		fmt.Fprintf(&b, "%s %s", s.Labels[discoveryv1.LabelServiceName], s.AddressType)
		for _, e := range s.Endpoints {
			fmt.Fprintf(&b, " %s=%v", e.Addresses[0], *e.Conditions.Ready)
		}
		for _, p := range s.Ports {
			fmt.Fprintf(&b, " %s:%d", *p.Name, *p.Port)
		}
		out = append(out, b.String())
	}
	return strings.Join(out, "; ")
}

func TestMirror(t *testing.T) {
	skip := func(e *corev1.Endpoints) { e.Labels[discoveryv1.LabelSkipMirror] = "true" }
	election := func(e *corev1.Endpoints) { e.Annotations[electionNote] = "{}" }
	objects := []kruntime.Object{
		service("web", nil), own("web"), service("selects", map[string]string{"a": "b"}), own("selects"), own("alone"),
		service("skipped", nil), own("skipped", skip), service("leader", nil), own("leader", election),
	}
	ctrltest.Test(t, []runtime.Row{Row}, objects, func(t *testing.T, h *ctrltest.Harness) {
		want := "web IPv4 10.1.0.1=true 10.1.0.2=false p:80 q:81; web IPv6 fd00::1=true p:80 q:81"
		if got := mirrored(h); got != want {
			t.Fatalf("one slice for each family, of services without a selector only:\n want %s\n got  %s", want, got)
		}
		for _, s := range ctrltest.Must(h.Client.DiscoveryV1().EndpointSlices("ns").List(ctx, metav1.ListOptions{})).Items {
			if ref := metav1.GetControllerOf(&s); s.Labels[discoveryv1.LabelManagedBy] != managedBy || s.Labels["l"] != "1" || s.Annotations["a"] != "1" || s.Annotations[lastApplied] != "" || ref == nil || ref.Kind != "Endpoints" {
				t.Errorf("labels %v, annotations %v, owner %v", s.Labels, s.Annotations, ref)
			}
		}
		h.Writes()
		api := h.Client.CoreV1().Endpoints("ns")
		e := ctrltest.Must(api.Get(ctx, "web", metav1.GetOptions{}))
		e.Subsets[0].Addresses = e.Subsets[0].Addresses[:1]
		e.Subsets[0].NotReadyAddresses = nil
		ctrltest.Must(api.Update(ctx, e, metav1.UpdateOptions{}))
		h.Rest()
		if got := mirrored(h); got != "web IPv4 10.1.0.1=true p:80 q:81" {
			t.Errorf("changed: %s", got)
		}
		if w := h.Writes(); strings.Contains(w, "create") {
			t.Errorf("slices are changed rather than made anew:\n%s", w)
		}
		if err := h.Client.CoreV1().Services("ns").Delete(ctx, "web", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		h.Rest()
		if got := mirrored(h); got != "" {
			t.Errorf("without its service: %s", got)
		}
	})
}
