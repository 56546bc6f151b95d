package resources

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/yaml"
)

var update = flag.Bool("update", false, "rewrite testdata/table.txt")

// tree is a Reader over a few objects.
type tree []Object

func (t tree) Get(gr schema.GroupResource, namespace, name string) (Object, error) {
	for _, o := range t {
		if o.GetNamespace() == namespace && o.GetName() == name && strings.HasPrefix(gr.Resource, strings.ToLower(kindOf(o))) {
			return o, nil
		}
	}
	return nil, nil
}

func (t tree) Each(gr schema.GroupResource, namespace string, yield func(Object) bool) error {
	for _, o := range t {
		if (namespace == "" || o.GetNamespace() == namespace) && strings.HasPrefix(gr.Resource, strings.ToLower(kindOf(o))) && !yield(o) {
			break
		}
	}
	return nil
}

func kindOf(o Object) string { return o.GetObjectKind().GroupVersionKind().Kind }

func request(objects ...Object) *Request {
	return &Request{
		Context: context.Background(), User: "alice", Groups: []string{"devs"}, Now: time.Unix(1_800_000_000, 0),
		Read: tree(objects), Warn: func(string) {},
	}
}

// minimal is one entry of testdata/minimal.yaml.
type minimal struct {
	Object   map[string]any `json:"object"`
	Required []string       `json:"required"`
}

func minimals(t *testing.T) []minimal {
	t.Helper()
	data, err := os.ReadFile("testdata/minimal.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var out []minimal
	if err := yaml.UnmarshalStrict(data, &out); err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	return append(out, minimal{Object: map[string]any{
		"apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest", "metadata": map[string]any{"name": "a"},
		"spec": map[string]any{
			"signerName": "kubernetes.io/kube-apiserver-client", "usages": []any{"client auth"},
			"request": base64.StdEncoding.EncodeToString(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})),
		},
	}, Required: []string{"spec.usages", "spec.signerName"}})
}

func decode(t *testing.T, row *Row, content map[string]any) Object {
	t.Helper()
	data, err := json.Marshal(content)
	if err != nil {
		t.Fatal(err)
	}
	obj := row.New()
	if err := json.Unmarshal(data, obj); err != nil {
		t.Fatalf("%s: %v", row.GVK(), err)
	}
	return obj
}

func rowOf(t *testing.T, reg *Registry, content map[string]any) *Row {
	t.Helper()
	u := unstructured.Unstructured{Object: content}
	row := reg.Kind(u.GroupVersionKind())
	if row == nil {
		t.Fatalf("no row for %s", u.GroupVersionKind())
	}
	return row
}

func registry(t *testing.T) *Registry {
	t.Helper()
	reg, err := NewRegistry(Table())
	if err != nil {
		t.Fatal(err)
	}
	return reg
}

// create runs an object through what a creation runs it through.
func create(row *Row, obj Object, rq *Request) []string {
	obj.SetUID("u-1")
	row.Default(obj)
	row.Main.Prepare(rq, obj, nil)
	var out []string
	for _, e := range row.Main.Validate(rq, obj, nil) {
		out = append(out, e.Error())
	}
	for _, m := range row.Name(obj.GetName(), false) {
		out = append(out, "metadata.name: "+m)
	}
	return out
}

