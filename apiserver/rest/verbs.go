package rest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strings"

	authorizationv1 "k8s.io/api/authorization/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/keelson/keelson/apiserver/audit"
	"github.com/keelson/keelson/apiserver/codec"
	"github.com/keelson/keelson/apiserver/patch"
	"github.com/keelson/keelson/apiserver/resources"
	"github.com/keelson/keelson/apiserver/watchcache"
)

// Body reads the request's body within the server's limit.
func (c *Call) Body() ([]byte, error) {
	limit := c.Server.cfg.MaxBody
	if c.R.ContentLength > limit {
		// A client on HTTP/1 writes before it reads: it would see a broken connection and no answer.
		_, _ = io.CopyN(io.Discard, c.R.Body, limit+1)
		return nil, apierrors.NewRequestEntityTooLargeError(fmt.Sprintf("limit is %d", limit))
	}
	body, err := codec.ReadBody(c.R.Body, limit)
	if errors.Is(err, codec.ErrTooLarge) {
		return nil, apierrors.NewRequestEntityTooLargeError(fmt.Sprintf("limit is %d", limit))
	}
	if err != nil {
		return nil, apierrors.NewBadRequest("read the request's body: " + err.Error())
	}
	c.Server.cfg.Metrics.body(c.Info, c.Row.GR(), len(body))
	return body, nil
}

// DecodeAs reads the body as another kind than the row's own: a binding, an
// eviction, a token request. fresh makes the object to fill.
func (c *Call) DecodeAs(gvk schema.GroupVersionKind, fresh func() runtime.Object) (runtime.Object, error) {
	if err := c.writeParams().checkCreate(); err != nil {
		return nil, err
	}
	body, err := c.Body()
	if err != nil {
		return nil, err
	}
	var named schema.GroupVersionKind
	in, err := codec.DecodeRequest(c.R.Header.Get("Content-Type"), body, gvk, func(got schema.GroupVersionKind) (runtime.Object, error) {
		named = got
		switch {
		case got.Kind != gvk.Kind:
			return nil, fmt.Errorf("no kind %q is expected here", got.Kind)
		case got.Group != gvk.Group:
			return nil, fmt.Errorf("no kind %q is registered for version %q", got.Kind, got.GroupVersion())
		}
		return fresh(), nil
	})
	if err != nil {
		return nil, decodeError(&resources.Row{Kind: gvk.Kind}, named, body, err)
	}
	if err := c.strict(in.Strict, func(e error) error { return decodeError(&resources.Row{Kind: gvk.Kind}, in.GVK, nil, e) }); err != nil {
		return nil, err
	}
	return in.Object, nil
}

// Respond answers with any object: the result of a subresource.
func (c *Call) Respond(code int, obj runtime.Object, gvk schema.GroupVersionKind) {
	WriteObject(c.W, c.R, code, obj, gvk)
}

// RespondItem answers with an object as it was stored.
func (c *Call) RespondItem(code int, it *watchcache.Item) { c.respond(code, it) }

// Fail answers with the Status of err.
func (c *Call) Fail(err error) { c.fail(err) }

// strict acts on unknown and duplicate fields as fieldValidation says.
func (c *Call) strict(found []error, refuse func(error) error) error {
	if len(found) == 0 {
		return nil
	}
	switch c.writeParams().validation() {
	case metav1.FieldValidationIgnore:
	case metav1.FieldValidationWarn:
		for _, e := range found {
			// The YAML parser tells all its findings at once, a line each below a heading.
			lines := strings.Split(e.Error(), "\n")
			if len(lines) > 1 {
				lines = lines[1:]
			}
			for _, l := range lines {
				c.Request.Warn(strings.TrimSpace(l))
			}
		}
	default:
		return refuse(runtime.NewStrictDecodingError(found))
	}
	return nil
}

