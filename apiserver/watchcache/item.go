package watchcache

import (
	"bytes"
	"errors"
	"fmt"
	"iter"
	"sync"
	"sync/atomic"
	"time"
	"unique"

	"github.com/keelson/keelson/apiserver/codec"
	"github.com/keelson/keelson/apiserver/resources"
)

// Item is one object at one revision, encoded. It is immutable and shared; the
// forms made of it on demand are kept within the cache's budget.
type Item struct {
	Key            string // without /registry/: "pods/default/web-0"
	Rev, CreateRev int64
	// Row is the storage row; nil while no row claims the key (a custom kind that is
	// not served yet) or while the value cannot be read. Such items are never returned.
	Row *resources.Row

	body       atomic.Pointer[body]
	node       string      // spec.nodeName of a pod: the key of the node index
	asStored   atomic.Bool // a custom object's fragment is Raw
	superseded atomic.Bool // a newer state has taken its place
	budget     *budgets    // nil outside the cache
	object     atomic.Pointer[resources.Object]
	json       atomic.Pointer[[]byte]
	made       [forms]atomic.Pointer[[]byte]
	fields     atomic.Pointer[fieldsAs]
}

// body is the message and what was read of it. The header's strings are parts of the message.
type body struct {
	raw  []byte
	head Header
	slab *slab // whose memory it is; nil: its own
}

// errNoRow is what an item without a row answers.
var errNoRow = errors.New("watchcache: no resource is served at this key")

// NewItem makes an item outside the cache of what has just been written: raw is
// the message as stored with or without resourceVersion, obj, if not nil, its
// decoded form with resourceVersion, given away.
func NewItem(row *resources.Row, key string, raw []byte, rev, createRev int64, obj resources.Object) (*Item, error) {
	row = row.Storage()
	it, err := newItem(nil, row, key, raw, rev, createRev)
	if err != nil {
		return nil, err
	}
	if obj != nil {
		it.object.Store(&obj)
	}
	return it, nil
}

// newItem reads raw without decoding it. What is not quite as it should be, but can be decoded, is encoded anew.
func newItem(s *shelf, row *resources.Row, key string, raw []byte, rev, createRev int64) (*Item, error) {
	it, err := readItem(s, row, key, raw, rev, createRev)
	if err == nil || row.New == nil {
		return it, err
	}
	obj, bad := codec.DecodeMessage(row, raw)
	if bad != nil {
		return nil, err
	}
	if raw, bad = codec.Message(row, obj); bad != nil {
		return nil, err
	}
	return readItem(s, row, key, raw, rev, createRev)
}

func readItem(s *shelf, row *resources.Row, key string, raw []byte, rev, createRev int64) (*Item, error) {
	it := &Item{Key: key, Rev: rev, CreateRev: createRev, Row: row}
	b, node, err := s.body(row, raw, rev)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", key, err)
	}
	it.node = unique.Make(node).Value() // no part of the message, which may be moved
	it.body.Store(b)
	return it, nil
}

// Raw is the object's message with its resourceVersion (JSON text for custom rows). It is read-only.
func (it *Item) Raw() []byte { return it.body.Load().raw }

// Message returns Raw.
func (it *Item) Message() []byte { return it.Raw() }

// Head is what is known of the object without decoding it.
func (it *Item) Head() *Header { return &it.body.Load().head }

// with is an item of the same object and the same bytes, for another row.
func (it *Item) with(row *resources.Row) *Item {
	out := &Item{Key: it.Key, Rev: it.Rev, CreateRev: it.CreateRev, Row: row, node: it.node, budget: it.budget}
	out.body.Store(it.body.Load())
	return out
}

// Object returns the decoded object, shared and read-only, with resourceVersion and
// without TypeMeta (custom objects carry theirs).
func (it *Item) Object() (resources.Object, error) {
	if p := it.object.Load(); p != nil {
		return *p, nil
	}
	if it.Row == nil {
		return nil, errNoRow
	}
	obj, err := codec.DecodeMessage(it.Row, it.Raw())
	if err != nil {
		return nil, fmt.Errorf("%s at revision %d: %w", it.Key, it.Rev, err)
	}
	if !it.object.CompareAndSwap(nil, &obj) {
		if p := it.object.Load(); p != nil {
			return *p, nil
		}
		return obj, nil
	}
	// A decoded pod takes about four times its encoded size.
	if !it.budget.keepObject(it) {
		it.object.Store(nil)
	}
	return obj, nil
}

