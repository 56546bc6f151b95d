package resources

import (
	"fmt"
	"slices"
	"sort"
	"sync"
	"sync/atomic"

	"k8s.io/apimachinery/pkg/api/validation/path"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation"
)

// Registry is the set of rows that are served now: the built-in table and the
// rows of custom resources, which come and go. Readers never wait.
type Registry struct {
	mu     sync.Mutex // serializes writers
	state  atomic.Pointer[registryState]
	hidden []*Row // the server's own storage; it stays whatever is served
}

type registryState struct {
	rows    []*Row // table order, then custom rows in order of arrival
	byGVR   map[schema.GroupVersionResource]*Row
	byGVK   map[schema.GroupVersionKind]*Row
	stored  map[schema.GroupResource]*Row // the row whose encoding is in etcd
	prefix  map[string]*Row               // by Prefix, storage rows only
	version uint64
	moved   chan struct{} // closed when another state takes its place
}

// NewRegistry serves rows. Two rows for one resource or one etcd prefix are an error.
func NewRegistry(rows []*Row) (*Registry, error) {
	r := &Registry{}
	var served []*Row
	for _, row := range rows {
		if row.Hidden {
			r.hidden = append(r.hidden, row)
		} else {
			served = append(served, row)
		}
	}
	return r, r.Replace(served)
}

// Replace serves rows instead of what was served before.
func (r *Registry) Replace(rows []*Row) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	rows = slices.Concat(rows, r.hidden)
	s := &registryState{
		rows: make([]*Row, 0, len(rows)), byGVR: map[schema.GroupVersionResource]*Row{}, byGVK: map[schema.GroupVersionKind]*Row{},
		stored: map[schema.GroupResource]*Row{}, prefix: map[string]*Row{}, moved: make(chan struct{}),
	}
	old := r.state.Load()
	if old != nil {
		s.version = old.version + 1
	}
	for _, row := range rows {
		if !row.Hidden {
			s.rows = append(s.rows, row)
		}
		if s.byGVR[row.GVR()] != nil {
			return fmt.Errorf("resource %s is in the table twice", row.GVR())
		}
		if !row.Hidden {
			s.byGVR[row.GVR()] = row
		}
		s.byGVK[row.GVK()] = row
		if row.Stored == nil && row.Can("get") {
			if other := s.prefix[row.Prefix]; other != nil {
				return fmt.Errorf("resources %s and %s share the etcd prefix %q", row.GVR(), other.GVR(), row.Prefix)
			}
			s.prefix[row.Prefix] = row
			s.stored[row.GR()] = row
		}
	}
	// A view is read under its own group too: the row that owns the bytes answers.
	for _, row := range rows {
		if row.Stored != nil && s.stored[row.GR()] == nil {
			s.stored[row.GR()] = row.Stored
		}
	}
	r.state.Store(s)
	if old != nil {
		close(old.moved)
	}
	return nil
}

// Lookup returns the row of a served resource, or nil.
func (r *Registry) Lookup(group, version, plural string) *Row {
	return r.state.Load().byGVR[schema.GroupVersionResource{Group: group, Version: version, Resource: plural}]
}

// Kind returns the row of a served kind, or nil.
func (r *Registry) Kind(gvk schema.GroupVersionKind) *Row { return r.state.Load().byGVK[gvk] }

// Storage returns the row whose encoding of the resource is in etcd, or nil.
func (r *Registry) Storage(gr schema.GroupResource) *Row { return r.state.Load().stored[gr] }

// ByPrefix returns the storage row at an etcd prefix such as "pods" or "apps/deployments", or nil.
func (r *Registry) ByPrefix(prefix string) *Row { return r.state.Load().prefix[prefix] }

// All returns the rows in table order. The slice must not be changed.
func (r *Registry) All() []*Row { return r.state.Load().rows }

// Version grows with every Replace, so that what is derived from the rows can be kept until it changes.
func (r *Registry) Version() uint64 { return r.state.Load().version }

// Moved is closed when rows other than the present ones are served. Take it before reading the rows.
func (r *Registry) Moved() <-chan struct{} { return r.state.Load().moved }

// Groups returns the served group names, sorted, the core group ("") first.
func (r *Registry) Groups() []string {
	seen := map[string]bool{}
	var out []string
	for _, row := range r.All() {
		if !seen[row.Group] {
			seen[row.Group] = true
			out = append(out, row.Group)
		}
	}
	sort.Strings(out)
	return out
}

// DNSSubdomain is the default rule for metadata.name (RFC 1123 subdomain, 253 characters).
func DNSSubdomain(name string, prefix bool) []string {
	return validation.IsDNS1123Subdomain(maskTrailingDash(name, prefix))
}

// DNSLabel is the rule for names that become one DNS label (RFC 1123, 63 characters).
func DNSLabel(name string, prefix bool) []string {
	return validation.IsDNS1123Label(maskTrailingDash(name, prefix))
}

// PathSegment is the rule for names that only have to fit into a URL: roles and bindings ("system:node").
func PathSegment(name string, prefix bool) []string {
	if prefix {
		return path.IsValidPathSegmentPrefix(name)
	}
	return path.IsValidPathSegmentName(name)
}

// maskTrailingDash lets a generateName end in "-", as a suffix follows it.
func maskTrailingDash(name string, prefix bool) string {
	if prefix && len(name) > 1 && name[len(name)-1] == '-' {
		return name[:len(name)-2] + "a"
	}
	return name
}
