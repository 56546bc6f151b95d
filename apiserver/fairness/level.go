package fairness

import (
	"context"
	"math"
	"slices"
	"sync"
	"time"

	flowcontrolv1 "k8s.io/api/flowcontrol/v1"

	"github.com/keelson/keelson/apiserver/authz"
)

// level is a priority level: seats, and queues for those who wait for one.
//
//	0 ≤ busy; waiting > 0 ⇒ busy ≥ limit
//	waiting = Σ len(queue.waiting), and a queue is in turn exactly when somebody waits in it
type level struct {
	name   string
	exempt bool

	mu        sync.Mutex // guards what follows
	nominal   int
	least     int // seats that are never lent
	most      int // seats that may be had at most
	limit     int // seats that it has now
	unbounded bool
	length    int // how many may wait in one queue
	hand      int
	queues    []queue // none: whoever finds no seat is refused
	turn      []int   // queues in which somebody waits; the first was served longest ago
	busy      int
	waiting   int
	peak      int     // the most that was wanted (busy and waiting) since the last ask
	highest   int     // the peak that the last adjustment has seen
	smooth    float64 // what was wanted, forgotten slowly
	refused   int64
	late      int64
	left      int64
	passed    int64
}

type queue struct {
	waiting []*waiter
	busy    int
}

// waiter is one request in a queue.
type waiter struct {
	flow  *flow
	wake  chan struct{} // closed when it has a seat
	queue int           // that the seat counts for, -1 for none; set before wake is closed
	who   authz.Attributes
	at    time.Time
}

// keep is how much of a past demand is remembered at the next adjustment: half is
// forgotten in five minutes.
var keep = math.Pow(0.5, float64(adjustEvery)/float64(5*time.Minute))

func (l *level) configure(s *flowcontrolv1.PriorityLevelConfigurationSpec, nominal int, unbounded bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.unbounded = unbounded
	var lendable, borrow *int32
	queues := 0
	if s.Limited != nil {
		lendable, borrow = s.Limited.LendablePercent, s.Limited.BorrowingLimitPercent
		if q := s.Limited.LimitResponse.Queuing; q != nil && s.Limited.LimitResponse.Type == flowcontrolv1.LimitResponseTypeQueue {
			queues, l.hand, l.length = int(q.Queues), int(q.HandSize), int(q.QueueLengthLimit)
		}
	} else if s.Exempt != nil {
		lendable = s.Exempt.LendablePercent
	}
	percent := func(p *int32) int {
		if p == nil {
			return 0
		}
		return int(math.Round(float64(nominal) * float64(*p) / 100))
	}
	if l.nominal != nominal || l.limit == 0 {
		l.limit = nominal
	}
	l.nominal, l.least, l.most = nominal, nominal-percent(lendable), math.MaxInt
	if borrow != nil {
		l.most = nominal + percent(borrow)
	}
	l.limit = min(max(l.limit, l.least), l.most)
	if queues != len(l.queues) {
		// Who waits goes on waiting: those of queues that are no more go to the ones that are.
		var all []*waiter
		for i := range l.queues {
			all = append(all, l.queues[i].waiting...)
		}
		l.queues, l.turn = make([]queue, queues), nil
		for i, w := range all {
			if queues == 0 {
				l.busy++ // nowhere to wait: let in
				l.waiting--
				close(w.wake)
				continue
			}
			l.push(i%queues, w)
		}
	}
	l.serve()
}

// push puts a waiter into a queue. Called with mu held.
func (l *level) push(i int, w *waiter) {
	q := &l.queues[i]
	if q.waiting = append(q.waiting, w); len(q.waiting) == 1 {
		l.turn = append(l.turn, i)
	}
}

// enter takes a seat, and returns the queue that it counts for (-1: none); why ≥ 0 is the reason
// of a refusal. A queue of the flow's hand is not chosen before somebody has to wait: until then
// the seat counts for the hand's first one.
func (l *level) enter(ctx context.Context, f *flow, h uint64, wait time.Duration, a *authz.Attributes) (i, why int) {
	l.mu.Lock()
	if l.waiting == 0 && (l.busy < l.limit || l.unbounded) {
		l.busy++
		l.passed++
		l.peak = max(l.peak, l.busy)
		i = -1
		if n := uint64(len(l.queues)); n > 0 {
			i = int(h % n)
			l.queues[i].busy++
		}
		l.mu.Unlock()
		return i, -1
	}
	if len(l.queues) == 0 {
		l.refused++
		l.mu.Unlock()
		return -1, overLimit
	}
	var cards [16]int
	hand := deal(h, len(l.queues), l.hand, cards[:0])
	i = hand[0]
	for _, c := range hand[1:] {
		if a, b := &l.queues[c], &l.queues[i]; len(a.waiting) < len(b.waiting) || len(a.waiting) == len(b.waiting) && a.busy < b.busy {
			i = c
		}
	}
	if len(l.queues[i].waiting) >= l.length {
		l.refused++
		l.mu.Unlock()
		return -1, queueFull
	}
	w := &waiter{flow: f, wake: make(chan struct{}), queue: -1, who: *a, at: time.Now()}
	l.push(i, w)
	l.waiting++
	l.peak = max(l.peak, l.busy+l.waiting)
	f.waiting.Add(1)
	l.serve() // there may be a seat: whoever waited before us has it
	l.mu.Unlock()

	timer := time.NewTimer(wait)
	defer timer.Stop()
	why = -1
	select {
	case <-w.wake:
	case <-timer.C:
		why = timedOut
	case <-ctx.Done():
		why = cancelled
	}
	f.waiting.Add(-1)
	l.mu.Lock()
	defer l.mu.Unlock()
	defer func() { f.waited.add(time.Since(w.at), why < 0) }()
	if why >= 0 {
		if at := l.find(w); at >= 0 {
			l.take(at, w)
			if why == timedOut {
				l.late++
			} else {
				l.left++
			}
			return -1, why
		}
		why = -1 // the seat came in the same moment
	}
	l.passed++
	return w.queue, why
}

