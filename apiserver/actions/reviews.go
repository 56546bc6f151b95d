package actions

import (
	"context"
	"fmt"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/keelson/keelson/apiserver/authn"
	"github.com/keelson/keelson/apiserver/authz"
)

// TokenReview tells whose token it is.
func (a *Actions) TokenReview(ctx context.Context, in *authenticationv1.TokenReview) (*authenticationv1.TokenReview, error) {
	out := in.DeepCopy()
	out.Status = authenticationv1.TokenReviewStatus{}
	if in.Spec.Token == "" {
		return nil, apierrors.NewBadRequest("token is required for TokenReview in authentication")
	}
	audiences := in.Spec.Audiences
	if len(audiences) == 0 {
		audiences = a.Audiences
	}
	u, good, err := a.Authenticate(ctx, in.Spec.Token, audiences)
	if err != nil {
		out.Status.Error = err.Error()
		return out, nil
	}
	if u == nil {
		return out, nil
	}
	out.Status.Authenticated = true
	out.Status.User = userInfo(u)
	out.Status.Audiences = good
	return out, nil
}

func userInfo(u *authn.User) authenticationv1.UserInfo {
	info := authenticationv1.UserInfo{Username: u.Name, UID: u.UID, Groups: u.Groups}
	for k, v := range u.Extra {
		if info.Extra == nil {
			info.Extra = map[string]authenticationv1.ExtraValue{}
		}
		info.Extra[k] = v
	}
	return info
}

// SelfSubjectReview tells the caller who it is.
func (a *Actions) SelfSubjectReview(u *authn.User, in *authenticationv1.SelfSubjectReview) *authenticationv1.SelfSubjectReview {
	out := in.DeepCopy()
	out.Status.UserInfo = userInfo(u)
	return out
}

// attributes turns the spec of an access review into a question. Exactly one of the two kinds of attributes is set.
func attributes(u *authn.User, res *authorizationv1.ResourceAttributes, non *authorizationv1.NonResourceAttributes) (authz.Attributes, *field.Error) {
	spec := field.NewPath("spec")
	switch {
	case res != nil && non != nil:
		return authz.Attributes{}, field.Invalid(spec.Child("nonResourceAttributes"), non, "cannot be specified in combination with resourceAttributes")
	case res != nil:
		return authz.Attributes{
			User: u, Verb: res.Verb, Resource: true, Group: res.Group, Version: res.Version, Plural: res.Resource,
			Subresource: res.Subresource, Namespace: res.Namespace, Name: res.Name,
		}, nil
	case non != nil:
		return authz.Attributes{User: u, Verb: non.Verb, Path: non.Path}, nil
	}
	return authz.Attributes{}, field.Invalid(spec.Child("resourceAttributes"), nil, "exactly one of nonResourceAttributes or resourceAttributes must be specified")
}

func (a *Actions) answer(ctx context.Context, at authz.Attributes) authorizationv1.SubjectAccessReviewStatus {
	d, reason, err := a.Authorizer.Authorize(ctx, at)
	st := authorizationv1.SubjectAccessReviewStatus{Allowed: d == authz.Allow, Denied: d == authz.Deny, Reason: reason}
	if err != nil {
		st.EvaluationError = err.Error()
	}
	return st
}

func invalid(kind string, err *field.Error) error {
	return apierrors.NewInvalid(authorizationv1.SchemeGroupVersion.WithKind("").GroupKind(), "", field.ErrorList{err})
}

// SelfSubjectAccessReview tells the caller whether it may do something.
func (a *Actions) SelfSubjectAccessReview(ctx context.Context, u *authn.User, in *authorizationv1.SelfSubjectAccessReview) (*authorizationv1.SelfSubjectAccessReview, error) {
	at, bad := attributes(u, in.Spec.ResourceAttributes, in.Spec.NonResourceAttributes)
	if bad != nil {
		return nil, invalid("SelfSubjectAccessReview", bad)
	}
	out := in.DeepCopy()
	out.Status = a.answer(ctx, at)
	return out, nil
}

