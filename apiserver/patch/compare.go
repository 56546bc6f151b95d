package patch

import (
	"cmp"
	"reflect"
	"slices"

	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"
	smd "sigs.k8s.io/structured-merge-diff/v6/schema"
	"sigs.k8s.io/structured-merge-diff/v6/typed"
	"sigs.k8s.io/structured-merge-diff/v6/value"
)

// rule says how two values of one Go type are compared under one type of the schema. It is worked out
// once for each kind, so that a comparison need not look anything up by name. What it finds is what
// [typed.TypedValue.Compare] finds.
type rule struct {
	form form
	// members of a structure, as JSON names them and in that order.
	members []member
	// of is the rule of a list's items or a map's values.
	of *rule
	// keys of a list's items, by name.
	keys []itemKey
}

type form int

const (
	// unknown: only the library can tell, as its type depends on the value.
	unknown form = iota
	// leaf: a scalar, or a list or map that is replaced as a whole.
	leaf
	structure
	dictionary
	// keyed: a list whose items are known by some of their fields.
	keyed
	// collection: a list of different scalars.
	collection
)

type member struct {
	name   fieldpath.PathElement
	at     *value.FieldCacheEntry
	rule   *rule
	before was // in an empty structure
}

type itemKey struct {
	name string
	at   *value.FieldCacheEntry
	// fallback is its value in an item without it; nil: it does not count there.
	fallback any
}

// ruleset works out rules.
type ruleset struct {
	schema *smd.Schema
	// known rules; kinds such as JSON schemas hold themselves.
	known map[ruleID]*rule
}

type ruleID struct {
	goType       reflect.Type
	name         string
	relationship smd.ElementRelationship
}

func (s *ruleset) rule(ref smd.TypeRef, t reflect.Type) *rule {
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	r := &rule{}
	if ref.NamedType != nil {
		id := ruleID{goType: t, name: *ref.NamedType}
		if ref.ElementRelationship != nil {
			id.relationship = *ref.ElementRelationship
		}
		if known := s.known[id]; known != nil {
			return known
		}
		s.known[id] = r
	}
	atom, ok := s.schema.Resolve(ref)
	converted := value.TypeReflectEntryOf(t).CanConvertToUnstructured()
	switch {
	case !ok, t.Kind() == reflect.Interface:
	case t == reflect.TypeFor[intstr.IntOrString]() && atom.Scalar != nil: // its schema has no type
		r.form = leaf
	case atom.Scalar != nil && atom.List == nil && atom.Map == nil:
		if converted || plainKind(t) {
			r.form = leaf
		}
	case converted:
	case atom.Map != nil && atom.Scalar == nil && atom.List == nil:
		s.mapping(r, atom.Map, t)
	case atom.List != nil && atom.Scalar == nil && atom.Map == nil && t.Kind() == reflect.Slice:
		s.list(r, atom.List, t)
	}
	return r
}

// plainKind: JSON has it as a scalar.
func plainKind(t reflect.Type) bool {
	switch t.Kind() {
	case reflect.Struct, reflect.Map, reflect.Array, reflect.Pointer:
		return false
	case reflect.Slice:
		return t.Elem().Kind() == reflect.Uint8
	}
	return true
}

func (s *ruleset) mapping(r *rule, m *smd.Map, t reflect.Type) {
	switch {
	case t.Kind() != reflect.Struct && (t.Kind() != reflect.Map || t.Key().Kind() != reflect.String || len(m.Fields) > 0):
	case m.ElementRelationship == smd.Atomic:
		r.form = leaf
	case t.Kind() == reflect.Map:
		r.form, r.of = dictionary, s.rule(m.ElementType, t.Elem())
	default:
		r.form = structure
		for _, at := range value.TypeReflectEntryOf(t).OrderedFields() {
			ref := m.ElementType
			if f, ok := m.FindField(at.JsonName); ok {
				ref = f.Type
			}
			field := at.GetFrom(reflect.New(t).Elem())
			r.members = append(r.members, member{
				name: fieldpath.PathElement{FieldName: &at.JsonName}, at: at, rule: s.rule(ref, field.Type()), before: beforeOf(at, field),
			})
		}
		slices.SortFunc(r.members, func(a, b member) int { return cmp.Compare(a.at.JsonName, b.at.JsonName) })
	}
}

