package watchcache

import (
	"strings"

	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	labelop "k8s.io/apimachinery/pkg/selection"

	"github.com/keelson/keelson/apiserver/resources"
)

// query is a Selection made ready: where to look and what is left to compare.
type query struct {
	start string // keys begin with this (it ends in "/"), or are this when exact
	exact bool
	name  string // compare the name (all namespaces, one name)
	node  string // look in the node index
	label labels.Selector
	// labels are those that an object must have to be matched by label, as hashes: where to look.
	labels []uint64
	field  fields.Selector
	row    *resources.Row // whose fields are compared; nil: the storage row's

	looked int64 // how many items were looked at
	failed error // the first item whose fields could not be had
}

const nodeName = "spec.nodeName"

func (s Selection) query() query {
	q := query{label: s.Labels, field: s.Fields, row: s.Row}
	if q.label != nil && q.label.Empty() {
		q.label = nil
	}
	if q.label != nil {
		wanted, _ := q.label.Requirements()
		for _, r := range wanted {
			if op := r.Operator(); op != labelop.Equals && op != labelop.DoubleEquals && op != labelop.In {
				continue
			}
			if values := r.ValuesUnsorted(); len(values) == 1 {
				q.labels = append(q.labels, hash(Label{r.Key(), values[0]}))
			}
		}
	}
	namespace, name := s.Namespace, s.Name
	if q.field != nil && q.field.Empty() {
		q.field = nil
	}
	if q.field != nil {
		if v, ok := q.field.RequiresExactMatch("metadata.name"); ok && name == "" {
			name = v
		}
		if v, ok := q.field.RequiresExactMatch("metadata.namespace"); ok && namespace == "" && s.Namespaced {
			namespace = v
		}
		if v, ok := q.field.RequiresExactMatch(nodeName); ok && s.Prefix == "pods" {
			q.node = v
		}
	}
	q.start = s.Prefix + "/"
	switch {
	case !s.Namespaced && name != "":
		q.start, q.exact = q.start+name, true
	case s.Namespaced && namespace != "" && name != "":
		q.start, q.exact = q.start+namespace+"/"+name, true
	case s.Namespaced && namespace != "":
		q.start += namespace + "/"
	default:
		q.name = name
	}
	return q
}

// Index names what a scan of the selection is narrowed by, as upstream does; "" for none.
func (s Selection) Index() string {
	if s.Fields != nil && s.Prefix == "pods" {
		if _, ok := s.Fields.RequiresExactMatch(nodeName); ok {
			return "f:" + nodeName
		}
	}
	return ""
}

// matches reports whether the selection sees the item; nil is seen by none. What cannot be
// decided is not seen, and q.failed says why.
func (q *query) matches(it *Item) bool {
	if it == nil || it.Row == nil {
		return false
	}
	if q.exact {
		if it.Key != q.start {
			return false
		}
	} else if !strings.HasPrefix(it.Key, q.start) {
		return false
	}
	if q.name != "" && it.Head().Name != q.name {
		return false
	}
	if q.node != "" && it.node != q.node {
		return false
	}
	return (q.label == nil || q.label.Matches(&it.Head().Labels)) && (q.field == nil || q.field.Matches(fieldsOf{it, q}))
}

// fieldsOf looks fields up where the header knows them, and else in what the item keeps.
type fieldsOf struct {
	it *Item
	q  *query
}

func (f fieldsOf) kept() *fieldsAs {
	kept, err := f.it.selectable(f.q.row)
	if err != nil && f.q.failed == nil {
		f.q.failed = err
	}
	return kept
}

func (f fieldsOf) Has(field string) bool {
	switch field {
	case "metadata.name", "metadata.namespace":
		return true
	}
	return f.kept().Has(field)
}

func (f fieldsOf) Get(field string) string {
	switch field {
	case "metadata.name":
		return f.it.Head().Name
	case "metadata.namespace":
		return f.it.Head().Namespace
	case nodeName:
		if f.it.node != "" {
			return f.it.node
		}
	}
	return f.kept().Get(field)
}

// topicKey names a part of the log that cursors follow: all of a prefix ("pods"), a
// namespace ("pods/default"), one key, or the pods of a node ("pods" and the node).
type topicKey struct{ at, node string }

func (q *query) topic() topicKey {
	at := strings.TrimSuffix(q.start, "/")
	if q.node != "" && !q.exact {
		// The index is by node alone; namespace and the rest are compared.
		prefix, _, _ := strings.Cut(at, "/")
		return topicKey{prefix, q.node}
	}
	return topicKey{at: at}
}

// topics calls f with every topic that the change of one item concerns. The
// strings are parts of the key: nothing is allocated.
func topics(it *Item, f func(topicKey)) {
	if it == nil || it.Row == nil {
		return
	}
	prefix := len(it.Row.Prefix)
	if prefix >= len(it.Key) {
		return
	}
	f(topicKey{at: it.Key[:prefix]})
	if it.Row.Namespaced {
		if i := strings.IndexByte(it.Key[prefix+1:], '/'); i >= 0 {
			f(topicKey{at: it.Key[:prefix+1+i]})
		}
	}
	f(topicKey{at: it.Key})
	if it.node != "" {
		f(topicKey{it.Key[:prefix], it.node})
	}
}
