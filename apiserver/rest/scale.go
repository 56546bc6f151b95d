package rest

import (
	"errors"
	"fmt"
	"mime"
	"net/http"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/keelson/keelson/apiserver/admission"
	"github.com/keelson/keelson/apiserver/codec"
	"github.com/keelson/keelson/apiserver/patch"
	"github.com/keelson/keelson/apiserver/resources"
)

var scaleKind = schema.GroupVersionKind{Group: "autoscaling", Version: "v1", Kind: "Scale"}

// Scalable is what Row.Custom may implement to have a scale subresource.
type Scalable interface {
	GetScale(obj resources.Object) (*autoscalingv1.Scale, error)
	SetReplicas(obj resources.Object, n int32) error
	// ReplicasPath is where the number stands.
	ReplicasPath() []string
}

// scaleOf is an object as a Scale.
func scaleOf(row *resources.Row, obj resources.Object) (*autoscalingv1.Scale, error) {
	s := &autoscalingv1.Scale{ObjectMeta: metav1.ObjectMeta{
		Name: obj.GetName(), Namespace: obj.GetNamespace(), UID: obj.GetUID(),
		ResourceVersion: obj.GetResourceVersion(), CreationTimestamp: obj.GetCreationTimestamp(),
	}}
	selector := func(l *metav1.LabelSelector) error {
		sel, err := metav1.LabelSelectorAsSelector(l)
		if err == nil {
			s.Status.Selector = sel.String()
		}
		return err
	}
	count := func(n *int32) int32 {
		if n == nil {
			return 0
		}
		return *n
	}
	switch o := obj.(type) {
	case *appsv1.Deployment:
		s.Spec.Replicas, s.Status.Replicas = count(o.Spec.Replicas), o.Status.Replicas
		return s, selector(o.Spec.Selector)
	case *appsv1.ReplicaSet:
		s.Spec.Replicas, s.Status.Replicas = count(o.Spec.Replicas), o.Status.Replicas
		return s, selector(o.Spec.Selector)
	case *appsv1.StatefulSet:
		s.Spec.Replicas, s.Status.Replicas = count(o.Spec.Replicas), o.Status.Replicas
		return s, selector(o.Spec.Selector)
	case *corev1.ReplicationController:
		s.Spec.Replicas, s.Status.Replicas = count(o.Spec.Replicas), o.Status.Replicas
		s.Status.Selector = labels.SelectorFromSet(o.Spec.Selector).String()
		return s, nil
	}
	if c, ok := row.Custom.(Scalable); ok {
		return c.GetScale(obj)
	}
	return nil, fmt.Errorf("%s has no replicas", row.Kind)
}

func setReplicas(row *resources.Row, obj resources.Object, n int32) error {
	switch o := obj.(type) {
	case *appsv1.Deployment:
		o.Spec.Replicas = &n
	case *appsv1.ReplicaSet:
		o.Spec.Replicas = &n
	case *appsv1.StatefulSet:
		o.Spec.Replicas = &n
	case *corev1.ReplicationController:
		o.Spec.Replicas = &n
	default:
		if c, ok := row.Custom.(Scalable); ok {
			return c.SetReplicas(obj, n)
		}
		return fmt.Errorf("%s has no replicas", row.Kind)
	}
	return nil
}

// showScale puts the Scale of an object in its place for admission. adopt takes over
// the number of replicas that admission has left.
func showScale(row *resources.Row, a *admission.Attributes, obj, old resources.Object) (adopt func() error, err error) {
	now, err := scaleOf(row, obj)
	if err != nil {
		return nil, err
	}
	was, err := scaleOf(row, old)
	if err != nil {
		return nil, err
	}
	a.Object, a.Old = now, was
	sent := now.Spec.Replicas
	return func() error {
		if now.Spec.Replicas == sent {
			return nil
		}
		return setReplicas(row, obj, now.Spec.Replicas)
	}, nil
}

// scale serves the scale subresource of any row that has replicas.
func (c *Call) scale() {
	if c.Info.Verb == "get" {
		if err := c.settle(c.Query.Get("resourceVersion")); err != nil {
			c.fail(err)
			return
		}
		it := c.Objects.item(c.Row, c.Namespace, c.Name)
		if it == nil {
			c.fail(apierrors.NewNotFound(c.Row.GR(), c.Name))
			return
		}
		obj, err := objectOf(it, c.Row)
		if err == nil {
			err = c.respondScale(obj)
		}
		if err != nil {
			c.fail(err)
		}
		return
	}
	p := c.writeParams()
	change, opts, err := c.scaleChange(p)
	if err != nil {
		c.fail(err)
		return
	}
	it, _, err := c.Objects.Update(c.R.Context(), c.Request, c.Row, "scale", c.Namespace, c.Name, change, opts)
	if err == nil {
		var obj resources.Object
		if obj, err = objectOf(it, c.Row); err == nil {
			err = c.respondScale(obj)
		}
	}
	if err != nil {
		c.fail(err)
	}
}

