package discovery

import (
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/keelson/keelson/apiserver/codec"
	"github.com/keelson/keelson/apiserver/resources"
)

// operation is one method of one path, in terms that both versions of OpenAPI share.
type operation struct {
	method, id, action, text string
	tag                      string
	params                   []param // path and query parameters
	body                     string  // model of the request body
	bodyOptional             bool
	consumes, produces       []string
	answer                   string // model of the answer; "" for text
	codes                    []int
	kind                     schema.GroupVersionKind // empty: no resource
}

// pathItem is a path with its operations.
type pathItem struct {
	path string
	ops  []operation
}

// Media types that bodies may have.
var (
	bodyMedia   = []string{codec.MediaJSON, codec.MediaYAML, codec.MediaProtobuf}
	streamMedia = []string{codec.MediaJSON + ";stream=watch", codec.MediaProtobuf + ";stream=watch"}
	patchMedia  = []string{"application/json-patch+json", "application/merge-patch+json", "application/strategic-merge-patch+json", "application/apply-patch+yaml"}
	anyMedia    = []string{"*/*"}
	// Custom kinds have neither protobuf nor strategic merge patches.
	customMedia  = []string{codec.MediaJSON, codec.MediaYAML}
	customPatch  = []string{"application/json-patch+json", "application/merge-patch+json", "application/apply-patch+yaml"}
	customStream = []string{codec.MediaJSON, codec.MediaYAML}
)

// camel makes "rbac.authorization.k8s.io" into "rbacAuthorization"; the core group is "core".
func camel(group string) string {
	if group == "" {
		return "core"
	}
	parts := strings.FieldsFunc(strings.TrimSuffix(group, ".k8s.io"), func(r rune) bool { return r == '.' || r == '-' })
	for i := 1; i < len(parts); i++ {
		parts[i] = title(parts[i])
	}
	return strings.Join(parts, "")
}

// title makes the first letter large, and the others small.
func title(s string) string {
	if s == "" {
		return s
	}
	return strings.ToUpper(s[:1]) + s[1:]
}

// maker writes the operations of one row.
type maker struct {
	n      *names
	row    *resources.Row
	tag    string // "apps_v1"
	gv     string // "AppsV1", in operation ids
	scope  string // "Namespaced" in operation ids, or ""
	out    []pathItem
	bodies []string
	stream []string
	patch  []string
	takes  []string // media types of request bodies
	one    []param  // of the reads of one object
}

// operations lists the paths of a row.
//
// Source: the Kubernetes API reference, "Operations"; the ids are what client generators name methods after.
func (n *names) operations(row *resources.Row) []pathItem {
	gvk := row.GVK()
	m := &maker{
		n: n, row: row, tag: camel(row.Group) + "_" + row.Version, gv: title(camel(row.Group)) + title(row.Version),
		bodies: bodyMedia, stream: slices.Concat(bodyMedia, streamMedia), patch: patchMedia,
		takes: anyMedia, one: []param{prettyParam},
	}
	if row.Custom != nil {
		m.bodies, m.stream, m.patch, m.takes = customMedia, customStream, customPatch, customMedia
		m.one = with(m.one, queryOf(metav1.GetOptions{})...)
	}
	base := "/" + pathOf(gvk.GroupVersion())
	root := base + "/" + row.Plural
	watch := base + "/watch/" + row.Plural
	var place []param
	if row.Namespaced {
		m.scope, place = "Namespaced", []param{namespaceParam}
		if row.Can("list") {
			m.all(root)
		}
		if row.Can("watch") {
			m.watch(watch, nil, "watch"+m.gv+row.Kind+"ListForAllNamespaces", true)
		}
		root = base + "/namespaces/{namespace}/" + row.Plural
		watch = base + "/watch/namespaces/{namespace}/" + row.Plural
	}
	m.collection(root, place)
	m.object(root+"/{name}", place)
	for _, s := range subs(row) {
		m.sub(root+"/{name}/"+s.name, place, s)
	}
	if row.Can("watch") {
		m.watch(watch, place, "watch"+m.gv+m.scope+row.Kind+"List", true)
		m.watch(watch+"/{name}", with(place, nameParam(row.Kind)), "watch"+m.gv+m.scope+row.Kind, false)
	}
	return m.out
}

