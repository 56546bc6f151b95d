package crd

import (
	"runtime"
	"strings"
	"testing"
	"time"

	crdv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/keelson/keelson/apiserver/resources"
)

type fixed struct {
	c *crdv1.CustomResourceDefinition
}

func (f fixed) Object() (resources.Object, error) { return f.c, nil }

// An idle definition holds its rows and names; its schema is text in the cache.
func TestIdleDefinitionIsSmall(t *testing.T) {
	text := strings.Repeat("words of a description ", 4)
	leaf := crdv1.JSONSchemaProps{Type: "string", Description: text}
	props := map[string]crdv1.JSONSchemaProps{}
	for _, a := range "abcdefghijklmnopqrst" {
		sub := map[string]crdv1.JSONSchemaProps{}
		for _, b := range "abcdefgh" {
			sub[string(b)] = leaf
		}
		props[string(a)] = crdv1.JSONSchemaProps{Type: "object", Properties: sub}
	}
	names := crdv1.CustomResourceDefinitionNames{Plural: "things", Singular: "thing", Kind: "Thing", ListKind: "ThingList"}
	c := &crdv1.CustomResourceDefinition{
		ObjectMeta: metav1.ObjectMeta{Name: "things.x.io", UID: "u", Generation: 1},
		Spec: crdv1.CustomResourceDefinitionSpec{Group: "x.io", Names: names, Scope: crdv1.NamespaceScoped,
			Versions: []crdv1.CustomResourceDefinitionVersion{{Name: "v1", Served: true, Storage: true,
				Subresources: &crdv1.CustomResourceSubresources{Status: &crdv1.CustomResourceSubresourceStatus{}},
				Schema: &crdv1.CustomResourceValidation{OpenAPIV3Schema: &crdv1.JSONSchemaProps{Type: "object",
					Properties: map[string]crdv1.JSONSchemaProps{"spec": {Type: "object", Properties: props}}}}}}},
		Status: crdv1.CustomResourceDefinitionStatus{AcceptedNames: names},
	}
	heap := func() int64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	const n = 50
	now := func() time.Time { return time.Unix(1000, 0) }
	var defs []*definition
	var rows [][]*resources.Row
	warm := newDefinition(c, fixed{c}, now)
	warm.rows(c)
	if _, err := (&Kind{def: warm, version: "v1"}).MergeType(); err != nil {
		t.Fatal(err)
	}
	before := heap()
	for range n {
		d := newDefinition(c, fixed{c}, now)
		rows = append(rows, d.rows(c))
		for _, k := range d.kinds {
			if _, err := k.MergeType(); err != nil {
				t.Fatal(err)
			}
		}
		defs = append(defs, d)
	}
	used := (heap() - before) / n
	for _, d := range defs {
		d.drop(2000)
	}
	idle := (heap() - before) / n
	t.Logf("a definition with %d fields: %d bytes in use, %d idle", 20*8, used, idle)
	if idle > 20<<10 {
		t.Errorf("an idle definition holds %d bytes", idle)
	}
	runtime.KeepAlive(rows)
	runtime.KeepAlive(defs)
	runtime.KeepAlive(warm)
}
