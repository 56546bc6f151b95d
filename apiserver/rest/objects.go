package rest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/rand"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/keelson/keelson/apiserver/admission"
	"github.com/keelson/keelson/apiserver/authn"
	"github.com/keelson/keelson/apiserver/codec"
	"github.com/keelson/keelson/apiserver/patch"
	"github.com/keelson/keelson/apiserver/resources"
	"github.com/keelson/keelson/apiserver/same"
	"github.com/keelson/keelson/apiserver/store"
	"github.com/keelson/keelson/apiserver/watchcache"
)

// Objects are the verbs without HTTP: the one way to read and write objects,
// used by the handlers and by everything inside the API server that writes.
// Errors are those that clients see (apierrors.APIStatus).
//
// Objects that it returns are shared with the cache and must not be changed.
type Objects struct {
	reg    *resources.Registry
	cache  *watchcache.Cache
	store  store.Store
	chain  admission.Chain
	fields *patch.Fields
	now    func() time.Time
	turn   chan struct{} // held by the writer of a contended object

	allocatedTo func(asked, got, old resources.Object, took time.Duration) // nil: see Config.Allocated
}

// NewObjects returns the verbs over a cache and the store below it.
func NewObjects(reg *resources.Registry, cache *watchcache.Cache, st store.Store, chain admission.Chain, now func() time.Time) *Objects {
	if now == nil {
		now = time.Now
	}
	return &Objects{reg: reg, cache: cache, store: st, chain: chain, fields: patch.NewFields(reg.Kind), now: now, turn: make(chan struct{}, 1)}
}

// WriteOptions are what create, update and patch have in common.
type WriteOptions struct {
	// Manager is booked in managedFields; empty: the write is not booked.
	Manager string
	// Options is handed to admission: CreateOptions, UpdateOptions or PatchOptions.
	Options runtime.Object
	// Create: an update of an object that does not exist creates it (apply, and PUT where the row allows it).
	Create bool
	// Booked: change has set managedFields already (apply).
	Booked bool
	// Retry: a conflict runs change again with the newer object, also when that object
	// carries the resourceVersion that it was made from (patches).
	Retry bool
	// NoAdmission skips the admission chain: the server's own objects at start.
	NoAdmission bool
	// NoHooks skips the part's Prepare: the caller answers for what it changes
	// (binding, eviction), and generation stays. Validation of metadata remains.
	NoHooks bool
	// Replace: the object is the client's own (PUT), so its UID is a precondition.
	Replace bool
}

const (
	// maxObject is the size of a stored object, as etcd's own limit for a request.
	maxObject = 1<<20 + 1<<19
	// maxTries bounds the compare-and-swap loop; a write that loses so often is told to try again.
	maxTries = 32
	// randomSuffix and maxGenerated: generateName is cut so that name and suffix fit a DNS label.
	randomSuffix, maxGenerated = 5, 63
	// nameTries bounds how often a generated name is tried.
	nameTries = 8
)

// Item returns the object as its storage row keeps it; freshness is the caller's
// business (see [Objects.Get]). It is nil when there is none.
func (o *Objects) item(row *resources.Row, namespace, name string) *watchcache.Item {
	return o.cache.Snapshot().Get(row.Key(namespace, name))
}

// Get is a linearizable read.
func (o *Objects) Get(ctx context.Context, row *resources.Row, namespace, name string) (resources.Object, error) {
	if _, err := o.cache.Fresh(ctx); err != nil {
		return nil, err
	}
	it := o.item(row, namespace, name)
	if it == nil {
		return nil, apierrors.NewNotFound(row.GR(), name)
	}
	return objectOf(it, row)
}

func objectOf(it *watchcache.Item, row *resources.Row) (resources.Object, error) {
	v, err := it.For(row)
	if err != nil {
		return nil, err
	}
	return v.Object()
}

// request completes what hooks may know.
func (o *Objects) request(ctx context.Context, rq *resources.Request, sub string) *resources.Request {
	c := resources.Request{}
	if rq != nil {
		c = *rq
	}
	c.Context, c.Subresource = ctx, sub
	if c.Now.IsZero() {
		c.Now = o.now()
	}
	if c.Read == nil {
		c.Read = o.cache.Reader()
	}
	if c.Warn == nil {
		c.Warn = func(string) {}
	}
	return &c
}

