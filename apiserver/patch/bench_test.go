package patch

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/keelson/keelson/apiserver/resources"
)

func benchPod() *corev1.Pod {
	yes, grace := true, int64(30)
	p := &corev1.Pod{Spec: corev1.PodSpec{
		RestartPolicy: "Always", TerminationGracePeriodSeconds: &grace, DNSPolicy: "ClusterFirst", SchedulerName: "default-scheduler",
		SecurityContext: &corev1.PodSecurityContext{}, EnableServiceLinks: &yes,
	}}
	p.Name, p.Namespace, p.Labels = "p", "ns", map[string]string{"app": "x", "tier": "y"}
	for _, n := range []string{"a", "b"} {
		p.Spec.Containers = append(p.Spec.Containers, corev1.Container{
			Name: n, Image: "i", ImagePullPolicy: "Always", TerminationMessagePath: "/dev/termination-log", TerminationMessagePolicy: "File",
			Env: []corev1.EnvVar{{Name: "A", Value: "1"}, {Name: "B", Value: "2"}}, Ports: []corev1.ContainerPort{{ContainerPort: 80, Protocol: "TCP"}},
		})
	}
	return p
}

// Managed fields of a pod that is created, and of one whose status changes.
func BenchmarkBook(b *testing.B) {
	reg, err := resources.NewRegistry(resources.Table())
	if err != nil {
		b.Fatal(err)
	}
	f, row := NewFields(reg.Kind), reg.Lookup("", "v1", "pods")
	create := func(p *corev1.Pod) {
		if err := f.Update(Write{Row: row, Reset: []string{"status"}, Manager: "m", Now: time.Unix(1, 0)}, nil, p); err != nil {
			b.Fatal(err)
		}
	}
	b.Run("create", func(b *testing.B) {
		p := benchPod()
		b.ReportAllocs()
		for b.Loop() {
			p.ManagedFields = nil
			create(p)
		}
	})
	b.Run("status", func(b *testing.B) {
		live := benchPod()
		create(live)
		next := live.DeepCopy()
		next.Status = corev1.PodStatus{Phase: "Running", HostIP: "1.2.3.4", PodIP: "1.2.3.5", PodIPs: []corev1.PodIP{{IP: "1.2.3.5"}},
			Conditions: []corev1.PodCondition{{Type: "Ready", Status: "True", LastTransitionTime: metav1.Unix(1, 0)}, {Type: "Initialized", Status: "True"}}}
		b.ReportAllocs()
		for b.Loop() {
			next.ManagedFields = nil
			if err := f.Update(Write{Row: row, Subresource: "status", Reset: []string{"spec"}, Manager: "k", Now: time.Unix(2, 0)}, live, next); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("apply", func(b *testing.B) {
		live := benchPod()
		create(live)
		p := benchPod()
		p.Labels["mark"] = "z"
		content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(p)
		if err != nil {
			b.Fatal(err)
		}
		delete(content, "status")
		config := &unstructured.Unstructured{Object: content}
		config.SetGroupVersionKind(row.GVK())
		b.ReportAllocs()
		for b.Loop() {
			if _, changed, err := f.Apply(Write{Row: row, Reset: []string{"status"}, Manager: "a", Now: time.Unix(2, 0)}, live, config, false); err != nil || !changed {
				b.Fatal(changed, err)
			}
		}
	})
}
