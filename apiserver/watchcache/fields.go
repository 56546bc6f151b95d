package watchcache

import (
	"encoding/binary"
	"slices"

	"k8s.io/apimachinery/pkg/fields"

	"github.com/keelson/keelson/apiserver/resources"
)

var _ fields.Fields = (*fieldsAs)(nil)

// fieldsAs is the selectable fields of an item as one row serves it. Every object that somebody has selected by a field
// keeps one, so it is small: no map, and no part of the decoded object. Those of several versions are a chain, which
// is short: only custom kinds have more than one. Nil has no field.
type fieldsAs struct {
	row  *resources.Row
	text string // for each of row.FieldNames, in that order, the length of its value (a uvarint) and the value
	next *fieldsAs
}

// newFieldsAs keeps set, whose names are among the row's.
func newFieldsAs(row *resources.Row, set fields.Set) *fieldsAs {
	text := make([]byte, 0, 128)
	for _, name := range row.FieldNames {
		text = binary.AppendUvarint(text, uint64(len(set[name])))
		text = append(text, set[name]...)
	}
	return &fieldsAs{row: row, text: string(text)}
}

// Has reports whether the row has such a field.
func (f *fieldsAs) Has(field string) bool {
	return f != nil && slices.Contains(f.row.FieldNames, field)
}

// Get returns the field's value, empty when there is no such field.
func (f *fieldsAs) Get(field string) string {
	if f == nil {
		return ""
	}
	rest := f.text
	for _, name := range f.row.FieldNames {
		size, n := uvarint(rest)
		if name == field {
			return rest[n : n+size]
		}
		rest = rest[n+size:]
	}
	return ""
}

// uvarint reads what newFieldsAs has written at the beginning of s, and how many bytes it takes.
func uvarint(s string) (value, n int) {
	for shift := 0; ; shift += 7 {
		b := s[n]
		n++
		value |= int(b&0x7f) << shift
		if b < 0x80 {
			return value, n
		}
	}
}

// selectable returns the selectable fields of the item as row serves it (nil: as it is stored), without
// metadata.name and metadata.namespace. It fails when the item cannot be had as that.
func (it *Item) selectable(row *resources.Row) (*fieldsAs, error) {
	if row == nil {
		row = it.Row
	}
	if row == nil {
		return nil, nil
	}
	first := it.fields.Load()
	for f := first; f != nil; f = f.next {
		if f.row == row {
			return f, nil
		}
	}
	obj, err := it.as(row)
	if err != nil {
		return nil, err
	}
	out := newFieldsAs(row, row.Fields(obj))
	out.next = first
	for f := first; f != nil; f = f.next {
		if f.row.Version == row.Version { // the row of a definition that has been replaced
			out.next = nil
		}
	}
	it.fields.CompareAndSwap(first, out) // whoever was faster keeps what it found
	return out, nil
}
