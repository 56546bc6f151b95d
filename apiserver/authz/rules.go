package authz

import (
	"slices"
	"strings"

	rbacv1 "k8s.io/api/rbac/v1"
)

// Allows reports whether one RBAC rule permits what is asked.
//
// Source: API reference, PolicyRule: "*" is everything, "*/sub" a subresource of
// every resource, "/path/*" every path below; resource names do not apply to
// create and deletecollection, which have no name yet.
func Allows(rule *rbacv1.PolicyRule, a *Attributes) bool {
	if !has(rule.Verbs, a.Verb) {
		return false
	}
	if !a.Resource {
		return allowsPath(rule.NonResourceURLs, a.Path)
	}
	return has(rule.APIGroups, a.Group) && allowsResource(rule.Resources, a.Plural, a.Subresource) &&
		(len(rule.ResourceNames) == 0 || slices.Contains(rule.ResourceNames, a.Name))
}

func has(list []string, want string) bool {
	for _, s := range list {
		if s == want || s == "*" {
			return true
		}
	}
	return false
}

func allowsResource(list []string, plural, sub string) bool {
	for _, s := range list {
		if s == "*" {
			return true
		}
		if sub == "" {
			if s == plural {
				return true
			}
			continue
		}
		res, rest, ok := strings.Cut(s, "/")
		if ok && rest == sub && (res == plural || res == "*") {
			return true
		}
	}
	return false
}

func allowsPath(list []string, path string) bool {
	for _, s := range list {
		if s == "*" || s == path {
			return true
		}
		if p, ok := strings.CutSuffix(s, "*"); ok && strings.HasPrefix(path, p) {
			return true
		}
	}
	return false
}

// Covers reports whether the rules that somebody has include everything that
// want gives, and returns what is missing. It is the privilege escalation check:
// nobody may hand out what they do not have.
func Covers(have, want []rbacv1.PolicyRule) (missing []rbacv1.PolicyRule) {
	for _, w := range want {
		for _, single := range breakDown(w) {
			ok := slices.ContainsFunc(have, func(h rbacv1.PolicyRule) bool { return coversOne(&h, &single) })
			if !ok {
				missing = append(missing, single)
			}
		}
	}
	return missing
}

// breakDown splits a rule into rules of one verb, group, resource and name each.
func breakDown(r rbacv1.PolicyRule) []rbacv1.PolicyRule {
	var out []rbacv1.PolicyRule
	for _, verb := range r.Verbs {
		for _, url := range r.NonResourceURLs {
			out = append(out, rbacv1.PolicyRule{Verbs: []string{verb}, NonResourceURLs: []string{url}})
		}
		for _, group := range r.APIGroups {
			for _, res := range r.Resources {
				one := rbacv1.PolicyRule{Verbs: []string{verb}, APIGroups: []string{group}, Resources: []string{res}}
				if len(r.ResourceNames) == 0 {
					out = append(out, one)
				}
				for _, name := range r.ResourceNames {
					named := one
					named.ResourceNames = []string{name}
					out = append(out, named)
				}
			}
		}
	}
	return out
}

func coversOne(have, want *rbacv1.PolicyRule) bool {
	if !has(have.Verbs, want.Verbs[0]) {
		return false
	}
	if len(want.NonResourceURLs) > 0 {
		u := want.NonResourceURLs[0]
		return slices.Contains(have.NonResourceURLs, u) || allowsPath(have.NonResourceURLs, strings.TrimSuffix(u, "*"))
	}
	if !has(have.APIGroups, want.APIGroups[0]) {
		return false
	}
	res := want.Resources[0]
	ok := slices.Contains(have.Resources, "*") || slices.Contains(have.Resources, res)
	if _, sub, cut := strings.Cut(res, "/"); cut && !ok {
		ok = slices.Contains(have.Resources, "*/"+sub)
	}
	if !ok {
		return false
	}
	return len(have.ResourceNames) == 0 || len(want.ResourceNames) > 0 && slices.Contains(have.ResourceNames, want.ResourceNames[0])
}
