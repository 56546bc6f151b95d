package codec

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/keelson/keelson/apiserver/resources"
)

// Types of k8s.io/api carry both a protobuf and a JSON tag on every field, so the
// JSON of a message can be written straight from its bytes. A plan is what the two
// tags of a type say, made once. The text is byte for byte what encoding/json writes
// for the decoded object; a test compares the two for every kind.

// FromMessage returns the JSON fragment of a typed row's message, as Fragment does
// for the decoded object, at a fraction of the cost. Kinds with a JSON form of
// their own making (custom marshallers), or with more in it than a message holds, are decoded after all.
func FromMessage(row *resources.Row, raw []byte) ([]byte, error) {
	if row.Custom != nil {
		return raw, nil
	}
	if p := planOf(reflect.TypeOf(row.New()).Elem()); p.err == nil && row.Restore == nil && (len(raw) == 0 || raw[0] != '{') {
		e := encoders.Get().(*encoder)
		out, err := e.message(e.buf[:0], p, raw)
		text := bytes.Clone(out)
		if e.buf = out; cap(e.buf) > 1<<20 {
			e.buf = nil
		}
		e.spans = e.spans[:0]
		encoders.Put(e)
		if err == nil {
			return text, nil
		}
	}
	obj, err := DecodeMessage(row, raw)
	if err != nil {
		return nil, err
	}
	return Fragment(row, obj)
}

// AppendMetadata writes the JSON of an encoded ObjectMeta.
func AppendMetadata(dst, meta []byte) ([]byte, error) {
	p := planOf(reflect.TypeFor[metav1.ObjectMeta]())
	if p.err != nil {
		return dst, p.err
	}
	e := encoders.Get().(*encoder)
	out, err := e.message(dst, p, meta)
	e.spans = e.spans[:0]
	encoders.Put(e)
	return out, err
}

// shape is how a value stands on the wire and in JSON.
type shape uint8

const (
	shapeString shape = iota
	shapeBool
	shapeInt
	shapeBytes   // base64
	shapeMessage // a struct with a plan
	shapeTime
	shapeMicroTime
	shapeDuration
	shapeQuantity
	shapeIntOrString
	shapeFields  // FieldsV1: JSON text that this server has written
	shapeRaw     // RawExtension: JSON text that somebody has sent
	shapeStrings // a message that holds a list of strings, such as ExtraValue
)

type planField struct {
	num       protowire.Number // 0: not on the wire
	name      string           // with quotes and colon
	shape     shape
	sub       *plan
	pointer   bool
	slice     bool
	mapped    bool
	inline    bool // the members of sub stand among those of the outer struct
	omitEmpty bool
	omitZero  bool
}

type plan struct {
	fields []planField // in the order of the struct, which is that of encoding/json
	byNum  []uint8     // wire number → index in fields, plus one
	err    error       // the type cannot be transcoded
}

var (
	plans     sync.Map // reflect.Type → *plan, complete ones only
	planning  sync.Mutex
	encoders  = sync.Pool{New: func() any { return &encoder{} }}
	marshaler = reflect.TypeFor[json.Marshaler]()
)

func planOf(t reflect.Type) *plan {
	if p, ok := plans.Load(t); ok {
		return p.(*plan)
	}
	planning.Lock()
	defer planning.Unlock()
	making := map[reflect.Type]*plan{}
	p := makePlan(t, making)
	// A type that contains one that cannot be transcoded cannot be either.
	for again := true; again; {
		again = false
		for _, q := range making {
			for i := range q.fields {
				if s := q.fields[i].sub; q.err == nil && s != nil && s.err != nil {
					q.err, again = s.err, true
				}
			}
		}
	}
	for t, q := range making {
		plans.Store(t, q)
	}
	return p
}

func makePlan(t reflect.Type, making map[reflect.Type]*plan) *plan {
	if p, ok := plans.Load(t); ok {
		return p.(*plan)
	}
	if p := making[t]; p != nil {
		return p
	}
	p := &plan{}
	making[t] = p
	for i := range t.NumField() {
		f, ok, err := makeField(t.Field(i), making)
		if err != nil {
			p.err = fmt.Errorf("%s.%s: %w", t, t.Field(i).Name, err)
			return p
		}
		if !ok {
			continue
		}
		p.fields = append(p.fields, f)
		if n := int(f.num); n > 0 {
			if n > 4000 || len(p.fields) > 250 {
				p.err = fmt.Errorf("%s: too large a struct", t)
				return p
			}
			for len(p.byNum) <= n {
				p.byNum = append(p.byNum, 0)
			}
			p.byNum[n] = uint8(len(p.fields))
		}
	}
	return p
}

