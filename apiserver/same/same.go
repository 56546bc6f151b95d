// Package same tells whether two values of an API type say the same, without walking them by
// reflection when that can be avoided.
//
// What differs in memory and not in meaning (an empty and an absent list, 1 and 1000m) is the same,
// as for [equality.Semantic]. What is not stored does not count: parts of a second, the Object of a RawExtension.
package same

import (
	"bytes"
	"reflect"
	"slices"
	"strings"
	"sync"

	"k8s.io/apimachinery/pkg/api/equality"
)

// message is what the generated types do.
type message interface {
	Size() int
	MarshalToSizedBuffer([]byte) (int, error)
}

// largest is the size of an encoding from which buffers are not kept.
const largest = 64 << 10

var buffers = sync.Pool{New: func() any { b := make([]byte, 0, 8<<10); return &b }}

// Values compares what two pointers of one type point to. Messages that are encoded alike are the same:
// encoding both takes a tenth of the time of a comparison field by field. Those that are not are compared.
func Values(a, b any) bool {
	return alike(a, b) || equality.Semantic.DeepEqual(a, b)
}

// Fields is Values for two addressable parts of values, such as fields of structs: lists are compared
// element by element.
func Fields(a, b reflect.Value) bool {
	if a.Kind() == reflect.Pointer && !a.IsNil() && !b.IsNil() {
		return Fields(a.Elem(), b.Elem())
	}
	if a.Kind() == reflect.Slice && a.Type().Elem().Kind() == reflect.Struct {
		if a.Len() != b.Len() {
			return false
		}
		for i := range a.Len() {
			if !Fields(a.Index(i), b.Index(i)) {
				return false
			}
		}
		return true
	}
	return Values(a.Addr().Interface(), b.Addr().Interface())
}

func alike(a, b any) bool {
	m, ok := a.(message)
	if !ok || reflect.ValueOf(a).IsNil() || reflect.ValueOf(b).IsNil() {
		return false
	}
	n, size := b.(message), m.Size()
	if n.Size() != size {
		return false
	}
	kept := buffers.Get().(*[]byte)
	defer func() {
		if cap(*kept) <= largest {
			buffers.Put(kept)
		}
	}()
	if cap(*kept) < 2*size {
		*kept = make([]byte, 0, 2*size)
	}
	x, y := (*kept)[:size], (*kept)[size:2*size]
	if i, err := m.MarshalToSizedBuffer(x); err != nil || i != size {
		return false
	}
	j, err := n.MarshalToSizedBuffer(y)
	return err == nil && j == size && bytes.Equal(x, y)
}

var shown sync.Map // reflect.Type → [][]int

// JSON is Values for what JSON is decoded to: a number says the same with and without a fraction of zero.
func JSON(a, b any) bool {
	switch a := a.(type) {
	case map[string]any:
		b, ok := b.(map[string]any)
		if !ok || len(a) != len(b) {
			return false
		}
		for k, v := range a {
			if w, ok := b[k]; !ok || !JSON(v, w) {
				return false
			}
		}
		return true
	case []any:
		b, ok := b.([]any)
		return ok && slices.EqualFunc(a, b, JSON)
	case int64:
		if f, ok := b.(float64); ok {
			return float64(a) == f && int64(f) == a
		}
	case float64:
		if n, ok := b.(int64); ok {
			return float64(n) == a && int64(a) == n
		}
	}
	return reflect.DeepEqual(a, b)
}

// Shown are the lists and maps of a type, in structs within structs, that JSON shows when they are empty: there
// null and empty look different, and only there.
func Shown(t reflect.Type) [][]int {
	if known, ok := shown.Load(t); ok {
		return known.([][]int)
	}
	var out [][]int
	for i := range t.NumField() {
		f := t.Field(i)
		switch f.Type.Kind() {
		case reflect.Slice, reflect.Map:
			if tag := f.Tag.Get("json"); f.IsExported() && tag != "-" && !strings.Contains(tag, "omit") {
				out = append(out, []int{i})
			}
		case reflect.Struct:
			if f.IsExported() {
				for _, at := range Shown(f.Type) {
					out = append(out, append([]int{i}, at...))
				}
			}
		}
	}
	shown.Store(t, out)
	return out
}

// AsRead makes an object that has been written what its encoding will be read as: what protobuf does not tell
// apart, empty and null, is null. Objects without protobuf stay.
func AsRead(obj any) {
	if _, ok := obj.(message); !ok {
		return
	}
	v := reflect.ValueOf(obj).Elem()
	for _, at := range Shown(v.Type()) {
		if f := v.FieldByIndex(at); f.Len() == 0 {
			f.SetZero()
		}
	}
}