// JSON returns the fragment: what stands in a list's items.
func (it *Item) JSON() ([]byte, error) {
	if p := it.json.Load(); p != nil {
		return *p, nil
	}
	if it.Row == nil {
		return nil, errNoRow
	}
	if it.asStored.Load() {
		return it.Raw(), nil
	}
	text, err := it.text()
	if err != nil {
		return nil, fmt.Errorf("%s at revision %d: %w", it.Key, it.Rev, err)
	}
	if it.Row.Custom != nil && bytes.Equal(text, it.Raw()) {
		it.asStored.Store(true)
		return it.Raw(), nil
	}
	if !it.json.CompareAndSwap(nil, &text) {
		if p := it.json.Load(); p != nil {
			return *p, nil
		}
		return text, nil
	}
	if !it.budget.keepJSON(it, len(text)) {
		it.json.Store(nil)
	}
	return text, nil
}

// AppendJSON appends the fragment to dst.
func (it *Item) AppendJSON(dst []byte) ([]byte, error) {
	text, err := it.JSON()
	return append(dst, text...), err
}

// A Form is something else that readers make of an item and ask for again. It depends on nothing but the
// item as its own row has it.
type Form uint8

const (
	FormMetadata Form = iota // the metadata as JSON text
	FormCells                // its row of a Table, up to what the time changes
	forms
)

// Form returns a form, which make makes when it is not kept. What it returns is shared and read-only.
func (it *Item) Form(f Form, make func() ([]byte, error)) ([]byte, error) {
	if p := it.made[f].Load(); p != nil {
		return *p, nil
	}
	text, err := make()
	if err != nil {
		return nil, err
	}
	if it.made[f].CompareAndSwap(nil, &text) && !it.budget.keepForm(it, f, len(text)) {
		it.made[f].Store(nil)
	}
	return text, nil
}

// text makes the fragment. What a custom row serves may differ from what is stored:
// fields are pruned and defaults set by the schema of now.
func (it *Item) text() ([]byte, error) {
	if it.Row.Custom == nil {
		return codec.FromMessage(it.Row, it.Raw())
	}
	obj, err := it.Decoded()
	if err != nil {
		return nil, err
	}
	return codec.Fragment(it.Row, obj)
}

// Decoded is Object without keeping the result: for those who need it only once.
func (it *Item) Decoded() (resources.Object, error) {
	if p := it.object.Load(); p != nil {
		return *p, nil
	}
	return codec.DecodeMessage(it.Row, it.Raw())
}

// batch is what Row.Custom may implement when converting many objects in one call is cheaper
// than one by one. What it has converted is remembered for the decoding that follows.
type batch interface {
	Ahead(stored iter.Seq[[]byte]) error
}

// Ahead prepares the decoding of items in row's version, which may be that in which they are stored:
// some may still be kept as another.
func Ahead(row *resources.Row, items []*Item) error {
	b, ok := row.Custom.(batch)
	if !ok || len(items) < 2 {
		return nil
	}
	return b.Ahead(func(yield func([]byte) bool) {
		for _, it := range items {
			if !yield(it.Raw()) {
				return
			}
		}
	})
}

// as decodes the item for row. Custom objects go straight from the version that they are stored
// as to the one that is asked for.
func (it *Item) as(row *resources.Row) (resources.Object, error) {
	if it.Row == row {
		return it.Decoded()
	}
	if row.Custom != nil {
		return codec.DecodeMessage(row, it.Raw())
	}
	obj, err := it.Object()
	if err != nil {
		return nil, err
	}
	return row.FromStored(obj)
}

