package slim

import "sync"

// message is what a value to share can do: all types of the API's groups can.
type message[T any] interface {
	*T
	Size() int
	MarshalToSizedBuffer([]byte) (int, error)
}

// most is how many different values are remembered. More than that at the same time share less.
const most = 1024

// large is the encoded size from which a value is not worth remembering: it is hardly ever another's, and
// most of them would be much to keep when their objects are gone.
const large = 8 << 10

// shared finds values that say the same: the first of them stands for all.
type shared[T any, P message[T]] struct {
	mu    sync.Mutex // guards what follows
	known map[string]*T
	order []string // in which known became so, as a ring
	next  int
	room  []byte
}

func newShared[T any, P message[T]]() *shared[T, P] { return &shared[T, P]{known: map[string]*T{}} }

// of returns a value equal to v, which is never changed: v itself when it is large.
func (s *shared[T, P]) of(v *T) *T {
	size := P(v).Size()
	if size > large {
		return v
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if cap(s.room) < size {
		s.room = make([]byte, 2*size)
	}
	room := s.room[:size]
	n, err := P(v).MarshalToSizedBuffer(room)
	if err != nil { // then it is like no other
		return v
	}
	text := room[size-n:]
	if have := s.known[string(text)]; have != nil {
		return have
	}
	key, kept := string(text), *v
	s.known[key] = &kept
	if len(s.order) < most {
		s.order = append(s.order, key)
	} else {
		delete(s.known, s.order[s.next])
		s.order[s.next] = key
		s.next = (s.next + 1) % most
	}
	return &kept
}
