package deploy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/keelson/keelson/deploy/config"
	"github.com/keelson/keelson/deploy/images"
	"github.com/keelson/keelson/deploy/packages"
	"github.com/keelson/keelson/deploy/pause"
	"github.com/keelson/keelson/deploy/pki"
	"github.com/keelson/keelson/deploy/runtime"
	"github.com/keelson/keelson/deploy/supervisor"
	daemonconfig "github.com/keelson/keelson/libs/config"
	"github.com/keelson/keelson/libs/run"
)

// Up brings the machine's services up and returns when its node is Ready (on a machine
// without pods: when the API is). It may be repeated at any time.
func (m *Machine) Up(ctx context.Context, c Choices) error {
	unlock, err := m.lock()
	if err != nil {
		return err
	}
	defer unlock()
	s, resumed, err := m.settings(c)
	if err != nil {
		return err
	}
	what := "starting a cluster"
	if resumed && s.ControlPlane {
		what = "starting the cluster that lies here"
	} else if !s.ControlPlane {
		what = "joining " + s.Server
	}
	m.Progress.Title("Keelson: %s on %s (%s)", what, s.Node, s.Address)

	if err := m.checkBinaries(s); err != nil {
		return err
	}
	if err := m.installPackages(ctx, s, c.SkipPackages); err != nil {
		return err
	}
	if s.Worker {
		if err := PrepareKernel(); err != nil {
			return err
		}
	}
	r := m.runner()
	if err := m.checkPorts(ctx, r, s); err != nil {
		return err
	}
	if err := m.certificates(s); err != nil {
		return err
	}
	services, version, err := m.services(ctx, s)
	if err != nil {
		return err
	}
	if err := s.Save(m.Paths); err != nil {
		return fmt.Errorf("store the settings: %w", err)
	}
	if err := r.Apply(ctx, services); err != nil {
		return err
	}
	if err := m.wait(ctx, r, s, services, version); err != nil {
		return err
	}
	m.Progress.Print(m.next(s))
	return nil
}

