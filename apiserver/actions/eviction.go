package actions

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/keelson/keelson/apiserver/resources"
)

// maxDisrupted bounds the pods of one budget that are on their way out; more
// wait until the budget's controller has caught up.
const maxDisrupted = 2000

// Evict deletes a pod if its disruption budget allows it.
//
// Source: Kubernetes documentation, "API-initiated Eviction".
func (a *Actions) Evict(ctx context.Context, rq *resources.Request, namespace, name string, ev *policyv1.Eviction) error {
	opts := ev.DeleteOptions
	if opts == nil {
		opts = &metav1.DeleteOptions{}
	}
	if rq.DryRun && len(opts.DryRun) > 0 && !slices.Equal(opts.DryRun, []string{metav1.DryRunAll}) {
		return fmt.Errorf("Non-matching dry-run options in request and content: [%s] and %v", metav1.DryRunAll, opts.DryRun)
	}
	if !rq.DryRun && len(opts.DryRun) > 0 {
		tried := *rq
		tried.DryRun = true
		rq = &tried
	}
	pod, err := resources.Lookup[corev1.Pod](a.Read, grPods, namespace, name)
	if err != nil {
		return err
	}
	if pod == nil {
		return apierrors.NewNotFound(grPods, name)
	}
	faults := metavalidation.ValidateDeleteOptions(opts)
	remove := func() error {
		if len(faults) > 0 {
			return apierrors.NewInvalid(schema.GroupKind{Group: metav1.GroupName, Kind: "DeleteOptions"}, "", faults)
		}
		return a.Write.Delete(ctx, rq, grPods, namespace, name, opts)
	}
	if free(pod) {
		return remove()
	}
	budget, err := a.budget(a.Read, pod)
	if err != nil {
		return err
	}
	if budget != nil && !ignores(budget, pod) {
		if err := a.reserve(ctx, rq, budget.Namespace, budget.Name, pod.Name); err != nil {
			return err
		}
	}
	if rq.DryRun || len(faults) > 0 {
		return remove()
	}
	err = a.Write.Update(ctx, rq, grPods, "status", namespace, name, func(o resources.Object) (resources.Object, error) {
		p := o.DeepCopyObject().(*corev1.Pod)
		if opts.Preconditions != nil && opts.Preconditions.UID != nil && *opts.Preconditions.UID != p.UID {
			return nil, apierrors.NewConflict(grPods, name, fmt.Errorf("the UID in the precondition (%s) does not match the UID in record (%s)", *opts.Preconditions.UID, p.UID))
		}
		setCondition(&p.Status, corev1.PodCondition{
			Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, Reason: "EvictionByEvictionAPI",
			Message: "Eviction API: evicting", LastTransitionTime: metav1.NewTime(rq.Now), ObservedGeneration: p.Generation,
		})
		return p, nil
	})
	if err != nil {
		return err
	}
	return remove()
}

// free pods may go whatever the budget says: they do no work, or are going already.
func free(pod *corev1.Pod) bool {
	switch pod.Status.Phase {
	case corev1.PodSucceeded, corev1.PodFailed, corev1.PodPending:
		return true
	}
	return pod.DeletionTimestamp != nil
}

// ignores: an unhealthy pod does not count towards a budget that is kept by others, or that says so.
func ignores(b *policyv1.PodDisruptionBudget, pod *corev1.Pod) bool {
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue {
			return false
		}
	}
	if p := b.Spec.UnhealthyPodEvictionPolicy; p != nil && *p == policyv1.AlwaysAllow {
		return true
	}
	return b.Status.CurrentHealthy >= b.Status.DesiredHealthy && b.Status.DesiredHealthy > 0
}

func (a *Actions) budget(read resources.Reader, pod *corev1.Pod) (*policyv1.PodDisruptionBudget, error) {
	var found []*policyv1.PodDisruptionBudget
	var bad error
	err := read.Each(grBudgets, pod.Namespace, func(o resources.Object) bool {
		b, ok := o.(*policyv1.PodDisruptionBudget)
		if !ok || b.Spec.Selector == nil {
			return true
		}
		sel, err := metav1.LabelSelectorAsSelector(b.Spec.Selector)
		if err != nil {
			bad = fmt.Errorf("disruption budget %s/%s: %w", b.Namespace, b.Name, err)
			return false
		}
		if sel.Matches(labels.Set(pod.Labels)) {
			found = append(found, b)
		}
		return true
	})
	if err = errors.Join(err, bad); err != nil {
		return nil, err
	}
	if len(found) > 1 {
		return nil, &apierrors.StatusError{ErrStatus: metav1.Status{Status: metav1.StatusFailure, Code: http.StatusInternalServerError,
			Message: "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support."}}
	}
	if len(found) == 0 {
		return nil, nil
	}
	return found[0], nil
}

// reserve takes one disruption from the budget, and records the pod until its controller has seen it go.
func (a *Actions) reserve(ctx context.Context, rq *resources.Request, namespace, name, pod string) error {
	check := func(b *policyv1.PodDisruptionBudget) error {
		full := func(msg string) error {
			e := apierrors.NewTooManyRequests("Cannot evict pod as it would violate the pod's disruption budget.", 0)
			e.ErrStatus.Details.Causes = append(e.ErrStatus.Details.Causes, metav1.StatusCause{Type: policyv1.DisruptionBudgetCause, Message: msg})
			return e
		}
		switch {
		case b.Status.ObservedGeneration < b.Generation:
			e := apierrors.NewTooManyRequests("Cannot evict pod as it would violate the pod's disruption budget.", 10)
			e.ErrStatus.Details.Causes = append(e.ErrStatus.Details.Causes, metav1.StatusCause{
				Type: policyv1.DisruptionBudgetCause, Message: fmt.Sprintf("The disruption budget %s is still being processed by the server.", b.Name)})
			return e
		case b.Status.DisruptionsAllowed < 0:
			return apierrors.NewForbidden(grBudgets, b.Name, fmt.Errorf("pdb disruptions allowed is negative"))
		case len(b.Status.DisruptedPods) > maxDisrupted:
			return apierrors.NewForbidden(grBudgets, b.Name, fmt.Errorf("DisruptedPods map too big - too many evictions not confirmed by PDB controller"))
		case b.Status.DisruptionsAllowed == 0:
			return full(fmt.Sprintf("The disruption budget %s needs %d healthy pods and has %d currently", b.Name, b.Status.DesiredHealthy, b.Status.CurrentHealthy))
		}
		return nil
	}
	if rq.DryRun {
		b, err := resources.Lookup[policyv1.PodDisruptionBudget](a.Read, grBudgets, namespace, name)
		if err != nil || b == nil {
			return err
		}
		return check(b)
	}
	return a.Write.Update(ctx, rq, grBudgets, "status", namespace, name, func(o resources.Object) (resources.Object, error) {
		b := o.DeepCopyObject().(*policyv1.PodDisruptionBudget)
		if err := check(b); err != nil {
			return nil, err
		}
		b.Status.DisruptionsAllowed--
		if b.Status.DisruptedPods == nil {
			b.Status.DisruptedPods = map[string]metav1.Time{}
		}
		b.Status.DisruptedPods[pod] = metav1.NewTime(rq.Now)
		return b, nil
	})
}