// find is the queue in which w waits, -1 for none. Called with mu held.
func (l *level) find(w *waiter) int {
	for _, i := range l.turn {
		if slices.Contains(l.queues[i].waiting, w) {
			return i
		}
	}
	return -1
}

// take removes w from queue i. Called with mu held.
func (l *level) take(i int, w *waiter) {
	q := &l.queues[i]
	at := slices.Index(q.waiting, w)
	q.waiting = slices.Delete(q.waiting, at, at+1)
	l.waiting--
	if len(q.waiting) == 0 {
		l.turn = slices.Delete(l.turn, slices.Index(l.turn, i), slices.Index(l.turn, i)+1)
	}
}

// serve gives free seats to waiters: the next is the oldest of the queue that has the fewest seats
// now, and of those the one that was served longest ago. Called with mu held.
func (l *level) serve() {
	for l.waiting > 0 && (l.busy < l.limit || l.unbounded) {
		best := 0
		for k, i := range l.turn {
			if l.queues[i].busy < l.queues[l.turn[best]].busy {
				best = k
			}
		}
		i := l.turn[best]
		w := l.queues[i].waiting[0]
		l.take(i, w)
		if len(l.queues[i].waiting) > 0 { // to the end of the line
			l.turn = append(slices.Delete(l.turn, best, best+1), i)
		}
		l.busy++
		l.queues[i].busy++
		w.queue = i
		close(w.wake)
	}
}

// leave frees a seat that counts for queue i.
func (l *level) leave(i int) {
	l.mu.Lock()
	l.busy--
	if i >= 0 && i < len(l.queues) && l.queues[i].busy > 0 {
		l.queues[i].busy--
	}
	if l.waiting > 0 {
		l.serve()
	}
	l.mu.Unlock()
}

// count is enter and leave of an exempt level.
func (l *level) count(n int) {
	l.mu.Lock()
	l.busy += n
	if n > 0 {
		l.passed++
		l.peak = max(l.peak, l.busy)
	}
	l.mu.Unlock()
}

func (l *level) now() (busy, waiting int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.busy, l.waiting
}

// ask is what a level wants when seats are lent.
type ask struct {
	least, most int
	demand      float64
}

// ask tells the demand since the last time.
func (l *level) ask() ask {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.smooth = max(float64(l.peak), l.smooth*keep+float64(l.peak)*(1-keep))
	l.highest, l.peak = l.peak, l.busy+l.waiting
	return ask{least: l.least, most: l.most, demand: l.smooth}
}

func (l *level) resize(n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.limit = n
	l.serve()
}

// deal draws a hand of distinct queues for a flow: shuffle sharding. Two flows share
// all of their queues hardly ever, so that one that fills its own leaves the other some.
func deal(h uint64, queues, hand int, out []int) []int {
	hand = min(hand, queues)
	for n := range hand {
		left := uint64(queues - n)
		card := int(h % left)
		h /= left
		// card is the rank among those that are left: count those drawn before that are not above it.
		drawn := append([]int(nil), out...)
		slices.Sort(drawn)
		for _, d := range drawn {
			if d <= card {
				card++
			}
		}
		out = append(out, card)
	}
	return out
}

// allocate divides seats: each level gets at least what it does not lend and at most what
// it may borrow, and between the two the same fraction of its demand as all others.
//
// Source: KEP-1040, "Dispatching: limits adjustment".
func allocate(seats int, asks []ask) []int {
	at := func(f float64, a ask) float64 {
		return max(float64(a.least), min(float64(a.most), f*max(a.demand, float64(a.least), 1)))
	}
	sum := func(f float64) (s float64) {
		for _, a := range asks {
			s += at(f, a)
		}
		return s
	}
	low, high := 0.0, 1.0
	for range 64 {
		if sum(high) >= float64(seats) {
			break
		}
		high *= 2
	}
	for range 64 {
		if mid := (low + high) / 2; sum(mid) < float64(seats) {
			low = mid
		} else {
			high = mid
		}
	}
	out := make([]int, len(asks))
	for i, a := range asks {
		out[i] = int(math.Round(at(low, a)))
	}
	return out
}
