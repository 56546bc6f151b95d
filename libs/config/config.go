// Package config turns a daemon's flags and YAML file into one plain struct, and runs the daemon.
//
// The main call is [Main]; [Load] reads a file alone.
//
// A field is described by tags: `yaml:"securePort"` is its name in the file, `flag:"secure-port"` its
// flag, `help:"..."` the flag's text. Without a yaml tag the json tag counts, so that API types can be
// fields; "-" hides a field. A struct without a name in the file (embedded, or with the option
// "inline") is read as if its fields stood in the outer one. Flags of inner structs are not prefixed.
//
// It promises: a flag wins over the file and the file over the default; a field that the file does
// not have keeps its default; an unknown or doubled field, a wrong type, an unknown flag and every
// fault that Validate finds are errors that name file, line and field or the flag; all of them are
// printed, not only the first; the exit code is then 2. It reads no environment variable, and nothing
// is read again after the start.
package config

import (
	"encoding"
	"encoding/json"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Checked is a configuration that can tell what is wrong with it: all of it, at once.
type Checked interface{ Validate() field.ErrorList }

// Common is embedded in every daemon's Config.
type Common struct {
	LogLevel                      string `yaml:"logLevel" flag:"v" help:"log level: debug, info, warn, error, or a number from 0 (info) to 10"`
	LogFormat                     string `yaml:"logFormat" flag:"logging-format" help:"log format: text or json"`
	TracingEndpoint               string `yaml:"tracingEndpoint" flag:"tracing-endpoint" help:"host:port of an OTLP gRPC collector; empty turns tracing off"`
	TracingSamplingRatePerMillion int32  `yaml:"tracingSamplingRatePerMillion" flag:"tracing-sampling-rate-per-million" help:"traces kept of a million that begin here"`
}

// DefaultCommon logs text from info upwards and traces nothing.
func DefaultCommon() Common { return Common{LogLevel: "info", LogFormat: "text"} }

func (c Common) common() Common { return c }

// one is one field that can be set, found by walk.
type one struct {
	value reflect.Value
	path  string // as in the file: "profiles.name"
	tag   reflect.StructTag
}

// naming gives the name of a field in the file; inline means that its fields belong to the outer one.
func naming(f reflect.StructField) (name string, inline, skip bool) {
	tag, ok := f.Tag.Lookup("yaml")
	if !ok {
		tag = f.Tag.Get("json")
	}
	name, options, _ := strings.Cut(tag, ",")
	inline = strings.Contains(options, "inline")
	switch {
	case !f.IsExported() && !f.Anonymous, name == "-":
		return "", false, true
	case name == "" && structural(f.Type) && (f.Anonymous || inline || !ok):
		return "", true, false
	case name == "":
		return strings.ToLower(f.Name[:1]) + f.Name[1:], false, false
	}
	return name, inline, false
}

// structural tells whether a type is a struct whose fields are to be walked, not a value with a text form.
func structural(t reflect.Type) bool {
	return t.Kind() == reflect.Struct && t != reflect.TypeFor[metav1.Duration]() && t != reflect.TypeFor[time.Time]() &&
		!reflect.PointerTo(t).Implements(reflect.TypeFor[encoding.TextUnmarshaler]()) &&
		!reflect.PointerTo(t).Implements(reflect.TypeFor[json.Unmarshaler]())
}

// walk visits every field of the struct v, inner structs included, in order.
func walk(v reflect.Value, path string, visit func(one)) {
	for i := range v.NumField() {
		f := v.Type().Field(i)
		name, inline, skip := naming(f)
		if skip {
			continue
		}
		inner := path
		if !inline {
			inner = join(path, name)
		}
		if structural(f.Type) {
			walk(v.Field(i), inner, visit)
			continue
		}
		visit(one{value: v.Field(i), path: inner, tag: f.Tag})
	}
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

// setText puts the text form of a value into v: what a flag or a YAML scalar says.
func setText(v reflect.Value, s string) error {
	if v.Kind() == reflect.Pointer {
		if v.IsNil() {
			v.Set(reflect.New(v.Type().Elem()))
		}
		return setText(v.Elem(), s)
	}
	switch p := v.Addr().Interface().(type) {
	case *metav1.Duration:
		return setDuration(&p.Duration, s)
	case *time.Duration:
		return setDuration(p, s)
	case encoding.TextUnmarshaler:
		return p.UnmarshalText([]byte(s))
	case json.Unmarshaler:
		if err := p.UnmarshalJSON([]byte(strconv.Quote(s))); err != nil {
			return p.UnmarshalJSON([]byte(s))
		}
		return nil
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString(s)
	case reflect.Bool:
		b, err := strconv.ParseBool(s)
		if err != nil {
			return fmt.Errorf("%q is not true or false", s)
		}
		v.SetBool(b)
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		n, err := strconv.ParseInt(s, 10, v.Type().Bits())
		if err != nil {
			return fmt.Errorf("%q is not a whole number that fits", s)
		}
		v.SetInt(n)
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		n, err := strconv.ParseUint(s, 10, v.Type().Bits())
		if err != nil {
			return fmt.Errorf("%q is not a whole number that fits", s)
		}
		v.SetUint(n)
	case reflect.Float32, reflect.Float64:
		n, err := strconv.ParseFloat(s, v.Type().Bits())
		if err != nil {
			return fmt.Errorf("%q is not a number", s)
		}
		v.SetFloat(n)
	case reflect.Slice:
		out := reflect.MakeSlice(v.Type(), 0, 4)
		for part := range strings.SplitSeq(s, ",") {
			if part = strings.TrimSpace(part); part == "" {
				continue
			}
			e := reflect.New(v.Type().Elem()).Elem()
			if err := setText(e, part); err != nil {
				return err
			}
			out = reflect.Append(out, e)
		}
		v.Set(out)
	case reflect.Map:
		out := reflect.MakeMap(v.Type())
		for part := range strings.SplitSeq(s, ",") {
			if part = strings.TrimSpace(part); part == "" {
				continue
			}
			key, val, ok := strings.Cut(part, "=")
			if !ok {
				return fmt.Errorf("%q is not key=value", part)
			}
			k, e := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
			if err := setText(k, key); err != nil {
				return err
			}
			if err := setText(e, val); err != nil {
				return err
			}
			out.SetMapIndex(k, e)
		}
		v.Set(out)
	default:
		return fmt.Errorf("a %s cannot be set from text", v.Type())
	}
	return nil
}

func setDuration(d *time.Duration, s string) error {
	parsed, err := time.ParseDuration(s)
	if err != nil {
		return fmt.Errorf("%q is not a duration such as 30s or 5m", s)
	}
	*d = parsed
	return nil
}

// text is the inverse of setText, for defaults in --help.
func text(v reflect.Value) string {
	if v.Kind() == reflect.Pointer {
		if v.IsNil() {
			return ""
		}
		return text(v.Elem())
	}
	switch p := v.Interface().(type) {
	case metav1.Duration:
		return p.Duration.String()
	case time.Duration:
		return p.String()
	case encoding.TextMarshaler:
		b, err := p.MarshalText()
		if err != nil {
			return ""
		}
		return string(b)
	}
	switch v.Kind() {
	case reflect.Slice:
		parts := make([]string, v.Len())
		for i := range parts {
			parts[i] = text(v.Index(i))
		}
		return strings.Join(parts, ",")
	case reflect.Map:
		var parts []string
		for it := v.MapRange(); it.Next(); {
			parts = append(parts, text(it.Key())+"="+text(it.Value()))
		}
		return strings.Join(parts, ",")
	}
	return fmt.Sprint(v.Interface())
}

// Flags are the flags of cfg, a struct, in the form that the command line has.
func Flags(cfg any) map[string]string {
	out := map[string]string{}
	walk(reflect.ValueOf(cfg), "", func(o one) {
		if name := o.tag.Get("flag"); name != "" {
			out[name] = text(o.value)
		}
	})
	return out
}

// Values is cfg as nested maps under the names that the file uses: what /configz shows.
func Values(cfg any) any { return values(reflect.ValueOf(cfg)) }

func values(v reflect.Value) any {
	for v.Kind() == reflect.Pointer || v.Kind() == reflect.Interface {
		if v.IsNil() {
			return nil
		}
		v = v.Elem()
	}
	switch {
	case !v.IsValid():
		return nil
	case v.Kind() == reflect.Struct && structural(v.Type()):
		out := map[string]any{}
		structValues(v, out)
		return out
	case v.Kind() == reflect.Slice && v.Type().Elem().Kind() != reflect.Uint8:
		out := make([]any, v.Len())
		for i := range out {
			out[i] = values(v.Index(i))
		}
		return out
	case v.Kind() == reflect.Map:
		out := map[string]any{}
		for it := v.MapRange(); it.Next(); {
			out[fmt.Sprint(it.Key().Interface())] = values(it.Value())
		}
		return out
	case v.Type() == reflect.TypeFor[metav1.Duration](), v.Type() == reflect.TypeFor[time.Duration]():
		return text(v)
	case v.Kind() == reflect.Func, v.Kind() == reflect.Chan:
		return nil
	}
	return v.Interface()
}

func structValues(v reflect.Value, out map[string]any) {
	for i := range v.NumField() {
		f := v.Type().Field(i)
		name, inline, skip := naming(f)
		switch {
		case skip || !f.IsExported() && !structural(f.Type):
		case inline && structural(f.Type):
			structValues(v.Field(i), out)
		default:
			out[name] = values(v.Field(i))
		}
	}
}
