package check

import (
	"testing"

	"k8s.io/apimachinery/pkg/util/validation/field"
)

func TestObject(t *testing.T) {
	for raw, want := range map[string]string{
		`{}`:                     "",
		` {"a": [1]}`:            "",
		``:                       "p: Required value",
		`null`:                   "p: Required value",
		`[]`:                     `p: Invalid value: "<value omitted>": must be a valid JSON object`,
		`"x"`:                    `p: Invalid value: "<value omitted>": must be a valid JSON object`,
		`{`:                      `p: Invalid value: "<value omitted>": error parsing data as JSON: unexpected end of JSON input`,
		`{"long": "0123456789"}`: "p: Too long: may not be more than 16 bytes",
	} {
		var f Faults
		f.Object(field.NewPath("p"), []byte(raw), 16)
		got := ""
		for _, e := range f.List() {
			got += e.Error()
		}
		if got != want {
			t.Errorf("%s: %q, want %q", raw, got, want)
		}
	}
}
