package patch

import (
	"encoding/json"
	"errors"
	"fmt"
	"sort"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"
	"sigs.k8s.io/structured-merge-diff/v6/merge"
	"sigs.k8s.io/structured-merge-diff/v6/typed"
	"sigs.k8s.io/structured-merge-diff/v6/value"

	"github.com/keelson/keelson/apiserver/resources"
)

// ConflictError: other managers own fields that the applied configuration wants
// to change. Causes has one entry for each field.
type ConflictError struct {
	Message string
	Causes  []metav1.StatusCause
}

func (e *ConflictError) Error() string { return e.Message }

const (
	// kubectlManager's client-side and server-side apply are one manager's work.
	kubectlManager = "kubectl"
	lastApplied    = "kubectl.kubernetes.io/last-applied-configuration"
)

// Apply merges an applied configuration into live (nil: the object does not exist)
// and returns a new object of w.Row's kind with managedFields brought up to date. live
// is not changed. changed is false when the object is as it was, apart from managedFields.
//
// It fails with *BadError, *ConflictError, or an error that says which field does
// not belong to the kind.
func (f *Fields) Apply(w Write, live resources.Object, config *unstructured.Unstructured, force bool) (obj resources.Object, changed bool, err error) {
	if gvk := config.GroupVersionKind(); gvk != w.Row.GVK() {
		return nil, false, &BadError{fmt.Errorf("invalid object type: %v", gvk)}
	}
	if config.GetManagedFields() != nil {
		return nil, false, &BadError{errors.New("metadata.managedFields must be nil")}
	}
	known := owners{}
	if live == nil {
		live = w.Row.New()
	} else if known, err = f.sets.owners(live.GetManagedFields()); err != nil {
		return nil, false, fmt.Errorf("failed to decode managed fields: %w", err)
	}
	live = bare(w.Row, live)
	if len(known) == 0 && live.GetUID() != "" {
		before := w
		before.Manager = beforeFirstApply
		if err := f.book(before, nil, live, known); err != nil {
			return nil, false, fmt.Errorf("failed to create manager for existing fields: %w", err)
		}
	}
	kind, err := f.types.of(w.Row)
	if err != nil {
		return nil, false, err
	}
	want, err := kind.FromUnstructured(config.Object)
	if err != nil {
		return nil, false, fmt.Errorf("failed to create typed patch object (%s/%s; %s): %w", config.GetNamespace(), config.GetName(), w.Row.GVK(), err)
	}
	was, err := f.typedValue(w.Row, live)
	if err != nil {
		return nil, false, fmt.Errorf("failed to create typed live object (%s/%s; %s): %w", live.GetNamespace(), live.GetName(), w.Row.GVK(), err)
	}
	self := metav1.ManagedFieldsEntry{
		Manager: w.Manager, Operation: metav1.ManagedFieldsOperationApply,
		APIVersion: w.Row.GVK().GroupVersion().String(), Subresource: w.Subresource,
	}
	if self.Manager == "" {
		self.Manager = "unknown"
	}
	id := identity(&self)
	merged, sets, err := f.merge(w, was, want, known, id, force)
	var conflicts merge.Conflicts
	if errors.As(err, &conflicts) && w.Manager == kubectlManager {
		// Fields that kubectl's client-side apply set are kubectl's to change.
		if allowed := f.ownedByLastApplied(w.Row, live, was); allowed != nil {
			var left merge.Conflicts
			for _, c := range conflicts {
				if !allowed.Has(c.Path) {
					left = append(left, c)
				}
			}
			if err = left; len(left) == 0 {
				merged, sets, err = f.merge(w, was, want, known, id, true)
			}
		}
	}
	if err != nil {
		if errors.As(err, &conflicts) {
			return nil, false, conflictError(conflicts, known, w.Seen)
		}
		return nil, false, err
	}
	next := owners{}
	for k, vs := range sets {
		m := known[k]
		set := vs.Set()
		if k == id {
			set = set.Difference(stripped)
		}
		if set.Empty() {
			continue
		}
		switch {
		case k == id:
			e := self
			if m != nil {
				e.Time = m.entry.Time
			}
			next[k] = &owner{entry: e, set: set}
		case set == m.set:
			next[k] = m
		default:
			next[k] = &owner{entry: m.entry, set: set}
		}
	}
	changed = !value.EqualsUsing(value.NewFreelistAllocator(), was.AsValue(), merged.AsValue())
	if changed {
		if obj, err = object(w.Row, merged); err != nil {
			return nil, false, fmt.Errorf("failed to convert new object (%s/%s; %s) to proper version: unable to convert unstructured object to %s: %w",
				config.GetNamespace(), config.GetName(), w.Row.GVK(), w.Row.GVK(), err)
		}
		if next[id] != nil {
			next[id].entry.Time = &metav1.Time{Time: w.Now.UTC()}
		}
	} else {
		obj = live.DeepCopyObject().(resources.Object)
	}
	entries, err := next.encode()
	if err != nil {
		return nil, false, err
	}
	obj.SetManagedFields(entries)
	if w.Manager == kubectlManager {
		if a := obj.GetAnnotations(); a[lastApplied] != "" {
			if a[lastApplied], err = lastAppliedText(config); err != nil {
				return nil, false, err
			}
			obj.SetAnnotations(a)
		}
	}
	if w.Row.Custom == nil {
		obj.GetObjectKind().SetGroupVersionKind(schema.GroupVersionKind{})
	}
	return obj, changed, nil
}

