package cni

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func booking(t *testing.T, ranges ...string) *book {
	b := &book{dir: filepath.Join(t.TempDir(), "net"), booted: time.Now().Add(-time.Hour)}
	for _, r := range ranges {
		b.ranges = append(b.ranges, netip.MustParsePrefix(r))
	}
	return b
}

func take(t *testing.T, b *book, container string) string {
	t.Helper()
	got, err := b.take(container, "eth0")
	if err != nil {
		return err.Error()
	}
	return strings.Trim(fmt.Sprint(got), "[]")
}

func give(t *testing.T, b *book, container string) {
	t.Helper()
	if err := b.give(container, "eth0"); err != nil {
		t.Fatal(err)
	}
}

// A pod never gets the network's, the gateway's or the broadcast address, an address rests
// while others are free, and what is booked is kept.
func TestAddresses(t *testing.T) {
	b := booking(t, "10.1.2.0/29")
	give(t, b, "never seen")
	for _, step := range []struct{ give, take, want string }{
		{"", "a", "10.1.2.2/29"}, {"", "b", "10.1.2.3/29"}, {"", "a", "10.1.2.2/29"},
		{"a", "c", "10.1.2.4/29"}, {"", "d", "10.1.2.5/29"}, {"", "e", "10.1.2.6/29"},
		{"", "f", "10.1.2.2/29"},
		{"", "g", "no IP addresses available in range 10.1.2.0/29"},
		{"d", "g", "10.1.2.5/29"},
	} {
		if step.give != "" {
			give(t, b, step.give)
		}
		if got := take(t, b, step.take); got != step.want {
			t.Fatalf("after giving back %q, %s gets %s; want %s", step.give, step.take, got, step.want)
		}
	}
	// One whose pod died with the machine is taken over, but only when there is no other.
	old := filepath.Join(b.dir, "10.1.2.4")
	if err := os.Chtimes(old, b.booted.Add(-time.Minute), b.booted.Add(-time.Minute)); err != nil {
		t.Fatal(err)
	}
	give(t, b, "b")
	if got := take(t, b, "h"); got != "10.1.2.3/29" {
		t.Errorf("with one free address and one of before the start, h gets %s", got)
	}
	if got := take(t, b, "i"); got != "10.1.2.4/29" {
		t.Errorf("with no free address and one of before the start, i gets %s", got)
	}
	give(t, b, "c") // whose address it was
	if got := take(t, b, "i"); got != "10.1.2.4/29" {
		t.Errorf("after c gave back what it had lost, i has %s", got)
	}
	// The plugin died between making the file and writing it.
	if err := os.WriteFile(filepath.Join(b.dir, "10.1.2.3"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if got := take(t, b, "j"); got != "10.1.2.3/29" {
		t.Errorf("with an empty booking j gets %s", got)
	}
}

func TestTwoFamilies(t *testing.T) {
	b := booking(t, "10.1.2.0/24", "fd00:1::/120")
	if got := take(t, b, "a"); got != "10.1.2.2/24 fd00:1::2/120" {
		t.Error(got)
	}
	if got := lastOf(b.ranges[1]).String() + " " + lastOf(b.ranges[0]).String(); got != "fd00:1::ff 10.1.2.254" {
		t.Errorf("the last addresses are %s", got)
	}
}

// host-local, which the configuration named before, goes on with our bookings and we with its.
func TestHostLocalAgrees(t *testing.T) {
	const plugin = "/usr/lib/cni/host-local"
	b := booking(t, "10.1.2.0/24")
	config := fmt.Sprintf(`{"cniVersion":"0.4.0","name":"net","type":"bridge","ipam":{"type":"host-local","dataDir":%q,"ranges":[[{"subnet":"10.1.2.0/24"}]]}}`, filepath.Dir(b.dir))
	hostLocal := func(verb, container string) string {
		t.Helper()
		cmd := exec.Command(plugin)
		cmd.Env = []string{"CNI_COMMAND=" + verb, "CNI_CONTAINERID=" + container, "CNI_NETNS=/none", "CNI_IFNAME=eth0", "CNI_PATH=/usr/lib/cni"}
		cmd.Stdin = strings.NewReader(config)
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("host-local %s %s: %v: %s (apt-get install containernetworking-plugins)", verb, container, err, out)
		}
		var res struct{ IPs []struct{ Address string } }
		if verb == "DEL" || json.Unmarshal(out, &res) != nil || len(res.IPs) != 1 {
			return string(out)
		}
		return res.IPs[0].Address
	}
	got := []string{take(t, b, "a"), hostLocal("ADD", "b"), take(t, b, "c")}
	if want := []string{"10.1.2.2/24", "10.1.2.3/24", "10.1.2.4/24"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	hostLocal("DEL", "a")
	give(t, b, "b")
	given, err := b.read()
	if err != nil || len(given) != 1 {
		t.Errorf("after each has given back the other's: %v, %v", slices.Collect(maps.Keys(given)), err)
	}
}

// pod is a network namespace of its own, and a goroutine in it.
type pod struct {
	path string
	do   chan func()
}

func newPod(t *testing.T) *pod {
	p := &pod{do: make(chan func())}
	ready := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		err := unix.Unshare(unix.CLONE_NEWNET)
		p.path = fmt.Sprintf("/proc/%d/task/%d/ns/net", os.Getpid(), unix.Gettid())
		ready <- err
		for f := range p.do {
			f()
		}
	}()
	if err := <-ready; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { close(p.do) })
	return p
}

