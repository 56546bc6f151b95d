package discovery

import (
	"crypto/sha256"
	"encoding/base64"
	"slices"
	"sort"

	apidiscovery "k8s.io/api/apidiscovery/v2"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/version"

	"github.com/keelson/keelson/apiserver/resources"
)

// group is one API group: its versions, the preferred one first, their rows, and what other
// servers answer for.
type group struct {
	name     string
	versions []string
	rows     map[string][]*resources.Row
	remote   map[string]*Remote
	priority int32 // of the version that comes first of all
	first    string
}

// described: the group has a page of its own in OpenAPI. Groups of custom kinds have none.
func (g *group) described() bool {
	for _, rows := range g.rows {
		if len(rows) > 0 && rows[0].Custom != nil {
			return false
		}
	}
	return g.name != ""
}

// groups are in order of their priority; those of the same, in order of their names.
func (s *Server) groups() []*group {
	var out []*group
	by := map[string]*group{}
	add := func(gv schema.GroupVersion) *group {
		g := by[gv.Group]
		if g == nil {
			g = &group{name: gv.Group, rows: map[string][]*resources.Row{}, remote: map[string]*Remote{}}
			by[gv.Group] = g
			out = append(out, g)
		}
		if g.rows[gv.Version] == nil && g.remote[gv.Version] == nil {
			g.versions = append(g.versions, gv.Version)
			// Registered names begin with the version, and they decide between groups of one priority.
			name := gv.Version + "." + gv.Group
			if p, _ := s.others.Priority(gv); p > g.priority || g.first == "" || p == g.priority && name < g.first {
				g.priority, g.first = p, name
			}
		}
		return g
	}
	remotes := s.remotes()
	for i := range remotes {
		r := &remotes[i]
		add(r.GroupVersion).remote[r.Version] = r
	}
	for _, row := range s.reg.All() {
		gv := row.GVR().GroupVersion()
		if g := add(gv); g.remote[row.Version] == nil {
			g.rows[row.Version] = append(g.rows[row.Version], row)
		}
	}
	if _, none := s.others.(alone); !none {
		sort.SliceStable(out, func(i, j int) bool {
			if out[i].priority != out[j].priority {
				return out[i].priority > out[j].priority
			}
			return out[i].first < out[j].first
		})
	}
	for _, g := range out {
		sort.SliceStable(g.versions, func(i, j int) bool {
			_, a := s.others.Priority(schema.GroupVersion{Group: g.name, Version: g.versions[i]})
			_, b := s.others.Priority(schema.GroupVersion{Group: g.name, Version: g.versions[j]})
			if a != b {
				return a > b
			}
			return version.CompareKubeAwareVersionStrings(g.versions[i], g.versions[j]) > 0
		})
		for _, rows := range g.rows {
			sort.SliceStable(rows, func(i, j int) bool { return rows[i].Plural < rows[j].Plural })
		}
	}
	return out
}

func (g *group) group() metav1.APIGroup {
	out := metav1.APIGroup{Name: g.name}
	for _, v := range g.versions {
		out.Versions = append(out.Versions, metav1.GroupVersionForDiscovery{
			GroupVersion: schema.GroupVersion{Group: g.name, Version: v}.String(), Version: v,
		})
	}
	out.PreferredVersion = out.Versions[0]
	return out
}

// sub is a subresource as discovery shows it.
type sub struct {
	name  string
	kind  schema.GroupVersionKind
	verbs []string
}

// PartVerbs are the verbs of a part: finalize is only ever written.
func PartVerbs(name string) []string {
	if name == "finalize" {
		return []string{"update"}
	}
	return []string{"get", "patch", "update"}
}

func subs(row *resources.Row) []sub {
	var out []sub
	for name := range row.Parts {
		out = append(out, sub{name, row.GVK(), PartVerbs(name)})
	}
	for _, s := range row.Subs {
		kind := s.Kind
		if kind.Empty() {
			kind = row.GVK()
		}
		out = append(out, sub{s.Name, kind, s.Verbs})
	}
	sort.SliceStable(out, func(i, j int) bool {
		if row.Custom != nil && (out[i].name == "status") != (out[j].name == "status") {
			return out[i].name == "status" // of custom resources, as upstream
		}
		return out[i].name < out[j].name
	})
	return out
}

func apiResources(row *resources.Row) []metav1.APIResource {
	out := []metav1.APIResource{{
		Name: row.Plural, SingularName: row.Singular, Namespaced: row.Namespaced, Kind: row.Kind,
		Verbs: shownVerbs(row), ShortNames: row.Short, Categories: row.Categories, StorageVersionHash: storageHash(row),
	}}
	for _, s := range subs(row) {
		r := metav1.APIResource{Name: row.Plural + "/" + s.name, Namespaced: row.Namespaced, Kind: s.kind.Kind, Verbs: s.verbs}
		if s.kind.GroupVersion() != row.GVK().GroupVersion() {
			r.Group, r.Version = s.kind.Group, s.kind.Version
		}
		out = append(out, r)
	}
	return out
}

// shownVerbs are what discovery tells. Custom kinds on their way out are only taken away, though what holds one can be
// patched out of it.
func shownVerbs(row *resources.Row) []string {
	if row.Custom == nil || row.Can("create") {
		return row.Verbs
	}
	return slices.DeleteFunc(slices.Clone(row.Verbs), func(v string) bool { return v == "patch" || v == "update" })
}

// storageHash changes when objects are stored as another kind; only equality means anything.
func storageHash(row *resources.Row) string {
	if !row.Can("watch") {
		return ""
	}
	gvk := row.Storage().GVK()
	sum := sha256.Sum256([]byte(gvk.Group + "/" + gvk.Version + "/" + gvk.Kind))
	return base64.StdEncoding.EncodeToString(sum[:8])
}

func (g *group) discovery() apidiscovery.APIGroupDiscovery {
	out := apidiscovery.APIGroupDiscovery{ObjectMeta: metav1.ObjectMeta{Name: g.name}}
	for _, v := range g.versions {
		if r := g.remote[v]; r != nil {
			out.Versions = append(out.Versions, r.Discovery)
			continue
		}
		vd := apidiscovery.APIVersionDiscovery{Version: v, Freshness: apidiscovery.DiscoveryFreshnessCurrent}
		for _, row := range g.rows[v] {
			vd.Resources = append(vd.Resources, resource(row))
		}
		out.Versions = append(out.Versions, vd)
	}
	return out
}

func resource(row *resources.Row) apidiscovery.APIResourceDiscovery {
	// Group and version are left out where they are those of the resource, unless it is a custom one.
	kind := func(k schema.GroupVersionKind) *metav1.GroupVersionKind {
		if row.Custom == nil && k.GroupVersion() == row.GVK().GroupVersion() {
			return &metav1.GroupVersionKind{Kind: k.Kind}
		}
		return &metav1.GroupVersionKind{Group: k.Group, Version: k.Version, Kind: k.Kind}
	}
	r := apidiscovery.APIResourceDiscovery{
		Resource: row.Plural, ResponseKind: kind(row.GVK()), SingularResource: row.Singular, Scope: apidiscovery.ScopeCluster,
		Verbs: shownVerbs(row), ShortNames: row.Short, Categories: row.Categories,
	}
	if row.Namespaced {
		r.Scope = apidiscovery.ScopeNamespace
	}
	for _, s := range subs(row) {
		r.Subresources = append(r.Subresources, apidiscovery.APISubresourceDiscovery{
			Subresource: s.name, ResponseKind: kind(s.kind), Verbs: s.verbs,
		})
	}
	return r
}
