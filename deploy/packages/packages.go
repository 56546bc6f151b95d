// Package packages knows which programs a Keelson machine needs, which Debian packages
// they come from, and why. On Debian and its kin Install adds what is missing with apt;
// elsewhere the administrator gets a list that says what to provide.
//
// Main calls: Missing (looks, changes nothing) and Install. Neither starts a service:
// Debian's own containerd service is not used and, where Install brought it, is told
// not to start.
package packages

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// Need is one program or file, where it comes from, and what for.
type Need struct {
	File    string // absolute path, or a program's name looked up in PATH
	Package string // Debian's name for the package
	Why     string
}

// Worker machines need these. The order is the one that is printed.
var Worker = []Need{
	{"/usr/bin/containerd", "containerd", "runs the containers (Keelson starts one of its own)"},
	{"ctr", "containerd", "loads image archives into the runtime"},
	{"runc", "runc", "makes a container of a process"},
	{"/usr/lib/cni/loopback", "containernetworking-plugins", "brings up the pods' own loopback"},
	{"/usr/lib/cni/portmap", "containernetworking-plugins", "serves host ports of pods"},
	{"iptables-restore", "iptables", "service rules"},
	{"ip6tables-restore", "iptables", "service rules of IPv6"},
	{"conntrack", "conntrack", "removes stale connections of services"},
	{"ip", "iproute2", "shows and repairs the node's network"},
	{"mount", "mount", "volumes of pods"},
	{"nsenter", "util-linux", "enters the pods' namespaces for port-forward"},
}

// ControlPlane machines need nothing that is not compiled in.
var ControlPlane []Need

// Missing returns the needs that this machine does not meet, in table order.
func Missing(needs []Need) []Need {
	var out []Need
	for _, n := range needs {
		if !present(n.File) {
			out = append(out, n)
		}
	}
	return out
}

func present(file string) bool {
	if filepath.IsAbs(file) {
		info, err := os.Stat(file)
		return err == nil && !info.IsDir()
	}
	for _, dir := range append(filepath.SplitList(os.Getenv("PATH")), "/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin") {
		if info, err := os.Stat(filepath.Join(dir, file)); err == nil && info.Mode()&0o111 != 0 && !info.IsDir() {
			return true
		}
	}
	return false
}

// Names returns the Debian packages of the needs, each once, in order.
func Names(needs []Need) []string {
	var out []string
	seen := map[string]bool{}
	for _, n := range needs {
		if !seen[n.Package] {
			seen[n.Package] = true
			out = append(out, n.Package)
		}
	}
	return out
}

// List describes the needs, one line each, for people.
func List(needs []Need) string {
	var b strings.Builder
	for _, n := range needs {
		fmt.Fprintf(&b, "  %-28s %s (Debian package %s)\n", n.File, n.Why, n.Package)
	}
	return b.String()
}

// ErrByHand means that only the administrator can install what is missing.
var ErrByHand = errors.New("programs are missing")

// Install installs the packages of the needs with apt and checks the result.
// out receives apt's output. Where apt is absent the error lists what to provide.
func Install(ctx context.Context, needs []Need, out io.Writer) error {
	if len(needs) == 0 {
		return nil
	}
	apt, err := exec.LookPath("apt-get")
	if err != nil {
		return fmt.Errorf("%w on this machine, and it has no apt-get to install them; provide these, then run it again:\n%s", ErrByHand, List(needs))
	}
	undo, err := keepServicesDown()
	if err != nil {
		return err
	}
	defer undo()
	names := Names(needs)
	install := func() error {
		return run(ctx, out, apt, append([]string{"install", "-y", "-q", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=120"}, names...)...)
	}
	if err := install(); err != nil {
		// The lists of a fresh machine may be empty or old.
		if uerr := run(ctx, out, apt, "update", "-q"); uerr != nil {
			return fmt.Errorf("apt-get update: %w (is the network there? /etc/apt/sources.list right?)", uerr)
		}
		if err := install(); err != nil {
			return fmt.Errorf("apt-get install %s: %w", strings.Join(names, " "), err)
		}
	}
	// Nor does Debian's containerd start with the machine: nobody had it before.
	if slices.Contains(names, "containerd") {
		if systemctl, err := exec.LookPath("systemctl"); err == nil {
			if err := run(ctx, out, systemctl, "disable", "--quiet", "containerd.service"); err != nil {
				return fmt.Errorf("keep Debian's containerd from starting with the machine: %w", err)
			}
		}
	}
	if still := Missing(needs); len(still) > 0 {
		return fmt.Errorf("%w after apt-get install %s:\n%s", ErrByHand, strings.Join(names, " "), List(still))
	}
	return nil
}

func run(ctx context.Context, out io.Writer, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive", "NEEDRESTART_MODE=l")
	cmd.Stdout, cmd.Stderr = out, out
	return cmd.Run()
}

// keepServicesDown makes Debian's maintainer scripts not start what they install,
// by the policy file that invoke-rc.d asks (its manual page: policy-rc.d, 101 is "no").
func keepServicesDown() (undo func(), err error) {
	const policy = "/usr/sbin/policy-rc.d"
	if _, err := os.Stat(policy); err == nil {
		return func() {}, nil // the machine has a policy of its own
	}
	if err := os.WriteFile(policy, []byte("#!/bin/sh\n# keelson up is installing packages; their services stay down\nexit 101\n"), 0o755); err != nil {
		return nil, fmt.Errorf("keep Debian's services from starting: %w", err)
	}
	return func() { os.Remove(policy) }, nil
}
