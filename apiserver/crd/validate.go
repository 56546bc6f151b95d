package crd

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	crdv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	schemacel "k8s.io/apiextensions-apiserver/pkg/apiserver/schema/cel"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/cel/model"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/listtype"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/objectmeta"
	schemavalidation "k8s.io/apiextensions-apiserver/pkg/apiserver/validation"
	"k8s.io/apimachinery/pkg/api/equality"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	celconfig "k8s.io/apiserver/pkg/apis/cel"
	celcommon "k8s.io/apiserver/pkg/cel/common"
	"k8s.io/apiserver/pkg/warning"

	"github.com/keelson/keelson/apiserver/resources"
)

func content(o resources.Object) *unstructured.Unstructured {
	u, _ := o.(*unstructured.Unstructured)
	return u
}

// prepareMain keeps status out of reach where it is a subresource; where it is not, its
// changes count as changes of the object.
func (k *Kind) prepareMain(_ *resources.Request, obj, old resources.Object) {
	u, was := content(obj), content(old)
	switch {
	case k.status && was == nil:
		delete(u.Object, "status")
		k.fill(u) // of status too: reading it back would do that
	case k.status:
		if status, ok := was.Object["status"]; ok {
			u.Object["status"] = status
		} else {
			delete(u.Object, "status")
		}
	case was != nil && !equality.Semantic.DeepEqual(u.Object["status"], was.Object["status"]):
		u.SetGeneration(was.GetGeneration() + 1)
	}
}

// prepareStatus takes nothing but status, and the record of who wrote it.
func (k *Kind) prepareStatus(_ *resources.Request, obj, old resources.Object) {
	u, was := content(obj), content(old)
	status, ok := u.Object["status"]
	managed := u.GetManagedFields()
	u.Object = was.DeepCopy().Object
	u.SetManagedFields(managed)
	if ok {
		u.Object["status"] = status
	} else {
		delete(u.Object, "status")
	}
}

func (k *Kind) validateMain(rq *resources.Request, obj, old resources.Object) field.ErrorList {
	u, was := content(obj), content(old)
	f, err := k.forms()
	if err != nil {
		return field.ErrorList{field.InternalError(nil, err)}
	}
	var ratchet *celcommon.CorrelatedObject
	if was != nil {
		ratchet = f.correlate(u, was)
	}
	errs, stop := k.mistaken(u)
	mistaken := len(errs) > 0
	switch {
	case stop:
		return errs
	case mistaken:
	case was == nil:
		errs = schemavalidation.ValidateCustomResource(nil, u.Object, f.all)
	default:
		errs = schemavalidation.ValidateCustomResourceUpdate(nil, u.Object, was.Object, f.all, schemavalidation.WithRatcheting(ratchet))
	}
	if k.scale != nil && !mistaken {
		errs = append(errs, replicas(u, k.scale.SpecReplicasPath)...)
		errs = append(errs, k.scaleStatus(u)...)
	}
	errs = append(errs, objectmeta.Validate(nil, u.Object, f.schema, false)...)
	errs = append(errs, f.lists(u, was)...)
	return append(errs, f.ruled(rq, errs, u, was, ratchet)...)
}

func (k *Kind) validateStatus(rq *resources.Request, obj, old resources.Object) field.ErrorList {
	u, was := content(obj), content(old)
	f, err := k.forms()
	if err != nil {
		return field.ErrorList{field.InternalError(nil, err)}
	}
	ratchet := f.correlate(u, was)
	errs, stop := k.mistaken(u)
	if stop {
		return errs
	}
	mistaken := len(errs) > 0
	if status, ok := u.Object["status"]; ok && f.status != nil && !mistaken {
		errs = schemavalidation.ValidateCustomResourceUpdate(field.NewPath("status"), status, was.Object["status"], f.status,
			schemavalidation.WithRatcheting(ratchet.Key("status")))
	}
	if k.scale != nil && !mistaken {
		errs = append(errs, k.scaleStatus(u)...)
	}
	errs = append(errs, f.lists(u, was)...)
	return append(errs, f.ruled(rq, errs, u, was, ratchet)...)
}

