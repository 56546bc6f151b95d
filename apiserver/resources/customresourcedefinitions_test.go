package resources

import (
	"fmt"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"sigs.k8s.io/yaml"
)

// Every fault is said once, and a schema that is not structural is a fault like any other.
func TestFaultsOfDefinitions(t *testing.T) {
	row := customResourceDefinitions.Row()
	for _, c := range []struct {
		what, name, spec string // spec: of the property "spec" of the schema
		want             []string
	}{
		{"as it should be", "gadgets.ex.com", `{type: object, properties: {color: {type: string}}}`, nil},
		{"no name", "", `{type: object, properties: {color: {type: string}}}`, []string{
			"metadata.name: Required value: name or generateName is required"}},
		{"another name", "x.ex.com", `{type: object, properties: {color: {type: string}}}`, []string{
			"metadata.name: Invalid value: \"x.ex.com\": must be spec.names.plural+\".\"+spec.group"}},
		{"a name that is none", "a/b", `{type: object, properties: {color: {type: string}}}`, []string{
			"metadata.name: Invalid value: \"a/b\": a lowercase RFC 1123 subdomain",
			"metadata.name: Invalid value: \"a/b\": must be spec.names.plural+\".\"+spec.group"}},
		{"unknown fields are not kept", "gadgets.ex.com", `{type: object, x-kubernetes-preserve-unknown-fields: false, properties: {color: {type: string}}}`, []string{
			"x-kubernetes-preserve-unknown-fields", "must be true or undefined"}},
		{"a reference", "gadgets.ex.com", `{type: object, $ref: "#/x", properties: {color: {type: string}}}`, []string{"$ref"}},
	} {
		text := fmt.Sprintf(`{metadata: {name: %q}, spec: {group: ex.com, scope: Cluster, names: {plural: gadgets, kind: Gadget}, versions: [
			{name: v1, served: true, storage: true, selectableFields: [{jsonPath: .spec.color}], schema: {openAPIV3Schema: {type: object, properties: {spec: %s}}}},
			{name: v2, served: true, storage: false, schema: {openAPIV3Schema: {type: object}}}]}}`, c.name, c.spec)
		obj := &crd{}
		if err := yaml.Unmarshal([]byte(text), obj); err != nil {
			t.Fatal(err)
		}
		row.Default(obj)
		row.Main.Prepare(request(), obj, nil)
		errs := validation.ValidateObjectMetaAccessor(obj, false, row.Name, field.NewPath("metadata"))
		errs = append(errs, row.Main.Validate(request(), obj, nil)...)
		seen := map[string]int{}
		var all []string
		for _, e := range errs {
			seen[e.Error()]++
			all = append(all, e.Error())
		}
		for text, n := range seen {
			if n > 1 {
				t.Errorf("%s: said %d times: %s", c.what, n, text)
			}
		}
		joined := strings.Join(all, "\n")
		for _, want := range c.want {
			if !strings.Contains(joined, want) {
				t.Errorf("%s: want %s in:\n%s", c.what, want, joined)
			}
		}
		if len(c.want) == 0 && len(errs) > 0 {
			t.Errorf("%s: %s", c.what, joined)
		}
	}
}

// Of two storage versions the first counts: that there are two is said once.
func TestTwoStorageVersions(t *testing.T) {
	row := customResourceDefinitions.Row()
	obj := &crd{}
	const version = `served: true, storage: true, schema: {openAPIV3Schema: {type: object}}`
	if err := yaml.Unmarshal([]byte(`{metadata: {name: gadgets.ex.com}, spec: {group: ex.com, scope: Cluster, names: {plural: gadgets, kind: Gadget}, versions: [
		{name: v1, `+version+`}, {name: v2, `+version+`}]}}`), obj); err != nil {
		t.Fatal(err)
	}
	row.Default(obj)
	row.Main.Prepare(request(), obj, nil)
	if got := strings.Join(obj.Status.StoredVersions, " "); got != "v1" {
		t.Errorf("stored versions %q", got)
	}
	if errs := row.Main.Validate(request(), obj, nil); !strings.Contains(errs.ToAggregate().Error(), `status.storedVersions: Invalid value: ["v1"]: must have the storage version v2`) {
		t.Error(errs)
	}
}
