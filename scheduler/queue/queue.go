// Package queue holds the pods that wait for a node, and says which is next.
//
// The main calls are [Queue.Add], [Queue.Pop], [Queue.Failed] and [Queue.Wake]. A pod is in one place:
//
//	         Add (gate open)                     Pop
//	gated ───────────────────► active ◄────────────────────► in hand
//	  ▲                          ▲  ▲                          │    │
//	  │ Update (new gate)   Tick │  │ Wake, back-off over      │    │ Failed with refusers
//	  └──────────────────────────┤  └───────────────── unschedulable◄┘
//	                             │                             │
//	                             └── backing off ◄─────────────┘ Wake, back-off not over
//	                                      ▲ Failed without refusers (an error of ours or of the API)
//
// It promises: pops go by priority, then by the order of entering; a pod that was refused is tried again
// only after an event that could turn the refusal of one of its refusers into a yes, or after
// StayUnschedulable; between two tries of one pod lie at least 1 s, doubled with each failure, 10 s at
// most (room made by preemption is used at once). It is plain data, advanced by calls that say what time
// it is: no clock, no goroutine, no lock. Its size is bounded by the number of pending pods.
//
// To debug: [Queue.Dump], which /debug/queue shows. To test: scripts in testdata.
package queue

import (
	"container/heap"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/keelson/keelson/scheduler/framework"
)

// Config has the names of KubeSchedulerConfiguration.
type Config struct {
	InitialBackoff, MaxBackoff time.Duration
	// StayUnschedulable is after how long a refused pod is tried again without an event.
	StayUnschedulable time.Duration
}

// Place is where a pod is.
type Place uint8

// The places.
const (
	Active Place = iota
	BackingOff
	Unschedulable
	Gated
	InHand
)

func (p Place) String() string {
	return [...]string{"active", "backoff", "unschedulable", "gated", "in hand"}[p]
}

// Item is a pod in the queue. Its fields are for reading.
type Item struct {
	Pod      *framework.Pod
	Place    Place
	Attempts int
	Entered  time.Time // when the pod was first seen ready to be scheduled
	Since    time.Time // when it came to Place
	Refusers []string  // after a refusal
	Message  string    // why the last try failed, or what the gate waits for

	sequence uint64
	retryAt  time.Time // BackingOff: when it is over; Unschedulable: the earliest retry after a wake
	mask     uint64    // of the refusers
	index    int       // in its heap
}

// Queue is made by New.
type Queue struct {
	cfg     Config
	table   []framework.Plugin
	less    func(a, b *framework.Pod, aEntered, bEntered uint64) bool
	next    uint64
	items   map[types.UID]*Item
	active  byLess
	backoff byTime
	refused map[uint64]map[*Item]struct{} // unschedulable pods by the mask of their refusers
	flushed time.Time

	arrivals arrivals
}

// New makes an empty queue; less orders the active pods.
func New(cfg Config, table []framework.Plugin, less func(a, b *framework.Pod, aEntered, bEntered uint64) bool) *Queue {
	q := &Queue{cfg: cfg, table: table, less: less, items: map[types.UID]*Item{}, refused: map[uint64]map[*Item]struct{}{}}
	q.active.less = less
	return q
}

// Add takes in a pod that is new, or the new state of one that is here. A changed state is an event for
// the pod itself.
func (q *Queue) Add(p *framework.Pod, now time.Time) {
	it := q.items[p.UID]
	if it == nil {
		q.next++
		it = &Item{Pod: p, Entered: now, Since: now, sequence: q.next, index: -1, Place: InHand}
		q.items[p.UID] = it
		q.place(it, now, causeAdd)
		return
	}
	old := it.Pod
	it.Pod = p
	switch it.Place {
	case InHand:
	case Gated:
		if gate(q.table, p.Pod) != it.Message {
			q.next++
			it.Entered, it.sequence = now, q.next
			q.place(it, now, causeUpdate)
		}
	case Active:
		if gate(q.table, p.Pod) != "" {
			q.place(it, now, causeUpdate)
		} else if old.Priority != p.Priority {
			heap.Fix(&q.active, it.index)
		}
	default:
		// Only what a decision reads can change its answer; a new condition cannot.
		if p.Class != old.Class || p.Generation != old.Generation || old.Status.NominatedNodeName != "" && p.Status.NominatedNodeName == "" {
			q.wake(it, now, causeUpdate)
		}
	}
}