// in runs f in the pod.
func (p *pod) in(f func()) {
	done := make(chan struct{})
	p.do <- func() { defer close(done); f() }
	<-done
}

// node is like a pod, but plugins are called in it.
type node struct {
	*pod
	data, path string
}

// call runs the plugin on the node and returns its answer.
func (n *node) call(verb, container, netns, more string) (string, error) {
	env := map[string]string{"CNI_COMMAND": verb, "CNI_CONTAINERID": container, "CNI_NETNS": netns, "CNI_IFNAME": "eth0", "CNI_PATH": n.path}
	config := fmt.Sprintf(`{"cniVersion":"0.4.0","name":"net","type":"keelson-net","bridge":"cni0","mtu":1400,"ranges":["10.1.2.0/24","fd00:1::/64"],"dataDir":%q%s}`, n.data, more)
	var out bytes.Buffer
	var err error
	n.in(func() { err = Run(func(k string) string { return env[k] }, strings.NewReader(config), &out) })
	return out.String(), err
}

func newNode(t *testing.T) *node {
	if os.Geteuid() != 0 {
		t.Fatal("network namespaces need root: sudo make test")
	}
	n := &node{newPod(t), t.TempDir(), t.TempDir()}
	n.in(func() {
		if lo, err := netlink.LinkByName("lo"); err == nil {
			_ = netlink.LinkSetUp(lo)
		}
	})
	return n
}

func (n *node) must(t *testing.T, verb, container, netns, more string) string {
	t.Helper()
	out, err := n.call(verb, container, netns, more)
	if err != nil {
		t.Fatalf("%s %s: %v: %s", verb, container, err, out)
	}
	return out
}

// hears tells whether what listens in to at its address is reached from another place.
func hears(t *testing.T, to, from *pod, at string) error {
	t.Helper()
	var l net.Listener
	var err error
	to.in(func() { l, err = net.Listen("tcp", net.JoinHostPort(at, "0")) })
	if err != nil {
		return err
	}
	defer l.Close()
	var c net.Conn
	from.in(func() { c, err = net.DialTimeout("tcp", l.Addr().String(), 3*time.Second) })
	if err != nil {
		return err
	}
	return c.Close()
}

