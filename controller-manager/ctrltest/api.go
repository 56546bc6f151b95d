// Package ctrltest runs one controller to rest against a memory API.
//
// [Test] starts a row of the table on fake time, with a real client-go clientset
// over an in-memory transport: no sockets, no sleeps. [Harness.Rest] returns when
// nothing in the test moves any more; what the controller wrote by then is what
// the test looks at.
//
// The memory API keeps the rules that controllers lean on: one resourceVersion for
// all kinds, conflicts on stale writes, UID preconditions, generation, status apart
// from spec, finalizers, graceful deletion of bound pods, collection of objects
// whose owners are gone, merge and strategic patches, lists, watches with
// bookmarks, discovery of the kinds that it has seen. It validates and defaults nothing: objects in tests are complete.
//
// It keeps no goroutine of its own except one for each open watch, which ends with
// the request.
package ctrltest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"k8s.io/client-go/kubernetes/scheme"
)

type object = unstructured.Unstructured

// API is the memory API; it is an http.RoundTripper.
type API struct {
	mu      sync.Mutex // guards what follows
	rev     int64
	names   int
	objects map[string]map[types.NamespacedName]*object // by path prefix: "apis/apps/v1/replicasets"
	events  []change
	wake    chan struct{} // closed and replaced with every change
	writes  []string
	refuse  func(verb, resource string) error
	answers map[string]func(*object) // by resource: creations that are answered and not kept
	spaced  map[string]bool          // by prefix: the kind is namespaced
	lag     map[string]time.Duration // of news, by resource; "" is all others
}

type change struct {
	rev    int64
	prefix string
	kind   string // ADDED, MODIFIED, DELETED
	object *object
}

func newAPI() *API {
	return &API{objects: map[string]map[types.NamespacedName]*object{}, wake: make(chan struct{}), answers: map[string]func(*object){}, spaced: map[string]bool{}}
}

// request is a path taken apart.
type request struct {
	prefix string // "api/v1/pods"
	key    types.NamespacedName
	sub    string
}

func (r request) resource() string { return r.prefix[strings.LastIndexByte(r.prefix, '/')+1:] }

func parse(path string) request {
	p := strings.Split(strings.Trim(path, "/"), "/")
	n := 2 // api/v1
	if p[0] == "apis" {
		n = 3
	}
	root, rest := p[:n], p[n:]
	var r request
	if len(rest) > 2 && rest[0] == "namespaces" && rest[2] != "status" && rest[2] != "finalize" {
		r.key.Namespace = rest[1]
		rest = rest[2:]
	}
	r.prefix = strings.Join(append(slices.Clone(root), rest[0]), "/")
	if len(rest) > 1 {
		r.key.Name = rest[1]
	}
	if len(rest) > 2 {
		r.sub = rest[2]
	}
	return r
}

// RoundTrip answers a request.
func (a *API) RoundTrip(req *http.Request) (*http.Response, error) {
	if out := a.discover(strings.Trim(req.URL.Path, "/")); out != nil {
		return answer(req, http.StatusOK, out), nil
	}
	r := parse(req.URL.Path)
	q := req.URL.Query()
	var body []byte
	if req.Body != nil {
		body, _ = io.ReadAll(req.Body)
		req.Body.Close()
	}
	if req.Method == http.MethodGet && r.key.Name == "" && q.Get("watch") == "true" {
		return a.watch(req, r)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	out, err := a.serve(req, r, body)
	if err != nil {
		return answer(req, int(err.Code), err), nil
	}
	return answer(req, http.StatusOK, out), nil
}

func answer(req *http.Request, code int, v any) *http.Response {
	data, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return &http.Response{StatusCode: code, Status: http.StatusText(code), Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Request: req,
		Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(bytes.NewReader(data)), ContentLength: int64(len(data))}
}

func fail(code int32, reason metav1.StatusReason, format string, args ...any) *metav1.Status {
	return &metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: metav1.StatusFailure, Code: code, Reason: reason, Message: fmt.Sprintf(format, args...)}
}

