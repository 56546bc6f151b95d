package config

import "path/filepath"

// Paths says where everything of one machine lies. All are absolute.
//
// They are the places of a plain installation, each below a prefix that is empty
// except where several installations share one file system.
type Paths struct {
	Etc string // configuration, certificates, kubeconfigs: survives down, removed by reset
	PKI string // below Etc
	Lib string // state: etcd's data, images, containers: survives down, removed by reset
	Run string // sockets, pid files: removed by down
	Log string // the daemons' logs

	Etcd             string // below Lib
	ContainerdRoot   string // below Lib
	ContainerdState  string // below Run
	ContainerdSocket string // below Run
	Supervisor       string // below Run: the supervisor's socket and pid files

	Kubelet       string // pod directories and volumes
	Manifests     string // static pods
	PodLogs       string
	ContainerLogs string
	CNIConf       string // kube-proxy writes our network's configuration here
	Registries    string // <registry>/hosts.toml: mirrors, certificates
	CNIBin        string // where Debian's containernetworking-plugins puts the plugins, and we ours
	CNIState      string // addresses given out by our plugin
}

// At returns the paths below prefix, "" for the usual ones.
func At(prefix string) Paths {
	at := func(p string) string { return filepath.Join("/", prefix, p) }
	return Paths{
		Etc: at("etc/keelson"), PKI: at("etc/keelson/pki"),
		Lib: at("var/lib/keelson"), Run: at("run/keelson"), Log: at("var/log/keelson"),
		Etcd:             at("var/lib/keelson/etcd"),
		ContainerdRoot:   at("var/lib/keelson/containerd"),
		ContainerdState:  at("run/keelson/containerd/state"),
		ContainerdSocket: at("run/keelson/containerd/containerd.sock"),
		Supervisor:       at("run/keelson/supervisor"),
		Kubelet:          at("var/lib/kubelet"), Manifests: at("etc/keelson/manifests"),
		PodLogs: at("var/log/pods"), ContainerLogs: at("var/log/containers"),
		Registries: at("etc/containerd/certs.d"),
		CNIConf:    at("etc/cni/net.d"), CNIBin: "/usr/lib/cni", CNIState: "/var/lib/cni",
	}
}

// Plugin is the CNI plugin of our pod network, where the runtime looks for it.
func (p Paths) Plugin() string { return filepath.Join(p.CNIBin, PluginProgram) }

// PluginProgram is its name, also among the binaries.
const PluginProgram = "keelson-net"

// AdminKubeconfig is the kubeconfig of the cluster's administrator.
func (p Paths) AdminKubeconfig() string { return filepath.Join(p.Etc, "admin.conf") }

// Kubeconfig is the kubeconfig of one daemon.
func (p Paths) Kubeconfig(daemon string) string { return filepath.Join(p.Etc, daemon+".conf") }

// SettingsFile holds what the administrator chose at the first up.
func (p Paths) SettingsFile() string { return filepath.Join(p.Etc, "cluster.yaml") }

// ContainerdConfig is the configuration of our containerd.
func (p Paths) ContainerdConfig() string { return filepath.Join(p.Etc, "containerd.toml") }

// Cert and Key are a certificate of the machine and its key.
func (p Paths) Cert(name string) string { return filepath.Join(p.PKI, name+".crt") }
func (p Paths) Key(name string) string  { return filepath.Join(p.PKI, name+".key") }

// LogFile is the log of one service where no journal collects it.
func (p Paths) LogFile(service string) string { return filepath.Join(p.Log, service+".log") }