// place puts an item into active, or gated.
func (q *Queue) place(it *Item, now time.Time, why cause) {
	q.take(it)
	it.Since = now
	if gate := gate(q.table, it.Pod.Pod); gate != "" {
		it.Place, it.Message = Gated, gate
		q.arrivals.note(Gated, why)
		return
	}
	it.Place = Active
	q.arrivals.note(Active, why)
	heap.Push(&q.active, it)
}

// take removes an item from where it is.
func (q *Queue) take(it *Item) {
	switch it.Place {
	case Active:
		if it.index >= 0 {
			heap.Remove(&q.active, it.index)
		}
	case BackingOff:
		heap.Remove(&q.backoff, it.index)
	case Unschedulable:
		delete(q.refused[it.mask], it)
		if len(q.refused[it.mask]) == 0 {
			delete(q.refused, it.mask)
		}
	}
	it.Place = InHand
	it.index = -1
}

func gate(table []framework.Plugin, p *corev1.Pod) string {
	for i := range table {
		if g := table[i].Gate; g != nil {
			if why := g(p); why != "" {
				return why
			}
		}
	}
	return ""
}

// Delete forgets a pod.
func (q *Queue) Delete(uid types.UID) {
	if it := q.items[uid]; it != nil {
		q.take(it)
		delete(q.items, uid)
	}
}

// Get finds a pod.
func (q *Queue) Get(uid types.UID) *Item { return q.items[uid] }

// Pop gives the next pod, nil when none is active. The pod stays known, in hand, until Failed or Delete.
func (q *Queue) Pop(now time.Time) *Item {
	if q.active.Len() == 0 {
		return nil
	}
	it, ok := heap.Pop(&q.active).(*Item)
	if !ok {
		panic("queue: a heap of items holds something else")
	}
	it.Place, it.Since, it.index = InHand, now, -1
	it.Attempts++
	return it
}

// Failed puts a popped pod back. refusers are the plugins that refused it; none means an error, after
// which the pod is tried again when its back-off is over, whatever happens.
func (q *Queue) Failed(uid types.UID, refusers []string, message string, now time.Time) {
	it := q.items[uid]
	if it == nil || it.Place != InHand {
		return
	}
	it.Refusers, it.Message, it.Since = refusers, message, now
	it.retryAt = now.Add(q.delay(it.Attempts))
	if why := gate(q.table, it.Pod.Pod); why != "" {
		it.Place, it.Message = Gated, why
		q.arrivals.note(Gated, causeFailure)
		return
	}
	if len(refusers) == 0 {
		it.Place = BackingOff
		q.arrivals.note(BackingOff, causeFailure)
		heap.Push(&q.backoff, it)
		return
	}
	it.mask = 0
	for i := range q.table {
		if slices.Contains(refusers, q.table[i].Name) {
			it.mask |= 1 << i
		}
	}
	it.Place = Unschedulable
	q.arrivals.note(Unschedulable, causeFailure)
	if q.refused[it.mask] == nil {
		q.refused[it.mask] = map[*Item]struct{}{}
	}
	q.refused[it.mask][it] = struct{}{}
}

// delay after the n-th failure.
func (q *Queue) delay(n int) time.Duration {
	d := q.cfg.InitialBackoff
	for range n - 1 {
		if d *= 2; d >= q.cfg.MaxBackoff {
			return q.cfg.MaxBackoff
		}
	}
	return min(d, q.cfg.MaxBackoff)
}

// Wake moves the refused pods that the event could help. It gives how many it moved.
func (q *Queue) Wake(e *framework.Event, now time.Time) int {
	moved := 0
	for mask, set := range q.refused {
		if !q.concerns(mask, e) {
			continue
		}
		for it := range set {
			if q.helps(mask, it, e) {
				q.wake(it, now, causeOf(e))
				moved++
			}
		}
	}
	return moved
}

// concerns tells whether any of the refusers waits for such an event at all.
func (q *Queue) concerns(mask uint64, e *framework.Event) bool {
	for i := range q.table {
		if mask&(1<<i) != 0 && q.table[i].Events&e.Kind != 0 {
			return true
		}
	}
	return false
}

func (q *Queue) helps(mask uint64, it *Item, e *framework.Event) bool {
	// A pod for which room is being made waits for that node, so that each eviction wakes one pod.
	if nominated := it.Pod.Status.NominatedNodeName; nominated != "" && e.Kind == framework.PodGone && e.Node != nil && e.Node.Node.Name != nominated {
		return false
	}
	for i := range q.table {
		if pl := &q.table[i]; mask&(1<<i) != 0 && pl.Events&e.Kind != 0 && (pl.Wakes == nil || pl.Wakes(e, it.Pod)) {
			return true
		}
	}
	return false
}

