package policy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strconv"
	"time"

	"github.com/google/cel-go/common/types"
	"github.com/google/cel-go/common/types/ref"
	"github.com/google/cel-go/common/types/traits"
	"google.golang.org/protobuf/types/known/structpb"
	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/cel/mutation"
	"k8s.io/apiserver/pkg/cel/mutation/dynamic"
	kjson "sigs.k8s.io/json"

	"github.com/keelson/keelson/apiserver/admission"
	"github.com/keelson/keelson/apiserver/admission/expr"
	"github.com/keelson/keelson/apiserver/admission/match"
	"github.com/keelson/keelson/apiserver/resources"
)

// mutator is a compiled MutatingAdmissionPolicy.
type mutator struct {
	scope      *expr.Scope
	variables  []*expr.Program
	conditions expr.Conditions
	mutations  []change
}

type change struct {
	expression *expr.Program
	apply      bool // an apply configuration; otherwise a list of JSON patch operations
}

func compileMutator(spec *admissionv1.MutatingAdmissionPolicySpec, fresh bool) (*mutator, error) {
	scope, err := expr.NewScope(expr.Options{Params: spec.ParamKind != nil, Policy: true, Patch: true, New: fresh})
	if err != nil {
		return nil, err
	}
	m := &mutator{scope: scope}
	for _, x := range spec.Variables {
		m.variables = append(m.variables, scope.Variable(x.Name, x.Expression))
	}
	for _, c := range spec.MatchConditions {
		m.conditions = append(m.conditions, scope.Compile(c.Expression, expr.Bool))
	}
	for _, x := range spec.Mutations {
		switch {
		case x.PatchType == admissionv1.PatchTypeApplyConfiguration && x.ApplyConfiguration != nil:
			m.mutations = append(m.mutations, change{scope.Compile(x.ApplyConfiguration.Expression, expr.ApplyConfig), true})
		case x.PatchType == admissionv1.PatchTypeJSONPatch && x.JSONPatch != nil:
			m.mutations = append(m.mutations, change{scope.Compile(x.JSONPatch.Expression, expr.PatchList), false})
		default: // validation has let it through: keep the places
			m.mutations = append(m.mutations, change{&expr.Program{Err: fmt.Errorf("unknown patchType %q", x.PatchType)}, false})
		}
	}
	return m, nil
}

// rounds is what the second round must know of the first, by policy, binding and parameter.
type rounds struct {
	asked, needed map[string]bool
	last          runtime.Object
}

const memo = "MutatingAdmissionPolicy"

func roundsOf(a *admission.Attributes) *rounds {
	if a.Memo == nil {
		a.Memo = map[string]any{}
	}
	r, ok := a.Memo[memo].(*rounds)
	if !ok {
		r = &rounds{asked: map[string]bool{}, needed: map[string]bool{}}
		a.Memo[memo] = r
	}
	return r
}

func (r *rounds) changed() {
	for k := range r.asked {
		r.needed[k] = true
	}
	clear(r.asked)
}

// fault is why a mutating policy could not do its work.
type fault struct {
	policy, binding string
	err             error
}

func (f fault) String() string {
	if f.binding == "" {
		return fmt.Sprintf("policy %q denied request: %v", f.policy, f.err)
	}
	return fmt.Sprintf("policy '%s' with binding '%s' denied request: %v", f.policy, f.binding, f.err)
}

func (s *server) mutate(ctx context.Context, a *admission.Attributes, from *match.Followed[[]*policy]) error {
	policies, err := from.Get()
	if err != nil {
		return apierrors.NewInternalError(err)
	}
	if len(policies) == 0 || a.Object == nil || match.Exempt(a.Row) {
		return nil
	}
	round := roundsOf(a)
	if a.Round > 0 && round.last != nil && !equality.Semantic.DeepEqual(round.last, a.Object) {
		round.changed()
	}
	var r *request
	var faults []fault
	for _, p := range policies {
		row, ok, err := s.applies(a, p)
		if err == nil && !ok {
			continue
		}
		if err != nil {
			if !p.failOpen {
				faults = append(faults, fault{policy: p.name, err: err})
			}
			continue
		}
		if r == nil {
			if r, err = s.request(a); err != nil {
				return err
			}
		}
		for _, b := range p.bindings {
			if err := s.mutateUnder(ctx, r, p, b, row, round); err != nil && !p.failOpen {
				faults = append(faults, fault{p.name, b.name, err})
			}
		}
	}
	if r != nil && a.Round == 0 {
		round.last = a.Object.DeepCopyObject()
	}
	if len(faults) == 0 {
		return nil
	}
	refused := forbidden(a, faults[0].String(), metav1.StatusReasonInvalid)
	refused.ErrStatus.Message = faults[0].String()
	for _, f := range faults {
		refused.ErrStatus.Details.Causes = append(refused.ErrStatus.Details.Causes, metav1.StatusCause{Message: f.String()})
	}
	return refused
}

