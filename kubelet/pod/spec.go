package pod

import (
	"cmp"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"maps"
	"slices"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/dump"
)

// Kind is which of the pod's container lists a container stands in.
type Kind uint8

const (
	Main Kind = iota
	Init
	Sidecar // an init container with restartPolicy Always
	Ephemeral
)

// Find returns the container of that name in the spec, as an ordinary Container
// whatever list it is in; nil when the spec has none.
func Find(p *corev1.Pod, name string) (*corev1.Container, Kind) {
	for i := range p.Spec.Containers {
		if p.Spec.Containers[i].Name == name {
			return &p.Spec.Containers[i], Main
		}
	}
	for i := range p.Spec.InitContainers {
		if c := &p.Spec.InitContainers[i]; c.Name == name {
			return c, initKind(c)
		}
	}
	for i := range p.Spec.EphemeralContainers {
		if c := &p.Spec.EphemeralContainers[i]; c.Name == name {
			return (*corev1.Container)(&c.EphemeralContainerCommon), Ephemeral
		}
	}
	return nil, Main
}

func initKind(c *corev1.Container) Kind {
	if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
		return Sidecar
	}
	return Init
}

// Hash is the label io.kubernetes.container.hash: it changes when a running container
// must be replaced because its spec has changed. It is computed as upstream does (FNV-32a
// over a dump of the JSON of name and image), so that a node can be taken over from an
// upstream kubelet without restarting a container.
func Hash(c *corev1.Container) string {
	text, err := json.Marshal(map[string]string{"name": c.Name, "image": c.Image})
	if err != nil {
		panic(err) // two strings always marshal
	}
	h := fnv.New32a()
	fmt.Fprintf(h, "%v", dump.ForHash(text))
	return strconv.FormatUint(uint64(h.Sum32()), 16)
}

// Restarts reports whether a container of the pod that ended with the exit code is
// started again: its own rules first, then its own policy, then the pod's.
//
// Source: API reference, Container.restartPolicyRules, restartPolicy; PodSpec.restartPolicy.
func Restarts(p *corev1.Pod, c *corev1.Container, kind Kind, exitCode int32) bool {
	switch kind {
	case Sidecar:
		return true
	case Ephemeral:
		return false
	}
	if r := rule(c, exitCode); r != nil && (r.Action == corev1.ContainerRestartRuleActionRestart || restartsAll(c, exitCode)) {
		return true
	}
	policy := p.Spec.RestartPolicy
	if c.RestartPolicy != nil {
		policy = corev1.RestartPolicy(*c.RestartPolicy)
	}
	if kind == Init && policy == corev1.RestartPolicyAlways {
		policy = corev1.RestartPolicyOnFailure
	}
	switch policy {
	case corev1.RestartPolicyNever:
		return false
	case corev1.RestartPolicyOnFailure:
		return exitCode != 0
	default:
		return true
	}
}

// AnnotationSource says where a pod comes from: "api", or "file" for a static pod. Source: upstream's kubelet.
const AnnotationSource = "kubernetes.io/config.source"

// IsStatic reports whether the pod comes from this node's manifests and not from the API
// server.
func IsStatic(p *corev1.Pod) bool {
	source := p.Annotations[AnnotationSource]
	return source != "" && source != "api"
}

// IsTerminal reports whether the phase is one that a pod never leaves.
func IsTerminal(phase corev1.PodPhase) bool {
	return phase == corev1.PodSucceeded || phase == corev1.PodFailed
}

// Full is how events and messages name a pod: name_namespace(uid).
func Full(p *corev1.Pod) string {
	return fmt.Sprintf("%s_%s(%s)", p.Name, p.Namespace, p.UID)
}

func sortedKeys[K cmp.Ordered, V any](m map[K]V) []K {
	return slices.Sorted(maps.Keys(m))
}

func condition(conditions []corev1.PodCondition, t corev1.PodConditionType) *corev1.PodCondition {
	for i := range conditions {
		if conditions[i].Type == t {
			return &conditions[i]
		}
	}
	return nil
}

func statusOf(list []corev1.ContainerStatus, name string) *corev1.ContainerStatus {
	for i := range list {
		if list[i].Name == name {
			return &list[i]
		}
	}
	return nil
}
