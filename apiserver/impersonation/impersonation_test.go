package impersonation

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/keelson/keelson/apiserver/authn"
	"github.com/keelson/keelson/apiserver/authz"
)

// rules answer questions of the form "verb group/resource[/sub][@namespace] name", or "verb path".
type rules struct {
	allow []string
	asked []string
}

func (r *rules) ask(_ context.Context, mode string, a authz.Attributes) error {
	q := a.Verb + " " + a.Path
	if a.Resource {
		what := a.Plural
		if a.Subresource != "" {
			what += "/" + a.Subresource
		}
		if a.Namespace != "" {
			what += "@" + a.Namespace
		}
		q = strings.TrimSpace(a.Verb + " " + a.Group + "/" + what + " " + a.Name)
	}
	r.asked = append(r.asked, mode+": "+q)
	if slices.Contains(r.allow, q) {
		return nil
	}
	return &authz.Refusal{Of: a}
}

func listPods(u *authn.User) authz.Attributes {
	return authz.Attributes{User: u, Verb: "list", Resource: true, Version: "v1", Plural: "pods", Namespace: "ns"}
}

const auth = "authentication.k8s.io/"

func TestModes(t *testing.T) {
	ann := &authn.User{Name: "ann"}
	agent := &authn.User{Name: "system:serviceaccount:kube-system:agent", Extra: map[string][]string{authn.NodeNameKey: {"n1"}}}
	on := func(mode string) string { return "impersonate-on:" + mode + ":list /pods@ns" }
	cannot := func(who, verb, what, group string) string {
		return fmt.Sprintf("User %q cannot %s resource %q in API group %q at the cluster scope", who, verb, what, group)
	}
	const agentName = "system:serviceaccount:kube-system:agent"
	for _, c := range []struct {
		text   string
		who    *authn.User
		want   Wanted
		allow  []string
		mode   string // empty: refused
		groups []string
		fault  string
	}{
		{text: "nothing is allowed: the first mode says so", who: ann, want: Wanted{User: "bob"},
			fault: `User "ann" cannot impersonate-on:user-info:list resource "pods" in API group "" in the namespace "ns"`},
		{text: "a user", who: ann, want: Wanted{User: "bob"}, allow: []string{on("user-info"), "impersonate:user-info " + auth + "users bob"},
			mode: "user-info", groups: []string{"system:authenticated"}},
		{text: "the verb but not the user", who: ann, want: Wanted{User: "bob"}, allow: []string{on("user-info")},
			fault: cannot("ann", "impersonate:user-info", "users", "authentication.k8s.io")},
		{text: "the user but not the verb", who: ann, want: Wanted{User: "bob"}, allow: []string{"impersonate:user-info " + auth + "users bob"},
			fault: `User "ann" cannot impersonate-on:user-info:list resource "pods" in API group "" in the namespace "ns"`},
		{text: "the classic permission", who: ann, want: Wanted{User: "bob"}, allow: []string{"impersonate /users bob"},
			mode: legacy, groups: []string{"system:authenticated"}},
		{text: "the classic permission does not know the new resources", who: ann, want: Wanted{User: "bob"}, allow: []string{"impersonate " + auth + "users bob"},
			fault: `User "ann" cannot impersonate-on:user-info:list resource "pods" in API group "" in the namespace "ns"`},
		{text: "groups, UID and extra", who: ann, want: Wanted{User: "bob", UID: "7", Groups: []string{"g"}, Extra: map[string][]string{"x.io/a": {"1"}}},
			allow: []string{on("user-info"), "impersonate:user-info " + auth + "users bob", "impersonate:user-info " + auth + "uids 7",
				"impersonate:user-info " + auth + "groups g", "impersonate:user-info " + auth + "userextras/x.io/a 1"},
			mode: "user-info", groups: []string{"g", "system:authenticated"}},
		{text: "the same, classically", who: ann, want: Wanted{User: "bob", UID: "7", Groups: []string{"g"}, Extra: map[string][]string{"x.io/a": {"1"}}},
			allow: []string{"impersonate /users bob", "impersonate " + auth + "uids 7", "impersonate /groups g", "impersonate " + auth + "userextras/x.io/a 1"},
			mode:  legacy, groups: []string{"g", "system:authenticated"}},
		{text: "many groups at once", who: ann, want: Wanted{User: "bob", Groups: []string{"a", "b", "c", "d"}},
			allow: []string{on("user-info"), "impersonate:user-info " + auth + "users bob", "impersonate:user-info " + auth + "groups *"},
			mode:  "user-info", groups: []string{"a", "b", "c", "d", "system:authenticated"}},
		{text: "three groups are asked for one by one", who: ann, want: Wanted{User: "bob", Groups: []string{"a", "b", "c"}},
			allow: []string{on("user-info"), "impersonate:user-info " + auth + "users bob", "impersonate:user-info " + auth + "groups *"},
			fault: cannot("ann", "impersonate:user-info", "groups", "authentication.k8s.io")},
		{text: "many extra values at once", who: ann, want: Wanted{User: "bob", Extra: map[string][]string{"x.io/a": {"1", "2"}, "x.io/b": {"1", "2"}}},
			allow: []string{on("user-info"), "impersonate:user-info " + auth + "users bob", "impersonate:user-info " + auth + "userextras/* *"},
			mode:  "user-info", groups: []string{"system:authenticated"}},
		{text: "administrators only classically", who: ann, want: Wanted{User: "bob", Groups: []string{"system:masters"}},
			allow: []string{on("user-info"), "impersonate:user-info " + auth + "users bob", "impersonate:user-info " + auth + "groups system:masters"},
			fault: cannot("ann", "impersonate:user-info", "groups", "authentication.k8s.io") + ": impersonating the system:masters group is not allowed"},
		{text: "and there they are", who: ann, want: Wanted{User: "bob", Groups: []string{"system:masters"}},
			allow: []string{"impersonate /users bob", "impersonate /groups system:masters"},
			mode:  legacy, groups: []string{"system:masters", "system:authenticated"}},
		{text: "a group without a name", who: ann, want: Wanted{User: "bob", Groups: []string{""}},
			allow: []string{on("user-info"), "impersonate:user-info " + auth + "users bob"},
			fault: cannot("ann", "impersonate:user-info", "groups", "authentication.k8s.io") + ": impersonating the empty string group is not allowed"},
		{text: "an extra field without a name", who: ann, want: Wanted{User: "bob", Extra: map[string][]string{"": {"1"}}},
			allow: []string{on("user-info"), "impersonate:user-info " + auth + "users bob"},
			fault: cannot("ann", "impersonate:user-info", "userextras", "authentication.k8s.io") + ": impersonating the empty string key in extra is not allowed"},
		{text: "an extra value of nothing", who: ann, want: Wanted{User: "bob", Extra: map[string][]string{"x.io/a": {""}}},
			allow: []string{on("user-info"), "impersonate:user-info " + auth + "users bob"},
			fault: cannot("ann", "impersonate:user-info", "userextras", "authentication.k8s.io") + ": impersonating the empty string value in extra is not allowed"},
		{text: "an extra field in capitals", who: ann, want: Wanted{User: "bob", Extra: map[string][]string{"example.com/A": {"1"}}},
			allow: []string{on("user-info"), "impersonate:user-info " + auth + "users bob"},
			fault: cannot("ann", "impersonate:user-info", "userextras", "authentication.k8s.io") + `: impersonating a non-lowercase key in extra is not allowed: "example.com/A"`},
		{text: "an extra field without a domain", who: ann, want: Wanted{User: "bob", Extra: map[string][]string{"scopes": {"1"}}},
			allow: []string{on("user-info"), "impersonate:user-info " + auth + "users bob"},
			fault: cannot("ann", "impersonate:user-info", "userextras", "authentication.k8s.io") + `: impersonating an invalid key in extra is not allowed: extra.key: Invalid value: "scopes": must be a domain-prefixed path (such as "acme.io/foo")`},
		{text: "nobody in particular", who: ann, want: Wanted{User: "system:anonymous"},
			allow: []string{on("user-info"), "impersonate:user-info " + auth + "users system:anonymous"},
			mode:  "user-info", groups: []string{"system:unauthenticated"}},
		{text: "somebody who is not known either", who: ann, want: Wanted{User: "bob", Groups: []string{"system:unauthenticated"}},
			allow: []string{"impersonate /users bob", "impersonate /groups system:unauthenticated"},
			mode:  legacy, groups: []string{"system:unauthenticated"}},
		{text: "a service account", who: ann, want: Wanted{User: agentName},
			allow: []string{on("serviceaccount"), "impersonate:serviceaccount " + auth + "serviceaccounts@kube-system agent"},
			mode:  "serviceaccount", groups: []string{"system:serviceaccounts", "system:serviceaccounts:kube-system", "system:authenticated"}},
		{text: "a service account is no user", who: ann, want: Wanted{User: agentName}, allow: []string{on("user-info"), "impersonate:user-info " + auth + "users " + agentName},
			fault: `User "ann" cannot impersonate-on:serviceaccount:list resource "pods" in API group "" in the namespace "ns"`},
		{text: "a service account with groups only classically", who: ann, want: Wanted{User: agentName, Groups: []string{"g"}},
			allow: []string{"impersonate /serviceaccounts@kube-system agent", "impersonate /groups g"}, mode: legacy, groups: []string{"g", "system:authenticated"}},
		{text: "what looks like a service account and is none", who: ann, want: Wanted{User: "system:serviceaccount:A:b"},
			allow: []string{on("user-info"), "impersonate:user-info " + auth + "users system:serviceaccount:A:b"}, mode: "user-info", groups: []string{"system:authenticated"}},
		{text: "a node", who: ann, want: Wanted{User: "system:node:n1"}, allow: []string{on("arbitrary-node"), "impersonate:arbitrary-node " + auth + "nodes n1"},
			mode: "arbitrary-node", groups: []string{"system:nodes", "system:authenticated"}},
		{text: "a node classically is a user like others", who: ann, want: Wanted{User: "system:node:n1"}, allow: []string{"impersonate /users system:node:n1"},
			mode: legacy, groups: []string{"system:authenticated"}},
		{text: "what looks like a node and is none", who: ann, want: Wanted{User: "system:node:N_1"},
			allow: []string{on("user-info"), "impersonate:user-info " + auth + "users system:node:N_1"}, mode: "user-info", groups: []string{"system:authenticated"}},
		{text: "the node of a pod", who: agent, want: Wanted{User: "system:node:n1"}, allow: []string{on("associated-node"), "impersonate:associated-node " + auth + "nodes *"},
			mode: "associated-node", groups: []string{"system:nodes", "system:authenticated"}},
		{text: "the node of a pod by its name", who: agent, want: Wanted{User: "system:node:n1"}, allow: []string{on("associated-node"), "impersonate:associated-node " + auth + "nodes n1"},
			fault: cannot(agentName, "impersonate:associated-node", "nodes", "authentication.k8s.io")},
		{text: "a node of other pods", who: agent, want: Wanted{User: "system:node:n2"}, allow: []string{on("associated-node"), "impersonate:associated-node " + auth + "nodes *"},
			fault: `User "` + agentName + `" cannot impersonate-on:arbitrary-node:list resource "pods" in API group "" in the namespace "ns"`},
		{text: "a user with a service account's fields is none", who: &authn.User{Name: "ann", Extra: agent.Extra}, want: Wanted{User: "system:node:n1"},
			allow: []string{on("associated-node"), "impersonate:associated-node " + auth + "nodes *"},
			fault: `User "ann" cannot impersonate-on:arbitrary-node:list resource "pods" in API group "" in the namespace "ns"`},
		{text: "a node with a group", who: ann, want: Wanted{User: "system:node:n1", Groups: []string{"g"}}, allow: []string{on("arbitrary-node"), "impersonate:arbitrary-node " + auth + "nodes n1"},
			fault: cannot("ann", "impersonate", "users", "")},
	} {
		r := &rules{allow: c.allow}
		i := &Impersonator{Ask: r.ask}
		got, err := i.As(context.Background(), listPods(c.who), &c.want)
		if c.mode == "" {
			var no *authz.Refusal
			if !errors.As(err, &no) || no.Error() != c.fault {
				t.Errorf("%s: %+v, %v\nwant %s", c.text, got, err, c.fault)
			}
			continue
		}
		constraint := "impersonate:" + c.mode
		if c.mode == legacy {
			constraint = ""
		}
		want := Acting{Mode: c.mode, Constraint: constraint, User: &authn.User{Name: c.want.User, UID: c.want.UID, Groups: c.groups, Extra: c.want.Extra}}
		if d := cmp.Diff(want, got); err != nil || d != "" {
			t.Errorf("%s: %v\n%s", c.text, err, d)
		}
	}
}