func (o *Objects) attributes(ctx context.Context, op admission.Operation, row *resources.Row, rq *resources.Request, namespace, name string) *admission.Attributes {
	user := authn.From(ctx)
	if user == nil {
		user = &authn.User{Name: rq.User, Groups: rq.Groups}
	}
	if rq.Many { // as upstream has it: the request names none
		name = ""
	}
	return &admission.Attributes{
		Operation: op, Row: row, Subresource: rq.Subresource, Namespace: namespace, Name: name, User: user, Request: rq,
	}
}

func (o *Objects) mutate(ctx context.Context, a *admission.Attributes) error {
	if err := o.chain.Mutate(ctx, a); err != nil {
		return admissionError(a, err)
	}
	// What came from outside may have moved the object: its key, and who may write it, belong to the namespace of the path.
	if m, ok := a.Object.(metav1.Object); ok && a.Kind() == a.Row.GVK() && m.GetNamespace() != a.Namespace {
		return apierrors.NewBadRequest(otherNamespace)
	}
	return nil
}

const otherNamespace = "the namespace of the provided object does not match the namespace sent on the request"

func (o *Objects) validate(ctx context.Context, a *admission.Attributes) (func(), error) {
	undo, err := o.chain.Validate(ctx, a)
	if err != nil {
		return undo, admissionError(a, err)
	}
	return undo, nil
}

func admissionError(a *admission.Attributes, err error) error {
	if as := apierrors.APIStatus(nil); errors.As(err, &as) {
		return err
	}
	return apierrors.NewForbidden(a.Row.GR(), a.Called(), err)
}

// creating and updating are the options that admission sees of a patch: what becomes of it decides.
func creating(o runtime.Object) runtime.Object {
	if p, ok := o.(*metav1.PatchOptions); ok {
		return &metav1.CreateOptions{DryRun: p.DryRun, FieldManager: p.FieldManager, FieldValidation: p.FieldValidation}
	}
	return o
}

func updating(o runtime.Object) runtime.Object {
	if p, ok := o.(*metav1.PatchOptions); ok {
		return &metav1.UpdateOptions{DryRun: p.DryRun, FieldManager: p.FieldManager, FieldValidation: p.FieldValidation}
	}
	return o
}

// undoing collects what has to be taken back when a write does not happen.
type undoing []func()

func (u *undoing) add(f func()) {
	if f != nil {
		*u = append(*u, f)
	}
}

func (u undoing) run() {
	for i := len(u) - 1; i >= 0; i-- {
		u[i]()
	}
}

// Create writes a new object. obj, as row's kind and with defaults set, is given
// away. In a dry run everything happens but the write.
func (o *Objects) Create(ctx context.Context, rq *resources.Request, row *resources.Row, obj resources.Object, opts WriteOptions) (*watchcache.Item, error) {
	rq = o.request(ctx, rq, "")
	generate := obj.GetName() == "" && obj.GetGenerateName() != ""
	tries := 1
	if generate {
		tries = nameTries
	}
	for i := 0; ; i++ {
		next := obj
		if generate && i < tries-1 {
			next = obj.DeepCopyObject().(resources.Object)
		}
		it, err := o.create(ctx, rq, row, next, opts)
		if !apierrors.IsAlreadyExists(err) || !generate {
			return it, err
		}
		if i == tries-1 {
			return nil, apierrors.NewGenerateNameConflict(row.GR(), next.GetName(), 1)
		}
	}
}

// invalid is the refusal of an object for what is wrong with it. A custom object is called what it says to be, and
// if that is something else its metadata was not looked at.
func invalid(row *resources.Row, obj resources.Object, name string, errs field.ErrorList) error {
	kind := row.Storage().GVK().GroupKind()
	if said := obj.GetObjectKind().GroupVersionKind().GroupKind(); row.Custom != nil && said != kind {
		kind = said
		errs = slices.DeleteFunc(errs, func(e *field.Error) bool { return strings.HasPrefix(e.Field, "metadata.") })
	}
	return apierrors.NewInvalid(kind, name, errs)
}

