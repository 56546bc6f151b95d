package apiserver

import (
	"context"
	"fmt"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/keelson/keelson/apiserver/authn"
	"github.com/keelson/keelson/apiserver/resources"
	"github.com/keelson/keelson/apiserver/rest"
)

// api is the server's own verbs without HTTP, by resource name: how bootstrap
// makes objects and how actions change them. What bootstrap writes passes no
// admission plugin: the first namespace must exist before a plugin can look for it.
type api struct {
	objects *rest.Objects
	reg     *resources.Registry
	read    resources.Reader
	now     func() time.Time
}

// fresh keeps a change that changes nothing from handing the shared object back to be written to.
func fresh(change func(resources.Object) (resources.Object, error)) rest.Change {
	return func(current resources.Object) (resources.Object, error) {
		next, err := change(current)
		if err == nil && next == current && next != nil {
			next = next.DeepCopyObject().(resources.Object)
		}
		return next, err
	}
}

// self is who the server is in its own writes.
var self = &authn.User{Name: "system:apiserver", Groups: []string{authn.GroupMasters, authn.GroupAuthenticated}}

func (a *api) row(gr schema.GroupResource) (*resources.Row, error) {
	row := a.reg.Storage(gr)
	if row == nil {
		return nil, fmt.Errorf("resource %s is not served", gr)
	}
	return row, nil
}

func (a *api) request(ctx context.Context) (context.Context, *resources.Request) {
	ctx = authn.With(ctx, self)
	return ctx, &resources.Request{
		Context: ctx, User: self.Name, Groups: self.Groups, Now: a.now(), Read: a.read, Warn: func(string) {},
	}
}

// Get is bootstrap.API's.
func (a *api) Get(ctx context.Context, gr schema.GroupResource, namespace, name string) (resources.Object, error) {
	row, err := a.row(gr)
	if err != nil {
		return nil, err
	}
	return a.objects.Get(ctx, row, namespace, name)
}

// Create is bootstrap.API's.
func (a *api) Create(ctx context.Context, gr schema.GroupResource, obj resources.Object) error {
	row, err := a.row(gr)
	if err != nil {
		return err
	}
	row.Default(obj)
	ctx, rq := a.request(ctx)
	_, err = a.objects.Create(ctx, rq, row, obj, rest.WriteOptions{
		Manager: "kube-apiserver", Options: &metav1.CreateOptions{}, NoAdmission: true,
	})
	return err
}

// Update is bootstrap.API's.
func (a *api) Update(ctx context.Context, gr schema.GroupResource, part, namespace, name string, change func(resources.Object) (resources.Object, error)) error {
	row, err := a.row(gr)
	if err != nil {
		return err
	}
	ctx, rq := a.request(ctx)
	_, _, err = a.objects.Update(ctx, rq, row, part, namespace, name, fresh(change), rest.WriteOptions{
		Manager: "kube-apiserver", Options: &metav1.UpdateOptions{}, Retry: true, NoAdmission: true,
	})
	return err
}

// Delete deletes a cluster-scoped object of the server's own.
func (a *api) Delete(ctx context.Context, gr schema.GroupResource, name string, when *metav1.Preconditions) error {
	row, err := a.row(gr)
	if err != nil {
		return err
	}
	ctx, rq := a.request(ctx)
	_, _, err = a.objects.Delete(ctx, rq, row, "", name, &metav1.DeleteOptions{Preconditions: when})
	return err
}

// writer is api for actions: on behalf of the request's user, through admission.
type writer struct{ *api }

// Update is actions.Writer's. The part "binding" is for what no client may change itself.
func (w writer) Update(ctx context.Context, rq *resources.Request, gr schema.GroupResource, part, namespace, name string,
	change func(resources.Object) (resources.Object, error)) error {
	row, err := w.row(gr)
	if err != nil {
		return err
	}
	opts := rest.WriteOptions{Options: &metav1.UpdateOptions{}, Retry: true}
	if part == "binding" {
		part, opts.NoHooks, opts.NoAdmission = "", true, true // the binding itself has been admitted
	}
	_, _, err = w.objects.Update(ctx, rq, row, part, namespace, name, fresh(change), opts)
	return err
}

// Delete is actions.Writer's.
func (w writer) Delete(ctx context.Context, rq *resources.Request, gr schema.GroupResource, namespace, name string, opts *metav1.DeleteOptions) error {
	row, err := w.row(gr)
	if err != nil {
		return err
	}
	_, _, err = w.objects.Delete(ctx, rq, row, namespace, name, opts)
	return err
}
