package apiserver

import (
	"bytes"
	"context"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	crdv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/keelson/keelson/apiserver/admission/webhook"
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

// conversions posts ConversionReviews as admission reviews are posted.
func (s *server) conversions() func(context.Context, *crdv1.WebhookClientConfig, []byte) ([]byte, error) {
	caller := webhook.NewCaller(func(namespace, name, port string) (string, error) { return s.proxy.Reach(namespace, name, port) })
	return func(ctx context.Context, client *crdv1.WebhookClientConfig, body []byte) ([]byte, error) {
		to := &admissionv1.WebhookClientConfig{URL: client.URL, CABundle: client.CABundle}
		if len(bytes.TrimSpace(to.CABundle)) == 0 {
			to.CABundle = nil // definitions of old may hold blanks
		}
		if r := client.Service; r != nil {
			to.Service = &admissionv1.ServiceReference{Namespace: r.Namespace, Name: r.Name, Path: r.Path, Port: r.Port}
		}
		return caller.Send(ctx, to, "kube-apiserver", body)
	}
}
