package config

import (
	"fmt"
	"net"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"time"
)

// Machine is what the settings cannot know: facts of the machine it runs on.
type Machine struct {
	SystemdCgroups bool   // the cgroup driver: systemd, or cgroupfs
	ResolvConf     string // the resolv.conf that pods inherit
	Proxy          []string
}

// An option of a daemon: its flag and a value (string, bool, int or []string).
type option struct {
	name  string
	value any
}

// The daemons' names are those of their binaries.
const (
	APIServer         = "apiserver"
	Scheduler         = "scheduler"
	ControllerManager = "controller-manager"
	Containerd        = "containerd"
	Kubelet           = "kubelet"
	KubeProxy         = "kube-proxy"
)

// options are what each daemon is told; the table is the whole of it.
func options(daemon string, s Settings, p Paths, m Machine) []option {
	switch daemon {
	case APIServer:
		return []option{
			{"advertise-address", s.Address},
			{"bind-address", "0.0.0.0"},
			{"secure-port", s.Ports.API},
			{"tls-cert-file", p.Cert("apiserver")},
			{"tls-private-key-file", p.Key("apiserver")},
			{"client-ca-file", p.Cert("ca")},
			{"service-cluster-ip-range", s.ServiceCIDR},
			{"service-account-issuer", "https://kubernetes.default.svc." + s.ClusterDomain},
			{"service-account-key-file", []string{filepath.Join(p.PKI, "sa.pub")}},
			{"service-account-signing-key-file", p.Key("sa")},
			{"authorization-mode", []string{"Node", "RBAC"}},
			{"enable-admission-plugins", []string{"NodeRestriction"}},
			{"enable-bootstrap-token-auth", true},
			{"allow-privileged", true},
			{"kubelet-client-certificate", p.Cert("apiserver-kubelet-client")},
			{"kubelet-client-key", p.Key("apiserver-kubelet-client")},
			{"kubelet-certificate-authority", p.Cert("ca")},
			{"kubelet-preferred-address-types", []string{"InternalIP", "Hostname"}},
			{"requestheader-client-ca-file", p.Cert("front-proxy-ca")},
			{"requestheader-allowed-names", []string{"front-proxy-client"}},
			{"requestheader-username-headers", []string{"X-Remote-User"}},
			{"requestheader-group-headers", []string{"X-Remote-Group"}},
			{"requestheader-extra-headers-prefix", []string{"X-Remote-Extra-"}},
			{"proxy-client-cert-file", p.Cert("front-proxy-client")},
			{"proxy-client-key-file", p.Key("front-proxy-client")},
		}
	case Scheduler:
		return []option{
			{"kubeconfig", p.Kubeconfig(daemon)},
			{"bind-address", "127.0.0.1"},
			{"secure-port", s.Ports.Scheduler},
			{"client-ca-file", p.Cert("ca")},
			{"tls-cert-file", p.Cert("scheduler-server")},
			{"tls-private-key-file", p.Key("scheduler-server")},
			{"leader-elect", true},
		}
	case ControllerManager:
		return []option{
			{"kubeconfig", p.Kubeconfig(daemon)},
			{"bind-address", "127.0.0.1"},
			{"secure-port", s.Ports.ControllerManager},
			{"client-ca-file", p.Cert("ca")},
			{"tls-cert-file", p.Cert("controller-manager-server")},
			{"tls-private-key-file", p.Key("controller-manager-server")},
			{"leader-elect", true},
			{"use-service-account-credentials", true},
			{"root-ca-file", p.Cert("ca")},
			{"service-account-private-key-file", p.Key("sa")},
			{"cluster-signing-cert-file", p.Cert("ca")},
			{"cluster-signing-key-file", p.Key("ca")},
			{"allocate-node-cidrs", true},
			{"cluster-cidr", s.PodCIDR},
			{"service-cluster-ip-range", s.ServiceCIDR},
		}
	case Kubelet:
		driver := "cgroupfs"
		if m.SystemdCgroups {
			driver = "systemd"
		}
		o := []option{
			{"kubeconfig", p.Kubeconfig(daemon)},
			{"hostname-override", s.Node},
			{"node-ip", s.Address},
			{"container-runtime-endpoint", "unix://" + p.ContainerdSocket},
			{"root-dir", p.Kubelet},
			{"pod-manifest-path", p.Manifests},
			{"port", s.Ports.Kubelet},
			{"healthz-port", s.Ports.KubeletHealth},
			{"tls-cert-file", p.Cert("kubelet-server")},
			{"tls-private-key-file", p.Key("kubelet-server")},
			{"client-ca-file", p.Cert("ca")},
			{"anonymous-auth", false},
			{"authentication-token-webhook", true},
			{"authorization-mode", "Webhook"},
			{"cluster-dns", []string{s.DNSAddress}},
			{"cluster-domain", s.ClusterDomain},
			{"cgroup-driver", driver},
			{"fail-swap-on", false},
			{"resolv-conf", m.ResolvConf},
		}
		if s.CgroupRoot != "" {
			o = append(o, option{"cgroup-root", s.CgroupRoot})
		}
		if p.PodLogs != At("").PodLogs {
			o = append(o, option{"pod-logs-dir", p.PodLogs})
		}
		return o
	case KubeProxy:
		o := []option{
			{"kubeconfig", p.Kubeconfig(daemon)},
			{"hostname-override", s.Node},
			{"cluster-cidr", s.PodCIDR},
			{"metrics-bind-address", "127.0.0.1:" + strconv.Itoa(s.Ports.ProxyMetrics)},
			{"healthz-bind-address", "0.0.0.0:" + strconv.Itoa(s.Ports.ProxyHealth)},
		}
		return o
	}
	return nil
}

