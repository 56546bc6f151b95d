// Package resources knows every kind that the API server serves: one file per
// kind and one row per kind in table.go. Storage, verbs, discovery, OpenAPI and
// printed columns follow from the row; nothing else has to be edited to add a kind.
//
// A row is written as a typed Resource[T] and used as an erased *Row. Rows are
// immutable once they are in a Registry. The hooks of a row are pure: they read
// their arguments and the Request, and start nothing.
package resources

import (
	"context"
	"fmt"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Object is any stored API object: a k8s.io/api type, or unstructured content
// of a custom resource.
type Object interface {
	runtime.Object
	metav1.Object
}

// Reader reads the newest state of the whole tree. What it returns is shared
// and must not be changed.
type Reader interface {
	// Get returns the object, or nil when there is none. namespace is empty for
	// cluster-scoped resources.
	Get(gr schema.GroupResource, namespace, name string) (Object, error)
	// Each calls yield for every object of the resource in key order, all
	// namespaces when namespace is empty, until yield returns false.
	Each(gr schema.GroupResource, namespace string, yield func(Object) bool) error
}

// Request is what a hook may know of the request that it serves.
type Request struct {
	Context     context.Context
	User        string
	UID         string
	Groups      []string
	Extra       map[string][]string
	Now         time.Time
	Subresource string
	DryRun      bool
	Read        Reader
	// Many: this is about one of the objects that a request deletes without naming any.
	Many bool
	// Warn adds a Warning header to the answer.
	Warn func(text string)
}

// Lookup reads one object of a known type, nil when there is none or it is of another type.
func Lookup[T any](r Reader, gr schema.GroupResource, namespace, name string) (*T, error) {
	obj, err := r.Get(gr, namespace, name)
	if err != nil || obj == nil {
		return nil, err
	}
	t, ok := any(obj).(*T)
	if !ok {
		return nil, fmt.Errorf("%s %s/%s is stored as %T", gr, namespace, name, obj)
	}
	return t, nil
}

// Scope says whether a resource lives in a namespace.
type Scope int

const (
	Namespaced Scope = iota
	Cluster
)

// Column is one column of the Table form, as kubectl get prints it. Priority 0
// is always shown, 1 only with -o wide. Type is an OpenAPI type ("string",
// "integer", "date").
type Column[T any] struct {
	Name, Type, Format, Description string
	Priority                        int32
	// Cell returns a string, int64, bool or nil.
	Cell func(obj *T, now time.Time) any
}

// Part is a way to update an object: the object itself (no name) or a
// subresource that shares its storage, such as "status".
type Part[T any] struct {
	// Prepare moves what this part does not own from old to obj, and sets what
	// the server owns. On the main part old is nil for a creation; name, uid and creation time are set then.
	Prepare func(rq *Request, obj, old *T)
	// Validate reports every fault; old is nil for a creation. metadata is checked by rest, the same for all kinds.
	Validate func(rq *Request, obj, old *T) field.ErrorList
	// Warnings are sent to the client with a successful answer.
	Warnings func(rq *Request, obj, old *T) []string
	// Verbs are what discovery offers for a subresource; default: get, patch, update.
	Verbs []string
	// Reset lists the field paths that this part never writes ("spec",
	// "metadata.labels"): they are left out of managed fields.
	Reset []string
}

// Sub is a subresource that is not a Part: it has a kind or a protocol of its
// own and is served by a handler with the same Name ("scale", "binding",
// "eviction", "log", "exec", "attach", "portforward", "proxy", "token").
type Sub struct {
	Name  string
	Verbs []string // "get", "create", "update", "patch" as discovery lists them
	Kind  schema.GroupVersionKind
}

// Resource is one row of the table, typed by its Go type. Zero fields mean the
// plain behaviour: all verbs, no status, name and age columns only.
type Resource[T any] struct {
	Group, Version, Kind string
	Plural               string
	Singular             string // default: lower-case kind
	Short, Categories    []string
	Scope                Scope
	// List is the list kind's constructor, such as func() runtime.Object { return &corev1.PodList{} }.
	List func() runtime.Object
	// Prefix is the place in etcd below /registry, as upstream has it; default: Plural
	// for the core group and "<group>/<plural>" otherwise.
	Prefix string
	// Verbs replaces the default verbs; review kinds have only "create" and are not stored.
	Verbs []string

	// Default fills unset fields. It is idempotent and runs on every decode of a request.
	Default func(obj *T)
	Main    Part[T]
	// Status is the status subresource, nil when there is none.
	Status *Part[T]
	// Parts are further updates of the same object, by subresource name
	// ("approval", "finalize", "ephemeralcontainers", "resize").
	Parts map[string]Part[T]
	Subs  []Sub
	// Columns are what kubectl get prints after the name; no columns means Age alone. A column called
	// Name takes the place of the leading one. The erased Row has the complete list, Name and Age included.
	Columns []Column[T]
	// Conditions are those of an object's row in a Table, for clients that show some rows in another way; nil: none.
	Conditions func(*T) []metav1.TableRowCondition
	// Order compares rows that kubectl get shall print in another order than that of names; nil: none.
	Order func(a, b *T) int
	// Docs describe columns by name, where the column does not do so itself. What a column shows as it
	// stands in a field is described by the field's own documentation.
	Docs map[string]string
	// Fields returns the selectable fields beyond metadata.name and metadata.namespace.
	Fields func(obj *T) fields.Set
	// FieldNames lists the labels that Fields may return, so that an unknown selector is refused.
	FieldNames []string
	// FieldRefusal is what is said of a field that cannot be selected by, with %s or %q for its label, where it is not the usual.
	FieldRefusal string
	// FieldAlias maps selectable fields of a view to those of the row that stores its objects.
	FieldAlias map[string]string
	// Disguised are annotations which stand for fields of an earlier version of the kind: the object has them, its
	// metadata alone does not show them.
	Disguised []string
	// Name validates metadata.name; default: DNS-1123 subdomain. prefix is true for a generateName.
	Name func(name string, prefix bool) []string
	// Grace returns the seconds to wait before removal; 0 removes at once. nil: no graceful deletion.
	Grace func(rq *Request, obj *T, opts *metav1.DeleteOptions) int64
	// OrphanByDefault: without a propagation policy dependents stay (replicationcontrollers and jobs, which had
	// none before there was a garbage collector). OrphanWarning is for those who may not know.
	OrphanByDefault bool
	OrphanWarning   string
	// NoDependents: the garbage collector does not know the kind, and a propagation policy means nothing (events).
	NoDependents bool
	// CreateOnUpdate: PUT may create the object (leases, events, ...).
	CreateOnUpdate bool
	// UnconditionalUpdate: PUT without resourceVersion overwrites; default true, set NeedsVersion to refuse.
	NeedsVersion bool
	// Allocate runs after validation and before a write or a removal (obj is nil then): it fills in
	// what no other object may have (cluster addresses, node ports) and names what has to be written
	// beside obj. All of it is stored as one revision, or it is called again with a newer tree. An
	// error stands if it is given twice, the second time on a tree that has just been brought up to date.
	Allocate func(rq *Request, obj, old *T) ([]Beside, error)
	// TTL of the stored key; zero is for ever (events: one hour).
	TTL func(obj *T) time.Duration
	// Stored is set when this version is a view of another row's storage
	// (events.k8s.io/v1 over v1, autoscaling/v1 over v2). The conversions are total.
	Stored     *Row
	ToStored   func(obj *T) Object
	FromStored func(obj Object) *T
	// Upgrade reads what another server has stored as JSON of another version of the kind, and returns
	// JSON of this one. nil: the fields are the same.
	Upgrade func(version string, text []byte) ([]byte, error)
	// Restore puts back what the stored form of the kind does not carry (the apiVersion and kind of a
	// kind inside another have no place in protobuf). nil: it carries everything.
	Restore func(obj *T)
	// Deleting changes an object whose deletion begins, before its finalizers are looked at.
	Deleting func(rq *Request, obj *T)
	// Compare, if set, decides whether spec-like content changed and generation must grow;
	// default: any change outside metadata and status. NoGeneration: kind has no generation (configmaps).
	NoGeneration bool
	// AnyFinalizer: a finalizer may be any qualified name. Other kinds ask that it names its owner's domain.
	AnyFinalizer bool
	// WholeMeta: the metadata that an update leaves is validated as that of a new object, too, which judges a
	// generateName by Name.
	WholeMeta bool
	// LooseMeta: an update's metadata is compared with what it was only as for all kinds, so that its faults have fewer causes.
	LooseMeta bool
}

// Row is a Resource without its type parameter.
type Row struct {
	Group, Version, Kind, Plural, Singular string
	ListKind                               string
	Short, Categories                      []string
	Namespaced                             bool
	Prefix                                 string
	Verbs                                  []string
	New                                    func() Object
	NewList                                func() runtime.Object
	Default                                func(Object)
	HasDefaults                            bool // Default does something
	Main                                   ErasedPart
	Parts                                  map[string]ErasedPart // "status" among them
	Subs                                   []Sub
	Columns                                []ErasedColumn                          // complete: with Name, and Age where the kind prints it
	Conditions                             func(Object) []metav1.TableRowCondition // nil: no row has any
	Order                                  func(a, b Object) int                   // of the rows of a Table; nil: as they are stored
	Fields                                 func(Object) fields.Set                 // never nil
	FieldNames                             []string
	FieldRefusal                           string
	FieldAlias                             map[string]string
	Disguised                              []string
	Name                                   func(name string, prefix bool) []string
	Grace                                  func(rq *Request, obj Object, opts *metav1.DeleteOptions) int64 // nil: none
	OrphanByDefault, CreateOnUpdate        bool
	NoDependents                           bool
	OrphanWarning                          string
	NeedsVersion, NoGeneration             bool
	AnyFinalizer, WholeMeta, LooseMeta     bool
	Allocate                               func(rq *Request, obj, old Object) ([]Beside, error) // nil: none
	TTL                                    func(Object) time.Duration                           // nil: none
	Stored                                 *Row                                                 // nil: itself
	// ToStored and FromStored convert between this version and the stored one. Only those of
	// custom kinds can fail: somebody else's code may be asked.
	ToStored   func(Object) (Object, error)
	FromStored func(Object) (Object, error)
	// Custom is set for rows made from a CustomResourceDefinition: stored as
	// JSON, Go type *unstructured.Unstructured.
	Custom any
	// Hidden rows are only the storage of others: nobody is served this version.
	Hidden bool
	// Warning is sent with every answer: the version is deprecated.
	Warning string
	// Upgrade is Resource's; nil: nothing to do.
	Upgrade func(version string, text []byte) ([]byte, error)
	// Restore changes an object that has been decoded from its stored form; nil: nothing to do.
	Restore func(Object)
	// Deleting changes an object whose deletion is asked for, before its finalizers are looked at.
	Deleting func(rq *Request, obj Object) // nil: nothing
}

// Do is what becomes of an object that goes along. DoCheck changes nothing: the write happens only
// if the object is as it was seen.
type Do uint8

const (
	DoWrite Do = iota
	DoRemove
	DoCheck
)

// Beside is another object that a write takes along: all of them are stored, or none.
type Beside struct {
	Resource        schema.GroupResource
	Namespace, Name string
	// Seen is the resourceVersion that the object must still have; "" if there must be none.
	Seen string
	Do   Do
	// Object is what DoWrite stores, given away. UID and creation time are set by rest.
	Object Object
	// Contended: many writers want this object. They wait for each other.
	Contended bool
}

// ErasedPart is a Part over Object. Its functions are never nil.
type ErasedPart struct {
	Prepare  func(rq *Request, obj, old Object)
	Validate func(rq *Request, obj, old Object) field.ErrorList
	Warnings func(rq *Request, obj, old Object) []string
	Verbs    []string
	Reset    []string
}

// ErasedColumn is a Column over Object.
type ErasedColumn struct {
	metav1.TableColumnDefinition
	Cell func(obj Object, now time.Time) any
}

// GVK is the kind that the row serves.
func (r *Row) GVK() schema.GroupVersionKind {
	return schema.GroupVersionKind{Group: r.Group, Version: r.Version, Kind: r.Kind}
}

// GVR is the resource in its served version.
func (r *Row) GVR() schema.GroupVersionResource {
	return schema.GroupVersionResource{Group: r.Group, Version: r.Version, Resource: r.Plural}
}

// GR is the resource without version: the name in errors and RBAC rules.
func (r *Row) GR() schema.GroupResource {
	return schema.GroupResource{Group: r.Group, Resource: r.Plural}
}

// Storage is the row whose encoding is in etcd: the row itself, or the one it is a view of.
func (r *Row) Storage() *Row {
	if r.Stored != nil {
		return r.Stored
	}
	return r
}

// Terminates reports whether the kind's deletion has phases of its own: a namespace and a definition are
// only marked with a time, and their controllers empty them.
func (r *Row) Terminates() bool {
	switch r.GR() {
	case schema.GroupResource{Resource: "namespaces"}, schema.GroupResource{Group: "apiextensions.k8s.io", Resource: "customresourcedefinitions"}:
		return true
	}
	return false
}

// Can reports whether discovery offers verb.
func (r *Row) Can(verb string) bool {
	for _, v := range r.Verbs {
		if v == verb {
			return true
		}
	}
	return false
}

// Key is the object's place below /registry/: "pods/default/web-0".
func (r *Row) Key(namespace, name string) string {
	s := r.Storage()
	if s.Namespaced {
		return s.Prefix + "/" + namespace + "/" + name
	}
	return s.Prefix + "/" + name
}

// AllVerbs is what a stored resource offers unless its row says otherwise.
var AllVerbs = []string{"create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"}

func erasePart[T any](p Part[T]) ErasedPart {
	e := ErasedPart{
		Prepare:  func(*Request, Object, Object) {},
		Validate: func(*Request, Object, Object) field.ErrorList { return nil },
		Warnings: func(*Request, Object, Object) []string { return nil },
		Verbs:    p.Verbs,
		Reset:    p.Reset,
	}
	if e.Verbs == nil {
		e.Verbs = []string{"get", "patch", "update"}
	}
	cast := func(o Object) *T {
		if o == nil {
			return nil
		}
		return any(o).(*T)
	}
	if p.Prepare != nil {
		e.Prepare = func(rq *Request, obj, old Object) { p.Prepare(rq, cast(obj), cast(old)) }
	}
	if p.Validate != nil {
		e.Validate = func(rq *Request, obj, old Object) field.ErrorList { return p.Validate(rq, cast(obj), cast(old)) }
	}
	if p.Warnings != nil {
		e.Warnings = func(rq *Request, obj, old Object) []string { return p.Warnings(rq, cast(obj), cast(old)) }
	}
	return e
}

// Row erases the type. *T must be an Object: a table that breaks this does not start.
func (r Resource[T]) Row() *Row {
	if _, ok := any(new(T)).(Object); !ok {
		panic(fmt.Sprintf("resources: *%T is not an API object", *new(T)))
	}
	as := func(o Object) *T { return any(o).(*T) }
	row := &Row{
		Group: r.Group, Version: r.Version, Kind: r.Kind, Plural: r.Plural, Singular: r.Singular,
		ListKind: r.Kind + "List", Short: r.Short, Categories: r.Categories,
		Namespaced: r.Scope == Namespaced, Prefix: r.Prefix, Verbs: r.Verbs,
		New:     func() Object { return any(new(T)).(Object) },
		NewList: r.List,
		Default: func(Object) {},
		Main:    erasePart(r.Main), Parts: map[string]ErasedPart{}, Subs: r.Subs,
		Fields: func(Object) fields.Set { return nil }, FieldNames: r.FieldNames, FieldRefusal: r.FieldRefusal, FieldAlias: r.FieldAlias, Disguised: r.Disguised, Name: r.Name,
		OrphanByDefault: r.OrphanByDefault, OrphanWarning: r.OrphanWarning, NoDependents: r.NoDependents, CreateOnUpdate: r.CreateOnUpdate,
		NeedsVersion: r.NeedsVersion, NoGeneration: r.NoGeneration, AnyFinalizer: r.AnyFinalizer, WholeMeta: r.WholeMeta, LooseMeta: r.LooseMeta, Stored: r.Stored, Upgrade: r.Upgrade,
	}
	if row.Singular == "" {
		row.Singular = strings.ToLower(r.Kind)
	}
	if row.Prefix == "" {
		row.Prefix = r.Plural
		if r.Group != "" {
			row.Prefix = r.Group + "/" + r.Plural
		}
	}
	if row.Verbs == nil {
		row.Verbs = AllVerbs
	}
	if r.Default != nil {
		row.Default, row.HasDefaults = func(o Object) { r.Default(as(o)) }, true
	}
	if r.Status != nil {
		row.Parts["status"] = erasePart(*r.Status)
	}
	for name, p := range r.Parts {
		row.Parts[name] = erasePart(p)
	}
	if r.Fields != nil {
		row.Fields = func(o Object) fields.Set { return r.Fields(as(o)) }
	}
	if row.Name == nil {
		row.Name = DNSSubdomain
	}
	if r.Grace != nil {
		row.Grace = func(rq *Request, o Object, opts *metav1.DeleteOptions) int64 { return r.Grace(rq, as(o), opts) }
	}
	if r.Allocate != nil {
		row.Allocate = func(rq *Request, obj, old Object) ([]Beside, error) {
			var n, o *T
			if obj != nil {
				n = as(obj)
			}
			if old != nil {
				o = as(old)
			}
			return r.Allocate(rq, n, o)
		}
	}
	if r.Restore != nil {
		row.Restore = func(o Object) { r.Restore(as(o)) }
	}
	if r.Deleting != nil {
		row.Deleting = func(rq *Request, o Object) { r.Deleting(rq, as(o)) }
	}
	if r.TTL != nil {
		row.TTL = func(o Object) time.Duration { return r.TTL(as(o)) }
	}
	if r.ToStored != nil {
		row.ToStored = func(o Object) (Object, error) { return r.ToStored(as(o)), nil }
		row.FromStored = func(o Object) (Object, error) { return any(r.FromStored(o)).(Object), nil }
	}
	if r.Conditions != nil {
		row.Conditions = func(o Object) []metav1.TableRowCondition { return r.Conditions(as(o)) }
	}
	if r.Order != nil {
		row.Order = func(a, b Object) int { return r.Order(as(a), as(b)) }
	}
	columns, named := r.Columns, false
	for _, c := range columns {
		named = named || c.Name == "Name"
	}
	if columns == nil {
		columns = []Column[T]{ageColumn[T]()}
	}
	if !named {
		columns = append([]Column[T]{nameColumn[T]()}, columns...)
	}
	for _, c := range columns {
		if c.Description == "" {
			c.Description = r.Docs[c.Name]
		}
		row.Columns = append(row.Columns, ErasedColumn{
			TableColumnDefinition: metav1.TableColumnDefinition{
				Name: c.Name, Type: c.Type, Format: c.Format, Description: c.Description, Priority: c.Priority,
			},
			Cell: func(o Object, now time.Time) any { return c.Cell(as(o), now) },
		})
	}
	return row
}
