package plugins

import (
	corev1 "k8s.io/api/core/v1"

	"github.com/keelson/keelson/scheduler/framework"
)

var untolerated = final("TaintToleration", "node(s) had untolerated taint(s)")

// taintToleration refuses nodes with a taint NoSchedule or NoExecute that the pod does not tolerate, and
// prefers those with fewer untolerated PreferNoSchedule taints.
func taintToleration(_ *framework.Args, p *framework.Pod) framework.Local {
	var soft []corev1.Toleration
	for _, t := range p.Spec.Tolerations {
		if t.Effect == "" || t.Effect == corev1.TaintEffectPreferNoSchedule {
			soft = append(soft, t)
		}
	}
	return framework.Local{
		Filter: func(n *framework.Node) *framework.Refusal {
			if TaintsTolerated(p.Spec.Tolerations, n.Spec.Taints) {
				return nil
			}
			return untolerated
		},
		Score: func(n *framework.Node) int64 {
			var count int64
			for i := range n.Spec.Taints {
				if t := &n.Spec.Taints[i]; t.Effect == corev1.TaintEffectPreferNoSchedule && !tolerates(soft, t) {
					count++
				}
			}
			return count
		},
		Normalize: func(raw, best int64) int64 {
			if best == 0 {
				return framework.MaxScore
			}
			return framework.MaxScore - framework.MaxScore*raw/best
		},
	}
}

// TaintsTolerated tells whether no taint keeps a pod with these tolerations from being placed.
func TaintsTolerated(tolerations []corev1.Toleration, taints []corev1.Taint) bool {
	for i := range taints {
		if t := &taints[i]; (t.Effect == corev1.TaintEffectNoSchedule || t.Effect == corev1.TaintEffectNoExecute) && !tolerates(tolerations, t) {
			return false
		}
	}
	return true
}

// tolerates: API reference, Toleration. An empty key with operator Exists tolerates every key, an empty
// effect every effect.
func tolerates(tolerations []corev1.Toleration, t *corev1.Taint) bool {
	for i := range tolerations {
		o := &tolerations[i]
		if o.Effect != "" && o.Effect != t.Effect || o.Key != "" && o.Key != t.Key {
			continue
		}
		switch o.Operator {
		case corev1.TolerationOpExists:
			return true
		case "", corev1.TolerationOpEqual:
			if o.Key != "" && o.Value == t.Value {
				return true
			}
		}
	}
	return false
}

func taintsTolerated(e *framework.Event, p *framework.Pod) bool {
	return e.Node == nil || TaintsTolerated(p.Spec.Tolerations, e.Node.Spec.Taints)
}
