package discovery

import (
	"bytes"
	"crypto/sha512"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"net/url"
	"strings"

	openapiv2 "github.com/google/gnostic-models/openapiv2"
	openapiv3 "github.com/google/gnostic-models/openapiv3"
	"google.golang.org/protobuf/proto"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/keelson/keelson/apiserver/resources"
	"github.com/keelson/keelson/proto/openapi"
)

// Media types of the OpenAPI documents. Clients write the second form of v2, and both of v3.
const (
	mediaJSON    = "application/json"
	protoV2      = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"
	protoV2Old   = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf"
	protoV3      = "application/com.github.proto-openapi.spec.v3.v1.0+protobuf"
	protoV3Old   = "application/com.github.proto-openapi.spec.v3@v1.0+protobuf"
	generatorSum = "1" // grows when the documents change with nothing else changing
)

// wantsProto decides between JSON and protobuf; ok is false for neither: 406.
func wantsProto(accept string, protobuf ...string) (yes, ok bool) {
	if strings.TrimSpace(accept) == "" {
		return false, true
	}
	for _, clause := range strings.Split(accept, ",") {
		media, _, _ := strings.Cut(strings.TrimSpace(clause), ";")
		switch media {
		case mediaJSON, "*/*", "application/*":
			return false, true
		}
		for _, p := range protobuf {
			if media == p {
				return true, true
			}
		}
	}
	return false, false
}

// pathOf is "api/v1" or "apis/<group>/<version>".
func pathOf(gv schema.GroupVersion) string {
	if gv.Group == "" {
		return "api/" + gv.Version
	}
	return "apis/" + gv.Group + "/" + gv.Version
}

func (s *Server) rowsOf(gv schema.GroupVersion) []*resources.Row {
	for _, g := range s.groups() {
		if g.name == gv.Group {
			return g.rows[gv.Version]
		}
	}
	return nil
}

// sum identifies a group version's document without making it: the definitions, the
// rows and the writer decide its content.
func (s *Server) sum(rows []*resources.Row) string {
	h := sha512.New()
	for _, part := range []string{generatorSum, openapi.Sum(), s.version} {
		h.Write([]byte(part + "\n"))
	}
	for _, row := range rows {
		raw, _ := json.Marshal(apiResources(row))
		h.Write([]byte(row.GVK().String()))
		h.Write(raw)
		if c, ok := row.Custom.(Described); ok {
			h.Write([]byte(c.OpenAPISum()))
		}
	}
	return strings.ToUpper(hex.EncodeToString(h.Sum(nil)))
}

// Described is what Row.Custom may implement to publish its schema.
type Described interface {
	OpenAPI() string
	// Model is the name that it is published under.
	Model() string
	// OpenAPIv2 is the schema in the terms of OpenAPI v2, references as in v3.
	OpenAPIv2() string
	// OpenAPISum changes when the schema does.
	OpenAPISum() string
}

