package patch

import (
	"cmp"
	"errors"
	"fmt"
	"reflect"
	"sort"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"
	"sigs.k8s.io/structured-merge-diff/v6/typed"
	"sigs.k8s.io/structured-merge-diff/v6/value"

	"github.com/keelson/keelson/apiserver/resources"
	"github.com/keelson/keelson/apiserver/same"
)

// Fields keeps metadata.managedFields. It is safe for concurrent use.
//
// Source: Kubernetes documentation, "Server-Side Apply", and KEP-555.
type Fields struct {
	types types
	sets  sets
	rows  func(schema.GroupVersionKind) *resources.Row
}

// NewFields returns a Fields. rows finds the row of a served kind, or nil: entries
// of versions that are no longer served are forgotten.
func NewFields(rows func(schema.GroupVersionKind) *resources.Row) *Fields {
	return &Fields{rows: rows}
}

// Write says how a write is to be booked.
type Write struct {
	Row *resources.Row
	// Subresource is part of the manager's identity; "" for the object itself.
	Subresource string
	// Seen is the version in which conflicts show what others have updated, where that is not the version of their own
	// write: whoever applies a Scale knows no other kind.
	Seen schema.GroupVersion
	// Reset lists the field paths that this write cannot set ("status").
	Reset []string
	// Manager is who writes.
	Manager string
	Now     time.Time
}

// maxUpdaters is how many entries of operation Update an object keeps; the
// oldest are merged into one called ancientChanges.
const (
	maxUpdaters    = 10
	ancientChanges = "ancient-changes"
	// beforeFirstApply owns what an object without entries held when it was first applied to.
	beforeFirstApply = "before-first-apply"
)

// stripped are the fields that are never owned.
var stripped = fieldpath.NewSet(
	fieldpath.MakePathOrDie("apiVersion"), fieldpath.MakePathOrDie("kind"), fieldpath.MakePathOrDie("metadata"),
	fieldpath.MakePathOrDie("metadata", "name"), fieldpath.MakePathOrDie("metadata", "namespace"),
	fieldpath.MakePathOrDie("metadata", "creationTimestamp"), fieldpath.MakePathOrDie("metadata", "selfLink"),
	fieldpath.MakePathOrDie("metadata", "uid"), fieldpath.MakePathOrDie("metadata", "clusterName"),
	fieldpath.MakePathOrDie("metadata", "generation"), fieldpath.MakePathOrDie("metadata", "managedFields"),
	fieldpath.MakePathOrDie("metadata", "resourceVersion"),
)

func (w *Write) filter() fieldpath.Filter {
	if len(w.Reset) == 0 {
		return nil
	}
	set := fieldpath.NewSet()
	for _, p := range w.Reset {
		var parts []any
		for _, s := range strings.Split(p, ".") {
			parts = append(parts, s)
		}
		set.Insert(fieldpath.MakePathOrDie(parts...))
	}
	return fieldpath.NewExcludeSetFilter(set)
}

// entry is the writer's, without fields.
func (w *Write) entry() metav1.ManagedFieldsEntry {
	return metav1.ManagedFieldsEntry{
		Manager: cmp.Or(w.Manager, "unknown"), Operation: metav1.ManagedFieldsOperationUpdate,
		APIVersion: w.Row.GVK().GroupVersion().String(), Subresource: w.Subresource, Time: &metav1.Time{Time: w.Now.UTC()},
	}
}

// fieldsType is the only encoding of fields.
const fieldsType = "FieldsV1"

// owner is one entry of managedFields. raw is its encoding, as long as set is unchanged.
type owner struct {
	entry metav1.ManagedFieldsEntry // without fields
	set   *fieldpath.Set
	raw   *metav1.FieldsV1
}

// owners is managedFields by identity. Its keys are shown to nobody.
type owners map[string]*owner

// identity: appliers are one across versions, updaters are one per version.
func identity(e *metav1.ManagedFieldsEntry) string {
	version := e.APIVersion
	if e.Operation == metav1.ManagedFieldsOperationApply {
		version = ""
	}
	return e.Manager + "\x00" + string(e.Operation) + "\x00" + version + "\x00" + e.Subresource
}

