// Package namespace empties namespaces that are being deleted, and lets them go when
// nothing is left.
//
// The order: pods first, so that nothing that guards them (network policies,
// secrets) is gone while they still run; then everything else at once. What
// cannot be deleted, and what remains and why, is told in the namespace's
// conditions. [Conditions] decides them and is pure.
//
// Source: Kubernetes documentation, "Namespaces"; KEP-5080 (ordered deletion).
package namespace

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Findings are what one pass has seen of a namespace that is being deleted.
type Findings struct {
	Discovery []string       // faults of discovery
	Content   []string       // faults of deletion
	Remaining map[string]int // objects left, by "resource.group"
	// Finalizers counts the objects left that wait for a finalizer.
	Finalizers map[string]int
}

// Left reports whether the namespace must wait.
func (f *Findings) Left() bool {
	return len(f.Discovery)+len(f.Content) > 0 || len(f.Remaining) > 0
}

// Conditions returns the namespace's conditions after a pass. Times stand still
// while the status of a condition does.
func Conditions(have []corev1.NamespaceCondition, f *Findings, now metav1.Time) []corev1.NamespaceCondition {
	type line struct {
		kind               corev1.NamespaceConditionType
		bad                bool
		reason, message    string
		okReason, okDetail string
	}
	lines := []line{
		{corev1.NamespaceDeletionDiscoveryFailure, len(f.Discovery) > 0, "DiscoveryFailed",
			"Discovery failed for some groups, " + number(len(f.Discovery)) + " failing: " + strings.Join(f.Discovery, ", "),
			"ResourcesDiscovered", "All resources successfully discovered"},
		{corev1.NamespaceDeletionGVParsingFailure, false, "", "", "ParsedGroupVersions", "All legacy kube types successfully parsed"},
		{corev1.NamespaceDeletionContentFailure, len(f.Content) > 0, "ContentDeletionFailed",
			"Failed to delete all resource types, " + number(len(f.Content)) + " remaining: " + strings.Join(f.Content, ", "),
			"ContentDeleted", "All content successfully deleted, may be waiting on finalization"},
		{corev1.NamespaceContentRemaining, len(f.Remaining) > 0, "SomeResourcesRemain",
			"Some resources are remaining: " + list(f.Remaining, "%s has %d resource instances"), "ContentRemoved", "All content successfully removed"},
		{corev1.NamespaceFinalizersRemaining, len(f.Finalizers) > 0, "SomeFinalizersRemain",
			"Some content in the namespace has finalizers remaining: " + list(f.Finalizers, "%s in %d resource instances"),
			"ContentHasNoFinalizers", "All content-preserving finalizers finished"},
	}
	out := slices.Clone(have)
	for _, l := range lines {
		c := corev1.NamespaceCondition{Type: l.kind, Status: corev1.ConditionFalse, Reason: l.okReason, Message: l.okDetail, LastTransitionTime: now}
		if l.bad {
			c.Status, c.Reason, c.Message = corev1.ConditionTrue, l.reason, l.message
		}
		i := slices.IndexFunc(out, func(o corev1.NamespaceCondition) bool { return o.Type == c.Type })
		switch {
		case i < 0:
			out = append(out, c)
		case out[i].Status != c.Status || out[i].Message != c.Message || out[i].Reason != c.Reason:
			if out[i].Status == c.Status {
				c.LastTransitionTime = out[i].LastTransitionTime
			}
			out[i] = c
		}
	}
	return out
}

func number(n int) string { return fmt.Sprint(n) }

func list(m map[string]int, format string) string {
	var parts []string
	for name, n := range m {
		parts = append(parts, fmt.Sprintf(format, name, n))
	}
	slices.Sort(parts)
	return strings.Join(parts, ", ")
}
