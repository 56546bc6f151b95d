package runtime

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	kruntime "k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"

	"github.com/keelson/keelson/libs/informer"
)

// Claimants maps events of owned objects (pods, replica sets) to the owners that
// care: the controlling owners of the given kind before and after, and, for an
// object without an owner, every owner in its namespace that selects it. selector
// may return nil for an owner that selects nothing.
func Claimants[C, O informer.Object](owners *informer.Cache[O], kind string, selector func(O) labels.Selector) func(informer.Event[C]) []types.NamespacedName {
	byRef := OwnerKeys[C](kind)
	return func(ev informer.Event[C]) []types.NamespacedName {
		keys := byRef(ev)
		if ev.Kind == informer.Deleted || metav1.GetControllerOfNoCopy(ev.New) != nil {
			return keys
		}
		if ev.Kind == informer.Updated && metav1.GetControllerOfNoCopy(ev.Old) == nil && labels.Equals(ev.Old.GetLabels(), ev.New.GetLabels()) {
			return keys
		}
		for _, o := range owners.By(ByNamespace, ev.New.GetNamespace()) {
			if s := selector(o); s != nil && s.Matches(labels.Set(ev.New.GetLabels())) {
				keys = append(keys, KeyOf(o))
			}
		}
		return keys
	}
}

// Selector is a LabelSelector as a labels.Selector; nil when it cannot be one.
func Selector(s *metav1.LabelSelector) labels.Selector {
	sel, err := metav1.LabelSelectorAsSelector(s)
	if err != nil {
		return nil
	}
	return sel
}

// NamespaceEnding says that a creation failed because its namespace is being
// deleted: there is nothing to retry and nothing to report.
func NamespaceEnding(err error) bool {
	return apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause)
}

// CreatePods creates n pods for owner, in growing batches, with the event of each, and returns how many were made.
// An ending namespace is no error. fresh reads the owner from the API: the cache of pods may be ahead of the owner's,
// and pods that were orphaned, or collected, with an owner that is being deleted must not be replaced.
func CreatePods(ctx context.Context, p *Pass, owner informer.Object, fresh Fresh, n int, pod func(i int) *corev1.Pod) (int, error) {
	if n == 0 {
		return 0, nil
	}
	if stays, err := fresh.stays(ctx, owner); err != nil || !stays {
		return 0, err
	}
	return Together(ctx, n, func(ctx context.Context, i int) error {
		pod := pod(i)
		got, err := Create(ctx, p, p.queue.env.Client().CoreV1().Pods(pod.Namespace), pod)
		switch {
		case NamespaceEnding(err):
			return nil
		case err != nil:
			p.Warning(owner, "FailedCreate", "Error creating: %v", err)
			return fmt.Errorf("create a pod: %w", err)
		}
		p.Normal(owner, "SuccessfulCreate", "Created pod: %v", got.Name)
		p.Note("create pod %s", got.Name)
		return nil
	})
}

// Fresh reads an owner from the API, not from a cache.
type Fresh func(context.Context) (metav1.Object, error)

// stays tells whether the owner still exists and is not being deleted.
func (f Fresh) stays(ctx context.Context, owner metav1.Object) (bool, error) {
	live, err := f(ctx)
	switch {
	case apierrors.IsNotFound(err):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("read the owner: %w", err)
	}
	return live.GetUID() == owner.GetUID() && live.GetDeletionTimestamp() == nil, nil
}

// DeletePod deletes a pod of owner and records the event of it.
func DeletePod(ctx context.Context, p *Pass, owner kruntime.Object, pod *corev1.Pod) error {
	if err := Delete(ctx, p, p.queue.env.Client().CoreV1().Pods(pod.Namespace), pod); err != nil {
		p.Warning(owner, "FailedDelete", "Error deleting: %v", err)
		return fmt.Errorf("delete pod %s: %w", pod.Name, err)
	}
	p.Normal(owner, "SuccessfulDelete", "Deleted pod: %v", pod.Name)
	p.Note("delete pod %s", pod.Name)
	return nil
}
