package same

import (
	"reflect"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func spec() *corev1.PodSpec {
	n := int64(30)
	return &corev1.PodSpec{
		NodeSelector: map[string]string{"a": "1", "b": "2", "c": "3"}, TerminationGracePeriodSeconds: &n,
		Containers: []corev1.Container{{Name: "c", Image: "i", Env: []corev1.EnvVar{{Name: "A", Value: "b"}}, Resources: corev1.ResourceRequirements{
			Limits: corev1.ResourceList{"cpu": resource.MustParse("1"), "memory": resource.MustParse("1Gi")},
		}}},
	}
}

func TestJSON(t *testing.T) {
	for _, c := range []struct {
		a, b any
		want bool
	}{
		{map[string]any{"a": []any{int64(1)}}, map[string]any{"a": []any{1.0}}, true},
		{map[string]any{"a": 1.5}, map[string]any{"a": int64(1)}, false},
		{map[string]any{"a": nil}, map[string]any{"b": nil}, false},
		{[]any{}, []any(nil), true},
		{"1", int64(1), false},
		{int64(1<<53 + 1), float64(1 << 53), false},
	} {
		if JSON(c.a, c.b) != c.want || JSON(c.b, c.a) != c.want {
			t.Errorf("%v and %v: want %v", c.a, c.b, c.want)
		}
	}
}

// Values says what a comparison field by field says.
func TestValues(t *testing.T) {
	with := func(change func(*corev1.PodSpec)) *corev1.PodSpec {
		s := spec()
		change(s)
		return s
	}
	for name, c := range map[string]struct {
		a, b any
		want bool
	}{
		"equal":           {spec(), spec(), true},
		"value":           {spec(), with(func(s *corev1.PodSpec) { s.Containers[0].Env[0].Value = "c" }), false},
		"same length":     {spec(), with(func(s *corev1.PodSpec) { s.Containers[0].Image = "j" }), false},
		"absent, zero":    {spec(), with(func(s *corev1.PodSpec) { s.ActiveDeadlineSeconds = new(int64) }), false},
		"empty list":      {spec(), with(func(s *corev1.PodSpec) { s.Volumes = []corev1.Volume{} }), true},
		"empty map":       {&corev1.PodSpec{}, &corev1.PodSpec{NodeSelector: map[string]string{}}, true},
		"quantity":        {spec(), with(func(s *corev1.PodSpec) { s.Containers[0].Resources.Limits["cpu"] = resource.MustParse("1000m") }), true},
		"other quantity":  {spec(), with(func(s *corev1.PodSpec) { s.Containers[0].Resources.Limits["cpu"] = resource.MustParse("1001m") }), false},
		"order of a list": {&corev1.PodSpec{Tolerations: []corev1.Toleration{{Key: "a"}, {Key: "b"}}}, &corev1.PodSpec{Tolerations: []corev1.Toleration{{Key: "b"}, {Key: "a"}}}, false},
		"zone of a time": {&corev1.PodStatus{StartTime: &metav1.Time{Time: time.Unix(1, 0).UTC()}},
			&corev1.PodStatus{StartTime: &metav1.Time{Time: time.Unix(1, 0).In(time.FixedZone("x", 3600))}}, true},
		"nil":        {(*corev1.PodSpec)(nil), (*corev1.PodSpec)(nil), true},
		"nil, empty": {(*corev1.PodSpec)(nil), &corev1.PodSpec{}, false},
		"no message": {&map[string]string{"a": "b"}, &map[string]string{"a": "b"}, true},
		"large": {&corev1.Secret{Data: map[string][]byte{"a": make([]byte, 2*largest)}},
			&corev1.Secret{Data: map[string][]byte{"a": make([]byte, 2*largest)}}, true},
	} {
		if got := Values(c.a, c.b); got != c.want || got != equality.Semantic.DeepEqual(c.a, c.b) {
			t.Errorf("%s: %v, want %v; field by field %v", name, got, c.want, equality.Semantic.DeepEqual(c.a, c.b))
		}
		if got := Values(c.b, c.a); got != c.want {
			t.Errorf("%s the other way: %v, want %v", name, got, c.want)
		}
		a, b := reflect.ValueOf(c.a), reflect.ValueOf(c.b)
		if a.IsNil() || b.IsNil() {
			continue
		}
		if got := Fields(a.Elem(), b.Elem()); got != c.want {
			t.Errorf("%s as fields: %v, want %v", name, got, c.want)
		}
	}
	a, b := spec(), spec()
	b.Containers = append(b.Containers, corev1.Container{})
	if x := reflect.ValueOf(a).Elem(); Fields(x.FieldByName("Containers"), reflect.ValueOf(b).Elem().FieldByName("Containers")) {
		t.Error("lists of one and two containers are the same")
	}
}

// What has been written is what will be read: protobuf has no empty lists.
func TestAsRead(t *testing.T) {
	role := &rbacv1.Role{Rules: []rbacv1.PolicyRule{}}
	role.Finalizers = []string{} // JSON does not show it: whether it is null is seen by nobody
	AsRead(role)
	if role.Rules != nil || role.Finalizers == nil {
		t.Errorf("%#v", role)
	}
	node := &storagev1.CSINode{Spec: storagev1.CSINodeSpec{Drivers: []storagev1.CSINodeDriver{}}}
	AsRead(node)
	if node.Spec.Drivers != nil {
		t.Error("an inner list is kept")
	}
	AsRead(&map[string]string{}) // no message
}

func BenchmarkValues(b *testing.B) {
	x, y := spec(), spec()
	b.Run("messages", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			Values(x, y)
		}
	})
	b.Run("field by field", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			equality.Semantic.DeepEqual(x, y)
		}
	})
}
