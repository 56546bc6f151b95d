package openapi

import (
	"encoding/json"
	"strings"
	"testing"
)

func TestEveryDefinitionIsFoundAndClosed(t *testing.T) {
	for text, look := range map[string]func(string) (string, bool){v3: V3, v2: V2} {
		lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
		for _, line := range lines {
			name, want, _ := strings.Cut(line, " ")
			got, ok := look(name)
			if !ok || got != want {
				t.Fatalf("%s is not found", name)
			}
			if !json.Valid([]byte(got)) {
				t.Errorf("%s is not JSON", name)
			}
			for _, ref := range References(got) {
				if _, ok := look(ref); !ok {
					t.Errorf("%s refers to %s, which is not defined", name, ref)
				}
			}
		}
	}
	for _, name := range []string{"", "a", "zzz", "io.k8s.api.core.v1.Po", "io.k8s.api.core.v1.Podx"} {
		if _, ok := V3(name); ok {
			t.Errorf("%q is found", name)
		}
	}
}

func TestClosure(t *testing.T) {
	got := Closure("io.k8s.api.rbac.v1.RoleBinding", "no.such.Model")
	want := "io.k8s.api.rbac.v1.RoleBinding io.k8s.api.rbac.v1.RoleRef io.k8s.api.rbac.v1.Subject " +
		"io.k8s.apimachinery.pkg.apis.meta.v1.FieldsV1 io.k8s.apimachinery.pkg.apis.meta.v1.ManagedFieldsEntry " +
		"io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta io.k8s.apimachinery.pkg.apis.meta.v1.OwnerReference " +
		"io.k8s.apimachinery.pkg.apis.meta.v1.Time"
	if strings.Join(got, " ") != want {
		t.Errorf("got %s", got)
	}
}
