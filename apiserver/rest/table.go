package rest

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"slices"
	"strconv"
	"time"
	"unicode/utf8"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"sigs.k8s.io/yaml"

	"github.com/keelson/keelson/apiserver/codec"
	"github.com/keelson/keelson/apiserver/resources"
	"github.com/keelson/keelson/apiserver/watchcache"
)

var metaDoc = metav1.ObjectMeta{}.SwaggerDoc()

var (
	nameColumn = metav1.TableColumnDefinition{Name: "Name", Type: "string", Format: "name", Description: metaDoc["name"]}
	ageColumn  = metav1.TableColumnDefinition{Name: "Age", Type: "string", Description: metaDoc["creationTimestamp"]}
)

// columns are the row's own between Name and Age; a row that has one of them itself decides its place.
func columns(row *resources.Row) []resources.ErasedColumn {
	if row.Custom != nil {
		return row.Columns // complete
	}
	has := map[string]bool{}
	for _, c := range row.Columns {
		has[c.Name] = true
	}
	var out []resources.ErasedColumn
	if !has["Name"] {
		out = append(out, resources.ErasedColumn{TableColumnDefinition: nameColumn,
			Cell: func(o resources.Object, _ time.Time) any { return o.GetName() }})
	}
	// Other columns that tell the time stand in for Age; what nobody creates has none.
	if has["Age"] || has["Created At"] || has["Last Seen"] || row.Kind == "PodTemplate" || !row.Can("create") {
		return append(out, row.Columns...)
	}
	// Columns of -o wide stand behind Age.
	age := resources.ErasedColumn{TableColumnDefinition: ageColumn, Cell: func(o resources.Object, now time.Time) any {
		return resources.Age(o.GetCreationTimestamp(), now)
	}}
	placed := false
	for _, c := range row.Columns {
		if c.Priority > 0 && !placed {
			out, placed = append(out, age), true
		}
		out = append(out, c)
	}
	if !placed {
		out = append(out, age)
	}
	return out
}

// tableWriter writes Tables as text: no Table value is ever made.
type tableWriter struct {
	c       *Call
	kind    *resources.Row // of the objects that the rows show
	columns []resources.ErasedColumn
	include metav1.IncludeObjectPolicy
	now     time.Time
	version string
	age     int // index of the Age column; -1: there is none
}

func (c *Call) newTable() (*tableWriter, error) {
	kind := c.shown()
	t := &tableWriter{c: c, kind: kind, columns: columns(kind), now: c.Request.Now, version: c.format.Version, include: metav1.IncludeMetadata}
	t.age = slices.IndexFunc(t.columns, func(col resources.ErasedColumn) bool { return col.Name == ageColumn.Name })
	switch p := metav1.IncludeObjectPolicy(c.Query.Get("includeObject")); p {
	case "":
	case metav1.IncludeNone, metav1.IncludeMetadata, metav1.IncludeObject:
		t.include = p
	default:
		return nil, apierrors.NewBadRequest("Unable to convert to Table as requested: " +
			field.Invalid(field.NewPath("includeObject"), string(p), "must be 'Metadata', 'Object', 'None', or empty").Error())
	}
	return t, nil
}

// shown is the row as whose objects an answer is made of what is stored. Tables and metadata of a built-in
// kind are the same in all its versions: upstream makes them of its internal objects.
func (c *Call) shown() *resources.Row {
	if c.format.As == "" || c.Row.Custom != nil {
		return c.Row
	}
	return c.Row.Storage()
}

// head is everything up to the first row. Later events of a watch leave the definitions out.
func (t *tableWriter) head(dst []byte, meta metav1.ListMeta, definitions bool) []byte {
	dst = append(dst, `{"kind":"Table","apiVersion":"meta.k8s.io/`...)
	dst = append(dst, t.version...)
	dst = append(dst, `","metadata":`...)
	m, _ := json.Marshal(meta)
	dst = append(dst, m...)
	dst = append(dst, `,"columnDefinitions":`...)
	if definitions {
		defs := make([]metav1.TableColumnDefinition, len(t.columns))
		for i, c := range t.columns {
			defs[i] = c.TableColumnDefinition
		}
		d, _ := json.Marshal(defs)
		dst = append(dst, d...)
	} else {
		dst = append(dst, "null"...)
	}
	return append(dst, `,"rows":`...)
}