// merge runs the merge algorithm. known is not changed.
func (f *Fields) merge(w Write, was, want *typed.TypedValue, known owners, id string, force bool) (*typed.TypedValue, fieldpath.ManagedFields, error) {
	version := fieldpath.APIVersion(w.Row.GVK().GroupVersion().String())
	sets := make(fieldpath.ManagedFields, len(known)+1)
	for k, m := range known {
		sets[k] = fieldpath.NewVersionedSet(m.set, fieldpath.APIVersion(m.entry.APIVersion), m.entry.Operation == metav1.ManagedFieldsOperationApply)
	}
	if merged, sets, done, err := quickMerge(w, was, want, known, id, force); done || err != nil {
		return merged, sets, err
	}
	u := merge.UpdaterBuilder{Converter: &versions{f: f, kind: w.Row.Kind, own: w.Row, types: map[string]*resources.Row{}}, ReturnInputOnNoop: true}
	if filter := w.filter(); filter != nil {
		u.IgnoreFilter = map[fieldpath.APIVersion]fieldpath.Filter{version: filter}
	}
	return u.BuildUpdater().Apply(was, want, version, sets, id, force)
}

// quickMerge is the common case: the applier gives nothing up and everybody speaks the
// same version, so that nothing has to be pruned or converted. done is false otherwise.
func quickMerge(w Write, was, want *typed.TypedValue, known owners, id string, force bool) (_ *typed.TypedValue, _ fieldpath.ManagedFields, done bool, err error) {
	version := w.Row.GVK().GroupVersion().String()
	for _, m := range known {
		if m.entry.APIVersion != version {
			return nil, nil, false, nil
		}
	}
	set, err := want.ToFieldSet()
	if err != nil {
		return nil, nil, false, fmt.Errorf("failed to get field set: %w", err)
	}
	if filter := w.filter(); filter != nil {
		set = filter.Filter(set)
	}
	if last := known[id]; last != nil && !last.set.Difference(set).Empty() {
		return nil, nil, false, nil
	}
	merged, err := was.Merge(want)
	if err != nil {
		return nil, nil, false, fmt.Errorf("failed to merge config: %w", err)
	}
	c, err := was.Compare(merged)
	if err != nil {
		return nil, nil, false, fmt.Errorf("failed to compare objects: %w", err)
	}
	c = c.FilterFields(w.filter())
	written := c.Modified.Union(c.Added)
	sets := fieldpath.ManagedFields{}
	var conflicts merge.Conflicts
	for k, m := range known {
		if k == id {
			continue
		}
		lost := m.set.Intersection(written)
		for path := range lost.All() {
			conflicts = append(conflicts, merge.Conflict{Manager: k, Path: path.Copy()})
		}
		left := m.set
		if !lost.Empty() || !c.Removed.Empty() {
			left = m.set.Difference(lost).Difference(c.Removed)
		}
		if !left.Empty() {
			sets[k] = fieldpath.NewVersionedSet(left, fieldpath.APIVersion(version), m.entry.Operation == metav1.ManagedFieldsOperationApply)
		}
	}
	if len(conflicts) > 0 && !force {
		sort.Slice(conflicts, func(i, j int) bool {
			if conflicts[i].Manager != conflicts[j].Manager {
				return conflicts[i].Manager < conflicts[j].Manager
			}
			return conflicts[i].Path.Compare(conflicts[j].Path) < 0
		})
		return nil, nil, false, conflicts
	}
	if !set.Empty() {
		sets[id] = fieldpath.NewVersionedSet(set, fieldpath.APIVersion(version), true)
	}
	return merged, sets, true, nil
}

// object turns a merged value back into the row's Go type.
func object(row *resources.Row, v *typed.TypedValue) (resources.Object, error) {
	content, ok := v.AsValue().Unstructured().(map[string]any)
	if !ok {
		return nil, fmt.Errorf("merged %s is not an object", row.Kind)
	}
	if row.Custom != nil {
		// Parts of content are the live object's, which is shared.
		return &unstructured.Unstructured{Object: runtime.DeepCopyJSON(content)}, nil
	}
	obj := row.New()
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(content, obj); err != nil {
		return nil, err
	}
	return obj, nil
}

