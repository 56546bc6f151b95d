// Package codec turns objects into bytes and back: the value kept in etcd, the
// protobuf message, JSON and YAML, lists and watch frames.
//
// The main calls are [Value] and [Decode] for what is in etcd, [DecodeRequest]
// for what clients send, [Negotiate] for what they want, and [AppendSingle],
// [WriteList] and [AppendEvent] for what they get.
//
// It promises that an object that is at hand in encoded form is not decoded: a
// protobuf list is a header and the concatenation of stored messages, a JSON
// list joins fragments, a watch frame wraps one. Everything here is pure.
//
// Words: a *message* is an object's protobuf without kind and envelope (for a
// custom resource: its JSON text); a *fragment* is its JSON as an item of a
// list (typed objects carry no kind and apiVersion there, custom ones do).
package codec

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"

	"google.golang.org/protobuf/encoding/protowire"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/keelson/keelson/apiserver/resources"
)

// magic starts every protobuf value in etcd and on the wire. Source: Kubernetes
// API concepts, "Protobuf encoding".
var magic = []byte("k8s\x00")

// protoMessage is what every type of k8s.io/api can do.
type protoMessage interface {
	Size() int
	MarshalToSizedBuffer(data []byte) (int, error)
	Unmarshal(data []byte) error
}

// Message returns the object's message as it is stored: resourceVersion and
// managed by nobody else. obj is not changed and not kept.
func Message(row *resources.Row, obj resources.Object) ([]byte, error) {
	_, raw, err := encode(row, obj, nil)
	return raw, err
}

// Value is Message within the value for etcd, which upstream reads as its own: the protobuf envelope, or JSON text for
// custom resources. Both share their memory.
func Value(row *resources.Row, obj resources.Object) (value, raw []byte, err error) {
	return encode(row, obj, func(size int) []byte {
		gvk := row.GVK()
		return appendEnvelopeHead(make([]byte, 0, envelopeSize(gvk, size)-len(envelopeTail)), gvk, size)
	})
}

// encode returns the object's message and, before it in the same memory, what head begins for a message of some size.
// Custom resources have no head.
func encode(row *resources.Row, obj resources.Object, head func(size int) []byte) (value, raw []byte, err error) {
	if rv := obj.GetResourceVersion(); rv != "" {
		// The only field that differs between the object and what is stored. A shared
		// object must not be written to, not even for a moment.
		obj = obj.DeepCopyObject().(resources.Object)
		obj.SetResourceVersion("")
	}
	if row.Custom != nil {
		u, ok := obj.(*unstructured.Unstructured)
		if !ok {
			return nil, nil, fmt.Errorf("encode %s: custom object is a %T", row.Kind, obj)
		}
		if u.GetKind() != row.Kind || u.GetAPIVersion() != row.GVK().GroupVersion().String() {
			u = u.DeepCopy()
			u.SetGroupVersionKind(row.GVK())
		}
		raw, err = json.Marshal(u.Object)
		return raw, raw, err
	}
	return encodeProto(obj, head)
}

func encodeProto(obj any, head func(size int) []byte) (value, raw []byte, err error) {
	m, ok := obj.(protoMessage)
	if !ok {
		return nil, nil, fmt.Errorf("encode %T: the type has no protobuf form", obj)
	}
	size := m.Size()
	if head != nil {
		value = head(size)
	}
	before := len(value)
	value = room(value, size)[:before+size]
	raw = value[before:]
	if n, err := m.MarshalToSizedBuffer(raw); err != nil {
		return nil, nil, fmt.Errorf("encode %T: %w", obj, err)
	} else if n != size {
		return nil, nil, fmt.Errorf("encode %T: it was changed meanwhile: %d bytes in place of %d", obj, n, size)
	}
	return value, raw, nil
}

func protoBytes(obj any) ([]byte, error) {
	_, raw, err := encodeProto(obj, nil)
	return raw, err
}

// Foreign reports whether another server wrote a value: upstream's end with two empty fields, which [Value] leaves out.
// Upstream completes objects when it reads them, so what it has stored may lack defaults.
func Foreign(value []byte) bool {
	return bytes.HasPrefix(value, magic) && bytes.HasSuffix(value, envelopeTail)
}