func (q *Queue) wake(it *Item, now time.Time, why cause) {
	retry := it.retryAt
	if it.Pod.Status.NominatedNodeName != "" {
		retry = now // room was made for it: the next pod in line could take it
	}
	if !retry.After(now) {
		q.place(it, now, why)
		return
	}
	if it.Place == BackingOff {
		return
	}
	q.take(it)
	it.Place, it.Since = BackingOff, now
	q.arrivals.note(BackingOff, why)
	heap.Push(&q.backoff, it)
}

// WakeAll moves every refused pod, as after something whose effects are not known.
func (q *Queue) WakeAll(now time.Time) {
	for _, set := range q.refused {
		for it := range set {
			q.wake(it, now, causeForced)
		}
	}
}

// Tick moves the pods whose back-off is over, and those that have been unschedulable for too long. It
// gives when it has to be called next; zero: only after other calls.
func (q *Queue) Tick(now time.Time) (next time.Time) {
	for q.backoff.Len() > 0 && !q.backoff.items[0].retryAt.After(now) {
		it := q.backoff.items[0]
		q.place(it, now, causeBackoff)
	}
	if q.backoff.Len() > 0 {
		next = q.backoff.items[0].retryAt
	}
	if len(q.refused) == 0 {
		q.flushed = now
		return next
	}
	const every = 30 * time.Second
	if flush := q.flushed.Add(every); flush.After(now) {
		return earlier(next, flush)
	}
	q.flushed = now
	for _, set := range q.refused {
		for it := range set {
			if now.Sub(it.Since) >= q.cfg.StayUnschedulable {
				q.wake(it, now, causeTimeout)
			}
		}
	}
	return earlier(next, now.Add(every))
}

func earlier(a, b time.Time) time.Time {
	if a.IsZero() || b.Before(a) {
		return b
	}
	return a
}

// Lens are the numbers of pods by place.
func (q *Queue) Lens() map[Place]int {
	out := map[Place]int{Active: q.active.Len(), BackingOff: q.backoff.Len()}
	refused := 0
	for _, set := range q.refused {
		refused += len(set)
	}
	out[Unschedulable] = refused
	if rest := len(q.items) - q.active.Len() - q.backoff.Len() - refused; rest > 0 {
		for _, it := range q.items {
			switch it.Place {
			case Gated, InHand:
				out[it.Place]++
			}
		}
	}
	return out
}

// Dump gives all items, by place and order of entering.
func (q *Queue) Dump() []Item {
	out := make([]Item, 0, len(q.items))
	for _, it := range q.items {
		out = append(out, *it)
	}
	slices.SortFunc(out, func(a, b Item) int {
		if a.Place != b.Place {
			return int(a.Place) - int(b.Place)
		}
		if a.sequence != b.sequence {
			return int(int64(a.sequence - b.sequence))
		}
		return strings.Compare(string(a.Pod.UID), string(b.Pod.UID))
	})
	return out
}

// byLess and byTime are heaps.
type byLess struct {
	items []*Item
	less  func(a, b *framework.Pod, aEntered, bEntered uint64) bool
}

func (h *byLess) Len() int { return len(h.items) }
func (h *byLess) Less(i, j int) bool {
	return h.less(h.items[i].Pod, h.items[j].Pod, h.items[i].sequence, h.items[j].sequence)
}
func (h *byLess) Swap(i, j int) {
	h.items[i], h.items[j] = h.items[j], h.items[i]
	h.items[i].index, h.items[j].index = i, j
}
func (h *byLess) Push(x any) {
	if it, ok := x.(*Item); ok {
		it.index = len(h.items)
		h.items = append(h.items, it)
	}
}
func (h *byLess) Pop() any {
	last := h.items[len(h.items)-1]
	h.items[len(h.items)-1] = nil
	h.items = h.items[:len(h.items)-1]
	return last
}

type byTime struct{ items []*Item }

func (h *byTime) Len() int           { return len(h.items) }
func (h *byTime) Less(i, j int) bool { return h.items[i].retryAt.Before(h.items[j].retryAt) }
func (h *byTime) Swap(i, j int) {
	h.items[i], h.items[j] = h.items[j], h.items[i]
	h.items[i].index, h.items[j].index = i, j
}
func (h *byTime) Push(x any) {
	if it, ok := x.(*Item); ok {
		it.index = len(h.items)
		h.items = append(h.items, it)
	}
}
func (h *byTime) Pop() any {
	last := h.items[len(h.items)-1]
	h.items[len(h.items)-1] = nil
	h.items = h.items[:len(h.items)-1]
	return last
}
