package pod

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	resourcehelper "k8s.io/component-helpers/resource"
	corev1helpers "k8s.io/component-helpers/scheduling/corev1"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
)

// Admit decides whether the node takes a pod that was bound to it. others are the pods that
// already hold resources. A nil result admits.
//
// Reasons and messages are upstream's, which users and controllers see in pod status.
func Admit(p *corev1.Pod, others []*corev1.Pod, node *corev1.Node) *End {
	if node == nil {
		return nil
	}
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
	if e := resources(p, others, node); e != nil {
		return e
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

// resources compares the sum of requests with what the node allots to pods.
func resources(p *corev1.Pod, others []*corev1.Pod, node *corev1.Node) *End {
	room := node.Status.Allocatable
	if n := room.Pods().Value(); n > 0 && int64(len(others))+1 > n {
		return insufficient("pods", 1, int64(len(others)), n)
	}
	want := resourcehelper.PodRequests(p, resourcehelper.PodResourcesOptions{})
	used := corev1.ResourceList{}
	for _, o := range others {
		for name, q := range resourcehelper.PodRequests(o, resourcehelper.PodResourcesOptions{}) {
			sum := used[name]
			sum.Add(q)
			used[name] = sum
		}
	}
	order := func(n corev1.ResourceName) int {
		return slices.Index([]corev1.ResourceName{corev1.ResourceEphemeralStorage, corev1.ResourceMemory, corev1.ResourceCPU}, n)
	}
	names := sortedKeys(want)
	slices.SortStableFunc(names, func(a, b corev1.ResourceName) int { return cmp.Compare(order(b), order(a)) })
	for _, name := range names {
		q := want[name]
		capacity, known := room[name]
		if q.IsZero() || (!known && strings.Contains(string(name), "/")) {
			continue // an extended resource that the node does not have is the cluster's matter
		}
		taken := used[name]
		total := q.DeepCopy()
		total.Add(taken)
		if total.Cmp(capacity) > 0 {
			if name == corev1.ResourceCPU {
				return insufficient(name, q.MilliValue(), taken.MilliValue(), capacity.MilliValue())
			}
			return insufficient(name, q.Value(), taken.Value(), capacity.Value())
		}
	}
	return nil
}

func insufficient(name corev1.ResourceName, requested, used, capacity int64) *End {
	return reject("OutOf"+string(name), fmt.Sprintf(
		"Node didn't have enough resource: %s, requested: %d, used: %d, capacity: %d", name, requested, used, capacity))
}

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