// mutateUnder carries out a policy's mutations under one binding. Each sees what those before it have changed.
func (s *server) mutateUnder(ctx context.Context, r *request, p *policy, b *binding, row *resources.Row, round *rounds) error {
	if ok, err := s.bound(r.a, b); err != nil || !ok {
		return err
	}
	params, err := s.params(p.paramKind, b.params, r.a.Namespace)
	if err != nil {
		return err
	}
	m, err := p.mutating()
	if err != nil {
		return err
	}
	var failed []error
	for _, param := range params {
		key := p.name + "\x00" + b.name
		if o, ok := param.(metav1.Object); ok {
			key += "\x00" + o.GetNamespace() + "/" + o.GetName()
		}
		if r.a.Round > 0 && !round.needed[key] {
			continue
		}
		in, err := s.input(r, r.view(row), param)
		if err != nil {
			return err
		}
		if len(m.conditions) > 0 {
			if met, err := m.conditions.Met(m.scope.Start(ctx, in, expr.ConditionBudget), s.cfg.Metrics.conditions(p.name, string(r.a.Operation))); err != nil {
				failed = append(failed, err)
				continue
			} else if !met {
				continue
			}
		}
		for _, c := range m.mutations {
			began := time.Now()
			altered, err := s.alter(ctx, r, m, c, row, param)
			s.cfg.Metrics.changed(p.name, b.name, err, time.Since(began))
			if err != nil {
				failed = append(failed, err)
				continue
			}
			if altered {
				clear(r.views)
				round.changed()
				r.a.Again()
			}
		}
		if p.again {
			round.asked[key] = true
		}
	}
	return errors.Join(failed...)
}

// alter carries out one mutation.
func (s *server) alter(ctx context.Context, r *request, m *mutator, c change, row *resources.Row, param runtime.Object) (bool, error) {
	v := r.view(row)
	if v.err != nil {
		return false, v.err
	}
	in, err := s.input(r, v, param)
	if err != nil {
		return false, err
	}
	got, err := m.scope.Start(ctx, in, expr.Budget).Eval(c.expression)
	if err != nil {
		return false, err
	}
	var next runtime.Object
	if c.apply {
		next, err = s.applied(v, got)
	} else {
		next, err = patched(v.obj, got)
	}
	if err != nil || next == nil || equality.Semantic.DeepEqual(v.obj, next) {
		return false, err
	}
	if err := match.Put(r.a, row, next); err != nil {
		return false, err
	}
	return true, nil
}

// applied lays an apply configuration over the object.
func (s *server) applied(v *view, got ref.Val) (runtime.Object, error) {
	val, ok := got.(*dynamic.ObjectVal)
	if !ok {
		return nil, fmt.Errorf("unsupported return type from ApplyConfiguration expression: %v", got.Type())
	}
	if err := val.CheckTypeNamesMatchFieldPathNames(); err != nil {
		return nil, fmt.Errorf("type mismatch: %w", err)
	}
	content, ok := val.Value().(map[string]any)
	live, typed := v.obj.(resources.Object)
	if !ok || !typed || reflect.TypeOf(v.obj) != reflect.TypeOf(v.row.New()) {
		return nil, fmt.Errorf("ApplyConfiguration does not fit %T", v.obj)
	}
	config := &unstructured.Unstructured{Object: content}
	config.SetGroupVersionKind(v.row.GVK())
	next, err := s.cfg.Merge(v.row, live, config)
	if err != nil {
		return nil, fmt.Errorf("error applying patch: %w", err)
	}
	next.GetObjectKind().SetGroupVersionKind(v.row.GVK())
	return next, nil
}

// patched applies a list of JSON patch operations; a test that fails leaves the object as it is.
func patched(obj runtime.Object, got ref.Val) (runtime.Object, error) {
	list, ok := got.(traits.Lister)
	if !ok {
		return nil, errors.New("type mismatch: JSONPatchType.expression should evaluate to array")
	}
	var patch jsonpatch.Patch
	for it := list.Iterator(); it.HasNext() == types.True; {
		native, err := it.Next().ConvertToNative(reflect.TypeFor[*mutation.JSONPatchVal]())
		if err != nil {
			return nil, fmt.Errorf("type mismatch: JSONPatchType.expression should evaluate to array of JSONPatch: %w", err)
		}
		one, err := operation(native.(*mutation.JSONPatchVal))
		if err != nil {
			return nil, err
		}
		patch = append(patch, one)
	}
	text, err := json.Marshal(obj)
	if err != nil {
		return nil, err
	}
	if text, err = patch.Apply(text); err != nil {
		if errors.Is(err, jsonpatch.ErrTestFailed) {
			return nil, nil
		}
		return nil, fmt.Errorf("JSON Patch: %w", err)
	}
	next := match.Empty(obj)
	into := any(next)
	if u, ok := next.(*unstructured.Unstructured); ok {
		into = &u.Object
	}
	strict, err := kjson.UnmarshalStrict(text, into)
	if err == nil {
		err = errors.Join(strict...)
	}
	if err != nil {
		return nil, apierrors.NewInternalError(err)
	}
	return next, nil
}

func operation(v *mutation.JSONPatchVal) (jsonpatch.Operation, error) {
	quoted := func(s string) *json.RawMessage {
		m := json.RawMessage(strconv.Quote(s))
		return &m
	}
	op := jsonpatch.Operation{"op": quoted(v.Op), "path": quoted(v.Path)}
	if v.From != "" {
		op["from"] = quoted(v.From)
	}
	if v.Val == nil {
		return op, nil
	}
	if o, ok := v.Val.(*dynamic.ObjectVal); ok {
		if err := o.CheckTypeNamesMatchFieldPathNames(); err != nil {
			return nil, fmt.Errorf("type mismatch: %w", err)
		}
	}
	native, err := v.Val.ConvertToNative(reflect.TypeFor[*structpb.Value]())
	if err != nil {
		return nil, fmt.Errorf("JSONPath valueExpression evaluated to a type that could not marshal to JSON: %w", err)
	}
	text, err := json.Marshal(native)
	if err != nil {
		return nil, fmt.Errorf("JSONPath valueExpression evaluated to a type that could not marshal to JSON: %w", err)
	}
	raw := json.RawMessage(text)
	op["value"] = &raw
	return op, nil
}
