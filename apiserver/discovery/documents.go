package discovery

import (
	"bytes"
	"encoding/json"
	"slices"
	"sort"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/keelson/keelson/apiserver/resources"
)

var codeText = map[int]string{200: "OK", 201: "Created", 202: "Accepted"}

func ref(prefix, model string) map[string]any {
	if model == "" {
		return map[string]any{"type": "string"}
	}
	return map[string]any{"$ref": prefix + model}
}

// common is what both versions say of an operation.
func (o *operation) common() map[string]any {
	out := map[string]any{"tags": []string{o.tag}, "operationId": o.id, "description": o.text}
	if o.action != "" {
		out["x-kubernetes-action"] = o.action
	}
	if !o.kind.Empty() {
		out["x-kubernetes-group-version-kind"] = map[string]any{"group": o.kind.Group, "kind": o.kind.Kind, "version": o.kind.Version}
	}
	return out
}

func (o *operation) v3(params []param) map[string]any {
	out := o.common()
	if len(params) > 0 {
		var list []any
		for _, p := range params {
			list = append(list, p.v3())
		}
		out["parameters"] = list
	}
	content := func(media []string, model string) map[string]any {
		c := map[string]any{}
		for _, m := range media {
			c[m] = map[string]any{"schema": ref(refV3, model)}
		}
		return c
	}
	if o.body != "" {
		body := map[string]any{"content": content(o.consumes, o.body)}
		if !o.bodyOptional {
			body["required"] = true
		}
		out["requestBody"] = body
	}
	responses := map[string]any{"401": map[string]any{"description": "Unauthorized"}}
	for _, c := range o.codes {
		responses[strconv.Itoa(c)] = map[string]any{"description": codeText[c], "content": content(o.produces, o.answer)}
	}
	out["responses"] = responses
	return out
}

func (o *operation) v2(params []param, shared shared) map[string]any {
	out := o.common()
	out["schemes"] = []string{"https"}
	if o.produces != nil {
		out["produces"] = o.produces
	}
	if o.consumes != nil {
		out["consumes"] = o.consumes
	}
	var list []any
	if o.body != "" {
		body := parameterV2{Name: "body", In: "body", Required: !o.bodyOptional, Schema: ref(refV2, o.body)}
		if strings.HasPrefix(o.body, "io.k8s.apimachinery") {
			list = append(list, shared.ref("body", body))
		} else {
			list = append(list, body)
		}
	}
	for _, p := range params {
		list = append(list, shared.ref(p.name, p.v2()))
	}
	if list != nil {
		out["parameters"] = list
	}
	responses := map[string]any{"401": map[string]any{"description": "Unauthorized"}}
	for _, c := range o.codes {
		responses[strconv.Itoa(c)] = map[string]any{"description": codeText[c], "schema": ref(refV2, o.answer)}
	}
	out["responses"] = responses
	return out
}

// paths writes the paths of a document, sorted. shared is nil for OpenAPI v3.
func paths(b *bytes.Buffer, items []pathItem, shared shared) error {
	sort.Slice(items, func(i, j int) bool { return items[i].path < items[j].path })
	for i, it := range items {
		doc := map[string]any{}
		common, rest := it.split()
		for k := range it.ops {
			o := &it.ops[k]
			if shared != nil {
				doc[o.method] = o.v2(rest[k], shared)
			} else {
				doc[o.method] = o.v3(rest[k])
			}
		}
		var params []any
		for _, p := range common {
			if shared != nil {
				params = append(params, shared.ref(p.name, p.v2()))
			} else {
				params = append(params, p.v3())
			}
		}
		if params != nil {
			doc["parameters"] = params
		}
		raw, err := json.Marshal(doc)
		if err != nil {
			return err
		}
		if i > 0 {
			b.WriteByte(',')
		}
		key, _ := json.Marshal(it.path)
		b.Write(key)
		b.WriteByte(':')
		b.Write(raw)
	}
	return nil
}

// roots are the models that operations name, and the kinds of rows.
func (n *names) roots(items []pathItem, rows []*resources.Row) []string {
	var out []string
	add := func(m string) {
		if m != "" && !slices.Contains(out, m) {
			out = append(out, m)
		}
	}
	for _, it := range items {
		for _, o := range it.ops {
			add(o.body)
			add(o.answer)
		}
	}
	for _, row := range rows {
		add(n.models[row.GVK()])
	}
	sort.Strings(out)
	return out
}

func (s *Server) info() string {
	raw, _ := json.Marshal(map[string]string{"title": "Kubernetes", "version": s.version})
	return string(raw)
}

const security = `"BearerToken":{"description":"Bearer Token authentication","type":"apiKey","name":"authorization","in":"header"}`

// items are the paths of a group version.
func (n *names) items(gv schema.GroupVersion, rows []*resources.Row) []pathItem {
	var items []pathItem
	if rows[0].Custom == nil {
		items = append(items, versionPage(gv))
	}
	for _, row := range rows {
		items = append(items, n.operations(row)...)
	}
	return items
}

// documentV3 describes items and everything that they and rows refer to.
func (s *Server) documentV3(n *names, items []pathItem, rows []*resources.Row) ([]byte, error) {
	var b bytes.Buffer
	b.WriteString(`{"openapi":"3.0.0","info":` + s.info() + `,"paths":{`)
	if err := paths(&b, items, nil); err != nil {
		return nil, err
	}
	b.WriteString(`},"components":{`)
	if roots := n.roots(items, rows); len(roots) > 0 {
		b.WriteString(`"schemas":{`)
		n.schemas(&b, roots, false)
		b.WriteString(`},`)
	}
	b.WriteString(`"securitySchemes":{` + security + `}}}`)
	return b.Bytes(), nil
}

func (s *Server) documentV2() ([]byte, error) {
	n := s.names()
	var rows []*resources.Row
	var items []pathItem
	for _, g := range s.groups() {
		for _, v := range g.versions {
			if len(g.rows[v]) == 0 { // another server's
				continue
			}
			rows = append(rows, g.rows[v]...)
			items = append(items, n.items(schema.GroupVersion{Group: g.name, Version: v}, g.rows[v])...)
		}
		if g.described() {
			items = append(items, groupPage(g.name))
		}
	}
	for _, it := range otherPages {
		items = append(items, it)
	}
	var b bytes.Buffer
	b.WriteString(`{"swagger":"2.0","info":` + s.info() + `,"paths":{`)
	once := shared{}
	if err := paths(&b, items, once); err != nil {
		return nil, err
	}
	roots := n.roots(items, rows)
	more, definitions, err := s.mergeV2(n, roots)
	if err != nil {
		return nil, err
	}
	b.Write(more)
	b.WriteString(`},"definitions":{`)
	n.schemas(&b, roots, true)
	b.Write(definitions)
	b.WriteString(`},"parameters":`)
	raw, err := json.Marshal(once)
	if err != nil {
		return nil, err
	}
	b.Write(raw)
	b.WriteString(`,"securityDefinitions":{` + security + `},"security":[{"BearerToken":[]}]}`)
	return b.Bytes(), nil
}
