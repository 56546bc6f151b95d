package podrules

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

func TestQuantitiesAreRounded(t *testing.T) {
	s := corev1.PodSpec{Resources: &corev1.ResourceRequirements{Limits: corev1.ResourceList{"cpu": resource.MustParse("0.0001")}}}
	DefaultSpec(&s)
	if got := s.Resources.Limits.Cpu().String(); got != "1m" {
		t.Errorf("cpu of the whole pod: %s, want 1m", got)
	}
}

func TestPullPolicy(t *testing.T) {
	id := strings.Repeat("a", 64)
	for image, want := range map[string]corev1.PullPolicy{
		"i": corev1.PullAlways, "i:latest": corev1.PullAlways, "h.io:5000/a/b": corev1.PullAlways, "i:1": corev1.PullIfNotPresent,
		"i@sha256:" + id: corev1.PullIfNotPresent, id: corev1.PullIfNotPresent, "../i": corev1.PullIfNotPresent, "A": corev1.PullIfNotPresent,
	} {
		if got := pullPolicy(image); got != want {
			t.Errorf("%s: %s, want %s", image, got, want)
		}
	}
}
