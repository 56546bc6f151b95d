package crd

import (
	"bytes"
	"context"
	"encoding/json"
	"testing"
	"time"

	crdv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	utiljson "k8s.io/apimachinery/pkg/util/json"

	"github.com/keelson/keelson/apiserver/resources"
)

// defined returns the rows of a definition with this schema, or nil when it is refused.
func defined(t *testing.T, row *resources.Row, schema *crdv1.JSONSchemaProps) *resources.Row {
	t.Helper()
	names := crdv1.CustomResourceDefinitionNames{Plural: "things", Singular: "thing", Kind: "Thing", ListKind: "ThingList"}
	c := &crdv1.CustomResourceDefinition{
		ObjectMeta: metav1.ObjectMeta{Name: "things.x.io", UID: "u", Generation: 1},
		Spec: crdv1.CustomResourceDefinitionSpec{Group: "x.io", Names: names, Scope: crdv1.NamespaceScoped,
			Versions: []crdv1.CustomResourceDefinitionVersion{{Name: "v1", Served: true, Storage: true,
				Subresources: &crdv1.CustomResourceSubresources{Status: &crdv1.CustomResourceSubresourceStatus{}},
				Schema:       &crdv1.CustomResourceValidation{OpenAPIV3Schema: schema}}}},
	}
	rq := &resources.Request{Context: context.Background(), Now: time.Unix(1, 0), Warn: func(string) {}}
	row.Default(c)
	row.Main.Prepare(rq, c, nil)
	if len(row.Main.Validate(rq, c, nil)) > 0 {
		return nil
	}
	c.Status.AcceptedNames = names
	rows := newDefinition(c, fixed{c}, func() time.Time { return time.Unix(1000, 0) }).rows(c)
	if len(rows) != 1 {
		t.Fatalf("%d rows", len(rows))
	}
	return rows[0]
}

func definitionRow(f interface{ Fatal(...any) }) *resources.Row {
	for _, row := range resources.Table() {
		if row.Kind == "CustomResourceDefinition" {
			return row
		}
	}
	f.Fatal("no row of definitions")
	return nil
}

// live takes an object through a creation and an update; it returns false when it is refused.
func live(t *testing.T, row *resources.Row, schema *crdv1.JSONSchemaProps, text []byte) bool {
	t.Helper()
	rules, err := json.Marshal(schema)
	if err != nil {
		t.Fatal(err)
	}
	k := row.Custom.(*Kind)
	u := &unstructured.Unstructured{Object: map[string]any{}}
	if utiljson.Unmarshal(text, &u.Object) != nil || u.Object == nil {
		return false
	}
	u.SetGroupVersionKind(k.gvk())
	if _, err := k.Admit(u); err != nil {
		return false
	}
	same := func(what string, a, b map[string]any) {
		t.Helper()
		x, _ := json.Marshal(a)
		y, _ := json.Marshal(b)
		if string(x) != string(y) {
			t.Fatalf("%s twice differs:\n%s\n%s", what, x, y)
		}
	}
	again := u.DeepCopy()
	if unknown, err := k.Admit(again); err != nil || len(unknown) > 0 {
		t.Fatalf("admitted again: %v, %v", unknown, err)
	}
	same("admitting", u.Object, again.Object)
	row.Default(u)
	again = u.DeepCopy()
	row.Default(again)
	same("defaulting", u.Object, again.Object)
	rq := &resources.Request{Context: context.Background(), Now: time.Unix(1, 0), Warn: func(string) {}}
	row.Main.Prepare(rq, u, nil)
	if len(row.Main.Validate(rq, u, nil)) > 0 {
		return false
	}
	stored := u.DeepCopy()
	if err := k.Revive(stored); err != nil {
		t.Fatalf("what was accepted cannot be read: %v", err)
	}
	same("reading what was stored, and storing,", u.Object, stored.Object)
	next := u.DeepCopy()
	row.Main.Prepare(rq, next, u)
	for _, e := range row.Main.Validate(rq, next, u) {
		if bytes.Contains(rules, []byte("oldSelf")) {
			break // such a rule may ask for a change
		}
		t.Fatalf("an update without a change is refused: %v", e)
	}
	_ = row.Fields(u)
	for _, c := range row.Columns {
		_ = c.Cell(u, time.Unix(1, 0))
	}
	return true
}

