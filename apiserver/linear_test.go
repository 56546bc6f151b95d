package apiserver

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
)

// A history of clients' calls is checked with porcupine against the obvious server: one
// map, one call at a time. Values are unique, so a value tells which write made it.

const linearKeys = 3

type linearOp uint8

const (
	opCreate linearOp = iota
	opUpdate
	opDelete
	opGet
	opList
)

func (o linearOp) String() string {
	return [...]string{"create", "update", "delete", "get", "list"}[o]
}

// linearIn is what was asked. seen is the revision that an update or a deletion is
// conditional on.
type linearIn struct {
	op    linearOp
	key   int
	value int64
	seen  int64
}

// cell is one object; value 0: there is none. rev 0: it is there, and no answer has said
// at which revision.
type cell struct{ value, rev int64 }

// linearOut is what was answered. When lost, no answer came, and the write is known to
// have happened because somebody has seen its effect.
type linearOut struct {
	code  int
	lost  bool
	cell  cell             // of create, update and get
	cells [linearKeys]cell // of list
	rev   int64            // of list
}

// linearState is the server. rev is a bound from below of its revision.
type linearState struct {
	rev   int64
	cells [linearKeys]cell
}

// learn makes what is known of a cell agree with what was read.
func (c *cell) learn(seen cell) bool {
	if c.value != seen.value || c.rev != 0 && c.rev != seen.rev {
		return false
	}
	*c = seen
	return true
}

var linearModel = porcupine.Model{
	Init: func() any { return linearState{} },
	Step: func(state, input, output any) (bool, any) {
		s, in, out := state.(linearState), input.(linearIn), output.(linearOut)
		c := &s.cells[in.key]
		write := func(next cell) (bool, any) {
			if !out.lost {
				if next.value != 0 && next.rev <= s.rev {
					return false, state
				}
				s.rev = max(s.rev, next.rev)
			}
			*c = next
			return true, s
		}
		// A conditional write succeeds at the revision that it names. A revision that nobody
		// knows cannot have been named.
		named := c.value != 0 && c.rev == in.seen
		switch in.op {
		case opCreate:
			switch {
			case out.code == 409:
				return c.value != 0, s
			case c.value == 0 && (out.lost || out.code == 201):
				return write(cell{in.value, out.cell.rev})
			}
		case opUpdate:
			switch {
			case out.code == 404:
				return c.value == 0, s
			case out.code == 409:
				return c.value != 0 && !named, s
			case named:
				return write(cell{in.value, out.cell.rev})
			}
		case opDelete:
			switch {
			case out.code == 404:
				return c.value == 0, s
			case out.code == 409:
				return c.value != 0 && !named, s
			case named:
				return write(cell{})
			}
		case opGet:
			if out.code == 404 {
				return c.value == 0, s
			}
			if c.value != 0 && c.learn(out.cell) {
				s.rev = max(s.rev, c.rev)
				return true, s
			}
		case opList:
			for i := range s.cells {
				if !s.cells[i].learn(out.cells[i]) {
					return false, state
				}
			}
			if out.rev >= s.rev {
				s.rev = out.rev
				return true, s
			}
		}
		return false, state
	},
	DescribeOperation: func(input, output any) string {
		return fmt.Sprintf("%v → %v", input, output)
	},
}

// settled decides what became of the calls that nobody answered, and returns a history
// without doubts. A write whose value somebody has read has happened, before that reading
// ended; one whose value nobody has read (in the end everything is read) has not, as
// nobody could have named its revision to change it. A deletion has happened when the
// version that it names has gone and nobody else says that he has changed it.
func settled(history []porcupine.Operation) []porcupine.Operation {
	read := map[int64]int64{}    // value → when its first reader had it
	version := map[int64]int64{} // revision → value
	next := map[int64]bool{}     // revisions that a write has replaced
	var end int64
	sawCell := func(c cell, at int64) {
		if c.value == 0 {
			return
		}
		if first, ok := read[c.value]; !ok || at < first {
			read[c.value] = at
		}
		version[c.rev] = c.value
	}
	var last linearOut // the list at the end
	for _, o := range history {
		in, out := o.Input.(linearIn), o.Output.(linearOut)
		if out.lost {
			continue
		}
		end = max(end, o.Return)
		switch {
		case in.op == opList:
			for _, c := range out.cells {
				sawCell(c, o.Return)
			}
			if out.rev >= last.rev {
				last = out
			}
		case out.code < 300:
			if in.op != opDelete {
				sawCell(out.cell, o.Return)
			}
			if in.op == opUpdate || in.op == opDelete {
				next[in.seen] = true
			}
		}
	}
	for _, o := range history {
		in, out := o.Input.(linearIn), o.Output.(linearOut)
		if _, happened := read[in.value]; out.lost && happened && in.op == opUpdate {
			next[in.seen] = true
		}
	}
	for _, c := range last.cells {
		next[c.rev] = true // it is still there
	}
	var sure []porcupine.Operation
	for _, o := range history {
		in, out := o.Input.(linearIn), o.Output.(linearOut)
		if out.lost {
			switch in.op {
			case opCreate, opUpdate:
				at, happened := read[in.value]
				if !happened {
					continue
				}
				o.Return = max(at, o.Call+1)
			case opDelete:
				if next[in.seen] {
					continue
				}
				next[in.seen] = true
				o.Return = end + 1
			default:
				continue
			}
		}
		sure = append(sure, o)
	}
	return sure
}