func (a *API) serve(req *http.Request, r request, body []byte) (any, *metav1.Status) {
	verb := map[string]string{http.MethodPost: "create", http.MethodPut: "update", http.MethodPatch: "patch", http.MethodDelete: "delete"}[req.Method]
	if verb != "" && a.refuse != nil {
		if err := a.refuse(verb, r.resource()); err != nil {
			return nil, fail(http.StatusForbidden, metav1.StatusReasonForbidden, "%v", err)
		}
	}
	if req.Method == http.MethodPost {
		o := &object{}
		if err := o.UnmarshalJSON(body); err != nil {
			return nil, fail(http.StatusBadRequest, metav1.StatusReasonBadRequest, "%v", err)
		}
		if f := a.answers[r.resource()]; f != nil {
			f(o)
			return o, nil
		}
		return a.create(r, o)
	}
	if req.Method == http.MethodDelete && r.key.Name == "" {
		for _, k := range sortedKeys(a.objects[r.prefix]) {
			if o := a.objects[r.prefix][k]; o != nil && k.Namespace == r.key.Namespace {
				_, _ = a.remove(request{prefix: r.prefix, key: k}, o, metav1.DeleteOptions{})
			}
		}
		return a.list(r, ""), nil
	}
	if req.Method == http.MethodGet && r.key.Name == "" {
		return a.list(r, req.URL.Query().Get("labelSelector")), nil
	}
	had := a.objects[r.prefix][r.key]
	if had == nil {
		return nil, fail(http.StatusNotFound, metav1.StatusReasonNotFound, "%s %q not found", r.resource(), r.key.Name)
	}
	switch req.Method {
	case http.MethodGet:
		return had, nil
	case http.MethodPut:
		o := &object{}
		if err := o.UnmarshalJSON(body); err != nil {
			return nil, fail(http.StatusBadRequest, metav1.StatusReasonBadRequest, "%v", err)
		}
		return a.update("update", r, had, o)
	case http.MethodPatch:
		o, err := patched(had, req.Header.Get("Content-Type"), body)
		if err != nil {
			return nil, fail(http.StatusBadRequest, metav1.StatusReasonBadRequest, "%v", err)
		}
		return a.update("patch", r, had, o)
	case http.MethodDelete:
		var o metav1.DeleteOptions
		if len(body) > 0 {
			if err := json.Unmarshal(body, &o); err != nil {
				return nil, fail(http.StatusBadRequest, metav1.StatusReasonBadRequest, "%v", err)
			}
		}
		return a.remove(r, had, o)
	}
	return nil, fail(http.StatusMethodNotAllowed, metav1.StatusReasonMethodNotAllowed, "%s", req.Method)
}

func (a *API) note(verb string, r request, o *object) {
	if r.resource() == "events" {
		return
	}
	name := r.resource()
	if r.sub != "" {
		name += "/" + r.sub
	}
	a.writes = append(a.writes, fmt.Sprintf("%s %s %s", verb, name, o.GetName()))
}

func (a *API) put(r request, kind string, o *object) {
	a.rev++
	o.SetResourceVersion(strconv.FormatInt(a.rev, 10))
	if a.objects[r.prefix] == nil {
		a.objects[r.prefix] = map[types.NamespacedName]*object{}
	}
	k := types.NamespacedName{Namespace: o.GetNamespace(), Name: o.GetName()}
	a.spaced[r.prefix] = k.Namespace != ""
	if kind == "DELETED" {
		delete(a.objects[r.prefix], k)
	} else {
		a.objects[r.prefix][k] = o
	}
	a.events = append(a.events, change{a.rev, r.prefix, kind, o})
	close(a.wake)
	a.wake = make(chan struct{})
}

func (a *API) create(r request, o *object) (*object, *metav1.Status) {
	a.names++
	if o.GetName() == "" {
		o.SetName(fmt.Sprintf("%s%d", o.GetGenerateName(), a.names))
	}
	if o.GetNamespace() == "" {
		o.SetNamespace(r.key.Namespace)
	}
	k := types.NamespacedName{Namespace: o.GetNamespace(), Name: o.GetName()}
	if a.objects[r.prefix][k] != nil {
		return nil, fail(http.StatusConflict, metav1.StatusReasonAlreadyExists, "%s %q already exists", r.resource(), k.Name)
	}
	if o.GetUID() == "" {
		o.SetUID(types.UID(fmt.Sprintf("uid-%04d", a.names)))
	}
	if o.GetCreationTimestamp().Time.IsZero() {
		o.SetCreationTimestamp(metav1.Now())
	}
	o.SetGeneration(1)
	if r.resource() == "pods" {
		if phase, _, _ := unstructured.NestedString(o.Object, "status", "phase"); phase == "" {
			_ = unstructured.SetNestedField(o.Object, "Pending", "status", "phase")
		}
	}
	a.note("create", r, o)
	a.put(r, "ADDED", o)
	return o, nil
}