// decode reads the body as the row's kind, with defaults set.
func (c *Call) decode() (resources.Object, error) {
	body, err := c.Body()
	if err != nil {
		return nil, err
	}
	row := c.Row
	var named schema.GroupVersionKind
	in, err := codec.DecodeRequest(c.R.Header.Get("Content-Type"), body, row.GVK(), func(got schema.GroupVersionKind) (runtime.Object, error) {
		named = got
		switch want := row.GVK(); {
		case got.GroupVersion() != want.GroupVersion():
			return nil, misversioned(got.GroupVersion().String(), row)
		case got.Kind != want.Kind && row.Custom == nil: // what a custom object says is validated with the rest of it
			return nil, fmt.Errorf("the kind in the data (%s) does not match the expected kind (%s)", got.Kind, want.Kind)
		}
		return row.New(), nil
	})
	if err != nil {
		return nil, decodeError(row, named, body, err)
	}
	obj := in.Object.(resources.Object)
	if u, ok := in.Object.(*unstructured.Unstructured); ok { // nothing is assumed of custom objects
		if u.GetKind() == "" {
			return nil, decodeError(row, schema.GroupVersionKind{}, body, fmt.Errorf("Object 'Kind' is missing in '%s'", body))
		}
		if u.GetAPIVersion() == "" {
			return nil, misversioned("", row)
		}
	}
	unknown, err := admit(row, obj)
	if err != nil {
		return nil, decodeError(row, in.GVK, body, err)
	}
	if err := c.strict(append(in.Strict, unknown...), func(e error) error { return decodeError(row, in.GVK, body, e) }); err != nil {
		return nil, err
	}
	own(row, obj)
	row.Default(obj)
	audit.From(c.R.Context()).Named(obj)
	return obj, nil
}

func misversioned(got string, row *resources.Row) error {
	return apierrors.NewBadRequest(fmt.Sprintf("the API version in the data (%s) does not match the expected API version (%s)", got, row.GVK().GroupVersion()))
}

// Admitter is what Row.Custom implements to bring what clients send into shape. It
// returns the paths of fields that the kind does not have; they are dropped.
type Admitter interface {
	Admit(u *unstructured.Unstructured) (unknown []string, err error)
}

// admit returns unknown fields of a custom object as strict decoding reports those of others.
func admit(row *resources.Row, obj resources.Object) (strict []error, err error) {
	a, ok := row.Custom.(Admitter)
	if !ok {
		return nil, nil
	}
	unknown, err := a.Admit(obj.(*unstructured.Unstructured))
	for _, path := range unknown {
		strict = append(strict, fmt.Errorf(`unknown field "%s"`, path))
	}
	return strict, err
}

// own takes kind and version out of typed objects. Custom objects have them, and are validated with them.
func own(row *resources.Row, obj resources.Object) {
	if row.Custom == nil {
		obj.GetObjectKind().SetGroupVersionKind(schema.GroupVersionKind{})
	}
}

// place checks the object's namespace against the path's, and sets it where it is missing.
func (c *Call) place(obj resources.Object) error {
	if !c.Row.Namespaced {
		obj.SetNamespace("") // what an object in no namespace says of one counts for nothing
		return nil
	}
	switch obj.GetNamespace() {
	case "":
		obj.SetNamespace(c.Namespace)
	case c.Namespace:
	default:
		return apierrors.NewBadRequest(otherNamespace)
	}
	return nil
}

func (c *Call) create() {
	p := c.writeParams()
	if err := p.checkCreate(); err != nil {
		c.fail(err)
		return
	}
	obj, err := c.decode()
	if err == nil && (c.Row.Namespaced || c.Server.cfg.Virtual[c.Row.GR()] == nil) {
		err = c.place(obj)
	}
	if err != nil {
		c.fail(err)
		return
	}
	if answer := c.Server.cfg.Virtual[c.Row.GR()]; answer != nil {
		c.ask(obj, p, answer)
		return
	}
	it, err := c.Objects.Create(c.R.Context(), c.Request, c.Row, obj, WriteOptions{Manager: c.manager(p), Options: p.create()})
	if err != nil {
		c.fail(err)
		return
	}
	c.respond(http.StatusCreated, it)
}

