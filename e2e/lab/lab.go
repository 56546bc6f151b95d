// Package lab makes machines out of one host: each is a set of namespaces (network,
// mounts, processes, host name, IPC, cgroups) with its own containerd, daemons and
// data, plugged into a bridge. What runs in them is the real thing: the binaries under
// test, brought up by the same `keelson up` that users type.
//
// Main calls: Start (a cluster of several machines), New and Lab.Machine (bare ones),
// Lab.Segment (a network of its own behind a router), Machine.Up, Exec, Keelson, Cut,
// Heal, Kill.
//
// Promises: machines see nothing of each other but the network. Close removes
// everything; if the process dies before, the next New with the same prefix does. A
// machine's processes end with its first one, and its mounts and interfaces with its
// namespaces, so nothing has to be undone step by step. Logs are copied out by SaveLogs.
//
// It needs root, Linux namespaces, and util-linux (unshare, nsenter).
//
// To look into a machine while a test waits: `nsenter -t PID -a`, with the pid that
// stands in DIR/NAME/pid.
package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Options of a lab; zero values are filled by New.
type Options struct {
	Prefix string // of cgroups and interfaces; at most 6 characters. Default: klab
	Dir    string // state of the machines. Default: /var/tmp/keelson-PREFIX
	Bin    string // the directory with keelson, pause and the daemons
	Subnet string // first three numbers of the bridge's network; segments count up from it. Default: 10.89.0
	Log    func(format string, args ...any)
}

// Lab is a network segment, the machines on it, and further segments behind a router.
type Lab struct {
	Options
	*Segment            // the first, on which machines stand unless another is asked for
	mu       sync.Mutex // guards machines
	machines []*Machine
}

// Segment is one bridge. Machines of two segments reach each other through the lab's
// router, which is a network namespace; each segment reaches the host at its address 1.
type Segment struct {
	lab    *Lab
	number int    // 0 is the first
	prefix string // first three numbers of its addresses
	all    string // what holds the addresses of every segment
}

// New removes what an earlier lab with this prefix left, and makes the bridge.
func New(o Options) (*Lab, error) {
	if o.Prefix == "" {
		o.Prefix = "klab"
	}
	if o.Dir == "" {
		o.Dir = "/var/tmp/keelson-" + o.Prefix
	}
	if o.Subnet == "" {
		o.Subnet = "10.89.0"
	}
	if o.Log == nil {
		o.Log = func(string, ...any) {}
	}
	if os.Geteuid() != 0 {
		return nil, errors.New("the lab makes namespaces and needs root: run with sudo")
	}
	for _, program := range []string{"unshare", "nsenter", "iptables", "/usr/bin/containerd"} {
		if _, err := exec.LookPath(program); err != nil {
			return nil, fmt.Errorf("the lab needs %s: %w (.ci/run installs what it takes)", program, err)
		}
	}
	for _, program := range []string{"keelson", "pause"} {
		if _, err := os.Stat(filepath.Join(o.Bin, program)); err != nil {
			return nil, fmt.Errorf("%w: run `make build`, or set KEELSON_BIN", err)
		}
	}
	l := &Lab{Options: o}
	if err := l.sweep(); err != nil {
		return nil, fmt.Errorf("remove what an earlier lab left: %w", err)
	}
	if err := os.MkdirAll(l.Dir, 0o755); err != nil {
		return nil, err
	}
	if err := checkDisk(l.Dir); err != nil {
		return nil, errors.Join(err, os.Remove(l.Dir))
	}
	var err error
	if l.Segment, err = l.segment(0); err == nil {
		err = l.Segment.makeBridge()
	}
	if err != nil {
		return nil, errors.Join(err, l.sweep())
	}
	return l, nil
}

func (l *Lab) segment(number int) (*Segment, error) {
	var a, b, c int
	if n, err := fmt.Sscanf(l.Subnet, "%d.%d.%d", &a, &b, &c); err != nil || n != 3 || c+number > 255 {
		return nil, fmt.Errorf("subnet %q: want three numbers such as 10.89.0, with room for %d more networks", l.Subnet, number)
	}
	return &Segment{lab: l, number: number, prefix: fmt.Sprintf("%d.%d.%d", a, b, c+number), all: fmt.Sprintf("%d.%d.0.0/16", a, b)}, nil
}

