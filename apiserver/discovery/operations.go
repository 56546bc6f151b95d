package discovery

import (
	"bytes"
	"encoding/json"
	"sort"
	"strings"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/keelson/keelson/apiserver/resources"
)

// operation is one method of one path, in terms that both versions of OpenAPI share.
type operation struct {
	method, id, action, text string
	tag                      string
	params                   []string // names in queryParams
	body                     string   // model of the request body
	bodyOptional             bool
	patch                    bool
	answer                   string // model of the answer; "" for text
	codes                    []int
	kind                     schema.GroupVersionKind
}

// pathItem is a path with its operations.
type pathItem struct {
	path  string
	names []string // path parameters
	query []string // query parameters of all operations
	ops   []operation
}

type param struct{ kind, text string }

// queryParams by name. Source: Kubernetes API reference, "Common parameters".
var queryParams = map[string]param{
	"allowWatchBookmarks":  {"boolean", "allowWatchBookmarks requests watch events with type BOOKMARK. Servers that do not implement bookmarks may ignore this flag."},
	"continue":             {"string", "The continue option should be set when retrieving more results from the server."},
	"dryRun":               {"string", "When present, indicates that modifications should not be persisted. An invalid or unrecognized dryRun directive will result in an error response and no further processing of the request. Valid values are: - All: all dry run stages will be processed"},
	"fieldManager":         {"string", "fieldManager is a name associated with the actor or entity that is making these changes."},
	"fieldSelector":        {"string", "A selector to restrict the list of returned objects by their fields. Defaults to everything."},
	"fieldValidation":      {"string", "fieldValidation instructs the server on how to handle objects in the request (POST/PUT/PATCH) containing unknown or duplicate fields. Valid values are: Ignore, Warn, Strict."},
	"force":                {"boolean", "Force is going to \"force\" Apply requests. It means user will re-acquire conflicting fields owned by other people."},
	"gracePeriodSeconds":   {"integer", "The duration in seconds before the object should be deleted."},
	"labelSelector":        {"string", "A selector to restrict the list of returned objects by their labels. Defaults to everything."},
	"limit":                {"integer", "limit is a maximum number of responses to return for a list call."},
	"orphanDependents":     {"boolean", "Deprecated: please use the PropagationPolicy. Should the dependent objects be orphaned."},
	"pretty":               {"string", "If 'true', then the output is pretty printed."},
	"propagationPolicy":    {"string", "Whether and how garbage collection will be performed: 'Orphan', 'Background' or 'Foreground'."},
	"resourceVersion":      {"string", "resourceVersion sets a constraint on what resource versions a request may be served from."},
	"resourceVersionMatch": {"string", "resourceVersionMatch determines how resourceVersion is applied to list calls."},
	"sendInitialEvents":    {"boolean", "sendInitialEvents=true may be set together with watch=true: the stream begins with the current state."},
	"timeoutSeconds":       {"integer", "Timeout for the list/watch call. This limits the duration of the call, regardless of any activity or inactivity."},
	"watch":                {"boolean", "Watch for changes to the described resources and return them as a stream of add, update, and remove notifications."},
	"name":                 {"string", "name of the object"},
	"namespace":            {"string", "object name and auth scope, such as for teams and projects"},
	"path":                 {"string", "path to the resource"},
}

var (
	listQuery   = []string{"allowWatchBookmarks", "continue", "fieldSelector", "labelSelector", "limit", "resourceVersion", "resourceVersionMatch", "sendInitialEvents", "timeoutSeconds", "watch"}
	writeQuery  = []string{"dryRun", "fieldManager", "fieldValidation"}
	patchQuery  = []string{"dryRun", "fieldManager", "fieldValidation", "force"}
	deleteQuery = []string{"dryRun", "gracePeriodSeconds", "orphanDependents", "propagationPolicy"}
	bulkQuery   = []string{"continue", "dryRun", "fieldSelector", "gracePeriodSeconds", "labelSelector", "limit", "orphanDependents", "propagationPolicy", "resourceVersion", "resourceVersionMatch", "sendInitialEvents", "timeoutSeconds"}
)

// camel makes "rbac.authorization.k8s.io" into "rbacAuthorization"; the core group is "core".
func camel(group string) string {
	if group == "" {
		return "core"
	}
	parts := strings.Split(strings.TrimSuffix(group, ".k8s.io"), ".")
	for i := 1; i < len(parts); i++ {
		parts[i] = title(parts[i])
	}
	return strings.ReplaceAll(strings.Join(parts, ""), "-", "_")
}

func title(s string) string {
	if s == "" {
		return s
	}
	return strings.ToUpper(s[:1]) + s[1:]
}