func (m *Machine) checkBinaries(s config.Settings) error {
	var missing []string
	for _, sv := range config.Services(s, m.Paths, config.Machine{}) {
		if sv.Name != config.Containerd && !exists(sv.Command[0]) {
			missing = append(missing, sv.Command[0])
		}
	}
	if s.Worker {
		for _, program := range []string{"pause", config.PluginProgram} {
			if at := filepath.Join(s.Binaries, program); !exists(at) {
				missing = append(missing, at)
			}
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("not built: %s; run `make build`, or say where they are with --binaries", strings.Join(missing, ", "))
	}
	return nil
}

func (m *Machine) installPackages(ctx context.Context, s config.Settings, skip bool) error {
	needs := packages.ControlPlane
	if s.Worker {
		needs = slices.Concat(needs, packages.Worker)
	}
	missing := packages.Missing(needs)
	if len(missing) == 0 {
		m.Progress.Done("packages", "all %d programs are there", len(needs))
		return nil
	}
	if skip {
		return fmt.Errorf("%w:\n%s", packages.ErrByHand, packages.List(missing))
	}
	for _, n := range missing {
		m.Progress.Note("missing", "%s: %s", n.File, n.Why)
	}
	m.Progress.Wait("installing %s", strings.Join(packages.Names(missing), ", "))
	log := filepath.Join(m.Paths.Log, "apt.log")
	if err := os.MkdirAll(m.Paths.Log, 0o755); err != nil {
		return err
	}
	out, err := os.Create(log)
	if err != nil {
		return err
	}
	defer out.Close()
	if err := packages.Install(ctx, missing, out); err != nil {
		if errors.Is(err, packages.ErrByHand) {
			return err
		}
		return fmt.Errorf("%w\n%s", err, tail(log, 8))
	}
	m.Progress.Done("packages", "installed %s", strings.Join(packages.Names(missing), ", "))
	return nil
}

// PrepareKernel loads what container networks need and lets packets pass between
// interfaces. Modules may be compiled in, so a failing modprobe is no error by itself.
func PrepareKernel() error {
	for _, module := range []string{"overlay", "br_netfilter"} {
		_ = exec.Command("modprobe", "-q", module).Run()
	}
	for _, sysctl := range []struct {
		file, value, why string
		optional         bool
	}{
		{"net/ipv4/ip_forward", "1", "packets of pods are routed by the node", false},
		{"net/ipv6/conf/all/forwarding", "1", "the same for IPv6", true},
		{"net/bridge/bridge-nf-call-iptables", "1", "services must work between pods of one node", true},
		{"net/bridge/bridge-nf-call-ip6tables", "1", "the same for IPv6", true},
		{"fs/inotify/max_user_instances", "1024", "each pod's logs and mounts are watched", true},
	} {
		file := filepath.Join("/proc/sys", sysctl.file)
		b, err := os.ReadFile(file)
		if err == nil && strings.TrimSpace(string(b)) == sysctl.value {
			continue
		}
		var have, want int
		if _, err := fmt.Sscan(string(b), &have); err == nil {
			if _, err := fmt.Sscan(sysctl.value, &want); err == nil && have > want {
				continue
			}
		}
		if err := os.WriteFile(file, []byte(sysctl.value), 0); err != nil && !sysctl.optional {
			return fmt.Errorf("set the kernel's %s to %s (%s): %w", strings.ReplaceAll(sysctl.file, "/", "."), sysctl.value, sysctl.why, err)
		}
	}
	if err := os.MkdirAll("/etc/cni/net.d", 0o755); err != nil {
		return err
	}
	return nil
}

// checkPorts refuses to start daemons whose ports others hold; those that run already
// hold their own.
func (m *Machine) checkPorts(ctx context.Context, r runner, s config.Settings) error {
	running := map[string]bool{}
	if list, err := r.Status(ctx); err == nil {
		for _, st := range list {
			running[st.Name] = st.PID != 0
		}
	}
	var errs []error
	for _, p := range s.UsedPorts() {
		daemon, _, _ := strings.Cut(p.Daemon, " ")
		// Also one whose supervisor has died: the next one will find it.
		if _, _, ours := supervisor.ReadPID(m.Paths.Supervisor, daemon); ours || running[daemon] {
			continue
		}
		l, err := net.Listen("tcp", fmt.Sprintf(":%d", p.Number()))
		if err != nil {
			errs = append(errs, fmt.Errorf("port %d, which %s needs, is taken%s: %w", p.Number(), p.Daemon, holder(p.Number()), err))
			continue
		}
		l.Close()
	}
	if len(errs) > 0 {
		return fmt.Errorf("%w\nStop what holds them (another Kubernetes?), or choose others: keelson up --help", errors.Join(errs...))
	}
	return nil
}

// holder names the process that listens on the port, when it can be found.
func holder(port int) string {
	out, err := exec.Command("ss", "-Hltnp", fmt.Sprintf("sport = :%d", port)).Output()
	if err != nil {
		return ""
	}
	if _, users, ok := strings.Cut(string(out), `users:(("`); ok {
		name, rest, _ := strings.Cut(users, `"`)
		if _, pid, ok := strings.Cut(rest, "pid="); ok {
			pid, _, _ := strings.Cut(pid, ",")
			return fmt.Sprintf(" by %s (process %s)", name, pid)
		}
	}
	return ""
}

func (m *Machine) wants(s config.Settings) []pki.Want {
	var want []pki.Want
	if s.ControlPlane {
		want = append(want, pki.ControlPlane(pki.Cluster{Node: s.Node, Address: s.Address,
			FirstService: s.FirstServiceAddress(), Domain: s.ClusterDomain, Extra: s.ExtraNames})...)
	}
	if s.Worker {
		want = append(want, pki.Worker(s.Node, s.Address)...)
	}
	return want
}

func (m *Machine) certificates(s config.Settings) error {
	dir := m.Paths.PKI
	r, err := pki.Ensure(dir, m.wants(s), time.Now())
	if err != nil {
		return err
	}
	if s.ControlPlane {
		if made, err := pki.EnsureSigningKey(dir); err != nil {
			return err
		} else if made {
			r.Made = append(r.Made, "sa")
		}
	}
	ca, err := os.ReadFile(m.Paths.Cert("ca"))
	if err != nil {
		return err
	}
	write := func(name, file string) error {
		cert, err := os.ReadFile(m.Paths.Cert(name))
		if err != nil {
			return err
		}
		key, err := os.ReadFile(m.Paths.Key(name))
		if err != nil {
			return err
		}
		b, err := config.Kubeconfig(s.Server, name, ca, cert, key)
		if err != nil {
			return err
		}
		_, err = config.WriteFile(file, b, 0o600)
		return err
	}
	var users []string
	if s.ControlPlane {
		users = append(users, "admin", config.Scheduler, config.ControllerManager)
	}
	if s.Worker {
		users = append(users, config.Kubelet, config.KubeProxy)
	}
	for _, u := range users {
		if err := write(u, m.Paths.Kubeconfig(u)); err != nil {
			return fmt.Errorf("kubeconfig of %s: %w", u, err)
		}
	}
	switch {
	case len(r.Made) > 0:
		m.Progress.Done("certificates", "made %d in %s", len(r.Made), dir)
	case len(r.Renewed) > 0:
		m.Progress.Done("certificates", "renewed %s", strings.Join(r.Renewed, ", "))
	default:
		m.Progress.Done("certificates", "in order")
	}
	return nil
}

// services writes what the services read and returns them, with fingerprints that
// change when those files do. version is containerd's.
func (m *Machine) services(ctx context.Context, s config.Settings) (list []config.Service, version string, err error) {
	p := m.Paths
	for _, dir := range []string{p.Lib, p.Run, p.Log} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, "", err
		}
	}
	facts := observe()
	list = config.Services(s, p, facts)
	if s.Worker {
		for _, dir := range []string{p.Manifests, filepath.Dir(p.ContainerdSocket), p.ContainerdRoot, p.CNIConf, p.Kubelet} {
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return nil, "", err
			}
		}
		rt, v, err := runtime.Observe(ctx, pause.Image)
		if err != nil {
			return nil, "", err
		}
		version = v
		if _, err := config.WriteFile(p.ContainerdConfig(), []byte(runtime.Config(p, rt)), 0o644); err != nil {
			return nil, "", err
		}
		plugin, err := os.ReadFile(filepath.Join(s.Binaries, config.PluginProgram))
		if err != nil {
			return nil, "", err
		}
		if _, err := config.WriteFile(p.Plugin(), plugin, 0o755); err != nil {
			return nil, "", err
		}
		if err := pause.Archive(m.pauseArchive(), filepath.Join(s.Binaries, "pause")); err != nil {
			return nil, "", err
		}
	}
	for i, sv := range list {
		reads := []string{p.Kubeconfig(sv.Name), p.Cert(sv.Name), p.Cert(sv.Name + "-server"), p.Cert("ca")}
		switch sv.Name {
		case config.Containerd:
			reads = []string{p.ContainerdConfig()}
		case config.APIServer:
			reads = append(reads, p.Key("sa"), p.Cert("front-proxy-client"), p.Cert("apiserver-kubelet-client"))
		}
		list[i].Fingerprint = pki.Fingerprint(reads...) + binaryStamp(sv.Command[0])
	}
	return list, version, nil
}

