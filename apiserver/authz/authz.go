// Package authz answers whether a caller may do what it asks for.
package authz

import (
	"context"

	"k8s.io/apimachinery/pkg/fields"

	"github.com/keelson/keelson/apiserver/authn"
)

// Attributes is one question. For a request outside the resource paths only
// User, Verb (the lower-case HTTP method) and Path are set.
type Attributes struct {
	User                                                 *authn.User
	Verb                                                 string
	Resource                                             bool // false: Path
	Group, Version, Plural, Subresource, Namespace, Name string
	Path                                                 string
	// Fields are the terms of the field selector that a list, a watch or a deletion of many
	// is bound to: all of them hold for every object that the answer shows.
	Fields fields.Requirements
}

// Decision is an authorizer's answer.
type Decision int

const (
	NoOpinion Decision = iota
	Allow
	Deny
)

// Authorizer decides. reason is for the administrator and part of a 403's message.
type Authorizer interface {
	Authorize(ctx context.Context, a Attributes) (d Decision, reason string, err error)
}
