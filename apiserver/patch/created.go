package patch

import (
	"cmp"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"sigs.k8s.io/structured-merge-diff/v6/value"

	"github.com/keelson/keelson/apiserver/resources"
)

// created returns the fields that whoever creates obj owns, as JSON: what [rule.compare] finds added to and modified of an
// empty object, without what nobody owns and what w cannot set. One walk, no sets: creations are the most frequent
// writes of large objects. Nothing owned is nil. ok is false when something in obj is for the longer way.
func (f *Fields) created(w Write, obj resources.Object) (raw []byte, ok bool) {
	k, err := f.types.of(w.Row)
	if err != nil || k.rule == nil || k.rule.form != structure {
		return nil, false
	}
	for _, p := range w.Reset {
		if strings.Contains(p, ".") {
			return nil, false
		}
	}
	o := ownership{text: make([]byte, 1, 1024)}
	o.text[0] = '{'
	b := operandOf(reflect.ValueOf(obj))
	for i := range k.rule.members {
		m := &k.rule.members[i]
		switch name := *m.name.FieldName; {
		case name == "apiVersion", name == "kind", slices.Contains(w.Reset, name):
		case name == "metadata":
			o.metadata(m, b.field(m.at))
		default:
			o.member(m, zero, b)
		}
	}
	if o.broken || len(o.text) == 1 {
		return nil, !o.broken
	}
	return append(o.text, '}'), true
}

// was is what a value is compared to.
type was int

const (
	missing was = iota
	// null: there without a value.
	null
	// zero: there with the zero value of its type.
	zero
)

// beforeOf is what a member with this value is in an empty structure.
func beforeOf(at *value.FieldCacheEntry, v reflect.Value) was {
	switch {
	case at.CanOmit(v):
		return missing
	case v.Kind() == reflect.Pointer, v.Kind() == reflect.Slice, v.Kind() == reflect.Map:
		return null
	}
	return zero
}

// unowned are the fields of metadata that are never owned, as stripped has them.
var unowned = []string{"clusterName", "creationTimestamp", "generation", "managedFields", "name", "namespace", "resourceVersion", "selfLink", "uid"}

// ownership writes the fields of a value that was not there before, or was as its type's zero value is.
type ownership struct {
	text []byte
	// broken: the value is not for this way.
	broken bool
}

func (o *ownership) metadata(m *member, b operand) {
	start := len(o.text)
	o.open(`"f:metadata":{`)
	empty := len(o.text)
	for i := range m.rule.members {
		if n := &m.rule.members[i]; !slices.Contains(unowned, *n.name.FieldName) {
			o.member(n, m.before, b)
		}
	}
	o.close(start, empty)
}

// open begins an element, after a comma where one is due.
func (o *ownership) open(head string) {
	if last := o.text[len(o.text)-1]; last != '{' {
		o.text = append(o.text, ',')
	}
	o.text = append(o.text, head...)
}

// close ends an element that began at start and had no text until empty; without any it was never there.
func (o *ownership) close(start, empty int) {
	if len(o.text) == empty {
		o.text = o.text[:start]
		return
	}
	o.text = append(o.text, '}')
}

// plain appends a string that JSON writes as it is. Others are for the longer way.
func (o *ownership) plain(s string) {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c > '~' || c == '"' || c == '\\' || c == '<' || c == '>' || c == '&' {
			o.broken = true
			return
		}
	}
	o.text = append(o.text, s...)
}

// member writes a member of structure b. before is what the structure was.
func (o *ownership) member(m *member, before was, b operand) {
	if o.broken {
		return
	}
	v := b.field(m.at)
	if !v.there {
		return
	}
	if before == zero {
		before = m.before
	} else {
		before = missing
	}
	start := len(o.text)
	o.open(`"f:`)
	o.plain(*m.name.FieldName)
	o.text = append(o.text, `":{`...)
	o.value(m.rule, start, before, v)
}

// value ends an element that began at start with its value, b. What is below is nobody's unless something is there;
// the element itself is owned when it was missing, or is a leaf that has changed.
func (o *ownership) value(r *rule, start int, before was, b operand) {
	empty := len(o.text)
	if before == missing {
		o.text = append(o.text, `".":{}`...)
	}
	inside := false
	switch r.form {
	case leaf:
	case structure:
		for i := range r.members {
			m := &r.members[i]
			inside = inside || b.field(m.at).there
			o.member(m, before, b)
		}
	case dictionary:
		inside = b.len() > 0
		o.entries(r, b)
	case keyed, collection:
		inside = b.len() > 0
		o.items(r, b)
	default:
		o.broken = true
	}
	switch {
	case o.broken:
	case inside:
		o.close(start, empty)
	case o.unchanged(before, b):
		o.text = o.text[:start]
	default:
		o.text = append(o.text[:empty], '}')
	}
}

