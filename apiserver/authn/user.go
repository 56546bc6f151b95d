// Package authn answers who sends a request: client certificates, service
// account tokens, bootstrap tokens, and what a front proxy says.
package authn

import (
	"context"
	"net/http"
	"slices"
)

// User is an authenticated caller. It is immutable once made.
type User struct {
	Name   string
	UID    string
	Groups []string
	Extra  map[string][]string

	Noted *Note // nil: there is nothing to say about the credential
}

// Note is what there is to say about a credential: to the client, and in the audit record.
type Note struct {
	Warning string // empty: nothing
	Key     string // of an annotation of the audit record
	Value   string
}

// A NotedError refuses a credential and says why in the audit record.
type NotedError struct {
	Err  error
	Note Note
}

func (e *NotedError) Error() string { return e.Err.Error() }
func (e *NotedError) Unwrap() error { return e.Err }

// Well-known users and groups. Source: Kubernetes documentation, "Authenticating".
const (
	Anonymous            = "system:anonymous"
	GroupUnauthenticated = "system:unauthenticated"
	GroupAuthenticated   = "system:authenticated"
	GroupMasters         = "system:masters"
	GroupNodes           = "system:nodes"
	GroupServiceAccounts = "system:serviceaccounts"
)

// In reports whether the user is a member of group.
func (u *User) In(group string) bool {
	for _, g := range u.Groups {
		if g == group {
			return true
		}
	}
	return false
}

// WithGroup returns the user as a member of group too.
func (u *User) WithGroup(group string) *User {
	if u.In(group) {
		return u
	}
	c := *u
	c.Groups = append(slices.Clone(u.Groups), group)
	return &c
}

// Authenticator looks for one kind of credential. ok is false when the request
// carries none of that kind; an error means that it carries a bad one.
type Authenticator interface {
	Authenticate(r *http.Request) (user *User, ok bool, err error)
}

type userKey struct{}

// With returns a context that carries the caller.
func With(ctx context.Context, u *User) context.Context { return context.WithValue(ctx, userKey{}, u) }

// From returns the caller of the request that ctx belongs to, or nil.
func From(ctx context.Context) *User {
	u, _ := ctx.Value(userKey{}).(*User)
	return u
}