// Paths are asked for as paths, and the mode that allowed the last request is tried first: it costs its
// own questions alone, and its refusal is what a client sees.
func TestTheLastModeIsTriedFirst(t *testing.T) {
	r := &rules{allow: []string{"impersonate /users bob"}}
	i := &Impersonator{Ask: r.ask}
	as := func(who, user, path string) error {
		r.asked = nil
		_, err := i.As(context.Background(), authz.Attributes{User: &authn.User{Name: who}, Verb: "get", Path: path}, &Wanted{User: user})
		return err
	}
	first := []string{"user-info: impersonate-on:user-info:get /version", "legacy: impersonate /users bob"}
	if err := as("ann", "bob", "/version"); err != nil || !slices.Equal(r.asked, first) {
		t.Errorf("first: %v, asked %q", err, r.asked)
	}
	if err := as("ann", "bob", "/version"); err != nil || !slices.Equal(r.asked, first[1:]) {
		t.Errorf("again: %v, asked %q", err, r.asked)
	}
	const classic = `User "ann" cannot impersonate resource "users" in API group "" at the cluster scope`
	if err := as("ann", "eve", "/version"); err == nil || err.Error() != classic || len(r.asked) != 2 {
		t.Errorf("somebody else: %v, asked %q", err, r.asked)
	}
	if err := as("joe", "eve", "/version"); err == nil || err.Error() != `User "joe" cannot impersonate-on:user-info:get path "/version"` {
		t.Errorf("another who asks: %v", err)
	}
	r.allow = []string{"impersonate-on:user-info:get /version", "impersonate:user-info " + auth + "users bob"}
	for range 2 { // the second time it is the mode that is tried first
		if err := as("ann", "bob", "/version"); err != nil {
			t.Errorf("with other roles: %v", err)
		}
	}
	if len(r.asked) != 2 {
		t.Errorf("asked %q", r.asked)
	}
	for n := range 3 * remembered {
		if err := as(fmt.Sprint("u", n), "bob", "/version"); err != nil {
			t.Fatal(err)
		}
	}
	if len(i.last) > remembered {
		t.Errorf("%d users are remembered", len(i.last))
	}
}

