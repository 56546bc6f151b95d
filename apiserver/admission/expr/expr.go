// Package expr compiles and runs the CEL expressions of webhooks and policies: the
// same libraries, variables and cost limits as upstream, so that an expression means
// here what it means there.
//
// A [Scope] is the environment of one webhook or policy: its variables are compiled
// once, in order, and each may use those before it. A [Run] is one request within a
// cost budget: a variable is worked out when it is first used, and kept. Scopes are
// safe for concurrent use once compiled; a Run belongs to one goroutine.
//
// Environments are made when the first expression needs them: a cluster without
// expressions does not pay for them.
//
// Source: Kubernetes documentation, "Common Expression Language in Kubernetes" and
// "Validating Admission Policy".
package expr

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"time"

	"github.com/google/cel-go/cel"
	"github.com/google/cel-go/common/types"
	"github.com/google/cel-go/common/types/ref"
	"github.com/google/cel-go/common/types/traits"
	"github.com/google/cel-go/interpreter"
	"k8s.io/apimachinery/pkg/util/version"
	celconfig "k8s.io/apiserver/pkg/apis/cel"
	apicel "k8s.io/apiserver/pkg/cel"
	"k8s.io/apiserver/pkg/cel/common"
	"k8s.io/apiserver/pkg/cel/environment"
	"k8s.io/apiserver/pkg/cel/lazy"
	"k8s.io/apiserver/pkg/cel/library"
	"k8s.io/apiserver/pkg/cel/mutation"
)

const (
	// Budget bounds the cost of a policy's expressions for one binding, in CEL's cost units: about a second.
	Budget int64 = celconfig.RuntimeCELCostBudget
	// ConditionBudget bounds the match conditions of one webhook or policy.
	ConditionBudget int64 = celconfig.RuntimeCELCostBudgetMatchConditions
	// MaxMessage is the longest message that a messageExpression may give, in bytes.
	MaxMessage = celconfig.MaxEvaluatedMessageExpressionSizeBytes
)

// ErrBudget ends a run: no further expression is evaluated.
var ErrBudget = errors.New("validation failed due to running out of cost budget, no further validation rules will be run")

// ErrCompile: the expression does not compile.
var ErrCompile = errors.New("compilation error")

// The names of the variables that expressions see.
const (
	object, oldObject, params, request, namespaceObject = "object", "oldObject", "params", "request", "namespaceObject"
	authorizer, requestResource, variables              = "authorizer", "authorizer.requestResource", "variables"
)

// The types that an expression may be asked for.
var (
	Bool        = cel.BoolType
	String      = cel.StringType
	Null        = cel.NullType
	Any         = cel.AnyType
	ApplyConfig = types.NewObjectType(mutation.ObjectTypeName)
	PatchList   = cel.ListType(types.NewObjectType(mutation.JSONPatchTypeName))
)

// Options say what an environment offers.
type Options struct {
	Params bool // the variable params
	Patch  bool // the types Object and JSONPatch
	Policy bool // the variable variables
	// New: only what the previous minor version knows as well, so that a server that
	// has not been upgraded yet can run what is accepted now. Otherwise everything known.
	New bool
	// ObjectType and ParamsType take the place of dynamic types when expressions are type-checked.
	ObjectType, ParamsType *apicel.DeclType
}

// base is the environment before its variables: one minor version behind, as upstream has it.
var base = sync.OnceValue(func() *environment.EnvSet { return environment.MustBaseEnvSet(version.MajorMinor(1, 35)) })

// since: what is declared here belongs to every version.
var since = version.MajorMinor(1, 0)

type shape struct{ params, patch bool }

var (
	shapesMu sync.Mutex
	// shapes keeps the environments without policy variables: at most four.
	shapes = map[shape]*environment.EnvSet{}
)

