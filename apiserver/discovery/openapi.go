package discovery

import (
	"bytes"
	"crypto/sha512"
	"encoding/hex"
	"encoding/json"
	"net/http"
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
	generatorSum = "2" // grows when the documents change with nothing else changing
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

// sum identifies the document of a path without making it: the definitions, the
// rows and the writer decide its content.
func (s *Server) sum(path string, rows []*resources.Row) string {
	h := sha512.New()
	for _, part := range []string{generatorSum, openapi.Sum(), s.version, path} {
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
	// Selectable is what lists say with x-kubernetes-selectable-fields.
	Selectable() []any
	// OpenAPISum changes when the schema does.
	OpenAPISum() string
}

// page finds the operations of a document of OpenAPI v3 by its path: a group version,
// a group, or one of otherPages. sum identifies its content before it is made.
func (s *Server) page(path string) (make func(n *names) []pathItem, rows []*resources.Row, sum string) {
	parts := strings.Split(path, "/")
	if it, ok := otherPages[path]; ok {
		return func(*names) []pathItem { return []pathItem{it} }, nil, s.sum(path, nil)
	}
	for _, g := range s.groups() {
		if len(parts) == 2 && parts[0] == "apis" && parts[1] == g.name && g.described() {
			return func(*names) []pathItem { return []pathItem{groupPage(g.name)} }, nil, s.sum(path, nil)
		}
		for _, v := range g.versions {
			if gv := (schema.GroupVersion{Group: g.name, Version: v}); pathOf(gv) == path && len(g.rows[v]) > 0 {
				rows = g.rows[v]
				return func(n *names) []pathItem { return n.items(gv, rows) }, rows, s.sum(path, rows)
			}
		}
	}
	return nil, nil, ""
}

// pages lists the paths of all documents of OpenAPI v3.
func (s *Server) pages() []string {
	var out []string
	for p := range otherPages {
		out = append(out, p)
	}
	for _, g := range s.groups() {
		if g.described() {
			out = append(out, "apis/"+g.name)
		}
		for _, v := range g.versions {
			if g.remote[v] == nil {
				out = append(out, pathOf(schema.GroupVersion{Group: g.name, Version: v}))
			}
		}
	}
	return out
}

func (s *Server) openapiV3(w http.ResponseWriter, r *http.Request, path string) {
	if path == "" {
		if strings.HasSuffix(r.URL.Path, "/") { // not the index: a document without a name
			w.WriteHeader(http.StatusNotFound)
			return
		}
		type entry struct {
			ServerRelativeURL string `json:"serverRelativeURL"`
		}
		d, err := s.doc("openapi/v3", func() ([]byte, string, error) {
			paths := map[string]entry{}
			for _, p := range s.pages() {
				_, _, sum := s.page(p)
				paths[p] = entry{"/openapi/v3/" + p + "?hash=" + sum}
			}
			for _, r := range s.remotes() {
				if p := pathOf(r.GroupVersion); r.OpenAPIv3 != "" { // its server answers; nothing is kept here
					paths[p] = entry{r.OpenAPIv3}
				}
			}
			raw, err := json.Marshal(map[string]any{"paths": paths})
			return raw, mediaJSON, err
		})
		serveOr500(w, r, d, err)
		return
	}
	items, rows, now := s.page(path)
	if items == nil {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	binary, ok := wantsProto(r.Header.Get("Accept"), protoV3, protoV3Old)
	if !ok {
		w.WriteHeader(http.StatusNotAcceptable)
		return
	}
	if hash := r.URL.Query().Get("hash"); hash != "" {
		if hash != now {
			http.Redirect(w, r, "/openapi/v3/"+path+"?hash="+now, http.StatusMovedPermanently)
			return
		}
		w.Header().Set("Cache-Control", "public, immutable")
	}
	key := "openapi/v3/" + path
	if binary {
		key += "/proto"
	}
	d, err := s.doc(key, func() ([]byte, string, error) {
		n := s.names()
		body, err := s.documentV3(n, items(n), rows)
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

// Models of the pages that are no resources.
const (
	modelVersions     = "io.k8s.apimachinery.pkg.apis.meta.v1.APIVersions"
	modelGroupList    = "io.k8s.apimachinery.pkg.apis.meta.v1.APIGroupList"
	modelGroup        = "io.k8s.apimachinery.pkg.apis.meta.v1.APIGroup"
	modelResourceList = "io.k8s.apimachinery.pkg.apis.meta.v1.APIResourceList"
	modelVersion      = "io.k8s.apimachinery.pkg.version.Info"
)

// Where references lead to in the two versions.
const (
	refV2 = "#/definitions/"
	refV3 = "#/components/schemas/"
)

// kindModels are the kinds of subresources that are no rows.
var kindModels = map[schema.GroupVersionKind]string{
	{Group: "autoscaling", Version: "v1", Kind: "Scale"}:                  "io.k8s.api.autoscaling.v1.Scale",
	{Group: "policy", Version: "v1", Kind: "Eviction"}:                    "io.k8s.api.policy.v1.Eviction",
	{Group: "authentication.k8s.io", Version: "v1", Kind: "TokenRequest"}: "io.k8s.api.authentication.v1.TokenRequest",
	{Version: "v1", Kind: "Binding"}:                                      "io.k8s.api.core.v1.Binding",
	{Version: "v1", Kind: "Status"}:                                       modelStatus,
}

// groupVersions are those that Kubernetes ever had and still knows, served or not: in
// each of them DeleteOptions and WatchEvent are kinds. Source: the extension
// x-kubernetes-group-version-kind of the two, as v1.36 publishes them.
const groupVersions = `v1 admission.k8s.io/v1 admission.k8s.io/v1beta1 admissionregistration.k8s.io/v1
admissionregistration.k8s.io/v1alpha1 admissionregistration.k8s.io/v1beta1 apiextensions.k8s.io/v1
apiextensions.k8s.io/v1beta1 apiregistration.k8s.io/v1 apiregistration.k8s.io/v1beta1 apps/v1 apps/v1beta1 apps/v1beta2
authentication.k8s.io/v1 authentication.k8s.io/v1alpha1 authentication.k8s.io/v1beta1 authorization.k8s.io/v1
authorization.k8s.io/v1beta1 autoscaling/v1 autoscaling/v2 batch/v1 batch/v1beta1 certificates.k8s.io/v1
certificates.k8s.io/v1alpha1 certificates.k8s.io/v1beta1 coordination.k8s.io/v1 coordination.k8s.io/v1alpha2
coordination.k8s.io/v1beta1 discovery.k8s.io/v1 discovery.k8s.io/v1beta1 events.k8s.io/v1 events.k8s.io/v1beta1
extensions/v1beta1 flowcontrol.apiserver.k8s.io/v1 flowcontrol.apiserver.k8s.io/v1beta1
flowcontrol.apiserver.k8s.io/v1beta2 flowcontrol.apiserver.k8s.io/v1beta3 imagepolicy.k8s.io/v1alpha1
internal.apiserver.k8s.io/v1alpha1 networking.k8s.io/v1 networking.k8s.io/v1beta1 node.k8s.io/v1 node.k8s.io/v1alpha1
node.k8s.io/v1beta1 policy/v1 policy/v1beta1 rbac.authorization.k8s.io/v1 rbac.authorization.k8s.io/v1alpha1
rbac.authorization.k8s.io/v1beta1 resource.k8s.io/v1 resource.k8s.io/v1alpha3 resource.k8s.io/v1beta1
resource.k8s.io/v1beta2 scheduling.k8s.io/v1 scheduling.k8s.io/v1alpha2 scheduling.k8s.io/v1beta1 storage.k8s.io/v1
storage.k8s.io/v1alpha1 storage.k8s.io/v1beta1 storagemigration.k8s.io/v1beta1`

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
	for _, kind := range []string{"APIGroup", "APIGroupList", "APIResourceList", "APIVersions"} {
		add(v1kind(kind), "io.k8s.apimachinery.pkg.apis.meta.v1."+kind)
	}
	for _, name := range strings.Fields(groupVersions) {
		gv, _ := schema.ParseGroupVersion(name)
		add(gv.WithKind("DeleteOptions"), modelDelete)
		add(gv.WithKind("WatchEvent"), modelWatchEvent)
	}
	for _, g := range s.groups() {
		for _, v := range g.versions {
			gv := schema.GroupVersion{Group: g.name, Version: v}
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
					n.custom[list] = func(v2 bool) string { return customList(m, row, d.Selectable(), v2) }
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

// customList is the schema of the lists of a custom kind. fields is of the items: v3 has descriptions beside a
// reference only around it.
func customList(item string, row *resources.Row, fields []any, v2 bool) string {
	text := func(doc string) map[string]any { return map[string]any{"type": "string", "description": doc} }
	doc := metav1.TypeMeta{}.SwaggerDoc()
	ref := map[string]any{"$ref": "#/components/schemas/io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta"}
	metadata := map[string]any{"allOf": []any{ref}}
	if v2 {
		metadata = ref
	}
	metadata["description"] = metav1.PartialObjectMetadataList{}.SwaggerDoc()["metadata"]
	list := map[string]any{
		"description": row.ListKind + " is a list of " + row.Kind, "type": "object", "required": []string{"items"},
		"properties": map[string]any{
			"apiVersion": text(doc["apiVersion"]), "kind": text(doc["kind"]),
			"items": map[string]any{"type": "array", "items": map[string]any{"$ref": "#/components/schemas/" + item},
				"description": "List of " + row.Plural + ". More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md"},
			"metadata": metadata,
		},
	}
	if len(fields) > 0 {
		list["x-kubernetes-selectable-fields"] = fields
	}
	raw, _ := json.Marshal(list)
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