func generateName(base string) string {
	if len(base) > maxGenerated-randomSuffix {
		base = base[:maxGenerated-randomSuffix]
	}
	return base + rand.String(randomSuffix)
}

func (o *Objects) create(ctx context.Context, rq *resources.Request, row *resources.Row, obj resources.Object, opts WriteOptions) (_ *watchcache.Item, err error) {
	if !row.Namespaced {
		obj.SetNamespace("")
	}
	dedupOwners(rq, obj)
	obj.SetDeletionTimestamp(nil)
	obj.SetDeletionGracePeriodSeconds(nil)
	obj.SetSelfLink("")
	if opts.Manager != "" && !opts.Booked {
		w := patch.Write{Row: row, Manager: opts.Manager, Reset: row.Main.Reset, Now: rq.Now}
		o.book(w, nil, obj)
	}
	attrs := o.attributes(ctx, admission.Create, row, rq, obj.GetNamespace(), obj.GetName())
	attrs.Object, attrs.Options = obj, creating(opts.Options)
	if !opts.NoAdmission {
		if err := o.mutate(ctx, attrs); err != nil {
			return nil, err
		}
	}
	obj.SetDeletionTimestamp(nil)
	obj.SetDeletionGracePeriodSeconds(nil)
	obj.SetSelfLink("")
	if !row.NoGeneration {
		obj.SetGeneration(1)
	}
	obj.SetCreationTimestamp(metav1.NewTime(rq.Now.Truncate(time.Second)))
	obj.SetUID(types.UID(uuid.NewString()))
	if obj.GetName() == "" && obj.GetGenerateName() != "" {
		obj.SetName(generateName(obj.GetGenerateName()))
	}
	row.Main.Prepare(rq, obj, nil)
	errs := validation.ValidateObjectMetaAccessor(obj, row.Namespaced, row.Name, field.NewPath("metadata"))
	errs = append(errs, plainFinalizers(row, obj)...)
	errs = append(errs, row.Main.Validate(rq, obj, nil)...)
	if len(errs) > 0 {
		return nil, invalid(row, obj, obj.GetName(), errs)
	}
	for _, w := range row.Main.Warnings(rq, obj, nil) {
		rq.Warn(w)
	}
	var undo undoing
	defer func() {
		if err != nil || rq.DryRun {
			undo.run()
		}
	}()
	attrs.Name = obj.GetName()
	if !opts.NoAdmission {
		u, err := o.validate(ctx, attrs)
		if err != nil {
			return nil, err
		}
		undo.add(u)
	}
	key := row.Key(obj.GetNamespace(), obj.GetName())
	if obj.GetResourceVersion() != "" && !rq.DryRun { // last of all, as upstream, whose store refuses it
		return nil, apierrors.NewBadRequest("resourceVersion should not be set on objects to be created")
	}
	return o.putAllocated(ctx, rq, row, obj, nil, key, nil)
}

// plainFinalizers refuses finalizers that name no owner and are none of Kubernetes' own.
func plainFinalizers(row *resources.Row, obj resources.Object) (errs field.ErrorList) {
	if row.Custom != nil || row.AnyFinalizer {
		return nil
	}
	for i, f := range obj.GetFinalizers() {
		switch f {
		case string(corev1.FinalizerKubernetes), metav1.FinalizerOrphanDependents, metav1.FinalizerDeleteDependents:
			continue
		}
		if !strings.Contains(f, "/") {
			errs = append(errs, field.Invalid(field.NewPath("metadata", "finalizers").Index(i), f, "name is neither a standard finalizer name nor is it fully qualified"))
		}
	}
	return errs
}

// book keeps managedFields. An object that does not fit its schema, such as one with a
// list entry without its key, cannot be booked: an apply is refused for that, other writes are not.
func (o *Objects) book(w patch.Write, old, obj resources.Object) { _ = o.fields.Update(w, old, obj) }

