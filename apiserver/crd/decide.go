package crd

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"time"

	"k8s.io/apiextensions-apiserver/pkg/apihelpers"
	crdv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	structural "k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Taken are the names that definitions of one group hold.
type Taken struct{ Resources, Kinds sets.Set[string] }

// take adds what a definition holds.
func (t Taken) take(n crdv1.CustomResourceDefinitionNames) {
	t.Resources.Insert(n.Plural, n.Singular)
	t.Resources.Insert(n.ShortNames...)
	t.Kinds.Insert(n.Kind, n.ListKind)
}

// Decide returns the status that a definition should have next, nil when it has it.
// taken are the names of its whole group, its own included; served tells that requests
// for it are answered already.
//
//	requested → NamesAccepted → served → Established
//
// Source: Kubernetes API reference, CustomResourceDefinition, and what `kubectl
// describe crd` of a 1.36 cluster shows.
func Decide(c *crdv1.CustomResourceDefinition, taken Taken, served bool, now time.Time) *crdv1.CustomResourceDefinitionStatus {
	next := c.Status.DeepCopy()
	set := func(kind crdv1.CustomResourceDefinitionConditionType, status crdv1.ConditionStatus, reason, message string) {
		put(next, crdv1.CustomResourceDefinitionCondition{Type: kind, Status: status, Reason: reason, Message: message}, now)
	}
	established := isTrue(&c.Status, crdv1.Established)
	accepted := isTrue(&c.Status, crdv1.NamesAccepted)
	if !reflect.DeepEqual(c.Spec.Names, c.Status.AcceptedNames) {
		names, reason, err := accept(c.Spec.Names, c.Status.AcceptedNames, taken)
		next.AcceptedNames = names
		if accepted = err == nil; accepted {
			set(crdv1.NamesAccepted, crdv1.ConditionTrue, "NoConflicts", "no conflicts found")
		} else {
			set(crdv1.NamesAccepted, crdv1.ConditionFalse, reason, err.Error())
		}
		switch {
		case established:
		case accepted:
			set(crdv1.Established, crdv1.ConditionFalse, "Installing", "the initial names have been accepted")
		case find(next, crdv1.Established) == nil:
			set(crdv1.Established, crdv1.ConditionFalse, "NotAccepted", "not all names are accepted")
		}
	}
	if accepted && served && !established && c.DeletionTimestamp == nil {
		set(crdv1.Established, crdv1.ConditionTrue, "InitialNamesAccepted", "the initial names have been accepted")
	}
	if cond := faults(c); cond != nil {
		put(next, *cond, now)
	} else {
		next.Conditions = slices.DeleteFunc(next.Conditions, func(c crdv1.CustomResourceDefinitionCondition) bool {
			return c.Type == crdv1.NonStructuralSchema
		})
	}
	if cond := approval(c); cond != nil {
		put(next, *cond, now)
	}
	if reflect.DeepEqual(*next, c.Status) {
		return nil
	}
	return next
}

// accept takes each name that is free or held already; the others stay as they were.
func accept(want, have crdv1.CustomResourceDefinitionNames, taken Taken) (out crdv1.CustomResourceDefinitionNames, reason string, err error) {
	out = have
	free := func(name, held string, in sets.Set[string]) error {
		if name != held && in.Has(name) {
			return fmt.Errorf("%q is already in use", name)
		}
		return nil
	}
	one := func(name string, held *string, in sets.Set[string], why string) {
		if e := free(name, *held, in); e != nil {
			reason, err = why, e
			return
		}
		*held = name
	}
	one(want.Plural, &out.Plural, taken.Resources, "PluralConflict")
	one(want.Singular, &out.Singular, taken.Resources, "SingularConflict")
	var short []error
	for _, s := range want.ShortNames {
		if !slices.Contains(have.ShortNames, s) {
			short = append(short, free(s, "", taken.Resources))
		}
	}
	if e := errors.Join(short...); e != nil {
		reason, err = "ShortNamesConflict", utilerrors.NewAggregate(short)
	} else {
		out.ShortNames = slices.Clone(want.ShortNames)
	}
	one(want.Kind, &out.Kind, taken.Kinds, "KindConflict")
	one(want.ListKind, &out.ListKind, taken.Kinds, "ListKindConflict")
	out.Categories = slices.Clone(want.Categories)
	return out, reason, err
}

