package patch

import (
	"bytes"
	"sync"

	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"
)

// sets remembers what texts of owned fields say: objects of one template, and one object at its next write, bring the
// same texts. A set that was handed out is not changed. It is safe for concurrent use.
//
// Bound: two generations of maxTexts bytes of text, of which none is longer than maxText; a set takes some ten times
// its text.
type sets struct {
	mu         sync.Mutex
	young, old map[string]*fieldpath.Set
	size       int // of the young ones' texts
}

const (
	maxTexts = 128 << 10
	maxText  = 8 << 10
)

// read returns the set that a text stands for.
func (s *sets) read(text []byte) (*fieldpath.Set, error) {
	s.mu.Lock()
	set := s.young[string(text)]
	if set == nil {
		if set = s.old[string(text)]; set != nil {
			s.keep(text, set)
		}
	}
	s.mu.Unlock()
	if set != nil {
		return set, nil
	}
	set = fieldpath.NewSet()
	if err := set.FromJSON(bytes.NewReader(text)); err != nil {
		return nil, err
	}
	if len(text) <= maxText {
		s.mu.Lock()
		s.keep(text, set)
		s.mu.Unlock()
	}
	return set, nil
}

// keep adds a set to the young ones, with s.mu held. When these are many, the old ones are forgotten.
func (s *sets) keep(text []byte, set *fieldpath.Set) {
	if s.young == nil || s.size+len(text) > maxTexts {
		s.young, s.old, s.size = map[string]*fieldpath.Set{}, s.young, 0
	}
	s.young[string(text)] = set
	s.size += len(text)
}