// put encodes and stores obj if the key is still as in prev (nil: absent), together with beside, and
// returns the item as row's storage keeps it.
func (o *Objects) put(ctx context.Context, rq *resources.Request, row *resources.Row, obj resources.Object, key string, prev *watchcache.Item, beside ...store.Op) (*watchcache.Item, error) {
	storage, kept := row.Storage(), obj
	if row.ToStored != nil {
		var err error
		if kept, err = row.ToStored(obj); err != nil {
			return nil, err
		}
	}
	kept.SetResourceVersion("")
	if storage.Custom == nil {
		kept.GetObjectKind().SetGroupVersionKind(schema.GroupVersionKind{})
	}
	value, raw, err := codec.Value(storage, kept)
	if err != nil {
		return nil, apierrors.NewInternalError(err)
	}
	var seen, created int64
	if prev != nil {
		seen, created = prev.Rev, prev.CreateRev
		if len(beside) == 0 && unchanged(storage, raw, prev) {
			if stale, err := o.stale(ctx, row, key); !stale || rq.DryRun {
				return prev, err
			}
		}
	}
	if len(value) > maxObject {
		return nil, apierrors.NewRequestEntityTooLargeError(fmt.Sprintf("limit is %d", maxObject))
	}
	if rq.DryRun {
		if prev == nil { // the store would say so
			if _, err := o.cache.Fresh(ctx); err != nil {
				return nil, err
			}
			if o.item(row, obj.GetNamespace(), obj.GetName()) != nil {
				return nil, o.exists(row, obj)
			}
		}
		return watchcache.NewItem(storage, key, raw, seen, created, nil)
	}
	var ttl time.Duration
	if storage.TTL != nil {
		ttl = storage.TTL(kept)
	}
	var rev int64
	if len(beside) == 0 {
		rev, err = o.store.Put(ctx, key, value, seen, ttl)
	} else {
		rev, err = o.commit(ctx, store.Op{Key: key, Seen: seen, Value: value}, beside)
	}
	switch {
	case errors.Is(err, errBeside):
		return nil, err
	case errors.Is(err, store.ErrConflict) && prev == nil:
		return nil, o.exists(row, obj)
	case err != nil:
		return nil, storeError(row, err)
	}
	if prev == nil {
		created = rev
	}
	kept.SetResourceVersion(strconv.FormatInt(rev, 10))
	same.AsRead(kept)
	return o.cache.Wrote(storage, key, raw, rev, created, kept)
}

// unchanged: a message is what is stored already.
func unchanged(storage *resources.Row, raw []byte, prev *watchcache.Item) bool {
	b := borrow()
	defer b.giveBack()
	text, err := codec.AppendWithRev(b.b, storage, raw, prev.Rev)
	b.b = text
	return err == nil && bytes.Equal(text, prev.Raw())
}

// exists is AlreadyExists, and says so when the object that is in the way is on its way out.
func (o *Objects) exists(row *resources.Row, obj resources.Object) error {
	e := apierrors.NewAlreadyExists(row.GR(), obj.GetName())
	if it := o.item(row, obj.GetNamespace(), obj.GetName()); it != nil && it.Head().Deleting {
		e.ErrStatus.Message = "object is being deleted: " + e.ErrStatus.Message
	}
	return e
}

// storeError keeps ErrConflict as it is; the rest is what clients see.
func storeError(row *resources.Row, err error) error {
	if as := apierrors.APIStatus(nil); errors.As(err, &as) {
		return err
	}
	switch {
	case errors.Is(err, store.ErrConflict):
		return err
	case errors.Is(err, store.ErrFull):
		// As upstream passes etcd's own error on: 500, without a reason.
		return &apierrors.StatusError{ErrStatus: metav1.Status{
			Status: metav1.StatusFailure, Code: http.StatusInternalServerError, Message: "etcdserver: mvcc: database space exceeded",
		}}
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return apierrors.NewServerTimeout(row.GR(), "write", 1)
	}
	return apierrors.NewInternalError(fmt.Errorf("store: %w", err))
}

// Change makes the new object of an update. current is shared, and nil when the
// object does not exist; the result is given away.
type Change func(current resources.Object) (resources.Object, error)

