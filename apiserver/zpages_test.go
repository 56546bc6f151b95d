package apiserver

import (
	"encoding/json"
	"net/http/httptest"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

func TestPagesAreNegotiated(t *testing.T) {
	p := &page{kind: "Flagz", lines: func() [][2]string { return nil }, fields: func() map[string]any { return map[string]any{"flags": map[string]string{"v": "info"}} }}
	for _, row := range []struct {
		accept, media string // media "": 406
	}{
		{"", "text/plain; charset=utf-8"},
		{"*/*", "text/plain; charset=utf-8"},
		{"text/*", "text/plain; charset=utf-8"},
		{"text/html, */*;q=0.1", "text/plain; charset=utf-8"},
		{"text/html", ""},
		{"application/json", ""},
		{"application/json;as=Statusz;v=v1beta1;g=config.k8s.io", ""},
		{"application/json;as=Flagz;v=v1;g=config.k8s.io", ""},
		{"text/plain;as=Flagz;v=v1beta1;g=config.k8s.io", ""},
		{"application/json;as=Flagz;v=v1beta1;g=config.k8s.io", "application/json;g=config.k8s.io;v=v1beta1;as=Flagz"},
		{"application/json;as=Flagz;v=v1alpha1;g=config.k8s.io", "application/json;g=config.k8s.io;v=v1alpha1;as=Flagz"},
		{"application/yaml;as=Flagz;v=v1beta1;g=config.k8s.io", "application/yaml;g=config.k8s.io;v=v1beta1;as=Flagz"},
		{"text/plain;q=0.5,application/json;as=Flagz;v=v1beta1;g=config.k8s.io", "application/json;g=config.k8s.io;v=v1beta1;as=Flagz"},
	} {
		r := httptest.NewRequest("GET", "/flagz", nil)
		r.Header.Set("Accept", row.accept)
		w := httptest.NewRecorder()
		p.ServeHTTP(w, r)
		if row.media == "" {
			if w.Code != 406 {
				t.Errorf("%q: %d %s", row.accept, w.Code, w.Body)
			}
			continue
		}
		if got := w.Header().Get("Content-Type"); w.Code != 200 || got != row.media {
			t.Errorf("%q: %d %s", row.accept, w.Code, got)
		}
		var object struct {
			Kind, APIVersion string
			Flags            map[string]string
		}
		switch media, _, _ := strings.Cut(row.media, ";"); media {
		case "application/json":
			if err := json.Unmarshal(w.Body.Bytes(), &object); err != nil {
				t.Error(err)
			}
		case "application/yaml":
			if err := yaml.Unmarshal(w.Body.Bytes(), &object); err != nil {
				t.Error(err)
			}
		default:
			continue
		}
		if object.Kind != "Flagz" || object.Flags["v"] != "info" {
			t.Errorf("%q: %+v", row.accept, object)
		}
	}
}
