// Package config knows what every daemon of a machine is told: it turns the few
// choices of an administrator (Settings) and the places of the machine (Paths)
// into the daemons' command lines, kubeconfigs, and the list of services to run.
// Everything but Load, Save and WriteFile is pure: the same settings give the same
// bytes, which is how up finds out whether anything has to be restarted.
//
// Main calls: Load, Services. It starts nothing and talks to nobody.
// To debug: `keelson status` prints the services, /etc/keelson holds the files.
package config

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"sigs.k8s.io/yaml"
)

// Settings are the administrator's choices. They are stored at the first up and
// reused by every later command; a flag given again changes the stored value.
type Settings struct {
	// Node is this machine's name in the cluster: a DNS label or name.
	Node string `json:"node"`
	// Address is the machine's address that the others use.
	Address string `json:"address"`
	// ControlPlane runs apiserver, scheduler and controller-manager here.
	ControlPlane bool `json:"controlPlane"`
	// Worker runs containerd, kubelet and kube-proxy here.
	Worker bool `json:"worker"`
	// Server is the API's URL as the daemons of this machine reach it.
	Server string `json:"server"`

	ServiceCIDR   string `json:"serviceCIDR"`
	PodCIDR       string `json:"podCIDR"`
	DNSAddress    string `json:"dnsAddress"`
	ClusterDomain string `json:"clusterDomain"`

	Ports Ports `json:"ports"`

	// ExtraNames are further DNS names and addresses in the API's certificate.
	ExtraNames []string `json:"extraNames,omitempty"`
	// Binaries is the directory of the daemons.
	Binaries string `json:"binaries"`
	// CgroupRoot is the parent of the pods' cgroup, "" for the hierarchy's root.
	CgroupRoot string `json:"cgroupRoot,omitempty"`
	// Extra are further options by daemon: {"kubelet": {"v": "debug"}}. They win
	// over what Keelson would set.
	Extra map[string]map[string]string `json:"extra,omitempty"`
}

// Ports are the TCP ports of the daemons on this machine.
type Ports struct {
	API               int `json:"api"`
	EtcdClient        int `json:"etcdClient"`
	EtcdPeer          int `json:"etcdPeer"`
	Scheduler         int `json:"scheduler"`
	ControllerManager int `json:"controllerManager"`
	Kubelet           int `json:"kubelet"`
	KubeletHealth     int `json:"kubeletHealth"`
	ProxyMetrics      int `json:"proxyMetrics"`
	ProxyHealth       int `json:"proxyHealth"`
}

// Default is a whole cluster on one machine, with upstream's usual ports and ranges.
// Node, Address, Server and Binaries depend on the machine and are left empty.
func Default() Settings {
	return Settings{
		ControlPlane: true, Worker: true,
		ServiceCIDR: "10.96.0.0/16", PodCIDR: "10.244.0.0/16",
		DNSAddress: "10.96.0.10", ClusterDomain: "cluster.local",
		Ports: Ports{API: 6443, EtcdClient: 2379, EtcdPeer: 2380, Scheduler: 10259, ControllerManager: 10257,
			Kubelet: 10250, KubeletHealth: 10248, ProxyMetrics: 10249, ProxyHealth: 10256},
	}
}

