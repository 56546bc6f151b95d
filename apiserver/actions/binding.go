package actions

import (
	"context"
	"fmt"
	"maps"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/keelson/keelson/apiserver/resources"
)

// Bind gives a pod its node, once and for all.
func (a *Actions) Bind(ctx context.Context, rq *resources.Request, namespace, name string, b *corev1.Binding) error {
	var errs field.ErrorList
	if b.Target.Kind != "" && b.Target.Kind != "Node" {
		errs = append(errs, field.NotSupported(field.NewPath("target", "kind"), b.Target.Kind, []string{"Node", "<empty>"}))
	}
	if b.Target.Name == "" {
		errs = append(errs, field.Required(field.NewPath("target", "name"), ""))
	}
	if len(errs) > 0 {
		return apierrors.NewInvalid(corev1.SchemeGroupVersion.WithKind("Binding").GroupKind(), name, errs)
	}
	node, err := resources.Lookup[corev1.Node](a.Read, grNodes, "", b.Target.Name)
	if err != nil {
		return err
	}
	return a.Write.Update(ctx, rq, grPods, "binding", namespace, name, func(o resources.Object) (resources.Object, error) {
		pod := o.DeepCopyObject().(*corev1.Pod)
		return pod, assign(pod, b, node, metav1.NewTime(rq.Now))
	})
}

// assign is the change itself. node may be nil: a pod can be bound to a node that is not there yet.
func assign(pod *corev1.Pod, b *corev1.Binding, node *corev1.Node, now metav1.Time) error {
	conflict := func(format string, args ...any) error {
		return apierrors.NewConflict(corev1.Resource("pods/binding"), pod.Name, fmt.Errorf(format, args...))
	}
	unmet := func(what, want, is string) error {
		return apierrors.NewConflict(grPods, pod.Name, fmt.Errorf("StorageError: invalid object, Code: 4, Key: /registry/pods/%s/%s, ResourceVersion: 0, AdditionalErrorMsg: "+
			"Precondition failed: %s in precondition: %s, %s in object meta: %s", pod.Namespace, pod.Name, what, want, what, is))
	}
	switch {
	case b.UID != "" && b.UID != pod.UID:
		return unmet("UID", string(b.UID), string(pod.UID))
	case b.ResourceVersion != "" && b.ResourceVersion != pod.ResourceVersion:
		return unmet("ResourceVersion", b.ResourceVersion, pod.ResourceVersion)
	case pod.DeletionTimestamp != nil:
		return conflict("pod %s is being deleted, cannot be assigned to a host", pod.Name)
	case pod.Spec.NodeName != "":
		return conflict("pod %v is already assigned to node %q", pod.Name, pod.Spec.NodeName)
	case len(pod.Spec.SchedulingGates) > 0:
		return conflict("pod %v has non-empty .spec.schedulingGates", pod.Name)
	}
	pod.Spec.NodeName = b.Target.Name
	if pod.Annotations == nil && len(b.Annotations) > 0 {
		pod.Annotations = map[string]string{}
	}
	maps.Copy(pod.Annotations, b.Annotations)
	if pod.Labels == nil {
		pod.Labels = map[string]string{}
	}
	maps.Copy(pod.Labels, b.Labels)
	if node != nil { // pods learn where they are: KEP-4742
		for _, l := range []string{corev1.LabelTopologyZone, corev1.LabelTopologyRegion} {
			if v, ok := node.Labels[l]; ok {
				pod.Labels[l] = v
			}
		}
	}
	if len(pod.Labels) == 0 {
		pod.Labels = nil
	}
	setCondition(&pod.Status, corev1.PodCondition{
		Type: corev1.PodScheduled, Status: corev1.ConditionTrue, LastTransitionTime: now, ObservedGeneration: pod.Generation,
	})
	return nil
}

// setCondition replaces a condition, and keeps its transition time when the status is the same.
func setCondition(s *corev1.PodStatus, c corev1.PodCondition) {
	for i := range s.Conditions {
		if s.Conditions[i].Type == c.Type {
			if s.Conditions[i].Status == c.Status {
				c.LastTransitionTime = s.Conditions[i].LastTransitionTime
			}
			s.Conditions[i] = c
			return
		}
	}
	s.Conditions = append(s.Conditions, c)
}