// ask answers for a kind that is not stored.
func (c *Call) ask(obj resources.Object, p writeParams, answer func(*resources.Request, resources.Object) (resources.Object, error)) {
	if c.format.As != "" {
		c.fail(apierrors.NewGenericServerResponse(http.StatusNotAcceptable, c.R.Method, c.Row.GR(), "", "the kind has no "+c.format.As+" form", 0, true))
		return
	}
	rq := c.Objects.request(c.R.Context(), c.Request, "")
	c.Objects.book(patch.Write{Row: c.Row, Manager: c.manager(p), Reset: c.Row.Main.Reset, Now: rq.Now}, nil, obj)
	c.Row.Main.Prepare(rq, obj, nil)
	if errs := c.Row.Main.Validate(rq, obj, nil); len(errs) > 0 {
		kind, name := c.Row.GVK().GroupKind(), obj.GetName()
		if c.Row.Group == authorizationv1.GroupName {
			kind.Kind, name = "", "" // upstream's reviews do not say what they are
		}
		c.fail(apierrors.NewInvalid(kind, name, errs))
		return
	}
	out, err := answer(rq, obj)
	if err != nil {
		c.fail(err)
		return
	}
	writeObject(c.W, c.R, http.StatusCreated, out, c.Row.GVK(), codec.Format{Kind: c.format.Kind, Pretty: c.format.Pretty})
}

func (c *Call) update(part string) {
	p := c.writeParams()
	if err := p.checkUpdate(); err != nil {
		c.fail(err)
		return
	}
	sent, err := c.decode()
	if err == nil {
		err = c.place(sent)
	}
	if err == nil && sent.GetName() != c.Name {
		if sent.GetName() == "" {
			err = nameless(c.Name)
		} else {
			err = misnamed(sent.GetName(), c.Name)
		}
	}
	if err != nil {
		c.fail(err)
		return
	}
	change := func(current resources.Object) (resources.Object, error) {
		if current == nil && sent.GetUID() != "" {
			return nil, apierrors.NewNotFound(c.Row.GR(), c.Name)
		}
		return sent.DeepCopyObject().(resources.Object), nil
	}
	opts := WriteOptions{Manager: c.manager(p), Options: p.update(), Create: c.Row.CreateOnUpdate, Replace: true}
	it, created, err := c.Objects.Update(c.R.Context(), c.Request, c.Row, part, c.Namespace, c.Name, change, opts)
	if err != nil {
		c.fail(err)
		return
	}
	code := http.StatusOK
	if created {
		code = http.StatusCreated
	}
	c.respond(code, it)
}

// placed checks that a patched object is still the one that the URL names.
func (c *Call) placed(obj resources.Object) error {
	switch name := obj.GetName(); name {
	case "":
		return nameless(c.Name)
	case c.Name:
	default:
		return misnamed(name, c.Name)
	}
	return c.place(obj)
}

// tooLate refuses new objects of a definition that is on its way out.
func (c *Call) tooLate() {
	obj, err := c.decode()
	if err == nil {
		err = apierrors.NewForbidden(c.Row.GR(), obj.GetName(), errors.New("create not allowed while custom resource definition is terminating"))
	}
	c.fail(err)
}

func nameless(name string) error {
	return apierrors.NewBadRequest(fmt.Sprintf("the name of the object (%s based on URL) was undeterminable: name must be provided", name))
}

func misnamed(name, url string) error {
	return apierrors.NewBadRequest(fmt.Sprintf("the name of the object (%s) does not match the name on the URL (%s)", name, url))
}