func TestPodsTalk(t *testing.T) {
	n := newNode(t)
	a, b := newPod(t), newPod(t)
	var res Result
	out := n.must(t, "ADD", "a", a.path, "")
	if err := json.Unmarshal([]byte(out), &res); err != nil {
		t.Fatal(err)
	}
	got := fmt.Sprint(res.Version, " ", res.Interfaces[2].Name, " ", res.Interfaces[2].MAC, " ", res.IPs, " ", res.Routes)
	want := "0.4.0 eth0 0a:58:0a:01:02:02 [{4 2 10.1.2.2/24 10.1.2.1} {6 2 fd00:1::2/64 fd00:1::1}] [{0.0.0.0/0} {::/0}]"
	if got != want {
		t.Errorf("ADD answers\n%s, want\n%s", got, want)
	}
	n.must(t, "ADD", "b", b.path, "")
	for what, err := range map[string]error{
		"node to pod": hears(t, a, n.pod, "10.1.2.2"), "pod to node": hears(t, n.pod, b, "10.1.2.1"), "pod to pod": hears(t, a, b, "10.1.2.2"),
		"pod to pod, IPv6": hears(t, b, a, "fd00:1::3"), "node to pod, IPv6": hears(t, b, n.pod, "fd00:1::3"),
	} {
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	b.in(func() {
		routes, err := netlink.RouteList(nil, netlink.FAMILY_V4)
		if err != nil || !slices.ContainsFunc(routes, func(r netlink.Route) bool { return r.Gw.String() == "10.1.2.1" }) {
			t.Errorf("the pod's routes are %v, %v", routes, err)
		}
		if link, err := netlink.LinkByName("eth0"); err != nil || link.Attrs().MTU != 1400 {
			t.Errorf("the pod's interface is %+v, %v", link, err)
		}
	})
	previous := `,"prevResult":` + out
	n.must(t, "CHECK", "a", a.path, previous)

	n.must(t, "DEL", "a", a.path, "")
	n.must(t, "DEL", "a", a.path, "")
	if out, err := n.call("CHECK", "a", a.path, previous); err == nil || !strings.Contains(out, "does not have 10.1.2.2/24") {
		t.Errorf("CHECK after DEL: %v, %s", err, out)
	}
	if err := hears(t, n.pod, a, "10.1.2.1"); err == nil {
		t.Error("a pod talks after DEL")
	}
	n.must(t, "DEL", "b", "/run/netns/gone", "")
	given, err := (&book{dir: filepath.Join(n.data, "net")}).read()
	if err != nil || len(given) != 0 {
		t.Errorf("after DEL of all there are bookings: %v, %v", given, err)
	}
}

// What an earlier try left is replaced; what a failed try made is undone.
func TestTriesAgain(t *testing.T) {
	n := newNode(t)
	a := newPod(t)
	n.must(t, "ADD", "a", a.path, "")
	out := n.must(t, "ADD", "a", a.path, "")
	if !strings.Contains(out, "10.1.2.2/24") {
		t.Errorf("the second ADD answers %s", out)
	}
	if err := hears(t, a, n.pod, "10.1.2.2"); err != nil {
		t.Error(err)
	}
	if out, err := n.call("ADD", "b", "/run/netns/gone", ""); err == nil || !strings.Contains(out, `"code":100`) {
		t.Errorf("ADD without a namespace: %v, %s", err, out)
	}
	if _, err := os.Stat(filepath.Join(n.data, "net", "10.1.2.3")); err == nil {
		t.Error("the address of a failed ADD stays booked")
	}
}

// Only pods with host ports need portmap; its answer is the whole one.
func TestHostPorts(t *testing.T) {
	n := newNode(t)
	a := newPod(t)
	const ports = `,"runtimeConfig":{"portMappings":[{"hostPort":8080,"containerPort":80,"protocol":"tcp"}]}`
	if out, err := n.call("ADD", "a", a.path, ports); err == nil || !strings.Contains(out, "portmap plugin is not in") {
		t.Errorf("without portmap: %v, %s", err, out)
	}
	script := "#!/bin/sh\ncat >" + n.path + "/$CNI_COMMAND\n[ $CNI_COMMAND = DEL ] || echo '{\"mapped\":true}'\n"
	if err := os.WriteFile(filepath.Join(n.path, "portmap"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	// The plugin starts programs with its own environment.
	for k, v := range map[string]string{"CNI_COMMAND": "ADD", "PATH": os.Getenv("PATH")} {
		t.Setenv(k, v)
	}
	if out := n.must(t, "ADD", "a", a.path, ports); strings.TrimSpace(out) != `{"mapped":true}` {
		t.Errorf("ADD answers %s", out)
	}
	given, err := os.ReadFile(filepath.Join(n.path, "ADD"))
	for _, want := range []string{`"hostPort":8080`, `"prevResult":{`, `"10.1.2.3/24"`, `"type":"portmap"`, `"name":"net"`} {
		if err != nil || !strings.Contains(string(given), want) {
			t.Errorf("portmap is given %s, %v; want %s in it", given, err, want)
		}
	}
	t.Setenv("CNI_COMMAND", "DEL")
	n.must(t, "DEL", "a", a.path, ports)
	if _, err := os.Stat(filepath.Join(n.path, "DEL")); err != nil {
		t.Error("portmap was not told of DEL")
	}
	os.Remove(filepath.Join(n.path, "DEL"))
	n.must(t, "DEL", "a", a.path, `,"runtimeConfig":{"portMappings":[]}`)
	if _, err := os.Stat(filepath.Join(n.path, "DEL")); err == nil {
		t.Error("portmap was started for a pod without host ports")
	}
}

func TestBadInput(t *testing.T) {
	good := map[string]any{"cniVersion": "0.4.0", "name": "net", "bridge": "cni0", "ranges": []string{"10.1.2.0/24"}}
	for _, c := range []struct {
		what, key string
		value     any
		env, to   string
		want      string
	}{
		{"version", "cniVersion", "9.9.9", "", "", `"code":1,"msg":"incompatible CNI versions"`},
		{"no name", "name", "", "", "", `"code":7,"msg":"name`},
		{"a path as name", "name", "../x", "", "", `"code":7,"msg":"name`},
		{"no bridge", "bridge", "", "", "", `"code":7,"msg":"bridge`},
		{"no range", "ranges", []string{}, "", "", `"code":7,"msg":"ranges: there is none`},
		{"a tiny range", "ranges", []string{"10.1.2.0/31"}, "", "", `"code":7,"msg":"ranges: 10.1.2.0/31`},
		{"an address as range", "ranges", []string{"10.1.2.7/24"}, "", "", `"code":7,"msg":"ranges: 10.1.2.7/24`},
		{"two of a family", "ranges", []string{"10.1.2.0/24", "10.1.3.0/24"}, "", "", `the second of its family`},
		{"nonsense as range", "ranges", []string{"x"}, "", "", `"code":6`},
		{"no container", "", nil, "CNI_CONTAINERID", "", `"code":4,"msg":"CNI_CONTAINERID`},
		{"a path as container", "", nil, "CNI_CONTAINERID", "a/../b", `"code":4,"msg":"CNI_CONTAINERID`},
		{"no interface", "", nil, "CNI_IFNAME", "", `"code":4,"msg":"CNI_IFNAME`},
		{"no namespace", "", nil, "CNI_NETNS", "", `"code":4,"msg":"CNI_NETNS`},
		{"an unknown verb", "", nil, "CNI_COMMAND", "JUMP", `"code":4,"msg":"unknown CNI_COMMAND: JUMP`},
	} {
		config := maps.Clone(good)
		env := map[string]string{"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c", "CNI_NETNS": "/none", "CNI_IFNAME": "eth0"}
		if c.key != "" {
			config[c.key] = c.value
		}
		if c.env != "" {
			env[c.env] = c.to
		}
		text, err := json.Marshal(config)
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		if err := Run(func(k string) string { return env[k] }, bytes.NewReader(text), &out); err == nil || !strings.Contains(out.String(), c.want) {
			t.Errorf("%s: %v, %s; want %s", c.what, err, out.String(), c.want)
		}
	}
	var out bytes.Buffer
	verb := "ADD"
	getenv := func(k string) string { return map[string]string{"CNI_COMMAND": verb}[k] }
	if err := Run(getenv, strings.NewReader("{"), &out); err == nil || !strings.Contains(out.String(), `"code":6`) {
		t.Errorf("half a configuration: %v, %s", err, out.String())
	}
	out.Reset()
	verb = "VERSION"
	if err := Run(getenv, io.MultiReader(), &out); err != nil || !strings.Contains(out.String(), `"supportedVersions":["0.3.0","0.3.1","0.4.0","1.0.0"]`) {
		t.Errorf("VERSION: %v, %s", err, out.String())
	}
}