func makeField(sf reflect.StructField, making map[reflect.Type]*plan) (f planField, ok bool, err error) {
	tag := strings.Split(sf.Tag.Get("json"), ",")
	if !sf.IsExported() || tag[0] == "-" {
		return f, false, nil
	}
	if wire := sf.Tag.Get("protobuf"); wire != "" {
		parts := strings.Split(wire, ",")
		if len(parts) < 2 {
			return f, false, fmt.Errorf("protobuf tag %q", wire)
		}
		n, err := strconv.Atoi(parts[1])
		if err != nil {
			return f, false, err
		}
		f.num = protowire.Number(n)
	}
	for _, opt := range tag[1:] {
		switch opt {
		case "omitempty":
			f.omitEmpty = true
		case "omitzero":
			f.omitZero = true
		case "inline", "":
		default:
			return f, false, fmt.Errorf("json option %q", opt)
		}
	}
	t := sf.Type
	if sf.Anonymous && tag[0] == "" {
		if f.num == 0 { // TypeMeta: never on the wire, and empty
			return f, false, nil
		}
		if t.Kind() != reflect.Struct {
			return f, false, errors.New("embedded value is no struct")
		}
		f.inline, f.shape, f.sub = true, shapeMessage, makePlan(t, making)
		return f, true, nil
	}
	name := tag[0]
	if name == "" {
		name = sf.Name
	}
	f.name = string(appendString(nil, name)) + ":"
	if t.Kind() == reflect.Pointer {
		f.pointer, t = true, t.Elem()
	}
	var special bool
	if f.shape, special = specialShape(t); special {
		return f, true, nil
	}
	switch t.Kind() {
	case reflect.Slice:
		if t.Elem().Kind() == reflect.Uint8 {
			f.shape = shapeBytes
			return f, true, nil
		}
		if reflect.PointerTo(t).Implements(reflect.TypeFor[interface{ Unmarshal([]byte) error }]()) {
			if t.Elem().Kind() != reflect.String {
				return f, false, fmt.Errorf("list %s is a message", t)
			}
			f.shape = shapeStrings
			return f, true, nil
		}
		f.slice, t = true, t.Elem()
	case reflect.Map:
		if t.Key().Kind() != reflect.String {
			return f, false, fmt.Errorf("map key %s", t.Key())
		}
		f.mapped, t = true, t.Elem()
	}
	if f.pointer && (f.slice || f.mapped) {
		return f, false, fmt.Errorf("pointer to %s", t)
	}
	f.shape, f.sub, err = valueShape(t, making)
	return f, true, err
}

func specialShape(t reflect.Type) (shape, bool) {
	switch t {
	case reflect.TypeFor[metav1.Time]():
		return shapeTime, true
	case reflect.TypeFor[metav1.MicroTime]():
		return shapeMicroTime, true
	case reflect.TypeFor[metav1.Duration]():
		return shapeDuration, true
	case reflect.TypeFor[resource.Quantity]():
		return shapeQuantity, true
	case reflect.TypeFor[intstr.IntOrString]():
		return shapeIntOrString, true
	case reflect.TypeFor[metav1.FieldsV1]():
		return shapeFields, true
	case reflect.TypeFor[runtime.RawExtension]():
		return shapeRaw, true
	}
	return 0, false
}

func valueShape(t reflect.Type, making map[reflect.Type]*plan) (shape, *plan, error) {
	if s, ok := specialShape(t); ok {
		return s, nil, nil
	}
	if t.Implements(marshaler) || reflect.PointerTo(t).Implements(marshaler) {
		return 0, nil, fmt.Errorf("%s makes its own JSON", t)
	}
	switch t.Kind() {
	case reflect.String:
		return shapeString, nil, nil
	case reflect.Bool:
		return shapeBool, nil, nil
	case reflect.Int, reflect.Int32, reflect.Int64, reflect.Int16, reflect.Int8:
		return shapeInt, nil, nil
	case reflect.Struct:
		return shapeMessage, makePlan(t, making), nil
	case reflect.Slice:
		if t.Elem().Kind() == reflect.Uint8 {
			return shapeBytes, nil, nil
		}
		if t.Elem().Kind() == reflect.String && reflect.PointerTo(t).Implements(reflect.TypeFor[interface{ Unmarshal([]byte) error }]()) {
			return shapeStrings, nil, nil
		}
	}
	return 0, nil, fmt.Errorf("type %s", t)
}

// encoder is scratch memory.
type encoder struct {
	buf   []byte
	spans []span
}

// span is where a field's values are in its message: the value of the last one, and
// the extent of all, tags included.
type span struct {
	value, end  int32 // of the last value, without tag and length
	first, last int32
	n           int32
}

