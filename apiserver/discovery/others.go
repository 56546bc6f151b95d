package discovery

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"sort"
	"strings"

	apidiscovery "k8s.io/api/apidiscovery/v2"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/keelson/keelson/proto/openapi"
)

// Others is what is known of the servers that answer for group versions of their own,
// and in which order groups are shown.
type Others interface {
	// Version grows when anything that is known changes.
	Version() uint64
	// Priority orders groups and the versions of a group, ours and theirs: the higher first.
	Priority(gv schema.GroupVersion) (group, version int32)
	// Remotes are the group versions of the other servers. They take precedence over our rows.
	Remotes() []Remote
}

// Remote is a group version that another server answers for.
type Remote struct {
	schema.GroupVersion
	Discovery apidiscovery.APIVersionDiscovery // with its freshness
	OpenAPIv2 *Fragment                        // nil: none
	OpenAPIv3 string                           // path and query of the document, "" for none
}

// alone is Others of a server without any: groups stay in the order of the table.
type alone struct{}

func (alone) Version() uint64                             { return 0 }
func (alone) Priority(schema.GroupVersion) (int32, int32) { return 0, 0 }
func (alone) Remotes() []Remote                           { return nil }

// Fragment is the part of another server's OpenAPI v2 document that describes one group version.
type Fragment struct {
	paths       map[string]json.RawMessage
	definitions map[string]json.RawMessage // all that paths refer to, directly or not
}

// NewFragment takes what lies at or below path out of a document.
func NewFragment(document []byte, path string) (*Fragment, error) {
	var doc struct {
		Paths       map[string]json.RawMessage `json:"paths"`
		Definitions map[string]json.RawMessage `json:"definitions"`
	}
	if err := json.Unmarshal(document, &doc); err != nil {
		return nil, fmt.Errorf("OpenAPI document: %w", err)
	}
	f := &Fragment{paths: map[string]json.RawMessage{}, definitions: map[string]json.RawMessage{}}
	var follow func(raw json.RawMessage) error
	follow = func(raw json.RawMessage) error {
		var v any
		if err := json.Unmarshal(raw, &v); err != nil {
			return err
		}
		for _, name := range references(v, nil) {
			d, ok := doc.Definitions[name]
			if _, done := f.definitions[name]; done || !ok {
				continue
			}
			f.definitions[name] = d
			if err := follow(d); err != nil {
				return err
			}
		}
		return nil
	}
	for p, item := range doc.Paths {
		if p != path && !strings.HasPrefix(p, strings.TrimSuffix(path, "/")+"/") {
			continue
		}
		f.paths[p] = item
		if err := follow(item); err != nil {
			return nil, err
		}
	}
	return f, nil
}

// references are the names of the definitions that v refers to.
func references(v any, to []string) []string {
	switch v := v.(type) {
	case map[string]any:
		for k, x := range v {
			if name, ok := x.(string); ok && k == "$ref" && strings.HasPrefix(name, refV2) {
				to = append(to, strings.TrimPrefix(name, refV2))
				continue
			}
			to = references(x, to)
		}
	case []any:
		for _, x := range v {
			to = references(x, to)
		}
	}
	return to
}

// renamed is v with references to other names.
func renamed(v any, names map[string]string) any {
	switch v := v.(type) {
	case map[string]any:
		for k, x := range v {
			if ref, ok := x.(string); ok && k == "$ref" {
				if to, ok := names[strings.TrimPrefix(ref, refV2)]; ok {
					v[k] = refV2 + to
				}
				continue
			}
			v[k] = renamed(x, names)
		}
	case []any:
		for i, x := range v {
			v[i] = renamed(x, names)
		}
	}
	return v
}

// merged is the fragments with names that collide with nobody's: a definition that says
// what another of the same name says is that one, and any other is called <name>_v2.
// mine gives our own definitions. Paths are ours first.
func merged(fragments []*Fragment, mine func(name string) (string, bool)) (paths, definitions map[string]any, err error) {
	paths, definitions = map[string]any{}, map[string]any{}
	for _, f := range fragments {
		to := map[string]string{}
		names := make([]string, 0, len(f.definitions))
		for name := range f.definitions {
			names = append(names, name)
		}
		sort.Strings(names)
		content := map[string]any{}
		for _, name := range names {
			var v any
			if err := json.Unmarshal(f.definitions[name], &v); err != nil {
				return nil, nil, err
			}
			free := name
			for n := 2; ; n++ {
				other, taken := definitions[free]
				if text, ok := mine(free); ok {
					taken = true
					if err := json.Unmarshal([]byte(text), &other); err != nil {
						return nil, nil, err
					}
				}
				if !taken {
					content[free] = v
					break
				}
				if reflect.DeepEqual(plain(other), plain(v)) {
					break
				}
				free = fmt.Sprintf("%s_v%d", name, n)
			}
			if free != name {
				to[name] = free
			}
		}
		for name, v := range content {
			definitions[name] = renamed(v, to)
		}
		for p, raw := range f.paths {
			var v any
			if err := json.Unmarshal(raw, &v); err != nil {
				return nil, nil, err
			}
			paths[p] = renamed(v, to)
		}
	}
	return paths, definitions, nil
}