// Unwrap returns the message inside an etcd value (sharing its memory) and the
// kind that it names. A value without the envelope is JSON and returned whole.
func Unwrap(value []byte) (raw []byte, gvk schema.GroupVersionKind, err error) {
	if !bytes.HasPrefix(value, magic) {
		if len(value) == 0 || value[0] != '{' {
			return nil, gvk, fmt.Errorf("value of %d bytes is neither protobuf nor JSON (encrypted at rest?)", len(value))
		}
		var tm runtime.TypeMeta
		if err := json.Unmarshal(value, &tm); err != nil {
			return nil, gvk, err
		}
		return value, schema.FromAPIVersionAndKind(tm.APIVersion, tm.Kind), nil
	}
	var apiVersion, kind string
	err = eachField(value[len(magic):], func(num protowire.Number, v []byte) error {
		switch num {
		case 1:
			return eachField(v, func(num protowire.Number, v []byte) error {
				switch num {
				case 1:
					apiVersion = string(v)
				case 2:
					kind = string(v)
				}
				return nil
			})
		case 2:
			raw = v
		case 3:
			if len(v) > 0 {
				return fmt.Errorf("content encoding %q", v)
			}
		}
		return nil
	})
	if err != nil {
		return nil, gvk, err
	}
	return raw, schema.FromAPIVersionAndKind(apiVersion, kind), nil
}

// Decode returns the object of an etcd value, with rev as its resourceVersion.
// A typed resource that was once stored as JSON is read too.
func Decode(row *resources.Row, value []byte, rev int64) (resources.Object, error) {
	raw, _, err := Unwrap(value)
	if err != nil {
		return nil, fmt.Errorf("decode %s: %w", row.Kind, err)
	}
	obj, err := DecodeMessage(row, raw)
	if err != nil {
		return nil, err
	}
	obj.SetResourceVersion(strconv.FormatInt(rev, 10))
	return obj, nil
}

// Reviver is what Row.Custom may implement: custom objects are stored under the schema
// of their day, and are served under the one of now. Revive changes u.
type Reviver interface {
	Revive(u *unstructured.Unstructured) error
}

// DecodeMessage returns the object of a message. A typed object's TypeMeta is empty.
func DecodeMessage(row *resources.Row, raw []byte) (resources.Object, error) {
	if row.Custom != nil {
		u := &unstructured.Unstructured{}
		if err := u.UnmarshalJSON(raw); err != nil {
			return nil, fmt.Errorf("decode %s: %w", row.Kind, err)
		}
		if r, ok := row.Custom.(Reviver); ok {
			if err := r.Revive(u); err != nil { // which says of what kind
				return nil, err
			}
		}
		return u, nil
	}
	obj := row.New()
	if len(raw) > 0 && raw[0] == '{' { // 0x7b would be field 15 of wire type 3, which no kind has
		if err := json.Unmarshal(raw, obj); err != nil {
			return nil, fmt.Errorf("decode %s: %w", row.Kind, err)
		}
		obj.GetObjectKind().SetGroupVersionKind(schema.GroupVersionKind{})
		return obj, nil
	}
	m, ok := obj.(protoMessage)
	if !ok {
		return nil, fmt.Errorf("decode %T: the type has no protobuf form", obj)
	}
	if err := m.Unmarshal(raw); err != nil {
		return nil, fmt.Errorf("decode %s: %w", row.Kind, err)
	}
	if row.Restore != nil {
		row.Restore(obj)
	}
	return obj, nil
}

// eachField calls f with every length-delimited field of a message; others are skipped.
func eachField(b []byte, f func(num protowire.Number, v []byte) error) error {
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return protowire.ParseError(n)
		}
		b = b[n:]
		if typ != protowire.BytesType {
			n = protowire.ConsumeFieldValue(num, typ, b)
			if n < 0 {
				return protowire.ParseError(n)
			}
			b = b[n:]
			continue
		}
		v, n := protowire.ConsumeBytes(b)
		if n < 0 {
			return protowire.ParseError(n)
		}
		if err := f(num, v); err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

// Field numbers of the metadata that is read and written without decoding.
// Source: k8s.io/apimachinery/pkg/apis/meta/v1/generated.proto.
const (
	objectMeta          protowire.Number = 1 // in every kind
	metaName            protowire.Number = 1
	metaNamespace       protowire.Number = 3
	metaUID             protowire.Number = 5
	metaResourceVersion protowire.Number = 6
	metaDeletion        protowire.Number = 9
	metaLabels          protowire.Number = 11
	metaOwners          protowire.Number = 13
)