// mistaken returns faults of an object that does not say to be what it was sent as. What the
// schema says is not about it; rules and lists are looked at all the same, if the version is right.
func (k *Kind) mistaken(u *unstructured.Unstructured) (errs field.ErrorList, stop bool) {
	if got := u.GetKind(); got != k.def.kind {
		errs = append(errs, field.Invalid(field.NewPath("kind"), got, "must be "+k.def.kind))
	}
	if got := u.GetAPIVersion(); got != k.apiVersion() {
		return append(errs, field.Invalid(field.NewPath("apiVersion"), got, "must be "+k.apiVersion())), true
	}
	return errs, false
}

func (f *forms) correlate(u, was *unstructured.Unstructured) *celcommon.CorrelatedObject {
	return celcommon.NewCorrelatedObject(u.Object, was.Object, &model.Structural{Structural: f.schema})
}

// lists checks that sets and maps hold no duplicates, unless they did before.
func (f *forms) lists(u, was *unstructured.Unstructured) field.ErrorList {
	errs := listtype.ValidateListSetsAndMaps(nil, f.schema, u.Object)
	if len(errs) > 0 && was != nil && len(listtype.ValidateListSetsAndMaps(nil, f.schema, was.Object)) > 0 {
		return nil
	}
	return errs
}

// blocking are the faults after which rules cannot be evaluated.
var blocking = []field.ErrorType{field.ErrorTypeNotSupported, field.ErrorTypeRequired, field.ErrorTypeTooLong, field.ErrorTypeTooMany, field.ErrorTypeTypeInvalid}

// recorder hands on the warnings of the library.
type recorder func(text string)

func (r recorder) AddWarning(_, text string) { r(text) }

// ruled evaluates x-kubernetes-validations.
func (f *forms) ruled(rq *resources.Request, found field.ErrorList, u, was *unstructured.Unstructured, ratchet *celcommon.CorrelatedObject) field.ErrorList {
	rules := f.rules()
	if rules == nil {
		return nil
	}
	// What is wrong with metadata is found elsewhere. These are its faults of those types.
	unfit := u.GetName() == "" || apivalidation.ValidateAnnotationsSize(u.GetAnnotations()) != nil
	if unfit || slices.ContainsFunc(found, func(e *field.Error) bool { return slices.Contains(blocking, e.Type) }) {
		return field.ErrorList{field.Invalid(nil, nil, "some validation rules were not checked because the object was invalid; correct the existing errors to complete validation")}
	}
	ctx := rq.Context
	if ctx == nil {
		ctx = context.Background()
	}
	if rq.Warn != nil { // of what is passed over because it was so before
		ctx = warning.WithWarningRecorder(ctx, recorder(rq.Warn))
	}
	var before any
	var opts []schemacel.Option
	if was != nil {
		before = was.Object
		opts = append(opts, schemacel.WithRatcheting(ratchet))
	}
	defer f.metrics.evaluated(time.Now())
	errs, _ := rules.Validate(ctx, nil, f.schema, u.Object, before, celconfig.RuntimeCELCostBudget, opts...)
	return errs
}

// steps are the fields of a simple path such as ".spec.replicas".
func steps(path string) []string { return strings.Split(strings.TrimPrefix(path, "."), ".") }

func replicas(u *unstructured.Unstructured, path string) field.ErrorList {
	n, _, err := unstructured.NestedInt64(u.Object, steps(path)...)
	switch at := field.NewPath(path); {
	case err != nil:
		return field.ErrorList{field.Invalid(at, n, err.Error())}
	case n < 0:
		return field.ErrorList{field.Invalid(at, n, "should be a non-negative integer")}
	case n > math.MaxInt32:
		return field.ErrorList{field.Invalid(at, n, fmt.Sprintf("should be less than or equal to %v", math.MaxInt32))}
	}
	return nil
}