// with never appends in place: the parts of one row share their beginnings.
func with(list []param, more ...param) []param { return slices.Concat(list, more) }

func (m *maker) op(method, id, action, text string, params []param) operation {
	return operation{
		method: method, id: id, action: action, text: text, tag: m.tag, params: params,
		consumes: m.takes, produces: m.bodies, kind: m.row.GVK(), codes: []int{200},
	}
}

func (m *maker) add(path string, ops []operation) {
	if len(ops) > 0 {
		m.out = append(m.out, pathItem{path, ops})
	}
}

func (m *maker) list(id string, place []param) operation {
	o := m.op("get", id, "list", "list or watch objects of kind "+m.row.Kind, with(place, listParams...))
	if !m.row.Can("watch") || m.row.Custom != nil {
		o.text = "list objects of kind " + m.row.Kind
	}
	o.produces, o.answer = m.stream, m.n.lists[m.row.GVK()]
	return o
}

func (m *maker) all(root string) {
	m.add(root, []operation{m.list("list"+m.gv+m.row.Kind+"ForAllNamespaces", nil)})
}

func (m *maker) create(id, text string, place []param, model string) operation {
	o := m.op("post", id, "post", text, with(place, createParams...))
	o.body, o.answer, o.codes = model, model, []int{200, 201, 202}
	return o
}

func (m *maker) replace(id, text string, place []param, model string) operation {
	o := m.op("put", id, "put", text, with(place, updateParams...))
	o.body, o.answer, o.codes = model, model, []int{200, 201}
	return o
}

func (m *maker) merge(id, text string, place []param, model string) operation {
	o := m.op("patch", id, "patch", text, with(place, patchParams...))
	o.body, o.answer, o.codes, o.consumes = modelPatch, model, []int{200, 201}, m.patch
	if m.row.Custom != nil { // an apply creates those too; upstream does not say so
		o.codes = []int{200}
	}
	return o
}

func (m *maker) collection(root string, place []param) {
	var ops []operation
	row := m.row
	if row.Can("list") {
		ops = append(ops, m.list("list"+m.gv+m.scope+row.Kind, place))
	}
	if row.Can("create") {
		ops = append(ops, m.create("create"+m.gv+m.scope+row.Kind, "create "+article(row.Kind), place, m.n.models[row.GVK()]))
	}
	if row.Can("deletecollection") {
		o := m.op("delete", "delete"+m.gv+"Collection"+m.scope+row.Kind, "deletecollection", "delete collection of "+row.Kind, with(place, collectionParams...))
		o.body, o.bodyOptional, o.answer = modelDelete, true, modelStatus
		if row.Custom != nil {
			o.params, o.body = with(place, listParams...), ""
		}
		ops = append(ops, o)
	}
	m.add(root, ops)
}

func (m *maker) object(path string, place []param) {
	var ops []operation
	row, model := m.row, m.n.models[m.row.GVK()]
	id := m.gv + m.scope + row.Kind
	place = with(place, nameParam(row.Kind))
	if row.Can("get") {
		o := m.op("get", "read"+id, "get", "read the specified "+row.Kind, with(place, m.one...))
		o.answer = model
		ops = append(ops, o)
	}
	if row.Can("update") {
		ops = append(ops, m.replace("replace"+id, "replace the specified "+row.Kind, place, model))
	}
	if row.Can("patch") {
		ops = append(ops, m.merge("patch"+id, "partially update the specified "+row.Kind, place, model))
	}
	if row.Can("delete") {
		o := m.op("delete", "delete"+id, "delete", "delete "+article(row.Kind), with(place, deleteParams...))
		o.body, o.bodyOptional, o.answer, o.codes = modelDelete, true, modelStatus, []int{200, 202}
		if resources.ReturnsDeleted(row.GR()) {
			o.answer = model
		}
		ops = append(ops, o)
	}
	m.add(path, ops)
}

