// Package nodefeatures knows which features a node must declare in its status before a pod may be placed on
// it, or changed on it: the scheduler asks for the one, the API server for the other, and the kubelet declares.
//
// Its calls are [ForPod], [ForChange] and [Missing]. All are pure, and features are in the order of their names.
//
// Source: KEP-5328.
package nodefeatures

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
)

// The features that a pod may need.
const (
	PodLevelResize      = "InPlacePodLevelResourcesVerticalScaling" // KEP-5419
	InitContainerResize = "InPlacePodVerticalScalingInitContainers" // KEP-1287
	RestartAll          = "RestartAllContainersOnContainerExits"    // KEP-5532
	HostNetworkUserns   = "UserNamespacesHostNetworkSupport"        // KEP-127
)

// ForPod are the features that a node must have to run the pod.
func ForPod(s *corev1.PodSpec) (features []string) {
	if restartsAll(s.InitContainers) || restartsAll(s.Containers) {
		features = append(features, RestartAll)
	}
	if s.HostNetwork && s.HostUsers != nil && !*s.HostUsers {
		features = append(features, HostNetworkUserns)
	}
	return features
}

func restartsAll(list []corev1.Container) bool {
	for i := range list {
		for _, rule := range list[i].RestartPolicyRules {
			if rule.Action == corev1.ContainerRestartRuleActionRestartAllContainers {
				return true
			}
		}
	}
	return false
}

// ForChange are the features that a node must have for its pod to be changed so.
func ForChange(now, was *corev1.PodSpec) (features []string) {
	if !equality.Semantic.DeepEqual(now.Resources, was.Resources) {
		features = append(features, PodLevelResize)
	}
	for i := range was.InitContainers {
		c := &was.InitContainers[i]
		sidecar := c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
		if !sidecar && i < len(now.InitContainers) && !equality.Semantic.DeepEqual(c.Resources, now.InitContainers[i].Resources) {
			return append(features, InitContainerResize)
		}
	}
	return features
}

// Missing are those of the needed features that a node does not declare.
func Missing(needed []string, node *corev1.Node) (missing []string) {
	for _, f := range needed {
		if !slices.Contains(node.Status.DeclaredFeatures, f) {
			missing = append(missing, f)
		}
	}
	return missing
}
