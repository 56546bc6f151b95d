// Package tokencleaner deletes bootstrap tokens that have expired: Secrets of type
// bootstrap.kubernetes.io/token in kube-system. One whose expiration cannot be read
// counts as expired; one without any stays.
//
// It is off by default, as in upstream: "--controllers=*,token-cleaner" turns it on.
//
// [Expires] decides and is pure. Source: Kubernetes documentation, "Authenticating with Bootstrap Tokens".
package tokencleaner

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"github.com/keelson/keelson/controller-manager/runtime"
	"github.com/keelson/keelson/libs/informer"
)

// Row is this controller's line of the table.
var Row = runtime.Row{
	Name:         "token-cleaner-controller",
	Reads:        []string{"secrets"},
	Writes:       []string{"delete secrets"},
	New:          build,
	OffByDefault: true,
}

const (
	tokenType  corev1.SecretType = "bootstrap.kubernetes.io/token"
	expiration                   = "expiration"
)

// Expires is when a secret has to go; ok is false when it never has.
func Expires(s *corev1.Secret) (at time.Time, ok bool) {
	text := string(s.Data[expiration])
	if s.Type != tokenType || s.Namespace != metav1.NamespaceSystem || s.DeletionTimestamp != nil || text == "" {
		return time.Time{}, false
	}
	at, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return time.Time{}, true
	}
	return at, true
}

type controller struct {
	secrets *informer.Cache[*corev1.Secret]
	client  kubernetes.Interface
}

func build(e *runtime.Env) error {
	c := &controller{secrets: runtime.Read[*corev1.Secret](e), client: e.Client()}
	q := e.Keyed("", 1, c.pass)
	runtime.On(q, c.secrets, func(ev informer.Event[*corev1.Secret]) []types.NamespacedName {
		if _, ok := Expires(ev.Last()); !ok || ev.Kind == informer.Deleted {
			return nil
		}
		return runtime.Self(ev)
	})
	return nil
}

func (c *controller) pass(ctx context.Context, p *runtime.Pass) (runtime.Result, error) {
	s, ok := c.secrets.Get(p.Key)
	if !ok {
		return runtime.Result{}, nil
	}
	at, ok := Expires(s)
	if !ok {
		return runtime.Result{}, nil
	}
	if p.Now.Before(at) {
		return runtime.Result{Again: at}, nil
	}
	p.Note("delete: expired")
	err := runtime.Delete(ctx, p, c.client.CoreV1().Secrets(s.Namespace), s, func(o *metav1.DeleteOptions) {
		o.Preconditions.ResourceVersion = &s.ResourceVersion // it may have been prolonged a moment ago
	})
	if apierrors.IsConflict(err) {
		err = nil // its change is an event
	}
	return runtime.Result{}, err
}
