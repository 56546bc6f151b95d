package policy

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/keelson/keelson/apiserver/admission/expr"
	"github.com/keelson/keelson/apiserver/resources"
)

// Expressions makes the kinds with expressions refuse those that do not compile, among the other faults of the object.
// What was stored before is not looked at again when it has not changed.
//
// It is laid over the rows, and not a rule of the kinds, because the kinds are pure and small and CEL is neither.
func Expressions(rows []*resources.Row) []*resources.Row {
	for _, row := range rows {
		if row.Group != group {
			continue
		}
		rules := row.Main.Validate
		row.Main.Validate = func(rq *resources.Request, obj, old resources.Object) field.ErrorList {
			faults := rules(rq, obj, old)
			found, err := uncompiled(obj, old)
			if err != nil {
				return append(faults, field.InternalError(nil, err))
			}
			all := slices.Concat(faults, found)
			slices.SortStableFunc(all, func(a, b *field.Error) int { return slices.Compare(rank(obj, a), rank(obj, b)) })
			return all
		}
	}
	return rows
}

// uncompiled are the expressions that are new in obj and do not compile.
func uncompiled(obj, old resources.Object) (found field.ErrorList, err error) {
	now, err := texts(obj, true)
	if err != nil || len(now) == 0 {
		return nil, err
	}
	before := map[string]bool{}
	if old != nil {
		was, err := texts(old, false)
		if err != nil {
			return nil, err
		}
		for _, x := range was {
			before[x.at.String()+"\x00"+x.text] = true
		}
	}
	for _, x := range now {
		if x.err != nil && strings.TrimSpace(x.text) != "" && !before[x.at.String()+"\x00"+x.text] { // without a text: a fault of its own
			found = append(found, field.Invalid(x.at, x.text, x.err.Error()))
		}
	}
	return found, nil
}

// The order in which upstream looks at the parts of an object, and at the fields of one part.
var (
	parts  = []string{"failurePolicy", "paramKind", "matchConstraints", "matchConditions", "variables", "validations", "mutations", "auditAnnotations", "reinvocationPolicy"}
	inPart = map[string][]string{
		"matchConditions":  {"expression", "name"},
		"variables":        {"name", "expression"},
		"validations":      {"expression", "messageExpression", "message", "reason"},
		"auditAnnotations": {"key", "valueExpression"},
		"mutations":        {"patchType", "jsonPatch", "applyConfiguration"},
	}
	partOf = regexp.MustCompile(`^(?:spec|webhooks\[(\d+)\])\.(\w+)(?:\[(\d+)\](?:\.(\w+))?)?`)
)

// rank is where a fault stands among those of an object.
func rank(obj resources.Object, e *field.Error) []int {
	m := partOf.FindStringSubmatch(e.Field)
	if m == nil {
		return nil
	}
	number := func(s string) int { n, _ := strconv.Atoi(s); return n }
	part, i, sub := m[2], number(m[3]), m[4]
	if m[1] != "" { // of a webhook
		at := 0
		switch part {
		case "matchConditions":
			at = 1
		case "admissionReviewVersions":
			at = 2
		}
		return []int{number(m[1]), at, i, slices.Index(inPart[part], sub)}
	}
	at := slices.Index(inPart[part], sub)
	switch {
	case part == "auditAnnotations" && e.Type == field.ErrorTypeDuplicate:
		at = len(inPart[part])
	case part == "mutations" && sub == "applyConfiguration":
		if o, ok := obj.(*admissionv1.MutatingAdmissionPolicy); ok && i < len(o.Spec.Mutations) && o.Spec.Mutations[i].PatchType == admissionv1.PatchTypeApplyConfiguration {
			at = 0 // the one that is asked for comes first
		}
	}
	return []int{slices.Index(parts, part), i, at}
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
			case x.PatchType == admissionv1.PatchTypeApplyConfiguration && x.ApplyConfiguration != nil:
				add(at.Child("applyConfiguration", "expression"), x.ApplyConfiguration.Expression, c.expression)
			case x.PatchType == admissionv1.PatchTypeJSONPatch && x.JSONPatch != nil:
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
