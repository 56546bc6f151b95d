package watchcache

import (
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/fields"

	"github.com/keelson/keelson/apiserver/resources"
)

func TestFieldsAreKept(t *testing.T) {
	row := &resources.Row{FieldNames: []string{"spec.nodeName", "status.phase", "spec.long", "spec.last"}}
	set := fields.Set{"spec.nodeName": "node-1", "spec.long": strings.Repeat("é", 20_000), "spec.last": "x"}
	kept := newFieldsAs(row, set)
	for _, name := range row.FieldNames {
		if got := kept.Get(name); got != set[name] || !kept.Has(name) {
			t.Errorf("%s: %d bytes, want %d; has %v", name, len(got), len(set[name]), kept.Has(name))
		}
	}
	for _, f := range []*fieldsAs{kept, nil} {
		if f.Has("spec.other") || f.Get("spec.other") != "" {
			t.Errorf("%v has a field that its row has not", f)
		}
	}
}
