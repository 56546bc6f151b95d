package authn

import (
	"errors"
	"net/http"
	"net/url"
	"strings"
)

// Impersonation is what the Impersonate-* headers of a request ask for.
type Impersonation struct {
	User, UID string
	Groups    []string
	Extra     map[string][]string
}

// ParseImpersonation returns nil when the request asks for none.
//
// Source: Kubernetes documentation, "User impersonation".
func ParseImpersonation(h http.Header) (*Impersonation, error) {
	im := &Impersonation{
		User: h.Get("Impersonate-User"), UID: h.Get("Impersonate-Uid"),
		Groups: h.Values("Impersonate-Group"), Extra: map[string][]string{},
	}
	for key, values := range h {
		if rest, ok := cutPrefixFold(key, "Impersonate-Extra-"); ok && rest != "" {
			name, err := url.PathUnescape(strings.ToLower(rest))
			if err != nil {
				name = strings.ToLower(rest)
			}
			im.Extra[name] = values
		}
	}
	if im.User == "" {
		if im.UID != "" || len(im.Groups) > 0 || len(im.Extra) > 0 {
			return nil, errors.New("requested impersonation of groups, a UID or extra fields without Impersonate-User")
		}
		return nil, nil
	}
	return im, nil
}

// Strip removes the headers, so that a proxied request does not carry them on.
func (*Impersonation) Strip(h http.Header) {
	for key := range h {
		if _, ok := cutPrefixFold(key, "Impersonate-"); ok {
			h.Del(key)
		}
	}
}

// As is the user that the request then acts as.
func (im *Impersonation) As() *User {
	u := &User{Name: im.User, UID: im.UID, Groups: im.Groups, Extra: im.Extra}
	if ns, name, ok := SplitServiceAccount(im.User); ok && len(im.Groups) == 0 {
		u.Groups = serviceAccountUser(ns, name, "").Groups
	}
	if im.User == Anonymous {
		return withGroup(u, GroupUnauthenticated)
	}
	if u.In(GroupUnauthenticated) {
		return u
	}
	return withGroup(u, GroupAuthenticated)
}
