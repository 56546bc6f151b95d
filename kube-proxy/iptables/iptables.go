// Package iptables is the only room that runs the iptables commands: it reads a
// table's chains, restores text, and keeps our jumps in the built-in chains.
//
// It works with both variants (nft and legacy); which one "iptables" is, the
// machine decides. Every command waits for the lock for at most lockSeconds and
// is killed when its context ends.
package iptables

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"

	goiptables "github.com/coreos/go-iptables/iptables"

	"github.com/keelson/keelson/kube-proxy/model"
	"github.com/keelson/keelson/kube-proxy/rules"
)

const lockSeconds = 5

// Runner runs the commands of one address family.
type Runner struct {
	ipt           *goiptables.IPTables
	save, restore string
}

// New finds the commands. It fails when iptables is not installed.
func New(family model.Family) (*Runner, error) {
	proto, name := goiptables.ProtocolIPv4, "iptables"
	if family == model.IPv6 {
		proto, name = goiptables.ProtocolIPv6, "ip6tables"
	}
	ipt, err := goiptables.New(goiptables.IPFamily(proto), goiptables.Timeout(lockSeconds))
	if err != nil {
		return nil, fmt.Errorf("%s: %w (install the package iptables)", name, err)
	}
	for _, c := range []string{name + "-save", name + "-restore"} {
		if _, err := exec.LookPath(c); err != nil {
			return nil, fmt.Errorf("%w (install the package iptables)", err)
		}
	}
	return &Runner{ipt: ipt, save: name + "-save", restore: name + "-restore"}, nil
}

// RandomFully reports whether MASQUERADE --random-fully may be used.
func (r *Runner) RandomFully() bool { return r.ipt.HasRandomFully() }

// Chains lists the chains of a table.
func (r *Runner) Chains(ctx context.Context, table string) ([]string, error) {
	cmd := exec.CommandContext(ctx, r.save, "-t", table)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s -t %s: %w: %s", r.save, table, err, strings.TrimSpace(stderr.String()))
	}
	var names []string
	for line := range strings.Lines(string(out)) {
		if rest, ok := strings.CutPrefix(line, ":"); ok {
			if name, _, ok := strings.Cut(rest, " "); ok {
				names = append(names, name)
			}
		}
	}
	return names, nil
}

// ChainExists tells whether a chain of a table is there.
func (r *Runner) ChainExists(table, chain string) (bool, error) {
	return r.ipt.ChainExists(table, chain)
}

// Restore applies text without flushing what it does not name: all of it, or nothing.
func (r *Runner) Restore(ctx context.Context, text []byte) error {
	cmd := exec.CommandContext(ctx, r.restore, "-w", fmt.Sprint(lockSeconds), "--noflush", "--counters")
	cmd.Stdin = bytes.NewReader(text)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", r.restore, err, explain(out, text))
	}
	return nil
}

// explain adds the line that the command complains about.
func explain(out, text []byte) string {
	msg := strings.TrimSpace(string(out))
	_, after, ok := strings.Cut(msg, "line")
	if !ok {
		return msg
	}
	n := 0
	if _, err := fmt.Sscanf(strings.TrimLeft(after, ": "), "%d", &n); err != nil || n < 1 {
		return msg
	}
	lines := bytes.Split(text, []byte("\n"))
	if n > len(lines) {
		return msg
	}
	return fmt.Sprintf("%s (%q)", msg, lines[n-1])
}

// EnsureJumps puts our jumps first in the built-in chains, in order, where they are missing.
func (r *Runner) EnsureJumps(jumps []rules.Jump) error {
	for _, j := range slices.Backward(jumps) {
		ok, err := r.ipt.Exists(j.Table, j.Chain, j.Rule...)
		if err == nil && !ok {
			err = r.ipt.Insert(j.Table, j.Chain, 1, j.Rule...)
		}
		if err != nil {
			return fmt.Errorf("jump from %s %s: %w", j.Table, j.Chain, err)
		}
	}
	return nil
}

// RemoveJumps takes our jumps out again.
func (r *Runner) RemoveJumps(jumps []rules.Jump) error {
	var errs []error
	for _, j := range jumps {
		errs = append(errs, r.ipt.DeleteIfExists(j.Table, j.Chain, j.Rule...))
	}
	return errors.Join(errs...)
}
