package podrules

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// A container that has ended may be shown to run again only where something may start it again: its own rules and
// policy, the pod's, or a rule of any container that restarts all.
func TestTransitions(t *testing.T) {
	always := corev1.ContainerRestartPolicyAlways
	rules := func(action corev1.ContainerRestartRuleAction) []corev1.ContainerRestartRule {
		return []corev1.ContainerRestartRule{{Action: action, ExitCodes: &corev1.ContainerRestartRuleOnExitCodes{Operator: "In", Values: []int32{42}}}}
	}
	app := corev1.Container{Name: "app"}
	for _, row := range []struct {
		says    string
		spec    corev1.PodSpec
		exit    int32
		refused bool
	}{
		{"ended for good", corev1.PodSpec{RestartPolicy: "Never", Containers: []corev1.Container{app}}, 1, true},
		{"failed, and is tried again", corev1.PodSpec{RestartPolicy: "OnFailure", Containers: []corev1.Container{app}}, 1, false},
		{"succeeded", corev1.PodSpec{RestartPolicy: "OnFailure", Containers: []corev1.Container{app}}, 0, true},
		{"its rule", corev1.PodSpec{RestartPolicy: "Never", Containers: []corev1.Container{{Name: "app", RestartPolicyRules: rules("Restart")}}}, 42, false},
		{"another code", corev1.PodSpec{RestartPolicy: "Never", Containers: []corev1.Container{{Name: "app", RestartPolicyRules: rules("Restart")}}}, 1, true},
		{"another's rule is none of its own", corev1.PodSpec{RestartPolicy: "Never", Containers: []corev1.Container{app, {Name: "b", RestartPolicyRules: rules("Restart")}}}, 42, true},
		{"another restarts all", corev1.PodSpec{RestartPolicy: "Never", Containers: []corev1.Container{app, {Name: "b", RestartPolicyRules: rules("RestartAllContainers")}}}, 1, false},
		{"a sidecar restarts all", corev1.PodSpec{RestartPolicy: "Never", Containers: []corev1.Container{app},
			InitContainers: []corev1.Container{{Name: "s", RestartPolicy: &always, RestartPolicyRules: rules("RestartAllContainers")}}}, 137, false},
	} {
		was := []corev1.ContainerStatus{{Name: "app", State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: row.exit}}}}
		now := []corev1.ContainerStatus{{Name: "app", State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{}}}}
		faults := validateTransitions(now, was, row.spec.Containers, &row.spec, field.NewPath("status", "containerStatuses"))
		if refused := len(faults) > 0; refused != row.refused {
			t.Errorf("%s: %v, want refused: %v", row.says, faults, row.refused)
		}
	}
}