func (a *API) update(verb string, r request, had, o *object) (*object, *metav1.Status) {
	if v := o.GetResourceVersion(); v != "" && v != had.GetResourceVersion() {
		return nil, fail(http.StatusConflict, metav1.StatusReasonConflict, "the object has been modified; please apply your changes to the latest version and try again")
	}
	if u := o.GetUID(); u != "" && u != had.GetUID() {
		return nil, fail(http.StatusConflict, metav1.StatusReasonConflict, "the UID in the precondition (%s) does not match the UID in record (%s)", u, had.GetUID())
	}
	o = o.DeepCopy()
	if r.sub == "status" || r.sub == "approval" {
		fresh := had.DeepCopy()
		fresh.Object["status"] = o.Object["status"]
		fresh.SetAnnotations(o.GetAnnotations())
		o = fresh
	} else if s, ok := had.Object["status"]; ok {
		o.Object["status"] = s
	}
	for _, field := range []string{"uid", "creationTimestamp", "deletionTimestamp", "generation", "deletionGracePeriodSeconds"} {
		if v, ok, _ := unstructured.NestedFieldNoCopy(had.Object, "metadata", field); ok {
			_ = unstructured.SetNestedField(o.Object, v, "metadata", field)
		} else {
			unstructured.RemoveNestedField(o.Object, "metadata", field)
		}
	}
	o.SetResourceVersion(had.GetResourceVersion())
	if reflect.DeepEqual(o.Object, had.Object) {
		return had, nil
	}
	if !reflect.DeepEqual(o.Object["spec"], had.Object["spec"]) {
		o.SetGeneration(had.GetGeneration() + 1)
	}
	a.note(verb, r, o)
	if o.GetDeletionTimestamp() != nil && !held(o) && r.resource() != "pods" {
		a.drop(r, o)
		return o, nil
	}
	if o.GetDeletionTimestamp() != nil && len(o.GetFinalizers()) == 0 && len(had.GetFinalizers()) > 0 && grace(o) == 0 {
		a.drop(r, o)
		return o, nil
	}
	a.put(r, "MODIFIED", o)
	return o, nil
}

// held: finalizers keep it, a namespace also those of its spec.
func held(o *object) bool {
	if o.GetKind() == "Namespace" {
		if f, _, _ := unstructured.NestedSlice(o.Object, "spec", "finalizers"); len(f) > 0 {
			return true
		}
	}
	return len(o.GetFinalizers()) > 0
}

func grace(o *object) int64 {
	n, _, _ := unstructured.NestedInt64(o.Object, "metadata", "deletionGracePeriodSeconds")
	return n
}

func (a *API) remove(r request, had *object, opts metav1.DeleteOptions) (any, *metav1.Status) {
	if p := opts.Preconditions; p != nil && p.UID != nil && *p.UID != had.GetUID() {
		return nil, fail(http.StatusConflict, metav1.StatusReasonConflict, "the UID in the precondition does not match")
	}
	if p := opts.Preconditions; p != nil && p.ResourceVersion != nil && *p.ResourceVersion != had.GetResourceVersion() {
		return nil, fail(http.StatusConflict, metav1.StatusReasonConflict, "the resourceVersion in the precondition does not match")
	}
	a.note("delete", r, had)
	seconds := int64(0)
	if r.resource() == "pods" {
		node, _, _ := unstructured.NestedString(had.Object, "spec", "nodeName")
		phase, _, _ := unstructured.NestedString(had.Object, "status", "phase")
		if node != "" && phase != "Succeeded" && phase != "Failed" {
			seconds = 30
		}
		if g := opts.GracePeriodSeconds; g != nil {
			seconds = *g
		}
	}
	if seconds == 0 && !held(had) {
		o := had.DeepCopy()
		a.drop(r, o)
		return o, nil
	}
	if had.GetDeletionTimestamp() == nil || grace(had) > seconds {
		o := had.DeepCopy()
		at := metav1.NewTime(time.Now().Add(time.Duration(seconds) * time.Second))
		o.SetDeletionTimestamp(&at)
		o.SetDeletionGracePeriodSeconds(&seconds)
		a.put(r, "MODIFIED", o)
		return o, nil
	}
	return had, nil
}

// drop removes an object and collects what only it owned.
func (a *API) drop(r request, o *object) {
	a.put(r, "DELETED", o)
	for _, prefix := range slices.Sorted(maps.Keys(a.objects)) {
		for _, k := range sortedKeys(a.objects[prefix]) {
			d := a.objects[prefix][k]
			refs := d.GetOwnerReferences()
			if len(refs) == 0 || !slices.ContainsFunc(refs, func(f metav1.OwnerReference) bool { return f.UID == o.GetUID() }) {
				continue
			}
			if slices.ContainsFunc(refs, func(f metav1.OwnerReference) bool { return f.UID != o.GetUID() }) {
				continue
			}
			_, _ = a.remove(request{prefix: prefix, key: k}, d, metav1.DeleteOptions{})
		}
	}
}

func sortedKeys(m map[types.NamespacedName]*object) []types.NamespacedName {
	return slices.SortedFunc(maps.Keys(m), func(a, b types.NamespacedName) int { return strings.Compare(a.String(), b.String()) })
}

