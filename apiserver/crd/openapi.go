package crd

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"

	crdv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	structural "k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/kube-openapi/pkg/builder3/util"
	"k8s.io/kube-openapi/pkg/schemaconv"
	"k8s.io/kube-openapi/pkg/validation/spec"
	smd "sigs.k8s.io/structured-merge-diff/v6/schema"
	"sigs.k8s.io/structured-merge-diff/v6/typed"

	"github.com/keelson/keelson/proto/openapi"
)

const (
	modelMeta = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"
	refs      = "#/components/schemas/"
)

// Model is the name that a kind's schema is published under: the group backwards.
func (k *Kind) Model() string {
	parts := strings.Split(k.def.group, ".")
	slices.Reverse(parts)
	return strings.Join(parts, ".") + "." + k.version + "." + k.def.kind
}

var (
	typeDoc = metav1.TypeMeta{}.SwaggerDoc()
	listDoc = metav1.PartialObjectMetadata{}.SwaggerDoc()
)

func text(doc string) spec.Schema {
	return spec.Schema{SchemaProps: spec.SchemaProps{Type: []string{"string"}, Description: doc}}
}

func metaRef() spec.Schema {
	return *spec.RefSchema(refs + modelMeta).WithDescription(listDoc["metadata"])
}

// published is a version's schema as OpenAPI: with what every object has.
func published(s *structural.Structural, v2 bool) *spec.Schema {
	out := s.ToKubeOpenAPI()
	out.SetProperty("metadata", metaRef())
	out.SetProperty("apiVersion", text(typeDoc["apiVersion"]))
	out.SetProperty("kind", text(typeDoc["kind"]))
	embedded(out, v2)
	return out
}

// What is said of objects inside objects. Source: kube-apiserver 1.36.
const (
	conventions  = "More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#"
	innerAPIDoc  = "apiVersion defines the versioned schema of this representation of an object. " + conventions + "resources"
	innerKindDoc = "kind is a string value representing the type of this object. In CamelCase. " + conventions + "types-kinds"
)

// embedded gives objects inside the object what every object has. In v2 those that keep unknown fields
// are untyped.
func embedded(s *spec.Schema, v2 bool) {
	if s == nil {
		return
	}
	for name := range s.Properties {
		p := s.Properties[name]
		embedded(&p, v2)
		s.Properties[name] = p
	}
	if s.Items != nil {
		embedded(s.Items.Schema, v2)
	}
	if s.AdditionalProperties != nil {
		embedded(s.AdditionalProperties.Schema, v2)
	}
	if is, _ := s.Extensions.GetBool("x-kubernetes-embedded-resource"); !is {
		return
	}
	if keeps, _ := s.Extensions.GetBool("x-kubernetes-preserve-unknown-fields"); keeps && v2 {
		return
	}
	s.SetProperty("apiVersion", text(innerAPIDoc))
	s.SetProperty("kind", text(innerKindDoc))
	s.SetProperty("metadata", metaRef())
	for _, name := range []string{"kind", "apiVersion"} {
		if !slices.Contains(s.Required, name) {
			s.Required = append(s.Required, name)
		}
	}
}

// raw is the version's schema before anything is derived from it, nil when it has none
// that can be published, with the version that it belongs to.
func (k *Kind) raw() (*structural.Structural, *crdv1.CustomResourceDefinitionVersion, bool) {
	c, err := k.def.load()
	if err != nil {
		return nil, nil, false
	}
	for i := range c.Spec.Versions {
		v := &c.Spec.Versions[i]
		if v.Name != k.version {
			continue
		}
		props, err := schemaOf(v)
		if err != nil || props == nil {
			return nil, v, c.Spec.PreserveUnknownFields
		}
		s, err := structural.NewStructural(props)
		if err != nil || len(structural.ValidateStructural(nil, s)) > 0 {
			return nil, v, c.Spec.PreserveUnknownFields
		}
		return s, v, c.Spec.PreserveUnknownFields
	}
	return nil, nil, false
}

// Selectable is discovery.Described's: the fields that lists can be selected by.
func (k *Kind) Selectable() []any {
	_, v, _ := k.raw()
	return selectable(v)
}

func selectable(v *crdv1.CustomResourceDefinitionVersion) (list []any) {
	if v == nil {
		return nil
	}
	for _, f := range v.SelectableFields {
		list = append(list, map[string]any{"fieldPath": strings.TrimPrefix(f.JSONPath, ".")})
	}
	return list
}