// none: upstream's Table of nothing has null for rows where it has no columns of its own for the kind.
func (t *tableWriter) none() string {
	if t.kind.Custom == nil && slices.ContainsFunc(t.columns, func(col resources.ErasedColumn) bool { return col.Name == "Created At" }) {
		return "null"
	}
	return "[]"
}

func (t *tableWriter) row(dst []byte, it *watchcache.Item) ([]byte, error) {
	dst, err := t.cells(dst, it)
	if err != nil {
		return dst, err
	}
	if t.include == metav1.IncludeNone {
		return append(dst, `,"object":null}`...), nil
	}
	dst = append(dst, `,"object":`...)
	if t.include == metav1.IncludeObject {
		if it, err = it.For(t.c.Row); err == nil {
			dst, err = codec.AppendSingle(dst, t.c.Row, it, codec.Format{})
		}
		if err != nil {
			return dst, err
		}
		return append(bytes.TrimRight(dst, "\n"), '}'), nil
	}
	dst = append(dst, `{"kind":"PartialObjectMetadata","apiVersion":"meta.k8s.io/`...)
	dst = append(dst, t.version...)
	dst = append(dst, `","metadata":`...)
	meta, err := metadataJSON(it, t.kind.Custom != nil)
	if err != nil {
		return dst, err
	}
	dst = append(dst, meta...)
	return append(dst, "}}"...), nil
}

// cells appends the cells and the row's conditions. Rows of built-in kinds are kept, where nothing in them changes
// with the time but Age.
func (t *tableWriter) cells(dst []byte, it *watchcache.Item) ([]byte, error) {
	dst = append(dst, `{"cells":[`...)
	if it.Row == t.kind && it.Row.Custom == nil {
		kept, err := it.Form(watchcache.FormCells, func() ([]byte, error) {
			obj, err := it.Decoded()
			if err != nil {
				return nil, err
			}
			return t.timeless(obj), nil
		})
		if err != nil {
			return dst, err
		}
		if len(kept) > 0 {
			return t.spliced(dst, kept), nil
		}
	}
	obj, err := it.Object() // no row of it is kept
	if err != nil {
		return dst, err
	}
	return t.ending(t.cellsOf(dst, obj), obj), nil
}

// ending closes the cells and appends the row's conditions.
func (t *tableWriter) ending(dst []byte, obj resources.Object) []byte {
	dst = append(dst, ']')
	if t.kind.Conditions == nil {
		return dst
	}
	if conditions := t.kind.Conditions(obj); len(conditions) > 0 {
		text, _ := json.Marshal(conditions)
		dst = append(append(dst, `,"conditions":`...), text...)
	}
	return dst
}

func (t *tableWriter) cellsOf(dst []byte, obj resources.Object) []byte {
	for i := range t.columns {
		dst = t.cell(dst, i, obj, t.now)
	}
	return dst
}

// timeless is what is kept of a row: the second of creation and the length of what stands before Age (as varints),
// the cells before it, and those behind it with what ends the row. It is empty when another cell depends on the time: then one
// of two times that are years apart shows.
func (t *tableWriter) timeless(obj resources.Object) []byte {
	const years = 3 * 365 * 24 * time.Hour
	created := obj.GetCreationTimestamp()
	var before, after, later []byte
	for i := range t.columns {
		if i == t.age {
			if t.columns[i].Cell(obj, t.now) != any(resources.Age(created, t.now)) {
				return nil // it tells another age
			}
			before, after = after, nil
			continue
		}
		from := len(after)
		after = t.cell(after, i, obj, t.now)
		if later = t.cell(later[:0], i, obj, t.now.Add(years)); !bytes.Equal(later, after[from:]) {
			return nil
		}
	}
	after = t.ending(after, obj)
	if t.age < 0 {
		before, after = after, nil
	}
	seconds := int64(0)
	if !created.IsZero() {
		seconds = created.Unix()
	}
	out := make([]byte, 0, len(before)+len(after)+2*binary.MaxVarintLen64)
	out = binary.AppendVarint(out, seconds)
	out = binary.AppendUvarint(out, uint64(len(before)))
	return append(append(out, before...), after...)
}