// Behind makes a further segment (number 1 to 9) and connects it to the first by the
// router, which has address 254 in both.
func (l *Lab) Behind(number int) (*Segment, error) {
	s, err := l.segment(number)
	if err != nil {
		return nil, err
	}
	if err := s.makeBridge(); err != nil {
		return nil, err
	}
	if err := l.ip("netns", "add", l.router()); err != nil && !exists("/run/netns/"+l.router()) {
		return nil, err
	}
	if err := l.ip("netns", "exec", l.router(), "sysctl", "-q", "-w", "net.ipv4.ip_forward=1"); err != nil {
		return nil, err
	}
	for _, on := range []*Segment{l.Segment, s} {
		inside := fmt.Sprintf("to-%d", on.number)
		if exec.Command("ip", "-n", l.router(), "link", "show", inside).Run() == nil {
			continue
		}
		outside := fmt.Sprintf("%s-r%d", l.Prefix, on.number)
		for _, args := range [][]string{
			{"link", "add", outside, "master", on.bridge(), "type", "veth", "peer", "name", inside, "netns", l.router()},
			{"link", "set", outside, "up"},
			{"-n", l.router(), "addr", "add", on.prefix + ".254/24", "dev", inside},
			{"-n", l.router(), "link", "set", inside, "up"},
		} {
			if err := l.ip(args...); err != nil {
				return nil, err
			}
		}
	}
	return s, nil
}

func exists(file string) bool {
	_, err := os.Stat(file)
	return err == nil
}

func (l *Lab) router() string { return l.Prefix + "-router" }

func (l *Lab) ip(args ...string) error {
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		return fmt.Errorf("ip %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

func (s *Segment) bridge() string {
	if s.number == 0 {
		return s.lab.Prefix + "-br"
	}
	return fmt.Sprintf("%s-br%d", s.lab.Prefix, s.number)
}

func (s *Segment) acceptRule() []string {
	return []string{"FORWARD", "-i", s.bridge(), "-o", s.bridge(), "-j", "ACCEPT"}
}

func (s *Segment) makeBridge() error {
	br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: s.bridge()}}
	if err := netlink.LinkAdd(br); err != nil {
		return fmt.Errorf("add bridge %s: %w", s.bridge(), err)
	}
	addr, err := netlink.ParseAddr(s.prefix + ".1/24")
	if err != nil {
		return err
	}
	if err := netlink.AddrAdd(br, addr); err != nil {
		return err
	}
	if err := netlink.LinkSetUp(br); err != nil {
		return err
	}
	// Where bridged packets pass the host's iptables, they must not be dropped there.
	if out, err := exec.Command("iptables", append([]string{"-w", "-I"}, s.acceptRule()...)...).CombinedOutput(); err != nil {
		return fmt.Errorf("let the bridge's packets pass: %w: %s", err, out)
	}
	return nil
}

// Close ends all machines and removes everything.
func (l *Lab) Close() error { return l.sweep() }

// sweep removes everything of this prefix, whoever made it.
func (l *Lab) sweep() error {
	var errs []error
	for _, h := range hierarchies() {
		if err := killTree(filepath.Join(h, l.Prefix)); err != nil {
			errs = append(errs, err)
		}
	}
	links, err := netlink.LinkList()
	for tries := 0; errors.Is(err, netlink.ErrDumpInterrupted) && tries < 20; tries++ { // those of ended machines are still going
		links, err = netlink.LinkList()
	}
	if err != nil {
		return err
	}
	for _, link := range links {
		if n := link.Attrs().Name; strings.HasPrefix(n, l.Prefix+"-") {
			if err := netlink.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
				errs = append(errs, fmt.Errorf("remove %s: %w", n, err))
			}
		}
	}
	for number := range 10 {
		rule := (&Segment{lab: l, number: number}).acceptRule()
		for exec.Command("iptables", append([]string{"-w", "-D"}, rule...)...).Run() == nil {
		}
	}
	if exists("/run/netns/" + l.router()) {
		errs = append(errs, l.ip("netns", "del", l.router()))
	}
	// The mounts lived in the machines' namespaces; here are only directories.
	if err := os.RemoveAll(l.Dir); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// SaveLogs copies the machines' logs to dir/NAME.