func TestParse(t *testing.T) {
	for _, c := range []struct {
		text string
		h    http.Header
		want *Wanted
		err  string
	}{
		{text: "nothing", h: http.Header{"Accept": {"*/*"}}},
		{text: "a user of no name", h: http.Header{"Impersonate-User": {""}}},
		{text: "a user", h: http.Header{"Impersonate-User": {"bob"}}, want: &Wanted{User: "bob"}},
		{text: "everything", h: http.Header{"Impersonate-User": {"bob"}, "Impersonate-Uid": {"7"}, "Impersonate-Group": {"a", ""}, "Impersonate-Extra-Example.com%2fx": {"1", "2"}, "Impersonate-Extra-Bad%zz": {"3"}},
			want: &Wanted{User: "bob", UID: "7", Groups: []string{"a", ""}, Extra: map[string][]string{"example.com/x": {"1", "2"}, "bad%zz": {"3"}}}},
		{text: "two spellings of a field", h: http.Header{"Impersonate-User": {"bob"}, "Impersonate-Extra-A": {"1"}, "Impersonate-Extra-%61": {"1"}},
			want: &Wanted{User: "bob", Extra: map[string][]string{"a": {"1", "1"}}}},
		{text: "a group of nobody", h: http.Header{"Impersonate-Group": {"g"}},
			err: `requested &user.DefaultInfo{Name:"", UID:"", Groups:[]string{"g"}, Extra:map[string][]string(nil)} without impersonating a user name`},
		{text: "a field of nobody", h: http.Header{"Impersonate-Extra-A": {"1"}},
			err: `requested &user.DefaultInfo{Name:"", UID:"", Groups:[]string(nil), Extra:map[string][]string{"a":[]string{"1"}}} without impersonating a user name`},
		{text: "a UID of nobody", h: http.Header{"Impersonate-Uid": {"7"}},
			err: `requested &user.DefaultInfo{Name:"", UID:"7", Groups:[]string(nil), Extra:map[string][]string(nil)} without impersonating a user name`},
	} {
		got, err := Parse(c.h)
		if d := cmp.Diff(c.want, got); d != "" || (err == nil) != (c.err == "") || err != nil && err.Error() != c.err {
			t.Errorf("%s: %v\n%s", c.text, err, d)
		}
	}
	h := http.Header{"Impersonate-User": {"bob"}, "Impersonate-Extra-A": {"1"}, "Impersonate-Group": {"g"}, "Impersonate-Uid": {"7"}, "Accept": {"*/*"}}
	Strip(h)
	if len(h) != 1 || h.Get("Accept") == "" {
		t.Errorf("left: %v", h)
	}
}