func TestEveryRowServesASmallObject(t *testing.T) {
	reg := registry(t)
	tried := map[schema.GroupVersionKind]bool{}
	for _, m := range minimals(t) {
		row := rowOf(t, reg, m.Object)
		tried[row.GVK()] = true
		t.Run(row.GVK().String(), func(t *testing.T) {
			obj := decode(t, row, m.Object)
			if faults := create(row, obj, request()); len(faults) > 0 {
				t.Fatalf("a valid object is refused:\n%s", strings.Join(faults, "\n"))
			}

			again := obj.DeepCopyObject().(Object)
			row.Default(again)
			if !equality.Semantic.DeepEqual(obj, again) {
				t.Errorf("defaults are not idempotent:\n%s", cmp.Diff(obj, again))
			}

			if p, ok := any(obj).(interface {
				Marshal() ([]byte, error)
				Unmarshal([]byte) error
			}); ok {
				data, err := p.Marshal()
				if err != nil {
					t.Fatal(err)
				}
				back := row.New()
				if err := any(back).(interface{ Unmarshal([]byte) error }).Unmarshal(data); err != nil {
					t.Fatal(err)
				}
				back.GetObjectKind().SetGroupVersionKind(row.GVK())
				if !equality.Semantic.DeepEqual(obj, back) {
					t.Errorf("protobuf round trip differs:\n%s", cmp.Diff(obj, back))
				}
			} else if row.Custom == nil && row.Group != "apiextensions.k8s.io" {
				t.Errorf("%T has no protobuf form", obj)
			}

			if row.Stored != nil {
				stored, err1 := row.ToStored(obj)
				view, err2 := row.FromStored(stored)
				again, err3 := row.ToStored(view)
				if err := errors.Join(err1, err2, err3); err != nil {
					t.Fatal(err)
				}
				if !equality.Semantic.DeepEqual(again, stored) {
					t.Errorf("the view loses content:\n%s", cmp.Diff(stored, again))
				}
			}

			// An update that changes nothing is always allowed.
			obj.SetResourceVersion("1")
			same := obj.DeepCopyObject().(Object)
			row.Main.Prepare(request(), same, obj)
			for _, e := range row.Main.Validate(request(), same, obj) {
				t.Errorf("an update without a change is refused: %v", e)
			}
			if !equality.Semantic.DeepEqual(obj, same) {
				t.Errorf("an update without a change changes:\n%s", cmp.Diff(obj, same))
			}
			for name, part := range row.Parts {
				same := obj.DeepCopyObject().(Object)
				part.Prepare(request(), same, obj)
				for _, e := range part.Validate(request(), same, obj) {
					t.Errorf("an update of %s without a change is refused: %v", name, e)
				}
			}

			for _, c := range row.Columns {
				switch v := c.Cell(obj, time.Now()).(type) {
				case string, int64, bool, nil:
				default:
					t.Errorf("column %s is a %T", c.Name, v)
				}
			}
			for name := range row.Fields(obj) {
				if !slices.Contains(row.FieldNames, name) && row.Stored == nil { // a view's are those of what it shows
					t.Errorf("field %s is not in FieldNames", name)
				}
			}

			for _, path := range m.Required {
				u := (&unstructured.Unstructured{Object: m.Object}).DeepCopy()
				unstructured.RemoveNestedField(u.Object, strings.Split(path, ".")...)
				faults := create(row, decode(t, row, u.Object), request())
				if !slices.ContainsFunc(faults, func(f string) bool { return strings.HasPrefix(f, path) }) {
					t.Errorf("%s is missing and not reported: %q", path, faults)
				}
			}
		})
	}
	for _, row := range reg.All() {
		if row.Can("create") && row.Can("get") && !tried[row.GVK()] {
			t.Errorf("testdata/minimal.yaml has no %s", row.GVK())
		}
	}
}

// TestTableIsWhatClientsDiscover keeps names, scopes, places and subresources as
// they are in Kubernetes v1.36.
func TestTableIsWhatClientsDiscover(t *testing.T) {
	var b strings.Builder
	for _, row := range registry(t).All() {
		scope := "cluster"
		if row.Namespaced {
			scope = "namespaced"
		}
		place := row.Storage().Prefix
		if !row.Can("get") {
			place = "-"
		}
		fmt.Fprintf(&b, "%s/%s %s %s %s %s [%s] short=%s categories=%s list=%T\n", row.Group, row.Version, row.Plural, row.Singular, row.Kind, scope,
			strings.Join(row.Verbs, ","), strings.Join(row.Short, ","), strings.Join(row.Categories, ","), newList(row))
		fmt.Fprintf(&b, "  at %s\n", place)
		var subs []string
		for name, part := range row.Parts {
			subs = append(subs, "  "+row.Plural+"/"+name+" "+row.Kind+" "+strings.Join(part.Verbs, ","))
		}
		for _, s := range row.Subs {
			subs = append(subs, "  "+row.Plural+"/"+s.Name+" "+s.Kind.Kind+" "+strings.Join(s.Verbs, ","))
		}
		slices.Sort(subs)
		for _, s := range subs {
			b.WriteString(s + "\n")
		}
		var columns []string
		for _, c := range row.Columns {
			name := c.Name
			if c.Priority > 0 {
				name = "(" + name + ")"
			}
			columns = append(columns, name)
		}
		fmt.Fprintf(&b, "  prints %s\n", strings.Join(columns, " | "))
	}
	const file = "testdata/table.txt"
	if *update {
		if err := os.WriteFile(file, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), b.String()); d != "" {
		t.Errorf("the table changed (-want +got); run with -update if that is meant:\n%s", d)
	}
}

func newList(row *Row) any {
	if row.NewList == nil {
		return nil
	}
	return row.NewList()
}

// Every column says what it shows, and every description is of a column.
func TestColumnsAreDescribed(t *testing.T) {
	for _, row := range Table() {
		for _, c := range row.Columns {
			if c.Description == "" {
				t.Errorf("%s: column %s is not described", row.GVK(), c.Name)
			}
		}
	}
}
