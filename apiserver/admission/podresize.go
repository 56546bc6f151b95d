package admission

import (
	"context"
	"errors"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	resourcehelper "k8s.io/component-helpers/resource"

	"github.com/keelson/keelson/apiserver/resources"
)

// Why a resize is refused, as a cause that clients can tell.
const (
	causeNodeCapacity = metav1.CauseType("NodeCapacity")
	causePlatform     = metav1.CauseType("UnsupportedPlatform")
)

// podResize refuses what the node of a pod could never grant: more than it has, or a resize where there is none.
//
// Source: KEP-1287.
func podResize(cfg Config) Plugin {
	return Plugin{
		Name: "PodResizeValidator",
		Validate: func(_ context.Context, a *Attributes) (func(), error) {
			if a.Row.GR() != grPods || a.Subresource != "resize" || a.Operation != Update {
				return nil, nil
			}
			pod, old := a.Object.(*corev1.Pod), a.Old.(*corev1.Pod)
			name := pod.Spec.NodeName
			if name == "" || pod.Generation == old.Generation {
				return nil, nil
			}
			node, err := resources.Lookup[corev1.Node](cfg.Read, grNodes, "", name)
			switch {
			case err != nil:
				return nil, err
			case node == nil:
				return nil, forbid(a, fmt.Errorf("node %q not found", name))
			}
			if os := node.Labels[corev1.LabelOSStable]; os != "" && os != string(corev1.Linux) {
				return nil, because(forbid(a, fmt.Errorf("pod resize is only supported on linux nodes, node %q is %q", name, os)), causePlatform)
			}
			asked, has := resourcehelper.PodRequests(pod, resourcehelper.PodResourcesOptions{}), node.Status.Allocatable
			var lacks []string
			if asked.Cpu().Cmp(*has.Cpu()) > 0 {
				lacks = append(lacks, fmt.Sprintf("cpu, requested: %d, allocatable: %d", asked.Cpu().MilliValue(), has.Cpu().MilliValue()))
			}
			if asked.Memory().Cmp(*has.Memory()) > 0 {
				lacks = append(lacks, fmt.Sprintf("memory, requested: %d, allocatable: %d", asked.Memory().Value(), has.Memory().Value()))
			}
			if len(lacks) > 0 {
				return nil, because(forbid(a, fmt.Errorf("node didn't have enough allocatable resources: %s", strings.Join(lacks, "; "))), causeNodeCapacity)
			}
			return nil, nil
		},
	}
}

// because adds a cause to a refusal.
func because(err error, cause metav1.CauseType) error {
	var s *apierrors.StatusError
	if errors.As(err, &s) {
		s.ErrStatus.Details.Causes = append(s.ErrStatus.Details.Causes, metav1.StatusCause{Type: cause})
	}
	return err
}