// operations lists the paths of a row.
func (n *names) operations(row *resources.Row) []pathItem {
	gvk := row.GVK()
	self, list := n.models[gvk], n.lists[gvk]
	tag := camel(row.Group) + "_" + row.Version
	gv := title(camel(row.Group)) + title(row.Version)
	scope := ""
	base := "/" + pathOf(gvk.GroupVersion())
	var place []string
	if row.Namespaced {
		scope, place = "Namespaced", []string{"namespace"}
		base += "/namespaces/{namespace}"
	}
	root := base + "/" + row.Plural
	op := func(method, id, action, text string, params []string, body, answer string, codes ...int) operation {
		return operation{method: method, id: id, action: action, text: text, tag: tag, params: params, body: body, answer: answer, codes: codes, kind: gvk}
	}
	var out []pathItem
	collection := pathItem{path: root, names: place, query: []string{"pretty"}}
	if row.Can("list") {
		collection.ops = append(collection.ops, op("get", "list"+gv+scope+row.Kind, "list", "list or watch objects of kind "+row.Kind, listQuery, "", list, 200))
	}
	if row.Can("create") {
		collection.ops = append(collection.ops, op("post", "create"+gv+scope+row.Kind, "post", "create "+article(row.Kind), writeQuery, self, self, 200, 201, 202))
	}
	if row.Can("deletecollection") {
		o := op("delete", "delete"+gv+"Collection"+scope+row.Kind, "deletecollection", "delete collection of "+row.Kind, bulkQuery, modelDelete, modelStatus, 200)
		o.bodyOptional = true
		collection.ops = append(collection.ops, o)
	}
	if len(collection.ops) > 0 {
		out = append(out, collection)
	}
	single := pathItem{path: root + "/{name}", names: append([]string{"name"}, place...), query: []string{"pretty"}}
	single.ops = n.objectOps(row, op, gv+scope+row.Kind, self)
	if row.Can("delete") {
		o := op("delete", "delete"+gv+scope+row.Kind, "delete", "delete "+article(row.Kind), deleteQuery, modelDelete, modelStatus, 200, 202)
		o.bodyOptional = true
		single.ops = append(single.ops, o)
	}
	if len(single.ops) > 0 {
		out = append(out, single)
	}
	for _, s := range subs(row) {
		out = append(out, n.subPaths(row, s, op, single, gv+scope+row.Kind)...)
	}
	if row.Namespaced && row.Can("list") {
		all := "/" + pathOf(gvk.GroupVersion()) + "/" + row.Plural
		out = append(out, pathItem{path: all, query: append([]string{"pretty"}, listQuery...), ops: []operation{
			op("get", "list"+gv+row.Kind+"ForAllNamespaces", "list", "list or watch objects of kind "+row.Kind, nil, "", list, 200),
		}})
	}
	return append(out, watchPaths(row, op, gv, scope, place)...)
}

type maker func(method, id, action, text string, params []string, body, answer string, codes ...int) operation

func (n *names) objectOps(row *resources.Row, op maker, id, self string) []operation {
	var ops []operation
	if row.Can("get") {
		ops = append(ops, op("get", "read"+id, "get", "read the specified "+row.Kind, nil, "", self, 200))
	}
	if row.Can("update") {
		ops = append(ops, op("put", "replace"+id, "put", "replace the specified "+row.Kind, writeQuery, self, self, 200, 201))
	}
	if row.Can("patch") {
		o := op("patch", "patch"+id, "patch", "partially update the specified "+row.Kind, patchQuery, modelPatch, self, 200, 201)
		o.patch = true
		ops = append(ops, o)
	}
	return ops
}

func (n *names) subPaths(row *resources.Row, s sub, op maker, parent pathItem, id string) []pathItem {
	m := n.models[s.kind]
	item := pathItem{path: parent.path + "/" + s.name, names: parent.names, query: []string{"pretty"}}
	id += title(s.name)
	add := func(o operation) {
		o.kind = s.kind
		item.ops = append(item.ops, o)
	}
	stream := m == "" || s.name == "exec" || s.name == "attach" || s.name == "portforward" || s.name == "proxy" || s.name == "log"
	for _, verb := range s.verbs {
		text := s.name + " of the specified " + row.Kind
		switch {
		case stream && verb == "get":
			action := "connect"
			if s.name == "log" {
				action = "get"
			}
			add(op("get", "connect"+title("get")+id, action, "connect GET requests to "+text, nil, "", "", 200))
		case stream && verb == "create":
			add(op("post", "connect"+title("post")+id, "connect", "connect POST requests to "+text, nil, "", "", 200))
		case stream:
		case verb == "get":
			add(op("get", "read"+id, "get", "read "+text, nil, "", m, 200))
		case verb == "update":
			add(op("put", "replace"+id, "put", "replace "+text, writeQuery, m, m, 200, 201))
		case verb == "patch":
			o := op("patch", "patch"+id, "patch", "partially update "+text, patchQuery, modelPatch, m, 200, 201)
			o.patch = true
			add(o)
		case verb == "create":
			add(op("post", "create"+id, "post", "create "+text, writeQuery, m, m, 200, 201, 202))
		}
	}
	if len(item.ops) == 0 {
		return nil
	}
	return []pathItem{item}
}