// spliced appends a row that was kept, with the age that it has now.
func (t *tableWriter) spliced(dst, kept []byte) []byte {
	seconds, n := binary.Varint(kept)
	kept = kept[n:]
	length, n := binary.Uvarint(kept)
	kept = kept[n:]
	dst = append(dst, kept[:length]...)
	if t.age >= 0 {
		var created metav1.Time
		if seconds != 0 {
			created = metav1.Unix(seconds, 0)
		}
		if t.age > 0 {
			dst = append(dst, ',')
		}
		dst = appendString(dst, resources.Age(created, t.now))
	}
	return append(dst, kept[length:]...)
}

// cell appends one cell, with the comma before it.
func (t *tableWriter) cell(dst []byte, i int, obj resources.Object, now time.Time) []byte {
	if i > 0 {
		dst = append(dst, ',')
	}
	switch v := t.columns[i].Cell(obj, now).(type) {
	case nil:
		return append(dst, "null"...)
	case string:
		return appendString(dst, v)
	case int64:
		return strconv.AppendInt(dst, v, 10)
	case bool:
		return strconv.AppendBool(dst, v)
	default:
		raw, err := json.Marshal(v)
		if err != nil {
			raw = []byte("null")
		}
		return append(dst, raw...)
	}
}

// appendString writes a JSON string; nearly every cell needs no escape.
func appendString(dst []byte, s string) []byte {
	for i := range len(s) {
		if b := s[i]; b < ' ' || b == '"' || b == '\\' || b >= utf8.RuneSelf || b == '<' || b == '>' || b == '&' {
			raw, _ := json.Marshal(s)
			return append(dst, raw...)
		}
	}
	dst = append(dst, '"')
	dst = append(dst, s...)
	return append(dst, '"')
}

// table is a whole Table in the format asked for.
func (c *Call) table(items []*watchcache.Item, meta metav1.ListMeta, definitions bool) ([]byte, error) {
	var b bytes.Buffer
	if err := c.streamTable(&b, items, meta, definitions); err != nil {
		return nil, err
	}
	switch {
	case c.format.Kind == codec.YAML:
		return yaml.JSONToYAML(b.Bytes())
	case c.format.Pretty:
		var out bytes.Buffer
		err := json.Indent(&out, b.Bytes(), "", "  ")
		return out.Bytes(), err
	}
	return b.Bytes(), nil
}

func (c *Call) streamTable(w io.Writer, items []*watchcache.Item, meta metav1.ListMeta, definitions bool) error {
	t, err := c.newTable()
	if err != nil {
		return err
	}
	if items, err = c.ordered(items); err != nil {
		return err
	}
	buf := t.head(make([]byte, 0, min(codec.Chunk, 4096+1024*len(items))), meta, definitions)
	if len(items) == 0 {
		_, err = w.Write(append(append(buf, t.none()...), "}\n"...))
		return err
	}
	buf = append(buf, '[')
	largest := 0 // row so far
	for i, it := range items {
		if buf, err = codec.Gather(w, buf, largest); err != nil {
			return err
		}
		before := len(buf)
		if i > 0 {
			buf = append(buf, ',')
		}
		if buf, err = t.row(buf, it); err != nil {
			return err
		}
		largest = max(largest, len(buf)-before)
	}
	buf = append(buf, "]}\n"...)
	_, err = w.Write(buf)
	return err
}

// ordered returns the items in the order of the kind's rows. What it is given belongs to others.
func (c *Call) ordered(items []*watchcache.Item) ([]*watchcache.Item, error) {
	order := c.shown().Order
	if order == nil || len(items) < 2 {
		return items, nil
	}
	items = slices.Clone(items)
	var broken error
	slices.SortStableFunc(items, func(a, b *watchcache.Item) int {
		x, err := a.Object()
		y, err2 := b.Object()
		if err = errors.Join(err, err2); err != nil {
			broken = err
			return 0
		}
		return order(x, y)
	})
	return items, broken
}

func (c *Call) writeTable(w io.Writer, items []*watchcache.Item, meta metav1.ListMeta) error {
	if c.format.Kind == codec.JSON && !c.format.Pretty {
		return c.streamTable(w, items, meta, true)
	}
	raw, err := c.table(items, meta, true)
	if err != nil {
		return err
	}
	_, err = w.Write(raw)
	return err
}
