// Package watchcache holds every object once, encoded, in a copy-on-write
// B-tree, and one ordered log of recent changes for the whole key space. It
// answers gets, lists and watches without going to the store.
package watchcache

import (
	"errors"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"github.com/keelson/keelson/apiserver/resources"
)

var (
	// ErrTooOld: the revision has left the log; clients see 410 Gone and list again.
	ErrTooOld = errors.New("watchcache: revision is too old")
	// ErrTooNew: the cache has not reached the revision; the caller may wait.
	ErrTooNew = errors.New("watchcache: revision is too new")
	// ErrGone: the resource is not served any more, or is defined anew.
	ErrGone = errors.New("watchcache: the resource has gone")
	// ErrSlow: the cursor fell out of the window because its reader was too slow.
	ErrSlow = errors.New("watchcache: reader is too slow")
)

// Header is what selectors, garbage collection and authorization need of an
// object without decoding it. It is shared and read-only.
type Header struct {
	Namespace, Name string
	UID             types.UID
	Labels          Labels
	Owners          []metav1.OwnerReference
	Deleting        bool // metadata.deletionTimestamp is set
}

// Label is one label of an object.
type Label struct{ Key, Value string }

// Labels are those of an object: few, and looked up less often than kept, so a list takes a fifth of a map's
// memory. It implements labels.Labels.
type Labels []Label

// Lookup returns the label's value, and whether there is one. Of two in one message the last counts.
func (l *Labels) Lookup(key string) (value string, exists bool) {
	for i := range slices.Backward(*l) {
		if (*l)[i].Key == key {
			return (*l)[i].Value, true
		}
	}
	return "", false
}

// Has reports whether there is such a label.
func (l *Labels) Has(key string) bool {
	_, has := l.Lookup(key)
	return has
}

// Get returns the label's value, "" when there is none.
func (l *Labels) Get(key string) string {
	value, _ := l.Lookup(key)
	return value
}

// Type is the kind of a change as a watcher sees it.
type Type uint8

const (
	Added Type = iota
	Modified
	Deleted
)

// Selection is what a list or watch is about. The zero Namespace and Name mean all.
type Selection struct {
	Prefix          string // the storage row's Prefix, such as "pods"
	Namespaced      bool
	Namespace, Name string
	Labels          labels.Selector // nil: everything
	Fields          fields.Selector // nil: everything; may name metadata.name and metadata.namespace
	// Row is the version whose fields are compared; nil: the one that is stored. Labels are
	// always those that are stored.
	Row *resources.Row
	// Looked is added to by a scan, one for each object that it looks at; nil: nobody asks.
	Looked *int64
}

// Event is one change as one selection sees it: an object that stops matching
// is Deleted, one that starts matching is Added. Item is the new state; for
// Deleted it is the last state that matched, with the revision of the change.
type Event struct {
	Type Type
	Item *Item
	Rev  int64
}
