package plugins

import (
	"github.com/keelson/keelson/libs/nodefeatures"
	"github.com/keelson/keelson/scheduler/framework"
)

var lacksFeatures = final("NodeDeclaredFeatures", "node(s) didn't match Pod's required features")

// nodeDeclaredFeatures leaves out nodes whose kubelet does not say that it can do what the pod needs. Upstream
// asks this last of all; here it is asked with what depends on one node alone, before volumes and other pods.
func nodeDeclaredFeatures(_ *framework.Args, p *framework.Pod) framework.Local {
	needed := nodefeatures.ForPod(&p.Spec)
	if len(needed) == 0 {
		return framework.Local{}
	}
	return framework.Local{Filter: func(n *framework.Node) *framework.Refusal {
		if len(nodefeatures.Missing(needed, n.Node)) > 0 {
			return lacksFeatures
		}
		return nil
	}}
}

// featuresDeclared: the node has what the pod needs.
func featuresDeclared(e *framework.Event, p *framework.Pod) bool {
	return e.Node == nil || len(nodefeatures.Missing(nodefeatures.ForPod(&p.Spec), e.Node.Node)) == 0
}
