// Package policy carries out ValidatingAdmissionPolicy and MutatingAdmissionPolicy:
// CEL expressions that the cluster's users have stored, and the bindings that say where
// they hold and with which parameters.
//
// [New] gives the plugins. Policies are taken in the order of their names, and so are
// their bindings. A policy is compiled when a request first matches it and kept while it and its
// bindings are unchanged; nothing is kept of what was deleted. The bound on the work
// of one request is CEL's cost budget for each binding.
//
// Policies and bindings themselves are exempt, so that a bad one can always be removed.
//
// Source: Kubernetes documentation, "Validating Admission Policy" and "Mutating Admission Policy".
package policy

import (
	"context"
	"errors"
	"fmt"
	"sync"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/keelson/keelson/apiserver/admission"
	"github.com/keelson/keelson/apiserver/admission/expr"
	"github.com/keelson/keelson/apiserver/admission/match"
	"github.com/keelson/keelson/apiserver/authz"
	"github.com/keelson/keelson/apiserver/resources"
)

const group = "admissionregistration.k8s.io"

// The resources of policies and bindings; their etcd prefixes are the same words.
const (
	ValidatingPolicies = "validatingadmissionpolicies"
	ValidatingBindings = "validatingadmissionpolicybindings"
	MutatingPolicies   = "mutatingadmissionpolicies"
	MutatingBindings   = "mutatingadmissionpolicybindings"
)

// Config is what policies need of the server.
type Config struct {
	Read resources.Reader
	// Rows are the resources served now.
	Rows func() []*resources.Row
	// Changed makes a function that gives the revision of the last change below any of the prefixes; nil: always read again.
	Changed    func(prefixes ...string) func() int64
	Authorizer authz.Authorizer
	// Merge lays an apply configuration over an object.
	Merge func(row *resources.Row, live resources.Object, config *unstructured.Unstructured) (resources.Object, error)
	// Metrics count; nil: nobody asks.
	Metrics *Metrics
}

// New returns the plugins MutatingAdmissionPolicy and ValidatingAdmissionPolicy.
func New(cfg Config) (mutating, validating admission.Plugin) {
	s := &server{cfg: cfg}
	follow := func(build func(old []*policy) ([]*policy, error), prefixes ...string) *match.Followed[[]*policy] {
		f := &match.Followed[[]*policy]{Build: build}
		if cfg.Changed != nil {
			f.Changed = cfg.Changed(prefixes...)
		}
		return f
	}
	change := follow(s.loadMutating, MutatingPolicies, MutatingBindings)
	check := follow(s.loadValidating, ValidatingPolicies, ValidatingBindings)
	return admission.Plugin{
			Name:   "MutatingAdmissionPolicy",
			Mutate: func(ctx context.Context, a *admission.Attributes) error { return s.mutate(ctx, a, change) },
		}, admission.Plugin{
			Name: "ValidatingAdmissionPolicy",
			Validate: func(ctx context.Context, a *admission.Attributes) (func(), error) {
				return nil, s.validate(ctx, a, check)
			},
		}
}

type server struct{ cfg Config }

// policy is a stored policy and what is worked out of it.
type policy struct {
	name, rev  string
	paramKind  *admissionv1.ParamKind
	failOpen   bool
	criteria   *match.Criteria
	fault      error // of the match part
	bindings   []*binding
	validating func() (*validator, error) // compiled when first needed; nil for mutating policies
	mutating   func() (*mutator, error)
	again      bool // reinvocationPolicy IfNeeded
}

// binding says where a policy holds.
type binding struct {
	name     string
	params   *admissionv1.ParamRef
	actions  []admissionv1.ValidationAction
	criteria *match.Criteria
	fault    error
}

func revision(o resources.Object) string { return string(o.GetUID()) + "/" + o.GetResourceVersion() }

// each lists one of the configuring resources by name.
func each[T any](s *server, plural string, f func(*T)) error {
	return s.cfg.Read.Each(schema.GroupResource{Group: group, Resource: plural}, "", func(o resources.Object) bool {
		if t, ok := any(o).(*T); ok {
			f(t)
		}
		return true
	})
}