var errWire = errors.New("message does not match its type")

func (e *encoder) message(dst []byte, p *plan, b []byte) ([]byte, error) {
	dst = append(dst, '{')
	dst, _, err := e.members(dst, p, b, true)
	return append(dst, '}'), err
}

// members writes the members of a struct without braces. first tells whether none has been written before.
func (e *encoder) members(dst []byte, p *plan, b []byte, first bool) ([]byte, bool, error) {
	base := len(e.spans)
	for range p.fields {
		e.spans = append(e.spans, span{})
	}
	defer func() { e.spans = e.spans[:base] }()
	for at := 0; at < len(b); {
		start := at
		num, typ, n := consumeTag(b[at:])
		if n <= 0 {
			return dst, first, errWire
		}
		at += n
		from, to := at, at
		if typ == protowire.BytesType {
			size, n := consumeVarint(b[at:])
			if n <= 0 || size > uint64(len(b)-at-n) {
				return dst, first, errWire
			}
			from = at + n
			to = from + int(size)
		} else {
			n := protowire.ConsumeFieldValue(num, typ, b[at:])
			if n < 0 {
				return dst, first, errWire
			}
			to = at + n
		}
		at = to
		if int(num) >= len(p.byNum) || p.byNum[num] == 0 {
			continue
		}
		i := int(p.byNum[num]) - 1
		if varint := p.fields[i].shape == shapeBool || p.fields[i].shape == shapeInt; !p.fields[i].mapped && varint != (typ == protowire.VarintType) || typ != protowire.BytesType && typ != protowire.VarintType {
			return dst, first, errWire
		}
		s := &e.spans[base+i]
		if s.n == 0 {
			s.first = int32(start)
		}
		s.value, s.end, s.last = int32(from), int32(to), int32(at)
		s.n++
	}
	var err error
	for i := range p.fields {
		f, s := &p.fields[i], e.spans[base+i]
		if f.inline {
			if dst, first, err = e.members(dst, f.sub, b[s.value:s.end], first); err != nil {
				return dst, first, err
			}
			continue
		}
		value := b[s.value:s.end]
		if e.omits(f, s, value) {
			continue
		}
		if !first {
			dst = append(dst, ',')
		}
		first = false
		dst = append(dst, f.name...)
		switch {
		case f.slice:
			dst, err = e.list(dst, f, b[s.first:s.last], s.n)
		case f.mapped:
			dst, err = e.object(dst, f, b[s.first:s.last], s.n)
		case s.n == 0 && (f.pointer || f.shape == shapeBytes || f.shape == shapeStrings):
			dst = append(dst, "null"...)
		default:
			dst, err = e.value(dst, f, value)
		}
		if err != nil {
			return dst, first, err
		}
	}
	return dst, first, nil
}

// omits tells whether encoding/json leaves the field out.
func (e *encoder) omits(f *planField, s span, value []byte) bool {
	if !f.omitEmpty && !f.omitZero {
		return false
	}
	if f.pointer || f.slice || f.mapped {
		return s.n == 0
	}
	switch f.shape {
	case shapeString, shapeBytes:
		return len(value) == 0 // a list of bytes that is empty and not nil is omitted too
	case shapeStrings:
		return len(value) == 0
	case shapeBool, shapeInt:
		v, _ := consumeVarint(value)
		return v == 0
	case shapeTime, shapeMicroTime:
		return f.omitZero && len(value) == 0 // the first second of 1970 has bytes, and is no zero time
	}
	return f.omitZero && s.n == 0
}

func (e *encoder) list(dst []byte, f *planField, b []byte, n int32) ([]byte, error) {
	if n == 0 {
		return append(dst, "null"...), nil
	}
	dst = append(dst, '[')
	comma := false
	err := eachOf(b, f.num, func(v []byte) error {
		if comma {
			dst = append(dst, ',')
		}
		comma = true
		var err error
		dst, err = e.value(dst, f, v)
		return err
	})
	return append(dst, ']'), err
}

// eachOf calls f with the values of one field of a message.
func eachOf(b []byte, want protowire.Number, f func(v []byte) error) error {
	for len(b) > 0 {
		num, typ, n := consumeTag(b)
		if n <= 0 {
			return errWire
		}
		b = b[n:]
		var v []byte
		if typ == protowire.BytesType {
			size, n := consumeVarint(b)
			if n <= 0 || size > uint64(len(b)-n) {
				return errWire
			}
			v, b = b[n:n+int(size)], b[n+int(size):]
		} else {
			n := protowire.ConsumeFieldValue(num, typ, b)
			if n < 0 {
				return errWire
			}
			v, b = b[:n], b[n:]
		}
		if num == want {
			if err := f(v); err != nil {
				return err
			}
		}
	}
	return nil
}

