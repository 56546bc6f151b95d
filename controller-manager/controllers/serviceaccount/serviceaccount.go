// Package serviceaccount gives every namespace its service account "default", and gives
// it back when somebody deletes it. What belongs to the account, its tokens, is
// looked after elsewhere.
package serviceaccount

import (
	"context"

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
	Name:   "serviceaccount-controller",
	Reads:  []string{"namespaces", "serviceaccounts"},
	Writes: []string{"create serviceaccounts"},
	New:    build,
}

const name = "default"

type controller struct {
	namespaces *informer.Cache[*corev1.Namespace]
	accounts   *informer.Cache[*corev1.ServiceAccount]
	client     kubernetes.Interface
}

func build(e *runtime.Env) error {
	c := &controller{namespaces: runtime.Read[*corev1.Namespace](e), accounts: runtime.Read[*corev1.ServiceAccount](e), client: e.Client()}
	q := e.Keyed("", 4, c.pass)
	runtime.On(q, c.namespaces, runtime.Self[*corev1.Namespace])
	runtime.On(q, c.accounts, func(ev informer.Event[*corev1.ServiceAccount]) []types.NamespacedName {
		if o := ev.Last(); ev.Kind == informer.Deleted && o.Name == name {
			return []types.NamespacedName{{Name: o.Namespace}}
		}
		return nil
	})
	return nil
}

// pass looks after one namespace.
func (c *controller) pass(ctx context.Context, p *runtime.Pass) (runtime.Result, error) {
	ns, ok := c.namespaces.Get(p.Key)
	if !ok || ns.DeletionTimestamp != nil || ns.Status.Phase == corev1.NamespaceTerminating {
		return runtime.Result{}, nil
	}
	if _, ok := c.accounts.Get(types.NamespacedName{Namespace: ns.Name, Name: name}); ok {
		return runtime.Result{}, nil
	}
	p.Note("create service account %s/%s", ns.Name, name)
	_, err := runtime.Create(ctx, p, c.client.CoreV1().ServiceAccounts(ns.Name), &corev1.ServiceAccount{
		ObjectMeta: metav1.ObjectMeta{Namespace: ns.Name, Name: name},
	})
	if runtime.NamespaceEnding(err) || apierrors.IsNotFound(err) || apierrors.IsAlreadyExists(err) {
		err = nil
	}
	return runtime.Result{}, err
}
