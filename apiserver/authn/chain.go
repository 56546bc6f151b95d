package authn

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"net/http"
)

// Chain asks each authenticator in turn and takes the first that knows the
// caller. When none does, a bad credential is an error; no credential at all is
// the anonymous user, if allowed.
type Chain struct {
	Authenticators []Authenticator
	Anonymous      bool
}

var errUnknownToken = errors.New("invalid bearer token")

// ErrUnauthorized is the error of a request without any usable credential.
var ErrUnauthorized = errors.New("no valid credential: send a client certificate or a bearer token")

// Authenticate never returns a nil user without an error.
func (c Chain) Authenticate(r *http.Request) (*User, error) {
	var bad []error
	for _, a := range c.Authenticators {
		u, ok, err := a.Authenticate(r)
		if err != nil {
			bad = append(bad, err)
			continue
		}
		if ok {
			return u.WithGroup(GroupAuthenticated), nil
		}
	}
	if len(bad) > 0 {
		return nil, errors.Join(bad...)
	}
	// A token that nobody knows is refused. Schemes that nobody reads are no credential.
	if _, token := Bearer(r); token {
		return nil, errUnknownToken
	}
	if !c.Anonymous {
		return nil, ErrUnauthorized
	}
	return &User{Name: Anonymous, Groups: []string{GroupUnauthenticated}}, nil
}

// credentialID names a certificate in audit records: upstream's "X509SHA256=<hex>".
func credentialID(c *x509.Certificate) string {
	sum := sha256.Sum256(c.Raw)
	return "X509SHA256=" + hex.EncodeToString(sum[:])
}