func (k *Kind) scaleStatus(u *unstructured.Unstructured) field.ErrorList {
	errs := replicas(u, k.scale.StatusReplicasPath)
	if p := k.scale.LabelSelectorPath; p != nil {
		if s, _, err := unstructured.NestedString(u.Object, steps(*p)...); err != nil {
			errs = append(errs, field.Invalid(field.NewPath(*p), s, err.Error()))
		}
	}
	return errs
}

var plainFinalizers = []string{metav1.FinalizerOrphanDependents, metav1.FinalizerDeleteDependents, string(corev1.FinalizerKubernetes)}

// warnings are about finalizers that are new and oddly named.
func warnings(_ *resources.Request, obj, old resources.Object) []string {
	var had, out []string
	if old != nil {
		had = old.GetFinalizers()
	}
	added := slices.Clone(obj.GetFinalizers())
	slices.Sort(added)
	for _, name := range slices.Compact(added) {
		if slices.Contains(had, name) {
			continue
		}
		for _, text := range validation.IsQualifiedName(name) {
			out = append(out, fmt.Sprintf("metadata.finalizers: %q: %s", name, text))
		}
		if strings.Contains(name, "/") || slices.Contains(plainFinalizers, name) {
			continue
		}
		including := ""
		if strings.Contains(name, ".") {
			including = " including a path (/)"
		}
		out = append(out, fmt.Sprintf("metadata.finalizers: %q: prefer a domain-qualified finalizer name%s to avoid accidental conflicts with other finalizer writers", name, including))
	}
	return out
}

// GetScale is rest.Scalable's.
func (k *Kind) GetScale(obj resources.Object) (*autoscalingv1.Scale, error) {
	if k.scale == nil {
		return nil, fmt.Errorf("%s has no replicas", k.def.kind)
	}
	u := content(obj)
	want, found, err := unstructured.NestedInt64(u.Object, steps(k.scale.SpecReplicasPath)...)
	if err != nil {
		return nil, err
	}
	if !found {
		return nil, fmt.Errorf("the spec replicas field %q does not exist", k.scale.SpecReplicasPath)
	}
	has, _, err := unstructured.NestedInt64(u.Object, steps(k.scale.StatusReplicasPath)...)
	if err != nil {
		return nil, err
	}
	s := &autoscalingv1.Scale{
		ObjectMeta: metav1.ObjectMeta{Name: u.GetName(), Namespace: u.GetNamespace(), UID: u.GetUID(),
			ResourceVersion: u.GetResourceVersion(), CreationTimestamp: u.GetCreationTimestamp()},
		Spec:   autoscalingv1.ScaleSpec{Replicas: int32(want)},
		Status: autoscalingv1.ScaleStatus{Replicas: int32(has)},
	}
	if p := k.scale.LabelSelectorPath; p != nil && *p != "" {
		if s.Status.Selector, _, err = unstructured.NestedString(u.Object, steps(*p)...); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// SetReplicas is rest.Scalable's.
func (k *Kind) SetReplicas(obj resources.Object, n int32) error {
	if k.scale == nil {
		return fmt.Errorf("%s has no replicas", k.def.kind)
	}
	return unstructured.SetNestedField(content(obj).Object, int64(n), steps(k.scale.SpecReplicasPath)...)
}

// ReplicasPath is where the number of replicas stands.
func (k *Kind) ReplicasPath() []string {
	if k.scale == nil {
		return nil
	}
	return steps(k.scale.SpecReplicasPath)
}

// columnsOf are the columns after Name.
func columnsOf(v *crdv1.CustomResourceDefinitionVersion) []crdv1.CustomResourceColumnDefinition {
	if len(v.AdditionalPrinterColumns) > 0 {
		return v.AdditionalPrinterColumns
	}
	return []crdv1.CustomResourceColumnDefinition{{
		Name: "Age", Type: "date", Description: metaDoc["creationTimestamp"], JSONPath: ".metadata.creationTimestamp",
	}}
}

var metaDoc = metav1.ObjectMeta{}.SwaggerDoc()
