package admission

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/ptr"
)

// evictionDelaySeconds is how long a pod stays on a node that is not ready or unreachable.
const evictionDelaySeconds = 300

// defaultTolerationSeconds lets pods survive a short loss of their node.
func defaultTolerationSeconds() Plugin {
	return Plugin{Name: "DefaultTolerationSeconds", Mutate: func(_ context.Context, a *Attributes) error {
		pod := a.pod()
		if pod == nil || a.Operation == Delete {
			return nil
		}
		for _, key := range []string{corev1.TaintNodeNotReady, corev1.TaintNodeUnreachable} {
			has := false
			for _, t := range pod.Spec.Tolerations {
				has = has || (t.Key == key || t.Key == "") && (t.Effect == corev1.TaintEffectNoExecute || t.Effect == "")
			}
			if !has {
				pod.Spec.Tolerations = append(pod.Spec.Tolerations, corev1.Toleration{
					Key: key, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute,
					TolerationSeconds: ptr.To(int64(evictionDelaySeconds)),
				})
			}
		}
		return nil
	}}
}

// taintNodesByCondition makes a new node wait until it has been seen ready.
func taintNodesByCondition() Plugin {
	return Plugin{Name: "TaintNodesByCondition", Mutate: func(_ context.Context, a *Attributes) error {
		node, ok := a.Object.(*corev1.Node)
		if !ok || !a.is(grNodes) || a.Operation != Create {
			return nil
		}
		for _, t := range node.Spec.Taints {
			if t.Key == corev1.TaintNodeNotReady && t.Effect == corev1.TaintEffectNoSchedule {
				return nil
			}
		}
		node.Spec.Taints = append(node.Spec.Taints, corev1.Taint{Key: corev1.TaintNodeNotReady, Effect: corev1.TaintEffectNoSchedule})
		return nil
	}}
}
