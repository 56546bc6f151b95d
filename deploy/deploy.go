// Package deploy brings a machine's part of a Keelson cluster up and down.
//
// It knows the order of things and how to tell people about it; what each thing is
// stands in the rooms: packages (programs that must be there), pki (certificates), config
// (settings → services), runtime (containerd), pause and images (the sandbox image),
// supervisor or units (who runs the services), clean (what is left in the kernel).
//
// Main calls: Machine.Up, Down, Reset, Status, Bundle, Join. Each may be repeated: Up on
// a running machine restarts only what changed; Down on a stopped one finds nothing.
// One of them runs at a time on a machine (a lock file).
//
// To test: e2e/lab runs this very code in machines made of namespaces.
package deploy

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"

	"github.com/keelson/keelson/deploy/config"
	"github.com/keelson/keelson/deploy/runtime"
)

// Machine is the machine that the command runs on.
type Machine struct {
	Paths    config.Paths
	Progress *Progress
	// Self is the keelson program: it also runs the supervisor.
	Self string
	// Supervise uses our supervisor even where systemd runs.
	Supervise bool
}

// Choices are what the administrator said on the command line; zero values mean "as
// stored, or the default".
type Choices struct {
	Node, Address, ServiceCIDR, PodCIDR, DNSAddress, Domain, Binaries, CgroupRoot string
	ExtraNames                                                                    []string
	Ports                                                                         config.Ports
	ControlPlaneOnly                                                              bool
	Extra                                                                         map[string]map[string]string
	SkipPackages                                                                  bool
}

// ErrNotRoot means that the command needs more rights.
var ErrNotRoot = errors.New("this needs root: run it with sudo")

