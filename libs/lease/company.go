package lease

import (
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
)

const (
	// standbyAnnotation holds who said last that it stands by, and when.
	standbyAnnotation = "keelson.io/standby"
	// remembered is how long a standby counts after it was heard of; it speaks twice in this time.
	remembered = 10 * time.Minute
	// settling is how long a new leader takes it that others are there.
	settling = 10 * time.Second
	// lonePeriod is the time between two renewals of a leader without a standby.
	lonePeriod = 5 * time.Second
)

// company is what one copy knows of those that stand by. Times are when it was told, by its own clock.
type company struct {
	said  string // the last announcement
	heard time.Time
}

// see takes in a state of the lease, and reports whether there is an announcement that is new.
func (c *company) see(l *coordinationv1.Lease, now time.Time) bool {
	if l == nil || l.Annotations[standbyAnnotation] == c.said {
		return false
	}
	c.said, c.heard = l.Annotations[standbyAnnotation], now
	return true
}

// forget has a standby speak at once.
func (c *company) forget() { c.heard = time.Time{} }

// begin starts a term: an announcement of before may be the leader's own.
func (c *company) begin(now time.Time) { c.heard = now.Add(settling - remembered) }

// none reports whether nobody stands by.
func (c *company) none(now time.Time) bool { return now.Sub(c.heard) >= remembered }

// due is when a standby has to speak again.
func (c *company) due() time.Time { return c.heard.Add(remembered / 2) }

// announced is the lease with the announcement of a standby.
func announced(l *coordinationv1.Lease, id string, now time.Time) *coordinationv1.Lease {
	l = l.DeepCopy()
	if l.Annotations == nil {
		l.Annotations = map[string]string{}
	}
	l.Annotations[standbyAnnotation] = id + " " + now.UTC().Format(time.RFC3339)
	return l
}