var dnsName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$`)

// Validate reports every fault at once, each naming the field and what it must be.
func (s Settings) Validate() error {
	var errs []error
	bad := func(field string, value any, must string) {
		errs = append(errs, fmt.Errorf("%s: %q: must be %s", field, fmt.Sprint(value), must))
	}
	if len(s.Node) > 253 || !dnsName.MatchString(s.Node) {
		bad("node", s.Node, "a DNS name in lower case (letters, digits, '-', '.'); choose one with --node-name")
	}
	if a, err := netip.ParseAddr(s.Address); err != nil || a.IsUnspecified() || a.IsLoopback() {
		bad("address", s.Address, "an address of this machine that pods and other machines can reach; choose one with --address")
	}
	if !s.ControlPlane && !s.Worker {
		errs = append(errs, errors.New("controlPlane, worker: at least one must be true"))
	}
	service, err := netip.ParsePrefix(s.ServiceCIDR)
	if err != nil {
		bad("serviceCIDR", s.ServiceCIDR, "a CIDR such as 10.96.0.0/16")
	}
	pods, err2 := netip.ParsePrefix(s.PodCIDR)
	if err2 != nil {
		bad("podCIDR", s.PodCIDR, "a CIDR such as 10.244.0.0/16")
	}
	if err == nil && err2 == nil && service.Overlaps(pods) {
		bad("podCIDR", s.PodCIDR, "apart from the services' range "+s.ServiceCIDR)
	}
	if a, err := netip.ParseAddr(s.Address); err == nil {
		if service.IsValid() && service.Contains(a) {
			bad("serviceCIDR", s.ServiceCIDR, "a range that does not hold the machine's address "+s.Address)
		}
		if pods.IsValid() && pods.Contains(a) {
			bad("podCIDR", s.PodCIDR, "a range that does not hold the machine's address "+s.Address)
		}
	}
	if a, derr := netip.ParseAddr(s.DNSAddress); derr != nil || (err == nil && !service.Contains(a)) {
		bad("dnsAddress", s.DNSAddress, "an address in the services' range "+s.ServiceCIDR)
	}
	if !dnsName.MatchString(s.ClusterDomain) {
		bad("clusterDomain", s.ClusterDomain, "a DNS name such as cluster.local")
	}
	seen := map[int]string{}
	for _, p := range s.Ports.used(s) {
		if p.number < 1 || p.number > 65535 {
			bad("ports."+p.name, p.number, "between 1 and 65535")
			continue
		}
		if other, taken := seen[p.number]; taken {
			bad("ports."+p.name, p.number, "another port than ports."+other)
		}
		seen[p.number] = p.name
	}
	if !strings.HasPrefix(s.Server, "https://") {
		bad("server", s.Server, "the API's URL, https://ADDRESS:PORT")
	}
	if !filepath.IsAbs(s.Binaries) {
		bad("binaries", s.Binaries, "an absolute directory")
	}
	return errors.Join(errs...)
}

// Port is one TCP port that a daemon of this machine will listen on.
type Port struct {
	name   string
	number int
	Daemon string
}

func (p Port) Number() int { return p.number }

// UsedPorts are the ports that this machine's daemons need.
func (s Settings) UsedPorts() []Port { return s.Ports.used(s) }

func (p Ports) used(s Settings) []Port {
	var out []Port
	if s.ControlPlane {
		out = append(out, Port{"api", p.API, "apiserver"}, Port{"etcdClient", p.EtcdClient, "apiserver (etcd clients)"},
			Port{"etcdPeer", p.EtcdPeer, "apiserver (etcd peers)"}, Port{"scheduler", p.Scheduler, "scheduler"},
			Port{"controllerManager", p.ControllerManager, "controller-manager"})
	}
	if s.Worker {
		out = append(out, Port{"kubelet", p.Kubelet, "kubelet"}, Port{"kubeletHealth", p.KubeletHealth, "kubelet (health)"},
			Port{"proxyMetrics", p.ProxyMetrics, "kube-proxy (metrics)"}, Port{"proxyHealth", p.ProxyHealth, "kube-proxy (health)"})
	}
	return out
}

// FirstServiceAddress is the address of the service default/kubernetes.
func (s Settings) FirstServiceAddress() netip.Addr {
	p, err := netip.ParsePrefix(s.ServiceCIDR)
	if err != nil {
		return netip.Addr{}
	}
	return p.Masked().Addr().Next()
}

// Load reads the stored settings; ok is false when there are none.
func Load(p Paths) (s Settings, ok bool, err error) {
	b, err := os.ReadFile(p.SettingsFile())
	if errors.Is(err, fs.ErrNotExist) {
		return Default(), false, nil
	}
	if err != nil {
		return s, false, fmt.Errorf("read the cluster's settings: %w", err)
	}
	s = Default()
	if err := yaml.UnmarshalStrict(b, &s); err != nil {
		return s, false, fmt.Errorf("%s: %w (mend the file, or `keelson reset` forgets the cluster)", p.SettingsFile(), err)
	}
	return s, true, nil
}

// Save stores the settings.
func (s Settings) Save(p Paths) error {
	b, err := yaml.Marshal(s)
	if err != nil {
		return err
	}
	_, err = WriteFile(p.SettingsFile(), append([]byte("# What this machine's cluster was started with. Written by keelson up.\n"), b...), 0o644)
	return err
}

// WriteFile writes b to path atomically and creates its directory. changed is false
// when the file already held exactly b.
func WriteFile(path string, b []byte, mode fs.FileMode) (changed bool, err error) {
	if old, err := os.ReadFile(path); err == nil && string(old) == string(b) {
		return false, os.Chmod(path, mode)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return false, err
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return false, err
	}
	defer os.Remove(tmp.Name())
	if _, err := tmp.Write(b); err != nil {
		tmp.Close()
		return false, err
	}
	if err := errors.Join(tmp.Chmod(mode), tmp.Close()); err != nil {
		return false, err
	}
	return true, os.Rename(tmp.Name(), path)
}
