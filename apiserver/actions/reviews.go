package actions

import (
	"context"
	"strings"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/selection"

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

// SelfSubjectReview tells the caller who it is, and nothing of what was sent.
func (a *Actions) SelfSubjectReview(u *authn.User, in *authenticationv1.SelfSubjectReview) *authenticationv1.SelfSubjectReview {
	return &authenticationv1.SelfSubjectReview{TypeMeta: in.TypeMeta, Status: authenticationv1.SelfSubjectReviewStatus{UserInfo: userInfo(u)}}
}

// attributes turns the spec of an access review into a question; the resource's row has seen to it
// that exactly one of the two kinds of attributes is set. ignored tells which selectors, or parts of them,
// count for nothing because they cannot be read: what is asked is then about more than was meant.
func attributes(u *authn.User, res *authorizationv1.ResourceAttributes, non *authorizationv1.NonResourceAttributes) (at authz.Attributes, ignored []string) {
	if res == nil {
		return authz.Attributes{User: u, Verb: non.Verb, Path: non.Path}, nil
	}
	at = authz.Attributes{
		User: u, Verb: res.Verb, Resource: true, Group: res.Group, Version: res.Version, Plural: res.Resource,
		Subresource: res.Subresource, Namespace: res.Namespace, Name: res.Name,
	}
	if s := res.FieldSelector; s != nil {
		terms, whole := fieldTerms(s)
		at.Fields = terms
		ignored = note(ignored, "field", whole, len(terms) > 0)
	}
	if s := res.LabelSelector; s != nil { // no authorizer here reads labels
		any, whole := labelTerms(s)
		ignored = note(ignored, "label", whole, any)
	}
	return at, ignored
}

func note(list []string, which string, whole, any bool) []string {
	switch {
	case whole:
		return list
	case any:
		return append(list, "spec.resourceAttributes."+which+"Selector partially ignored due to parse error")
	}
	return append(list, "spec.resourceAttributes."+which+"Selector ignored due to parse error")
}

// fieldTerms are the terms that can be read; whole: these are all.
func fieldTerms(s *authorizationv1.FieldSelectorAttributes) (terms fields.Requirements, whole bool) {
	whole = true
	if s.RawSelector != "" {
		sel, err := fields.ParseSelector(s.RawSelector)
		if err != nil {
			return nil, false
		}
		terms = sel.Requirements()
	}
	for _, q := range s.Requirements {
		op := map[metav1.FieldSelectorOperator]selection.Operator{
			metav1.FieldSelectorOpIn: selection.Equals, metav1.FieldSelectorOpNotIn: selection.NotEquals,
		}[q.Operator]
		if op == "" || len(q.Values) != 1 {
			whole = false
			continue
		}
		terms = append(terms, fields.Requirement{Field: q.Key, Operator: op, Value: q.Values[0]})
	}
	return terms, whole
}

func labelTerms(s *authorizationv1.LabelSelectorAttributes) (any, whole bool) {
	whole = true
	if s.RawSelector != "" {
		sel, err := labels.Parse(s.RawSelector)
		return err == nil && !sel.Empty(), err == nil
	}
	for _, q := range s.Requirements {
		_, err := metav1.LabelSelectorAsSelector(&metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{q}})
		any, whole = any || err == nil, whole && err == nil
	}
	return any, whole
}

func (a *Actions) answer(ctx context.Context, u *authn.User, res *authorizationv1.ResourceAttributes, non *authorizationv1.NonResourceAttributes) authorizationv1.SubjectAccessReviewStatus {
	at, errs := attributes(u, res, non)
	d, reason, err := a.Authorizer.Authorize(ctx, at)
	if err != nil {
		errs = append([]string{err.Error()}, errs...)
	}
	return authorizationv1.SubjectAccessReviewStatus{
		Allowed: d == authz.Allow, Denied: d == authz.Deny, Reason: reason, EvaluationError: strings.Join(errs, "; "),
	}
}

// SelfSubjectAccessReview tells the caller whether it may do something.
func (a *Actions) SelfSubjectAccessReview(ctx context.Context, u *authn.User, in *authorizationv1.SelfSubjectAccessReview) *authorizationv1.SelfSubjectAccessReview {
	out := in.DeepCopy()
	out.Status = a.answer(ctx, u, in.Spec.ResourceAttributes, in.Spec.NonResourceAttributes)
	return out
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
func (a *Actions) SubjectAccessReview(ctx context.Context, in *authorizationv1.SubjectAccessReview) *authorizationv1.SubjectAccessReview {
	out := in.DeepCopy()
	out.Status = a.answer(ctx, subject(&in.Spec), in.Spec.ResourceAttributes, in.Spec.NonResourceAttributes)
	return out
}

// LocalSubjectAccessReview is a SubjectAccessReview about one namespace, which the row has compared with the path's.
func (a *Actions) LocalSubjectAccessReview(ctx context.Context, in *authorizationv1.LocalSubjectAccessReview) *authorizationv1.LocalSubjectAccessReview {
	out := in.DeepCopy()
	out.Status = a.answer(ctx, subject(&in.Spec), in.Spec.ResourceAttributes, in.Spec.NonResourceAttributes)
	return out
}

// SelfSubjectRulesReview lists what roles let the caller do in a namespace.
func (a *Actions) SelfSubjectRulesReview(u *authn.User, in *authorizationv1.SelfSubjectRulesReview) (*authorizationv1.SelfSubjectRulesReview, error) {
	if in.Spec.Namespace == "" {
		return nil, apierrors.NewBadRequest("no namespace on request")
	}
	st := authorizationv1.SubjectRulesReviewStatus{
		ResourceRules: []authorizationv1.ResourceRule{}, NonResourceRules: []authorizationv1.NonResourceRule{},
	}
	var errs []string
	if _, ok := authz.NodeName(u); ok && a.Node {
		st.Incomplete = true
		errs = append(errs, "node authorizer does not support user rule resolution")
	}
	var rules []rbacv1.PolicyRule
	if a.RBAC != nil {
		var missing string
		var err error
		if rules, missing, err = a.RBAC.Rules(u, in.Spec.Namespace); err != nil {
			missing = err.Error()
		}
		if missing != "" {
			errs = append(errs, missing)
		}
	}
	st.EvaluationError = strings.Join(errs, ", ")
	for _, r := range rules {
		if len(r.Resources) > 0 {
			st.ResourceRules = append(st.ResourceRules, authorizationv1.ResourceRule{
				Verbs: r.Verbs, APIGroups: r.APIGroups, Resources: r.Resources, ResourceNames: r.ResourceNames,
			})
		}
		if len(r.NonResourceURLs) > 0 {
			st.NonResourceRules = append(st.NonResourceRules, authorizationv1.NonResourceRule{Verbs: r.Verbs, NonResourceURLs: r.NonResourceURLs})
		}
	}
	return &authorizationv1.SelfSubjectRulesReview{Status: st}, nil
}
