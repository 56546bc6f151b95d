// Package match decides whether a webhook or a policy is about a request: by
// operation, resource, scope, name, and the labels of object and namespace.
//
// [New] checks the selectors once; [Criteria.Match] reads only the request and, for
// a namespace's labels, the tree. It starts nothing and changes nothing.
//
// Source: Kubernetes documentation, "Dynamic Admission Control", "Matching requests".
package match

import (
	"fmt"
	"reflect"
	"slices"
	"strings"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/keelson/keelson/apiserver/admission"
	"github.com/keelson/keelson/apiserver/resources"
)

// Criteria are compiled rules and selectors. The zero value matches nothing.
type Criteria struct {
	rules, exclude      []admissionv1.NamedRuleWithOperations
	equivalent          bool
	namespaces, objects labels.Selector
}

// New reads the match part of a policy or a webhook. A binding has no rules of its own: everything.
func New(m *admissionv1.MatchResources) (*Criteria, error) {
	if m == nil {
		m = &admissionv1.MatchResources{}
	}
	c := &Criteria{
		rules: m.ResourceRules, exclude: m.ExcludeResourceRules,
		equivalent: m.MatchPolicy == nil || *m.MatchPolicy == admissionv1.Equivalent,
	}
	var err error
	if c.namespaces, err = selector(m.NamespaceSelector); err != nil {
		return nil, fmt.Errorf("namespaceSelector: %w", err)
	}
	if c.objects, err = selector(m.ObjectSelector); err != nil {
		return nil, fmt.Errorf("objectSelector: %w", err)
	}
	return c, nil
}

// selector: unlike elsewhere, no selector selects everything.
func selector(s *metav1.LabelSelector) (labels.Selector, error) {
	if s == nil {
		return labels.Everything(), nil
	}
	return metav1.LabelSelectorAsSelector(s)
}

// Match reports whether the request is meant. row is the resource in the version
// that the rules name: the request's own, or another view of the same storage.
// all are the rows that are served now.
func (c *Criteria) Match(a *admission.Attributes, read resources.Reader, all []*resources.Row) (row *resources.Row, ok bool, err error) {
	// The cheap and common refusal first. A binding without rules means everything.
	row = a.Row
	if len(c.rules) > 0 {
		if row = c.hit(c.rules, a, all); row == nil {
			return nil, false, nil
		}
	}
	if len(c.exclude) > 0 && c.hit(c.exclude, a, all) != nil {
		return nil, false, nil
	}
	if !c.objects.Empty() && !labelled(c.objects, a.Object) && !labelled(c.objects, a.Old) {
		return nil, false, nil
	}
	if ok, err = c.namespace(a, read); err != nil || !ok {
		return nil, false, err
	}
	return row, true, nil
}

func (c *Criteria) hit(rules []admissionv1.NamedRuleWithOperations, a *admission.Attributes, all []*resources.Row) *resources.Row {
	for i := range rules {
		if about(&rules[i], a, a.Row) {
			return a.Row
		}
	}
	if !c.equivalent {
		return nil
	}
	storage := a.Row.Storage()
	for _, other := range all {
		if other == a.Row || other.Storage() != storage || storage == nil {
			continue
		}
		for i := range rules {
			if about(&rules[i], a, other) {
				return other
			}
		}
	}
	return nil
}

func about(r *admissionv1.NamedRuleWithOperations, a *admission.Attributes, row *resources.Row) bool {
	if len(r.ResourceNames) > 0 && !slices.Contains(r.ResourceNames, a.Name) {
		return false
	}
	return operation(r.Operations, a.Operation) && among(r.APIGroups, row.Group) && among(r.APIVersions, row.Version) &&
		scope(r.Scope, a) && resource(r.Resources, row.Plural, a.Subresource)
}

func among(list []string, s string) bool {
	return slices.Contains(list, "*") || slices.Contains(list, s)
}

func operation(list []admissionv1.OperationType, op admission.Operation) bool {
	return slices.Contains(list, admissionv1.OperationAll) || slices.Contains(list, admissionv1.OperationType(op))
}

// scope: a Namespace is cluster-scoped although requests on it carry its name as namespace.
func scope(s *admissionv1.ScopeType, a *admission.Attributes) bool {
	if s == nil || *s == admissionv1.AllScopes {
		return true
	}
	namespaced := a.Row.Namespaced && a.Namespace != ""
	return namespaced == (*s == admissionv1.NamespacedScope)
}

// resource: "pods" is the resource alone, "pods/*" and "*/*" include subresources.
func resource(list []string, plural, sub string) bool {
	for _, entry := range list {
		res, s, _ := strings.Cut(entry, "/")
		if (res == "*" || res == plural) && (s == "*" || s == sub) {
			return true
		}
	}
	return false
}