// A schema is refused or works: objects under it are pruned, defaulted and validated without
// surprise.
func FuzzSchema(f *testing.F) {
	row := definitionRow(f)
	for _, s := range [][2]string{
		{`{"type":"object","properties":{"spec":{"type":"object","required":["a"],"properties":{"a":{"type":"integer","minimum":1,"default":3},"b":{"type":"array","x-kubernetes-list-type":"map","x-kubernetes-list-map-keys":["k"],"items":{"type":"object","required":["k"],"properties":{"k":{"type":"string"}}}}}}}}`, `{"metadata":{"name":"n"},"spec":{"a":2,"b":[{"k":"x","z":1}],"c":{}}}`},
		{`{"type":"object","properties":{"x":{"x-kubernetes-int-or-string":true,"default":"5"},"y":{"type":"object","x-kubernetes-preserve-unknown-fields":true,"x-kubernetes-embedded-resource":true}}}`, `{"metadata":{"name":"n"},"x":7,"y":{"apiVersion":"v1","kind":"Pod","metadata":{"name":"p","foo":1}}}`},
		{`{"type":"object","properties":{"s":{"type":"string","format":"date-time","nullable":true,"default":null},"n":{"type":"number","multipleOf":0.1},"e":{"type":"string","enum":["a","b"],"pattern":"^[ab]$"}}}`, `{"metadata":{"name":"n"},"s":null,"n":0.3,"e":"a"}`},
		{`{"type":"object","additionalProperties":{"type":"string","maxLength":3},"anyOf":[{"required":["a"]},{"not":{"required":["b"]}}]}`, `{"metadata":{"name":"n"},"a":"1"}`},
		{`{"type":"object","properties":{"spec":{"type":"object","properties":{"a":{"type":"integer"}},"x-kubernetes-validations":[{"rule":"self.a > 0 && (!has(oldSelf.a) || self.a >= oldSelf.a)","message":"no"}]}}}`, `{"metadata":{"name":"n"},"spec":{"a":1}}`},
	} {
		f.Add([]byte(s[0]), []byte(s[1]))
	}
	f.Fuzz(func(t *testing.T, schema, object []byte) {
		var props crdv1.JSONSchemaProps
		if json.Unmarshal(schema, &props) != nil {
			return
		}
		if r := defined(t, row, &props); r != nil {
			live(t, r, &props, object)
		}
	})
}

// A rule is refused when it is defined, or it can be evaluated.
func FuzzRule(f *testing.F) {
	row := definitionRow(f)
	for _, s := range []string{
		"self.a > 0", "self.list.all(x, x.startsWith('a'))", "oldSelf.a <= self.a", "oldSelf.a < self.a", "self.m.exists(k, self.m[k] == k)",
		"self.list.map(x, x + x).join(',').size() < 100", "quantity(self.s).isGreaterThan(quantity('1'))", "self.s.matches('^(a+)+$')",
		"1/self.a > 0", "self.list[self.a] == self.s", "url(self.s).getHost() != ''", "cel.bind(x, self.s, x + x) != ''",
	} {
		f.Add(s, "'no ' + self.s", int64(1), "1Gi")
	}
	f.Fuzz(func(t *testing.T, rule, message string, a int64, s string) {
		limit := int64(4)
		props := crdv1.JSONSchemaProps{Type: "object", Properties: map[string]crdv1.JSONSchemaProps{"spec": {
			Type: "object", Required: []string{"a", "s", "list", "m"},
			Properties: map[string]crdv1.JSONSchemaProps{
				"a": {Type: "integer", Format: "int64"}, "s": {Type: "string", MaxLength: &limit},
				"list": {Type: "array", MaxItems: &limit, Items: &crdv1.JSONSchemaPropsOrArray{Schema: &crdv1.JSONSchemaProps{Type: "string", MaxLength: &limit}}},
				"m":    {Type: "object", MaxProperties: &limit, AdditionalProperties: &crdv1.JSONSchemaPropsOrBool{Allows: true, Schema: &crdv1.JSONSchemaProps{Type: "string", MaxLength: &limit}}},
			},
			XValidations: crdv1.ValidationRules{{Rule: rule, MessageExpression: message}},
		}}}
		r := defined(t, row, &props)
		if r == nil {
			return
		}
		text, err := json.Marshal(map[string]any{"metadata": map[string]any{"name": "n"}, "spec": map[string]any{
			"a": a, "s": s, "list": []string{"a", s}, "m": map[string]string{"a": "a", "k": s}}})
		if err != nil {
			return
		}
		live(t, r, &props, text)
	})
}
