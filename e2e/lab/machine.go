package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
)

// Machine is one machine of the lab.
type Machine struct {
	Name    string
	Address string
	lab     *Lab
	segment *Segment
	dir     string // what is private to the machine, by its usual path
	pid     int    // its first process, as the host sees it
	holder  *exec.Cmd
}

// private are the directories that each machine has for itself.
var private = []string{"etc/keelson", "etc/cni", "var/lib/keelson", "var/lib/kubelet", "var/lib/cni", "var/log", "run"}

// setup runs as the machine's first process and becomes the reaper of its orphans.
const setup = `set -e
mount --make-rprivate /
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t tmpfs -o mode=755 tmpfs /sys/fs/cgroup
if [ -n "$V2" ]; then
  umount /sys/fs/cgroup
  mount -t cgroup2 cgroup2 /sys/fs/cgroup
  mkdir -p /sys/fs/cgroup/init
  echo 1 >/sys/fs/cgroup/init/cgroup.procs
else
  for h in $HIERARCHIES; do
    mkdir -p /sys/fs/cgroup/$h
    case $h in
      systemd) mount -t cgroup -o none,name=systemd cgroup /sys/fs/cgroup/systemd ;;
      *) mount -t cgroup -o $h cgroup /sys/fs/cgroup/$h ;;
    esac
  done
fi
hostname "$NAME"
for d in $PRIVATE; do mkdir -p /$d "$DIR/$d"; mount --bind "$DIR/$d" /$d; done
mkdir -p /run/lock /run/netns "$DIR/plugins/upper" "$DIR/plugins/work"
mount -t overlay -o lowerdir=/usr/lib/cni,upperdir="$DIR/plugins/upper",workdir="$DIR/plugins/work" plugins /usr/lib/cni
mount --bind "$DIR/hosts" /etc/hosts
mount --make-rshared /
echo up >"$DIR/started"
exec "$BIN/pause"
`

// Machine makes a bare machine on the segment: nothing runs in it but a reaper. number
// is the last one of its address.
func (s *Segment) Machine(ctx context.Context, name string, number int) (*Machine, error) {
	l := s.lab
	m := &Machine{Name: name, Address: fmt.Sprintf("%s.%d", s.prefix, number), lab: l, segment: s, dir: filepath.Join(l.Dir, name)}
	if err := os.MkdirAll(m.dir, 0o755); err != nil {
		return nil, err
	}
	hosts := fmt.Sprintf("127.0.0.1 localhost\n::1 localhost\n%s %s\n", m.Address, name)
	if err := os.WriteFile(filepath.Join(m.dir, "hosts"), []byte(hosts), 0o644); err != nil {
		return nil, err
	}
	hs := hierarchies()
	names := make([]string, len(hs))
	for i, h := range hs {
		if err := makeCgroup(h, l.Prefix, name); err != nil {
			return nil, fmt.Errorf("cgroup of %s: %w", name, err)
		}
		names[i] = filepath.Base(h)
	}
	// The shell joins the machine's cgroups first: they become its namespace's root.
	join := ""
	for _, h := range hs {
		join += fmt.Sprintf("echo $$ >%s/cgroup.procs\n", filepath.Join(h, l.Prefix, name))
	}
	var out bytes.Buffer
	cmd := exec.Command("sh", "-c", "set -e\n"+join+`exec unshare --net --mount --pid --uts --ipc --cgroup --fork --kill-child sh -c "$SETUP"`)
	cmd.Env = append(os.Environ(), "SETUP="+setup, "NAME="+name, "DIR="+m.dir, "BIN="+l.Bin, "PRIVATE="+strings.Join(private, " "), "HIERARCHIES="+strings.Join(names, " "))
	if v2(hs[0]) {
		cmd.Env = append(cmd.Env, "V2=1")
	}
	cmd.Stdout, cmd.Stderr, cmd.Dir = &out, &out, "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	m.holder = cmd
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }() // ends when the machine does
	for {
		select {
		case err := <-ended:
			return nil, fmt.Errorf("machine %s did not start: %v: %s", name, err, out.String())
		case <-ctx.Done():
			return nil, fmt.Errorf("machine %s did not start: %w", name, context.Cause(ctx))
		case <-time.After(5 * time.Millisecond):
		}
		if _, err := os.Stat(filepath.Join(m.dir, "started")); err == nil {
			break
		}
	}
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", cmd.Process.Pid, cmd.Process.Pid))
	if err != nil {
		return nil, err
	}
	if m.pid, err = strconv.Atoi(strings.TrimSpace(string(children))); err != nil {
		return nil, fmt.Errorf("machine %s: its first process: %w", name, err)
	}
	if v2(hs[0]) { // a cgroup with children must not hold processes itself
		_ = os.WriteFile(filepath.Join(hs[0], "cgroup.procs"), []byte(strconv.Itoa(cmd.Process.Pid)), 0)
	}
	_ = os.WriteFile(filepath.Join(m.dir, "pid"), []byte(strconv.Itoa(m.pid)), 0o644)
	if err := m.segment.plug(m); err != nil {
		return nil, err
	}
	l.mu.Lock()
	l.machines = append(l.machines, m)
	l.mu.Unlock()
	return m, nil
}

func (m *Machine) outside() string { return m.lab.Prefix + "-" + m.Name }