// binaryStamp changes when a program is built anew.
func binaryStamp(file string) string {
	info, err := os.Stat(file)
	if err != nil {
		return ""
	}
	return fmt.Sprintf("-%x-%x", info.Size(), info.ModTime().UnixNano())
}

func (m *Machine) pauseArchive() string { return filepath.Join(m.Paths.Lib, "pause.tar") }

// patience bounds the wait for everything together.
const patience = 3 * time.Minute

// wait follows the services until all are ready, loads the sandbox image as soon as the
// runtime is, and waits for the node as soon as the API is.
func (m *Machine) wait(ctx context.Context, r runner, s config.Settings, services []config.Service, version string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("not ready after %s", patience))
	defer cancel()
	g := run.New(ctx)
	runtimeReady, apiReady := make(chan struct{}), make(chan struct{})
	kubelet := make(chan int, 1) // its pid, once it is ready
	if !s.ControlPlane {
		close(apiReady)
	}
	g.Go("services", func(ctx context.Context) error {
		reported := map[string]bool{}
		return r.Watch(ctx, func(list []supervisor.Status) (bool, error) {
			var waits []string
			for _, st := range list {
				if !slices.ContainsFunc(services, func(sv config.Service) bool { return sv.Name == st.Name }) {
					continue
				}
				if st.Phase == supervisor.Ready {
					if !reported[st.Name] {
						reported[st.Name] = true
						text := "ready after " + Seconds(m.Progress.Since())
						if st.Name == config.Containerd {
							text = version + ", " + text
							close(runtimeReady)
						}
						if st.Name == config.APIServer {
							close(apiReady)
						}
						if st.Name == config.Kubelet {
							kubelet <- st.PID
						}
						m.Progress.Done(st.Name, "%s", text)
					}
					continue
				}
				waits = append(waits, st.Name)
				if failed(st) {
					return false, fmt.Errorf("%s does not start: %s\nThe end of %s:\n%s", st.Name, st.Last, st.LogFile, r.Log(ctx, st))
				}
			}
			if len(waits) > 0 {
				m.Progress.Wait("waiting for %s", strings.Join(waits, ", "))
				return false, nil
			}
			return len(reported) == len(services), nil
		})
	})
	if s.Worker {
		g.Go("sandbox image", func(ctx context.Context) error {
			select {
			case <-runtimeReady:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
			_, err := images.Load(ctx, m.Paths.ContainerdSocket, m.pauseArchive())
			return err
		})
	}
	g.Go("cluster", func(ctx context.Context) error {
		select {
		case <-apiReady:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		since := time.Now()
		if s.Worker {
			select {
			case pid := <-kubelet:
				since = supervisor.BeganAt(pid)
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		return m.waitCluster(ctx, s, since)
	})
	return g.Wait()
}

// failed tells a service that will not come up from one that is on its way: it ended
// six times, or its settings are wrong.
func failed(st supervisor.Status) bool {
	return st.Phase == supervisor.Backing && (st.Restarts >= 6 || strings.HasSuffix(st.Last, fmt.Sprintf("exit status %d", daemonconfig.ExitUsage)))
}

// waitCluster waits for the node as its kubelet, which runs since then, reports it.
func (m *Machine) waitCluster(ctx context.Context, s config.Settings, since time.Time) error {
	file := m.Paths.AdminKubeconfig()
	if !s.ControlPlane {
		file = m.Paths.Kubeconfig(config.Kubelet)
	}
	c, err := client(file)
	if err != nil {
		return err
	}
	if !s.Worker {
		return nil
	}
	node, err := waitNode(ctx, c, s.Node, since, func(why string) { m.Progress.Wait("waiting for node %s: %s", s.Node, why) })
	if err != nil {
		return fmt.Errorf("node %s: %w\nLook at %s and %s", s.Node, err, m.Paths.LogFile(config.Kubelet), m.Paths.LogFile(config.KubeProxy))
	}
	m.Progress.Done("node "+s.Node, "Ready after %s (Kubernetes %s)", Seconds(m.Progress.Since()), node.Status.NodeInfo.KubeletVersion)
	if s.ControlPlane {
		const role = "node-role.kubernetes.io/control-plane"
		if _, ok := node.Labels[role]; !ok {
			patch := []byte(`{"metadata":{"labels":{"` + role + `":""}}}`)
			if _, err := c.CoreV1().Nodes().Patch(ctx, s.Node, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
				return fmt.Errorf("label node %s: %w", s.Node, err)
			}
		}
	}
	return nil
}

func client(kubeconfig string) (kubernetes.Interface, error) {
	cfg, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", kubeconfig, err)
	}
	cfg.UserAgent = "keelson"
	cfg.Proxy = func(*http.Request) (*url.URL, error) { return nil, nil } // the cluster is never behind the web's proxy
	return kubernetes.NewForConfig(cfg)
}

// waitNode returns the node once it is Ready. A report from before since is of an earlier
// life and does not count. say gets what is still missing.
func waitNode(ctx context.Context, c kubernetes.Interface, name string, since time.Time, say func(string)) (*corev1.Node, error) {
	last := "it has not registered"
	only := metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector("metadata.name", name).String()}
	ready := func(n *corev1.Node) bool {
		for _, cond := range n.Status.Conditions {
			if cond.Type == corev1.NodeReady {
				if cond.LastHeartbeatTime.Time.Before(since.Add(-time.Second)) { // it is in whole seconds
					last = "its kubelet has not reported yet"
					return false
				}
				last = cond.Message
				return cond.Status == corev1.ConditionTrue
			}
		}
		last = "it has registered, but reported nothing"
		return false
	}
	try := func() (*corev1.Node, error) {
		list, err := c.CoreV1().Nodes().List(ctx, only)
		if err != nil {
			return nil, err
		}
		for i := range list.Items {
			if ready(&list.Items[i]) {
				return &list.Items[i], nil
			}
		}
		say(last)
		opts := only
		opts.ResourceVersion = list.ResourceVersion
		w, err := c.CoreV1().Nodes().Watch(ctx, opts)
		if err != nil {
			return nil, err
		}
		defer w.Stop()
		for ev := range w.ResultChan() {
			n, ok := ev.Object.(*corev1.Node)
			if !ok {
				return nil, fmt.Errorf("watch nodes: %v", ev.Object)
			}
			if n.Name == name && ready(n) {
				return n, nil
			}
			say(last)
		}
		return nil, errors.New("the watch ended")
	}
	for {
		n, err := try()
		if n != nil {
			return n, nil
		}
		if ctx.Err() != nil {
			return nil, fmt.Errorf("%w; last seen: %s", context.Cause(ctx), last)
		}
		last = err.Error()
		say(last)
		select { // the API may not be reachable yet; then nothing can be watched
		case <-ctx.Done():
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func (m *Machine) next(s config.Settings) string {
	self := m.Self
	if path, err := exec.LookPath("keelson"); err == nil && path == self {
		self = "keelson"
	} else if wd, err := os.Getwd(); err == nil {
		if rel, err := filepath.Rel(wd, self); err == nil && !strings.HasPrefix(rel, "..") {
			self = rel
		}
	}
	if !s.ControlPlane {
		return fmt.Sprintf("\n%s is part of the cluster. `sudo %s status` looks at it, `sudo %s down` stops it.\n", s.Node, self, self)
	}
	return fmt.Sprintf(`
The cluster is up (%s). Try:

  sudo %[2]s kubectl get nodes,pods -A -o wide
  sudo %[2]s status
  sudo %[2]s down          # stops it and keeps its data

Other clients: export KUBECONFIG=%[3]s (readable by root)
`, Seconds(m.Progress.Since()), self, m.Paths.AdminKubeconfig())
}