// faults is the condition NonStructuralSchema, nil when all schemas are structural.
func faults(c *crdv1.CustomResourceDefinition) *crdv1.CustomResourceDefinitionCondition {
	cond := &crdv1.CustomResourceDefinitionCondition{Type: crdv1.NonStructuralSchema, Status: crdv1.ConditionTrue, Reason: "Violations"}
	var errs field.ErrorList
	if c.Spec.PreserveUnknownFields {
		errs = append(errs, field.Invalid(field.NewPath("spec", "preserveUnknownFields"), true, "must be false"))
	}
	for i := range c.Spec.Versions {
		v := &c.Spec.Versions[i]
		props, err := schemaOf(v)
		if err != nil || props == nil {
			continue
		}
		s, err := structural.NewStructural(props)
		if err != nil {
			cond.Status, cond.Reason = crdv1.ConditionUnknown, "StructuralError"
			cond.Message = fmt.Sprintf("failed to check validation schema for version %s: %v", v.Name, err)
			return cond
		}
		errs = append(errs, structural.ValidateStructural(field.NewPath("spec", "versions").Index(i).Child("schema", "openAPIV3Schema"), s)...)
	}
	if len(errs) == 0 {
		return nil
	}
	cond.Message = errs.ToAggregate().Error()
	return cond
}

// approval is the condition of definitions in groups of the Kubernetes community.
func approval(c *crdv1.CustomResourceDefinition) *crdv1.CustomResourceDefinitionCondition {
	if !apihelpers.IsProtectedCommunityGroup(c.Spec.Group) {
		return nil
	}
	state, text := apihelpers.GetAPIApprovalState(c.Annotations)
	cond := &crdv1.CustomResourceDefinitionCondition{
		Type: crdv1.KubernetesAPIApprovalPolicyConformant, Status: crdv1.ConditionFalse, Message: text,
	}
	switch state {
	case apihelpers.APIApproved:
		cond.Status, cond.Reason = crdv1.ConditionTrue, "ApprovedAnnotation"
	case apihelpers.APIApprovalBypassed:
		cond.Reason = "UnapprovedAnnotation"
	case apihelpers.APIApprovalMissing:
		cond.Reason = "MissingAnnotation"
	case apihelpers.APIApprovalInvalid:
		cond.Reason = "InvalidAnnotation"
	default:
		cond.Status, cond.Reason = crdv1.ConditionUnknown, "UnknownAnnotation"
	}
	return cond
}

func find(s *crdv1.CustomResourceDefinitionStatus, kind crdv1.CustomResourceDefinitionConditionType) *crdv1.CustomResourceDefinitionCondition {
	for i := range s.Conditions {
		if s.Conditions[i].Type == kind {
			return &s.Conditions[i]
		}
	}
	return nil
}

func isTrue(s *crdv1.CustomResourceDefinitionStatus, kind crdv1.CustomResourceDefinitionConditionType) bool {
	c := find(s, kind)
	return c != nil && c.Status == crdv1.ConditionTrue
}

// put sets a condition; its time moves when its status does.
func put(s *crdv1.CustomResourceDefinitionStatus, c crdv1.CustomResourceDefinitionCondition, now time.Time) {
	old := find(s, c.Type)
	if old == nil {
		c.LastTransitionTime = metav1.NewTime(now.Truncate(time.Second))
		s.Conditions = append(s.Conditions, c)
		return
	}
	if old.Status != c.Status {
		old.LastTransitionTime = metav1.NewTime(now.Truncate(time.Second))
	}
	old.Status, old.Reason, old.Message = c.Status, c.Reason, c.Message
}
