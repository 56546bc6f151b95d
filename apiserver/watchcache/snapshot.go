package watchcache

import (
	"context"
	"hash/maphash"
	"slices"
	"strings"
	"sync"

	"github.com/tidwall/btree"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/keelson/keelson/apiserver/resources"
)

// Snapshot is the whole state at one revision. It costs nothing to take and never
// changes; it holds the objects of its revision in memory while it is referenced.
type Snapshot struct {
	rev int64
	trees
}

// trees is the state: every item by key, the pods that have a node by node and key, and the keys
// of all items by label.
type trees struct {
	keys, nodes *btree.BTreeG[*Item]
	marks       *btree.BTreeG[mark]
}

// mark says that the object at a key has a label of this hash. Marks name keys and not items, so that a
// change which leaves the labels alone leaves them alone too; of labels with one hash the object tells which it has.
type mark struct {
	label uint64
	key   string
}

var labelSeed = maphash.MakeSeed()

func hash(l Label) uint64 { return maphash.Comparable(labelSeed, l) }

func newTrees() trees {
	opts := btree.Options{NoLocks: true}
	return trees{
		keys: btree.NewBTreeGOptions(func(a, b *Item) bool { return a.Key < b.Key }, opts),
		nodes: btree.NewBTreeGOptions(func(a, b *Item) bool {
			if a.node != b.node {
				return a.node < b.node
			}
			return a.Key < b.Key
		}, opts),
		marks: btree.NewBTreeGOptions(func(a, b mark) bool {
			if a.label != b.label {
				return a.label < b.label
			}
			return a.key < b.key
		}, opts),
	}
}

// copy is a second version of the trees; nodes are copied when either side writes.
func (t trees) copy() trees { return trees{t.keys.Copy(), t.nodes.Copy(), t.marks.Copy()} }

// set replaces prev by it; either may be nil.
func (t trees) set(it, prev *Item) {
	if prev != nil && prev.node != "" && (it == nil || it.node != prev.node) {
		t.nodes.Delete(prev)
	}
	t.mark(it, prev)
	if it == nil {
		if prev != nil {
			t.keys.Delete(prev)
		}
		return
	}
	t.keys.Set(it)
	if it.node != "" {
		t.nodes.Set(it)
	}
}

// mark does set's part for labels.
func (t trees) mark(it, prev *Item) {
	var is, was Labels
	if it != nil {
		is = it.Head().Labels
	}
	if prev != nil {
		was = prev.Head().Labels
	}
	if slices.Equal(is, was) {
		return
	}
	for _, l := range was {
		t.marks.Delete(mark{hash(l), prev.Key})
	}
	for _, l := range is {
		t.marks.Set(mark{hash(l), it.Key})
	}
}

// rarest returns the label (its hash) that the fewest objects below start have, as far as a short look at each tells.
func (t trees) rarest(wanted []uint64, start string) uint64 {
	const look = 100
	best, fewest := wanted[0], look+1
	for _, l := range wanted {
		n := 0
		t.marks.Ascend(mark{l, start}, func(m mark) bool {
			if m.label != l || !strings.HasPrefix(m.key, start) || n == look {
				return false
			}
			n++
			return true
		})
		if n < fewest {
			best, fewest = l, n
		}
	}
	return best
}

// probes are items to look for.
var probes = sync.Pool{New: func() any { return new(Item) }}

// get returns the item also when it has no row.
func (t trees) get(key string) *Item {
	probe := probes.Get().(*Item)
	probe.Key = key
	it, _ := t.keys.Get(probe)
	probe.Key = ""
	probes.Put(probe)
	return it
}

// Rev is the revision at which the state was this.
func (s *Snapshot) Rev() int64 { return s.rev }

// Get returns the item at a key, or nil.
func (s *Snapshot) Get(key string) *Item {
	it := s.get(key)
	if it == nil || it.Row == nil {
		return nil
	}
	return it
}

