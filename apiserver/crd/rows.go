package crd

import (
	"fmt"
	"slices"
	"sort"
	"time"

	crdv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/version"

	"github.com/keelson/keelson/apiserver/resources"
)

var scaleKind = schema.GroupVersionKind{Group: "autoscaling", Version: "v1", Kind: "Scale"}

// newDefinition takes what outlives the decoded object.
func newDefinition(c *crdv1.CustomResourceDefinition, from source, now func() time.Time) *definition {
	d := &definition{
		name: c.Name, group: c.Spec.Group, kind: c.Status.AcceptedNames.Kind, plural: c.Status.AcceptedNames.Plural,
		sum: fmt.Sprintf("%s/%d", c.UID, c.Generation), now: now,
	}
	d.from.Store(&from)
	return d
}

// rows are those of a definition whose names are accepted: one for each version that is
// served, and a hidden one for a storage version that is not.
func (d *definition) rows(c *crdv1.CustomResourceDefinition) []*resources.Row {
	kinds := map[string]*Kind{}
	for i := range c.Spec.Versions {
		v := &c.Spec.Versions[i]
		kinds[v.Name] = d.served(v)
	}
	var storage *resources.Row
	var out []*resources.Row
	for i := range c.Spec.Versions {
		if v := &c.Spec.Versions[i]; v.Storage {
			storage = kinds[v.Name].row(c, v)
			storage.Hidden = !v.Served
		}
	}
	if storage == nil {
		return nil
	}
	out = append(out, storage)
	if byWebhook(c) && d.hook == nil {
		return out // to serve versions as if nothing differed would damage what is stored
	}
	for i := range c.Spec.Versions {
		v := &c.Spec.Versions[i]
		if v.Storage || !v.Served {
			continue
		}
		row := kinds[v.Name].row(c, v)
		row.Stored = storage
		row.ToStored = func(o resources.Object) (resources.Object, error) {
			u, err := kinds[storage.Version].to(content(o))
			if err != nil {
				return nil, err
			}
			kinds[storage.Version].fill(u)
			return u, nil
		}
		row.FromStored = func(o resources.Object) (resources.Object, error) {
			u, err := kinds[row.Version].to(content(o))
			if err != nil {
				return nil, err
			}
			return u, nil
		}
		out = append(out, row)
	}
	return out
}

// byWebhook: versions are converted by somebody else's code.
func byWebhook(c *crdv1.CustomResourceDefinition) bool {
	return c.Spec.Conversion != nil && c.Spec.Conversion.Strategy == crdv1.WebhookConverter
}

// served returns the Kind of a version: the same for the life of the definition, so that
// watches know that their kind is what it was.
func (d *definition) served(v *crdv1.CustomResourceDefinitionVersion) *Kind {
	if k := d.kinds[v.Name]; k != nil {
		return k
	}
	k := &Kind{def: d, version: v.Name}
	if s := v.Subresources; s != nil {
		k.status, k.scale = s.Status != nil, s.Scale.DeepCopy()
	}
	if d.kinds == nil {
		d.kinds = map[string]*Kind{}
	}
	d.kinds[v.Name] = k
	return k
}

func (k *Kind) row(c *crdv1.CustomResourceDefinition, v *crdv1.CustomResourceDefinitionVersion) *resources.Row {
	names, selectable := c.Status.AcceptedNames, k.selectable(v)
	row := &resources.Row{
		Group: c.Spec.Group, Version: v.Name, Kind: names.Kind, Plural: names.Plural, Singular: names.Singular, ListKind: names.ListKind,
		Short: slices.Clone(names.ShortNames), Categories: slices.Clone(names.Categories),
		Namespaced: c.Spec.Scope == crdv1.NamespaceScoped, Prefix: c.Spec.Group + "/" + names.Plural,
		Verbs: verbs, Name: resources.DNSSubdomain, NeedsVersion: true,
		Fields: k.values(selectable), FieldNames: selectable, Columns: k.columns(v), Parts: map[string]resources.ErasedPart{}, Custom: k,
		New: func() resources.Object {
			u := &unstructured.Unstructured{Object: map[string]any{}}
			u.SetGroupVersionKind(k.gvk())
			return u
		},
		Default: func(o resources.Object) { k.fill(content(o)) },
		Main:    resources.ErasedPart{Prepare: k.prepareMain, Validate: k.validateMain, Warnings: warnings},
	}
	if c.DeletionTimestamp != nil {
		// What is there may still be changed, so that its finalizers can be taken off.
		row.Verbs = slices.DeleteFunc(slices.Clone(row.Verbs), func(verb string) bool { return verb == "create" })
	}
	if k.status {
		row.Main.Reset = []string{"status"}
		row.Parts["status"] = resources.ErasedPart{
			Prepare: k.prepareStatus, Validate: k.validateStatus, Reset: []string{"metadata", "spec"},
			Warnings: func(*resources.Request, resources.Object, resources.Object) []string { return nil },
		}
	}
	if k.scale != nil {
		row.Subs = []resources.Sub{{Name: "scale", Verbs: []string{"get", "patch", "update"}, Kind: scaleKind}}
	}
	if v.Deprecated {
		row.Warning = deprecation(c, v)
	}
	return row
}

func deprecation(c *crdv1.CustomResourceDefinition, v *crdv1.CustomResourceDefinitionVersion) string {
	if v.DeprecationWarning != nil {
		return *v.DeprecationWarning
	}
	text := fmt.Sprintf("%s/%s %s is deprecated", c.Spec.Group, v.Name, c.Spec.Names.Kind)
	var better []string
	for _, o := range c.Spec.Versions {
		if o.Served && !o.Deprecated && version.CompareKubeAwareVersionStrings(v.Name, o.Name) < 0 {
			better = append(better, o.Name)
		}
	}
	if len(better) == 0 {
		return text
	}
	sort.Slice(better, func(i, j int) bool { return version.CompareKubeAwareVersionStrings(better[i], better[j]) > 0 })
	return fmt.Sprintf("%s; use %s/%s %s", text, c.Spec.Group, better[0], c.Spec.Names.Kind)
}

// verbs are in the order in which discovery has always listed them for custom resources.
var verbs = []string{"delete", "deletecollection", "get", "list", "patch", "create", "update", "watch"}
