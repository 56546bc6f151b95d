package admission

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	"k8s.io/utils/ptr"

	"github.com/keelson/keelson/apiserver/resources"
)

// priority turns a pod's priority class into a number, and keeps the default class single.
//
// Source: Kubernetes documentation, "Pod Priority and Preemption".
func priority(cfg Config) Plugin {
	find := func(yield func(*schedulingv1.PriorityClass) bool) error {
		return cfg.Read.Each(grPriorityClasses, "", func(o resources.Object) bool {
			pc, ok := o.(*schedulingv1.PriorityClass)
			return !ok || yield(pc)
		})
	}
	return Plugin{
		Name: "Priority",
		Mutate: func(_ context.Context, a *Attributes) error {
			pod := a.pod()
			if pod == nil || a.Operation == Delete {
				return nil
			}
			if a.Operation == Update {
				if old, ok := a.Old.(*corev1.Pod); ok && pod.Spec.Priority == nil {
					pod.Spec.Priority = old.Spec.Priority
				}
				if old, ok := a.Old.(*corev1.Pod); ok && pod.Spec.PreemptionPolicy == nil {
					pod.Spec.PreemptionPolicy = old.Spec.PreemptionPolicy
				}
				return nil
			}
			var class *schedulingv1.PriorityClass
			if name := pod.Spec.PriorityClassName; name != "" {
				pc, err := resources.Lookup[schedulingv1.PriorityClass](cfg.Read, grPriorityClasses, "", name)
				if err != nil {
					return err
				}
				if pc == nil {
					return forbid(a, fmt.Errorf("no PriorityClass with name %v was found", name))
				}
				class = pc
			} else {
				// Of several defaults the lowest counts: nobody gains by a mistake.
				err := find(func(pc *schedulingv1.PriorityClass) bool {
					if pc.GlobalDefault && (class == nil || pc.Value < class.Value) {
						class = pc
					}
					return true
				})
				if err != nil {
					return err
				}
				if class != nil {
					pod.Spec.PriorityClassName = class.Name
				}
			}
			value, policy := int32(0), corev1.PreemptLowerPriority
			if class != nil {
				value = class.Value
				if class.PreemptionPolicy != nil {
					policy = *class.PreemptionPolicy
				}
			}
			if p := pod.Spec.Priority; p != nil && *p != value {
				return forbid(a, fmt.Errorf("the integer value of priority (%d) must not be provided in pod spec; priority admission controller computed %d from the given PriorityClass name", *p, value))
			}
			if p := pod.Spec.PreemptionPolicy; p != nil && *p != policy {
				return forbid(a, fmt.Errorf("the string value of PreemptionPolicy (%s) must not be provided in pod spec; priority admission controller computed %s from the given PriorityClass name", *p, policy))
			}
			pod.Spec.Priority, pod.Spec.PreemptionPolicy = ptr.To(value), ptr.To(policy)
			return nil
		},
		Validate: func(_ context.Context, a *Attributes) (func(), error) {
			pc, ok := a.Object.(*schedulingv1.PriorityClass)
			if !ok || !a.is(grPriorityClasses) || !pc.GlobalDefault || a.Operation == Delete {
				return nil, nil
			}
			var other string
			err := find(func(o *schedulingv1.PriorityClass) bool {
				if o.GlobalDefault && o.Name != pc.Name {
					other = o.Name
				}
				return other == ""
			})
			if err == nil && other != "" {
				err = forbid(a, fmt.Errorf("PriorityClass %v is already marked as default. Only one default can exist", other))
			}
			return nil, err
		},
	}
}
