package expr

import (
	"context"
	"fmt"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/authentication/user"
	celauthz "k8s.io/apiserver/pkg/authorization/authorizer"
	apicel "k8s.io/apiserver/pkg/cel"
	"k8s.io/apiserver/pkg/cel/library"

	admissionapi "k8s.io/api/admission/v1"

	"github.com/keelson/keelson/apiserver/admission"
	"github.com/keelson/keelson/apiserver/authn"
	"github.com/keelson/keelson/apiserver/authz"
	"github.com/keelson/keelson/apiserver/resources"
)

func fieldsOf(list ...*apicel.DeclField) map[string]*apicel.DeclField {
	m := map[string]*apicel.DeclField{}
	for _, f := range list {
		m[f.Name] = f
	}
	return m
}

func always(name string, t *apicel.DeclType) *apicel.DeclField {
	return apicel.NewDeclField(name, t, true, nil, nil)
}

func maybe(name string, t *apicel.DeclType) *apicel.DeclField {
	return apicel.NewDeclField(name, t, false, nil, nil)
}

var (
	text      = apicel.StringType
	texts     = apicel.NewListType(apicel.StringType, -1)
	textByKey = apicel.NewMapType(apicel.StringType, apicel.StringType, -1)
)

// requestType is the request of an AdmissionReview without the objects, which are variables of their own.
func requestType() *apicel.DeclType {
	kind := apicel.NewObjectType("kubernetes.GroupVersionKind", fieldsOf(always("group", text), always("version", text), always("kind", text)))
	resource := apicel.NewObjectType("kubernetes.GroupVersionResource", fieldsOf(always("group", text), always("version", text), always("resource", text)))
	who := apicel.NewObjectType("kubernetes.UserInfo", fieldsOf(maybe("username", text), maybe("uid", text), maybe("groups", texts),
		maybe("extra", apicel.NewMapType(apicel.StringType, texts, -1))))
	return apicel.NewObjectType("kubernetes.AdmissionRequest", fieldsOf(
		always("kind", kind), always("resource", resource), maybe("subResource", text),
		always("requestKind", kind), always("requestResource", resource), maybe("requestSubResource", text),
		always("name", text), maybe("namespace", text), always("operation", text),
		always("userInfo", who), maybe("dryRun", apicel.BoolType), maybe("options", apicel.DynType),
	))
}

// namespaceType is a Namespace without what no policy should depend on (managed fields, owners).
func namespaceType() *apicel.DeclType {
	at := apicel.TimestampType
	condition := apicel.NewObjectType("kubernetes.NamespaceCondition", fieldsOf(
		always("status", text), always("type", text), always("lastTransitionTime", at), always("message", text), always("reason", text)))
	meta := apicel.NewObjectType("kubernetes.NamespaceMetadata", fieldsOf(
		always("name", text), always("generateName", text), always("namespace", text), always("labels", textByKey), always("annotations", textByKey),
		always("UID", text), always("creationTimestamp", at), always("deletionGracePeriodSeconds", apicel.IntType), always("deletionTimestamp", at),
		always("generation", apicel.IntType), always("resourceVersion", text), always("finalizers", texts)))
	return apicel.NewObjectType("kubernetes.Namespace", fieldsOf(
		always("metadata", meta),
		always("spec", apicel.NewObjectType("kubernetes.NamespaceSpec", fieldsOf(always("finalizers", texts)))),
		always("status", apicel.NewObjectType("kubernetes.NamespaceStatus", fieldsOf(
			always("conditions", apicel.NewListType(condition, -1)), always("phase", text)))),
	))
}

// Review is the request part of an AdmissionReview, without UID and objects. row is
// the version in which the receiver is told about it.
func Review(a *admission.Attributes, row *resources.Row) *admissionapi.AdmissionRequest {
	kind := metav1.GroupVersionKind(admission.KindIn(row, a.Subresource))
	asked := metav1.GroupVersionKind(a.Kind())
	resource, askedResource := metav1.GroupVersionResource(row.GVR()), metav1.GroupVersionResource(a.Row.GVR())
	dry := a.Request.DryRun
	rq := &admissionapi.AdmissionRequest{
		Kind: kind, Resource: resource, SubResource: a.Subresource,
		RequestKind: &asked, RequestResource: &askedResource, RequestSubResource: a.Subresource,
		Name: a.Name, Namespace: a.Namespace, Operation: admissionapi.Operation(a.Operation), DryRun: &dry,
	}
	if u := a.User; u != nil {
		rq.UserInfo = authenticationv1.UserInfo{Username: u.Name, UID: u.UID, Groups: u.Groups}
		for k, v := range u.Extra {
			if rq.UserInfo.Extra == nil {
				rq.UserInfo.Extra = map[string]authenticationv1.ExtraValue{}
			}
			rq.UserInfo.Extra[k] = v
		}
	}
	if a.Options != nil {
		o := a.Options.DeepCopyObject()
		o.GetObjectKind().SetGroupVersionKind(optionsKind(o))
		rq.Options = runtime.RawExtension{Object: o}
	}
	return rq
}

