package resources

import (
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/keelson/keelson/apiserver/resources/check"
)

func TestSelectorsOfDevicesCompile(t *testing.T) {
	for _, c := range []struct{ expression, fault string }{
		{`true`, ""},
		{`device.driver == "gpu.example.com"`, ""},
		{`device.attributes["gpu.example.com"].model == "a" && device.capacity["gpu.example.com"].memory.compareTo(quantity("1Gi")) >= 0`, ""},
		{`cel.bind(d, device.attributes["gpu.example.com"], d.big && d.version.isGreaterThan(semver("1.0.0")))`, ""},
		{`device.attributes["gpu.example.com"].big`, ""},
		{`device.attributes["gpu.example.com"].models.includes("a")`, ""},
		{`device.allowMultipleAllocations`, ""},
		{`A_b/..`, "compilation failed: ERROR: <input>:1:6: Syntax error: no viable alternative at input '..'\n | A_b/..\n | .....^"},
		{`device.nothing`, "undefined field 'nothing'"},
		{`nobody`, "undeclared reference to 'nobody'"},
		{`device.driver`, "must evaluate to bool or the unknown type, not string"},
	} {
		var f check.Faults
		validateSelector(&f, c.expression, field.NewPath("expression"))
		var got string
		if l := f.List(); len(l) > 0 {
			got = l[0].Detail
		}
		if (got == "") != (c.fault == "") || !strings.Contains(got, c.fault) {
			t.Errorf("%s: %q, want %q", c.expression, got, c.fault)
		}
	}
}