// Path is where a file of the machine lies on the host, for those of its own directories.
func (m *Machine) Path(inside string) string { return filepath.Join(m.dir, inside) }

// Command runs a program in the machine: in all of its namespaces and its cgroups. The
// end of ctx kills it with its children.
func (m *Machine) Command(ctx context.Context, args ...string) *exec.Cmd {
	script := ""
	for _, h := range hierarchies() {
		leaf := filepath.Join(h, m.lab.Prefix, m.Name)
		if v2(h) {
			leaf = filepath.Join(leaf, "init")
		}
		script += fmt.Sprintf("echo $$ >%s/cgroup.procs\n", leaf)
	}
	script += `exec nsenter -t "$0" -m -n -p -u -i -C -- "$@"`
	cmd := exec.CommandContext(ctx, "sh", append([]string{"-c", script, strconv.Itoa(m.pid)}, args...)...)
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "TERM=dumb"}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 2 * time.Second
	return cmd
}

// Exec runs a program in the machine and returns what it printed. The error holds the
// rest of it.
func (m *Machine) Exec(ctx context.Context, args ...string) (string, error) {
	var out, errOut bytes.Buffer
	cmd := m.Command(ctx, args...)
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return out.String(), fmt.Errorf("%s: %s: %w: %s%s", m.Name, strings.Join(args, " "), err, out.String(), errOut.String())
	}
	return out.String(), nil
}

// Keelson runs the keelson command in the machine.
func (m *Machine) Keelson(ctx context.Context, args ...string) (string, error) {
	return m.Exec(ctx, append([]string{filepath.Join(m.lab.Bin, "keelson")}, args...)...)
}

// Up runs `keelson up` in the machine, with what a disk needs that it shares with other machines.
func (m *Machine) Up(ctx context.Context, args ...string) (string, error) {
	return m.Keelson(ctx, append(append([]string{"up", "--no-install"}, diskFlags()...), args...)...)
}

// Cut unplugs the machine from the network; Heal plugs it in again.
func (m *Machine) Cut() error  { return m.cable(netlink.LinkSetDown) }
func (m *Machine) Heal() error { return m.cable(netlink.LinkSetUp) }

func (m *Machine) cable(f func(netlink.Link) error) error {
	link, err := netlink.LinkByName(m.outside())
	if err != nil {
		return err
	}
	return f(link)
}

// Kill sends SIGKILL to a service; the supervisor starts it again.
func (m *Machine) Kill(ctx context.Context, service string) error {
	pid, err := m.PID(service)
	if err != nil {
		return err
	}
	_, err = m.Exec(ctx, "kill", "-KILL", strconv.Itoa(pid))
	return err
}

// Stop and Start control a service: it stays as it was told.
func (m *Machine) Stop(ctx context.Context, services ...string) error {
	_, err := m.Keelson(ctx, append([]string{"service", "stop"}, services...)...)
	return err
}

func (m *Machine) Start(ctx context.Context, services ...string) error {
	_, err := m.Keelson(ctx, append([]string{"service", "start"}, services...)...)
	return err
}

// PID is a service's process as the machine numbers it.
func (m *Machine) PID(service string) (int, error) {
	b, err := os.ReadFile(m.Path("run/keelson/supervisor/" + service + ".pid"))
	if err != nil {
		return 0, fmt.Errorf("%s: %s is not running: %w", m.Name, service, err)
	}
	var pid int
	_, err = fmt.Sscan(string(b), &pid)
	return pid, err
}

// HostPID is a service's process as the host numbers it.
func (m *Machine) HostPID(service string) (int, error) {
	inside, err := m.PID(service)
	if err != nil {
		return 0, err
	}
	b, err := os.ReadFile(filepath.Join(hierarchies()[0], m.lab.Prefix, m.Name, "cgroup.procs"))
	if err != nil || v2(hierarchies()[0]) {
		b, err = os.ReadFile(filepath.Join(hierarchies()[0], m.lab.Prefix, m.Name, "init", "cgroup.procs"))
	}
	if err != nil {
		return 0, err
	}
	for _, pid := range strings.Fields(string(b)) {
		status, err := os.ReadFile("/proc/" + pid + "/status")
		if err != nil {
			continue
		}
		for line := range strings.SplitSeq(string(status), "\n") {
			if f := strings.Fields(line); len(f) > 1 && f[0] == "NSpid:" && f[len(f)-1] == strconv.Itoa(inside) {
				return strconv.Atoi(pid)
			}
		}
	}
	return 0, fmt.Errorf("%s: process %d of %s is not to be found", m.Name, inside, service)
}

// PowerOff ends the machine at once, as a power cut would; its disk stays. The machine
// cannot be used afterwards: make another with the same name and it boots from there.
func (m *Machine) PowerOff() error {
	if err := syscall.Kill(m.pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		return err
	}
	for _, h := range hierarchies() {
		if err := killTree(filepath.Join(h, m.lab.Prefix, m.Name)); err != nil {
			return err
		}
	}
	for _, gone := range []string{"run", "started", "pid"} {
		if err := os.RemoveAll(m.Path(gone)); err != nil {
			return err
		}
	}
	l := m.lab
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, other := range l.machines {
		if other == m {
			l.machines = append(l.machines[:i], l.machines[i+1:]...)
			break
		}
	}
	return nil
}
