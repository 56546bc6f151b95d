package apiserver

import (
	"context"
	"net/http"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/keelson/keelson/apiserver/actions"
	"github.com/keelson/keelson/apiserver/admission"
	"github.com/keelson/keelson/apiserver/authn"
	"github.com/keelson/keelson/apiserver/resources"
	"github.com/keelson/keelson/apiserver/rest"
	"github.com/keelson/keelson/apiserver/streams"
)

// Kinds of subresource bodies.
var (
	bindingKind  = corev1.SchemeGroupVersion.WithKind("Binding")
	evictionKind = policyv1.SchemeGroupVersion.WithKind("Eviction")
	tokenKind    = authenticationv1.SchemeGroupVersion.WithKind("TokenRequest")
	statusKind   = schema.GroupVersionKind{Version: "v1", Kind: "Status"}
)

var created = &metav1.Status{Status: metav1.StatusSuccess, Code: http.StatusCreated}

// subresources are the handlers by "<plural>[.<group>]/<name>".
func subresources(act *actions.Actions, proxy *streams.Proxy, chain admission.Chain) map[string]rest.SubHandler {
	stream := func(f func(http.ResponseWriter, *http.Request, streams.Target)) rest.SubHandler {
		return func(w http.ResponseWriter, r *http.Request, c *rest.Call) {
			if c.Info.Subresource != "log" {
				if err := admit(r.Context(), chain, c, admission.Connect, connectOptions(r, c)); err != nil {
					c.Fail(err)
					return
				}
			}
			f(w, r, streams.Target{Namespace: c.Namespace, Name: c.Name, Rest: c.Info.Rest})
		}
	}
	return map[string]rest.SubHandler{
		"pods/exec":        stream(proxy.Exec),
		"pods/attach":      stream(proxy.Attach),
		"pods/portforward": stream(proxy.PortForward),
		"pods/log":         stream(proxy.Log),
		"pods/proxy":       stream(proxy.PodProxy),
		"services/proxy":   stream(proxy.ServiceProxy),
		"nodes/proxy":      stream(proxy.NodeProxy),
		"pods/binding": func(_ http.ResponseWriter, r *http.Request, c *rest.Call) {
			obj, err := c.DecodeAs(bindingKind, func() runtime.Object { return &corev1.Binding{} })
			if err == nil {
				b := obj.(*corev1.Binding)
				if err = place(c, "Binding", b); err == nil {
					if err = admit(r.Context(), chain, c, admission.Create, b); err == nil {
						err = act.Bind(r.Context(), c.Request, c.Namespace, c.Name, b)
					}
				}
			}
			done(c, err)
		},
		"pods/eviction": func(_ http.ResponseWriter, r *http.Request, c *rest.Call) {
			obj, err := c.DecodeAs(evictionKind, func() runtime.Object { return &policyv1.Eviction{} })
			if err == nil {
				ev := obj.(*policyv1.Eviction)
				if err = place(c, "Eviction", ev); err == nil {
					if err = admit(r.Context(), chain, c, admission.Create, ev); err == nil {
						err = act.Evict(r.Context(), c.Request, c.Namespace, c.Name, ev)
					}
				}
			}
			done(c, err)
		},
		"serviceaccounts/token": func(_ http.ResponseWriter, r *http.Request, c *rest.Call) {
			obj, err := c.DecodeAs(tokenKind, func() runtime.Object { return &authenticationv1.TokenRequest{} })
			if err != nil {
				c.Fail(err)
				return
			}
			tr := obj.(*authenticationv1.TokenRequest)
			if err := admit(r.Context(), chain, c, admission.Create, tr); err != nil {
				c.Fail(err)
				return
			}
			out, err := act.Token(r.Context(), c.Request, c.Namespace, c.Name, tr)
			if err != nil {
				c.Fail(err)
				return
			}
			c.Respond(http.StatusCreated, out, tokenKind)
		},
	}
}

func done(c *rest.Call, err error) {
	if err != nil {
		c.Fail(err)
		return
	}
	c.Respond(http.StatusCreated, created, statusKind)
}