func (s *ruleset) list(r *rule, l *smd.List, t reflect.Type) {
	if l.ElementRelationship == smd.Atomic {
		r.form = leaf
		return
	}
	item := t.Elem()
	if item.Kind() == reflect.Pointer {
		item = item.Elem()
	}
	of := s.rule(l.ElementType, item)
	if len(l.Keys) == 0 {
		if of.form == leaf && item.Kind() == reflect.String {
			r.form, r.of = collection, of
		}
		return
	}
	atom, ok := s.schema.Resolve(l.ElementType)
	if !ok || atom.Map == nil || item.Kind() != reflect.Struct {
		return
	}
	entries := value.TypeReflectEntryOf(item).Fields()
	for _, name := range l.Keys {
		at := entries[name]
		if at == nil {
			return
		}
		f, _ := atom.Map.FindField(name)
		r.keys = append(r.keys, itemKey{name: name, at: at, fallback: f.Default})
	}
	slices.SortFunc(r.keys, func(a, b itemKey) int { return cmp.Compare(a.name, b.name) })
	r.form, r.of = keyed, of
}

// operand is one of the two values that are compared. It may be missing, or null: there without a value.
type operand struct {
	there bool
	v     reflect.Value
}

func operandOf(v reflect.Value) operand {
	switch v.Kind() {
	case reflect.Pointer:
		return operand{there: true, v: v.Elem()}
	case reflect.Slice, reflect.Map:
		if v.IsNil() {
			return operand{there: true}
		}
	}
	return operand{there: true, v: v}
}

func (o operand) len() int {
	if !o.v.IsValid() {
		return 0
	}
	return o.v.Len()
}

// change is what became of a field.
type change int

const (
	added change = iota
	modified
	removed
)

// comparison collects the changes from one value to another.
type comparison struct {
	path []step
}

// step is one element of the path to the values at hand, with the sets of the changes below it.
type step struct {
	element fieldpath.PathElement
	below   [3]*fieldpath.Set
}

// compare returns the changes from a to b, two pointers of one type. It returns nil when that is for the library to tell.
func (r *rule) compare(a, b any) *typed.Comparison {
	c := comparison{path: make([]step, 1, 16)}
	c.path[0].below = [3]*fieldpath.Set{fieldpath.NewSet(), fieldpath.NewSet(), fieldpath.NewSet()}
	if !c.walk(r, operandOf(reflect.ValueOf(a)), operandOf(reflect.ValueOf(b))) {
		return nil
	}
	sets := c.path[0].below
	return &typed.Comparison{Added: sets[added], Modified: sets[modified], Removed: sets[removed]}
}

func (c *comparison) enter(element fieldpath.PathElement) {
	c.path = append(c.path, step{element: element})
}

func (c *comparison) leave() { c.path = c.path[:len(c.path)-1] }

// below returns the set of what has changed below a depth of the path.
func (c *comparison) below(depth int, what change) *fieldpath.Set {
	s := &c.path[depth]
	if s.below[what] == nil {
		s.below[what] = c.below(depth-1, what).Children.Descend(s.element)
	}
	return s.below[what]
}

// mark books what is at the end of the path. The whole object is nobody's.
func (c *comparison) mark(what change) {
	if last := len(c.path) - 1; last > 0 {
		c.below(last-1, what).Members.Insert(c.path[last].element)
	}
}

// walk compares two values, of which one may be missing. It returns false when the library has to.
func (c *comparison) walk(r *rule, a, b operand) bool {
	inside, ok := false, true // inside: there was something to compare below
	switch r.form {
	case leaf:
		return c.leaf(a, b)
	case structure:
		inside, ok = c.structures(r, a, b)
	case dictionary:
		inside, ok = c.dictionaries(r, a, b)
	case keyed, collection:
		inside, ok = c.lists(r, a, b)
	default:
		return false
	}
	switch {
	case !ok:
		return false
	case !inside:
		return c.leaf(a, b)
	case !a.there:
		c.mark(added)
	case !b.there:
		c.mark(removed)
	}
	return true
}

func (c *comparison) leaf(a, b operand) bool {
	switch {
	case !a.there:
		c.mark(added)
	case !b.there:
		c.mark(removed)
	default:
		equal, ok := equalLeaves(a.v, b.v)
		if !ok {
			return false
		}
		if !equal {
			c.mark(modified)
		}
	}
	return true
}

func equalLeaves(a, b reflect.Value) (equal, ok bool) {
	if !a.IsValid() || !b.IsValid() {
		return a.IsValid() == b.IsValid(), true
	}
	if !value.TypeReflectEntryOf(a.Type()).CanConvertToUnstructured() {
		switch a.Kind() {
		case reflect.String:
			return a.String() == b.String(), true
		case reflect.Bool:
			return a.Bool() == b.Bool(), true
		case reflect.Int, reflect.Int64, reflect.Int32, reflect.Int16, reflect.Int8:
			return a.Int() == b.Int(), true
		}
	}
	x, errA := value.NewValueReflect(pointerTo(a))
	y, errB := value.NewValueReflect(pointerTo(b))
	return errA == nil && errB == nil && value.Equals(y, x), errA == nil && errB == nil
}