// linear checks a history and describes what is wrong with it.
func linear(t testing.TB, history []porcupine.Operation) bool {
	t.Helper()
	result := porcupine.CheckOperationsTimeout(linearModel, settled(history), 4*time.Minute)
	if result == porcupine.Unknown {
		t.Fatalf("%d calls could not be decided in four minutes", len(history))
	}
	return result == porcupine.Ok
}

// The checker finds what it is there to find.
func TestLinearityIsChecked(t *testing.T) {
	type step struct {
		from, to int64
		in       linearIn
		out      linearOut
	}
	made := step{0, 1, linearIn{op: opCreate, value: 10}, linearOut{code: 201, cell: cell{10, 5}}}
	changed := step{2, 3, linearIn{op: opUpdate, value: 11, seen: 5}, linearOut{code: 200, cell: cell{11, 6}}}
	get := func(from, to, value, rev int64) step {
		return step{from, to, linearIn{op: opGet}, linearOut{code: 200, cell: cell{value, rev}}}
	}
	list := func(from, to, value, rev, at int64) step {
		return step{from, to, linearIn{op: opList}, linearOut{code: 200, cells: [linearKeys]cell{{value, rev}}, rev: at}}
	}
	lost := func(s step) step { s.out = linearOut{lost: true}; return s }
	for _, c := range []struct {
		text  string
		steps []step
		want  bool
	}{
		{"one after the other", []step{made, changed, get(4, 5, 11, 6), list(6, 7, 11, 6, 9)}, true},
		{"a reading beside a write may see either", []step{made, changed, get(2, 3, 10, 5)}, true},
		{"a reading after a write sees what was before", []step{made, changed, get(4, 5, 10, 5)}, false},
		{"a list after a write does not have it", []step{made, list(2, 3, 0, 0, 9)}, false},
		{"a list of an earlier revision", []step{made, changed, list(4, 5, 11, 6, 5)}, false},
		{"two writes over one revision", []step{made, changed, {4, 5, linearIn{op: opUpdate, value: 12, seen: 5}, linearOut{code: 200, cell: cell{12, 7}}}}, false},
		{"the second of two writes over one revision is refused", []step{made, changed, {4, 5, linearIn{op: opUpdate, value: 12, seen: 5}, linearOut{code: 409}}}, true},
		{"a write is refused for no reason", []step{made, {2, 3, linearIn{op: opUpdate, value: 12, seen: 5}, linearOut{code: 409}}}, false},
		{"revisions go back", []step{made, {2, 3, linearIn{op: opUpdate, value: 11, seen: 5}, linearOut{code: 200, cell: cell{11, 4}}}}, false},
		{"an acknowledged write is forgotten in a crash", []step{made, changed, get(8, 9, 10, 5), list(10, 11, 10, 5, 9)}, false},
		{"a deleted object is read", []step{made, {2, 3, linearIn{op: opDelete, seen: 5}, linearOut{code: 200}}, get(4, 5, 10, 5)}, false},
		{"a write without an answer was seen", []step{made, lost(changed), get(4, 5, 11, 6), list(6, 7, 11, 6, 6)}, true},
		{"a write without an answer was seen, and then not", []step{made, lost(changed), get(4, 5, 11, 6), get(6, 7, 10, 5), list(8, 9, 10, 5, 6)}, false},
		{"a write without an answer has not happened", []step{made, lost(changed), get(4, 5, 10, 5), list(6, 7, 10, 5, 6)}, true},
		{"a deletion without an answer has happened", []step{made, lost(step{2, 3, linearIn{op: opDelete, seen: 5}, linearOut{}}), {4, 5, linearIn{op: opGet}, linearOut{code: 404}}, list(6, 7, 0, 0, 6)}, true},
		{"an object is gone and nobody has deleted it", []step{made, {4, 5, linearIn{op: opGet}, linearOut{code: 404}}, list(6, 7, 0, 0, 6)}, false},
	} {
		var history []porcupine.Operation
		for i, s := range c.steps {
			history = append(history, porcupine.Operation{ClientId: i, Input: s.in, Call: s.from, Output: s.out, Return: s.to})
		}
		if got := linear(t, history); got != c.want {
			t.Errorf("%s: linear is %v, want %v", c.text, got, c.want)
		}
	}
}

