package plugins

import (
	corev1 "k8s.io/api/core/v1"

	"github.com/keelson/keelson/scheduler/framework"
)

var unschedulable = final("NodeUnschedulable", "node(s) were unschedulable")

// nodeUnschedulable leaves cordoned nodes out, unless the pod tolerates the taint that stands for it.
func nodeUnschedulable(_ *framework.Args, p *framework.Pod) framework.Local {
	if tolerates(p.Spec.Tolerations, &corev1.Taint{Key: corev1.TaintNodeUnschedulable, Effect: corev1.TaintEffectNoSchedule}) {
		return framework.Local{}
	}
	return framework.Local{Filter: func(n *framework.Node) *framework.Refusal {
		if n.Spec.Unschedulable {
			return unschedulable
		}
		return nil
	}}
}
