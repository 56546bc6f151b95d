package rules

import (
	"bytes"
	"slices"
	"strings"
)

// ours are the prefixes of the chains that belong to the proxy and come and go.
var ours = []string{"KUBE-SVC-", "KUBE-SVL-", "KUBE-SEP-", "KUBE-EXT-", "KUBE-FW-"}

// Owned reports whether a chain is one that the proxy makes for a service or an
// endpoint, and may therefore remove.
func Owned(chain string) bool {
	return slices.ContainsFunc(ours, func(p string) bool { return strings.HasPrefix(chain, p) })
}

// Diff returns what iptables-restore --noflush has to be given so that have
// becomes want, and how many chains it touches. A chain that is named is flushed
// first, so only changed chains are. nil have means that nothing is known to stand.
func Diff(table string, have, want Table) (text []byte, touched int) {
	var changed, gone []string
	for name, rules := range want {
		if old, ok := have[name]; !ok || old != rules {
			changed = append(changed, name)
		}
	}
	for name := range have {
		if _, ok := want[name]; !ok {
			gone = append(gone, name)
		}
	}
	if len(changed)+len(gone) == 0 {
		return nil, 0
	}
	slices.Sort(changed)
	slices.Sort(gone)
	var b bytes.Buffer
	b.WriteString("*" + table + "\n")
	for _, list := range [][]string{changed, gone} {
		for _, name := range list {
			b.WriteString(":" + name + " - [0:0]\n")
		}
	}
	for _, name := range changed {
		b.WriteString(string(want[name]))
	}
	for _, name := range gone {
		b.WriteString("-X " + name + "\n")
	}
	b.WriteString("COMMIT\n")
	return b.Bytes(), len(changed) + len(gone)
}
