package admission

import (
	"context"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/keelson/keelson/apiserver/resources"
	"github.com/keelson/keelson/libs/nodefeatures"
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
			needed := nodefeatures.ForChange(&pod.Spec, &old.Spec)
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
			if missing := nodefeatures.Missing(needed, node); len(missing) > 0 {
				return nil, forbid(a, fmt.Errorf("pod update requires features %s which are not available on node %q", strings.Join(missing, ", "), name))
			}
			return nil, nil
		},
	}
}