// object writes a map. Its entries are sorted by key, as encoding/json sorts them; on
// the wire they nearly always are already.
func (e *encoder) object(dst []byte, f *planField, b []byte, n int32) ([]byte, error) {
	if n == 0 {
		return append(dst, "null"...), nil
	}
	type entry struct{ key, value []byte }
	var few [16]entry
	entries := few[:0]
	sorted := true
	err := eachOf(b, f.num, func(v []byte) error {
		var en entry
		for len(v) > 0 {
			num, typ, n := consumeTag(v)
			if n <= 0 {
				return errWire
			}
			v = v[n:]
			var x []byte
			if typ == protowire.BytesType {
				size, n := consumeVarint(v)
				if n <= 0 || size > uint64(len(v)-n) {
					return errWire
				}
				x, v = v[n:n+int(size)], v[n+int(size):]
			} else {
				n := protowire.ConsumeFieldValue(num, typ, v)
				if n < 0 {
					return errWire
				}
				x, v = v[:n], v[n:]
			}
			switch num {
			case 1:
				en.key = x
			case 2:
				en.value = x
			}
		}
		if k := len(entries); k > 0 && bytes.Compare(entries[k-1].key, en.key) >= 0 {
			sorted = false
		}
		entries = append(entries, en)
		return nil
	})
	if err != nil {
		return dst, err
	}
	if !sorted {
		sort.SliceStable(entries, func(i, j int) bool { return bytes.Compare(entries[i].key, entries[j].key) < 0 })
	}
	dst = append(dst, '{')
	comma := false
	for i, en := range entries {
		if i+1 < len(entries) && bytes.Equal(en.key, entries[i+1].key) {
			continue // the last of several wins
		}
		if comma {
			dst = append(dst, ',')
		}
		comma = true
		dst = appendString(dst, en.key)
		dst = append(dst, ':')
		if en.value == nil && (f.shape == shapeBytes || f.shape == shapeStrings) {
			if f.shape == shapeBytes {
				dst = append(dst, `""`...)
			} else {
				dst = append(dst, "null"...)
			}
			continue
		}
		if dst, err = e.value(dst, f, en.value); err != nil {
			return dst, err
		}
	}
	return append(dst, '}'), nil
}

// value writes one value; an absent one (nil) is the zero value.
func (e *encoder) value(dst []byte, f *planField, v []byte) ([]byte, error) {
	switch f.shape {
	case shapeString:
		return appendString(dst, v), nil
	case shapeBool:
		n, _ := consumeVarint(v)
		return strconv.AppendBool(dst, n != 0), nil
	case shapeInt:
		n, _ := consumeVarint(v)
		return strconv.AppendInt(dst, int64(n), 10), nil
	case shapeBytes:
		dst = append(dst, '"')
		dst = base64.StdEncoding.AppendEncode(dst, v)
		return append(dst, '"'), nil
	case shapeMessage:
		return e.message(dst, f.sub, v)
	case shapeTime, shapeMicroTime:
		seconds, nanos, err := timestamp(v)
		if err != nil {
			return dst, err
		}
		if len(v) == 0 {
			return append(dst, "null"...), nil
		}
		dst = append(dst, '"')
		if f.shape == shapeTime {
			dst = time.Unix(seconds, 0).UTC().AppendFormat(dst, time.RFC3339)
		} else {
			dst = time.Unix(seconds, nanos).UTC().AppendFormat(dst, metav1.RFC3339Micro)
		}
		return append(dst, '"'), nil
	case shapeDuration:
		var d int64
		err := eachVarint(v, func(num protowire.Number, n uint64) {
			if num == 1 {
				d = int64(n)
			}
		})
		return appendString(dst, time.Duration(d).String()), err
	case shapeQuantity:
		text := []byte("0")
		err := eachOf(v, 1, func(s []byte) error {
			text = s
			return nil
		})
		if len(text) == 0 {
			return dst, errWire
		}
		return appendString(dst, text), err
	case shapeIntOrString:
		return appendIntOrString(dst, v)
	case shapeStrings:
		dst = append(dst, '[')
		comma := false
		err := eachOf(v, 1, func(s []byte) error {
			if comma {
				dst = append(dst, ',')
			}
			comma = true
			dst = appendString(dst, s)
			return nil
		})
		return append(dst, ']'), err
	case shapeFields, shapeRaw:
		var text []byte
		if err := eachOf(v, 1, func(s []byte) error { text = s; return nil }); err != nil {
			return dst, err
		}
		if text == nil {
			return append(dst, "null"...), nil
		}
		return appendRaw(dst, text, f.shape == shapeFields)
	}
	return dst, errWire
}

