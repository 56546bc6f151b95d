package discovery

import (
	"cmp"
	"encoding/base64"
	"encoding/json"
	"hash/fnv"
	"reflect"
	"slices"
	"strings"
)

// param is a path or query parameter.
type param struct{ name, in, kind, text string }

func (p param) compare(q param) int {
	return cmp.Or(cmp.Compare(p.name, q.name), cmp.Compare(p.in, q.in))
}

// queryOf lists the fields of an options type as query parameters, with the
// descriptions that come with the type.
func queryOf(options interface{ SwaggerDoc() map[string]string }, except ...string) []param {
	doc, t := options.SwaggerDoc(), reflect.TypeOf(options)
	var out []param
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		kind := queryKind(f.Type)
		if name == "" || kind == "" || slices.Contains(except, name) {
			continue
		}
		out = append(out, param{name, "query", kind, doc[name]})
	}
	return out
}

// queryKind is the OpenAPI type of a field in a query, "" for those that have no place
// there. A list is a parameter that may be repeated, described as one element.
func queryKind(t reflect.Type) string {
	switch t.Kind() {
	case reflect.Pointer, reflect.Slice:
		return queryKind(t.Elem())
	case reflect.Bool:
		return "boolean"
	case reflect.Int32, reflect.Int64:
		return "integer"
	case reflect.String:
		return "string"
	}
	return ""
}

// split separates the parameters that all operations of a path have from the rest of
// each, all sorted by name.
func (it *pathItem) split() (common []param, rest [][]param) {
	count := map[param]int{}
	for _, o := range it.ops {
		for _, p := range o.params {
			count[p]++
		}
	}
	for p, n := range count {
		if n == len(it.ops) {
			common = append(common, p)
		}
	}
	slices.SortFunc(common, param.compare)
	for _, o := range it.ops {
		own := slices.DeleteFunc(slices.Clone(o.params), func(p param) bool { return count[p] == len(it.ops) })
		slices.SortFunc(own, param.compare)
		rest = append(rest, own)
	}
	return common, rest
}

// shared collects the parameters of an OpenAPI v2 document that are written once, by name.
type shared map[string]json.RawMessage

// ref returns the parameter or, if it is one that is shared, a reference to it.
//
// Names of objects have the kind in their description. Clients look for dryRun and
// fieldValidation in the operation itself.
func (s shared) ref(name string, p any) any {
	if name == "name" || name == "dryRun" || name == "fieldValidation" {
		return p
	}
	raw, err := json.Marshal(p)
	if err != nil {
		return p
	}
	h := fnv.New64()
	_, _ = h.Write(raw)
	key := name + "-" + base64.URLEncoding.EncodeToString(h.Sum(nil)[:6])
	s[key] = raw
	return map[string]any{"$ref": "#/parameters/" + key}
}

// parameterV2 has its fields in the order in which their text is hashed for the name.
type parameterV2 struct {
	UniqueItems bool           `json:"uniqueItems,omitempty"`
	Type        string         `json:"type,omitempty"`
	Description string         `json:"description,omitempty"`
	Name        string         `json:"name"`
	In          string         `json:"in"`
	Required    bool           `json:"required,omitempty"`
	Schema      map[string]any `json:"schema,omitempty"`
}

func (p param) v2() parameterV2 {
	return parameterV2{UniqueItems: true, Type: p.kind, Description: p.text, Name: p.name, In: p.in, Required: p.in == "path"}
}

func (p param) v3() map[string]any {
	out := map[string]any{"name": p.name, "in": p.in, "description": p.text, "schema": map[string]any{"type": p.kind, "uniqueItems": true}}
	if p.in == "path" {
		out["required"] = true
	}
	return out
}