// keelsonOptions are options that only our daemons know: what upstream leaves to
// other programs (etcd, the pod network, cluster DNS).
func keelsonOptions(daemon string, s Settings, p Paths) []option {
	switch daemon {
	case APIServer:
		// Peers get the machine's address, so that further members can join; clients are
		// on this machine only. Both show certificates of etcd's own CA.
		etcd := func(name string) string { return filepath.Join(p.PKI, "etcd", name) }
		return []option{
			{"cluster-dns", s.DNSAddress},
			{"etcd-name", s.Node},
			{"etcd-data-dir", p.Etcd},
			{"etcd-listen-client-urls", fmt.Sprintf("https://127.0.0.1:%d", s.Ports.EtcdClient)},
			{"etcd-listen-peer-urls", "https://" + net.JoinHostPort(s.Address, strconv.Itoa(s.Ports.EtcdPeer))},
			{"etcd-cert-file", etcd("server.crt")},
			{"etcd-key-file", etcd("server.key")},
			{"etcd-trusted-ca-file", etcd("ca.crt")},
			{"etcd-peer-cert-file", etcd("peer.crt")},
			{"etcd-peer-key-file", etcd("peer.key")},
			{"etcd-peer-trusted-ca-file", etcd("ca.crt")},
		}
	case KubeProxy:
		return []option{
			{"cluster-dns", s.DNSAddress},
			{"cluster-domain", s.ClusterDomain},
			{"cni-conf-dir", p.CNIConf},
			{"cni-bin-dir", p.CNIBin},
		}
	}
	return nil
}

// all are the options of a daemon in their order, with the administrator's own last.
func all(daemon string, s Settings, p Paths, m Machine) []option {
	list := append(options(daemon, s, p, m), keelsonOptions(daemon, s, p)...)
	extra := s.Extra[daemon]
	names := make([]string, 0, len(extra))
	for name := range extra {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		replaced := false
		for i := range list {
			if list[i].name == name {
				list[i].value, replaced = extra[name], true
			}
		}
		if !replaced {
			list = append(list, option{name, extra[name]})
		}
	}
	return list
}

// flags returns the options as a command line.
func flags(list []option) []string {
	out := make([]string, 0, len(list))
	for _, o := range list {
		value := ""
		switch v := o.value.(type) {
		case string:
			value = v
		case []string:
			value = strings.Join(v, ",")
		default:
			value = fmt.Sprint(v)
		}
		out = append(out, "--"+o.name+"="+value)
	}
	return out
}

// Service is one process that the machine runs.
type Service struct {
	Name        string        `json:"name"`
	Description string        `json:"description"`
	Command     []string      `json:"command"` // absolute path and arguments
	Env         []string      `json:"env,omitempty"`
	Prepare     []string      `json:"prepare,omitempty"`  // run before each start, where a machine starts its services by itself
	After       []string      `json:"after,omitempty"`    // services that must be ready first
	Watchdog    time.Duration `json:"watchdog,omitempty"` // it pings at least this often; 0: it does not
	StopWithin  time.Duration `json:"stopWithin"`         // between SIGTERM and SIGKILL
	OOMScore    int           `json:"oomScore"`           // oom_score_adj, -1000..1000
	LogFile     string        `json:"logFile"`
	Fingerprint string        `json:"fingerprint"` // changes when its files change: restart it
}

// Services are the services of the machine in starting order. Each of them tells
// readiness by sd_notify.
func Services(s Settings, p Paths, m Machine) []Service {
	daemon := func(name, description string, oom int, after ...string) Service {
		sv := Service{
			Name: name, Description: description, After: after, OOMScore: oom,
			StopWithin: 20 * time.Second, LogFile: p.LogFile(name), Env: m.Proxy,
		}
		sv.Command = append([]string{filepath.Join(s.Binaries, name)}, flags(all(name, s, p, m))...)
		sv.Watchdog = 60 * time.Second
		return sv
	}
	var out []Service
	if s.Worker {
		out = append(out, Service{
			Name: Containerd, Description: "Keelson's container runtime", OOMScore: -999,
			Command:    []string{"/usr/bin/containerd", "--config", p.ContainerdConfig()},
			Prepare:    []string{filepath.Join(s.Binaries, "keelson"), "prepare"}, // after a reboot nobody has
			StopWithin: 20 * time.Second, LogFile: p.LogFile(Containerd), Env: m.Proxy,
		})
	}
	if s.ControlPlane {
		out = append(out,
			daemon(APIServer, "Keelson API server with etcd", -999),
			daemon(Scheduler, "Keelson scheduler", -900, APIServer),
			daemon(ControllerManager, "Keelson controller manager", -900, APIServer))
	}
	if s.Worker {
		after := []string{Containerd} // which prepares the kernel for all
		if s.ControlPlane {
			after = append(after, APIServer)
		}
		out = append(out,
			daemon(Kubelet, "Keelson kubelet", -999, after...),
			daemon(KubeProxy, "Keelson network proxy, DNS and pod network", -999, after...))
	}
	return out
}