func timestamp(v []byte) (seconds, nanos int64, err error) {
	err = eachVarint(v, func(num protowire.Number, n uint64) {
		switch num {
		case 1:
			seconds = int64(n)
		case 2:
			nanos = int64(int32(n))
		}
	})
	return seconds, nanos / 1000 * 1000, err
}

func eachVarint(b []byte, f func(num protowire.Number, n uint64)) error {
	for len(b) > 0 {
		num, typ, n := consumeTag(b)
		if n <= 0 || typ != protowire.VarintType {
			return errWire
		}
		v, m := consumeVarint(b[n:])
		if m <= 0 {
			return errWire
		}
		f(num, v)
		b = b[n+m:]
	}
	return nil
}

func appendIntOrString(dst, v []byte) ([]byte, error) {
	var kind, number int64
	var text []byte
	for len(v) > 0 {
		num, typ, n := consumeTag(v)
		if n <= 0 {
			return dst, errWire
		}
		v = v[n:]
		x, n := consumeVarint(v)
		if n <= 0 {
			return dst, errWire
		}
		v = v[n:]
		switch {
		case typ == protowire.BytesType:
			if x > uint64(len(v)) {
				return dst, errWire
			}
			text, v = v[:x], v[x:]
		case num == 1:
			kind = int64(x)
		case num == 2:
			number = int64(int32(x))
		}
	}
	if intstr.Type(kind) == intstr.String {
		return appendString(dst, text), nil
	}
	return strconv.AppendInt(dst, number, 10), nil
}

// appendRaw writes JSON text as encoding/json writes what a marshaller returns:
// compact, and with HTML characters escaped.
func appendRaw(dst, text []byte, ours bool) ([]byte, error) {
	plain := true
	for _, c := range text {
		if c <= ' ' || c == '<' || c == '>' || c == '&' || c >= 0x80 {
			plain = false
			break
		}
	}
	if !plain || !ours {
		if !json.Valid(text) {
			return dst, errWire
		}
	}
	if plain {
		return append(dst, text...), nil
	}
	b, err := json.Marshal(json.RawMessage(text))
	return append(dst, b...), err
}

func consumeTag(b []byte) (protowire.Number, protowire.Type, int) {
	if len(b) > 0 && b[0] < 0x80 {
		return protowire.Number(b[0] >> 3), protowire.Type(b[0] & 7), 1
	}
	return protowire.ConsumeTag(b)
}

func consumeVarint(b []byte) (uint64, int) {
	if len(b) > 0 && b[0] < 0x80 {
		return uint64(b[0]), 1
	}
	return protowire.ConsumeVarint(b)
}

const hexDigits = "0123456789abcdef"

// unsafeByte marks the bytes that cannot stand in a JSON string as encoding/json writes it.
var unsafeByte = func() (t [256]bool) {
	for c := range t {
		t[c] = c < ' ' || c >= utf8.RuneSelf || strings.ContainsRune(`"\<>&`, rune(c))
	}
	return t
}()

// appendString writes a JSON string as encoding/json does.
func appendString[T string | []byte](dst []byte, s T) []byte {
	dst = append(dst, '"')
	start := 0
	for i := 0; i < len(s); {
		c := s[i]
		if !unsafeByte[c] {
			i++
			continue
		}
		if c < utf8.RuneSelf {
			dst = append(dst, s[start:i]...)
			switch c {
			case '"', '\\':
				dst = append(dst, '\\', c)
			case '\b':
				dst = append(dst, '\\', 'b')
			case '\f':
				dst = append(dst, '\\', 'f')
			case '\n':
				dst = append(dst, '\\', 'n')
			case '\r':
				dst = append(dst, '\\', 'r')
			case '\t':
				dst = append(dst, '\\', 't')
			default:
				dst = append(dst, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
			}
			i++
			start = i
			continue
		}
		r, size := utf8.DecodeRuneInString(string(s[i:min(i+utf8.UTFMax, len(s))]))
		switch {
		case r == utf8.RuneError && size == 1:
			dst = append(dst, s[start:i]...)
			dst = append(dst, `\ufffd`...)
			start = i + size
		case r == '\u2028' || r == '\u2029':
			dst = append(dst, s[start:i]...)
			dst = append(dst, `\u202`...)
			dst = append(dst, hexDigits[r&15])
			start = i + size
		}
		i += size
	}
	dst = append(dst, s[start:]...)
	return append(dst, '"')
}