var patchTypes = []string{
	string(types.JSONPatchType), string(types.MergePatchType), string(types.StrategicMergePatchType), string(types.ApplyYAMLPatchType),
}

// customPatchTypes are those of kinds whose lists nobody has described for strategic patches.
var customPatchTypes = []string{patchTypes[0], patchTypes[1], patchTypes[3]}

func (c *Call) patch(part string) {
	p := c.writeParams()
	media, _, err := mime.ParseMediaType(c.R.Header.Get("Content-Type"))
	kind := types.PatchType(media)
	served := patchTypes
	if c.Row.Custom != nil {
		served = customPatchTypes
	}
	ok := err == nil
	if ok {
		ok = false
		for _, t := range served {
			ok = ok || t == media
		}
	}
	if !ok {
		if c.Row.Custom == nil {
			e := statusError(http.StatusUnsupportedMediaType, metav1.StatusReasonUnsupportedMediaType, "415: Unsupported Media Type")
			e.ErrStatus.Details = &metav1.StatusDetails{}
			c.fail(e)
			return
		}
		c.fail(unsupportedMedia(strings.Join(served, ", ")))
		return
	}
	if err := p.checkPatch(kind); err != nil {
		c.fail(err)
		return
	}
	text, err := c.Body()
	if err != nil {
		c.fail(err)
		return
	}
	opts := WriteOptions{Manager: c.manager(p), Options: p.patch(), Retry: true}
	var change Change
	if kind == types.ApplyYAMLPatchType {
		config, err := c.applied(text)
		if err != nil {
			c.fail(err)
			return
		}
		opts.Create, opts.Booked = part == "", true
		change = func(current resources.Object) (resources.Object, error) {
			return c.apply(current, config, part, p)
		}
	} else {
		warned := false
		change = func(current resources.Object) (resources.Object, error) {
			obj, doc, strict, err := c.patched(kind, text, current)
			if err != nil {
				return nil, err
			}
			if err := c.placed(obj); err != nil {
				return nil, err
			}
			if !warned {
				warned = true
				if err := c.strict(strict, func(e error) error { return invalidPatch(doc, e) }); err != nil {
					return nil, err
				}
			}
			own(c.Row, obj)
			c.Row.Default(obj)
			return obj, nil
		}
	}
	it, created, err := c.Objects.Update(c.R.Context(), c.Request, c.Row, part, c.Namespace, c.Name, change, opts)
	if err != nil {
		c.fail(err)
		return
	}
	code := http.StatusOK
	if created {
		code = http.StatusCreated
	}
	c.respond(code, it)
}

func invalidPatch(doc string, err error) error {
	return apierrors.NewInvalid(schema.GroupKind{}, "", field.ErrorList{field.Invalid(field.NewPath("patch"), doc, err.Error())})
}

// patched applies a patch that is not an apply.
// shown is the document that errors quote.
func (c *Call) patched(kind types.PatchType, text []byte, current resources.Object) (obj resources.Object, shown string, strict []error, err error) {
	if kind != types.JSONPatchType && c.Row.Custom == nil {
		if obj, ok := patch.Tagged(current, text); ok {
			return obj, "", nil, nil
		}
		if narrow, widen, ok := patch.Narrow(current, text); ok {
			if obj, shown, strict, err = c.patchedWhole(kind, text, narrow); err == nil && len(strict) == 0 {
				widen(obj)
				return obj, shown, nil, nil
			}
		}
	} // errors quote the whole
	return c.patchedWhole(kind, text, current)
}

