package crd

import (
	"bytes"
	"fmt"
	"reflect"
	"strings"
	"time"

	crdv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/util/duration"
	"k8s.io/client-go/util/jsonpath"

	"github.com/keelson/keelson/apiserver/resources"
)

// columns are those of the Table form, Name first.
func (k *Kind) columns(v *crdv1.CustomResourceDefinitionVersion) []resources.ErasedColumn {
	out := []resources.ErasedColumn{{
		TableColumnDefinition: metav1.TableColumnDefinition{Name: "Name", Type: "string", Format: "name", Description: metaDoc["name"]},
		Cell:                  func(o resources.Object, _ time.Time) any { return o.GetName() },
	}}
	for i, c := range columnsOf(v) {
		text := c.Description
		if text == "" {
			text = "Custom resource definition column (in JSONPath format): " + c.JSONPath
		}
		kind := c.Type
		out = append(out, resources.ErasedColumn{
			TableColumnDefinition: metav1.TableColumnDefinition{Name: c.Name, Type: kind, Format: c.Format, Description: text, Priority: c.Priority},
			Cell: func(o resources.Object, now time.Time) any {
				f, err := k.forms()
				if err != nil || i >= len(f.columns) {
					return nil
				}
				return cell(f.columns[i], kind, content(o).Object, now)
			},
		})
	}
	return out
}

// first is what a path finds.
func first(p *jsonpath.JSONPath, in map[string]any) (any, bool) {
	if p == nil {
		return nil, false
	}
	found, err := p.FindResults(in)
	if err != nil || len(found) == 0 || len(found[0]) == 0 {
		return nil, false
	}
	return found[0][0].Interface(), true
}

func cell(p *jsonpath.JSONPath, kind string, in map[string]any, now time.Time) any {
	v, ok := first(p, in)
	if !ok {
		return nil
	}
	switch kind {
	case "string":
		var b bytes.Buffer
		if p.PrintResults(&b, []reflect.Value{reflect.ValueOf(v)}) != nil {
			return nil
		}
		return b.String()
	case "integer":
		switch n := v.(type) {
		case int64:
			return n
		case float64:
			return int64(n)
		}
	case "number":
		switch n := v.(type) {
		case int64:
			return float64(n)
		case float64:
			return n
		}
	case "boolean":
		if b, ok := v.(bool); ok {
			return b
		}
	case "date":
		s, ok := v.(string)
		if !ok {
			return nil
		}
		var at metav1.Time
		if at.UnmarshalQueryParameter(s) != nil {
			return "<invalid>"
		}
		if at.IsZero() {
			return "<unknown>"
		}
		return duration.HumanDuration(now.Sub(at.Time))
	}
	return nil
}

// selectable returns the fields of this version that selectors may name.
func (k *Kind) selectable(v *crdv1.CustomResourceDefinitionVersion) []string {
	var out []string
	for _, s := range v.SelectableFields {
		out = append(out, strings.TrimPrefix(s.JSONPath, "."))
	}
	return out
}

// values gives what an object of this version has in its selectable fields.
func (k *Kind) values(names []string) func(resources.Object) fields.Set {
	if len(names) == 0 {
		return func(resources.Object) fields.Set { return nil }
	}
	return func(o resources.Object) fields.Set {
		set := make(fields.Set, len(names))
		f, err := k.forms()
		for i, name := range names {
			set[name] = ""
			if err != nil || i >= len(f.fields) {
				continue
			}
			if v, ok := first(f.fields[i], content(o).Object); ok && v != nil {
				set[name] = fmt.Sprint(v)
			}
		}
		return set
	}
}