// place refuses a body that is about another object than the path; only the namespace may be left out.
func place(c *rest.Call, kind string, obj metav1.Object) error {
	if n := obj.GetNamespace(); n != "" && n != c.Namespace {
		return apierrors.NewBadRequest("the namespace of the provided object does not match the namespace sent on the request")
	}
	if obj.GetName() != c.Name {
		return apierrors.NewBadRequest("name in URL does not match name in " + kind + " object")
	}
	obj.SetNamespace(c.Namespace)
	return nil
}

// admit runs the chain for a subresource that is not stored itself.
func admit(ctx context.Context, chain admission.Chain, c *rest.Call, op admission.Operation, obj runtime.Object) error {
	a := &admission.Attributes{
		Operation: op, Row: c.Row, Subresource: c.Info.Subresource, Namespace: c.Namespace, Name: c.Name,
		User: c.User, Request: c.Request, Object: obj,
	}
	if op == admission.Create {
		a.Options = &metav1.CreateOptions{}
	}
	if err := chain.Mutate(ctx, a); err != nil {
		return forbidden(c, err)
	}
	_, err := chain.Validate(ctx, a)
	return forbidden(c, err)
}

func forbidden(c *rest.Call, err error) error {
	if _, ok := err.(apierrors.APIStatus); ok || err == nil {
		return err
	}
	return apierrors.NewForbidden(c.Row.GR(), c.Name, err)
}

// virtual answers for the kinds that are questions and orders.
func virtual(act *actions.Actions, user func(*resources.Request) *authn.User) map[schema.GroupResource]func(*resources.Request, resources.Object) (resources.Object, error) {
	in := func(group, plural string) schema.GroupResource {
		return schema.GroupResource{Group: group, Resource: plural}
	}
	const authentication, authorization = "authentication.k8s.io", "authorization.k8s.io"
	return map[schema.GroupResource]func(*resources.Request, resources.Object) (resources.Object, error){
		in("", "bindings"): func(rq *resources.Request, o resources.Object) (resources.Object, error) {
			b := o.(*corev1.Binding)
			if b.Name == "" {
				return nil, apierrors.NewBadRequest("Name parameter required.")
			}
			return b, act.Bind(rq.Context, rq, b.Namespace, b.Name, b)
		},
		in(authentication, "tokenreviews"): func(rq *resources.Request, o resources.Object) (resources.Object, error) {
			return answerOf(act.TokenReview(rq.Context, o.(*authenticationv1.TokenReview)))
		},
		in(authentication, "selfsubjectreviews"): func(rq *resources.Request, o resources.Object) (resources.Object, error) {
			out := act.SelfSubjectReview(user(rq), o.(*authenticationv1.SelfSubjectReview))
			out.CreationTimestamp = metav1.NewTime(rq.Now.Truncate(time.Second))
			return out, nil
		},
		in(authorization, "selfsubjectaccessreviews"): func(rq *resources.Request, o resources.Object) (resources.Object, error) {
			return act.SelfSubjectAccessReview(rq.Context, user(rq), o.(*authorizationv1.SelfSubjectAccessReview)), nil
		},
		in(authorization, "subjectaccessreviews"): func(rq *resources.Request, o resources.Object) (resources.Object, error) {
			return act.SubjectAccessReview(rq.Context, o.(*authorizationv1.SubjectAccessReview)), nil
		},
		in(authorization, "localsubjectaccessreviews"): func(rq *resources.Request, o resources.Object) (resources.Object, error) {
			return act.LocalSubjectAccessReview(rq.Context, o.(*authorizationv1.LocalSubjectAccessReview)), nil
		},
		in(authorization, "selfsubjectrulesreviews"): func(rq *resources.Request, o resources.Object) (resources.Object, error) {
			return answerOf(act.SelfSubjectRulesReview(user(rq), o.(*authorizationv1.SelfSubjectRulesReview)))
		},
	}
}

// answerOf keeps a nil of a typed pointer from becoming an object.
func answerOf[T resources.Object](obj T, err error) (resources.Object, error) {
	if err != nil {
		return nil, err
	}
	return obj, nil
}
