package impersonation

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"

	authenticationv1 "k8s.io/api/authentication/v1"
)

// Wanted is what the Impersonate-* headers of a request ask for, as they say it.
type Wanted struct {
	User, UID string
	Groups    []string
	Extra     map[string][]string
}

// Nameless is the error of headers that ask for something but say no user name.
type Nameless struct{ Wanted Wanted }

// Error is upstream's text, which names its own type.
func (e *Nameless) Error() string {
	w := &e.Wanted
	return fmt.Sprintf("requested &user.DefaultInfo{Name:\"\", UID:%q, Groups:%#v, Extra:%#v} without impersonating a user name", w.UID, w.Groups, w.Extra)
}

// Parse returns nil when the headers ask for nothing, and *Nameless.
//
// Source: Kubernetes documentation, "User impersonation".
func Parse(h http.Header) (*Wanted, error) {
	w := &Wanted{
		User: h.Get(authenticationv1.ImpersonateUserHeader), UID: h.Get(authenticationv1.ImpersonateUIDHeader),
		Groups: h[authenticationv1.ImpersonateGroupHeader],
	}
	extra := false
	for header, values := range h {
		rest, ok := strings.CutPrefix(header, authenticationv1.ImpersonateUserExtraHeaderPrefix)
		if !ok {
			continue
		}
		extra = true
		rest = strings.ToLower(rest)
		key, err := url.PathUnescape(rest)
		if err != nil {
			key = rest
		}
		if w.Extra == nil {
			w.Extra = map[string][]string{}
		}
		w.Extra[key] = append(w.Extra[key], values...)
	}
	switch {
	case w.User != "":
		return w, nil
	case w.UID != "" || len(w.Groups) > 0 || extra:
		return nil, &Nameless{*w}
	}
	return nil, nil
}

// Strip removes the headers: nothing behind the chain, here or on a proxied server, may see them.
func Strip(h http.Header) {
	for header := range h {
		if _, ok := strings.CutPrefix(header, "Impersonate-"); ok {
			h.Del(header)
		}
	}
}
