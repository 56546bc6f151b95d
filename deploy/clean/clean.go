// Package clean takes down what a machine's pods and daemons leave in the kernel:
// processes, mounts, network interfaces, routes, iptables chains, cgroups.
//
// Main call: All, after the services were stopped. It looks at the machine and removes
// what is Keelson's by name or place, so it also cleans up after crashes, and a second
// call finds nothing. It never touches data: directories stay unless they are cgroups.
//
// What counts as ours: mounts below our directories; cni0 and what is plugged into it,
// and interfaces called keelson-*; chains KUBE-*, KEELSON-*, CNI-*; shims of our
// containerd; cgroups kubepods and keelson. Other software that uses these names
// shares the machine with a Kubernetes node at its own risk.
package clean

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/keelson/keelson/deploy/config"
)

// RouteProtocol marks the routes that kube-proxy makes to other nodes' pods: its
// network room's number (rtm_protocol, rtnetlink(7): user space shares out those above 4).
const RouteProtocol = 0x4b

// Found counts what was removed.
type Found struct {
	Processes, Mounts, Interfaces, Routes, Chains, Cgroups int
}

func (f Found) String() string {
	return fmt.Sprintf("%d processes, %d mounts, %d interfaces, %d routes, %d chains, %d cgroups",
		f.Processes, f.Mounts, f.Interfaces, f.Routes, f.Chains, f.Cgroups)
}

// All removes everything. It tries each part whatever became of the others.
func All(ctx context.Context, p config.Paths, cgroupRoot string) (Found, error) {
	var f Found
	var errs []error
	step := func(n *int, name string, do func() (int, error)) {
		k, err := do()
		*n += k
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", name, err))
		}
	}
	step(&f.Processes, "processes", func() (int, error) { return shims(ctx, p) })
	step(&f.Cgroups, "cgroups", func() (int, error) { return cgroups(ctx, cgroupRoot) })
	step(&f.Mounts, "mounts", func() (int, error) { return mounts(p) })
	step(&f.Interfaces, "interfaces", interfaces)
	step(&f.Routes, "routes", routes)
	step(&f.Chains, "iptables", func() (int, error) { return chains(ctx) })
	return f, errors.Join(errs...)
}

// shims kills what our containerd left: its shims, and with them their containers.
func shims(ctx context.Context, p config.Paths) (int, error) {
	dirs, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return 0, err
	}
	var killed []int
	for _, file := range dirs {
		b, err := os.ReadFile(file)
		if err != nil {
			continue // it has ended
		}
		if !strings.Contains(string(b), "containerd-shim") || !strings.Contains(string(b), p.ContainerdSocket) {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		if err != nil {
			continue
		}
		if syscall.Kill(pid, syscall.SIGKILL) == nil {
			killed = append(killed, pid)
		}
	}
	return len(killed), gone(ctx, killed)
}

// gone waits until the processes have ended, at most 5 s.
func gone(ctx context.Context, pids []int) error {
	deadline := time.Now().Add(5 * time.Second)
	for _, pid := range pids {
		for {
			stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
			if err != nil || bytes.Contains(stat, []byte(") Z ")) {
				break
			}
			if time.Now().After(deadline) || ctx.Err() != nil {
				return fmt.Errorf("process %d does not end", pid)
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
	return nil
}

// Mounts returns the mount points of mountinfo (proc(5)) that lie below our
// directories, or hold a pod's network namespace, deepest first. It is pure.
func Mounts(mountinfo string, p config.Paths) []string {
	below := []string{p.Kubelet + "/", p.ContainerdState + "/", p.ContainerdRoot + "/", p.Run + "/", p.Lib + "/", "/run/netns/cni-", "/var/run/netns/cni-"}
	var out []string
	s := bufio.NewScanner(strings.NewReader(mountinfo))
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		f := strings.Fields(s.Text())
		if len(f) < 5 {
			continue
		}
		at := unescape(f[4])
		for _, b := range below {
			if strings.HasPrefix(at, b) {
				out = append(out, at)
				break
			}
		}
	}
	// Later mounts hide earlier ones on the same point: undo them in reverse.
	for i, j := 0, len(out)-1; i < j; i, j = i+1, j-1 {
		out[i], out[j] = out[j], out[i]
	}
	sort.SliceStable(out, func(i, j int) bool { return strings.Count(out[i], "/") > strings.Count(out[j], "/") })
	return out
}

// unescape undoes mountinfo's octal escapes (\040 is a blank).
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

func mounts(p config.Paths) (int, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return 0, err
	}
	var errs []error
	n := 0
	for _, at := range Mounts(string(b), p) {
		err := unix.Unmount(at, 0)
		if errors.Is(err, unix.EBUSY) {
			err = unix.Unmount(at, unix.MNT_DETACH)
		}
		if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, fmt.Errorf("unmount %s: %w", at, err))
			continue
		}
		n++
		if strings.Contains(at, "/netns/cni-") {
			_ = os.Remove(at) // the empty file that the namespace was mounted on
		}
	}
	return n, errors.Join(errs...)
}

func interfaces() (int, error) {
	links, err := netlink.LinkList()
	if err != nil {
		return 0, err
	}
	bridge := -1
	for _, l := range links {
		if l.Attrs().Name == "cni0" {
			bridge = l.Attrs().Index
		}
	}
	var errs []error
	n := 0
	for _, l := range links {
		a := l.Attrs()
		if a.Name != "cni0" && !strings.HasPrefix(a.Name, "keelson-") && (bridge < 0 || a.MasterIndex != bridge) {
			continue
		}
		if err := netlink.LinkDel(l); err != nil && !errors.Is(err, unix.ENODEV) {
			errs = append(errs, fmt.Errorf("remove %s: %w", a.Name, err))
			continue
		}
		n++
	}
	return n, errors.Join(errs...)
}