func (l *Lab) SaveLogs(dir string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	var errs []error
	for _, m := range l.machines {
		to := filepath.Join(dir, m.Name)
		if err := os.MkdirAll(to, 0o755); err != nil {
			return err
		}
		for _, part := range []string{"var/log/keelson", "var/log/pods"} {
			if out, err := exec.Command("cp", "-r", filepath.Join(m.dir, part), to).CombinedOutput(); err != nil {
				errs = append(errs, fmt.Errorf("%s: %s", m.Name, out))
			}
		}
	}
	return errors.Join(errs...)
}

// hierarchies are the places where cgroups are made: each one of version 1, or the one
// of version 2.
func hierarchies() []string {
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		return []string{"/sys/fs/cgroup"}
	}
	all, _ := filepath.Glob("/sys/fs/cgroup/*/cgroup.procs")
	var out []string
	seen := map[string]bool{}
	for _, f := range all {
		dir, err := filepath.EvalSymlinks(filepath.Dir(f)) // cpuacct may be a link to cpu,cpuacct
		if err != nil || seen[dir] || filepath.Base(dir) == "unified" {
			continue
		}
		seen[dir] = true
		out = append(out, dir)
	}
	return out
}

// makeCgroup makes dir/a/b in a hierarchy, ready for processes.
func makeCgroup(h string, parts ...string) error {
	dir := h
	for _, p := range parts {
		parent := dir
		dir = filepath.Join(dir, p)
		if v2(h) { // hand the controllers down
			b, err := os.ReadFile(filepath.Join(parent, "cgroup.controllers"))
			if err != nil {
				return err
			}
			for _, c := range strings.Fields(string(b)) {
				_ = os.WriteFile(filepath.Join(parent, "cgroup.subtree_control"), []byte("+"+c), 0)
			}
		}
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		// cpuset of version 1 takes no process before these are set.
		for _, f := range []string{"cpuset.cpus", "cpuset.mems"} {
			have, err := os.ReadFile(filepath.Join(dir, f))
			if err != nil || strings.TrimSpace(string(have)) != "" || v2(h) {
				continue
			}
			b, err := os.ReadFile(filepath.Join(parent, f))
			if err != nil {
				return err
			}
			if err := os.WriteFile(filepath.Join(dir, f), b, 0); err != nil {
				return err
			}
		}
	}
	return nil
}

func v2(h string) bool { return h == "/sys/fs/cgroup" }

// killTree ends all processes of a cgroup and its children and removes them.
func killTree(top string) error {
	deadline := time.Now().Add(20 * time.Second)
	for {
		var dirs []string
		alive := 0
		err := filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.IsDir() {
				return nil // it may vanish while it is walked
			}
			dirs = append(dirs, path)
			b, _ := os.ReadFile(filepath.Join(path, "cgroup.procs"))
			for _, w := range strings.Fields(string(b)) {
				var pid int
				if _, err := fmt.Sscan(w, &pid); err == nil && pid > 0 {
					_ = syscall.Kill(pid, syscall.SIGKILL)
					alive++
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		for i := len(dirs) - 1; i >= 0; i-- {
			_ = unix.Rmdir(dirs[i])
		}
		if _, err := os.Stat(top); errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s: %d processes do not end", top, alive)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// plug connects a machine to its segment's bridge: eth0 inside, PREFIX-NAME outside. Other
// segments are behind the router, everything else behind the host.
func (s *Segment) plug(m *Machine) error {
	br, err := netlink.LinkByName(s.bridge())
	if err != nil {
		return err
	}
	veth := &netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: m.outside(), MasterIndex: br.Attrs().Index},
		PeerName:  "eth0", PeerNamespace: netlink.NsPid(m.pid),
	}
	if err := netlink.LinkAdd(veth); err != nil {
		return fmt.Errorf("plug %s in: %w", m.Name, err)
	}
	if err := netlink.LinkSetUp(veth); err != nil {
		return err
	}
	script := fmt.Sprintf("ip link set lo up && ip addr add %[1]s/24 dev eth0 && ip link set eth0 up && ip route add default via %[2]s.1 && ip route add %[3]s via %[2]s.254",
		m.Address, s.prefix, s.all)
	out, err := exec.Command("nsenter", "-t", fmt.Sprint(m.pid), "-n", "sh", "-c", script).CombinedOutput()
	if err != nil {
		return fmt.Errorf("set up the network of %s: %w: %s", m.Name, err, out)
	}
	return nil
}

// WaitDial returns when address accepts connections.
func WaitDial(ctx context.Context, address string) error {
	for {
		c, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, "tcp", address)
		if err == nil {
			return c.Close()
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s does not answer: %w", address, err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}
