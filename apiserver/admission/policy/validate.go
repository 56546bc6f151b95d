package policy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

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
	annotations []annotation
}

type annotation struct {
	key   string
	value *expr.Program
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
		v.annotations = append(v.annotations, annotation{x.Key, scope.Compile(x.ValueExpression, expr.String, expr.Null)})
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
		notes := notes{}
		for _, b := range p.bindings {
			found, err := s.underBinding(ctx, r, p, b, notes, func() *view { return r.view(row) })
			if err != nil && !p.failOpen {
				found = append(found, denial{policy: p.name, binding: b.name, message: fmt.Sprintf("failed to configure binding: %v", err)})
			}
			denied = append(denied, found...)
		}
		for key, values := range notes {
			admission.Annotate(ctx, p.name+"/"+key, strings.Join(values, ", "))
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
func (s *server) underBinding(ctx context.Context, r *request, p *policy, b *binding, notes notes, seen func() *view) (denied []denial, err error) {
	if ok, err := s.bound(r.a, b); err != nil || !ok {
		return nil, err
	}
	params, err := s.params(p.paramKind, b.params, r.a.Namespace)
	if err != nil {
		return nil, err
	}
	for _, param := range params {
		for _, d := range s.evaluate(ctx, r, p, seen(), param, notes) {
			d.policy, d.binding = p.name, b.name
			if d.ignored {
				s.cfg.Metrics.checked("allow", p.name, b.name, d.err, d.took)
				continue
			}
			if d.always {
				s.cfg.Metrics.checked("deny", p.name, b.name, d.err, d.took)
				denied = append(denied, d.denial)
				continue
			}
			for _, action := range b.actions {
				s.cfg.Metrics.checked(strings.ToLower(string(action)), p.name, b.name, d.err, d.took)
				switch action {
				case admissionv1.Deny:
					denied = append(denied, d.denial)
				case admissionv1.Audit:
					text, err := json.Marshal([]failure{{d.message, p.name, b.name, d.index, b.actions}})
					if err == nil {
						admission.Annotate(ctx, "validation.policy.admission.k8s.io/validation_failure", string(text))
					}
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

// notes are a policy's audit annotations: what its bindings make of each key.
type notes map[string][]string

func (n notes) add(key, value string) {
	if len(value) > maxNote {
		value = value[:maxNote]
	}
	if !slices.Contains(n[key], value) {
		n[key] = append(n[key], value)
	}
}

// maxNote bounds an audit annotation, in bytes. Source: upstream cuts at the same place.
const maxNote = 10 << 10

// failure is how the audit event tells of a finding. Source: Kubernetes documentation, "Audit Annotations".
type failure struct {
	Message string                         `json:"message"`
	Policy  string                         `json:"policy"`
	Binding string                         `json:"binding"`
	Index   int                            `json:"expressionIndex"`
	Actions []admissionv1.ValidationAction `json:"validationActions"`
}

type finding struct {
	denial
	index   int   // of the validation
	err     error // it could not be worked out
	took    time.Duration
	always  bool // whatever the actions of the binding
	ignored bool // a failure that the policy does not mind
}

// evaluate is the policy's opinion on one request with one parameter object.
func (s *server) evaluate(ctx context.Context, r *request, p *policy, v *view, param runtime.Object, notes notes) (found []finding) {
	fail := func(i int, err error, took time.Duration) {
		found = append(found, finding{denial: denial{message: err.Error()}, index: i, err: err, took: took, ignored: p.failOpen})
	}
	c, err := p.validating()
	if err != nil {
		fail(0, err, 0)
		return found
	}
	in, err := s.input(r, v, param)
	if err != nil {
		fail(0, err, 0)
		return found
	}
	if len(c.conditions) > 0 {
		met, err := c.conditions.Met(c.scope.Start(ctx, in, expr.ConditionBudget), s.cfg.Metrics.conditions(p.name, string(r.a.Operation)))
		if err != nil {
			fail(0, err, 0)
			return found
		}
		if !met {
			return nil
		}
	}
	run := c.scope.Start(ctx, in, expr.Budget)
	for i := range c.validations {
		one := &c.validations[i]
		began := time.Now()
		got, err := run.Eval(one.expression)
		switch {
		case errors.Is(err, expr.ErrBudget):
			fail(i, err, time.Since(began))
			return found
		case err != nil:
			fail(i, err, time.Since(began))
		case got != types.True:
			found = append(found, finding{denial: denial{message: messageOf(run, one), reason: one.reason}, index: i, took: time.Since(began)})
		}
	}
	audit := c.scope.Start(ctx, in, expr.Budget)
	for _, e := range c.annotations {
		began := time.Now()
		got, err := audit.Eval(e.value)
		switch {
		case err != nil && !p.failOpen:
			found = append(found, finding{denial: denial{message: err.Error()}, err: err, took: time.Since(began), always: true})
		case err == nil:
			if text, ok := got.Value().(string); ok {
				if text = strings.TrimSpace(text); text != "" {
					notes.add(e.key, text)
				}
			}
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