// plain is a definition without the kinds that it stands for: these depend on who publishes it.
func plain(v any) any {
	m, ok := v.(map[string]any)
	if !ok {
		return v
	}
	out := make(map[string]any, len(m))
	for k, x := range m {
		if k != "x-kubernetes-group-version-kind" {
			out[k] = x
		}
	}
	return out
}

// mergeV2 writes what the other servers add to the OpenAPI v2 document: paths and definitions
// as members of objects that are not empty.
func (s *Server) mergeV2(n *names, roots []string) (paths, definitions []byte, err error) {
	var fragments []*Fragment
	for _, r := range s.remotes() {
		if r.OpenAPIv2 != nil {
			fragments = append(fragments, r.OpenAPIv2)
		}
	}
	if len(fragments) == 0 {
		return nil, nil, nil
	}
	own := map[string]bool{}
	for _, name := range openapi.Closure(roots...) {
		own[name] = true
	}
	p, d, err := merged(fragments, func(name string) (string, bool) {
		if !own[name] {
			return "", false
		}
		if custom, ok := n.custom[name]; ok {
			return strings.ReplaceAll(custom(true), "#/components/schemas/", refV2), true
		}
		return openapi.V2(name)
	})
	if err != nil {
		return nil, nil, err
	}
	members := func(m map[string]any) ([]byte, error) {
		if len(m) == 0 {
			return nil, nil
		}
		raw, err := json.Marshal(m)
		if err != nil {
			return nil, err
		}
		return append([]byte(","), bytes.TrimSuffix(bytes.TrimPrefix(raw, []byte("{")), []byte("}"))...), nil
	}
	if paths, err = members(p); err == nil {
		definitions, err = members(d)
	}
	return paths, definitions, err
}

// remotes are sorted by name, so that documents do not depend on chance.
func (s *Server) remotes() []Remote {
	out := s.others.Remotes()
	sort.Slice(out, func(i, j int) bool { return out[i].String() < out[j].String() })
	return out
}

// FromList makes the aggregated form of a list of resources of one group version.
func FromList(gv schema.GroupVersion, list []metav1.APIResource) []apidiscovery.APIResourceDiscovery {
	var out []apidiscovery.APIResourceDiscovery
	at := map[string]int{}
	kind := func(r *metav1.APIResource) *metav1.GroupVersionKind {
		k := &metav1.GroupVersionKind{Group: r.Group, Version: r.Version, Kind: r.Kind}
		if k.Version == "" {
			k.Group, k.Version = gv.Group, gv.Version
		}
		return k
	}
	for i := range list {
		r := &list[i]
		if strings.Contains(r.Name, "/") {
			continue
		}
		d := apidiscovery.APIResourceDiscovery{
			Resource: r.Name, ResponseKind: kind(r), SingularResource: r.SingularName, Scope: apidiscovery.ScopeCluster,
			Verbs: r.Verbs, ShortNames: r.ShortNames, Categories: r.Categories,
		}
		if r.Namespaced {
			d.Scope = apidiscovery.ScopeNamespace
		}
		at[r.Name] = len(out)
		out = append(out, d)
	}
	for i := range list {
		r := &list[i]
		parent, sub, ok := strings.Cut(r.Name, "/")
		if !ok {
			continue
		}
		n, known := at[parent]
		if !known { // a subresource of nothing that can be listed
			n = len(out)
			at[parent] = n
			d := apidiscovery.APIResourceDiscovery{Resource: parent, Scope: apidiscovery.ScopeCluster}
			if r.Namespaced {
				d.Scope = apidiscovery.ScopeNamespace
			}
			out = append(out, d)
		}
		out[n].Subresources = append(out[n].Subresources, apidiscovery.APISubresourceDiscovery{
			Subresource: sub, ResponseKind: kind(r), Verbs: r.Verbs,
		})
	}
	return out
}