func (c *Call) respondScale(obj resources.Object) error {
	if c.format.As == "PartialObjectMetadataList" {
		return c.misshapen("not a list", scaleKind.Kind)
	}
	s, err := scaleOf(c.Row, obj)
	if err != nil {
		return apierrors.NewInternalError(err)
	}
	shown, gvk := runtime.Object(s), scaleKind
	switch c.format.As {
	case "Table":
		if shown, err = c.scaleTable(s); err != nil {
			return err
		}
		gvk = c.format.Target()
	case "PartialObjectMetadata":
		shown, gvk = &metav1.PartialObjectMetadata{ObjectMeta: s.ObjectMeta}, c.format.Target()
	}
	writeObject(c.W, c.R, http.StatusOK, shown, gvk, codec.Format{Kind: c.format.Kind, Pretty: c.format.Pretty})
	return nil
}

// scaleTable is a Scale as kubectl prints it. Source: kube-apiserver 1.36, which describes the columns of built-in
// and of custom kinds differently.
func (c *Call) scaleTable(s *autoscalingv1.Scale) (*metav1.Table, error) {
	name, age := nameColumn, ageColumn
	desired := metav1.TableColumnDefinition{Name: "Desired", Type: "integer", Description: "replicas is the desired number of instances for the scaled object."}
	available := metav1.TableColumnDefinition{Name: "Available", Type: "integer", Description: "replicas is the actual number of observed instances of the scaled object."}
	if c.Row.Custom == nil {
		name.Format = ""
	} else {
		desired.Description, available.Description, age.Type = "Number of desired replicas", "Number of actual replicas", "date"
	}
	row := metav1.TableRow{Cells: []any{s.Name, int64(s.Spec.Replicas), int64(s.Status.Replicas), resources.Age(s.CreationTimestamp, c.Request.Now)}}
	t, err := c.newTable()
	if err != nil {
		return nil, err
	}
	switch t.include {
	case metav1.IncludeObject:
		s.SetGroupVersionKind(scaleKind)
		row.Object.Object = s
	case metav1.IncludeMetadata:
		part := &metav1.PartialObjectMetadata{ObjectMeta: s.ObjectMeta}
		part.SetGroupVersionKind(schema.GroupVersionKind{Group: metav1.GroupName, Version: c.format.Version, Kind: "PartialObjectMetadata"})
		row.Object.Object = part
	}
	return &metav1.Table{
		ListMeta:          metav1.ListMeta{ResourceVersion: s.ResourceVersion},
		ColumnDefinitions: []metav1.TableColumnDefinition{name, desired, available, age}, Rows: []metav1.TableRow{row},
	}, nil
}