// watchPaths are the old form of watches, still described.
func watchPaths(row *resources.Row, op maker, gv, scope string, place []string) []pathItem {
	if !row.Can("watch") {
		return nil
	}
	base := "/" + pathOf(row.GVK().GroupVersion()) + "/watch"
	query := append([]string{"pretty"}, listQuery...)
	const old = ". deprecated: use the 'watch' parameter with a list operation instead"
	make := func(path string, names []string, id, action string) pathItem {
		return pathItem{path: path, names: names, query: query, ops: []operation{
			op("get", id, action, "watch changes to objects of kind "+row.Kind+old, nil, "", modelWatchEvent, 200),
		}}
	}
	root := base + "/" + row.Plural
	var out []pathItem
	if row.Namespaced {
		out = append(out, make(root, nil, "watch"+gv+row.Kind+"ListForAllNamespaces", "watchlist"))
		root = base + "/namespaces/{namespace}/" + row.Plural
	}
	return append(out,
		make(root, place, "watch"+gv+scope+row.Kind+"List", "watchlist"),
		make(root+"/{name}", append([]string{"name"}, place...), "watch"+gv+scope+row.Kind, "watch"))
}

func article(kind string) string {
	if strings.ContainsRune("AEIOU", rune(kind[0])) {
		return "an " + kind
	}
	return "a " + kind
}

var (
	bodyMedia   = []string{"application/json", "application/yaml", "application/vnd.kubernetes.protobuf"}
	streamMedia = []string{"application/json;stream=watch", "application/vnd.kubernetes.protobuf;stream=watch"}
	patchMedia  = []string{"application/json-patch+json", "application/merge-patch+json", "application/strategic-merge-patch+json", "application/apply-patch+yaml", "application/apply-patch+cbor"}
)

var codeText = map[int]string{200: "OK", 201: "Created", 202: "Accepted"}

func (o *operation) media() []string {
	if o.action == "list" || o.action == "watch" || o.action == "watchlist" {
		return append(append([]string{}, bodyMedia...), streamMedia...)
	}
	return bodyMedia
}

func (o *operation) gvk() map[string]any {
	return map[string]any{"group": o.kind.Group, "kind": o.kind.Kind, "version": o.kind.Version}
}

func paramV3(name, in string) map[string]any {
	p := queryParams[name]
	out := map[string]any{"name": name, "in": in, "description": p.text, "schema": map[string]any{"type": p.kind, "uniqueItems": true}}
	if in == "path" {
		out["required"] = true
	}
	return out
}

func refV3(m string) map[string]any {
	if m == "" {
		return map[string]any{"type": "string"}
	}
	return map[string]any{"$ref": "#/components/schemas/" + m}
}

func (o *operation) v3() map[string]any {
	out := map[string]any{
		"tags": []string{o.tag}, "description": o.text, "operationId": o.id,
		"x-kubernetes-action": o.action, "x-kubernetes-group-version-kind": o.gvk(),
	}
	var params []any
	for _, p := range o.params {
		params = append(params, paramV3(p, "query"))
	}
	if params != nil {
		out["parameters"] = params
	}
	if o.body != "" {
		content := map[string]any{}
		media := []string{"*/*"}
		if o.patch {
			media = patchMedia
		}
		for _, m := range media {
			content[m] = map[string]any{"schema": refV3(o.body)}
		}
		body := map[string]any{"content": content}
		if !o.bodyOptional {
			body["required"] = true
		}
		out["requestBody"] = body
	}
	responses := map[string]any{"401": map[string]any{"description": "Unauthorized"}}
	for _, c := range o.codes {
		content := map[string]any{}
		media := o.media()
		if o.answer == "" {
			media = []string{"*/*"}
		}
		for _, m := range media {
			content[m] = map[string]any{"schema": refV3(o.answer)}
		}
		responses[itoa(c)] = map[string]any{"description": codeText[c], "content": content}
	}
	out["responses"] = responses
	return out
}

func itoa(c int) string {
	return string([]byte{byte('0' + c/100), byte('0' + c/10%10), byte('0' + c%10)})
}

