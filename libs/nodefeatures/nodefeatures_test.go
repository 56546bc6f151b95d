package nodefeatures

import (
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

func TestFeatures(t *testing.T) {
	yes, no, always := true, false, corev1.ContainerRestartPolicyAlways
	rules := func(actions ...corev1.ContainerRestartRuleAction) []corev1.Container {
		c := corev1.Container{Name: "b"}
		for _, a := range actions {
			c.RestartPolicyRules = append(c.RestartPolicyRules, corev1.ContainerRestartRule{Action: a})
		}
		return []corev1.Container{{Name: "a"}, c}
	}
	for name, c := range map[string]struct {
		spec corev1.PodSpec
		want []string
	}{
		"an ordinary pod":                      {corev1.PodSpec{Containers: rules()}, nil},
		"a container that restarts itself":     {corev1.PodSpec{Containers: rules("Restart")}, nil},
		"a container that restarts all":        {corev1.PodSpec{Containers: rules("Restart", "RestartAllContainers")}, []string{RestartAll}},
		"an init container that restarts all":  {corev1.PodSpec{InitContainers: rules("RestartAllContainers")}, []string{RestartAll}},
		"the host's network":                   {corev1.PodSpec{HostNetwork: true}, nil},
		"the host's network and users":         {corev1.PodSpec{HostNetwork: true, HostUsers: &yes}, nil},
		"users of its own":                     {corev1.PodSpec{HostUsers: &no}, nil},
		"the host's network, users of its own": {corev1.PodSpec{HostNetwork: true, HostUsers: &no, Containers: rules("RestartAllContainers")}, []string{RestartAll, HostNetworkUserns}},
	} {
		if got := ForPod(&c.spec); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}

	more := corev1.ResourceRequirements{Requests: corev1.ResourceList{"cpu": resource.MustParse("1")}}
	for name, c := range map[string]struct {
		now, was corev1.PodSpec
		want     []string
	}{
		"nothing":            {corev1.PodSpec{}, corev1.PodSpec{}, nil},
		"the pod as a whole": {corev1.PodSpec{Resources: &more}, corev1.PodSpec{}, []string{PodLevelResize}},
		"a container":        {corev1.PodSpec{Containers: []corev1.Container{{Resources: more}}}, corev1.PodSpec{Containers: rules()[:1]}, nil},
		"an init container":  {corev1.PodSpec{InitContainers: []corev1.Container{{Resources: more}}}, corev1.PodSpec{InitContainers: rules()[:1]}, []string{InitContainerResize}},
		"a sidecar": {corev1.PodSpec{InitContainers: []corev1.Container{{RestartPolicy: &always, Resources: more}}},
			corev1.PodSpec{InitContainers: []corev1.Container{{RestartPolicy: &always}}}, nil},
	} {
		if got := ForChange(&c.now, &c.was); !slices.Equal(got, c.want) {
			t.Errorf("a change of %s: %v, want %v", name, got, c.want)
		}
	}

	node := &corev1.Node{Status: corev1.NodeStatus{DeclaredFeatures: []string{PodLevelResize, RestartAll}}}
	if got := Missing([]string{InitContainerResize, RestartAll}, node); !slices.Equal(got, []string{InitContainerResize}) {
		t.Errorf("missing: %v", got)
	}
}
