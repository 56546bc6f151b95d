package daemonset

import (
	"maps"
	"slices"
	"strconv"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	v1helper "k8s.io/component-helpers/scheduling/corev1"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
	"k8s.io/klog/v2"

	"github.com/keelson/keelson/controller-manager/podset"
)

// generationLabel marks pods with the template generation of the API before apps/v1.
const generationLabel = "pod-template-generation"

// fit says whether a node should get a pod, and whether one that is there may stay.
type fit struct{ run, stay bool }

// fits decides for every node, by the template's node name, selector, required
// affinity and tolerations. A taint with NoSchedule keeps new pods away and lets
// old ones stay; NoExecute does neither.
func fits(set *appsv1.DaemonSet, nodes []*corev1.Node) map[string]fit {
	pod := &corev1.Pod{ObjectMeta: set.Spec.Template.ObjectMeta, Spec: *set.Spec.Template.Spec.DeepCopy()}
	tolerate(&pod.Spec)
	affinity := nodeaffinity.GetRequiredNodeAffinity(pod)
	all := make(map[string]fit, len(nodes))
	for _, n := range nodes {
		all[n.Name] = fitOf(pod, affinity, n)
	}
	return all
}

func fitOf(pod *corev1.Pod, affinity nodeaffinity.RequiredNodeAffinity, n *corev1.Node) fit {
	if pod.Spec.NodeName != "" && pod.Spec.NodeName != n.Name {
		return fit{}
	}
	if ok, err := affinity.Match(n); err != nil || !ok {
		return fit{}
	}
	kept := func(effects ...corev1.TaintEffect) bool {
		_, untolerated := v1helper.FindMatchingUntoleratedTaint(klog.Logger{}, n.Spec.Taints, pod.Spec.Tolerations,
			func(t *corev1.Taint) bool { return slices.Contains(effects, t.Effect) }, false)
		return untolerated
	}
	if kept(corev1.TaintEffectNoExecute) {
		return fit{}
	}
	return fit{run: !kept(corev1.TaintEffectNoSchedule), stay: true}
}

// tolerate adds the tolerations by which daemons outlive the conditions of their
// node.
//
// Source: Kubernetes documentation, "DaemonSet", on taints and tolerations.
func tolerate(spec *corev1.PodSpec) {
	type want struct {
		key    string
		effect corev1.TaintEffect
	}
	list := []want{
		{corev1.TaintNodeNotReady, corev1.TaintEffectNoExecute},
		{corev1.TaintNodeUnreachable, corev1.TaintEffectNoExecute},
		{corev1.TaintNodeDiskPressure, corev1.TaintEffectNoSchedule},
		{corev1.TaintNodeMemoryPressure, corev1.TaintEffectNoSchedule},
		{corev1.TaintNodePIDPressure, corev1.TaintEffectNoSchedule},
		{corev1.TaintNodeUnschedulable, corev1.TaintEffectNoSchedule},
	}
	if spec.HostNetwork {
		list = append(list, want{corev1.TaintNodeNetworkUnavailable, corev1.TaintEffectNoSchedule})
	}
	for _, w := range list {
		t := corev1.Toleration{Key: w.key, Operator: corev1.TolerationOpExists, Effect: w.effect}
		if i := slices.IndexFunc(spec.Tolerations, func(have corev1.Toleration) bool { return have.MatchToleration(&t) }); i >= 0 {
			spec.Tolerations[i] = t
		} else {
			spec.Tolerations = append(spec.Tolerations, t)
		}
	}
}

// newPod is a pod of the set that only the named node can take.
func newPod(set *appsv1.DaemonSet, hash, node string) *corev1.Pod {
	p := podset.FromTemplate(&set.Spec.Template, set, gvk)
	tolerate(&p.Spec)
	if p.Labels == nil {
		p.Labels = map[string]string{}
	}
	if g := generation(set); g != "" {
		p.Labels[generationLabel] = g
	}
	p.Labels[appsv1.DefaultDaemonSetUniqueLabelKey] = hash
	if p.Spec.Affinity == nil {
		p.Spec.Affinity = &corev1.Affinity{}
	}
	if p.Spec.Affinity.NodeAffinity == nil {
		p.Spec.Affinity.NodeAffinity = &corev1.NodeAffinity{}
	}
	// The node was found to fit the template's terms; one term with its name says it all.
	p.Spec.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution = &corev1.NodeSelector{
		NodeSelectorTerms: []corev1.NodeSelectorTerm{{
			MatchFields: []corev1.NodeSelectorRequirement{{Key: metav1.ObjectNameField, Operator: corev1.NodeSelectorOpIn, Values: []string{node}}},
		}},
	}
	return p
}

// target is the node that a pod is on or was made for; empty when it names none.
func target(p *corev1.Pod) string {
	if p.Spec.NodeName != "" {
		return p.Spec.NodeName
	}
	a := p.Spec.Affinity
	if a == nil || a.NodeAffinity == nil || a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution == nil {
		return ""
	}
	for _, t := range a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms {
		for _, f := range t.MatchFields {
			if f.Key == metav1.ObjectNameField && f.Operator == corev1.NodeSelectorOpIn && len(f.Values) == 1 {
				return f.Values[0]
			}
		}
	}
	return ""
}

// generation is the template generation that old clients wrote, if it is a number.
func generation(set *appsv1.DaemonSet) string {
	g := set.Annotations[appsv1.DeprecatedTemplateGeneration]
	if _, err := strconv.ParseInt(g, 10, 64); err != nil {
		return ""
	}
	return g
}

func isUpdated(set *appsv1.DaemonSet, p *corev1.Pod, hash string) bool {
	if g := generation(set); g != "" && p.Labels[generationLabel] == g {
		return true
	}
	return hash != "" && p.Labels[appsv1.DefaultDaemonSetUniqueLabelKey] == hash
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
