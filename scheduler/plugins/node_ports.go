package plugins

import "github.com/keelson/keelson/scheduler/framework"

var portsTaken = open("NodePorts", "node(s) didn't have free ports for the requested pod ports")

// nodePorts keeps two pods from taking one host port.
func nodePorts(_ *framework.Args, p *framework.Pod) framework.Local {
	if len(p.Ports) == 0 {
		return framework.Local{}
	}
	return framework.Local{Filter: func(n *framework.Node) *framework.Refusal {
		if n.PortTaken(p.Ports) {
			return portsTaken
		}
		return nil
	}}
}

func portFreed(e *framework.Event, p *framework.Pod) bool {
	if e.Kind&framework.PodGone == 0 || e.Pod == nil {
		return true
	}
	for _, freed := range e.Pod.Ports {
		for _, want := range p.Ports {
			if want.Conflicts(freed) {
				return true
			}
		}
	}
	return false
}