// Reads and writes of many clients are linearizable, also when the server is killed.
func TestLinearUnderKills(t *testing.T) {
	s := newMortal(t)
	// A life ends after so many answers, not after a time: porcupine's work is bounded by the
	// number of calls, and a busy machine has as many of them as an idle one.
	const clients, lives, answers = 5, 5, 80
	begin := time.Now()
	var values, answered atomic.Int64
	var done atomic.Bool
	var group sync.WaitGroup
	histories := make([][]porcupine.Operation, clients)
	faults := make([]string, clients)
	call := func(client int, in linearIn) (o porcupine.Operation, fault string) {
		name := fmt.Sprintf("k%d", in.key)
		o = porcupine.Operation{ClientId: client, Input: in, Call: time.Since(begin).Nanoseconds()}
		var r reply
		value := strconv.FormatInt(in.value, 10)
		switch in.op {
		case opCreate:
			r = s.ask("POST", mapsPath, newMap(name, value, ""))
		case opUpdate:
			r = s.ask("PUT", mapsPath+"/"+name, newMap(name, value, strconv.FormatInt(in.seen, 10)))
		case opDelete:
			rev := strconv.FormatInt(in.seen, 10)
			r = s.ask("DELETE", mapsPath+"/"+name, map[string]any{"preconditions": map[string]any{"resourceVersion": rev}})
		case opGet:
			r = s.ask("GET", mapsPath+"/"+name, nil)
		case opList:
			r = s.ask("GET", mapsPath, nil)
		}
		o.Return = time.Since(begin).Nanoseconds()
		out := linearOut{code: r.code, lost: r.code == 0}
		read := func(m *configMap) cell {
			v, _ := strconv.ParseInt(m.Data["v"], 10, 64)
			return cell{v, m.rev()}
		}
		switch {
		case out.lost || r.code == 404 || r.code == 409:
		case r.code > 201:
			fault = fmt.Sprintf("%v: %d %s", in, r.code, r.body)
		case in.op == opList:
			var l mapList
			if err := json.Unmarshal(r.body, &l); err != nil {
				fault = err.Error()
			}
			out.rev, _ = strconv.ParseInt(l.Metadata.ResourceVersion, 10, 64)
			for i := range l.Items {
				if n, ok := strings.CutPrefix(l.Items[i].Metadata.Name, "k"); ok && len(n) == 1 {
					out.cells[n[0]-'0'] = read(&l.Items[i])
				}
			}
		case in.op != opDelete:
			var m configMap
			if err := json.Unmarshal(r.body, &m); err != nil {
				fault = err.Error()
			}
			out.cell = read(&m)
		}
		o.Output = out
		return o, fault
	}
	for id := range clients {
		group.Go(func() {
			var known [linearKeys]int64 // the last revision that this client knows of
			for !done.Load() {
				in := linearIn{op: linearOp(rand.N(5)), key: rand.N(linearKeys), value: values.Add(1)}
				if in.seen = known[in.key]; in.seen == 0 && (in.op == opUpdate || in.op == opDelete) {
					in.op = opGet
				}
				if in.op == opList {
					in.key = 0
				}
				o, fault := call(id, in)
				histories[id] = append(histories[id], o)
				if fault != "" {
					faults[id] = fault
					return
				}
				out := o.Output.(linearOut)
				if !out.lost {
					answered.Add(1)
				}
				switch {
				case out.lost:
					time.Sleep(10 * time.Millisecond) // the server is away
				case in.op == opList:
					for i, c := range out.cells {
						known[i] = c.rev
					}
				case out.code < 300 && in.op != opDelete:
					known[in.key] = out.cell.rev
				case out.code != 409:
					known[in.key] = 0
				}
				time.Sleep(rand.N(8 * time.Millisecond)) // so that the clients do not move in step
			}
		})
	}
	for life := range lives {
		enough := answered.Load() + answers + rand.Int64N(answers)
		for end := time.Now().Add(2 * time.Minute); answered.Load() < enough; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Errorf("%d calls are missing in life %d", enough-answered.Load(), life)
				break
			}
		}
		if life < lives-1 {
			s.kill()
			s.start()
		}
	}
	done.Store(true)
	group.Wait()
	var history []porcupine.Operation
	lost := 0
	for id, h := range histories {
		if faults[id] != "" {
			t.Error(faults[id])
		}
		history = append(history, h...)
	}
	o, fault := call(clients, linearIn{op: opList})
	if fault != "" || o.Output.(linearOut).lost {
		t.Fatalf("the list at the end: %v %s", o.Output, fault)
	}
	history = append(history, o)
	for _, o := range history {
		if o.Output.(linearOut).lost {
			lost++
		}
	}
	t.Logf("%d calls of %d clients, %d without an answer", len(history), clients, lost)
	if !linear(t, history) {
		t.Error("the history is not linearizable")
		for _, o := range history {
			t.Logf("%d: %9d-%9d µs %+v → %+v", o.ClientId, o.Call/1000, o.Return/1000, o.Input, o.Output)
		}
	}
}