func environmentFor(o Options) (*environment.EnvSet, error) {
	plain := o.ObjectType == nil && o.ParamsType == nil
	key := shape{o.Params, o.Patch}
	shapesMu.Lock()
	defer shapesMu.Unlock()
	if e := shapes[key]; plain && e != nil {
		return e, nil
	}
	typeOf := func(t *apicel.DeclType) *cel.Type {
		if t == nil {
			return cel.DynType
		}
		return t.CelType()
	}
	decl := []*apicel.DeclType{namespaceType(), requestType()}
	opts := []cel.EnvOption{
		cel.Variable(object, typeOf(o.ObjectType)), cel.Variable(oldObject, typeOf(o.ObjectType)),
		cel.Variable(namespaceObject, decl[0].CelType()), cel.Variable(request, decl[1].CelType()),
		cel.Variable(authorizer, library.AuthorizerType), cel.Variable(requestResource, library.ResourceCheckType),
	}
	if o.Params {
		opts = append(opts, cel.Variable(params, typeOf(o.ParamsType)))
	}
	for _, t := range []*apicel.DeclType{o.ObjectType, o.ParamsType} {
		if t != nil {
			decl = append(decl, t)
		}
	}
	e, err := base().Extend(environment.VersionedOptions{IntroducedVersion: since, EnvOptions: opts, DeclTypes: decl}, environment.StrictCostOpt)
	if err == nil && o.Patch {
		e, err = e.Extend(environment.VersionedOptions{IntroducedVersion: since, EnvOptions: []cel.EnvOption{
			common.ResolverEnvOption(&mutation.DynamicTypeResolver{}), environment.UnversionedLib(library.JSONPatch),
		}})
	}
	if err != nil {
		return nil, fmt.Errorf("CEL environment: %w", err)
	}
	if plain {
		shapes[key] = e
	}
	return e, nil
}

// Scope is where the expressions of one webhook or policy are compiled.
type Scope struct {
	env   *cel.Env
	vars  *apicel.DeclType
	named []named
}

type named struct {
	name string
	p    *Program
}

// Program is one compiled expression, or the reason why it does not compile.
type Program struct {
	Text string
	Err  error
	prog cel.Program
	kind *cel.Type
}

// NewScope makes an environment.
func NewScope(o Options) (*Scope, error) {
	set, err := environmentFor(o)
	if err != nil {
		return nil, err
	}
	s := &Scope{}
	if o.Policy {
		s.vars = apicel.NewObjectType("kubernetes.variables", map[string]*apicel.DeclField{})
		set, err = set.Extend(environment.VersionedOptions{
			IntroducedVersion: since, EnvOptions: []cel.EnvOption{cel.Variable(variables, s.vars.CelType())}, DeclTypes: []*apicel.DeclType{s.vars},
		})
		if err != nil {
			return nil, fmt.Errorf("CEL environment: %w", err)
		}
	}
	s.env = set.StoredExpressionsEnv()
	if o.New {
		s.env = set.NewExpressionsEnv()
	}
	return s, nil
}

// Variable compiles a variable; later expressions know it with the type that it has.
func (s *Scope) Variable(name, text string) *Program {
	p := s.Compile(text, Any)
	s.named = append(s.named, named{name, p})
	s.vars.Fields[name] = apicel.NewDeclField(name, declared(p.kind), true, nil, nil)
	return p
}

// Compile compiles an expression of one of the wanted types.
func (s *Scope) Compile(text string, want ...*cel.Type) *Program {
	p := &Program{Text: text}
	ast, issues := s.env.Compile(text)
	if issues != nil {
		p.Err = fmt.Errorf("compilation failed: %s", issues)
		return p
	}
	p.kind = ast.OutputType()
	if !wanted(p.kind, want) {
		if len(want) == 1 {
			p.Err = fmt.Errorf("must evaluate to %v but got %v", want[0], p.kind)
		} else {
			p.Err = fmt.Errorf("must evaluate to one of %v but got %v", want, p.kind)
		}
		return p
	}
	if p.prog, p.Err = s.env.Program(ast, cel.InterruptCheckFrequency(celconfig.CheckFrequency)); p.Err != nil {
		p.Err = fmt.Errorf("program instantiation failed: %w", p.Err)
	}
	return p
}

func wanted(got *cel.Type, want []*cel.Type) bool {
	for _, w := range want {
		if w == Any || got.IsExactType(w) {
			return true
		}
	}
	return false
}