// Update changes an object by compare-and-swap: change is called with the current
// object, and again after a conflict unless the client has named a resourceVersion.
// part is "" or a subresource of the row. created tells that there was none before.
func (o *Objects) Update(ctx context.Context, rq *resources.Request, row *resources.Row, part, namespace, name string, change Change, opts WriteOptions) (it *watchcache.Item, created bool, err error) {
	rq = o.request(ctx, rq, part)
	fresh := false // the cache has been as new as the request
	for range maxTries {
		seen := o.item(row, namespace, name)
		if seen == nil && !fresh {
			if _, err := o.cache.Fresh(ctx); err != nil {
				return nil, false, err
			}
			fresh = true
			seen = o.item(row, namespace, name)
		}
		if seen == nil {
			if !opts.Create || part != "" {
				return nil, false, apierrors.NewNotFound(row.GR(), name)
			}
			obj, err := change(nil)
			if err != nil {
				return nil, false, err
			}
			obj.SetResourceVersion("")
			if obj.GetName() == "" {
				obj.SetName(name)
			}
			it, err = o.Create(ctx, rq, row, obj, opts)
			if apierrors.IsAlreadyExists(err) {
				if _, err := o.cache.Fresh(ctx); err != nil {
					return nil, false, err
				}
				continue
			}
			return it, true, err
		}
		it, err = o.update(ctx, rq, row, part, namespace, name, seen, change, opts)
		var stale *staleError
		refused := err
		switch {
		case err == nil && (fresh || it != seen):
			return it, false, nil
		case errors.As(err, &stale):
			refused = stale.err
		case errors.Is(err, store.ErrConflict):
			refused = nil
		}
		if refused != nil && fresh {
			return nil, false, refused
		}
		if _, err := o.cache.Fresh(ctx); err != nil {
			return nil, false, err
		}
		fresh = true
		// What was refused, or had nothing to change, for the sake of an older state gets another try.
		if now := o.item(row, namespace, name); !errors.Is(err, store.ErrConflict) && now != nil && now.Rev == seen.Rev {
			return it, false, refused
		}
	}
	return nil, false, apierrors.NewServerTimeout(row.GR(), "update", 1)
}

const modified = "the object has been modified; please apply your changes to the latest version and try again"

func conflict(row *resources.Row, name string) error {
	return apierrors.NewConflict(row.GR(), name, errors.New(modified))
}