// versions converts values between the served versions of one kind, for entries
// that were made through another version.
type versions struct {
	f     *Fields
	kind  string
	own   *resources.Row
	types map[string]*resources.Row // by name: those of which there are values
}

type missingVersion struct{ version fieldpath.APIVersion }

func (m missingVersion) Error() string { return fmt.Sprintf("version %s is not served", m.version) }

func (v *versions) IsMissingVersionError(err error) bool {
	var m missingVersion
	return errors.As(err, &m)
}

func (v *versions) Convert(tv *typed.TypedValue, version fieldpath.APIVersion) (*typed.TypedValue, error) {
	gv, err := schema.ParseGroupVersion(string(version))
	if err != nil {
		return nil, missingVersion{version}
	}
	to := v.own
	if to.GVK().GroupVersion() != gv {
		if to = v.f.rows(gv.WithKind(v.kind)); to == nil || to.Storage() != v.own.Storage() {
			return nil, missingVersion{version}
		}
	}
	kind, err := v.f.types.of(to)
	if err != nil {
		return nil, err
	}
	if *kind.TypeRef.NamedType == *tv.TypeRef().NamedType {
		return tv, nil
	}
	// A value was first of the own version; others come from here.
	from := v.own
	if made := v.types[*tv.TypeRef().NamedType]; made != nil {
		from = made
	}
	obj, err := object(from, tv)
	if err != nil {
		return nil, err
	}
	if obj, err = convert(obj, from, to); err != nil {
		return nil, err
	}
	v.types[*kind.TypeRef.NamedType] = to
	return v.f.typedValue(to, obj)
}

// ownedByLastApplied returns the fields that the last-applied annotation holds and
// that still have that value, nil when there is no such annotation.
func (f *Fields) ownedByLastApplied(row *resources.Row, live resources.Object, was *typed.TypedValue) *fieldpath.Set {
	text := live.GetAnnotations()[lastApplied]
	last := &unstructured.Unstructured{}
	if text == "" || json.Unmarshal([]byte(text), &last.Object) != nil || last.GroupVersionKind() != row.GVK() {
		return nil
	}
	kind, err := f.types.of(row)
	if err != nil {
		return nil
	}
	v, err := kind.FromUnstructured(last.Object)
	if err != nil {
		return nil
	}
	set, err := v.ToFieldSet()
	if err != nil {
		return nil
	}
	c, err := v.Compare(was)
	if err != nil {
		return nil
	}
	return set.Difference(c.Modified).Difference(c.Added).Difference(c.Removed)
}

func lastAppliedText(config *unstructured.Unstructured) (string, error) {
	c := config.DeepCopy()
	a := c.GetAnnotations()
	delete(a, lastApplied)
	c.SetAnnotations(a)
	raw, err := runtime.Encode(unstructured.UnstructuredJSONScheme, c)
	return string(raw), err
}

func conflictError(conflicts merge.Conflicts, known owners, seen schema.GroupVersion) *ConflictError {
	name := func(id string) string {
		m := known[id]
		if m == nil {
			return fmt.Sprintf("%q", id)
		}
		s := fmt.Sprintf("%q", m.entry.Manager)
		if m.entry.Subresource != "" {
			s += fmt.Sprintf(" with subresource %q", m.entry.Subresource)
		}
		if m.entry.Operation == metav1.ManagedFieldsOperationUpdate {
			version := m.entry.APIVersion
			if !seen.Empty() {
				version = seen.String()
			}
			s += " using " + version
		}
		return s
	}
	e := &ConflictError{}
	byManager := map[string][]string{}
	for _, c := range conflicts {
		e.Causes = append(e.Causes, metav1.StatusCause{
			Type: metav1.CauseTypeFieldManagerConflict, Message: "conflict with " + name(c.Manager), Field: c.Path.String(),
		})
		byManager[name(c.Manager)] = append(byManager[name(c.Manager)], c.Path.String())
	}
	if len(conflicts) == 1 {
		e.Message = fmt.Sprintf("Apply failed with 1 conflict: %s: %s", e.Causes[0].Message, e.Causes[0].Field)
		return e
	}
	var managers []string
	for m := range byManager {
		managers = append(managers, m)
	}
	sort.Strings(managers)
	var lines []string
	for _, m := range managers {
		lines = append(lines, fmt.Sprintf("conflicts with %s:", m))
		for _, p := range byManager[m] {
			lines = append(lines, "- "+p)
		}
	}
	e.Message = fmt.Sprintf("Apply failed with %d conflicts: %s", len(conflicts), strings.Join(lines, "\n"))
	return e
}
