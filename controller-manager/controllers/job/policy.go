package job

import (
	"fmt"
	"slices"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
)

// verdict is what the failure policy says of a failed pod.
type verdict struct {
	action  batchv1.PodFailurePolicyAction // empty: no rule matched
	counted bool                           // towards the back-off limit
	message string                         // of FailJob
}

// judge applies the first rule that matches.
//
// Source: Kubernetes documentation, "Jobs", on pod failure policy; KEP-3329.
func judge(policy *batchv1.PodFailurePolicy, p *corev1.Pod) verdict {
	if policy == nil {
		return verdict{counted: true}
	}
	for i, r := range policy.Rules {
		var what string
		switch {
		case r.OnExitCodes != nil:
			s := matchingContainer(p.Status.ContainerStatuses, r.OnExitCodes)
			if s == nil {
				s = matchingContainer(p.Status.InitContainerStatuses, r.OnExitCodes)
			}
			if s == nil {
				continue
			}
			what = fmt.Sprintf("Container %s for pod %s/%s failed with exit code %v", s.Name, p.Namespace, p.Name, s.State.Terminated.ExitCode)
		case r.OnPodConditions != nil:
			c := matchingCondition(p.Status.Conditions, r.OnPodConditions)
			if c == nil {
				continue
			}
			what = fmt.Sprintf("Pod %s/%s has condition %v", p.Namespace, p.Name, c.Type)
		default:
			continue
		}
		v := verdict{action: r.Action, counted: r.Action != batchv1.PodFailurePolicyActionIgnore}
		if r.Action == batchv1.PodFailurePolicyActionFailJob {
			v.message = fmt.Sprintf("%s matching %v rule at index %d", what, r.Action, i)
		}
		return v
	}
	return verdict{counted: true}
}

func matchingContainer(list []corev1.ContainerStatus, r *batchv1.PodFailurePolicyOnExitCodesRequirement) *corev1.ContainerStatus {
	for i := range list {
		t := list[i].State.Terminated
		if t == nil || t.ExitCode == 0 || r.ContainerName != nil && *r.ContainerName != list[i].Name {
			continue
		}
		in := slices.Contains(r.Values, t.ExitCode)
		if in && r.Operator == batchv1.PodFailurePolicyOnExitCodesOpIn || !in && r.Operator == batchv1.PodFailurePolicyOnExitCodesOpNotIn {
			return &list[i]
		}
	}
	return nil
}

func matchingCondition(list []corev1.PodCondition, want []batchv1.PodFailurePolicyOnPodConditionsPattern) *corev1.PodCondition {
	for i := range list {
		for _, w := range want {
			if list[i].Type == w.Type && list[i].Status == w.Status {
				return &list[i]
			}
		}
	}
	return nil
}

// success says which rule of the success policy is met.
//
// Source: KEP-3998.
func success(policy *batchv1.SuccessPolicy, completions int, done indexes) (message string, met bool) {
	if policy == nil || len(done) == 0 {
		return "", false
	}
	for i, r := range policy.Rules {
		switch {
		case r.SucceededIndexes != nil:
			need := parseIndexes(*r.SucceededIndexes, completions)
			if len(need) == 0 {
				continue
			}
			n := need.common(done)
			met = n == need.count() || r.SucceededCount != nil && n >= int(*r.SucceededCount)
		case r.SucceededCount != nil:
			met = done.count() >= int(*r.SucceededCount)
		}
		if met {
			return fmt.Sprintf("Matched rules at index %d", i), true
		}
	}
	return "", false
}