// unchanged says whether a leaf is as it was.
func (o *ownership) unchanged(before was, b operand) bool {
	switch {
	case before == missing:
		return false
	case before == null || !b.v.IsValid():
		return before == null && !b.v.IsValid()
	}
	equal, ok := equalLeaves(reflect.Zero(b.v.Type()), b.v)
	o.broken = o.broken || !ok
	return equal
}

// entries writes those of a map, by name.
func (o *ownership) entries(r *rule, b operand) {
	if b.len() == 0 {
		return
	}
	keys := b.v.MapKeys()
	slices.SortFunc(keys, func(x, y reflect.Value) int { return cmp.Compare(x.String(), y.String()) })
	for _, k := range keys {
		start := len(o.text)
		o.open(`"f:`)
		o.plain(k.String())
		o.text = append(o.text, `":{`...)
		o.value(r.of, start, missing, b.entry(k))
		if o.broken {
			return
		}
	}
}

// maxKeys is how many keys a list's items may have here.
const maxKeys = 3

// itemName is the keys of a list's item: texts, or numbers where isNumber says so.
type itemName struct {
	at       int
	n        int
	name     [maxKeys]string
	text     [maxKeys]string
	number   [maxKeys]int64
	isNumber [maxKeys]bool
}

func (x *itemName) compare(y *itemName) int {
	for i := range min(x.n, y.n) {
		c := cmp.Compare(x.name[i], y.name[i])
		if c == 0 && x.isNumber[i] != y.isNumber[i] { // numbers come first
			if x.isNumber[i] {
				return -1
			}
			return 1
		}
		if c = cmp.Or(c, cmp.Compare(x.number[i], y.number[i]), cmp.Compare(x.text[i], y.text[i])); c != 0 {
			return c
		}
	}
	return cmp.Compare(x.n, y.n)
}

// items writes those of a list, by their keys. A list that has a key twice is for the longer way.
func (o *ownership) items(r *rule, b operand) {
	names := make([]itemName, b.len())
	for i := range names {
		names[i].at = i
		if !names[i].read(r, operandOf(b.v.Index(i))) {
			o.broken = true
			return
		}
	}
	slices.SortFunc(names, func(x, y itemName) int { return x.compare(&y) })
	for i := range names {
		x := &names[i]
		if i > 0 && x.compare(&names[i-1]) == 0 {
			o.broken = true
			return
		}
		start := len(o.text)
		o.name(r, x)
		o.value(r.of, start, missing, operandOf(b.v.Index(x.at)))
		if o.broken {
			return
		}
	}
}

// name begins the element of an item: JSON within a JSON string.
func (o *ownership) name(r *rule, x *itemName) {
	if r.form == collection {
		o.open(`"v:\"`)
		o.plain(x.text[0])
		o.text = append(o.text, `\"":{`...)
		return
	}
	o.open(`"k:{`)
	for i := range x.n {
		if i > 0 {
			o.text = append(o.text, ',')
		}
		o.text = append(o.text, `\"`...)
		o.plain(x.name[i])
		o.text = append(o.text, `\":`...)
		if x.isNumber[i] {
			o.text = strconv.AppendInt(o.text, x.number[i], 10)
			continue
		}
		o.text = append(o.text, `\"`...)
		o.plain(x.text[i])
		o.text = append(o.text, `\"`...)
	}
	o.text = append(o.text, `}":{`...)
}

// read finds what [rule.element] finds.
func (x *itemName) read(r *rule, item operand) bool {
	if !item.v.IsValid() {
		return false
	}
	if r.form == collection {
		x.n, x.text[0] = 1, item.v.String()
		return true
	}
	if len(r.keys) > maxKeys {
		return false
	}
	for i := range r.keys {
		k := &r.keys[i]
		switch v := item.field(k.at); {
		case v.there && !v.v.IsValid():
			return false
		case v.there && v.v.Kind() == reflect.String:
			x.text[x.n] = v.v.String()
		case v.there && v.v.CanInt():
			x.number[x.n], x.isNumber[x.n] = v.v.Int(), true
		case v.there:
			return false
		case k.fallback == nil:
			continue
		default:
			text, ok := k.fallback.(string)
			if !ok {
				return false
			}
			x.text[x.n] = text
		}
		x.name[x.n] = k.name
		x.n++
	}
	return x.n > 0
}