func (s *sets) owners(entries []metav1.ManagedFieldsEntry) (owners, error) {
	out := make(owners, len(entries))
	for i := range entries {
		e := entries[i]
		switch {
		case e.Operation != metav1.ManagedFieldsOperationApply && e.Operation != metav1.ManagedFieldsOperationUpdate:
			return nil, fmt.Errorf("managed fields entry %d: operation must be `Apply` or `Update`", i)
		case e.APIVersion == "":
			return nil, fmt.Errorf("managed fields entry %d: apiVersion must not be empty", i)
		case e.FieldsType != fieldsType:
			return nil, fmt.Errorf("managed fields entry %d: invalid fieldsType %q", i, e.FieldsType)
		}
		o := &owner{entry: e, raw: e.FieldsV1, set: &fieldpath.Set{}}
		o.entry.FieldsV1 = nil
		if e.FieldsV1 != nil {
			var err error
			if o.set, err = s.read(e.FieldsV1.GetRawBytes()); err != nil {
				return nil, fmt.Errorf("managed fields entry %d: %w", i, err)
			}
		}
		out[identity(&e)] = o
	}
	return out, nil
}

// Check reports whether managedFields that a client has sent can be read.
func Check(entries []metav1.ManagedFieldsEntry) error {
	_, err := new(sets).owners(entries)
	return err
}

func (o owners) encode() ([]metav1.ManagedFieldsEntry, error) {
	if len(o) == 0 {
		return nil, nil
	}
	out := make([]metav1.ManagedFieldsEntry, 0, len(o))
	for _, m := range o {
		e := m.entry
		e.FieldsType = fieldsType
		if e.FieldsV1 = m.raw; e.FieldsV1 == nil {
			raw, err := m.set.ToJSON()
			if err != nil {
				return nil, err
			}
			e.FieldsV1 = &metav1.FieldsV1{}
			e.FieldsV1.SetRawBytes(raw)
		}
		out = append(out, e)
	}
	seconds := func(t *metav1.Time) int64 {
		if t == nil {
			return 0
		}
		return t.Unix()
	}
	sort.Slice(out, func(i, j int) bool {
		p, q := &out[i], &out[j]
		switch {
		case p.Operation != q.Operation:
			return p.Operation < q.Operation
		case seconds(p.Time) != seconds(q.Time):
			return seconds(p.Time) < seconds(q.Time)
		case p.Manager != q.Manager:
			return p.Manager < q.Manager
		case p.APIVersion != q.APIVersion:
			return p.APIVersion < q.APIVersion
		}
		return p.Subresource < q.Subresource
	})
	return out, nil
}

// set replaces what an owner owns; nothing left means that it is gone.
func (o owners) set(key string, set *fieldpath.Set) {
	if set.Empty() {
		delete(o, key)
		return
	}
	m := o[key]
	o[key] = &owner{entry: m.entry, set: set}
}

// cap merges the oldest updaters until at most maxUpdaters are left.
func (o owners) cap() {
	var updaters []string
	for k, m := range o {
		if m.entry.Operation == metav1.ManagedFieldsOperationUpdate {
			updaters = append(updaters, k)
		}
	}
	if len(updaters) <= maxUpdaters {
		return
	}
	at := func(k string) int64 {
		if t := o[k].entry.Time; t != nil {
			return t.Unix()
		}
		return 0
	}
	sort.Slice(updaters, func(i, j int) bool {
		if a, b := at(updaters[i]), at(updaters[j]); a != b {
			return a < b
		}
		return updaters[i] < updaters[j]
	})
	left := len(updaters)
	first := map[string]string{} // by version: the oldest, merged only when a second follows
	for _, k := range updaters {
		if left <= maxUpdaters {
			return
		}
		m := o[k]
		version := m.entry.APIVersion
		bucket := metav1.ManagedFieldsEntry{Manager: ancientChanges, Operation: metav1.ManagedFieldsOperationUpdate, APIVersion: version}
		id := identity(&bucket)
		oldest, ok := first[version]
		if !ok {
			first[version] = k
			continue
		}
		if o[id] == nil {
			set := o[oldest].set
			delete(o, oldest)
			o[id] = &owner{entry: bucket, set: set}
		}
		bucket.Time = m.entry.Time
		merged := &owner{entry: bucket, set: m.set.Union(o[id].set)}
		delete(o, k)
		o[id] = merged
		left--
	}
}

// isReset: the client asks to forget all entries, by an empty list or one empty entry.
func isReset(entries []metav1.ManagedFieldsEntry) bool {
	return entries != nil && len(entries) == 0 || len(entries) == 1 && entries[0] == metav1.ManagedFieldsEntry{}
}

