package resources

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"sigs.k8s.io/yaml"
)

// testdata/facts holds what a Kubernetes 1.36 API server was seen to answer. A
// file begins with an object that is valid; then come changes of one field,
//
//	create spec.replicas = -1
//	    spec.replicas: Invalid value: -1: must be greater than or equal to 0
//
// with the faults that creating (create), replacing (update) or reporting on
// (status) the changed object has, none where it is accepted. "-" removes the field.
func TestFacts(t *testing.T) {
	files, err := filepath.Glob("testdata/facts/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no facts: %v", err)
	}
	kinds := map[string]*Row{}
	for _, row := range Table() {
		kinds[row.GVK().GroupVersion().String()+" "+row.Kind] = row
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			head, facts, _ := strings.Cut(string(text), "\n---\n")
			base := map[string]any{}
			if err := yaml.UnmarshalStrict([]byte(head), &base); err != nil {
				t.Fatal(err)
			}
			row := kinds[fmt.Sprint(base["apiVersion"], " ", base["kind"])]
			if row == nil {
				t.Fatalf("no row for %v %v", base["apiVersion"], base["kind"])
			}
			for _, f := range parseFacts(t, facts) {
				checkFact(t, row, base, f)
			}
		})
	}
}

type fact struct {
	part, path string
	value      any
	remove     bool
	want       []string
}

func parseFacts(t *testing.T, text string) (out []fact) {
	t.Helper()
	for _, line := range strings.Split(text, "\n") {
		if rest, ok := strings.CutPrefix(line, "    "); ok {
			out[len(out)-1].want = append(out[len(out)-1].want, rest)
			continue
		}
		if line == "" {
			continue
		}
		what, value, _ := strings.Cut(line, " = ")
		part, path, _ := strings.Cut(what, " ")
		f := fact{part: part, path: path, remove: value == "-"}
		if !f.remove {
			if err := json.Unmarshal([]byte(value), &f.value); err != nil {
				t.Fatalf("%s: %v", line, err)
			}
		}
		out = append(out, f)
	}
	return out
}

func checkFact(t *testing.T, row *Row, base map[string]any, f fact) {
	t.Helper()
	typed := func(content map[string]any) Object {
		text, err := json.Marshal(content)
		if err != nil {
			t.Fatal(err)
		}
		obj := row.New()
		if err := json.Unmarshal(text, obj); err != nil {
			t.Fatalf("%s %s: %v", f.part, f.path, err)
		}
		row.Default(obj)
		if row.Namespaced {
			obj.SetNamespace("t")
		}
		return obj
	}
	rq, part, old := request(), row.Main, Object(nil)
	changed := (&unstructured.Unstructured{Object: base}).DeepCopy().Object
	if f.part != "create" { // as it is once it has been created
		old = typed(base)
		row.Main.Prepare(rq, old, nil)
		stored, err := runtime.DefaultUnstructuredConverter.ToUnstructured(old)
		if err != nil {
			t.Fatal(err)
		}
		changed = stored
		if f.part == "status" {
			part = row.Parts["status"]
			changed["status"] = (&unstructured.Unstructured{Object: base}).DeepCopy().Object["status"]
		}
	}
	change(t, changed, strings.Split(f.path, "."), f)
	obj := typed(changed)
	part.Prepare(rq, obj, old)
	var got []string
	for _, e := range part.Validate(rq, obj, old) {
		got = append(got, faultText(e))
	}
	// Some faults are found, and reported, twice: how often is no fact.
	slices.Sort(got)
	slices.Sort(f.want)
	got, f.want = slices.Compact(got), slices.Compact(f.want)
	if !slices.Equal(got, f.want) {
		t.Errorf("%s %s = %v\n got %s\nwant %s", f.part, f.path, f.value, strings.Join(got, "\n     "), strings.Join(f.want, "\n     "))
	}
}

func faultText(e *field.Error) string { return e.Field + ": " + e.ErrorBody() }

// change sets or removes the field at path, whose numbers are places in lists.
func change(t *testing.T, node any, path []string, f fact) {
	t.Helper()
	for ; len(path) > 1; path = path[1:] {
		switch n := node.(type) {
		case map[string]any:
			if n[path[0]] == nil {
				n[path[0]] = map[string]any{}
			}
			node = n[path[0]]
		case []any:
			i, err := strconv.Atoi(path[0])
			if err != nil || i >= len(n) {
				t.Fatalf("%s: no entry %s", f.path, path[0])
			}
			node = n[i]
		default:
			t.Fatalf("%s: %s is no object", f.path, path[0])
		}
	}
	switch n := node.(type) {
	case map[string]any:
		if f.remove {
			delete(n, path[0])
		} else {
			n[path[0]] = f.value
		}
	case []any:
		i, err := strconv.Atoi(path[0])
		if err != nil || i >= len(n) {
			t.Fatalf("%s: no entry %s", f.path, path[0])
		}
		n[i] = f.value
	default:
		t.Fatalf("%s: nothing to change", f.path)
	}
}