func (a *API) list(r request, selector string) map[string]any {
	sel, err := labels.Parse(selector)
	if err != nil {
		sel = labels.Nothing()
	}
	items := []any{}
	for _, k := range sortedKeys(a.objects[r.prefix]) {
		o := a.objects[r.prefix][k]
		if (r.key.Namespace == "" || k.Namespace == r.key.Namespace) && sel.Matches(labels.Set(o.GetLabels())) {
			items = append(items, o.Object)
		}
	}
	k := kindOf(r)
	return map[string]any{"kind": k["kind"].(string) + "List", "apiVersion": k["apiVersion"], "metadata": map[string]any{"resourceVersion": strconv.FormatInt(a.rev, 10)}, "items": items}
}

// watch streams changes from the revision asked on, and a bookmark after each
// batch, so that every cache sees every revision.
func (a *API) watch(req *http.Request, r request) (*http.Response, error) {
	pr, pw := io.Pipe()
	q := req.URL.Query()
	from, _ := strconv.ParseInt(q.Get("resourceVersion"), 10, 64)
	out := json.NewEncoder(pw)
	send := func(kind string, o any) bool { return out.Encode(map[string]any{"type": kind, "object": o}) == nil }
	a.mu.Lock()
	initial := []any(nil)
	if q.Get("sendInitialEvents") == "true" || q.Get("resourceVersion") == "" {
		initial = a.list(r, "")["items"].([]any)
		from = a.rev
	}
	kind := kindOf(r)
	a.mu.Unlock()
	go func() {
		defer pw.Close()
		for _, o := range initial {
			if !send("ADDED", o) {
				return
			}
		}
		bookmark := func(marks map[string]any) bool {
			kind["metadata"] = map[string]any{"resourceVersion": strconv.FormatInt(from, 10), "annotations": marks}
			return send("BOOKMARK", kind)
		}
		if q.Get("sendInitialEvents") == "true" && !bookmark(map[string]any{metav1.InitialEventsAnnotationKey: "true"}) {
			return
		}
		for {
			a.mu.Lock()
			lag, ok := a.lag[r.resource()]
			if !ok {
				lag = a.lag[""]
			}
			a.mu.Unlock()
			time.Sleep(lag)
			a.mu.Lock()
			at, _ := slices.BinarySearchFunc(a.events, from+1, func(c change, rev int64) int { return int(c.rev - rev) })
			batch, wake := slices.Clone(a.events[at:]), a.wake
			a.mu.Unlock()
			for _, c := range batch {
				from = c.rev
				if c.prefix == r.prefix && !send(c.kind, c.object.Object) {
					return
				}
			}
			if len(batch) > 0 && !bookmark(nil) {
				return
			}
			select {
			case <-wake:
			case <-req.Context().Done():
				return
			}
		}
	}()
	return &http.Response{StatusCode: http.StatusOK, Status: "200 OK", Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Request: req,
		Header: http.Header{"Content-Type": {"application/json"}}, Body: pr, ContentLength: -1}, nil
}

// kindOf is an empty object of the resource's kind, for bookmarks.
func kindOf(r request) map[string]any {
	p := strings.Split(r.prefix, "/")
	gv := schema.GroupVersion{Version: p[1]}
	if p[0] == "apis" {
		gv = schema.GroupVersion{Group: p[1], Version: p[2]}
	}
	for gvk := range scheme.Scheme.AllKnownTypes() {
		if gvk.GroupVersion() == gv && plural(gvk.Kind) == r.resource() {
			return map[string]any{"apiVersion": gv.String(), "kind": gvk.Kind}
		}
	}
	return map[string]any{"apiVersion": gv.String(), "kind": "Unknown"}
}

func plural(kind string) string {
	k := strings.ToLower(kind)
	switch {
	case k == "endpoints":
		return k
	case strings.HasSuffix(k, "s"):
		return k + "es"
	case strings.HasSuffix(k, "y"):
		return strings.TrimSuffix(k, "y") + "ies"
	}
	return k + "s"
}

func patched(had *object, contentType string, patch []byte) (*object, error) {
	old, err := had.MarshalJSON()
	if err != nil {
		return nil, err
	}
	var out []byte
	switch types.PatchType(contentType) {
	case types.StrategicMergePatchType:
		typed, err := scheme.Scheme.New(had.GroupVersionKind())
		if err != nil {
			return nil, err
		}
		if out, err = strategicpatch.StrategicMergePatch(old, patch, typed); err != nil {
			return nil, err
		}
	default:
		if out, err = jsonpatch.MergePatch(old, patch); err != nil {
			return nil, err
		}
	}
	o := &object{}
	return o, o.UnmarshalJSON(out)
}