// Scan calls yield for every item that sel sees with a key greater than after ("" is
// from the first), in key order, until yield returns false. It fails when it cannot be told
// whether sel sees an object, which happens only to fields of a version that is not the stored one.
func (s *Snapshot) Scan(sel Selection, after string, yield func(*Item) bool) error {
	q := sel.query()
	if sel.Looked != nil {
		defer func() { *sel.Looked += q.looked }()
	}
	if q.exact {
		q.looked++
		if it := s.Get(q.start); q.start > after && q.matches(it) {
			yield(it)
		}
		return q.failed
	}
	from := q.start
	if after >= from {
		from = after + "\x00"
	}
	if q.node != "" {
		s.nodes.Ascend(&Item{node: q.node, Key: from}, func(it *Item) bool {
			if it.node != q.node {
				return false
			}
			q.looked++
			return !q.matches(it) || yield(it)
		})
		return q.failed
	}
	if len(q.labels) > 0 {
		label := q.labels[0]
		if len(q.labels) > 1 {
			label = s.rarest(q.labels, q.start)
		}
		var near btree.PathHint
		var probe Item
		s.marks.Ascend(mark{label, from}, func(m mark) bool {
			if m.label != label || !strings.HasPrefix(m.key, q.start) {
				return false
			}
			probe.Key = m.key
			it, _ := s.keys.GetHint(&probe, &near)
			q.looked++
			if !q.matches(it) {
				return q.failed == nil
			}
			return yield(it)
		})
		return q.failed
	}
	all := q.label == nil && q.field == nil && q.name == ""
	s.keys.Ascend(&Item{Key: from}, func(it *Item) bool {
		if !strings.HasPrefix(it.Key, q.start) {
			return false
		}
		q.looked++
		if it.Row == nil || !(all || q.matches(it)) {
			return q.failed == nil
		}
		return yield(it)
	})
	return q.failed
}

// Count is the number of items of a prefix, or of one namespace of it, with keys greater than after.
func (s *Snapshot) Count(prefix, namespace, after string) int {
	start := prefix + "/"
	if namespace != "" {
		start += namespace + "/"
	}
	from, n := start, 0
	if after >= from {
		from = after + "\x00"
	}
	s.keys.Ascend(&Item{Key: from}, func(it *Item) bool {
		if !strings.HasPrefix(it.Key, start) {
			return false
		}
		if it.Row != nil {
			n++
		}
		return true
	})
	return n
}

// Counts is the number of items by resource ("pods", "deployments.apps").
func (s *Snapshot) Counts() map[string]int {
	byRow := map[*resources.Row]int{}
	s.keys.Scan(func(it *Item) bool {
		byRow[it.Row]++
		return true
	})
	out := make(map[string]int, len(byRow))
	for row, n := range byRow {
		if row != nil {
			out[row.GR().String()] += n
		}
	}
	return out
}

// reader is the newest state as hooks read it.
type reader struct{ c *Cache }

func (r reader) Get(gr schema.GroupResource, namespace, name string) (resources.Object, error) {
	row := r.c.reg.Storage(gr)
	if row == nil {
		return nil, nil
	}
	it := r.c.Snapshot().Get(row.Key(namespace, name))
	if it == nil {
		return nil, nil
	}
	return it.Object()
}

// certain is a reader that does not take the cache's word for it that an object does not exist.
type certain struct{ reader }

func (r certain) Get(gr schema.GroupResource, namespace, name string) (resources.Object, error) {
	obj, err := r.reader.Get(gr, namespace, name)
	if err != nil || obj != nil {
		return obj, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), askTimeout)
	defer cancel()
	if _, err := r.c.Fresh(ctx); err != nil {
		return nil, err
	}
	return r.reader.Get(gr, namespace, name)
}

func (r reader) Each(gr schema.GroupResource, namespace string, yield func(resources.Object) bool) error {
	row := r.c.reg.Storage(gr)
	if row == nil {
		return nil
	}
	var failed error
	sel := Selection{Prefix: row.Prefix, Namespaced: row.Namespaced, Namespace: namespace}
	if err := r.c.Snapshot().Scan(sel, "", func(it *Item) bool {
		obj, err := it.Object()
		if err != nil {
			failed = err
			return false
		}
		return yield(obj)
	}); err != nil {
		return err
	}
	return failed
}
