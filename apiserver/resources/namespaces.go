package resources

import (
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/keelson/keelson/apiserver/resources/check"
)

// A Namespace goes away in two steps: deletion marks it Terminating, and when its
// content is gone the finalizers of its spec are taken off through "finalize".
var namespaces = Resource[corev1.Namespace]{
	Group: "", Version: "v1", Kind: "Namespace", Plural: "namespaces", WholeMeta: true, Short: []string{"ns"}, Scope: Cluster, Name: DNSLabel, NoGeneration: true,
	Verbs: []string{"create", "delete", "get", "list", "patch", "update", "watch"},
	List:  listOf[corev1.NamespaceList],
	Default: func(n *corev1.Namespace) {
		def(&n.Status.Phase, corev1.NamespaceActive)
		labelNamespace(n)
	},
	Main: Part[corev1.Namespace]{
		Prepare: func(_ *Request, obj, old *corev1.Namespace) {
			labelNamespace(obj)
			if old != nil {
				obj.Spec.Finalizers, obj.Status = old.Spec.Finalizers, old.Status
				return
			}
			obj.Status = corev1.NamespaceStatus{Phase: corev1.NamespaceActive}
			if !slices.Contains(obj.Spec.Finalizers, corev1.FinalizerKubernetes) {
				obj.Spec.Finalizers = append(obj.Spec.Finalizers, corev1.FinalizerKubernetes)
			}
		},
		Validate: func(_ *Request, obj, _ *corev1.Namespace) field.ErrorList { return validateFinalizers(obj) },
		Reset:    []string{"status"},
	},
	Status: statusPart(func(n *corev1.Namespace) *corev1.NamespaceSpec { return &n.Spec }, func(n, _ *corev1.Namespace) field.ErrorList {
		var f check.Faults
		p := field.NewPath("status", "Phase")
		if n.DeletionTimestamp.IsZero() && n.Status.Phase != corev1.NamespaceActive {
			f.Invalid(p, n.Status.Phase, "may only be 'Active' if `deletionTimestamp` is empty")
		}
		if !n.DeletionTimestamp.IsZero() && n.Status.Phase != corev1.NamespaceTerminating {
			f.Invalid(p, n.Status.Phase, "may only be 'Terminating' if `deletionTimestamp` is not empty")
		}
		return f.List()
	}),
	Parts: map[string]Part[corev1.Namespace]{
		"finalize": {
			Verbs:    []string{"update"},
			Prepare:  func(_ *Request, obj, old *corev1.Namespace) { obj.Status = old.Status },
			Validate: func(_ *Request, obj, _ *corev1.Namespace) field.ErrorList { return validateFinalizers(obj) },
			Reset:    []string{"status"},
		},
	},
	Fields: func(n *corev1.Namespace) fields.Set {
		return fields.Set{"status.phase": string(n.Status.Phase)}
	},
	FieldNames: []string{"status.phase"},
	Docs: map[string]string{
		"Status": "Active, or Terminating while its objects go.",
	},
	Columns: []Column[corev1.Namespace]{
		text("Status", func(n *corev1.Namespace) string { return string(n.Status.Phase) }),
		ageColumn[corev1.Namespace](),
	},
}

// labelNamespace lets selectors find a namespace by its name.
func labelNamespace(n *corev1.Namespace) {
	if n.Name == "" {
		return
	}
	if n.Labels == nil {
		n.Labels = map[string]string{}
	}
	n.Labels[corev1.LabelMetadataName] = n.Name
}

func validateFinalizers(n *corev1.Namespace) field.ErrorList {
	var f check.Faults
	p := field.NewPath("spec", "finalizers")
	for _, name := range n.Spec.Finalizers {
		f.QualifiedName(p, string(name))
		if !strings.Contains(string(name), "/") && name != corev1.FinalizerKubernetes {
			f.Invalid(p, string(name), "name is neither a standard finalizer name nor is it fully qualified")
		}
	}
	return f.List()
}
