package resources

import (
	"fmt"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// The kinds of this file are questions, or orders, that are answered and never
// stored: discovery offers only "create", and rest asks its Virtual handlers.

var createOnly = []string{"create"}

func anyName(string, bool) []string { return nil }

var bindings = Resource[corev1.Binding]{
	Group: "", Version: "v1", Kind: "Binding", Plural: "bindings", Verbs: createOnly, NoGeneration: true,
	Main: Part[corev1.Binding]{Validate: func(_ *Request, b, _ *corev1.Binding) field.ErrorList { return ValidateBinding(b) }},
}

// ValidateBinding checks a Binding, posted to bindings or to pods/binding.
func ValidateBinding(b *corev1.Binding) field.ErrorList {
	var errs field.ErrorList
	if k := b.Target.Kind; k != "" && k != "Node" {
		errs = append(errs, field.NotSupported(field.NewPath("target", "kind"), k, []string{"Node", "<empty>"}))
	}
	if b.Target.Name == "" {
		errs = append(errs, field.Required(field.NewPath("target", "name"), ""))
	}
	return errs
}

var tokenReviews = Resource[authenticationv1.TokenReview]{
	Group: "authentication.k8s.io", Version: "v1", Kind: "TokenReview", Plural: "tokenreviews",
	Scope: Cluster, Verbs: createOnly, Name: anyName, NoGeneration: true,
}

var selfSubjectReviews = Resource[authenticationv1.SelfSubjectReview]{
	Group: "authentication.k8s.io", Version: "v1", Kind: "SelfSubjectReview", Plural: "selfsubjectreviews",
	Scope: Cluster, Verbs: createOnly, Name: anyName, NoGeneration: true,
}

var subjectAccessReviews = Resource[authorizationv1.SubjectAccessReview]{
	Group: "authorization.k8s.io", Version: "v1", Kind: "SubjectAccessReview", Plural: "subjectaccessreviews",
	Scope: Cluster, Verbs: createOnly, Name: anyName, NoGeneration: true,
	Main: Part[authorizationv1.SubjectAccessReview]{
		Prepare: func(_ *Request, r, _ *authorizationv1.SubjectAccessReview) { r.Namespace = "" },
		Validate: func(_ *Request, r, _ *authorizationv1.SubjectAccessReview) field.ErrorList {
			return append(validateAccessSpec(&r.Spec, field.NewPath("spec")), nothingSaid(r.ObjectMeta, "must be empty")...)
		},
	},
}

var localSubjectAccessReviews = Resource[authorizationv1.LocalSubjectAccessReview]{
	Group: "authorization.k8s.io", Version: "v1", Kind: "LocalSubjectAccessReview", Plural: "localsubjectaccessreviews",
	Verbs: createOnly, Name: anyName, NoGeneration: true,
	Main: Part[authorizationv1.LocalSubjectAccessReview]{
		Validate: func(_ *Request, r, _ *authorizationv1.LocalSubjectAccessReview) field.ErrorList {
			p := field.NewPath("spec")
			errs := validateAccessSpec(&r.Spec, p)
			said := r.ObjectMeta
			said.Namespace = ""
			errs = append(errs, nothingSaid(said, "must be empty except for namespace")...)
			if ra := r.Spec.ResourceAttributes; ra != nil && ra.Namespace != r.Namespace {
				errs = append(errs, field.Invalid(p.Child("resourceAttributes", "namespace"), ra.Namespace, "must match metadata.namespace"))
			}
			if r.Spec.NonResourceAttributes != nil {
				errs = append(errs, field.Invalid(p.Child("nonResourceAttributes"), shownPath(*r.Spec.NonResourceAttributes), "disallowed on this kind of request"))
			}
			return errs
		},
	},
}

var selfSubjectAccessReviews = Resource[authorizationv1.SelfSubjectAccessReview]{
	Group: "authorization.k8s.io", Version: "v1", Kind: "SelfSubjectAccessReview", Plural: "selfsubjectaccessreviews",
	Scope: Cluster, Verbs: createOnly, Name: anyName, NoGeneration: true,
	Main: Part[authorizationv1.SelfSubjectAccessReview]{
		Prepare: func(_ *Request, r, _ *authorizationv1.SelfSubjectAccessReview) { r.Namespace = "" },
		Validate: func(_ *Request, r, _ *authorizationv1.SelfSubjectAccessReview) field.ErrorList {
			p := field.NewPath("spec")
			errs := validateAccessTarget(r.Spec.ResourceAttributes, r.Spec.NonResourceAttributes, p)
			errs = append(errs, validateAsked(r.Spec.ResourceAttributes, p.Child("resourceAttributes"))...)
			return append(errs, nothingSaid(r.ObjectMeta, "must be empty")...)
		},
	},
}

var selfSubjectRulesReviews = Resource[authorizationv1.SelfSubjectRulesReview]{
	Group: "authorization.k8s.io", Version: "v1", Kind: "SelfSubjectRulesReview", Plural: "selfsubjectrulesreviews",
	Scope: Cluster, Verbs: createOnly, Name: anyName, NoGeneration: true,
}

// nothingSaid: a question about access is no object and has no metadata, but what the server keeps books of.
func nothingSaid(m metav1.ObjectMeta, fault string) field.ErrorList {
	m.ManagedFields = nil
	if equality.Semantic.DeepEqual(m, metav1.ObjectMeta{}) {
		return nil
	}
	return field.ErrorList{field.Invalid(field.NewPath("metadata"), m, fault)}
}

func validateAccessSpec(s *authorizationv1.SubjectAccessReviewSpec, p *field.Path) field.ErrorList {
	errs := validateAccessTarget(s.ResourceAttributes, s.NonResourceAttributes, p)
	if s.User == "" && len(s.Groups) == 0 {
		errs = append(errs, field.Invalid(p.Child("user"), s.User, "at least one of user or group must be specified"))
	}
	return append(errs, validateAsked(s.ResourceAttributes, p.Child("resourceAttributes"))...)
}

// shownPath prints NonResourceAttributes as upstream does, whose own type has no JSON names.
type shownPath struct{ Path, Verb string }

// validateAccessTarget: exactly one of the two says what is asked about.
func validateAccessTarget(res *authorizationv1.ResourceAttributes, non *authorizationv1.NonResourceAttributes, p *field.Path) field.ErrorList {
	switch {
	case res != nil && non != nil:
		return field.ErrorList{field.Invalid(p.Child("nonResourceAttributes"), shownPath(*non), "cannot be specified in combination with resourceAttributes")}
	case res == nil && non == nil:
		return field.ErrorList{field.Invalid(p.Child("resourceAttributes"), res, "exactly one of nonResourceAttributes or resourceAttributes must be specified")}
	}
	return nil
}

// validateAsked: a selector is given in one of its two forms. Operators that are not known here may
// come from newer clients and are let through; they are ignored later.
func validateAsked(res *authorizationv1.ResourceAttributes, p *field.Path) (errs field.ErrorList) {
	if res == nil {
		return nil
	}
	forms := func(raw string, terms int, p *field.Path) {
		if raw != "" && terms > 0 {
			errs = append(errs, field.Invalid(p.Child("rawSelector"), raw, "may not specified at the same time as requirements"))
		}
		if raw == "" && terms == 0 {
			errs = append(errs, field.Required(p.Child("requirements"), fmt.Sprintf("when %s is specified, requirements or rawSelector is required", p)))
		}
	}
	if s := res.FieldSelector; s != nil {
		p := p.Child("fieldSelector")
		forms(s.RawSelector, len(s.Requirements), p)
		for i, q := range s.Requirements {
			errs = append(errs, metavalidation.ValidateFieldSelectorRequirement(q,
				metavalidation.FieldSelectorValidationOptions{AllowUnknownOperatorInRequirement: true}, p.Child("requirements").Index(i))...)
		}
	}
	if s := res.LabelSelector; s != nil {
		p := p.Child("labelSelector")
		forms(s.RawSelector, len(s.Requirements), p)
		for i, q := range s.Requirements {
			errs = append(errs, metavalidation.ValidateLabelSelectorRequirement(q,
				metavalidation.LabelSelectorValidationOptions{AllowUnknownOperatorInRequirement: true}, p.Child("requirements").Index(i))...)
		}
	}
	return errs
}
