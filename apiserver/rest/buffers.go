package rest

import "sync"

// buffer is borrowed while an answer or a frame is made: a watch that is idle has none.
type buffer struct{ b []byte }

var buffers = sync.Pool{New: func() any { return &buffer{make([]byte, 0, 16<<10)} }}

// largestKept is the capacity of a buffer above which it is not used again.
const largestKept = 128 << 10

// borrow returns an empty buffer, to be given back.
func borrow() *buffer { return buffers.Get().(*buffer) }

func (b *buffer) giveBack() {
	if cap(b.b) <= largestKept {
		b.b = b.b[:0]
		buffers.Put(b)
	}
}
