package policy

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/google/cel-go/common/types"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/keelson/keelson/apiserver/admission"
	"github.com/keelson/keelson/apiserver/admission/expr"
	"github.com/keelson/keelson/apiserver/admission/match"
)

// validator is a compiled ValidatingAdmissionPolicy.
type validator struct {
	scope       *expr.Scope
	variables   []*expr.Program
	conditions  expr.Conditions
	validations []validation
	annotations []*expr.Program
}

type validation struct {
	expression, message *expr.Program // message is nil without a messageExpression
	text                string
	reason              metav1.StatusReason
}

// compileValidator compiles everything; what does not compile keeps its error. fresh: only what older servers know too.
func compileValidator(spec *admissionv1.ValidatingAdmissionPolicySpec, fresh bool) (*validator, error) {
	scope, err := expr.NewScope(expr.Options{Params: spec.ParamKind != nil, Policy: true, New: fresh})
	if err != nil {
		return nil, err
	}
	v := &validator{scope: scope}
	for _, x := range spec.Variables {
		v.variables = append(v.variables, scope.Variable(x.Name, x.Expression))
	}
	for _, c := range spec.MatchConditions {
		v.conditions = append(v.conditions, scope.Compile(c.Expression, expr.Bool))
	}
	for _, x := range spec.Validations {
		one := validation{expression: scope.Compile(x.Expression, expr.Bool), text: strings.TrimSpace(x.Message), reason: metav1.StatusReasonInvalid}
		if x.MessageExpression != "" {
			one.message = scope.Compile(x.MessageExpression, expr.String)
		}
		if x.Reason != nil {
			one.reason = *x.Reason
		}
		v.validations = append(v.validations, one)
	}
	for _, x := range spec.AuditAnnotations {
		v.annotations = append(v.annotations, scope.Compile(x.ValueExpression, expr.String, expr.Null))
	}
	return v, nil
}

// denial is one reason to refuse. Audit annotations that fail refuse whatever the binding's actions are.
type denial struct {
	policy, binding, message string
	reason                   metav1.StatusReason
}

func (d denial) String() string {
	if d.binding == "" {
		return fmt.Sprintf("ValidatingAdmissionPolicy '%s' denied request: %s", d.policy, d.message)
	}
	return fmt.Sprintf("ValidatingAdmissionPolicy '%s' with binding '%s' denied request: %s", d.policy, d.binding, d.message)
}

func (s *server) validate(ctx context.Context, a *admission.Attributes, from *match.Followed[[]*policy]) error {
	policies, err := from.Get()
	if err != nil {
		return apierrors.NewInternalError(err)
	}
	if len(policies) == 0 || match.Exempt(a.Row) {
		return nil
	}
	var r *request
	var denied []denial
	for _, p := range policies {
		row, ok, err := s.applies(a, p)
		if err != nil {
			if !p.failOpen {
				denied = append(denied, denial{policy: p.name, message: fmt.Sprintf("failed to configure policy: %v", err)})
			}
			continue
		}
		if !ok {
			continue
		}
		if p.paramKind != nil && s.paramRow(p.paramKind) == nil {
			if !p.failOpen {
				denied = append(denied, denial{policy: p.name, message: fmt.Sprintf(
					"failed to configure policy: failed to find resource referenced by paramKind: '%s/%s'", p.paramKind.APIVersion, p.paramKind.Kind)})
			}
			continue
		}
		if r == nil {
			if r, err = s.request(a); err != nil {
				return err
			}
		}
		for _, b := range p.bindings {
			found, err := s.underBinding(ctx, r, p, b, func() *view { return r.view(row) })
			if err != nil && !p.failOpen {
				found = append(found, denial{policy: p.name, binding: b.name, message: fmt.Sprintf("failed to configure binding: %v", err)})
			}
			denied = append(denied, found...)
		}
	}
	if len(denied) == 0 {
		return nil
	}
	reason := denied[0].reason
	if reason == "" {
		reason = metav1.StatusReasonInvalid
	}
	message := denied[0].String()
	refused := forbidden(a, message, reason)
	refused.ErrStatus.Details.Causes = append(refused.ErrStatus.Details.Causes, metav1.StatusCause{Message: message})
	return refused
}

// underBinding evaluates a policy under one binding, once for each parameter object.
func (s *server) underBinding(ctx context.Context, r *request, p *policy, b *binding, seen func() *view) (denied []denial, err error) {
	if ok, err := s.bound(r.a, b); err != nil || !ok {
		return nil, err
	}
	params, err := s.params(p.paramKind, b.params, r.a.Namespace)
	if err != nil {
		return nil, err
	}
	for _, param := range params {
		for _, d := range s.evaluate(ctx, r, p, seen(), param) {
			d.policy, d.binding = p.name, b.name
			if d.always {
				denied = append(denied, d.denial)
				continue
			}
			for _, action := range b.actions {
				switch action {
				case admissionv1.Deny:
					denied = append(denied, d.denial)
				case admissionv1.Warn:
					if r.a.Request.Warn != nil {
						r.a.Request.Warn(fmt.Sprintf("Validation failed for ValidatingAdmissionPolicy '%s' with binding '%s': %s", p.name, b.name, d.message))
					}
				}
			}
		}
	}
	return denied, nil
}

type finding struct {
	denial
	always bool // whatever the actions of the binding
}

// evaluate is the policy's opinion on one request with one parameter object.
func (s *server) evaluate(ctx context.Context, r *request, p *policy, v *view, param runtime.Object) (found []finding) {
	fail := func(message string) {
		if !p.failOpen {
			found = append(found, finding{denial: denial{message: message}})
		}
	}
	c, err := p.validating()
	if err != nil {
		fail(err.Error())
		return found
	}
	in, err := s.input(r, v, param)
	if err != nil {
		fail(err.Error())
		return found
	}
	if len(c.conditions) > 0 {
		met, err := c.conditions.Met(c.scope.Start(ctx, in, expr.ConditionBudget))
		if err != nil {
			fail(err.Error())
			return found
		}
		if !met {
			return nil
		}
	}
	run := c.scope.Start(ctx, in, expr.Budget)
	for i := range c.validations {
		one := &c.validations[i]
		got, err := run.Eval(one.expression)
		switch {
		case errors.Is(err, expr.ErrBudget):
			fail(err.Error())
			return found
		case err != nil:
			fail(err.Error())
		case got != types.True:
			found = append(found, finding{denial: denial{message: messageOf(run, one), reason: one.reason}})
		}
	}
	audit := c.scope.Start(ctx, in, expr.Budget)
	for _, e := range c.annotations {
		// There is no audit log yet; an annotation that cannot be worked out is a failure all the same.
		if _, err := audit.Eval(e); err != nil && !p.failOpen {
			found = append(found, finding{denial: denial{message: err.Error()}, always: true})
		}
	}
	return found
}

// messageOf: the messageExpression if it gives one good line, then the message, then the expression itself.
func messageOf(run *expr.Run, v *validation) string {
	if v.message != nil {
		if got, err := run.Eval(v.message); err == nil {
			if text, ok := got.Value().(string); ok {
				text = strings.TrimSpace(text)
				if text != "" && len(text) <= expr.MaxMessage && !strings.Contains(text, "\n") {
					return text
				}
			}
		}
	}
	if v.text != "" {
		return v.text
	}
	return "failed expression: " + strings.TrimSpace(v.expression.Text)
}
