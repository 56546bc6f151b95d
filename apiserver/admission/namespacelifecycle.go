package admission

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// namespaceLifecycle refuses creations in namespaces that are missing or being
// deleted, and the deletion of the namespaces that a cluster cannot be without.
func namespaceLifecycle(cfg Config) Plugin {
	immortal := map[string]bool{metav1.NamespaceDefault: true, metav1.NamespaceSystem: true, metav1.NamespacePublic: true}
	return Plugin{Name: "NamespaceLifecycle", Mutate: func(_ context.Context, a *Attributes) error {
		if a.Operation == Delete && a.is(grNamespaces) && immortal[a.Name] {
			return forbid(a, fmt.Errorf("this namespace may not be deleted"))
		}
		if a.Namespace == "" || !a.Row.Namespaced || a.Row.GR() == grNamespaces || a.Operation != Create {
			return nil
		}
		if a.Row.Group == "authorization.k8s.io" { // a question about a namespace may precede it
			return nil
		}
		obj, err := cfg.Read.Get(grNamespaces, "", a.Namespace)
		if err != nil {
			return err
		}
		ns, ok := obj.(*corev1.Namespace)
		if !ok || ns == nil {
			return apierrors.NewNotFound(grNamespaces, a.Namespace)
		}
		if ns.DeletionTimestamp == nil && ns.Status.Phase != corev1.NamespaceTerminating {
			return nil
		}
		st := apierrors.NewForbidden(a.Row.GR(), a.Name,
			fmt.Errorf("unable to create new content in namespace %s because it is being terminated", a.Namespace))
		st.ErrStatus.Details.Causes = append(st.ErrStatus.Details.Causes, metav1.StatusCause{
			Type: corev1.NamespaceTerminatingCause, Message: fmt.Sprintf("namespace %s is being terminated", a.Namespace), Field: "metadata.namespace",
		})
		return st
	}}
}
