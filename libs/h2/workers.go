package h2

import (
	"slices"
	"sync"
	"time"
)

// workers run handlers. Who has run one waits for the next: its stack has grown to what handlers need, which a new
// goroutine does by copying it four times. The last to wait is the first to work.
//
// Bound: maxIdle workers wait, each for idleTime, and only while there are connections; as many work as there are requests.
type workers struct {
	mu          sync.Mutex
	idle        []*worker
	connections int
}

// worker waits for a job; its channel has room for the one that it gets when it is taken from the list.
type worker struct{ next chan job }

// job is a request to serve. tooLong: its header list was.
type job struct {
	st      *stream
	tooLong bool
}

const (
	maxIdle  = 32
	idleTime = time.Second
)

func (w *workers) connected() {
	w.mu.Lock()
	w.connections++
	w.mu.Unlock()
}

// disconnected sends the idle home after the last connection.
func (w *workers) disconnected() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.connections--; w.connections > 0 {
		return
	}
	for _, x := range w.idle {
		close(x.next)
	}
	w.idle = nil
}

// start serves j on a goroutine of its own.
func (w *workers) start(j job) {
	w.mu.Lock()
	last := len(w.idle) - 1
	if last < 0 {
		w.mu.Unlock()
		go w.work(j)
		return
	}
	x := w.idle[last]
	w.idle = w.idle[:last]
	w.mu.Unlock()
	x.next <- j
}

// work serves j and what comes after it. A handler that ends its goroutine ends the worker.
func (w *workers) work(j job) {
	j.st.serve(j.tooLong)
	x := &worker{next: make(chan job, 1)}
	timer := time.NewTimer(idleTime)
	defer timer.Stop()
	for w.wait(x) {
		j = job{} // while it waits, it keeps nothing of it
		timer.Reset(idleTime)
		more := false
		select {
		case j, more = <-x.next:
		case <-timer.C:
			if !w.gone(x) {
				j, more = <-x.next // it is on its way
			}
		}
		if !more {
			return
		}
		j.st.serve(j.tooLong)
	}
}

// wait makes x idle, where there is need.
func (w *workers) wait(x *worker) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.connections == 0 || len(w.idle) >= maxIdle {
		return false
	}
	w.idle = append(w.idle, x)
	return true
}

// gone takes x off the list. It was not there when a job is on its way, or the end.
func (w *workers) gone(x *worker) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	i := slices.Index(w.idle, x)
	if i < 0 {
		return false
	}
	w.idle = slices.Delete(w.idle, i, i+1)
	return true
}
