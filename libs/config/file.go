package config

import (
	"errors"
	"fmt"
	"os"
	"reflect"
	"sort"
	"strings"

	"go.yaml.in/yaml/v3"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	maxFileBytes = 1 << 20
	maxNodes     = 100_000 // YAML nodes after aliases are followed: a small file can name a large tree
)

// Load reads the YAML file at path into the struct that into points to. Fields that the file does
// not have are left as they are. Every fault is reported: the error is one line for each, with file,
// line and field. apiVersion and kind are accepted at the top and not looked at, unless the struct has them.
func Load(path string, into any) error {
	info, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("configuration file: %w", err)
	}
	if info.Size() > maxFileBytes {
		return fmt.Errorf("configuration file %s: %d bytes are more than the %d allowed", path, info.Size(), maxFileBytes)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("configuration file: %w", err)
	}
	return parse(path, data, into)
}

func parse(path string, data []byte, into any) error {
	var doc yaml.Node
	if err := yaml.Unmarshal(data, &doc); err != nil {
		return fmt.Errorf("%s: %s", path, strings.TrimPrefix(err.Error(), "yaml: "))
	}
	if len(doc.Content) == 0 {
		return nil // an empty file changes nothing
	}
	r := reader{path: path}
	r.read(doc.Content[0], reflect.ValueOf(into).Elem(), "")
	return errors.Join(r.errs...)
}

type reader struct {
	path  string
	nodes int
	errs  []error
}

func (r *reader) fault(n *yaml.Node, at, format string, args ...any) {
	where := ""
	if at != "" {
		where = at + ": "
	}
	r.errs = append(r.errs, fmt.Errorf("%s:%d: %s%s", r.path, n.Line, where, fmt.Sprintf(format, args...)))
}

func (r *reader) read(n *yaml.Node, v reflect.Value, at string) {
	if r.nodes++; r.nodes > maxNodes {
		if r.nodes == maxNodes+1 {
			r.fault(n, at, "more than %d values; aliases may repeat too much", maxNodes)
		}
		return
	}
	if n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	if n.Kind == yaml.ScalarNode && n.Tag == "!!null" {
		return // "field:" with nothing after it keeps the default
	}
	if v.Kind() == reflect.Pointer {
		if v.IsNil() {
			v.Set(reflect.New(v.Type().Elem()))
		}
		v = v.Elem()
	}
	switch {
	case structural(v.Type()):
		r.readStruct(n, v, at)
	case v.Kind() == reflect.Slice && n.Kind == yaml.SequenceNode:
		out := reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content))
		for i, c := range n.Content {
			r.read(c, out.Index(i), fmt.Sprintf("%s[%d]", at, i))
		}
		v.Set(out)
	case v.Kind() == reflect.Map && n.Kind == yaml.MappingNode:
		out := reflect.MakeMap(v.Type())
		for i := 0; i+1 < len(n.Content); i += 2 {
			k, e := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
			if err := setText(k, n.Content[i].Value); err != nil {
				r.fault(n.Content[i], at, "%v", err)
				continue
			}
			r.read(n.Content[i+1], e, join(at, n.Content[i].Value))
			out.SetMapIndex(k, e)
		}
		v.Set(out)
	case n.Kind == yaml.ScalarNode && v.Kind() != reflect.Slice && v.Kind() != reflect.Map:
		if v.Kind() == reflect.String && n.Tag != "!!str" && v.Type() != reflect.TypeFor[metav1.Duration]() {
			// 1.36 or yes without quotes: what was written is what is meant
			v.SetString(n.Value)
			return
		}
		if err := setText(v, n.Value); err != nil {
			r.fault(n, at, "%v", err)
		}
	default:
		r.fault(n, at, "want %s, have %s", wanted(v), had(n))
	}
}

func (r *reader) readStruct(n *yaml.Node, v reflect.Value, at string) {
	if n.Kind != yaml.MappingNode {
		r.fault(n, at, "want fields (name: value), have %s", had(n))
		return
	}
	fields := map[string]reflect.Value{}
	collect(v, fields)
	seen := map[string]bool{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, val := n.Content[i], n.Content[i+1]
		f, ok := fields[key.Value]
		switch {
		case seen[key.Value]:
			r.fault(key, join(at, key.Value), "field is given twice")
		case ok:
			r.read(val, f, join(at, key.Value))
		case at == "" && (key.Value == "apiVersion" || key.Value == "kind"):
		default:
			r.fault(key, join(at, key.Value), "unknown field%s", meant(key.Value, fields))
		}
		seen[key.Value] = true
	}
}

func collect(v reflect.Value, into map[string]reflect.Value) {
	for i := range v.NumField() {
		f := v.Type().Field(i)
		name, inline, skip := naming(f)
		switch {
		case skip:
		case inline && structural(f.Type):
			collect(v.Field(i), into)
		default:
			into[name] = v.Field(i)
		}
	}
}

// meant suggests a field that differs from name only in case or by a few letters at the end.
func meant(name string, fields map[string]reflect.Value) string {
	names := make([]string, 0, len(fields))
	for f := range fields {
		names = append(names, f)
	}
	sort.Strings(names)
	for _, f := range names {
		if strings.EqualFold(f, name) || len(name) > 3 && (strings.HasPrefix(strings.ToLower(f), strings.ToLower(name)) || strings.HasPrefix(strings.ToLower(name), strings.ToLower(f))) {
			return fmt.Sprintf(" (is %q meant?)", f)
		}
	}
	return ""
}

func wanted(v reflect.Value) string {
	switch v.Kind() {
	case reflect.Slice:
		return "a list"
	case reflect.Map:
		return "fields (name: value)"
	}
	return "a single value"
}

func had(n *yaml.Node) string {
	switch n.Kind {
	case yaml.SequenceNode:
		return "a list"
	case yaml.MappingNode:
		return "fields (name: value)"
	}
	return fmt.Sprintf("%q", n.Value)
}