func optionsKind(o runtime.Object) schema.GroupVersionKind {
	kind := ""
	switch o.(type) {
	case *metav1.CreateOptions:
		kind = "CreateOptions"
	case *metav1.UpdateOptions:
		kind = "UpdateOptions"
	case *metav1.PatchOptions:
		kind = "PatchOptions"
	case *metav1.DeleteOptions:
		kind = "DeleteOptions"
	}
	return schema.GroupVersionKind{Group: "meta.k8s.io", Version: "v1", Kind: kind}
}

// Value is an object as expressions see it; nil stays null. The result shares memory
// with an unstructured object and must not be changed.
func Value(obj runtime.Object) (any, error) {
	switch o := obj.(type) {
	case nil:
		return nil, nil
	case *unstructured.Unstructured:
		return o.Object, nil
	}
	return runtime.DefaultUnstructuredConverter.ToUnstructured(obj)
}

// InputOf gathers the variables of a request. obj and old are in the version of row; ns may be nil.
func InputOf(a *admission.Attributes, row *resources.Row, obj, old, param runtime.Object, ns *corev1.Namespace, may authz.Authorizer) (Input, error) {
	var in Input
	var err error
	set := func(into *any, what string, o runtime.Object) {
		if err != nil {
			return
		}
		if *into, err = Value(o); err != nil {
			err = fmt.Errorf("failed to prepare %s variable for evaluation: %w", what, err)
		}
	}
	set(&in.Object, object, obj)
	set(&in.Old, oldObject, old)
	set(&in.Params, params, param)
	if ns != nil {
		plain := ns.DeepCopy()
		plain.ManagedFields, plain.OwnerReferences = nil, nil
		set(&in.Namespace, "namespace", plain)
	}
	if err == nil {
		in.Request, err = runtime.DefaultUnstructuredConverter.ToUnstructured(Review(a, row))
	}
	if may != nil && a.User != nil {
		who := &user.DefaultInfo{Name: a.User.Name, UID: a.User.UID, Groups: a.User.Groups, Extra: a.User.Extra}
		in.Authorizer = library.NewAuthorizerVal(who, asker{may})
		in.Resource = library.NewResourceAuthorizerVal(who, asker{may}, about{a})
	}
	return in, err
}

// about is a request as the variable authorizer.requestResource needs it.
type about struct{ a *admission.Attributes }

func (r about) GetName() string                          { return r.a.Name }
func (r about) GetNamespace() string                     { return r.a.Namespace }
func (r about) GetResource() schema.GroupVersionResource { return r.a.Row.GVR() }
func (r about) GetSubresource() string                   { return r.a.Subresource }

// asker lets the authorizer library ask ours.
type asker struct{ may authz.Authorizer }

// Authorize is the library's question. Nobody is authorized by field or label: those are not passed on.
func (q asker) Authorize(ctx context.Context, x celauthz.Attributes) (celauthz.Decision, string, error) {
	u := x.GetUser()
	at := authz.Attributes{
		User: &authn.User{Name: u.GetName(), UID: u.GetUID(), Groups: u.GetGroups(), Extra: u.GetExtra()},
		Verb: x.GetVerb(), Resource: x.IsResourceRequest(), Path: x.GetPath(),
	}
	if at.Resource {
		at.Group, at.Version, at.Plural, at.Subresource = x.GetAPIGroup(), x.GetAPIVersion(), x.GetResource(), x.GetSubresource()
		at.Namespace, at.Name = x.GetNamespace(), x.GetName()
	}
	d, reason, err := q.may.Authorize(ctx, at)
	switch d {
	case authz.Allow:
		return celauthz.DecisionAllow, reason, err
	case authz.Deny:
		return celauthz.DecisionDeny, reason, err
	}
	return celauthz.DecisionNoOpinion, reason, err
}
