// Package readertest is a resources.Reader over a list of objects, for tests of
// rooms that decide on the state of the whole tree.
package readertest

import (
	"fmt"
	"reflect"
	"sort"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/keelson/keelson/apiserver/resources"
)

// Tree holds objects by resource and "namespace/name".
type Tree struct {
	byType map[reflect.Type]schema.GroupResource
	objs   map[schema.GroupResource]map[string]resources.Object
}

// New returns a tree of objects of built-in kinds; another kind is a mistake of the test.
func New(objs ...resources.Object) *Tree {
	t := &Tree{byType: map[reflect.Type]schema.GroupResource{}, objs: map[schema.GroupResource]map[string]resources.Object{}}
	for _, row := range resources.Table() {
		if row.Stored == nil {
			t.byType[reflect.TypeOf(row.New())] = row.GR()
		}
	}
	for _, o := range objs {
		t.Put(o)
	}
	return t
}

// Put adds or replaces an object.
func (t *Tree) Put(o resources.Object) {
	gr, ok := t.byType[reflect.TypeOf(o)]
	if !ok {
		panic(fmt.Sprintf("readertest: %T is not a stored kind", o))
	}
	if t.objs[gr] == nil {
		t.objs[gr] = map[string]resources.Object{}
	}
	t.objs[gr][o.GetNamespace()+"/"+o.GetName()] = o
}

// Get returns nil for what is not there.
func (t *Tree) Get(gr schema.GroupResource, namespace, name string) (resources.Object, error) {
	if o, ok := t.objs[gr][namespace+"/"+name]; ok {
		return o, nil
	}
	return nil, nil
}

// Each visits in key order.
func (t *Tree) Each(gr schema.GroupResource, namespace string, yield func(resources.Object) bool) error {
	keys := make([]string, 0, len(t.objs[gr]))
	for k := range t.objs[gr] {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	for _, k := range keys {
		if o := t.objs[gr][k]; namespace == "" || o.GetNamespace() == namespace {
			if !yield(o) {
				return nil
			}
		}
	}
	return nil
}
