package policy

import (
	"fmt"
	"slices"
	"strings"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"
	apicel "k8s.io/apiserver/pkg/cel"
	"k8s.io/apiserver/pkg/cel/common"
	celopenapi "k8s.io/apiserver/pkg/cel/openapi"
	"k8s.io/kube-openapi/pkg/validation/spec"

	"github.com/keelson/keelson/apiserver/admission/expr"
	"github.com/keelson/keelson/apiserver/resources"
)

// maxTypes is how many kinds the expressions of one policy are checked against.
const maxTypes = 10

// Check compares a policy's expressions with the types of the objects that it names
// one by one (rules with a "*" are not checked), and says what does not fit. It changes nothing:
// a policy with warnings works as well as its expressions do.
//
// schemaOf gives a kind's OpenAPI schema without references, nil when there is none.
func Check(p *admissionv1.ValidatingAdmissionPolicy, all []*resources.Row, schemaOf func(*resources.Row) *spec.Schema) ([]admissionv1.ExpressionWarning, error) {
	declared := func(row *resources.Row, name string) *apicel.DeclType {
		if row == nil {
			return nil
		}
		s := schemaOf(row)
		if s == nil {
			return nil
		}
		d := common.SchemaDeclType(&celopenapi.Schema{Schema: s}, true)
		if d == nil {
			return nil
		}
		return d.MaybeAssignTypeName(name)
	}
	var params *apicel.DeclType
	if k := p.Spec.ParamKind; k != nil {
		gvk := schema.FromAPIVersionAndKind(k.APIVersion, k.Kind)
		for _, r := range all {
			if r.GVK() == gvk {
				params = declared(r, r.Kind+"Params")
			}
		}
	}
	// For each validation what is wrong with its two expressions.
	problems := make([][2]string, len(p.Spec.Validations))
	for _, row := range named(p, all) {
		object := declared(row, row.Kind+"Object")
		if object == nil {
			continue
		}
		scope, err := expr.NewScope(expr.Options{Params: p.Spec.ParamKind != nil, Policy: true, ObjectType: object, ParamsType: params})
		if err != nil {
			return nil, err
		}
		for _, v := range p.Spec.Variables {
			scope.Variable(v.Name, v.Expression)
		}
		for i, v := range p.Spec.Validations {
			for j, text := range []string{v.Expression, v.MessageExpression} {
				if text == "" {
					continue
				}
				if c := scope.Compile(text, expr.Any); c.Err != nil {
					problems[i][j] += fmt.Sprintf("%v: %v\n", row.GVK(), c.Err)
				}
			}
		}
	}
	var out []admissionv1.ExpressionWarning
	at := field.NewPath("spec", "validations")
	for i, two := range problems {
		for j, text := range two {
			if text != "" {
				out = append(out, admissionv1.ExpressionWarning{FieldRef: at.Index(i).Child([]string{"expression", "messageExpression"}[j]).String(), Warning: text})
			}
		}
	}
	return out, nil
}

// named are the resources that the policy's rules name, in the order of their kinds.
func named(p *admissionv1.ValidatingAdmissionPolicy, all []*resources.Row) (out []*resources.Row) {
	if p.Spec.MatchConstraints == nil {
		return nil
	}
	for _, row := range all {
		for i := range p.Spec.MatchConstraints.ResourceRules {
			r := &p.Spec.MatchConstraints.ResourceRules[i]
			if slices.Contains(r.APIGroups, row.Group) && slices.Contains(r.APIVersions, row.Version) && slices.Contains(r.Resources, row.Plural) {
				out = append(out, row)
				break
			}
		}
	}
	slices.SortFunc(out, func(a, b *resources.Row) int {
		return strings.Compare(a.Group+"\x00"+a.Version+"\x00"+a.Kind, b.Group+"\x00"+b.Version+"\x00"+b.Kind)
	})
	return out[:min(len(out), maxTypes)]
}

// Inline replaces references in a schema by what they refer to. A schema that contains itself ends in
// an untyped object. find knows the schemas by the last part of a reference.
func Inline(s *spec.Schema, find func(name string) *spec.Schema) *spec.Schema {
	return inline(s, find, nil)
}

func inline(s *spec.Schema, find func(string) *spec.Schema, path []string) *spec.Schema {
	if s == nil {
		return nil
	}
	ref := s.Ref.String()
	if ref == "" && len(s.AllOf) == 1 {
		ref = s.AllOf[0].Ref.String()
	}
	if ref != "" {
		name := ref[strings.LastIndexByte(ref, '/')+1:]
		to := find(name)
		if to == nil || slices.Contains(path, name) {
			return &spec.Schema{SchemaProps: spec.SchemaProps{Type: []string{"object"}}}
		}
		return inline(to, find, append(path[:len(path):len(path)], name))
	}
	out := *s
	if len(s.Properties) > 0 {
		out.Properties = make(map[string]spec.Schema, len(s.Properties))
		for name := range s.Properties {
			p := s.Properties[name]
			out.Properties[name] = *inline(&p, find, path)
		}
	}
	if s.Items != nil && s.Items.Schema != nil {
		out.Items = &spec.SchemaOrArray{Schema: inline(s.Items.Schema, find, path)}
	}
	if s.AdditionalProperties != nil && s.AdditionalProperties.Schema != nil {
		out.AdditionalProperties = &spec.SchemaOrBool{Allows: true, Schema: inline(s.AdditionalProperties.Schema, find, path)}
	}
	return &out
}
