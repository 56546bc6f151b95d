package patch

import (
	"encoding/json"
	"maps"
	"reflect"
	"slices"
	"strings"
	"sync"

	"github.com/keelson/keelson/apiserver/resources"
)

// Narrow returns an object that has of current only those top-level fields which a merge patch (or a strategic
// one) names, and a function that gives such an object, patched, the others back, as copies. Most patches are
// about metadata or about status: the rest need not become JSON and an object again. Of metadata that is
// managedFields, often the larger part.
//
// ok is false when the patch is no object, or names a field that the type does not have, or its kind.
func Narrow(current resources.Object, patch []byte) (narrow resources.Object, widen func(resources.Object), ok bool) {
	var names map[string]json.RawMessage
	if json.Unmarshal(patch, &names) != nil || names == nil {
		return nil, nil, false
	}
	whole := reflect.ValueOf(current).Elem()
	if whole.Kind() != reflect.Struct {
		return nil, nil, false
	}
	fields := topFields(whole.Type())
	named := make([]bool, whole.NumField())
	for name := range names {
		i, has := fields[name]
		if !has {
			return nil, nil, false
		}
		named[i] = true
	}
	var metadata map[string]json.RawMessage
	if text, has := names["metadata"]; has && json.Unmarshal(text, &metadata) != nil {
		return nil, nil, false
	}
	_, managed := metadata["managedFields"]
	// null forgets all metadata, a directive may.
	booked := metadata != nil && !managed && !slices.ContainsFunc(slices.Collect(maps.Keys(metadata)), func(k string) bool { return strings.HasPrefix(k, "$") })
	part, rest := reflect.New(whole.Type()), reflect.New(whole.Type())
	for i, is := range named {
		into := rest
		if is {
			into = part
		}
		into.Elem().Field(i).Set(whole.Field(i))
	}
	narrow = part.Interface().(resources.Object)
	if booked {
		rest.Interface().(resources.Object).SetManagedFields(narrow.GetManagedFields())
		narrow.SetManagedFields(nil)
	}
	widen = func(obj resources.Object) {
		others := rest.Interface().(resources.Object).DeepCopyObject().(resources.Object)
		into, copied := reflect.ValueOf(obj).Elem(), reflect.ValueOf(others).Elem()
		for i, is := range named {
			if !is && whole.Type().Field(i).Name != "TypeMeta" {
				into.Field(i).Set(copied.Field(i))
			}
		}
		if booked {
			obj.SetManagedFields(others.GetManagedFields())
		}
	}
	return narrow, widen, true
}

var topFieldsOf sync.Map // reflect.Type → map[string]int

// topFields are the fields of a type by their names in JSON, without kind and apiVersion.
func topFields(t reflect.Type) map[string]int {
	if known, ok := topFieldsOf.Load(t); ok {
		return known.(map[string]int)
	}
	fields := map[string]int{}
	for i := range t.NumField() {
		if name, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ","); name != "" && name != "-" {
			fields[name] = i
		}
	}
	topFieldsOf.Store(t, fields)
	return fields
}
