package pod

import (
	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	corev1helpers "k8s.io/component-helpers/scheduling/corev1"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
)

// Admit decides whether the node takes a pod that was bound to it. others are the pods that
// already hold resources. A nil end admits; a critical pod is admitted also when there is no room
// for it, if those that preempt names end first.
//
// Reasons and messages are upstream's, which users and controllers see in pod status.
func Admit(p *corev1.Pod, others []*corev1.Pod, node *corev1.Node) (end *End, preempt Preemption) {
	if node == nil {
		return nil, Preemption{}
	}
	lacks := shortages(p, others, node)
	if end = unfit(p, others, node, lacks); end != nil || len(lacks) == 0 {
		return end, Preemption{}
	}
	pods, ok := victims(p, others, lacks)
	if !ok {
		return noVictims(lacks), Preemption{}
	}
	return nil, Preemption{pods, lacks[0].name}
}

// unfit is why a node cannot take the pod. What lacks is no reason to refuse a critical one.
func unfit(p *corev1.Pod, others []*corev1.Pod, node *corev1.Node, lacks []shortage) *End {
	if p.Spec.OS != nil && p.Spec.OS.Name != corev1.Linux {
		return reject("PodOSNotSupported", "Failed to admit pod as the OS field doesn't match node OS")
	}
	if want, set := p.Labels[corev1.LabelOSStable]; set && want != "linux" {
		return reject("PodOSSelectorNodeLabelDoesNotMatch", "Failed to admit pod as the `kubernetes.io/os` label doesn't match node label")
	}
	if sc := p.Spec.SecurityContext; sc != nil && sc.SupplementalGroupsPolicy != nil && *sc.SupplementalGroupsPolicy == corev1.SupplementalGroupsPolicyStrict {
		if f := node.Status.Features; f == nil || f.SupplementalGroupsPolicy == nil || !*f.SupplementalGroupsPolicy {
			return reject("SupplementalGroupsPolicyNotSupported", "SupplementalGroupsPolicy=Strict is not supported in this node")
		}
	}
	if len(lacks) > 0 && !IsCritical(p) {
		return lacks[0].reject()
	}
	if fits, err := nodeaffinity.GetRequiredNodeAffinity(p).Match(node); err != nil || !fits {
		return reject("NodeAffinity", "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector")
	}
	if p.Spec.NodeName != "" && p.Spec.NodeName != node.Name {
		return reject("NodeName", "Predicate NodeName failed: node(s) didn't match the requested node name")
	}
	if portTaken(p, others) {
		return reject("NodePorts", "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports")
	}
	if !IsStatic(p) {
		noExecute := func(t *corev1.Taint) bool { return t.Effect == corev1.TaintEffectNoExecute }
		if _, bad := corev1helpers.FindMatchingUntoleratedTaint(logr.Discard(), node.Spec.Taints, p.Spec.Tolerations, noExecute, false); bad {
			return reject("TaintToleration", "Predicate TaintToleration failed: node(s) had taints that the pod didn't tolerate")
		}
	}
	return nil
}

// rejected begins the message of a pod that was not admitted.
const rejected = "Pod was rejected: "

// reject is a pod that never starts.
func reject(reason, message string) *End {
	return &End{Reason: reason, Message: rejected + message, Rejected: true}
}

// Reject is the end of a pod that another room refuses.
func Reject(reason, message string) *End { return reject(reason, message) }

type hostPort struct {
	ip, protocol string
	port         int32
}

func hostPorts(p *corev1.Pod) []hostPort {
	var out []hostPort
	for _, list := range [][]corev1.Container{p.Spec.InitContainers, p.Spec.Containers} {
		for i := range list {
			for _, port := range list[i].Ports {
				if port.HostPort > 0 {
					ip := port.HostIP
					if ip == "" || ip == "::" {
						ip = "0.0.0.0"
					}
					out = append(out, hostPort{ip, string(port.Protocol), port.HostPort})
				}
			}
		}
	}
	return out
}

func portTaken(p *corev1.Pod, others []*corev1.Pod) bool {
	mine := hostPorts(p)
	if len(mine) == 0 {
		return false
	}
	for _, o := range others {
		for _, theirs := range hostPorts(o) {
			for _, m := range mine {
				if m.port == theirs.port && m.protocol == theirs.protocol &&
					(m.ip == theirs.ip || m.ip == "0.0.0.0" || theirs.ip == "0.0.0.0") {
					return true
				}
			}
		}
	}
	return false
}