// declared is a CEL type as the type of a field.
func declared(t *cel.Type) *apicel.DeclType {
	switch t {
	case nil:
		return apicel.DynType
	case cel.AnyType:
		return apicel.AnyType
	case cel.BoolType:
		return apicel.BoolType
	case cel.BytesType:
		return apicel.BytesType
	case cel.DoubleType:
		return apicel.DoubleType
	case cel.DurationType:
		return apicel.DurationType
	case cel.IntType:
		return apicel.IntType
	case cel.NullType:
		return apicel.NullType
	case cel.StringType:
		return apicel.StringType
	case cel.TimestampType:
		return apicel.TimestampType
	case cel.UintType:
		return apicel.UintType
	}
	if t.HasTrait(traits.ContainerType) && t.HasTrait(traits.IndexerType) {
		switch of := t.Parameters(); len(of) {
		case 1:
			return apicel.NewListType(declared(of[0]), -1)
		case 2:
			return apicel.NewMapType(declared(of[0]), declared(of[1]), -1)
		}
	}
	return apicel.DynType
}

// Input is what the variables stand for: JSON-like values, nil for null.
type Input struct {
	Object, Old, Params, Request, Namespace any
	Authorizer, Resource                    ref.Val
}

// Run evaluates expressions for one request.
type Run struct {
	ctx   context.Context
	in    Input
	vars  ref.Val
	left  int64
	spent int64 // by variables, since the last expression
}

// Start begins a run within a cost budget.
func (s *Scope) Start(ctx context.Context, in Input, budget int64) *Run {
	r := &Run{ctx: ctx, in: in, left: budget}
	if s.vars != nil {
		m := lazy.NewMapValue(s.vars)
		for _, n := range s.named {
			m.Append(n.name, func(*lazy.MapValue) ref.Val { return r.variable(n) })
		}
		r.vars = m
	}
	return r
}

func (r *Run) variable(n named) ref.Val {
	if n.p.Err != nil {
		return types.NewErr("composited variable %q fails to compile: %v", n.name, n.p.Err)
	}
	v, details, err := n.p.prog.ContextEval(r.ctx, r)
	if details != nil {
		if c := details.ActualCost(); c != nil {
			r.spent += int64(min(*c, math.MaxInt32))
		}
	}
	if err != nil {
		return types.NewErr("composited variable %q fails to evaluate: %v", n.name, err)
	}
	return v
}

// Eval evaluates one expression. ErrBudget is for the whole run, any other error for this expression alone.
func (r *Run) Eval(p *Program) (ref.Val, error) {
	if p.Err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCompile, p.Err)
	}
	v, details, err := p.prog.ContextEval(r.ctx, r)
	cost := r.spent
	r.spent = 0
	if details == nil || details.ActualCost() == nil {
		return nil, fmt.Errorf("runtime cost could not be calculated for expression: %v, no further expression will be run", p.Text)
	}
	cost += int64(min(*details.ActualCost(), math.MaxInt32))
	if cost > r.left {
		r.left = 0
		return nil, ErrBudget
	}
	r.left -= cost
	if err != nil {
		return nil, fmt.Errorf("expression '%v' resulted in error: %w", p.Text, err)
	}
	return v, nil
}

// ResolveName gives CEL the value of a variable.
func (r *Run) ResolveName(name string) (any, bool) {
	switch name {
	case object:
		return r.in.Object, true
	case oldObject:
		return r.in.Old, true
	case params:
		return r.in.Params, true
	case request:
		return r.in.Request, true
	case namespaceObject:
		return r.in.Namespace, true
	case authorizer:
		return r.in.Authorizer, r.in.Authorizer != nil
	case requestResource:
		return r.in.Resource, r.in.Resource != nil
	case variables:
		return r.vars, true
	}
	return nil, false
}

// Parent is nil: there is no wider scope.
func (r *Run) Parent() interpreter.Activation { return nil }

// Conditions are the match conditions of one webhook or policy.
type Conditions []*Program

// Met reports whether all conditions hold. One that is false decides, whatever
// the others say; otherwise an error is the answer.
func (c Conditions) Met(r *Run, of About) (met bool, err error) {
	var faults []error
	began := time.Now()
	defer func() { of.done(met, len(faults), time.Since(began)) }()
	for _, p := range c {
		v, err := r.Eval(p)
		switch {
		case errors.Is(err, ErrBudget):
			faults = append(faults, err)
			return false, err
		case err != nil:
			faults = append(faults, err)
		case v != types.True:
			faults = nil
			return false, nil
		}
	}
	if len(faults) > 0 {
		return false, errors.Join(faults...)
	}
	return true, nil
}
