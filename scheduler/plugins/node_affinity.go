package plugins

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"

	"github.com/keelson/keelson/scheduler/framework"
)

var affinityMismatch = final("NodeAffinity", "node(s) didn't match Pod's node affinity/selector")

// nodeAffinity obeys spec.nodeSelector and required node affinity, and adds up the weights of the
// preferred terms that a node matches.
func nodeAffinity(_ *framework.Args, p *framework.Pod) framework.Local {
	var out framework.Local
	var affinity *corev1.NodeAffinity
	if p.Spec.Affinity != nil {
		affinity = p.Spec.Affinity.NodeAffinity
	}
	if HasNodeAffinity(p) {
		required := nodeaffinity.GetRequiredNodeAffinity(p.Pod)
		out.Filter = func(n *framework.Node) *framework.Refusal {
			if ok, err := required.Match(n.Node); !ok || err != nil {
				return affinityMismatch
			}
			return nil
		}
		out.Only = namedNodes(affinity)
	}
	if affinity != nil && len(affinity.PreferredDuringSchedulingIgnoredDuringExecution) > 0 {
		terms, err := nodeaffinity.NewPreferredSchedulingTerms(affinity.PreferredDuringSchedulingIgnoredDuringExecution)
		if err == nil { // the API server refuses terms that cannot be parsed
			out.Score = func(n *framework.Node) int64 { return terms.Score(n.Node) }
			out.Normalize = func(raw, best int64) int64 {
				if best == 0 {
					return 0
				}
				return framework.MaxScore * raw / best
			}
		}
	}
	return out
}

// HasNodeAffinity tells whether the pod asks for certain nodes.
func HasNodeAffinity(p *framework.Pod) bool {
	a := p.Spec.Affinity
	return len(p.Spec.NodeSelector) > 0 || a != nil && a.NodeAffinity != nil && a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution != nil
}

// namedNodes are the only nodes that required terms can mean, when every term names its nodes: this is
// how pods of a DaemonSet look.
func namedNodes(a *corev1.NodeAffinity) []string {
	if a == nil || a.RequiredDuringSchedulingIgnoredDuringExecution == nil {
		return nil
	}
	var names []string
	for _, t := range a.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms {
		named := false
		for _, f := range t.MatchFields {
			if f.Key == "metadata.name" && f.Operator == corev1.NodeSelectorOpIn {
				names = append(names, f.Values...)
				named = true
			}
		}
		if !named {
			return nil
		}
	}
	return names
}

func affinityMatches(e *framework.Event, p *framework.Pod) bool {
	if e.Node == nil {
		return true
	}
	ok, err := nodeaffinity.GetRequiredNodeAffinity(p.Pod).Match(e.Node.Node)
	return ok && err == nil
}
