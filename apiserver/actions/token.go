package actions

import (
	"context"
	"fmt"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/keelson/keelson/apiserver/authn"
	"github.com/keelson/keelson/apiserver/resources"
)

const (
	minTokenLife     = 10 * time.Minute
	defaultTokenLife = time.Hour
	// podTokenSeconds is what admission asks for: a token of exactly this age is a
	// pod's ordinary one, and lives longer than its holder is told to use it.
	podTokenSeconds = 3607
	extendedLife    = 365 * 24 * time.Hour
)

// Token issues a token for a service account. The answer is tr with its status filled in.
func (a *Actions) Token(ctx context.Context, rq *resources.Request, namespace, name string, tr *authenticationv1.TokenRequest) (*authenticationv1.TokenRequest, error) {
	kind := authenticationv1.SchemeGroupVersion.WithKind("TokenRequest").GroupKind()
	if tr.Namespace != "" && tr.Namespace != namespace {
		return nil, apierrors.NewBadRequest("the namespace of the provided object does not match the namespace sent on the request")
	}
	if tr.Name != "" && tr.Name != name {
		return nil, apierrors.NewInvalid(kind, name, field.ErrorList{
			field.Invalid(field.NewPath("metadata", "name"), tr.Name, "must match the service account name if specified")})
	}
	sa, err := resources.Lookup[corev1.ServiceAccount](a.Read, grServiceAccounts, namespace, name)
	if err != nil {
		return nil, err
	}
	if sa == nil {
		return nil, apierrors.NewNotFound(grServiceAccounts, name)
	}
	if tr.UID != "" && tr.UID != sa.UID {
		return nil, apierrors.NewConflict(schema.GroupResource{Group: kind.Group, Resource: kind.Kind}, name,
			fmt.Errorf("the UID in the token request (%s) does not match the UID of the service account (%s)", tr.UID, sa.UID))
	}
	out := tr.DeepCopy()
	spec := &out.Spec
	if spec.ExpirationSeconds == nil {
		s := int64(defaultTokenLife / time.Second)
		spec.ExpirationSeconds = &s
	}
	if len(spec.Audiences) == 0 {
		spec.Audiences = a.Audiences
	}
	path := field.NewPath("spec")
	var errs field.ErrorList
	life := time.Duration(*spec.ExpirationSeconds) * time.Second
	if life < minTokenLife {
		errs = append(errs, field.Invalid(path.Child("expirationSeconds"), *spec.ExpirationSeconds, "may not specify a duration less than 10 minutes"))
	}
	if *spec.ExpirationSeconds > 1<<32 {
		errs = append(errs, field.Invalid(path.Child("expirationSeconds"), *spec.ExpirationSeconds, "may not specify a duration larger than 2^32 seconds"))
	}
	if len(errs) > 0 {
		return nil, apierrors.NewInvalid(kind, "", errs)
	}
	if a.MaxTokenLife > 0 && life > a.MaxTokenLife {
		rq.Warn(fmt.Sprintf("requested expiration of %d seconds shortened to %d seconds", int64(life.Seconds()), int64(a.MaxTokenLife.Seconds())))
		life = a.MaxTokenLife
	}
	pod, secret, node, err := a.boundObject(rq, namespace, name, spec.BoundObjectRef)
	if err != nil {
		return nil, err
	}
	signedFor, stale := life, time.Duration(0)
	if a.ExtendTokens && *spec.ExpirationSeconds == podTokenSeconds && pod != nil {
		signedFor, stale = extendedLife, life
	}
	token, expires, err := a.Accounts.Issue(sa, spec.Audiences, signedFor, stale, pod, secret, node)
	if err != nil {
		return nil, apierrors.NewInternalError(err)
	}
	if signedFor != life { // the holder renews in time, whatever the token itself says
		expires = a.Now().Add(life)
	}
	out.Name, out.Namespace, out.UID = sa.Name, sa.Namespace, sa.UID
	out.CreationTimestamp = metav1.NewTime(rq.Now)
	out.Status = authenticationv1.TokenRequestStatus{Token: token, ExpirationTimestamp: metav1.NewTime(expires)}
	return out, nil
}

// boundObject checks that the object which the token shall depend on exists, and is the one meant.
func (a *Actions) boundObject(rq *resources.Request, namespace, account string, ref *authenticationv1.BoundObjectReference) (pod, secret, node *authn.Bound, err error) {
	if ref == nil {
		return nil, nil, nil, nil
	}
	same := func(kind string, have types.UID) error {
		if ref.UID != "" && ref.UID != have {
			return apierrors.NewConflict(corev1.Resource(kind), ref.Name, fmt.Errorf("the UID in the bound object reference (%s) does not match the UID in record. The object might have been deleted and then recreated", ref.UID))
		}
		return nil
	}
	gvk := schema.FromAPIVersionAndKind(ref.APIVersion, ref.Kind)
	switch {
	case gvk.Group == "" && ref.Kind == "Pod":
		p, err := resources.Lookup[corev1.Pod](a.Read, grPods, namespace, ref.Name)
		if err != nil {
			return nil, nil, nil, err
		}
		if p == nil {
			return nil, nil, nil, apierrors.NewNotFound(grPods, ref.Name)
		}
		if err := same("pods", p.UID); err != nil {
			return nil, nil, nil, err
		}
		if p.Spec.ServiceAccountName != account {
			return nil, nil, nil, apierrors.NewBadRequest(fmt.Sprintf("cannot bind token for serviceaccount %q to pod running with different serviceaccount name.", account))
		}
		pod = &authn.Bound{Name: p.Name, UID: p.UID}
		if p.Spec.NodeName != "" {
			n, err := resources.Lookup[corev1.Node](a.Read, grNodes, "", p.Spec.NodeName)
			if err != nil {
				return nil, nil, nil, err
			}
			node = &authn.Bound{Name: p.Spec.NodeName}
			if n != nil {
				node.UID = n.UID
			}
		}
		return pod, nil, node, nil
	case gvk.Group == "" && ref.Kind == "Secret":
		s, err := resources.Lookup[corev1.Secret](a.Read, grSecrets, namespace, ref.Name)
		if err != nil {
			return nil, nil, nil, err
		}
		if s == nil {
			return nil, nil, nil, apierrors.NewNotFound(grSecrets, ref.Name)
		}
		return nil, &authn.Bound{Name: s.Name, UID: s.UID}, nil, same("secrets", s.UID)
	case gvk.Group == "" && ref.Kind == "Node":
		n, err := resources.Lookup[corev1.Node](a.Read, grNodes, "", ref.Name)
		if err != nil {
			return nil, nil, nil, err
		}
		if n == nil {
			return nil, nil, nil, apierrors.NewNotFound(grNodes, ref.Name)
		}
		return nil, nil, &authn.Bound{Name: n.Name, UID: n.UID}, same("nodes", n.UID)
	}
	return nil, nil, nil, apierrors.NewBadRequest(fmt.Sprintf("cannot bind token to object of type %s", gvk))
}