func (c *Call) scaleChange(p writeParams) (Change, WriteOptions, error) {
	opts := WriteOptions{Manager: c.manager(p), Options: p.update()}
	// with returns a copy of the object that has the replicas and version of s.
	with := func(current resources.Object, s *autoscalingv1.Scale) (resources.Object, error) {
		var errs field.ErrorList
		if s.Spec.Replicas < 0 && c.Row.Custom == nil { // a custom kind knows the number by its own path
			errs = append(errs, field.Invalid(field.NewPath("spec", "replicas"), s.Spec.Replicas, "must be greater than or equal to 0"))
		}
		if s.Name != "" && s.Name != c.Name {
			return nil, misnamed(s.Name, c.Name)
		}
		if len(errs) > 0 {
			return nil, apierrors.NewInvalid(scaleKind.GroupKind(), s.Name, errs)
		}
		obj := current.DeepCopyObject().(resources.Object)
		if s.ResourceVersion != "" || !c.Row.NeedsVersion {
			obj.SetResourceVersion(s.ResourceVersion)
		}
		if s.UID != "" {
			obj.SetUID(s.UID)
		}
		return obj, setReplicas(c.Row, obj, s.Spec.Replicas)
	}
	if c.Info.Verb == "update" {
		if err := p.checkUpdate(); err != nil {
			return nil, opts, err
		}
		in, err := c.DecodeAs(scaleKind, func() runtime.Object { return &autoscalingv1.Scale{} })
		if err != nil {
			return nil, opts, err
		}
		s := in.(*autoscalingv1.Scale)
		if err := c.placed(s); err != nil {
			return nil, opts, err
		}
		return func(current resources.Object) (resources.Object, error) { return with(current, s) }, opts, nil
	}
	media, _, _ := mime.ParseMediaType(c.R.Header.Get("Content-Type"))
	kind := types.PatchType(media)
	if c.Row.Custom != nil && kind == types.StrategicMergePatchType {
		return nil, opts, unsupportedMedia(strings.Join(customPatchTypes, ", "))
	}
	if err := p.checkPatch(kind); err != nil {
		return nil, opts, err
	}
	opts.Options, opts.Retry = p.patch(), true
	text, err := c.Body()
	if err != nil {
		return nil, opts, err
	}
	if kind == types.ApplyYAMLPatchType {
		return c.scaleApply(text, p, opts)
	}
	return func(current resources.Object) (resources.Object, error) {
		s, err := scaleOf(c.Row, current)
		if err != nil {
			return nil, apierrors.NewInternalError(err)
		}
		s.SetGroupVersionKind(scaleKind)
		next, shown := &autoscalingv1.Scale{}, ""
		var strict, more []error
		switch kind {
		case types.StrategicMergePatchType:
			shown, strict, err = patch.Strategic(s, next, text)
		case types.JSONPatchType, types.MergePatchType:
			var doc []byte
			if doc, err = codec.AppendObject(nil, s, scaleKind, codec.Format{}); err != nil {
				return nil, err
			}
			if kind == types.JSONPatchType {
				doc, err = patch.JSON(doc, text)
			} else {
				doc, strict, err = patch.Merge(doc, text)
			}
			if err == nil {
				if more, err = codec.UnmarshalStrict(doc, next); err != nil {
					return nil, invalidPatch(string(doc), err)
				}
				shown, strict = string(doc), append(strict, more...)
				if gvk := next.GroupVersionKind(); gvk != scaleKind {
					return nil, invalidPatch(shown, fmt.Errorf("no kind %q is registered for version %q", gvk.Kind, gvk.GroupVersion()))
				}
			}
		default:
			return nil, unsupportedMedia("application/json-patch+json, application/merge-patch+json, application/strategic-merge-patch+json, application/apply-patch+yaml")
		}
		var shape *patch.ShapeError
		if errors.As(err, &shape) {
			return nil, invalidPatch(shown, shape.Err)
		}
		if err == nil {
			err = c.strict(strict, func(e error) error { return invalidPatch(shown, e) })
		}
		if err != nil {
			return nil, err
		}
		if err := c.sameScale(next.UID, current); err != nil {
			return nil, err
		}
		return with(current, next)
	}, opts, nil
}

// sameScale refuses a patch that names another object than the current one.
func (c *Call) sameScale(uid types.UID, current resources.Object) error {
	if uid == "" || uid == current.GetUID() {
		return nil
	}
	gr := c.Row.GR()
	gr.Resource += "/scale"
	return apierrors.NewConflict(gr, c.Name, fmt.Errorf("Precondition failed: UID in precondition: %v, UID in object meta: %v", uid, current.GetUID()))
}

// scaleApply books the replicas on the object itself, under the name of the subresource.
func (c *Call) scaleApply(text []byte, p writeParams, opts WriteOptions) (Change, WriteOptions, error) {
	config, err := c.applied(text)
	if err != nil {
		return nil, opts, err
	}
	if config.GroupVersionKind() != scaleKind {
		return nil, opts, apierrors.NewBadRequest(fmt.Sprintf("invalid object type: %v", config.GroupVersionKind()))
	}
	own := &unstructured.Unstructured{Object: map[string]any{"metadata": map[string]any{"name": c.Name}}}
	own.SetGroupVersionKind(c.Row.GVK())
	own.SetResourceVersion(config.GetResourceVersion())
	if c.Row.Namespaced {
		own.SetNamespace(c.Namespace)
	}
	if n, ok, _ := unstructured.NestedInt64(config.Object, "spec", "replicas"); ok {
		if n < 0 {
			return nil, opts, apierrors.NewInvalid(scaleKind.GroupKind(), c.Name, field.ErrorList{
				field.Invalid(field.NewPath("spec", "replicas"), n, "must be greater than or equal to 0")})
		}
		at := []string{"spec", "replicas"}
		if c, ok := c.Row.Custom.(Scalable); ok {
			at = c.ReplicasPath()
		}
		_ = unstructured.SetNestedField(own.Object, n, at...)
	}
	opts.Booked = true
	return func(current resources.Object) (resources.Object, error) {
		if err := c.sameScale(config.GetUID(), current); err != nil {
			return nil, err
		}
		w := patch.Write{Row: c.Row, Subresource: "scale", Seen: scaleKind.GroupVersion(), Manager: c.manager(p), Now: c.Request.Now}
		obj, _, err := c.Objects.fields.Apply(w, current, own, p.force != nil && *p.force)
		if err != nil {
			return nil, err
		}
		c.Row.Default(obj)
		return obj, nil
	}, opts, nil
}