// keep returns the policy as it was compiled before when nothing about it has changed; bindings are taken anew.
func keep(old []*policy, p *policy) *policy {
	for _, was := range old {
		if was.name == p.name && was.rev == p.rev {
			next := *was
			next.bindings = p.bindings
			return &next
		}
	}
	return p
}

func (s *server) loadValidating(old []*policy) ([]*policy, error) {
	bound := map[string][]*binding{}
	err := each(s, ValidatingBindings, func(b *admissionv1.ValidatingAdmissionPolicyBinding) {
		x := &binding{name: b.Name, params: b.Spec.ParamRef, actions: b.Spec.ValidationActions}
		x.criteria, x.fault = match.New(b.Spec.MatchResources)
		bound[b.Spec.PolicyName] = append(bound[b.Spec.PolicyName], x)
	})
	if err != nil {
		return nil, err
	}
	var out []*policy
	err = each(s, ValidatingPolicies, func(o *admissionv1.ValidatingAdmissionPolicy) {
		if len(bound[o.Name]) == 0 {
			return
		}
		spec := o.Spec
		p := &policy{name: o.Name, rev: revision(o), paramKind: spec.ParamKind, failOpen: ignores(spec.FailurePolicy), bindings: bound[o.Name]}
		p.criteria, p.fault = constraints(spec.MatchConstraints)
		p.validating = sync.OnceValues(func() (*validator, error) { return compileValidator(&spec, false) })
		out = append(out, keep(old, p))
	})
	return out, err
}

func (s *server) loadMutating(old []*policy) ([]*policy, error) {
	bound := map[string][]*binding{}
	err := each(s, MutatingBindings, func(b *admissionv1.MutatingAdmissionPolicyBinding) {
		x := &binding{name: b.Name, params: b.Spec.ParamRef}
		x.criteria, x.fault = match.New(b.Spec.MatchResources)
		bound[b.Spec.PolicyName] = append(bound[b.Spec.PolicyName], x)
	})
	if err != nil {
		return nil, err
	}
	var out []*policy
	err = each(s, MutatingPolicies, func(o *admissionv1.MutatingAdmissionPolicy) {
		if len(bound[o.Name]) == 0 {
			return
		}
		spec := o.Spec
		p := &policy{
			name: o.Name, rev: revision(o), paramKind: spec.ParamKind, failOpen: ignores(spec.FailurePolicy), bindings: bound[o.Name],
			again: spec.ReinvocationPolicy == admissionv1.IfNeededReinvocationPolicy,
		}
		p.criteria, p.fault = constraints(spec.MatchConstraints)
		p.mutating = sync.OnceValues(func() (*mutator, error) { return compileMutator(&spec, false) })
		out = append(out, keep(old, p))
	})
	return out, err
}

func ignores(p *admissionv1.FailurePolicyType) bool {
	return p != nil && *p == admissionv1.Ignore
}

// constraints: a policy without rules matches nothing.
func constraints(m *admissionv1.MatchResources) (*match.Criteria, error) {
	if m == nil || len(m.ResourceRules) == 0 {
		return nil, nil
	}
	return match.New(m)
}

// applies reports whether the policy is about the request, and in which version of the resource.
func (s *server) applies(a *admission.Attributes, p *policy) (*resources.Row, bool, error) {
	if p.fault != nil || p.criteria == nil {
		return nil, false, p.fault
	}
	return p.criteria.Match(a, s.cfg.Read, s.cfg.Rows())
}

func (s *server) bound(a *admission.Attributes, b *binding) (bool, error) {
	if b.fault != nil {
		return false, b.fault
	}
	_, ok, err := b.criteria.Match(a, s.cfg.Read, s.cfg.Rows())
	return ok, err
}

// request is one request as the policies see it.
type request struct {
	a     *admission.Attributes
	ns    *corev1.Namespace
	views map[*resources.Row]*view
}

type view struct {
	row      *resources.Row
	obj, old runtime.Object
	err      error // why they cannot be had in this version
}

var grNamespaces = schema.GroupResource{Resource: "namespaces"}

func (s *server) request(a *admission.Attributes) (*request, error) {
	r := &request{a: a, views: map[*resources.Row]*view{}}
	if a.Namespace == "" || !a.Row.Namespaced || a.Row.GR() == grNamespaces {
		return r, nil
	}
	var err error
	r.ns, err = match.Namespace(s.cfg.Read, a.Namespace)
	return r, err
}

