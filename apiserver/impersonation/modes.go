package impersonation

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	authenticationv1 "k8s.io/api/authentication/v1"
	"k8s.io/apimachinery/pkg/api/validation"
	validationutil "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/keelson/keelson/apiserver/authn"
	"github.com/keelson/keelson/apiserver/authz"
)

// mode is one way to be allowed to act for somebody.
type mode struct {
	name string
	// fits reports whether the mode is about such a user at all.
	fits func(requestor *authn.User, w *Wanted) bool
}

// legacy is the mode without constraints. Its verb has no name in it.
const legacy = "legacy"

// modes in the order in which they are tried.
var modes = []mode{
	{"associated-node", func(requestor *authn.User, w *Wanted) bool {
		node, ok := nodeName(w.User)
		if _, _, account := authn.SplitServiceAccount(requestor.Name); !ok || !account || !w.nameOnly() {
			return false
		}
		own := requestor.Extra[authn.NodeNameKey]
		return len(own) == 1 && own[0] == node
	}},
	{"arbitrary-node", func(_ *authn.User, w *Wanted) bool {
		_, ok := nodeName(w.User)
		return ok && w.nameOnly()
	}},
	{"serviceaccount", func(_ *authn.User, w *Wanted) bool {
		_, _, ok := authn.SplitServiceAccount(w.User)
		return ok && w.nameOnly()
	}},
	{"user-info", func(_ *authn.User, w *Wanted) bool {
		_, node := nodeName(w.User)
		_, _, account := authn.SplitServiceAccount(w.User)
		return !node && !account
	}},
	{legacy, func(*authn.User, *Wanted) bool { return true }},
}

func (m *mode) constrained() bool { return m.name != legacy }

// verb is what the mode asks of whom is impersonated.
func (m *mode) verb() string {
	if m.constrained() {
		return "impersonate:" + m.name
	}
	return "impersonate"
}

// constraint is what audit records say of the mode.
func (m *mode) constraint() string {
	if m.constrained() {
		return m.verb()
	}
	return ""
}

// many is from how many groups or extra values on a constrained mode asks for all of them first.
const many = 4

// permitted asks for everything that w needs in the mode, and returns the first refusal.
func (m *mode) permitted(asked *authz.Attributes, w *Wanted, ask func(authz.Attributes) error) error {
	if m.constrained() {
		on := *asked
		on.Verb = "impersonate-on:" + m.name + ":" + asked.Verb
		if err := ask(on); err != nil {
			return err
		}
	}
	if err := ask(m.subject(asked.User, w.User)); err != nil {
		return err
	}
	if w.UID != "" {
		if err := ask(m.about(asked.User, authenticationv1.GroupName, "uids", w.UID)); err != nil {
			return err
		}
	}
	if err := m.groups(asked.User, w.Groups, ask); err != nil {
		return err
	}
	return m.extra(asked.User, w.Extra, ask)
}

func (m *mode) about(requestor *authn.User, group, plural, name string) authz.Attributes {
	return authz.Attributes{User: requestor, Verb: m.verb(), Resource: true, Group: group, Version: "v1", Plural: plural, Name: name}
}

// group is the API group that users, groups, nodes and service accounts are asked about in.
func (m *mode) group() string {
	if m.constrained() {
		return authenticationv1.GroupName
	}
	return ""
}

// subject is the question about the user's name.
func (m *mode) subject(requestor *authn.User, user string) authz.Attributes {
	if namespace, name, ok := authn.SplitServiceAccount(user); ok {
		a := m.about(requestor, m.group(), "serviceaccounts", name)
		a.Namespace = namespace
		return a
	}
	if node, ok := nodeName(user); ok && m.constrained() {
		if m.name == "associated-node" {
			node = "*" // which node that is follows from the token: the permission is one for all
		}
		return m.about(requestor, m.group(), "nodes", node)
	}
	return m.about(requestor, m.group(), "users", user)
}

func (m *mode) groups(requestor *authn.User, groups []string, ask func(authz.Attributes) error) error {
	if m.constrained() {
		if slices.Contains(groups, "") {
			return &authz.Refusal{Of: m.about(requestor, m.group(), "groups", ""), Reason: "impersonating the empty string group is not allowed"}
		}
		if slices.Contains(groups, authn.GroupMasters) {
			return &authz.Refusal{Of: m.about(requestor, m.group(), "groups", authn.GroupMasters), Reason: "impersonating the system:masters group is not allowed"}
		}
		if len(groups) >= many && ask(m.about(requestor, m.group(), "groups", "*")) == nil {
			return nil
		}
	}
	for _, g := range groups {
		if err := ask(m.about(requestor, m.group(), "groups", g)); err != nil {
			return err
		}
	}
	return nil
}

func (m *mode) extra(requestor *authn.User, extra map[string][]string, ask func(authz.Attributes) error) error {
	if len(extra) == 0 {
		return nil
	}
	about := func(key, value string) authz.Attributes {
		a := m.about(requestor, authenticationv1.GroupName, "userextras", value)
		a.Subresource = key
		return a
	}
	keys := slices.Sorted(maps.Keys(extra))
	if m.constrained() {
		values := 0
		for _, key := range keys {
			if fault := badExtra(key, extra[key]); fault != "" {
				return &authz.Refusal{Of: about("", ""), Reason: fault}
			}
			values += len(extra[key])
		}
		if values >= many && ask(about("*", "*")) == nil { // no key is without values here
			return nil
		}
	}
	for _, key := range keys {
		for _, value := range extra[key] {
			if err := ask(about(key, value)); err != nil {
				return err
			}
		}
	}
	return nil
}

// badExtra says what is wrong with a field that a constrained mode shall take on; empty for nothing.
func badExtra(key string, values []string) string {
	switch err := validationutil.IsDomainPrefixedPath(field.NewPath("extra", "key"), key).ToAggregate(); {
	case key == "":
		return "impersonating the empty string key in extra is not allowed"
	case err != nil:
		return "impersonating an invalid key in extra is not allowed: " + err.Error()
	case key != strings.ToLower(key):
		return fmt.Sprintf("impersonating a non-lowercase key in extra is not allowed: %q", key)
	case len(values) == 0:
		return "impersonating empty values in extra is not allowed"
	case slices.Contains(values, ""):
		return "impersonating the empty string value in extra is not allowed"
	}
	return ""
}

// user is whom w stands for in the mode. Service accounts have groups of their own, and so have
// nodes where they are known as nodes.
func (m *mode) user(w *Wanted) *authn.User {
	u := &authn.User{Name: w.User, UID: w.UID, Groups: w.Groups, Extra: w.Extra}
	if len(u.Groups) == 0 {
		if namespace, _, ok := authn.SplitServiceAccount(w.User); ok {
			u.Groups = authn.ServiceAccountGroups(namespace)
		} else if _, ok := nodeName(w.User); ok && m.constrained() {
			u.Groups = []string{authn.GroupNodes}
		}
	}
	switch {
	case u.Name == authn.Anonymous:
		return u.WithGroup(authn.GroupUnauthenticated)
	case u.In(authn.GroupUnauthenticated):
		return u
	}
	return u.WithGroup(authn.GroupAuthenticated)
}

func (w *Wanted) nameOnly() bool { return w.UID == "" && len(w.Groups) == 0 && len(w.Extra) == 0 }

// nodeName returns the node whose kubelet has that user name.
func nodeName(user string) (string, bool) {
	name, ok := strings.CutPrefix(user, "system:node:")
	return name, ok && len(validation.NameIsDNSSubdomain(name, false)) == 0
}
