package authz

import (
	"context"
	"errors"
	"strings"

	"github.com/keelson/keelson/apiserver/authn"
)

// Chain asks each authorizer in turn: the first Allow or Deny stands. The reason of
// a refusal joins what the authorizers said.
type Chain []Authorizer

// Authorize returns NoOpinion, which callers treat as no, when nobody decided.
func (c Chain) Authorize(ctx context.Context, a Attributes) (Decision, string, error) {
	var reasons []string
	var errs []error
	for _, z := range c {
		d, reason, err := z.Authorize(ctx, a)
		if err != nil {
			errs = append(errs, err)
		}
		if d != NoOpinion {
			return d, reason, errors.Join(errs...)
		}
		if reason != "" {
			reasons = append(reasons, reason)
		}
	}
	return NoOpinion, strings.Join(reasons, "\n"), errors.Join(errs...)
}

// Counted tells of the decisions of an authorizer; of those who are asked after it, nothing.
type Counted struct {
	Authorizer
	Allowed, Denied interface{ Inc() }
}

// Authorize answers what the authorizer does.
func (c Counted) Authorize(ctx context.Context, a Attributes) (Decision, string, error) {
	d, reason, err := c.Authorizer.Authorize(ctx, a)
	switch d {
	case Allow:
		c.Allowed.Inc()
	case Deny:
		c.Denied.Inc()
	}
	return d, reason, err
}

// Masters allows everything to system:masters, so that a broken role cannot lock administrators out.
type Masters struct{}

// Authorize has no opinion on others.
func (Masters) Authorize(_ context.Context, a Attributes) (Decision, string, error) {
	if a.User.In(authn.GroupMasters) {
		return Allow, "", nil
	}
	return NoOpinion, "", nil
}

// Fixed gives the same answer to everybody (--authorization-mode AlwaysAllow and AlwaysDeny).
type Fixed struct {
	Decision Decision
	Reason   string
}

// Authorize answers f.
func (f Fixed) Authorize(context.Context, Attributes) (Decision, string, error) {
	return f.Decision, f.Reason, nil
}
