// Package impersonation decides on whose behalf a request is served.
//
// [Parse] reads what the headers ask for. [Impersonator.As] then tries the modes in the order of
// their table, narrow ones first, until one allows it:
//
//	associated-node   a pod's service account acts as the node that its token is bound to
//	arbitrary-node    any node
//	serviceaccount    any service account
//	user-info         everybody else, with groups, UID and extra fields
//	legacy            anybody, for everything
//
// A mode but the last needs two permissions: to act as that user ("impersonate:<mode>" on
// users, groups, nodes and so on of authentication.k8s.io), and to do what is asked while acting
// for somebody ("impersonate-on:<mode>:<verb>" on the request's own resource or path). legacy
// needs "impersonate" on users, groups and serviceaccounts of the core group alone.
//
// When no mode allows it, the answer is the refusal of the mode that was tried first. That is the
// one which allowed the same requestor's last impersonation; it is kept for [remembered] users,
// so that most requests need no more questions than their own mode has.
//
// Decisions are not kept. Upstream keeps them for ten seconds, because it may have to ask a
// webhook; the authorizers here read memory, and a role that is taken away counts at once.
//
// The package owns no goroutines. To debug, see apiserver_impersonation_* in the metrics and
// authenticationMetadata in the audit events.
//
// Source: KEP-5284, constrained impersonation; Kubernetes documentation, "User impersonation".
package impersonation

import (
	"context"
	"sync"

	"github.com/keelson/keelson/apiserver/authn"
	"github.com/keelson/keelson/apiserver/authz"
)

// Ask puts one question of a mode to the authorizer. nil is yes; no is an *authz.Refusal.
type Ask func(ctx context.Context, mode string, a authz.Attributes) error

// Acting is on whose behalf a request is served.
type Acting struct {
	User *authn.User
	Mode string
	// Constraint is the verb that allowed it; empty in the mode legacy, which constrains nothing.
	Constraint string
}

// Impersonator tries the modes. It may be used by many at once.
type Impersonator struct {
	Ask Ask

	mu   sync.Mutex
	last map[string]int // guarded by mu; requestor → index in modes of what allowed it last; at most remembered
}

// remembered bounds the users whose last mode is known.
const remembered = 10_000

// As returns whom the request acts as. asked is the request, with the requestor as its user.
// The error is an *authz.Refusal.
func (i *Impersonator) As(ctx context.Context, asked authz.Attributes, w *Wanted) (Acting, error) {
	first := i.mode(asked.User.Name)
	var refusal error
	try := func(n int) (Acting, bool) {
		m := &modes[n]
		if !m.fits(asked.User, w) {
			return Acting{}, false
		}
		err := m.permitted(&asked, w, func(a authz.Attributes) error { return i.Ask(ctx, m.name, a) })
		if err == nil {
			return Acting{User: m.user(w), Mode: m.name, Constraint: m.constraint()}, true
		}
		if refusal == nil {
			refusal = err
		}
		return Acting{}, false
	}
	if first >= 0 {
		if acting, ok := try(first); ok {
			return acting, nil
		}
	}
	for n := range modes {
		if n == first {
			continue
		}
		if acting, ok := try(n); ok {
			i.remember(asked.User.Name, n)
			return acting, nil
		}
	}
	return Acting{}, refusal
}

// mode returns the index of the mode that allowed a user's last impersonation, or -1.
func (i *Impersonator) mode(requestor string) int {
	i.mu.Lock()
	defer i.mu.Unlock()
	if n, ok := i.last[requestor]; ok {
		return n
	}
	return -1
}

func (i *Impersonator) remember(requestor string, mode int) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.last == nil || len(i.last) >= remembered {
		i.last = map[string]int{} // rare; it costs every user the other modes' questions once
	}
	i.last[requestor] = mode
}
