package slim

import (
	"fmt"
	"reflect"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

var always = corev1.ContainerRestartPolicyAlways

func whole(name, node string) *corev1.Pod {
	run := func(name string) corev1.Container {
		return corev1.Container{Name: name, Image: "i", Env: []corev1.EnvVar{{Name: "A"}}, Command: []string{"x"}, Ports: []corev1.ContainerPort{{ContainerPort: 80}},
			LivenessProbe: &corev1.Probe{}, RestartPolicy: &always, RestartPolicyRules: []corev1.ContainerRestartRule{{Action: corev1.ContainerRestartRuleActionRestartAllContainers}},
			Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{"cpu": resource.MustParse("1")}}}
	}
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "ns", Labels: map[string]string{"a": "b"}, ManagedFields: []metav1.ManagedFieldsEntry{{Manager: "m"}},
			OwnerReferences: []metav1.OwnerReference{{Name: "o"}}},
		Spec: corev1.PodSpec{NodeName: node, Hostname: name, InitContainers: []corev1.Container{run("a")}, Containers: []corev1.Container{run("b")},
			EphemeralContainers: []corev1.EphemeralContainer{{}}, NodeSelector: map[string]string{"c": "d"},
			Volumes: []corev1.Volume{
				{Name: "token-" + name, VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{}}},
				{Name: "data", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "data-" + name}}},
			}},
		Status: corev1.PodStatus{Phase: "Running"},
	}
}

func kept(name, node string) *corev1.Pod {
	p := whole(name, node)
	p.ManagedFields, p.Spec.EphemeralContainers, p.Spec.Volumes = nil, nil, p.Spec.Volumes[1:]
	for _, list := range [][]corev1.Container{p.Spec.InitContainers, p.Spec.Containers} {
		list[0].Env, list[0].Command, list[0].LivenessProbe = nil, nil, nil
	}
	return p
}

func TestObject(t *testing.T) {
	a, b := Object(whole("a", "n")), Object(whole("b", ""))
	if want := kept("a", "n"); !reflect.DeepEqual(a, want) {
		t.Errorf("%+v\nis not\n%+v", a, want)
	}
	if want := kept("b", ""); !reflect.DeepEqual(b, want) {
		t.Errorf("%+v\nis not\n%+v", b, want)
	}
	if &a.Spec.Containers[0] != &b.Spec.Containers[0] || &a.OwnerReferences[0] != &b.OwnerReferences[0] {
		t.Error("pods of one template have nothing in common")
	}
	other := whole("c", "n")
	other.Spec.Containers[0].Image, other.Labels["a"] = "j", "c"
	if c := Object(other); c.Spec.Containers[0].Image != "j" || a.Spec.Containers[0].Image != "i" || c.Labels["a"] != "c" || a.Labels["a"] != "b" {
		t.Errorf("what differs is shared: %+v", c)
	}

	data := map[string]string{"ca.crt": "x"}
	if m := Object(&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: RootCA, ManagedFields: make([]metav1.ManagedFieldsEntry, 1)}, Data: data}); m.ManagedFields != nil || m.Data["ca.crt"] != "x" {
		t.Errorf("%+v", m)
	}
	if m := Object(&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "m", UID: "u"}, Data: data}); m.Data != nil || m.UID != "u" {
		t.Errorf("%+v", m)
	}
}

// What is remembered is bounded, and what was forgotten is remembered anew.
func TestShared(t *testing.T) {
	s := newShared[metav1.ObjectMeta]()
	get := func(i int) *metav1.ObjectMeta { return s.of(&metav1.ObjectMeta{Name: fmt.Sprint(i)}) }
	first := get(0)
	for i := range 3 * most {
		if v := get(i); v.Name != fmt.Sprint(i) || get(i) != v {
			t.Fatalf("%d is %q", i, v.Name)
		}
		if len(s.known) > most || len(s.known) != len(s.order) {
			t.Fatalf("%d values are known, in an order of %d", len(s.known), len(s.order))
		}
	}
	if again := get(0); again == first || again.Name != "0" {
		t.Errorf("%p, %p", again, first)
	}
	big := &metav1.ObjectMeta{Annotations: map[string]string{"a": strings.Repeat("x", large)}}
	if s.of(big) != big {
		t.Error("a large value is kept")
	}
}

func BenchmarkObject(b *testing.B) {
	p := whole("a", "n")
	for b.Loop() {
		q := *p
		q.Spec.Containers = append([]corev1.Container(nil), p.Spec.Containers...)
		q.Spec.InitContainers = append([]corev1.Container(nil), p.Spec.InitContainers...)
		q.Spec.Volumes = append([]corev1.Volume(nil), p.Spec.Volumes...)
		Object(&q)
	}
}