func (c *Call) patchedWhole(kind types.PatchType, text []byte, current resources.Object) (obj resources.Object, shown string, strict []error, err error) {
	into := c.Row.New()
	if kind == types.StrategicMergePatchType {
		doc := current.DeepCopyObject().(resources.Object)
		doc.GetObjectKind().SetGroupVersionKind(c.Row.GVK())
		shown, strict, err = patch.Strategic(doc, into, text)
	} else {
		var doc []byte
		if doc, err = c.document(current); err != nil {
			return nil, "", nil, apierrors.NewInternalError(err)
		}
		if kind == types.JSONPatchType {
			strict = patch.Unknown(text)
			doc, err = patch.JSON(doc, text)
		} else {
			doc, strict, err = patch.Merge(doc, text)
		}
		if err == nil {
			var more []error
			if more, err = codec.UnmarshalStrict(doc, into); err != nil {
				return nil, "", nil, invalidPatch(string(doc), err)
			}
			unknown, err := admit(c.Row, into)
			if err != nil {
				return nil, "", nil, invalidPatch(string(doc), err)
			}
			shown, strict = string(doc), append(append(strict, more...), unknown...)
		}
	}
	var shape *patch.ShapeError
	if errors.As(err, &shape) {
		return nil, "", nil, invalidPatch(shown, shape.Err)
	}
	if err != nil {
		return nil, "", nil, err
	}
	// A strategic patch is of the object as a Go value, in which these fields mean nothing.
	// Custom objects are validated for what they say to be.
	if gvk := into.GetObjectKind().GroupVersionKind(); gvk != c.Row.GVK() && kind != types.StrategicMergePatchType && c.Row.Custom == nil {
		return nil, "", nil, invalidPatch(shown, fmt.Errorf("no kind %q is registered for version %q", gvk.Kind, gvk.GroupVersion()))
	}
	return into, shown, strict, nil
}

// document is the object as JSON with kind and apiVersion.
func (c *Call) document(obj resources.Object) ([]byte, error) {
	return codec.AppendObject(nil, obj, c.Row.GVK(), codec.Format{})
}

// applied reads the configuration of a server-side apply: YAML, of which JSON is a part.
func (c *Call) applied(text []byte) (*unstructured.Unstructured, error) {
	media := codec.MediaYAML
	if t := bytes.TrimSpace(text); len(t) > 0 && t[0] == '{' && json.Valid(t) {
		media = codec.MediaJSON
	}
	config := &unstructured.Unstructured{Object: map[string]any{}}
	in, err := codec.DecodeRequest(media, text, c.Row.GVK(), func(schema.GroupVersionKind) (runtime.Object, error) { return config, nil })
	if errors.Is(err, codec.ErrTooLarge) {
		return nil, err
	}
	if err != nil {
		text := err.Error()
		if strings.HasPrefix(text, "yaml: ") {
			text = "error converting YAML to JSON: " + text
		} else if _, shape, ok := strings.Cut(text, "json: cannot unmarshal "); ok && strings.Contains(text, "couldn't get version/kind") {
			shape, _, _ = strings.Cut(shape, " into Go value")
			text = "error unmarshaling JSON: while decoding JSON: json: cannot unmarshal " + shape + " into Go value of type map[string]interface {}"
		}
		return nil, apierrors.NewBadRequest("error decoding YAML: " + text)
	}
	err = c.strict(in.Strict, func(e error) error {
		return apierrors.NewBadRequest(fmt.Sprintf("error strict decoding YAML: %v", e))
	})
	return config, err
}

func (c *Call) apply(current resources.Object, config *unstructured.Unstructured, part string, p writeParams) (resources.Object, error) {
	hooks := c.Row.Main
	if part != "" {
		hooks = c.Row.Parts[part]
	}
	if uid := config.GetUID(); current == nil && uid != "" {
		return nil, apierrors.NewConflict(c.Row.GR(), c.Name, fmt.Errorf("uid mismatch: the provided object specified uid %s, and no existing object was found", uid))
	}
	w := patch.Write{Row: c.Row, Subresource: part, Reset: hooks.Reset, Manager: c.manager(p), Now: c.Request.Now}
	obj, changed, err := c.Objects.fields.Apply(w, current, config, p.force != nil && *p.force)
	if err != nil {
		return nil, err
	}
	own(c.Row, obj)
	if err := c.placed(obj); err != nil { // after conflicts, as upstream
		return nil, err
	}
	if _, err := admit(c.Row, obj); err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	if changed { // what was written through another version may lack this one's defaults, and keeps doing so
		c.Row.Default(obj)
	}
	return obj, nil
}