func labelled(sel labels.Selector, obj runtime.Object) bool {
	if m, ok := obj.(metav1.Object); ok && !isNil(obj) {
		return sel.Matches(labels.Set(m.GetLabels()))
	}
	return false
}

func isNil(obj runtime.Object) bool {
	if obj == nil {
		return true
	}
	v := reflect.ValueOf(obj)
	return v.Kind() == reflect.Pointer && v.IsNil()
}

var grNamespaces = schema.GroupResource{Resource: "namespaces"}

// namespace applies the namespace selector: to the namespace that the object is in, or to
// the object itself when it is a namespace. Other cluster-scoped objects always match.
func (c *Criteria) namespace(a *admission.Attributes, read resources.Reader) (bool, error) {
	if c.namespaces.Empty() {
		return true, nil
	}
	if a.Row.GR() == grNamespaces {
		if a.Operation == admission.Create || a.Operation == admission.Update {
			if ns, ok := a.Object.(*corev1.Namespace); ok && a.Subresource == "" {
				return c.namespaces.Matches(labels.Set(ns.Labels)), nil
			}
		}
		if ns, ok := a.Old.(*corev1.Namespace); ok {
			return c.namespaces.Matches(labels.Set(ns.Labels)), nil
		}
	}
	name := a.Namespace
	if a.Row.GR() == grNamespaces {
		name = a.Name
	} else if !a.Row.Namespaced || name == "" {
		return true, nil
	}
	ns, err := Namespace(read, name)
	if err != nil {
		return false, err
	}
	return c.namespaces.Matches(labels.Set(ns.Labels)), nil
}

// Namespace reads a namespace; that there is none is 404.
func Namespace(read resources.Reader, name string) (*corev1.Namespace, error) {
	ns, err := resources.Lookup[corev1.Namespace](read, grNamespaces, "", name)
	if err == nil && ns == nil {
		err = apierrors.NewNotFound(grNamespaces, name)
	}
	return ns, err
}

// Exempt: what configures admission is beyond its reach, so that a wrong
// configuration can always be taken away.
func Exempt(row *resources.Row) bool {
	return row.Group == "admissionregistration.k8s.io"
}

// As is an object of the request in the version of row, its kind set. It is a copy
// that the caller owns; nil stays nil.
func As(a *admission.Attributes, row *resources.Row, obj runtime.Object) (runtime.Object, error) {
	if isNil(obj) {
		return nil, nil
	}
	obj = obj.DeepCopyObject()
	kind := admission.KindIn(row, a.Subresource)
	if row != a.Row {
		var err error
		if obj, err = convert(a.Row, row, obj); err != nil {
			return nil, err
		}
	}
	if kind != a.Row.GVK() || row != a.Row || obj.GetObjectKind().GroupVersionKind().Empty() {
		obj.GetObjectKind().SetGroupVersionKind(kind)
	}
	return obj, nil
}

// Pruner is what Row.Custom may implement to drop fields that its kind does not have.
type Pruner interface{ Prune(obj resources.Object) }

// Put makes obj, which is in the version of row, the request's object: its content
// takes the place of what is there, defaults are set again.
func Put(a *admission.Attributes, row *resources.Row, obj runtime.Object) error {
	if row != a.Row {
		var err error
		if obj, err = convert(row, a.Row, obj); err != nil {
			return err
		}
	}
	obj.GetObjectKind().SetGroupVersionKind(a.Object.GetObjectKind().GroupVersionKind())
	if o, ok := obj.(resources.Object); ok && a.Kind() == a.Row.GVK() {
		if p, ok := a.Row.Custom.(Pruner); ok {
			p.Prune(o)
		}
		a.Row.Default(o)
	}
	reflect.ValueOf(a.Object).Elem().Set(reflect.ValueOf(obj).Elem())
	return nil
}

// convert goes through the stored version. Subresources with a kind of their own have only one.
func convert(from, to *resources.Row, obj runtime.Object) (runtime.Object, error) {
	o, ok := obj.(resources.Object)
	if !ok || reflect.TypeOf(obj) != reflect.TypeOf(from.New()) {
		return obj, nil
	}
	var err error
	if from.ToStored != nil {
		if o, err = from.ToStored(o); err != nil {
			return nil, apierrors.NewInternalError(err)
		}
	}
	if to.FromStored != nil {
		if o, err = to.FromStored(o); err != nil {
			return nil, apierrors.NewInternalError(err)
		}
	}
	return o, nil
}

// Empty is an empty object of the type of obj, which may be unstructured.
func Empty(obj runtime.Object) runtime.Object {
	return reflect.New(reflect.TypeOf(obj).Elem()).Interface().(runtime.Object)
}