// bare returns a shallow copy without managedFields, as row's kind. Only the copy's own
// top level may be written to.
func bare(row *resources.Row, obj resources.Object) resources.Object {
	if u, ok := obj.(*unstructured.Unstructured); ok {
		c := make(map[string]any, len(u.Object))
		for k, v := range u.Object {
			c[k] = v
		}
		if meta, ok := c["metadata"].(map[string]any); ok {
			m := make(map[string]any, len(meta))
			for k, v := range meta {
				if k != "managedFields" {
					m[k] = v
				}
			}
			c["metadata"] = m
		}
		out := &unstructured.Unstructured{Object: c}
		out.SetGroupVersionKind(row.GVK())
		return out
	}
	v := reflect.New(reflect.TypeOf(obj).Elem())
	v.Elem().Set(reflect.ValueOf(obj).Elem())
	out := v.Interface().(resources.Object)
	out.SetManagedFields(nil)
	out.GetObjectKind().SetGroupVersionKind(row.GVK())
	return out
}

// sameOut clears the fields that are equal in both bare copies, down to the fields of
// spec and status: most writes change little, and comparing values is far cheaper than
// walking them by schema. What is equal is nobody's change, so the comparison is the same.
func sameOut(a, b resources.Object) {
	if _, custom := a.(*unstructured.Unstructured); custom {
		return
	}
	x, y := reflect.ValueOf(a).Elem(), reflect.ValueOf(b).Elem()
	var keep []func()
	for _, at := range same.Shown(x.Type()) { // set to null, or from null: a change
		if f, g := x.FieldByIndex(at), y.FieldByIndex(at); f.IsNil() != g.IsNil() {
			was, now := reflect.ValueOf(f.Interface()), reflect.ValueOf(g.Interface())
			keep = append(keep, func() { f.Set(was); g.Set(now) })
		}
	}
	clearSame(x, y, 2)
	for _, back := range keep {
		back()
	}
}

func clearSame(a, b reflect.Value, depth int) {
	for i := range a.NumField() {
		x, y := a.Field(i), b.Field(i)
		switch {
		case x.IsZero() && y.IsZero():
		case same.Fields(x, y):
			x.SetZero()
			y.SetZero()
		case depth > 1 && x.Kind() == reflect.Struct && (i <= 1 || x.Type().PkgPath() == a.Type().PkgPath()):
			clearSame(x, y, depth-1)
		}
	}
}

// typedValue wraps an object without copying it. The object is not checked
// against the schema: it is of its Go type, and lists may hold duplicates.
func (f *Fields) typedValue(row *resources.Row, obj resources.Object) (*typed.TypedValue, error) {
	k, err := f.types.of(row)
	if err != nil {
		return nil, err
	}
	if u, ok := obj.(*unstructured.Unstructured); ok {
		return k.FromUnstructured(u.Object, typed.AllowDuplicates)
	}
	v, err := value.NewValueReflect(obj)
	if err != nil {
		return nil, err
	}
	return typed.AsTypedUnvalidated(v, k.Schema, k.TypeRef), nil
}

// compare returns what changes from one object of a kind to another.
func (f *Fields) compare(row *resources.Row, old, now resources.Object) (*typed.Comparison, error) {
	k, err := f.types.of(row)
	if err != nil {
		return nil, err
	}
	if k.rule != nil {
		if c := k.rule.compare(old, now); c != nil {
			return c, nil
		}
	}
	a, err := f.typedValue(row, old)
	if err != nil {
		return nil, err
	}
	b, err := f.typedValue(row, now)
	if err != nil {
		return nil, err
	}
	return a.Compare(b)
}

// convert returns obj as the kind of another version of the same thing.
func convert(obj resources.Object, from, to *resources.Row) (_ resources.Object, err error) {
	if from == to {
		return obj, nil
	}
	if from.ToStored != nil {
		if obj, err = from.ToStored(obj); err != nil {
			return nil, &inconvertible{err}
		}
	}
	if to.FromStored != nil {
		if obj, err = to.FromStored(obj); err != nil {
			return nil, &inconvertible{err}
		}
	}
	return bare(to, obj), nil
}

// inconvertible says that a version cannot be had now.
type inconvertible struct{ err error }

func (e *inconvertible) Error() string { return e.err.Error() }
func (e *inconvertible) Unwrap() error { return e.err }