func subject(spec *authorizationv1.SubjectAccessReviewSpec) *authn.User {
	u := &authn.User{Name: spec.User, UID: spec.UID, Groups: spec.Groups}
	for k, v := range spec.Extra {
		if u.Extra == nil {
			u.Extra = map[string][]string{}
		}
		u.Extra[k] = v
	}
	return u
}

// SubjectAccessReview tells whether somebody may do something.
func (a *Actions) SubjectAccessReview(ctx context.Context, in *authorizationv1.SubjectAccessReview) (*authorizationv1.SubjectAccessReview, error) {
	if in.Spec.User == "" && len(in.Spec.Groups) == 0 {
		return nil, invalid("SubjectAccessReview", field.Invalid(field.NewPath("spec", "user"), "", "at least one of user or group must be specified"))
	}
	at, bad := attributes(subject(&in.Spec), in.Spec.ResourceAttributes, in.Spec.NonResourceAttributes)
	if bad != nil {
		return nil, invalid("SubjectAccessReview", bad)
	}
	out := in.DeepCopy()
	out.Status = a.answer(ctx, at)
	return out, nil
}

// LocalSubjectAccessReview is a SubjectAccessReview about one namespace.
func (a *Actions) LocalSubjectAccessReview(ctx context.Context, namespace string, in *authorizationv1.LocalSubjectAccessReview) (*authorizationv1.LocalSubjectAccessReview, error) {
	const kind = "LocalSubjectAccessReview"
	if in.Spec.User == "" && len(in.Spec.Groups) == 0 {
		return nil, invalid(kind, field.Invalid(field.NewPath("spec", "user"), "", "at least one of user or group must be specified"))
	}
	if in.Spec.ResourceAttributes == nil {
		return nil, invalid(kind, field.Invalid(field.NewPath("spec", "resourceAttributes"), nil, "must be specified: a local review is about resources"))
	}
	if in.Spec.ResourceAttributes.Namespace != namespace {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("spec.resourceAttributes.namespace must match namespace: %s", namespace))
	}
	at, bad := attributes(subject(&in.Spec), in.Spec.ResourceAttributes, in.Spec.NonResourceAttributes)
	if bad != nil {
		return nil, invalid(kind, bad)
	}
	out := in.DeepCopy()
	out.Status = a.answer(ctx, at)
	return out, nil
}

// SelfSubjectRulesReview lists what the caller may do in a namespace.
func (a *Actions) SelfSubjectRulesReview(u *authn.User, in *authorizationv1.SelfSubjectRulesReview) (*authorizationv1.SelfSubjectRulesReview, error) {
	if in.Spec.Namespace == "" {
		return nil, apierrors.NewBadRequest("no namespace on request")
	}
	out := in.DeepCopy()
	out.Status = authorizationv1.SubjectRulesReviewStatus{
		ResourceRules: []authorizationv1.ResourceRule{}, NonResourceRules: []authorizationv1.NonResourceRule{},
	}
	rules, err := a.ownRules(u, in.Spec.Namespace)
	if err != nil {
		out.Status.EvaluationError = err.Error()
	}
	for _, r := range rules {
		if len(r.Resources) > 0 {
			out.Status.ResourceRules = append(out.Status.ResourceRules, authorizationv1.ResourceRule{
				Verbs: r.Verbs, APIGroups: r.APIGroups, Resources: r.Resources, ResourceNames: r.ResourceNames,
			})
		}
		if len(r.NonResourceURLs) > 0 {
			out.Status.NonResourceRules = append(out.Status.NonResourceRules, authorizationv1.NonResourceRule{Verbs: r.Verbs, NonResourceURLs: r.NonResourceURLs})
		}
	}
	return out, nil
}

func (a *Actions) ownRules(u *authn.User, namespace string) ([]rbacv1.PolicyRule, error) {
	var rules []rbacv1.PolicyRule
	if u.In(authn.GroupMasters) {
		rules = append(rules, rbacv1.PolicyRule{Verbs: []string{"*"}, APIGroups: []string{"*"}, Resources: []string{"*"}},
			rbacv1.PolicyRule{Verbs: []string{"*"}, NonResourceURLs: []string{"*"}})
	}
	if a.RBAC == nil {
		return rules, nil
	}
	more, err := a.RBAC.Rules(u, namespace)
	return append(rules, more...), err
}