// connections are the kinds of options that streams take, by "<plural>/<subresource>".
var connections = map[string]struct {
	kind    string
	params  []param
	methods []string
}{
	"pods/attach":      {"PodAttachOptions", queryOf(corev1.PodAttachOptions{}), []string{"get", "post"}},
	"pods/exec":        {"PodExecOptions", queryOf(corev1.PodExecOptions{}), []string{"get", "post"}},
	"pods/portforward": {"PodPortForwardOptions", queryOf(corev1.PodPortForwardOptions{}), []string{"get", "post"}},
	"pods/proxy":       {"PodProxyOptions", queryOf(corev1.PodProxyOptions{}), proxyMethods},
	"services/proxy":   {"ServiceProxyOptions", queryOf(corev1.ServiceProxyOptions{}), proxyMethods},
	"nodes/proxy":      {"NodeProxyOptions", queryOf(corev1.NodeProxyOptions{}), proxyMethods},
}

// Connects reports whether a subresource is a connection to something else.
func Connects(sub string) bool {
	return sub == "attach" || sub == "exec" || sub == "portforward" || sub == "proxy"
}

var proxyMethods = []string{"get", "post", "put", "patch", "delete", "head", "options"}

func (m *maker) sub(path string, place []param, s sub) {
	row := m.row
	id := m.scope + row.Kind + title(s.name)
	if c, ok := connections[row.Plural+"/"+s.name]; ok && row.Group == "" {
		place = with(place, nameParam(c.kind))
		connect := func(path, id string, place []param) {
			var ops []operation
			for _, method := range c.methods {
				o := m.op(method, "connect"+m.gv+title(method)+id, "connect",
					"connect "+strings.ToUpper(method)+" requests to "+s.name+" of "+row.Kind, with(place, c.params...))
				o.produces, o.kind = anyMedia, row.GVK().GroupVersion().WithKind(c.kind)
				ops = append(ops, o)
			}
			m.add(path, ops)
		}
		connect(path, id, place)
		if s.name == "proxy" {
			connect(path+"/{path}", id+"WithPath", with(place, pathParam))
		}
		return
	}
	kind := s.kind
	if row.Custom != nil { // what upstream says of the scale of a custom kind
		kind = row.GVK()
	}
	place = with(place, nameParam(kind.Kind))
	id = m.gv + id
	model := m.n.models[s.kind]
	var ops []operation
	for _, verb := range s.verbs {
		var o operation
		switch verb {
		case "get":
			o = m.op("get", "read"+id, "get", "read "+s.name+" of the specified "+row.Kind, with(place, m.one...))
			o.answer = model
			if s.name == "log" {
				o.answer, o.produces = "", with2("text/plain", m.bodies)
				o.params = with(o.params, queryOf(corev1.PodLogOptions{})...)
			}
		case "update":
			o = m.replace("replace"+id, "replace "+s.name+" of the specified "+row.Kind, place, model)
		case "patch":
			o = m.merge("patch"+id, "partially update "+s.name+" of the specified "+row.Kind, place, model)
		case "create":
			o = m.create("create"+id, "create "+s.name+" of "+article(row.Kind), place, model)
		default:
			continue
		}
		o.kind = kind
		ops = append(ops, o)
	}
	m.add(path, ops)
}

func with2(first string, rest []string) []string { return slices.Concat([]string{first}, rest) }

