package patch

import (
	"fmt"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"
	smd "sigs.k8s.io/structured-merge-diff/v6/schema"
	"sigs.k8s.io/structured-merge-diff/v6/value"

	"github.com/keelson/keelson/apiserver/resources"
)

// Merge lays config over live by the kind's merge rules and books nothing:
// managedFields stay as they are. Lists, maps and structs that can only be replaced as a
// whole are refused. live is not changed.
//
// Source: Kubernetes documentation, "Mutating Admission Policy", "ApplyConfiguration".
func (f *Fields) Merge(row *resources.Row, live resources.Object, config *unstructured.Unstructured) (resources.Object, error) {
	kind, err := f.types.of(row)
	if err != nil {
		return nil, err
	}
	want, err := kind.FromUnstructured(config.Object)
	if err != nil {
		return nil, fmt.Errorf("failed to convert patch object to typed object: %w", err)
	}
	if paths := wholes(nil, want.Schema(), want.TypeRef(), want.AsValue()); len(paths) > 0 {
		return nil, fmt.Errorf("invalid ApplyConfiguration: may not mutate atomic arrays, maps or structs: %s", strings.Join(paths, ", "))
	}
	// A copy: typed values keep parts of what they are made from.
	was, err := f.typedValue(row, bare(row, live.DeepCopyObject().(resources.Object)))
	if err != nil {
		return nil, fmt.Errorf("failed to convert original object to typed object: %w", err)
	}
	merged, err := was.Merge(want)
	if err != nil {
		return nil, fmt.Errorf("failed to merge patch: %w", err)
	}
	obj, err := object(row, merged)
	if err != nil {
		return nil, fmt.Errorf("failed to convert typed object to object: %w", err)
	}
	obj.SetManagedFields(live.GetManagedFields())
	return obj, nil
}

// wholes are the paths of the atomic things that a value sets.
func wholes(at fieldpath.Path, s *smd.Schema, ref smd.TypeRef, v value.Value) (out []string) {
	atom, ok := s.Resolve(ref)
	if !ok {
		return nil
	}
	switch {
	case v.IsMap() && atom.Map != nil:
		if atom.Map.ElementRelationship == smd.Atomic {
			return []string{at.String()}
		}
		v.AsMap().Iterate(func(key string, child value.Value) bool {
			to := atom.Map.ElementType
			if field, ok := atom.Map.FindField(key); ok {
				to = field.Type
			}
			out = append(out, wholes(append(at[:len(at):len(at)], fieldpath.PathElement{FieldName: &key}), s, to, child)...)
			return true
		})
	case v.IsList() && atom.List != nil:
		if atom.List.ElementRelationship == smd.Atomic {
			return []string{at.String()}
		}
		list := v.AsList()
		for i := range list.Length() {
			out = append(out, wholes(append(at[:len(at):len(at)], fieldpath.PathElement{Index: &i}), s, atom.List.ElementType, list.At(i))...)
		}
	}
	return out
}