func marshal(s *spec.Schema, v *crdv1.CustomResourceDefinitionVersion) string {
	if list := selectable(v); len(list) > 0 {
		s.AddExtension("x-kubernetes-selectable-fields", list)
	}
	out, err := json.Marshal(s)
	if err != nil {
		return `{"type":"object"}`
	}
	return string(out)
}

func anyObject() *spec.Schema {
	return &spec.Schema{SchemaProps: spec.SchemaProps{Type: []string{"object"}}}
}

// OpenAPI is discovery.Described's: the schema of this version as OpenAPI v3.
func (k *Kind) OpenAPI() string {
	s, v, _ := k.raw()
	if s == nil {
		return marshal(anyObject(), v)
	}
	return marshal(util.WrapRefs(published(s.Unfold(), false)), v) // beside a reference v3 allows nothing
}

// OpenAPIv2 is the same in what OpenAPI v2 and its readers understand.
func (k *Kind) OpenAPIv2() string {
	s, v, preserve := k.raw()
	if s == nil || s.XPreserveUnknownFields || preserve {
		return marshal(anyObject(), v)
	}
	s = s.Unfold().DeepCopy()
	(&structural.Visitor{Structural: plainer}).Visit(s)
	return marshal(published(s, true), v)
}

// plainer drops what OpenAPI v2 lacks, and what makes its readers refuse objects
// that the server accepts: values that may be null or have unknown fields are untyped.
func plainer(s *structural.Structural) (changed bool) {
	if v := s.ValueValidation; v != nil && (v.AllOf != nil || v.OneOf != nil || v.AnyOf != nil || v.Not != nil) {
		v.AllOf, v.OneOf, v.AnyOf, v.Not = nil, nil, nil, nil
		changed = true
	}
	if s.Default.Object != nil { // kubectl of old times would have sent it
		s.Default.Object = nil
		changed = true
	}
	if s.Nullable {
		s.Type, s.Nullable, s.Items, s.Properties = "", false, nil, nil
		changed = true
	}
	if s.XPreserveUnknownFields {
		s.Items, s.Properties = nil, nil
		if s.Type == "object" {
			s.Type = ""
		}
		changed = true
	}
	if s.Type == "array" && s.Items == nil {
		s.Type = ""
		changed = true
	}
	if s.ValueValidation == nil {
		return changed
	}
	for name, p := range s.Properties {
		if p.Nullable && slices.Contains(s.ValueValidation.Required, name) {
			s.ValueValidation.Required = slices.DeleteFunc(slices.Clone(s.ValueValidation.Required), func(r string) bool { return r == name })
			changed = true
		}
	}
	if a := s.AdditionalProperties; a != nil && a.Structural != nil && a.Structural.Nullable {
		s.ValueValidation.Required = nil
		changed = true
	}
	return changed
}

// metaTypes are the merge rules of metadata, shared by all custom kinds.
var metaTypes = sync.OnceValues(func() ([]smd.TypeDef, error) {
	models := map[string]*spec.Schema{}
	for _, name := range openapi.Closure(modelMeta) {
		text, _ := openapi.V3(name)
		s := &spec.Schema{}
		if err := json.Unmarshal([]byte(text), s); err != nil {
			return nil, fmt.Errorf("definition of %s: %w", name, err)
		}
		models[name] = s
	}
	made, err := schemaconv.ToSchemaFromOpenAPI(models, false)
	if err != nil {
		return nil, err
	}
	return made.Types, nil
})

// MergeType is patch.Typed's: which lists are maps, sets or atomic.
func (k *Kind) MergeType() (typed.ParseableType, error) {
	f, err := k.forms()
	if err != nil {
		return typed.ParseableType{}, err
	}
	f.mergeOnce.Do(func() { f.merge, f.mergeErr = k.mergeType() })
	return f.merge, f.mergeErr
}

func (k *Kind) mergeType() (typed.ParseableType, error) {
	s, _, preserve := k.raw()
	if s == nil {
		return typed.DeducedParseableType, nil
	}
	shared, err := metaTypes()
	if err != nil {
		return typed.ParseableType{}, err
	}
	name := k.Model()
	made, err := schemaconv.ToSchemaFromOpenAPI(map[string]*spec.Schema{name: published(s.Unfold().StripValueValidations().StripNullable(), false)}, preserve)
	if err != nil {
		return typed.ParseableType{}, fmt.Errorf("merge rules of %s: %w", name, err)
	}
	own := &smd.Schema{}
	known := map[string]bool{}
	for _, d := range slices.Concat(made.Types, shared) {
		if !known[d.Name] {
			known[d.Name] = true
			own.Types = append(own.Types, d)
		}
	}
	return typed.ParseableType{Schema: own, TypeRef: smd.TypeRef{NamedType: &name}}, nil
}