// For returns the item as a view row serves it; the item itself for its own row.
func (it *Item) For(row *resources.Row) (*Item, error) {
	if row.Stored == nil || it.Row == row || row.FromStored == nil {
		return it, nil
	}
	view, err := it.as(row)
	if err != nil {
		return nil, err
	}
	raw, err := codec.Message(row, view)
	if err != nil {
		return nil, err
	}
	if it.Rev > 0 { // else of a dry run: it is at no revision
		if raw, err = codec.WithRev(row, raw, it.Rev); err != nil {
			return nil, err
		}
	}
	out := it.with(row)
	out.budget = nil
	out.body.Store(&body{raw: raw, head: *it.Head()})
	out.object.Store(&view)
	return out, nil
}

// at returns the item's content with another revision: what the watcher of a deletion gets.
func (it *Item) at(rev int64) *Item {
	out, err := newItem(nil, it.Row, it.Key, it.Raw(), rev, it.CreateRev)
	if err != nil { // it was made of the same bytes before
		return it
	}
	out.budget = it.budget
	return out
}

// budgets are those of JSON and of decoded forms: a decoded object is several times
// as large as its bytes and costs the collector time, so that there are fewer of them.
type budgets struct{ texts, objects budget }

func newBudgets(max int64, now func() time.Time) *budgets {
	return &budgets{texts: budget{max: max, now: now}, objects: budget{max: max / 4, now: now}}
}

func (b *budgets) keepJSON(it *Item, size int) bool {
	return b == nil || b.texts.keep(it, formJSON, int64(size))
}

func (b *budgets) keepForm(it *Item, f Form, size int) bool {
	return b == nil || b.texts.keep(it, formMade+formKind(f), int64(size)+formOverhead)
}

// keepObject counts a decoded object with four times its encoded size, about what a pod takes.
func (b *budgets) keepObject(it *Item) bool {
	return b == nil || b.objects.keep(it, formObject, 4*int64(len(it.Raw())))
}

type formKind uint8

const (
	formJSON formKind = iota
	formObject
	formMade // and the Form
)

// formOverhead is what keeping a small form takes beside its text.
const formOverhead = 64

// budget bounds the bytes of all forms kept. The oldest leave first; while a scan
// larger than the budget runs over unchanged items, what is kept stays, so that the
// next scan finds a part of it. Forms of changing items always enter: all watchers
// want them at this moment.
type budget struct {
	max int64
	hot atomic.Int64 // items of this revision and later are changing now

	mu   sync.Mutex // guards what follows
	used int64
	fifo []form // fifo[head:] are kept, oldest first
	head int
	now  func() time.Time
}

type form struct {
	it   *Item
	size int64
	at   int64 // unix seconds
	kind formKind
}

// young is how long an unchanged item's form cannot be pushed out by another's.
const young = 10 // seconds

func (b *budget) keep(it *Item, kind formKind, size int64) bool {
	now := b.now().Unix()
	hot := it.Rev >= b.hot.Load()
	b.mu.Lock()
	defer b.mu.Unlock()
	for b.used+size > b.max && b.head < len(b.fifo) {
		oldest := &b.fifo[b.head]
		if !hot && !oldest.it.superseded.Load() && now-oldest.at < young {
			return false
		}
		b.drop()
	}
	if size > b.max {
		return false
	}
	b.fifo = append(b.fifo, form{it, size, now, kind})
	b.used += size
	return true
}

// drop forgets the oldest form.
func (b *budget) drop() {
	f := &b.fifo[b.head]
	switch f.kind {
	case formJSON:
		f.it.json.Store(nil)
	case formObject:
		f.it.object.Store(nil)
	default:
		f.it.made[f.kind-formMade].Store(nil)
	}
	b.used -= f.size
	*f = form{}
	b.head++
	if b.head > 1024 && b.head*2 > len(b.fifo) {
		b.fifo = append([]form(nil), b.fifo[b.head:]...)
		b.head = 0
	}
}

// age drops what is older than limit: an idle server holds the encoded objects and little else.
func (b *budget) age(limit time.Duration) {
	before := b.now().Add(-limit).Unix()
	b.mu.Lock()
	defer b.mu.Unlock()
	for b.head < len(b.fifo) && (b.fifo[b.head].at < before) {
		b.drop()
	}
	if b.head == len(b.fifo) {
		b.fifo, b.head = nil, 0
	}
}