// update is one try. It fails with store.ErrConflict when another try makes sense.
func (o *Objects) update(ctx context.Context, rq *resources.Request, row *resources.Row, part, namespace, name string, seen *watchcache.Item, change Change, opts WriteOptions) (_ *watchcache.Item, err error) {
	old, err := objectOf(seen, row)
	if err != nil {
		return nil, err
	}
	obj, err := change(old)
	if err != nil {
		return nil, err
	}
	if uid := obj.GetUID(); (opts.Replace || part == "scale") && uid != "" && uid != old.GetUID() {
		root := "/registry/"
		if rq.DryRun { // upstream's looks at the object before it comes to the store, which knows the root
			root = "/"
		}
		return nil, apierrors.NewConflict(row.GR(), name, fmt.Errorf("StorageError: invalid object, Code: 4, Key: %s, ResourceVersion: 0, AdditionalErrorMsg: "+
			"Precondition failed: UID in precondition: %v, UID in object meta: %v", root+seen.Key, uid, old.GetUID()))
	}
	pinned, err := pinnedRev(row, name, obj, old, seen)
	if err != nil {
		return nil, err
	}
	obj.SetResourceVersion(old.GetResourceVersion())
	if obj.GetName() == "" {
		obj.SetName(old.GetName())
	}
	if obj.GetNamespace() == "" {
		obj.SetNamespace(old.GetNamespace())
	}
	hooks, known := row.Main, true
	if part != "" {
		hooks, known = row.Parts[part]
	}
	switch {
	case known:
	case row.Custom != nil: // scale: the object's own rules hold
		hooks = row.Main
		hooks.Reset = nil
	default:
		hooks = resources.ErasedPart{
			Prepare: func(*resources.Request, resources.Object, resources.Object) {},
			Validate: func(*resources.Request, resources.Object, resources.Object) field.ErrorList {
				return nil
			},
			Warnings: func(*resources.Request, resources.Object, resources.Object) []string { return nil },
		}
		if part == "scale" { // it leaves a new object behind, about which there is the same to say
			hooks.Warnings = row.Main.Warnings
		}
	}
	dedupOwners(rq, obj)
	if opts.Manager != "" && !opts.Booked {
		w := patch.Write{Row: row, Subresource: part, Manager: opts.Manager, Reset: hooks.Reset, Now: rq.Now}
		o.book(w, old, obj)
	}
	attrs := o.attributes(ctx, admission.Update, row, rq, old.GetNamespace(), name)
	attrs.Object, attrs.Old, attrs.Options = obj, old, updating(opts.Options)
	adopt := func() error { return nil }
	if part == "scale" {
		if adopt, err = showScale(row, attrs, obj, old); err != nil {
			return nil, apierrors.NewInternalError(err)
		}
	}
	if !opts.NoAdmission {
		if err := o.mutate(ctx, attrs); err != nil {
			return nil, err
		}
		if err := adopt(); err != nil {
			return nil, apierrors.NewInternalError(err)
		}
	}
	obj.SetGeneration(old.GetGeneration())
	if !opts.NoHooks {
		hooks.Prepare(rq, obj, old)
	}
	if obj.GetUID() == "" {
		obj.SetUID(old.GetUID())
	}
	if c := old.GetCreationTimestamp(); !c.IsZero() {
		obj.SetCreationTimestamp(c)
	}
	if d := old.GetDeletionTimestamp(); d != nil {
		obj.SetDeletionTimestamp(d)
	}
	if g := old.GetDeletionGracePeriodSeconds(); g != nil && obj.GetDeletionGracePeriodSeconds() == nil {
		obj.SetDeletionGracePeriodSeconds(g)
	}
	if !opts.NoHooks && !row.NoGeneration && obj.GetGeneration() == old.GetGeneration() && specChanged(obj, old) {
		obj.SetGeneration(old.GetGeneration() + 1)
	}
	// Upstream looks once for all kinds and once for this one, and reports each fault as often as it finds it.
	whole := validation.ValidateObjectMetaAccessor(obj, row.Namespaced, resources.PathSegment, field.NewPath("metadata"))
	changes := validation.ValidateObjectMetaAccessorUpdate(obj, old, field.NewPath("metadata"))
	errs := slices.Concat(whole, changes)
	if !row.LooseMeta || part != "" {
		errs = slices.Concat(errs, changes, plainFinalizers(row, obj))
	}
	if row.WholeMeta && part == "" {
		errs = slices.Concat(errs, whole, plainFinalizers(row, obj))
		if prefix := obj.GetGenerateName(); prefix != "" {
			for _, fault := range row.Name(prefix, true) {
				errs = append(errs, field.Invalid(field.NewPath("metadata", "generateName"), prefix, fault))
			}
		}
	}
	if !opts.NoHooks {
		errs = append(errs, hooks.Validate(rq, obj, old)...)
	}
	if len(errs) > 0 {
		return nil, invalid(row, obj, name, errs)
	}
	for _, w := range hooks.Warnings(rq, obj, old) {
		rq.Warn(w)
	}
	var undo undoing
	defer func() {
		if err != nil || rq.DryRun {
			undo.run()
		}
	}()
	if !opts.NoAdmission {
		u, err := o.validate(ctx, attrs)
		if err != nil {
			return nil, err
		}
		undo.add(u)
	}
	if finished(obj) && !rq.DryRun {
		// The last finalizer is gone: the update is the removal.
		if err := o.erase(ctx, rq, row, old, seen); err != nil {
			return nil, o.lost(row, name, err, pinned && !opts.Retry)
		}
		return o.lastState(row, obj, seen)
	}
	var it *watchcache.Item
	if part == "" {
		it, err = o.putAllocated(ctx, rq, row, obj, old, seen.Key, seen)
	} else {
		it, err = o.put(ctx, rq, row, obj, seen.Key, seen)
	}
	return it, o.lost(row, name, err, pinned && !opts.Retry)
}

// lastState is the item of an object that was removed by its own update.
func (o *Objects) lastState(row *resources.Row, obj resources.Object, seen *watchcache.Item) (*watchcache.Item, error) {
	kept := obj
	if row.ToStored != nil {
		var err error
		if kept, err = row.ToStored(obj); err != nil {
			return nil, err
		}
	}
	raw, err := codec.Message(row.Storage(), kept)
	if err != nil {
		return nil, apierrors.NewInternalError(err)
	}
	return watchcache.NewItem(row.Storage(), seen.Key, raw, seen.Rev, seen.CreateRev, nil)
}

