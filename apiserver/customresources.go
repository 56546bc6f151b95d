package apiserver

import (
	"context"

	crdv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/keelson/keelson/apiserver/resources"
	"github.com/keelson/keelson/apiserver/rest"
	"github.com/keelson/keelson/apiserver/watchcache"
)

// definitions is crd.Writer: what the server itself writes for custom resources.
type definitions struct{ *api }

func (d definitions) UpdateStatus(ctx context.Context, name string, change func(*crdv1.CustomResourceDefinition) error) error {
	row, err := d.row(crdv1.Resource("customresourcedefinitions"))
	if err != nil {
		return err
	}
	ctx, rq := d.request(ctx)
	// No hooks: the finalizer goes with the status that says so.
	_, _, err = d.objects.Update(ctx, rq, row, "status", "", name, func(current resources.Object) (resources.Object, error) {
		c := current.DeepCopyObject().(*crdv1.CustomResourceDefinition)
		return c, change(c)
	}, rest.WriteOptions{Manager: "kube-apiserver", Options: &metav1.UpdateOptions{}, Retry: true, NoAdmission: true, NoHooks: true})
	return err
}

func (d definitions) DeleteAll(ctx context.Context, row *resources.Row) error {
	ctx, rq := d.request(ctx)
	sel := watchcache.Selection{Prefix: row.Prefix, Namespaced: row.Namespaced}
	_, err := d.objects.DeleteAll(ctx, rq, row, sel, &metav1.DeleteOptions{})
	return err
}
