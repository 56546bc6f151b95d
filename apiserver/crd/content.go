package crd

import (
	structural "k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/defaulting"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/objectmeta"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/pruning"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Admit brings what a client has sent into shape: metadata is metadata, fields that the
// schema does not know are gone. It returns their paths. Defaults are the row's business.
func (k *Kind) Admit(u *unstructured.Unstructured) (unknown []string, err error) {
	f, err := k.forms()
	if err != nil {
		return nil, err
	}
	meta, found, unknown, err := objectmeta.GetObjectMetaWithOptions(u.Object, objectmeta.ObjectMetaOptions{ReturnUnknownFieldPaths: true})
	if err != nil {
		return nil, err
	}
	if !f.preserve && f.schema != nil {
		unknown = append(unknown, pruning.PruneWithOptions(u.Object, f.schema, true, structural.UnknownFieldPathOptions{TrackUnknownFieldPaths: true})...)
		defaulting.PruneNonNullableNullsWithoutDefaults(u.Object, f.schema)
	}
	bad, more := objectmeta.CoerceWithOptions(nil, u.Object, f.schema, false, objectmeta.CoerceOptions{ReturnUnknownFieldPaths: true})
	if bad != nil {
		return nil, bad
	}
	unknown = append(unknown, more...)
	if found {
		if err := objectmeta.SetObjectMeta(u.Object, meta); err != nil {
			return nil, err
		}
	}
	return unknown, nil
}

// Revive brings stored content into the form in which this version serves it: pruned
// and defaulted by the schema of the version that it was stored as, then converted.
func (k *Kind) Revive(u *unstructured.Unstructured) error {
	if err := k.def.settle(u); err != nil || u.GetAPIVersion() == k.apiVersion() {
		return err
	}
	if h := k.def.hook; h != nil {
		out, err := h.convert([]*unstructured.Unstructured{u}, k)
		if err != nil {
			return err
		}
		u.Object = out[0].DeepCopy().Object
	} else {
		u.SetAPIVersion(k.apiVersion())
	}
	own, err := k.forms()
	if err != nil {
		return err
	}
	own.prune(u.Object)
	return nil
}

// settle prunes stored content and sets defaults, both by the schema of the version that it is
// stored as. What is stored as a version that the definition has forgotten stays as it is.
func (d *definition) settle(u *unstructured.Unstructured) error {
	gv, err := schema.ParseGroupVersion(u.GetAPIVersion())
	if err != nil {
		return err
	}
	f, err := d.of(gv.Version)
	if err != nil || f == nil {
		return err
	}
	f.prune(u.Object)
	defaulting.Default(u.Object, f.schema)
	return nil
}

func (f *forms) prune(content map[string]any) {
	if f.preserve || f.schema == nil {
		return
	}
	pruning.Prune(content, f.schema, true)
	defaulting.PruneNonNullableNullsWithoutDefaults(content, f.schema)
}

// fill sets defaults.
func (k *Kind) fill(u *unstructured.Unstructured) {
	if f, err := k.forms(); err == nil {
		defaulting.Default(u.Object, f.schema)
	}
}

// as returns a copy under another version of the same kind. Conversion strategy None
// changes nothing but apiVersion, and what the other schema does not know is gone.
func (k *Kind) as(u *unstructured.Unstructured) *unstructured.Unstructured {
	out := u.DeepCopy()
	out.SetGroupVersionKind(k.gvk())
	if f, err := k.forms(); err == nil {
		f.prune(out.Object)
	}
	return out
}