func (r *request) view(row *resources.Row) *view {
	v := r.views[row]
	if v == nil {
		v = &view{row: row}
		if v.obj, v.err = match.As(r.a, row, r.a.Object); v.err == nil {
			v.old, v.err = match.As(r.a, row, r.a.Old)
		}
		r.views[row] = v
	}
	return v
}

func (s *server) input(r *request, v *view, param runtime.Object) (expr.Input, error) {
	if v.err != nil {
		return expr.Input{}, v.err
	}
	return expr.InputOf(r.a, v.row, v.obj, v.old, param, r.ns, s.cfg.Authorizer)
}

// params are the parameter objects of a binding; one nil when there are none to be used.
func (s *server) params(kind *admissionv1.ParamKind, ref *admissionv1.ParamRef, namespace string) ([]runtime.Object, error) {
	if kind == nil || ref == nil {
		return []runtime.Object{nil}, nil
	}
	row := s.paramRow(kind)
	if row == nil {
		return nil, fmt.Errorf("failed to find resource referenced by paramKind: '%s'", schema.FromAPIVersionAndKind(kind.APIVersion, kind.Kind))
	}
	in := ""
	switch {
	case row.Namespaced && ref.Namespace != "":
		in = ref.Namespace
	case row.Namespaced && namespace == "":
		return nil, errors.New("cannot use namespaced paramRef in policy binding that matches cluster-scoped resources")
	case row.Namespaced:
		in = namespace
	case ref.Namespace != "":
		return nil, errors.New("paramRef.namespace must not be provided for a cluster-scoped `paramKind`")
	}
	var found []runtime.Object
	var failed error
	add := func(o resources.Object) {
		c := o.DeepCopyObject().(resources.Object)
		if row.FromStored != nil {
			var err error
			if c, err = row.FromStored(c); err != nil {
				failed = err
				return
			}
		}
		c.GetObjectKind().SetGroupVersionKind(row.GVK())
		found = append(found, c)
	}
	switch {
	case ref.Name != "":
		o, err := s.cfg.Read.Get(row.GR(), in, ref.Name)
		if err != nil {
			return nil, err
		}
		if o != nil {
			add(o)
		}
	case ref.Selector != nil:
		sel, err := metav1.LabelSelectorAsSelector(ref.Selector)
		if err != nil {
			return nil, err
		}
		if err := s.cfg.Read.Each(row.GR(), in, func(o resources.Object) bool {
			if sel.Matches(labels.Set(o.GetLabels())) {
				add(o)
			}
			return true
		}); err != nil {
			return nil, err
		}
	default:
		return nil, errors.New("one of name or selector must be provided")
	}
	if failed != nil {
		return nil, failed
	}
	if len(found) == 0 && ref.ParameterNotFoundAction != nil && *ref.ParameterNotFoundAction == admissionv1.DenyAction {
		return nil, errors.New("no params found for policy binding with `Deny` parameterNotFoundAction")
	}
	return found, nil
}

func (s *server) paramRow(kind *admissionv1.ParamKind) *resources.Row {
	gvk := schema.FromAPIVersionAndKind(kind.APIVersion, kind.Kind)
	for _, r := range s.cfg.Rows() {
		if r.GVK() == gvk && r.Can("get") {
			return r
		}
	}
	return nil
}

// forbidden is the client's answer, with a reason and code of its own.
func forbidden(a *admission.Attributes, message string, reason metav1.StatusReason) *apierrors.StatusError {
	name := a.Called()
	if m, ok := a.Object.(metav1.Object); ok && name == "" {
		if name = m.GetName(); name == "" {
			name = m.GetGenerateName()
		}
	}
	err := apierrors.NewForbidden(a.Row.GR(), name, errors.New(message))
	err.ErrStatus.Reason = reason
	err.ErrStatus.Code = map[metav1.StatusReason]int32{
		metav1.StatusReasonForbidden: 403, metav1.StatusReasonUnauthorized: 401, metav1.StatusReasonRequestEntityTooLarge: 413,
	}[reason]
	if err.ErrStatus.Code == 0 {
		err.ErrStatus.Code = 422
	}
	return err
}
