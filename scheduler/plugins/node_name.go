package plugins

import "github.com/keelson/keelson/scheduler/framework"

var wrongName = final("NodeName", "node(s) didn't match the requested node name")

// nodeName obeys spec.nodeName. Pods that have one do not reach the queue; the plan command shows them.
func nodeName(_ *framework.Args, p *framework.Pod) framework.Local {
	want := p.Spec.NodeName
	if want == "" {
		return framework.Local{}
	}
	return framework.Local{Filter: func(n *framework.Node) *framework.Refusal {
		if n.Node.Name != want {
			return wrongName
		}
		return nil
	}}
}