// lost turns a lost compare-and-swap into 409 for a client that has named the revision.
func (o *Objects) lost(row *resources.Row, name string, err error, pinned bool) error {
	if errors.Is(err, store.ErrConflict) && pinned {
		return conflict(row, name)
	}
	return err
}

// pinnedRev checks the resourceVersion that the client has sent. pinned is false
// when there is none, or when it is the one that the object was made from.
func pinnedRev(row *resources.Row, name string, obj, old resources.Object, seen *watchcache.Item) (pinned bool, err error) {
	rv := obj.GetResourceVersion()
	if rv == "" || rv == "0" {
		if row.NeedsVersion {
			return false, apierrors.NewInvalid(schema.GroupKind{Group: row.Group, Kind: row.Plural}, name, field.ErrorList{
				field.Invalid(field.NewPath("metadata", "resourceVersion"), 0, "must be specified for an update"),
			})
		}
		return false, nil
	}
	if rv == old.GetResourceVersion() {
		return true, nil
	}
	n, err := strconv.ParseUint(rv, 10, 63)
	if err != nil {
		return false, err // 500 without a reason, as upstream
	}
	if n := int64(n); n > seen.Rev {
		return true, &staleError{want: n, err: conflict(row, name)}
	}
	return true, conflict(row, name)
}

// staleError: the client knows a newer state than the cache; another try decides.
type staleError struct {
	want int64
	err  error
}

func (e *staleError) Error() string { return e.err.Error() }
func (e *staleError) Unwrap() error { return e.err }

// finished: nothing keeps a deleted object any more.
func finished(obj resources.Object) bool {
	if obj.GetDeletionTimestamp() == nil || len(obj.GetFinalizers()) > 0 {
		return false
	}
	if ns, ok := obj.(*corev1.Namespace); ok && len(ns.Spec.Finalizers) > 0 {
		return false
	}
	g := obj.GetDeletionGracePeriodSeconds()
	return g == nil || *g == 0
}

// specChanged compares everything but metadata and status.
func specChanged(a, b resources.Object) bool {
	if u, ok := a.(*unstructured.Unstructured); ok {
		v, ok := b.(*unstructured.Unstructured)
		if !ok || len(u.Object) == 0 {
			return true
		}
		for k := range sets.KeySet(u.Object).Union(sets.KeySet(v.Object)) {
			x, here := u.Object[k]
			y, there := v.Object[k]
			if k != "metadata" && k != "status" && (here != there || !same.JSON(x, y)) {
				return true
			}
		}
		return false
	}
	x, y := reflect.ValueOf(a).Elem(), reflect.ValueOf(b).Elem()
	for i := range x.NumField() {
		switch x.Type().Field(i).Name {
		case "TypeMeta", "ObjectMeta", "Status":
			continue
		}
		if !same.Fields(x.Field(i), y.Field(i)) {
			return true
		}
	}
	return false
}

// dedupOwners drops repeated owner references and warns about them.
func dedupOwners(rq *resources.Request, obj resources.Object) {
	refs := obj.GetOwnerReferences()
	if len(refs) < 2 {
		return
	}
	seen := make(map[metav1.OwnerReference]bool, len(refs))
	var kept []metav1.OwnerReference
	var twice []string
	for _, r := range refs {
		k := r
		k.Controller, k.BlockOwnerDeletion = nil, nil
		k.Name += fmt.Sprint("\x00", r.Controller != nil && *r.Controller, r.BlockOwnerDeletion != nil && *r.BlockOwnerDeletion)
		if seen[k] {
			twice = append(twice, string(r.UID))
			continue
		}
		seen[k] = true
		kept = append(kept, r)
	}
	if len(twice) > 0 {
		obj.SetOwnerReferences(kept)
		rq.Warn(fmt.Sprintf(".metadata.ownerReferences contains duplicate entries; API server dedups owner references in 1.20+, "+
			"and may reject such requests as early as 1.24; please fix your requests; duplicate UID(s) observed: %v", strings.Join(twice, ", ")))
	}
}
