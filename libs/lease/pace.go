package lease

import "time"

const (
	// patience is by how much a lease outlasts what a renewal has lately taken.
	patience = 6
	// longest is the lease of a leader whose renewals take longest: upstream's default.
	longest = 15 * time.Second
	// calm is how long renewals must have been quick before the lease gets shorter again.
	calm = time.Minute
)

// pace is for how long a leader claims the lease. On a machine where renewals take long a short lease would
// change hands, or end a daemon, for nothing; a long one costs time only when its holder dies there.
type pace struct {
	least, span time.Duration // whole seconds
	busy        time.Time     // when a lease as long as span was last called for
}

// saw takes in how long a renewal took at time now, from when it was due to its answer or failure.
func (p *pace) saw(took time.Duration, now time.Time) {
	want := (patience*took + time.Second - 1).Truncate(time.Second)
	want = max(p.least, min(want, longest))
	switch {
	case want >= p.span:
		p.span, p.busy = want, now
	case now.Sub(p.busy) >= calm:
		p.span, p.busy = max(want, (p.span/2).Round(time.Second), p.least), now
	}
}