// WithRev returns a copy of a message whose metadata.resourceVersion is rev.
func WithRev(row *resources.Row, raw []byte, rev int64) ([]byte, error) {
	return AppendWithRev(nil, row, raw, rev)
}

// AppendWithRev is WithRev at the end of dst.
func AppendWithRev(dst []byte, row *resources.Row, raw []byte, rev int64) ([]byte, error) {
	if row.Custom != nil || (len(raw) > 0 && raw[0] == '{') {
		text, err := jsonWithRev(raw, rev)
		return append(dst, text...), err
	}
	var digits [20]byte
	version := strconv.AppendInt(digits[:0], rev, 10)
	for at := 0; at < len(raw); {
		num, typ, n := protowire.ConsumeTag(raw[at:])
		if n < 0 {
			return nil, protowire.ParseError(n)
		}
		if num != objectMeta || typ != protowire.BytesType {
			m := protowire.ConsumeFieldValue(num, typ, raw[at+n:])
			if m < 0 {
				return nil, protowire.ParseError(m)
			}
			at += n + m
			continue
		}
		meta, m := protowire.ConsumeBytes(raw[at+n:])
		if m < 0 {
			return nil, protowire.ParseError(m)
		}
		end := at + n + m
		from, to, err := findField(meta, metaResourceVersion)
		if err != nil {
			return nil, err
		}
		field := 2 + len(version) // tag and length are one byte each
		size := len(meta) - (to - from) + field
		out := room(dst, at+1+protowire.SizeBytes(size)+len(raw)-end)
		out = append(out, raw[:at]...)
		out = protowire.AppendTag(out, objectMeta, protowire.BytesType)
		out = protowire.AppendVarint(out, uint64(size))
		out = append(out, meta[:from]...)
		out = append(out, byte(metaResourceVersion)<<3|byte(protowire.BytesType), byte(len(version)))
		out = append(out, version...)
		out = append(out, meta[to:]...)
		return append(out, raw[end:]...), nil
	}
	field := 2 + len(version)
	out := room(dst, 2+field+len(raw)) // it has no metadata yet
	out = append(out, byte(objectMeta)<<3|byte(protowire.BytesType), byte(field))
	out = append(out, byte(metaResourceVersion)<<3|byte(protowire.BytesType), byte(len(version)))
	out = append(out, version...)
	return append(out, raw...), nil
}

// room is dst with room for n more bytes. What is new is not larger: it may be kept.
func room(dst []byte, n int) []byte {
	if cap(dst)-len(dst) >= n {
		return dst
	}
	return append(make([]byte, 0, len(dst)+n), dst...)
}

// findField returns where the field stands, or where it would stand.
func findField(b []byte, want protowire.Number) (from, to int, err error) {
	for at := 0; at < len(b); {
		num, typ, n := protowire.ConsumeTag(b[at:])
		if n < 0 {
			return 0, 0, protowire.ParseError(n)
		}
		m := protowire.ConsumeFieldValue(num, typ, b[at+n:])
		if m < 0 {
			return 0, 0, protowire.ParseError(m)
		}
		if num == want {
			return at, at + n + m, nil
		}
		if num > want {
			return at, at, nil
		}
		at += n + m
	}
	return len(b), len(b), nil
}

// jsonWithRev replaces the metadata of a JSON object. Other members keep their bytes.
func jsonWithRev(raw []byte, rev int64) ([]byte, error) {
	var obj map[string]json.RawMessage
	if err := json.Unmarshal(raw, &obj); err != nil {
		return nil, err
	}
	meta := map[string]json.RawMessage{}
	if m, ok := obj["metadata"]; ok {
		if err := json.Unmarshal(m, &meta); err != nil {
			return nil, err
		}
	}
	if rev == 0 {
		delete(meta, "resourceVersion")
	} else {
		meta["resourceVersion"] = json.RawMessage(strconv.Quote(strconv.FormatInt(rev, 10)))
	}
	m, err := json.Marshal(meta)
	if err != nil {
		return nil, err
	}
	obj["metadata"] = m
	return json.Marshal(obj)
}