func (s *Server) openapiV3(w http.ResponseWriter, r *http.Request, path string) {
	if path == "" {
		type entry struct {
			ServerRelativeURL string `json:"serverRelativeURL"`
		}
		paths := map[string]entry{}
		for _, g := range s.groups() {
			for _, v := range g.versions {
				p := pathOf(schema.GroupVersion{Group: g.name, Version: v})
				if r := g.remote[v]; r != nil { // its server answers; nothing is kept here
					if r.OpenAPIv3 != "" {
						paths[p] = entry{r.OpenAPIv3}
					}
					continue
				}
				paths[p] = entry{"/openapi/v3/" + p + "?hash=" + url.QueryEscape(s.sum(g.rows[v]))}
			}
		}
		d, err := s.doc("openapi/v3", func() ([]byte, string, error) {
			raw, err := json.Marshal(map[string]any{"paths": paths})
			return raw, mediaJSON, err
		})
		serveOr500(w, r, d, err)
		return
	}
	parts := strings.Split(path, "/")
	var gv schema.GroupVersion
	switch {
	case len(parts) == 2 && parts[0] == "api":
		gv.Version = parts[1]
	case len(parts) == 3 && parts[0] == "apis":
		gv.Group, gv.Version = parts[1], parts[2]
	}
	rows := s.rowsOf(gv)
	if len(rows) == 0 {
		http.Error(w, "404 page not found", http.StatusNotFound)
		return
	}
	binary, ok := wantsProto(r.Header.Get("Accept"), protoV3, protoV3Old)
	if !ok {
		http.Error(w, "406 not acceptable: application/json or "+protoV3, http.StatusNotAcceptable)
		return
	}
	if hash := r.URL.Query().Get("hash"); hash != "" {
		if now := s.sum(rows); hash != now {
			http.Redirect(w, r, "/openapi/v3/"+path+"?hash="+url.QueryEscape(now), http.StatusMovedPermanently)
			return
		}
		w.Header().Set("Cache-Control", "public, immutable")
	}
	key := "openapi/v3/" + path
	if binary {
		key += "/proto"
	}
	d, err := s.doc(key, func() ([]byte, string, error) {
		body, err := s.documentV3(gv, rows)
		if err != nil || !binary {
			return body, mediaJSON, err
		}
		doc, err := openapiv3.ParseDocument(body)
		if err != nil {
			return nil, "", err
		}
		body, err = proto.Marshal(doc)
		return body, protoV3, err
	})
	serveOr500(w, r, d, err)
}

func (s *Server) openapiV2(w http.ResponseWriter, r *http.Request) {
	binary, ok := wantsProto(r.Header.Get("Accept"), protoV2, protoV2Old)
	if !ok {
		http.Error(w, "406 not acceptable: application/json or "+protoV2, http.StatusNotAcceptable)
		return
	}
	key := "openapi/v2"
	if binary {
		key += "/proto"
	}
	d, err := s.doc(key, func() ([]byte, string, error) {
		body, err := s.documentV2()
		if err != nil || !binary {
			return body, mediaJSON, err
		}
		doc, err := openapiv2.ParseDocument(body)
		if err != nil {
			return nil, "", err
		}
		body, err = proto.Marshal(doc)
		return body, protoV2, err
	})
	serveOr500(w, r, d, err)
}

func serveOr500(w http.ResponseWriter, r *http.Request, d *document, err error) {
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	d.serve(w, r)
}

func model(v any) string {
	if m, ok := v.(interface{ OpenAPIModelName() string }); ok {
		return m.OpenAPIModelName()
	}
	return ""
}

// Models that every group version has.
const (
	modelStatus     = "io.k8s.apimachinery.pkg.apis.meta.v1.Status"
	modelDelete     = "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions"
	modelPatch      = "io.k8s.apimachinery.pkg.apis.meta.v1.Patch"
	modelWatchEvent = "io.k8s.apimachinery.pkg.apis.meta.v1.WatchEvent"
)

// kindModels are the kinds of subresources that are no rows.
var kindModels = map[schema.GroupVersionKind]string{
	{Group: "autoscaling", Version: "v1", Kind: "Scale"}:                  "io.k8s.api.autoscaling.v1.Scale",
	{Group: "policy", Version: "v1", Kind: "Eviction"}:                    "io.k8s.api.policy.v1.Eviction",
	{Group: "authentication.k8s.io", Version: "v1", Kind: "TokenRequest"}: "io.k8s.api.authentication.v1.TokenRequest",
	{Version: "v1", Kind: "Binding"}:                                      "io.k8s.api.core.v1.Binding",
	{Version: "v1", Kind: "Status"}:                                       modelStatus,
}

// names finds models by kind and kinds by model, over all rows.
type names struct {
	models map[schema.GroupVersionKind]string
	kinds  map[string][]schema.GroupVersionKind
	lists  map[schema.GroupVersionKind]string // list models by item kind
	custom map[string]func(v2 bool) string    // schemas of custom kinds by model, made when asked for
}