// deleteOptions come in the body, or in the query when there is no body.
func (c *Call) deleteOptions() (*metav1.DeleteOptions, error) {
	body, err := c.Body()
	if err != nil {
		return nil, err
	}
	opts := &metav1.DeleteOptions{}
	if len(body) > 0 {
		def := schema.GroupVersionKind{Version: "v1", Kind: "DeleteOptions"}
		_, err := codec.DecodeRequest(c.R.Header.Get("Content-Type"), body, def, func(got schema.GroupVersionKind) (runtime.Object, error) {
			if got.Kind != "DeleteOptions" { // of any version: they are all alike
				return nil, fmt.Errorf("no kind %q is registered for version %q", got.Kind, got.GroupVersion())
			}
			return opts, nil
		})
		switch {
		case errors.Is(err, codec.ErrMediaType):
			return nil, err
		case err != nil:
			return nil, apierrors.NewBadRequest(err.Error())
		}
	} else if err := metav1.Convert_url_Values_To_v1_DeleteOptions(&c.Query, opts, nil); err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	opts.IgnoreStoreReadErrorWithClusterBreakingPotential = nil // the gate AllowUnsafeMalformedObjectDeletion is closed in 1.36
	if err := invalidOptions("DeleteOptions", metavalidation.ValidateDeleteOptions(opts)); err != nil {
		return nil, err
	}
	c.Request.DryRun = len(opts.DryRun) > 0 // beside a body the query means nothing
	if c.Row.OrphanWarning != "" && opts.PropagationPolicy == nil && opts.OrphanDependents == nil {
		c.Request.Warn(c.Row.OrphanWarning)
	}
	return opts, nil
}

func (c *Call) delete() {
	opts, err := c.deleteOptions()
	if err != nil {
		c.fail(err)
		return
	}
	it, now, err := c.Objects.remove(c.R.Context(), c.Request, c.Row, c.Namespace, c.Name, opts)
	if err != nil {
		c.fail(err)
		return
	}
	code := http.StatusOK
	if !now && opts.OrphanDependents != nil && !*opts.OrphanDependents {
		code = http.StatusAccepted
	}
	if !now || resources.ReturnsDeleted(c.Row.GR()) {
		c.respond(code, it)
		return
	}
	st := &metav1.Status{Status: metav1.StatusSuccess, Details: &metav1.StatusDetails{
		Name: c.Name, Group: c.Row.Group, Kind: c.Row.Plural, UID: it.Head().UID,
	}}
	writeObject(c.W, c.R, code, st, statusKind, codec.Format{Kind: c.format.Kind, Pretty: c.format.Pretty})
}

func (c *Call) deleteCollection() {
	p, err := c.listParams(false)
	if err != nil {
		c.fail(err)
		return
	}
	opts, err := c.deleteOptions()
	if err != nil {
		c.fail(err)
		return
	}
	sel, err := c.selection(p)
	if err != nil {
		c.fail(err)
		return
	}
	if n, _ := parseRev(p.ResourceVersion); n > 0 && p.ResourceVersionMatch == "" && p.Continue == "" {
		p.ResourceVersionMatch = metav1.ResourceVersionMatchExact // upstream deletes by pages, and lists of pages are exact
	}
	found, meta, err := c.page(p, sel) // what a list with the same parameters shows is what goes
	if err != nil {
		c.fail(err)
		return
	}
	items, err := c.Objects.deleteEach(c.R.Context(), c.Request, c.Row, found, opts)
	if err != nil {
		c.fail(err)
		return
	}
	c.respondList(items, meta)
}
