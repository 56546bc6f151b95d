// Package objects reads the ConfigMaps and Secrets that pods of this node use.
package objects

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Reader hands out the ConfigMaps and Secrets that pods of this node use. *Store is the
// real one.
type Reader interface {
	// ConfigMap returns the object as of now or a little before; the first use of a
	// name asks the API server. A missing object is an error for which
	// apierrors.IsNotFound is true. Shared: read-only.
	ConfigMap(ctx context.Context, key types.NamespacedName) (*corev1.ConfigMap, error)
	Secret(ctx context.Context, key types.NamespacedName) (*corev1.Secret, error)
	// OnChange registers f to be called, on one goroutine and never blocking, with
	// the key of an object that has changed, appeared or gone while pods use it.
	// Register before Run.
	OnChange(f func(kind string, key types.NamespacedName)) // kind: "ConfigMap" or "Secret"
}