func paramV2(name, in string) map[string]any {
	p := queryParams[name]
	out := map[string]any{"name": name, "in": in, "description": p.text, "type": p.kind, "uniqueItems": true}
	if in == "path" {
		out["required"] = true
	}
	return out
}

func (o *operation) v2() map[string]any {
	out := map[string]any{
		"tags": []string{o.tag}, "description": o.text, "operationId": o.id, "schemes": []string{"https"},
		"produces": o.media(), "consumes": []string{"*/*"},
		"x-kubernetes-action": o.action, "x-kubernetes-group-version-kind": o.gvk(),
	}
	if o.patch {
		out["consumes"] = patchMedia
	}
	ref := func(m string) map[string]any {
		if m == "" {
			return map[string]any{"type": "string"}
		}
		return map[string]any{"$ref": "#/definitions/" + m}
	}
	var params []any
	if o.body != "" {
		body := map[string]any{"name": "body", "in": "body", "schema": ref(o.body)}
		if !o.bodyOptional {
			body["required"] = true
		}
		params = append(params, body)
	}
	for _, p := range o.params {
		params = append(params, paramV2(p, "query"))
	}
	if params != nil {
		out["parameters"] = params
	}
	responses := map[string]any{"401": map[string]any{"description": "Unauthorized"}}
	for _, c := range o.codes {
		responses[itoa(c)] = map[string]any{"description": codeText[c], "schema": ref(o.answer)}
	}
	out["responses"] = responses
	return out
}

// writePaths writes the paths of rows, sorted.
func (n *names) writePaths(b *bytes.Buffer, rows []*resources.Row, v2 bool) error {
	var items []pathItem
	for _, row := range rows {
		items = append(items, n.operations(row)...)
	}
	sort.Slice(items, func(i, j int) bool { return items[i].path < items[j].path })
	for i, it := range items {
		doc := map[string]any{}
		for _, o := range it.ops {
			if v2 {
				doc[o.method] = o.v2()
			} else {
				doc[o.method] = o.v3()
			}
		}
		var params []any
		for _, p := range it.names {
			if v2 {
				params = append(params, paramV2(p, "path"))
			} else {
				params = append(params, paramV3(p, "path"))
			}
		}
		for _, p := range it.query {
			if v2 {
				params = append(params, paramV2(p, "query"))
			} else {
				params = append(params, paramV3(p, "query"))
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

// roots are the models that the paths of rows name.
func (n *names) roots(rows []*resources.Row) []string {
	seen := map[string]bool{}
	var out []string
	add := func(m string) {
		if m != "" && !seen[m] {
			seen[m] = true
			out = append(out, m)
		}
	}
	for _, row := range rows {
		for _, it := range n.operations(row) {
			for _, o := range it.ops {
				add(o.body)
				add(o.answer)
			}
		}
		add(n.models[row.GVK()])
	}
	sort.Strings(out)
	return out
}

func (s *Server) info() string {
	raw, _ := json.Marshal(map[string]string{"title": "Kubernetes", "version": s.version})
	return string(raw)
}

func (s *Server) documentV3(gv schema.GroupVersion, rows []*resources.Row) ([]byte, error) {
	n := s.names()
	var b bytes.Buffer
	b.WriteString(`{"openapi":"3.0.0","info":` + s.info() + `,"paths":{`)
	if err := n.writePaths(&b, rows, false); err != nil {
		return nil, err
	}
	b.WriteString(`},"components":{"schemas":{`)
	n.schemas(&b, n.roots(rows), false)
	b.WriteString(`},"securitySchemes":{"BearerToken":{"type":"apiKey","description":"Bearer Token authentication","name":"authorization","in":"header"}}}}`)
	return b.Bytes(), nil
}

func (s *Server) documentV2() ([]byte, error) {
	n := s.names()
	var rows []*resources.Row
	for _, g := range s.groups() {
		for _, v := range g.versions {
			rows = append(rows, g.rows[v]...)
		}
	}
	var b bytes.Buffer
	b.WriteString(`{"swagger":"2.0","info":` + s.info() + `,"paths":{`)
	if err := n.writePaths(&b, rows, true); err != nil {
		return nil, err
	}
	roots := n.roots(rows)
	paths, definitions, err := s.mergeV2(n, roots)
	if err != nil {
		return nil, err
	}
	b.Write(paths)
	b.WriteString(`},"definitions":{`)
	n.schemas(&b, roots, true)
	b.Write(definitions)
	b.WriteString(`},"securityDefinitions":{"BearerToken":{"description":"Bearer Token authentication","type":"apiKey","name":"authorization","in":"header"}},"security":[{"BearerToken":[]}]}`)
	return b.Bytes(), nil
}
