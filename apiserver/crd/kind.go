package crd

import (
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	crdv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	structural "k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	schemacel "k8s.io/apiextensions-apiserver/pkg/apiserver/schema/cel"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/defaulting"
	schemavalidation "k8s.io/apiextensions-apiserver/pkg/apiserver/validation"
	"k8s.io/apimachinery/pkg/runtime/schema"
	celconfig "k8s.io/apiserver/pkg/apis/cel"
	"k8s.io/client-go/util/jsonpath"
	"sigs.k8s.io/structured-merge-diff/v6/typed"

	"github.com/keelson/keelson/apiserver/resources"
)

// source gives the definition as it is stored. It is decoded for each call, or shared
// with the cache: nobody keeps it, since a decoded schema is many times its text.
type source interface {
	Object() (resources.Object, error)
}

// definition is what all versions of one custom kind share. It is made anew whenever
// the specification changes; a change of status keeps it.
type definition struct {
	name, group, kind, plural string
	sum                       string // identifies the specification: uid and generation
	from                      atomic.Pointer[source]
	kinds                     map[string]*Kind // by version; the Keeper's alone
	hook                      *hook            // nil: versions differ in name only

	mu    sync.Mutex        // guards forms
	forms map[string]*forms // compiled, by version; dropped when unused
	used  atomic.Int64      // unix seconds of the last use
	now   func() time.Time

	metrics *Metrics // nil: none
}

func (d *definition) load() (*crdv1.CustomResourceDefinition, error) {
	obj, err := (*d.from.Load()).Object()
	if err != nil {
		return nil, err
	}
	c, ok := obj.(*crdv1.CustomResourceDefinition)
	if !ok {
		return nil, fmt.Errorf("definition %s is stored as %T", d.name, obj)
	}
	return c, nil
}

// forms are the compiled rules of one version: made together but for the dear ones.
type forms struct {
	preserve bool                   // the whole object keeps unknown fields (definitions of old)
	schema   *structural.Structural // nil: anything goes
	all      schemavalidation.SchemaValidator
	status   schemavalidation.SchemaValidator // nil without a schema of status
	columns  []*jsonpath.JSONPath
	fields   []*jsonpath.JSONPath
	metrics  *Metrics // nil: none

	celOnce sync.Once
	cel     *schemacel.Validator // nil without rules

	mergeOnce sync.Once
	merge     typed.ParseableType
	mergeErr  error
}

func (f *forms) rules() *schemacel.Validator {
	f.celOnce.Do(func() {
		if f.schema != nil {
			defer f.metrics.compiled(time.Now())
			f.cel = schemacel.NewValidator(f.schema, true, celconfig.PerCallLimit)
		}
	})
	return f.cel
}

// of returns the compiled forms of a version, nil when the definition has no such version.
func (d *definition) of(version string) (*forms, error) {
	d.used.Store(d.now().Unix())
	d.mu.Lock()
	defer d.mu.Unlock()
	if f, ok := d.forms[version]; ok {
		return f, nil
	}
	c, err := d.load()
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(c.Spec.Versions, func(v crdv1.CustomResourceDefinitionVersion) bool { return v.Name == version })
	if i < 0 {
		return nil, nil
	}
	f, err := compile(c, &c.Spec.Versions[i])
	if err != nil {
		return nil, fmt.Errorf("definition %s, version %s: %w", d.name, version, err)
	}
	f.metrics = d.metrics
	if d.forms == nil {
		d.forms = map[string]*forms{}
	}
	d.forms[version] = f
	return f, nil
}

// drop forgets compiled forms that have not been used since before (unix seconds).
func (d *definition) drop(before int64) {
	if d.used.Load() >= before {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.forms = nil
	d.hook.forget()
}

// schemaOf is a version's schema in the form that the schema libraries work on, nil when there is none.
func schemaOf(v *crdv1.CustomResourceDefinitionVersion) (*apiextensions.JSONSchemaProps, error) {
	if v.Schema == nil || v.Schema.OpenAPIV3Schema == nil {
		return nil, nil
	}
	out := &apiextensions.CustomResourceValidation{}
	if err := crdv1.Convert_v1_CustomResourceValidation_To_apiextensions_CustomResourceValidation(v.Schema, out, nil); err != nil {
		return nil, err
	}
	return out.OpenAPIV3Schema, nil
}

func compile(c *crdv1.CustomResourceDefinition, v *crdv1.CustomResourceDefinitionVersion) (*forms, error) {
	f := &forms{preserve: c.Spec.PreserveUnknownFields}
	props, err := schemaOf(v)
	if err != nil {
		return nil, err
	}
	if props != nil {
		s, err := structural.NewStructural(props)
		switch {
		case err != nil && !f.preserve:
			return nil, err
		case err == nil && !f.preserve:
			s = s.DeepCopy()
			if err := defaulting.PruneDefaults(s); err != nil {
				return nil, err
			}
			f.schema = s
		case err == nil:
			f.schema = s
		}
	}
	if f.all, _, err = schemavalidation.NewSchemaValidator(props); err != nil {
		return nil, err
	}
	if props != nil && v.Subresources != nil && v.Subresources.Status != nil {
		if status, ok := props.Properties["status"]; ok {
			if f.status, _, err = schemavalidation.NewSchemaValidator(&status); err != nil {
				return nil, err
			}
		}
	}
	for _, col := range columnsOf(v) {
		f.columns = append(f.columns, path(col.JSONPath))
	}
	for _, s := range v.SelectableFields {
		f.fields = append(f.fields, path(s.JSONPath))
	}
	return f, nil
}

// path is nil when the text is no path: validation keeps such out of new definitions.
func path(text string) *jsonpath.JSONPath {
	p := jsonpath.New("column").AllowMissingKeys(true)
	if p.Parse("{"+text+"}") != nil {
		return nil
	}
	return p
}

// Kind is the Custom of a row: one version of a custom kind. Its methods compile what
// they need when it is first needed.
type Kind struct {
	def     *definition
	version string
	status  bool                                  // status is a subresource
	scale   *crdv1.CustomResourceSubresourceScale // nil: there is no scale subresource
}

func (k *Kind) gvk() schema.GroupVersionKind {
	return schema.GroupVersionKind{Group: k.def.group, Version: k.version, Kind: k.def.kind}
}

func (k *Kind) apiVersion() string { return k.gvk().GroupVersion().String() }

func (k *Kind) forms() (*forms, error) {
	f, err := k.def.of(k.version)
	if err == nil && f == nil {
		err = fmt.Errorf("definition %s has no version %s", k.def.name, k.version)
	}
	return f, err
}

// OpenAPISum identifies what OpenAPI returns without making it.
func (k *Kind) OpenAPISum() string { return k.def.sum + "/" + k.version }
