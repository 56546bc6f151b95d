// Package packettest walks a packet through the text of a ruleset, as the kernel
// would, so that tests say what happens to traffic and not how a rule is written.
// It knows the matches and targets that package rules uses, and fails on any other.
package packettest

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/keelson/keelson/kube-proxy/rules"
)

// Packet is one new connection.
type Packet struct {
	From  netip.Addr
	To    netip.AddrPort
	Proto string // "tcp", "udp"
	// FromHere, ToHere: the address is one of the node's own.
	FromHere, ToHere bool
}

// Fate is what became of it.
type Fate struct {
	// Verdict is ACCEPT, DROP or REJECT.
	Verdict    string
	To         []netip.AddrPort // where it can have been sent; one unless endpoints share it
	Masquerade bool
}

func (f Fate) String() string {
	if f.Verdict != "ACCEPT" {
		return f.Verdict
	}
	var to []string
	for _, a := range f.To {
		to = append(to, a.String())
	}
	s := strings.Join(to, " ")
	if f.Masquerade {
		s += " masqueraded"
	}
	return s
}

// walker is one packet on its way. Random choices are explored one after the other.
type walker struct {
	set    rules.Ruleset
	packet Packet
	marked bool
	to     netip.AddrPort
	skip   int // random rules to pass by
	passed int
	more   bool // another choice exists
}

// Walk sends the packet through nat PREROUTING (or OUTPUT) and then filter.
func Walk(set rules.Ruleset, p Packet) (Fate, error) {
	fate := Fate{Verdict: "ACCEPT"}
	for choice := 0; ; choice++ {
		w := &walker{set: set, packet: p, to: p.To, skip: choice}
		hook := "PREROUTING"
		if p.FromHere {
			hook = "OUTPUT"
		}
		if _, err := w.hook("nat", hook); err != nil {
			return Fate{}, err
		}
		filter := "FORWARD"
		switch {
		case p.FromHere:
			filter = "OUTPUT"
		case w.to == p.To && p.ToHere:
			filter = "INPUT"
		}
		verdict, err := w.hook("filter", filter)
		if err != nil {
			return Fate{}, err
		}
		if verdict == "DROP" || verdict == "REJECT" {
			return Fate{Verdict: verdict}, nil
		}
		fate.To = append(fate.To, w.to)
		fate.Masquerade = fate.Masquerade || w.marked
		if !w.more {
			return fate, nil
		}
		if choice > 1000 {
			return Fate{}, fmt.Errorf("a packet to %s has more than 1000 ways to go", p.To)
		}
	}
}

func (w *walker) hook(table, chain string) (string, error) {
	for _, j := range w.set.Jumps {
		if j.Table != table || j.Chain != chain {
			continue
		}
		line := make([]string, len(j.Rule))
		copy(line, j.Rule)
		v, err := w.rule(table, line)
		if err != nil || v != "" {
			return v, err
		}
	}
	return "", nil
}

func (w *walker) chain(table, name string) (string, error) {
	t := w.set.NAT
	if table == "filter" {
		t = w.set.Filter
	}
	text, ok := t[name]
	if !ok {
		return "", fmt.Errorf("a rule leads to the chain %s of table %s, which is not there", name, table)
	}
	for line := range strings.Lines(string(text)) {
		words, err := fields(line)
		if err != nil {
			return "", err
		}
		if len(words) < 2 || words[0] != "-A" || words[1] != name {
			return "", fmt.Errorf("chain %s holds the line %q", name, line)
		}
		v, err := w.rule(table, words[2:])
		if err != nil {
			return "", err
		}
		if v == "RETURN" {
			return "", nil
		}
		if v != "" {
			return v, nil
		}
	}
	return "", nil
}

// fields splits a line as a shell would, with double quotes.
func fields(line string) ([]string, error) {
	var out []string
	rest := strings.TrimSpace(line)
	for rest != "" {
		if rest[0] == '"' {
			end := strings.IndexByte(rest[1:], '"')
			if end < 0 {
				return nil, fmt.Errorf("quotes do not close: %q", line)
			}
			out = append(out, rest[1:1+end])
			rest = strings.TrimSpace(rest[end+2:])
			continue
		}
		w, r, _ := strings.Cut(rest, " ")
		out = append(out, w)
		rest = strings.TrimSpace(r)
	}
	return out, nil
}

// rule returns a verdict, "" to go on.
func (w *walker) rule(table string, words []string) (string, error) {
	not := false
	match := true
	random := false
	hit := func(ok bool) {
		if ok == not {
			match = false
		}
		not = false
	}
	for i := 0; i < len(words); i++ {
		arg := func() string { i++; return words[min(i, len(words)-1)] }
		switch words[i] {
		case "!":
			not = true
		case "-m":
			arg()
		case "--comment", "--name", "--seconds":
			arg()
		case "--reap", "--rsource", "--set", "--random-fully":
		case "-s":
			p, err := netip.ParsePrefix(arg())
			if err != nil {
				return "", err
			}
			hit(p.Contains(w.packet.From))
		case "-d":
			p, err := netip.ParsePrefix(arg())
			if err != nil {
				return "", err
			}
			hit(p.Contains(w.to.Addr()))
		case "-p":
			hit(arg() == w.packet.Proto)
		case "--dport":
			n, err := strconv.Atoi(arg())
			if err != nil {
				return "", err
			}
			hit(int(w.to.Port()) == n)
		case "--src-type":
			hit(arg() == "LOCAL" && w.packet.FromHere)
		case "--dst-type":
			hit(arg() == "LOCAL" && w.packet.ToHere)
		case "--ctstate":
			states := arg()
			hit(strings.Contains(states, "NEW") || strings.Contains(states, "DNAT") && w.to != w.packet.To)
		case "--mark":
			arg()
			hit(w.marked)
		case "--mode":
			arg()
		case "--probability":
			arg()
			random = true
		case "--rcheck":
			hit(false) // a client that was never here
		case "-j":
			if !match {
				return "", nil
			}
			if random {
				w.passed++
				if w.passed <= w.skip {
					return "", nil
				}
				w.more = true
			}
			return w.target(table, words[i+1:])
		default:
			return "", fmt.Errorf("unknown word %q in the rule %q", words[i], strings.Join(words, " "))
		}
	}
	return "", nil
}

func (w *walker) target(table string, words []string) (string, error) {
	switch words[0] {
	case "ACCEPT", "DROP", "REJECT", "RETURN":
		return words[0], nil
	case "MARK":
		w.marked = words[1] == "--or-mark"
		return "", nil
	case "MASQUERADE":
		return "ACCEPT", nil
	case "DNAT":
		to, err := netip.ParseAddrPort(words[2])
		if err != nil {
			return "", err
		}
		w.to = to
		return "ACCEPT", nil
	}
	return w.chain(table, words[0])
}