func (s *Server) names() *names {
	n := &names{
		models: map[schema.GroupVersionKind]string{}, kinds: map[string][]schema.GroupVersionKind{},
		lists: map[schema.GroupVersionKind]string{}, custom: map[string]func(bool) string{},
	}
	add := func(gvk schema.GroupVersionKind, m string) {
		if m == "" || n.models[gvk] != "" {
			return
		}
		n.models[gvk] = m
		n.kinds[m] = append(n.kinds[m], gvk)
	}
	for gvk, m := range kindModels {
		add(gvk, m)
	}
	for _, g := range s.groups() {
		for _, v := range g.versions {
			gv := schema.GroupVersion{Group: g.name, Version: v}
			add(gv.WithKind("DeleteOptions"), modelDelete)
			add(gv.WithKind("WatchEvent"), modelWatchEvent)
			for _, row := range g.rows[v] {
				if d, ok := row.Custom.(Described); ok {
					m := d.Model()
					add(row.GVK(), m)
					n.custom[m] = func(v2 bool) string {
						if v2 {
							return d.OpenAPIv2()
						}
						return d.OpenAPI()
					}
					list := m + "List"
					add(gv.WithKind(row.ListKind), list)
					n.lists[row.GVK()] = list
					n.custom[list] = func(bool) string { return customList(m, row) }
					continue
				}
				add(row.GVK(), model(row.New()))
				if row.NewList != nil {
					m := model(row.NewList())
					add(gv.WithKind(row.ListKind), m)
					n.lists[row.GVK()] = m
				}
			}
		}
	}
	return n
}

func customList(item string, row *resources.Row) string {
	text := func(doc string) map[string]any { return map[string]any{"type": "string", "description": doc} }
	doc := metav1.TypeMeta{}.SwaggerDoc()
	raw, _ := json.Marshal(map[string]any{
		"description": row.ListKind + " is a list of " + row.Kind, "type": "object", "required": []string{"items"},
		"properties": map[string]any{
			"apiVersion": text(doc["apiVersion"]), "kind": text(doc["kind"]),
			"items": map[string]any{"type": "array", "items": map[string]any{"$ref": "#/components/schemas/" + item},
				"description": "List of " + row.Plural + ". More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md"},
			"metadata": map[string]any{"$ref": "#/components/schemas/io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta"},
		},
	})
	return string(raw)
}

// withKinds adds the extension that names the kinds of a model.
func withKinds(schemaText string, kinds []schema.GroupVersionKind) string {
	if len(kinds) == 0 {
		return schemaText
	}
	type gvk struct {
		Group   string `json:"group"`
		Kind    string `json:"kind"`
		Version string `json:"version"`
	}
	list := make([]gvk, len(kinds))
	for i, k := range kinds {
		list[i] = gvk{k.Group, k.Kind, k.Version}
	}
	raw, _ := json.Marshal(list)
	body := strings.TrimSuffix(schemaText, "}")
	sep := ","
	if strings.HasSuffix(body, "{") {
		sep = ""
	}
	return body + sep + `"x-kubernetes-group-version-kind":` + string(raw) + "}"
}

// schemas writes the definitions of roots and of all that they refer to.
func (n *names) schemas(b *bytes.Buffer, roots []string, v2 bool) {
	var builtin []string
	first := true
	put := func(name, text string) {
		if !first {
			b.WriteByte(',')
		}
		first = false
		key, _ := json.Marshal(name)
		b.Write(key)
		b.WriteByte(':')
		b.WriteString(withKinds(text, n.kinds[name]))
	}
	for _, r := range roots {
		custom, ok := n.custom[r]
		if !ok {
			builtin = append(builtin, r)
			continue
		}
		text := custom(v2)
		builtin = append(builtin, openapi.References(text)...)
		if v2 {
			text = strings.ReplaceAll(text, "#/components/schemas/", "#/definitions/")
		}
		put(r, text)
	}
	for _, name := range openapi.Closure(builtin...) {
		if _, ok := n.custom[name]; ok {
			continue
		}
		text, ok := openapi.V3(name)
		if v2 {
			text, ok = openapi.V2(name)
		}
		if ok {
			put(name, text)
		}
	}
}
