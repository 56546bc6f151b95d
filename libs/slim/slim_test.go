package slim

import (
	"reflect"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestObject(t *testing.T) {
	always := corev1.ContainerRestartPolicyAlways
	fields := []metav1.ManagedFieldsEntry{{Manager: "m"}}
	run := func(name string) corev1.Container {
		return corev1.Container{Name: name, Image: "i", Env: []corev1.EnvVar{{Name: "A"}}, Command: []string{"x"}, Ports: []corev1.ContainerPort{{ContainerPort: 80}},
			LivenessProbe: &corev1.Probe{}, RestartPolicy: &always}
	}
	kept := func(name string) corev1.Container {
		return corev1.Container{Name: name, Image: "i", Ports: []corev1.ContainerPort{{ContainerPort: 80}}, RestartPolicy: &always}
	}
	got := Object(&corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "p", Labels: map[string]string{"a": "b"}, ManagedFields: fields},
		Spec: corev1.PodSpec{NodeName: "n", InitContainers: []corev1.Container{run("a")}, Containers: []corev1.Container{run("b")},
			EphemeralContainers: []corev1.EphemeralContainer{{}}},
		Status: corev1.PodStatus{Phase: "Running"},
	})
	want := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "p", Labels: map[string]string{"a": "b"}},
		Spec:       corev1.PodSpec{NodeName: "n", InitContainers: []corev1.Container{kept("a")}, Containers: []corev1.Container{kept("b")}},
		Status:     corev1.PodStatus{Phase: "Running"},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%+v", got)
	}
	if c := Object(&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{ManagedFields: fields}, Data: map[string]string{"a": "b"}}); c.ManagedFields != nil || c.Data["a"] != "b" {
		t.Errorf("%+v", c)
	}
}
