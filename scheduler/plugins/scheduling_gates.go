package plugins

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
)

// gate holds pods back while they have scheduling gates. Source: KEP-3521.
func gate(p *corev1.Pod) string {
	if len(p.Spec.SchedulingGates) == 0 {
		return ""
	}
	names := make([]string, len(p.Spec.SchedulingGates))
	for i, g := range p.Spec.SchedulingGates {
		names[i] = g.Name
	}
	return fmt.Sprintf("waiting for scheduling gates: %v", names)
}
