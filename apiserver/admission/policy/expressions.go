package policy

import (
	"context"
	"fmt"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/keelson/keelson/apiserver/admission"
	"github.com/keelson/keelson/apiserver/admission/expr"
)

// Expressions refuses webhooks and policies whose expressions do not compile.
// What was stored before is not looked at again when it has not changed.
//
// It is a plugin, and not a rule of the kinds, because the kinds are pure and small and CEL is neither.
func Expressions() admission.Plugin {
	return admission.Plugin{
		Name: "AdmissionExpressions",
		Validate: func(_ context.Context, a *admission.Attributes) (func(), error) {
			if a.Row.Group != group || a.Subresource != "" || a.Object == nil {
				return nil, nil
			}
			now, err := texts(a.Object, true)
			if err != nil || len(now) == 0 {
				return nil, err
			}
			before := map[string]bool{}
			if a.Old != nil {
				old, err := texts(a.Old, false)
				if err != nil {
					return nil, err
				}
				for _, x := range old {
					before[x.at.String()+"\x00"+x.text] = true
				}
			}
			var errs field.ErrorList
			for _, x := range now {
				if x.err != nil && !before[x.at.String()+"\x00"+x.text] {
					errs = append(errs, field.Invalid(x.at, x.text, x.err.Error()))
				}
			}
			if len(errs) > 0 {
				return nil, apierrors.NewInvalid(a.Row.GVK().GroupKind(), a.Name, errs)
			}
			return nil, nil
		},
	}
}

// written is one expression of a webhook or policy.
type written struct {
	at   *field.Path
	text string
	err  error
}

// texts are the expressions of an object, compiled if asked for.
func texts(obj any, compile bool) (out []written, err error) {
	add := func(at *field.Path, text string, p *expr.Program) {
		w := written{at: at, text: text}
		if p != nil {
			w.err = p.Err
		}
		out = append(out, w)
	}
	switch o := obj.(type) {
	case *admissionv1.ValidatingWebhookConfiguration:
		for i := range o.Webhooks {
			if err := conditions(o.Webhooks[i].MatchConditions, i, compile, add); err != nil {
				return nil, err
			}
		}
	case *admissionv1.MutatingWebhookConfiguration:
		for i := range o.Webhooks {
			if err := conditions(o.Webhooks[i].MatchConditions, i, compile, add); err != nil {
				return nil, err
			}
		}
	case *admissionv1.ValidatingAdmissionPolicy:
		v := &validator{}
		if compile {
			if v, err = compileValidator(&o.Spec, true); err != nil {
				return nil, err
			}
		}
		spec := field.NewPath("spec")
		policyTexts(spec, o.Spec.Variables, v.variables, o.Spec.MatchConditions, v.conditions, add)
		for i, x := range o.Spec.Validations {
			at, one := spec.Child("validations").Index(i), validation{}
			if compile {
				one = v.validations[i]
			}
			add(at.Child("expression"), x.Expression, one.expression)
			if x.MessageExpression != "" {
				add(at.Child("messageExpression"), x.MessageExpression, one.message)
			}
		}
		for i, x := range o.Spec.AuditAnnotations {
			var one *expr.Program
			if compile {
				one = v.annotations[i].value
			}
			add(spec.Child("auditAnnotations").Index(i).Child("valueExpression"), x.ValueExpression, one)
		}
	case *admissionv1.MutatingAdmissionPolicy:
		m := &mutator{}
		if compile {
			if m, err = compileMutator(&o.Spec, true); err != nil {
				return nil, err
			}
		}
		spec := field.NewPath("spec")
		policyTexts(spec, o.Spec.Variables, m.variables, o.Spec.MatchConditions, m.conditions, add)
		for i, x := range o.Spec.Mutations {
			at, c := spec.Child("mutations").Index(i), change{}
			if compile {
				c = m.mutations[i]
			}
			switch {
			case x.ApplyConfiguration != nil:
				add(at.Child("applyConfiguration", "expression"), x.ApplyConfiguration.Expression, c.expression)
			case x.JSONPatch != nil:
				add(at.Child("jsonPatch", "expression"), x.JSONPatch.Expression, c.expression)
			}
		}
	}
	return out, nil
}

func pick(list []*expr.Program, i int) *expr.Program {
	if i < len(list) {
		return list[i]
	}
	return nil
}

func policyTexts(spec *field.Path, vars []admissionv1.Variable, variables []*expr.Program, match []admissionv1.MatchCondition, compiled expr.Conditions,
	add func(*field.Path, string, *expr.Program)) {
	for i, x := range vars {
		add(spec.Child("variables").Index(i).Child("expression"), x.Expression, pick(variables, i))
	}
	for i, x := range match {
		add(spec.Child("matchConditions").Index(i).Child("expression"), x.Expression, pick(compiled, i))
	}
}

// conditions are the expressions of one webhook.
func conditions(list []admissionv1.MatchCondition, webhook int, compile bool, add func(*field.Path, string, *expr.Program)) error {
	if len(list) == 0 {
		return nil
	}
	var scope *expr.Scope
	if compile {
		var err error
		if scope, err = expr.NewScope(expr.Options{New: true}); err != nil {
			return fmt.Errorf("match conditions: %w", err)
		}
	}
	for i, c := range list {
		var p *expr.Program
		if scope != nil {
			p = scope.Compile(c.Expression, expr.Bool)
		}
		add(field.NewPath("webhooks").Index(webhook).Child("matchConditions").Index(i).Child("expression"), c.Expression, p)
	}
	return nil
}