// watch describes the old form of watches, of a list or of one object.
func (m *maker) watch(path string, place []param, id string, list bool) {
	if m.row.Custom != nil {
		return // they never had it
	}
	const old = ". deprecated: use the 'watch' parameter with a list operation instead"
	text, action := "watch changes to an object of kind "+m.row.Kind+old+", filtered to a single item with the 'fieldSelector' parameter.", "watch"
	if list {
		text, action = "watch individual changes to a list of "+m.row.Kind+old+".", "watchlist"
	}
	o := m.op("get", id, action, text, with(place, listParams...))
	o.produces, o.answer = m.stream, modelWatchEvent
	m.add(path, []operation{o})
}

func article(kind string) string {
	switch {
	case strings.HasSuffix(kind, "s") && !strings.HasSuffix(kind, "ss"):
		return kind // a plural has none
	case strings.ContainsRune("AEIOU", rune(kind[0])):
		return "an " + kind
	}
	return "a " + kind
}

// Parameters that many operations share.
var (
	namespaceParam = param{"namespace", "path", "string", "object name and auth scope, such as for teams and projects"}
	pathParam      = param{"path", "path", "string", "path to the resource"}
	prettyParam    = param{"pretty", "query", "string", "If 'true', then the output is pretty printed. Defaults to 'false' unless the user-agent indicates a browser or command-line HTTP tool (curl and wget)."}

	listParams       = with([]param{prettyParam}, queryOf(metav1.ListOptions{})...)
	createParams     = with([]param{prettyParam}, queryOf(metav1.CreateOptions{})...)
	updateParams     = with([]param{prettyParam}, queryOf(metav1.UpdateOptions{})...)
	patchParams      = with([]param{prettyParam}, queryOf(metav1.PatchOptions{})...)
	deleteParams     = with([]param{prettyParam}, queryOf(metav1.DeleteOptions{})...)
	collectionParams = with(deleteParams, queryOf(metav1.ListOptions{}, "watch", "allowWatchBookmarks")...)
)

func nameParam(kind string) param { return param{"name", "path", "string", "name of the " + kind} }

// pages are the paths that are no resources: what there is in a group version, in a
// group, and at all.
func page(path, id, text, tag, answer string, media []string) pathItem {
	return pathItem{path, []operation{{
		method: "get", id: id, text: text, tag: tag, answer: answer, codes: []int{200}, consumes: media, produces: media,
	}}}
}

// versionPage describes "/apis/apps/v1/".
func versionPage(gv schema.GroupVersion) pathItem {
	return page("/"+pathOf(gv)+"/", "get"+title(camel(gv.Group))+title(gv.Version)+"APIResources", "get available resources",
		camel(gv.Group)+"_"+gv.Version, modelResourceList, bodyMedia)
}

// groupPage describes "/apis/apps/".
func groupPage(group string) pathItem {
	return page("/apis/"+group+"/", "get"+title(camel(group))+"APIGroup", "get information of a group", camel(group), modelGroup, bodyMedia)
}

// otherPages are the paths above the groups and beside them, by the name of their document.
var otherPages = map[string]pathItem{
	"api":     page("/api/", "getCoreAPIVersions", "get available API versions", "core", modelVersions, bodyMedia),
	"apis":    page("/apis/", "getAPIVersions", "get available API versions", "apis", modelGroupList, bodyMedia),
	"version": page("/version/", "getCodeVersion", "get the version information for this server", "version", modelVersion, []string{codec.MediaJSON}),
	".well-known/openid-configuration": answering(page("/.well-known/openid-configuration/", "getServiceAccountIssuerOpenIDConfiguration",
		"get service account issuer OpenID configuration, also known as the 'OIDC discovery doc'", "WellKnown", "", nil), codec.MediaJSON),
	"openid/v1/jwks": answering(page("/openid/v1/jwks/", "getServiceAccountIssuerOpenIDKeyset",
		"get service account issuer OpenID JSON Web Key Set (contains public token verification keys)", "openid", "", nil), "application/jwk-set+json"),
}

func answering(p pathItem, media string) pathItem {
	p.ops[0].produces = []string{media}
	return p
}
