package admission

import (
	"context"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"

	"github.com/keelson/keelson/apiserver/resources"
)

// What a node must declare before its pods may be changed so. Source: KEP-5328 and KEP-5419.
const (
	featurePodLevelResize = "InPlacePodLevelResourcesVerticalScaling"
	featureInitResize     = "InPlacePodVerticalScalingInitContainers"
)

// nodeFeatures refuses changes of running pods that the kubelet of their node does not know how to make.
func nodeFeatures(cfg Config) Plugin {
	return Plugin{
		Name: "NodeDeclaredFeatureValidator",
		Validate: func(_ context.Context, a *Attributes) (func(), error) {
			if a.Row.GR() != grPods || a.Operation != Update || a.Subresource != "" && a.Subresource != "resize" {
				return nil, nil
			}
			pod, old := a.Object.(*corev1.Pod), a.Old.(*corev1.Pod)
			name := pod.Spec.NodeName
			if name == "" || pod.Generation == old.Generation {
				return nil, nil
			}
			needed := neededOf(&pod.Spec, &old.Spec)
			if len(needed) == 0 {
				return nil, nil
			}
			node, err := resources.Lookup[corev1.Node](cfg.Read, grNodes, "", name)
			switch {
			case err != nil:
				return nil, err
			case node == nil:
				return nil, forbid(a, fmt.Errorf("node %q not found", name))
			}
			needed = slices.DeleteFunc(needed, func(f string) bool { return slices.Contains(node.Status.DeclaredFeatures, f) })
			if len(needed) > 0 {
				return nil, forbid(a, fmt.Errorf("pod update requires features %s which are not available on node %q", strings.Join(needed, ", "), name))
			}
			return nil, nil
		},
	}
}

// neededOf are the features that a change takes, in the order of their names.
func neededOf(now, was *corev1.PodSpec) (features []string) {
	if !equality.Semantic.DeepEqual(now.Resources, was.Resources) {
		features = append(features, featurePodLevelResize)
	}
	for i := range was.InitContainers {
		c := &was.InitContainers[i]
		sidecar := c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
		if !sidecar && i < len(now.InitContainers) && !equality.Semantic.DeepEqual(c.Resources, now.InitContainers[i].Resources) {
			return append(features, featureInitResize)
		}
	}
	return features
}