func (m *Machine) lock() (unlock func(), err error) {
	if os.Geteuid() != 0 {
		return nil, ErrNotRoot
	}
	if err := os.MkdirAll(filepath.Dir(m.Paths.Run), 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(m.Paths.Run+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		return nil, errors.New("another keelson up, down or reset is running on this machine; wait for it")
	}
	return func() {
		_ = os.Remove(m.Paths.Run + ".lock")
		f.Close()
	}, nil
}

// settings are the stored ones with the choices laid over them and the machine's own
// facts where neither says anything.
func (m *Machine) settings(c Choices) (s config.Settings, resumed bool, err error) {
	s, resumed, err = config.Load(m.Paths)
	if err != nil {
		return s, resumed, err
	}
	if resumed && s.ControlPlane {
		for _, fixed := range []struct{ flag, was, now string }{
			{"--service-cidr", s.ServiceCIDR, c.ServiceCIDR}, {"--pod-cidr", s.PodCIDR, c.PodCIDR},
			{"--cluster-domain", s.ClusterDomain, c.Domain}, {"--node-name", s.Node, c.Node},
		} {
			if fixed.now != "" && fixed.now != fixed.was {
				return s, resumed, fmt.Errorf("%s %s: the cluster that lies here was made with %s, which cannot change; `keelson reset` forgets it", fixed.flag, fixed.now, fixed.was)
			}
		}
	}
	put := func(to *string, v string) {
		if v != "" {
			*to = v
		}
	}
	put(&s.Node, c.Node)
	put(&s.Address, c.Address)
	put(&s.ServiceCIDR, c.ServiceCIDR)
	put(&s.PodCIDR, c.PodCIDR)
	put(&s.DNSAddress, c.DNSAddress)
	put(&s.ClusterDomain, c.Domain)
	put(&s.Binaries, c.Binaries)
	put(&s.CgroupRoot, c.CgroupRoot)
	if c.ServiceCIDR != "" && c.DNSAddress == "" {
		a := s.FirstServiceAddress()
		for range 9 {
			a = a.Next()
		}
		s.DNSAddress = a.String()
	}
	if len(c.ExtraNames) > 0 {
		s.ExtraNames = c.ExtraNames
	}
	for _, p := range []struct {
		to *int
		v  int
	}{
		{&s.Ports.API, c.Ports.API}, {&s.Ports.EtcdClient, c.Ports.EtcdClient}, {&s.Ports.EtcdPeer, c.Ports.EtcdPeer},
		{&s.Ports.Scheduler, c.Ports.Scheduler}, {&s.Ports.ControllerManager, c.Ports.ControllerManager},
		{&s.Ports.Kubelet, c.Ports.Kubelet}, {&s.Ports.KubeletHealth, c.Ports.KubeletHealth},
		{&s.Ports.ProxyMetrics, c.Ports.ProxyMetrics}, {&s.Ports.ProxyHealth, c.Ports.ProxyHealth},
	} {
		if p.v != 0 {
			*p.to = p.v
		}
	}
	if c.ControlPlaneOnly {
		s.Worker = false
	}
	for daemon, options := range c.Extra {
		if s.Extra == nil {
			s.Extra = map[string]map[string]string{}
		}
		if s.Extra[daemon] == nil {
			s.Extra[daemon] = map[string]string{}
		}
		for k, v := range options {
			s.Extra[daemon][k] = v
		}
	}
	if s.Node == "" {
		host, err := os.Hostname()
		if err != nil {
			return s, resumed, err
		}
		s.Node = strings.ToLower(host)
	}
	if s.Address == "" || (c.Address == "" && !hasAddress(s.Address)) {
		a, err := defaultAddress()
		if err != nil {
			return s, resumed, err
		}
		s.Address = a
	}
	if s.Binaries == "" {
		s.Binaries = filepath.Dir(m.Self)
	}
	if s.ControlPlane {
		s.Server = "https://" + net.JoinHostPort(s.Address, fmt.Sprint(s.Ports.API))
	}
	return s, resumed, s.Validate()
}

func hasAddress(want string) bool {
	list, err := net.InterfaceAddrs()
	if err != nil {
		return true // do not change what was stored
	}
	for _, a := range list {
		if n, ok := a.(*net.IPNet); ok && n.IP.String() == want {
			return true
		}
	}
	return false
}

// defaultAddress is the address that this machine's packets to elsewhere come from.
func defaultAddress() (string, error) {
	for _, to := range []net.IP{net.IPv4(192, 0, 2, 1), net.ParseIP("2001:db8::1")} { // RFC 5737, RFC 3849: nothing is sent
		routes, err := netlink.RouteGet(to)
		if err == nil && len(routes) > 0 && routes[0].Src != nil && !routes[0].Src.IsLoopback() {
			return routes[0].Src.String(), nil
		}
	}
	return "", errors.New("this machine has no default route, so its address cannot be guessed: say --address")
}

// observe finds what the settings cannot know.
func observe() config.Machine {
	f := config.Machine{SystemdCgroups: runtime.SystemdCgroups(), ResolvConf: "/etc/resolv.conf"}
	// systemd-resolved's stub listens on the machine's loopback, which pods do not reach.
	const real = "/run/systemd/resolve/resolv.conf"
	if b, err := os.ReadFile("/etc/resolv.conf"); err == nil && strings.Contains(string(b), "127.0.0.53") {
		if _, err := os.Stat(real); err == nil {
			f.ResolvConf = real
		}
	}
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"} {
		if v := os.Getenv(name); v != "" {
			f.Proxy = append(f.Proxy, name+"="+v)
		}
	}
	return f
}

// exists reports whether a file is there.
func exists(file string) bool {
	_, err := os.Stat(file)
	return !errors.Is(err, fs.ErrNotExist)
}

// tail returns the last n lines of a file, indented.
func tail(file string, n int) string {
	b, err := os.ReadFile(file)
	if err != nil {
		return "  (" + err.Error() + ")"
	}
	return indent(string(b), n)
}

// indent returns the last n lines of a text, indented.
func indent(text string, n int) string {
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	if len(lines) > n {
		lines = lines[len(lines)-n:]
	}
	return "  " + strings.Join(lines, "\n  ")
}