// Update books a write that is not an apply: obj is what will be stored (before
// admission), live what is stored now, both as w.Row's kind; live is nil for a
// creation. It sets obj's managedFields and changes nothing else.
//
// Entries that obj brings along replace the stored ones if the write is to the
// object itself: clients may edit them.
func (f *Fields) Update(w Write, live, obj resources.Object) error {
	var stored []metav1.ManagedFieldsEntry
	if live != nil {
		stored = live.GetManagedFields()
	}
	sent := obj.GetManagedFields()
	var known owners
	var err error
	switch {
	case w.Subresource == "" && isReset(sent):
		known = owners{}
	case w.Subresource == "" && len(sent) > 0:
		if known, err = f.sets.owners(sent); err == nil {
			break
		}
		fallthrough
	default:
		if known, err = f.sets.owners(stored); err != nil {
			known = owners{}
		}
	}
	obj.SetManagedFields(nil)
	if live != nil && len(known) == 0 {
		return nil // never tracked: tracking starts with the first apply
	}
	if live == nil && len(known) == 0 {
		if raw, ok := f.created(w, obj); ok {
			if raw != nil {
				e := w.entry()
				e.FieldsType, e.FieldsV1 = fieldsType, &metav1.FieldsV1{}
				e.FieldsV1.SetRawBytes(raw)
				obj.SetManagedFields([]metav1.ManagedFieldsEntry{e})
			}
			return nil
		}
	}
	if err := f.book(w, live, obj, known); err != nil {
		return err
	}
	entries, err := known.encode()
	if err != nil {
		return err
	}
	obj.SetManagedFields(entries)
	return nil
}

// book takes what a write changed from everybody else and gives it to the writer.
func (f *Fields) book(w Write, live, obj resources.Object, known owners) error {
	version := w.Row.GVK().GroupVersion().String()
	compare := func(row *resources.Row) (*typed.Comparison, error) {
		now, err := convert(bare(w.Row, obj), w.Row, row)
		if err != nil {
			return nil, err
		}
		var old resources.Object
		if live == nil {
			old = row.New()
			old.GetObjectKind().SetGroupVersionKind(row.GVK())
		} else {
			if old, err = convert(bare(w.Row, live), w.Row, row); err != nil {
				return nil, err
			}
			sameOut(old, now)
		}
		c, err := f.compare(row, old, now)
		if err != nil {
			return nil, err
		}
		return c.FilterFields(w.filter()), nil
	}
	changed, err := compare(w.Row)
	if err != nil {
		return err
	}
	by := map[string]*typed.Comparison{version: changed}
	away := map[string]bool{} // versions that cannot be had now
	for k, m := range known {
		c, ok := by[m.entry.APIVersion]
		if !ok && !away[m.entry.APIVersion] {
			gv, _ := schema.ParseGroupVersion(m.entry.APIVersion)
			c, err = compareVia(f.rows, gv.WithKind(w.Row.Kind), w.Row, compare)
			var bad *inconvertible
			if away[m.entry.APIVersion] = errors.As(err, &bad); err != nil && bad == nil {
				return err
			}
			by[m.entry.APIVersion] = c
		}
		if away[m.entry.APIVersion] {
			continue // it owns too much from now on, which is better than nothing at all
		}
		if c == nil { // a version that is not served any more
			delete(known, k)
			continue
		}
		if c.IsSame() {
			continue
		}
		taken := c.Modified.Union(c.Added).Union(c.Removed)
		if !m.set.Intersection(taken).Empty() {
			known.set(k, m.set.Difference(taken))
		}
	}
	own := changed.Modified.Union(changed.Added).Difference(stripped)
	if own.Empty() {
		return nil
	}
	self := w.entry()
	id := identity(&self)
	now := &owner{entry: self, set: own}
	if before := known[id]; before != nil {
		if now.set = own.Union(before.set); now.set.Equals(before.set) {
			now.raw = before.raw
		}
	}
	known[id] = now
	known.cap()
	return nil
}

func compareVia(rows func(schema.GroupVersionKind) *resources.Row, gvk schema.GroupVersionKind, from *resources.Row,
	compare func(*resources.Row) (*typed.Comparison, error)) (*typed.Comparison, error) {
	to := rows(gvk)
	if to == nil || to.Storage() != from.Storage() {
		return nil, nil
	}
	return compare(to)
}