func pointerTo(v reflect.Value) any {
	if v.CanAddr() {
		return v.Addr().Interface()
	}
	p := reflect.New(v.Type())
	p.Elem().Set(v)
	return p.Interface()
}

// field is a member of a structure; omitted as JSON omits it, it is missing.
func (o operand) field(at *value.FieldCacheEntry) operand {
	if !o.v.IsValid() {
		return operand{}
	}
	v := at.GetFrom(o.v)
	if at.CanOmit(v) {
		return operand{}
	}
	return operandOf(v)
}

func (c *comparison) structures(r *rule, a, b operand) (inside, ok bool) {
	for i := range r.members {
		m := &r.members[i]
		x, y := a.field(m.at), b.field(m.at)
		if !x.there && !y.there {
			continue
		}
		inside = true
		c.enter(m.name)
		if !c.walk(m.rule, x, y) {
			return inside, false
		}
		c.leave()
	}
	return inside, true
}

func (o operand) entry(key reflect.Value) operand {
	if !o.v.IsValid() {
		return operand{}
	}
	v := o.v.MapIndex(key)
	if !v.IsValid() {
		return operand{}
	}
	return operandOf(v)
}

func (c *comparison) dictionaries(r *rule, a, b operand) (inside, ok bool) {
	entry := func(k reflect.Value) bool {
		name := k.String()
		c.enter(fieldpath.PathElement{FieldName: &name})
		defer c.leave()
		return c.walk(r.of, a.entry(k), b.entry(k))
	}
	if a.v.IsValid() {
		for it := a.v.MapRange(); it.Next(); {
			if !entry(it.Key()) {
				return true, false
			}
		}
	}
	if b.v.IsValid() {
		for it := b.v.MapRange(); it.Next(); {
			if k := it.Key(); !a.entry(k).there && !entry(k) {
				return true, false
			}
		}
	}
	return a.len()+b.len() > 0, true
}

// lists compares items with those of the same key. Lists that have a key twice, or an item without one, are for the library.
func (c *comparison) lists(r *rule, a, b operand) (inside, ok bool) {
	before, ok := r.index(a)
	if !ok {
		return true, false
	}
	now, ok := r.index(b)
	if !ok {
		return true, false
	}
	visit := func(element fieldpath.PathElement, x, y operand) bool {
		c.enter(element)
		defer c.leave()
		return c.walk(r.of, x, y)
	}
	for i, element := range before.elements {
		x, y := operandOf(a.v.Index(i)), operand{}
		if j, ok := now.at.Get(element); ok {
			y = operandOf(b.v.Index(j.(int)))
		}
		if !visit(element, x, y) {
			return true, false
		}
	}
	for i, element := range now.elements {
		if _, ok := before.at.Get(element); !ok && !visit(element, operand{}, operandOf(b.v.Index(i))) {
			return true, false
		}
	}
	return a.len()+b.len() > 0, true
}

// index is a list by the keys of its items.
type index struct {
	elements []fieldpath.PathElement
	at       fieldpath.PathElementMap
}

func (r *rule) index(list operand) (x index, ok bool) {
	n := list.len()
	x.at = fieldpath.MakePathElementMap(n)
	x.elements = make([]fieldpath.PathElement, 0, n)
	for i := range n {
		element, ok := r.element(operandOf(list.v.Index(i)))
		if !ok {
			return x, false
		}
		if _, twice := x.at.Get(element); twice {
			return x, false
		}
		x.at.Insert(element, i)
		x.elements = append(x.elements, element)
	}
	return x, true
}

// element is what the path calls a list's item.
func (r *rule) element(item operand) (_ fieldpath.PathElement, ok bool) {
	if !item.v.IsValid() {
		return fieldpath.PathElement{}, false
	}
	if r.form == collection {
		v := value.NewValueInterface(item.v.String())
		return fieldpath.PathElement{Value: &v}, true
	}
	fields := make(value.FieldList, 0, len(r.keys))
	for i := range r.keys {
		k := &r.keys[i]
		key := k.fallback
		if o := item.field(k.at); o.there {
			switch {
			case !o.v.IsValid():
				return fieldpath.PathElement{}, false
			case o.v.Kind() == reflect.String:
				key = o.v.String()
			case o.v.CanInt():
				key = o.v.Int()
			default:
				return fieldpath.PathElement{}, false
			}
		}
		if key != nil {
			fields = append(fields, value.Field{Name: k.name, Value: value.NewValueInterface(key)})
		}
	}
	return fieldpath.PathElement{Key: &fields}, len(fields) > 0
}
