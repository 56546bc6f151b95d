package rest

import (
	"context"
	"net/http"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/keelson/keelson/apiserver/codec"
	"github.com/keelson/keelson/apiserver/resources"
	"github.com/keelson/keelson/apiserver/watchcache"
)

// Observe finds out how things are at this moment: the object of that name, or with the name ""
// all of them in the order of their names. Objects are given away; they have no revision. What
// cannot be found out is said in the object, so that one silent part does not hide the others.
type Observe func(ctx context.Context, name string) []resources.Object

func (c *Call) getObserved(look Observe) {
	found := look(c.R.Context(), c.Name)
	if len(found) == 0 {
		// Upstream names what is asked for in the singular here, and only here.
		c.fail(apierrors.NewNotFound(schema.GroupResource{Group: c.Row.Group, Resource: c.Row.Singular}, c.Name))
		return
	}
	it, err := observed(c.Row, found[0])
	if err != nil {
		c.fail(err)
		return
	}
	c.respond(http.StatusOK, it)
}

// listObserved answers with everything that the selectors see: such lists are short and have no pages.
func (c *Call) listObserved(look Observe, sel watchcache.Selection) {
	var items []*watchcache.Item
	for _, obj := range look(c.R.Context(), sel.Name) {
		set := fields.Set{"metadata.name": obj.GetName(), "metadata.namespace": obj.GetNamespace()}
		if sel.Fields != nil && !sel.Fields.Matches(set) || sel.Labels != nil && !sel.Labels.Matches(labels.Set(obj.GetLabels())) {
			continue
		}
		it, err := observed(c.Row, obj)
		if err != nil {
			c.fail(err)
			return
		}
		items = append(items, it)
	}
	c.respondList(items, metav1.ListMeta{})
}

// observed gives an object the form in which stored ones are answered.
func observed(row *resources.Row, obj resources.Object) (*watchcache.Item, error) {
	raw, err := codec.Message(row, obj)
	if err != nil {
		return nil, err
	}
	key := row.Prefix + "/" + obj.GetName()
	if row.Namespaced {
		key = row.Prefix + "/" + obj.GetNamespace() + "/" + obj.GetName()
	}
	return watchcache.NewItem(row, key, raw, 0, 0, obj)
}