func routes() (int, error) {
	list, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Protocol: RouteProtocol}, netlink.RT_FILTER_PROTOCOL)
	if err != nil {
		return 0, err
	}
	var errs []error
	for _, r := range list {
		if err := netlink.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, fmt.Errorf("remove route to %s: %w", r.Dst, err))
		}
	}
	return len(list), errors.Join(errs...)
}

// chains removes our chains of both address families in the kernel interfaces present.
func chains(ctx context.Context) (int, error) {
	var errs []error
	n := 0
	for _, ip := range []string{"iptables", "ip6tables"} {
		for _, kind := range []string{"", "-nft", "-legacy"} {
			save := ip + kind + "-save"
			if _, err := exec.LookPath(save); err != nil {
				continue
			}
			out, err := exec.CommandContext(ctx, save).Output()
			if err != nil {
				continue // this variant has no kernel support here
			}
			text, k := Removal(string(out))
			if k == 0 {
				continue
			}
			cmd := exec.CommandContext(ctx, ip+kind+"-restore", "--noflush", "--wait=5")
			cmd.Stdin = strings.NewReader(text)
			if out, err := cmd.CombinedOutput(); err != nil {
				errs = append(errs, fmt.Errorf("%s: %w: %s", ip+kind, err, strings.TrimSpace(string(out))))
				continue
			}
			n += k
		}
	}
	return n, errors.Join(errs...)
}

// Removal turns the text of iptables-save into input for iptables-restore --noflush
// that removes our chains and every rule that leads into them, and nothing else. It
// also counts the chains. It is pure.
func Removal(save string) (restore string, chains int) {
	var b strings.Builder
	var table string
	var ours, rules []string
	flush := func() {
		if table != "" && len(ours)+len(rules) > 0 {
			fmt.Fprintln(&b, table)
			for _, c := range ours {
				fmt.Fprintf(&b, ":%s - [0:0]\n", c) // empties the chain
			}
			for _, r := range rules {
				fmt.Fprintln(&b, r)
			}
			for _, c := range ours {
				fmt.Fprintf(&b, "-X %s\n", c)
			}
			fmt.Fprintln(&b, "COMMIT")
			chains += len(ours)
		}
		table, ours, rules = "", nil, nil
	}
	for line := range strings.SplitSeq(save, "\n") {
		switch {
		case strings.HasPrefix(line, "*"):
			flush()
			table = line
		case strings.HasPrefix(line, ":"):
			if name, _, _ := strings.Cut(line[1:], " "); mine(name) {
				ours = append(ours, name)
			}
		case strings.HasPrefix(line, "-A "):
			f := strings.Fields(line)
			if mine(f[1]) {
				continue // goes with its chain
			}
			for i, w := range f {
				if (w == "-j" || w == "-g") && i+1 < len(f) && mine(f[i+1]) {
					rules = append(rules, "-D"+line[2:])
					break
				}
			}
		}
	}
	flush()
	return b.String(), chains
}

func mine(chain string) bool {
	return strings.HasPrefix(chain, "KUBE-") || strings.HasPrefix(chain, "KEELSON-") || strings.HasPrefix(chain, "CNI-")
}

// cgroups kills what is left in our cgroups and removes them, in every hierarchy.
func cgroups(ctx context.Context, root string) (int, error) {
	hierarchies := []string{"/sys/fs/cgroup"}
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err != nil {
		more, err := filepath.Glob("/sys/fs/cgroup/*")
		if err != nil {
			return 0, err
		}
		hierarchies = more
	}
	n := 0
	var errs []error
	for _, h := range hierarchies {
		for _, name := range []string{"kubepods", "kubepods.slice", "keelson", "system.slice/keelson.slice"} {
			k, err := removeTree(ctx, filepath.Join(h, root, name))
			n += k
			if err != nil {
				errs = append(errs, err)
			}
		}
	}
	return n, errors.Join(errs...)
}

func removeTree(ctx context.Context, top string) (int, error) {
	var dirs []string
	var pids []int
	err := filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			return err
		}
		if !d.IsDir() {
			return nil
		}
		dirs = append(dirs, path)
		b, _ := os.ReadFile(filepath.Join(path, "cgroup.procs"))
		for _, w := range strings.Fields(string(b)) {
			if pid, err := strconv.Atoi(w); err == nil && pid > 0 {
				pids = append(pids, pid)
			}
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	for _, pid := range pids {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	if err := gone(ctx, pids); err != nil {
		return 0, fmt.Errorf("%s: %w", top, err)
	}
	n := 0
	deadline := time.Now().Add(3 * time.Second)
	for i := len(dirs) - 1; i >= 0; i-- {
		for {
			err := unix.Rmdir(dirs[i])
			if err == nil {
				n++
			}
			// A cgroup stays busy for a moment after its last process.
			if errors.Is(err, unix.EBUSY) && time.Now().Before(deadline) {
				time.Sleep(5 * time.Millisecond)
				continue
			}
			if err != nil && !errors.Is(err, unix.ENOENT) {
				return n, fmt.Errorf("remove cgroup %s: %w", dirs[i], err)
			}
			break
		}
	}
	return n, nil
}
