package check

import (
	"bytes"
	"encoding/json"
	"reflect"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Shown is how messages show an object of the API, whole or in part: its fields
// with the names that they have in Go, empty ones too, as clients of Kubernetes have
// always been shown; what is embedded stands among them. What is not of k8s.io/api (times, quantities, selectors) is JSON.
func Shown(v any) any { return shown{reflect.ValueOf(v)} }

type shown struct{ reflect.Value }

var typeMeta = reflect.TypeFor[metav1.TypeMeta]()

// MarshalJSON implements json.Marshaler.
func (s shown) MarshalJSON() ([]byte, error) {
	v := s.Value
	if v.Kind() == reflect.Pointer && !v.IsNil() {
		v = v.Elem()
	}
	var out bytes.Buffer
	list := func(open, end byte, n int, item func(i int) error) ([]byte, error) {
		out.WriteByte(open)
		for i := range n {
			if i > 0 {
				out.WriteByte(',')
			}
			if err := item(i); err != nil {
				return nil, err
			}
		}
		out.WriteByte(end)
		return out.Bytes(), nil
	}
	write := func(v any) error {
		text, err := json.Marshal(v)
		out.Write(text)
		return err
	}
	switch {
	case v.Kind() == reflect.Struct && strings.HasPrefix(v.Type().PkgPath(), "k8s.io/api/"):
		var members [][]byte
		for i := range v.NumField() {
			text, err := shown{v.Field(i)}.MarshalJSON()
			if err != nil {
				return nil, err
			}
			if !v.Type().Field(i).Anonymous {
				members = append(members, slices.Concat([]byte(`"`+v.Type().Field(i).Name+`":`), text))
			} else if len(text) > len("{}") && v.Type().Field(i).Type != typeMeta {
				members = append(members, text[1:len(text)-1])
			}
		}
		return slices.Concat([]byte("{"), bytes.Join(members, []byte(",")), []byte("}")), nil
	case v.Kind() == reflect.Slice && !v.IsNil() && v.Type().Elem().Kind() == reflect.Struct:
		return list('[', ']', v.Len(), func(i int) error { return write(shown{v.Index(i)}) })
	}
	return json.Marshal(v.Interface())
}
