package runtime

import (
	"fmt"
	"slices"
	"strings"
	"time"

	rbacv1 "k8s.io/api/rbac/v1"
)

// Row is one controller: what it is called, what it touches, how it is built.
type Row struct {
	Name   string   // as --controllers and users know it: "replicaset-controller"
	Reads  []string // kinds it has caches of, by their names in kinds.go
	Writes []string // kinds and subresources it writes: "pods", "replicasets.apps/status", "update,patch nodes"

	// Extra are RBAC rules that do not follow from Reads and Writes.
	Extra []rbacv1.PolicyRule

	// New builds the controller: caches through Read, queues through Env.Keyed,
	// plain goroutines through Env.Go. It starts nothing.
	New func(*Env) error

	// Plan runs the controller's decision on a set of objects and returns one line
	// for each step, for the plan command. Nil where there is no such decision.
	Plan func(in Objects, now time.Time) ([]string, error)

	// OffByDefault keeps the row out of "--controllers=*".
	OffByDefault bool
}

// writeOf takes a line of Writes apart. Without verbs of its own a kind may be
// created, updated, patched and deleted, a subresource updated and patched.
func writeOf(line string) (verbs []string, name, sub string) {
	v, target, ok := strings.Cut(line, " ")
	if !ok {
		v, target = "", line
	}
	name, sub, _ = strings.Cut(target, "/")
	switch {
	case v != "":
		return strings.Split(v, ","), name, sub
	case sub != "":
		return []string{"update", "patch"}, name, sub
	}
	return []string{"create", "update", "patch", "delete"}, name, sub
}

// Rules are the RBAC rules that this controller needs, in a stable order.
func (r Row) Rules() []rbacv1.PolicyRule {
	verbs := map[string][]string{}
	for _, k := range r.Reads {
		verbs[k] = append(verbs[k], "get", "list", "watch")
	}
	for _, w := range r.Writes {
		may, name, sub := writeOf(w)
		if sub != "" {
			name += "/" + sub
		}
		verbs[name] = append(verbs[name], may...)
	}
	names := make([]string, 0, len(verbs))
	for n := range verbs {
		names = append(names, n)
	}
	slices.Sort(names)
	var rules []rbacv1.PolicyRule
	for _, n := range names {
		name, sub, _ := strings.Cut(n, "/")
		resource, group, _ := strings.Cut(name, ".")
		if sub != "" {
			resource += "/" + sub
		}
		rules = append(rules, rbacv1.PolicyRule{APIGroups: []string{group}, Resources: []string{resource}, Verbs: verbs[n]})
	}
	rules = append(rules, rbacv1.PolicyRule{APIGroups: []string{"", "events.k8s.io"}, Resources: []string{"events"}, Verbs: []string{"create", "patch", "update"}})
	return append(rules, r.Extra...)
}

// Check reports every fault of a table: unknown kinds, names used twice.
func Check(table []Row) error {
	var faults []string
	seen := map[string]bool{}
	for _, r := range table {
		if seen[r.Name] {
			faults = append(faults, fmt.Sprintf("%s: listed twice", r.Name))
		}
		seen[r.Name] = true
		for _, n := range slices.Concat(r.Reads, r.Writes) {
			_, name, _ := writeOf(n)
			if KindNamed(name) == nil {
				faults = append(faults, fmt.Sprintf("%s: kind %q is not in the table of kinds", r.Name, name))
			}
		}
	}
	if len(faults) > 0 {
		return fmt.Errorf("controller table: %s", strings.Join(faults, "; "))
	}
	return nil
}

// Select returns the rows that a --controllers list turns on: names, "-name" for
// off, and "*" for all that are on by default. Names may be given with or without
// their "-controller" ending. Unknown names are an error.
func Select(table []Row, list []string) ([]Row, error) {
	short := func(n string) string { return strings.TrimSuffix(n, "-controller") }
	on, off, all := map[string]bool{}, map[string]bool{}, false
	known := map[string]bool{}
	for _, r := range table {
		known[short(r.Name)] = true
	}
	for _, n := range list {
		if n == "*" {
			all = true
			continue
		}
		name, isOff := strings.CutPrefix(n, "-")
		if !known[short(name)] {
			return nil, fmt.Errorf("controllers: %q is not a known controller", name)
		}
		if isOff {
			off[short(name)] = true
		} else {
			on[short(name)] = true
		}
	}
	var rows []Row
	for _, r := range table {
		n := short(r.Name)
		if !off[n] && (on[n] || all && !r.OffByDefault) {
			rows = append(rows, r)
		}
	}
	return rows, nil
}

// Graph prints who reads and who writes what, in the DOT language.
func Graph(table []Row) string {
	var b strings.Builder
	b.WriteString("digraph controllers {\n\trankdir=LR;\n\tnode [shape=box];\n")
	touched := map[string]bool{}
	for _, r := range table {
		fmt.Fprintf(&b, "\t%q [shape=ellipse];\n", r.Name)
		for _, k := range r.Reads {
			touched[k] = true
			fmt.Fprintf(&b, "\t%q -> %q;\n", k, r.Name)
		}
		for _, w := range r.Writes {
			_, name, sub := writeOf(w)
			touched[name] = true
			label := "write"
			if sub != "" {
				label = sub
			}
			fmt.Fprintf(&b, "\t%q -> %q [label=%q];\n", r.Name, name, label)
		}
	}
	names := make([]string, 0, len(touched))
	for n := range touched {
		names = append(names, n)
	}
	slices.Sort(names)
	for _, n := range names {
		fmt.Fprintf(&b, "\t%q;\n", n)
	}
	b.WriteString("}\n")
	return b.String()
}
