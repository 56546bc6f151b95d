// Package kubeproxy is the daemon that is a node's network: it programs iptables for
// Services, sets up the pod network, and answers cluster DNS on the node.
//
// The main call is [Run]. From here: model/ decides which endpoints a Service's
// traffic may use, rules/ turns that into chains, sync/ applies what changed;
// network/ is the pod network, dns/ cluster DNS. Each of the three can be turned off.
//
// It keeps working while the API server is away: rules, routes and names stay as
// they were last known. What it made in the kernel stays when it stops; --cleanup
// removes it.
package kubeproxy

import (
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/keelson/keelson/kube-proxy/model"
	"github.com/keelson/keelson/libs/client"
	"github.com/keelson/keelson/libs/config"
)

// Config is the daemon's configuration.
type Config struct {
	config.Common `yaml:",inline"`
	Client        client.Config `yaml:",inline"`

	Hostname       string   `yaml:"hostnameOverride" flag:"hostname-override" help:"name of this node; default: the machine's host name"`
	MetricsAddress string   `yaml:"metricsBindAddress" flag:"metrics-bind-address" help:"address and port of metrics and debugging (plain HTTP, to loopback clients only)"`
	HealthAddress  string   `yaml:"healthzBindAddress" flag:"healthz-bind-address" help:"address and port of health checks (plain HTTP)"`
	Mode           string   `yaml:"mode" flag:"proxy-mode" help:"how Services are programmed: iptables; or none to leave them to another program"`
	ClusterCIDR    []string `yaml:"clusterCIDR" flag:"cluster-cidr" help:"pod address ranges of the cluster: other traffic to Services is masqueraded"`

	MasqueradeAll      bool     `yaml:"masqueradeAll" flag:"masquerade-all" help:"masquerade all traffic to cluster addresses"`
	NodePortAddresses  []string `yaml:"nodePortAddresses" flag:"nodeport-addresses" help:"prefixes of the node's addresses that answer on node ports; empty: all"`
	LocalhostNodePorts bool     `yaml:"localhostNodePorts" flag:"iptables-localhost-nodeports" help:"answer on node ports on loopback addresses (IPv4)"`

	ConntrackMaxPerCore  int           `yaml:"conntrackMaxPerCore" flag:"conntrack-max-per-core" help:"connections that the kernel tracks at least, for each core; 0 leaves the kernel's limit"`
	ConntrackMin         int           `yaml:"conntrackMin" flag:"conntrack-min" help:"connections that the kernel tracks at least, however few cores there are"`
	ConntrackEstablished time.Duration `yaml:"conntrackTCPTimeoutEstablished" flag:"conntrack-tcp-timeout-established" help:"after which idle TCP connections are forgotten; 0 leaves the kernel's setting"`
	ConntrackCloseWait   time.Duration `yaml:"conntrackTCPTimeoutCloseWait" flag:"conntrack-tcp-timeout-close-wait" help:"after which half-closed TCP connections are forgotten; 0 leaves the kernel's setting"`
	ConntrackLiberal     bool          `yaml:"conntrackTCPBeLiberal" flag:"conntrack-tcp-be-liberal" help:"let TCP packets outside the window pass"`
	ConntrackUDP         time.Duration `yaml:"conntrackUDPTimeout" flag:"conntrack-udp-timeout" help:"after which UDP flows without an answer are forgotten; 0 leaves the kernel's setting"`
	ConntrackUDPStream   time.Duration `yaml:"conntrackUDPTimeoutStream" flag:"conntrack-udp-timeout-stream" help:"after which UDP flows with answers are forgotten; 0 leaves the kernel's setting"`

	PodNetwork bool   `yaml:"podNetwork" flag:"pod-network" help:"set up the pod network: CNI configuration, routes or VXLAN to other nodes, masquerade to the outside"`
	CNIDir     string `yaml:"cniConfDir" flag:"cni-conf-dir" help:"directory of CNI configurations that the runtime reads"`
	CNIBin     string `yaml:"cniBinDir" flag:"cni-bin-dir" help:"directory of the runtime's CNI plugins: where it holds keelson-net, pods are connected by that; else, or empty, by bridge, host-local and portmap"`
	VNI        int    `yaml:"vxlanID" flag:"vxlan-id" help:"VXLAN network identifier"`
	VXLANPort  int    `yaml:"vxlanPort" flag:"vxlan-port" help:"VXLAN UDP port"`

	ClusterDNS []string `yaml:"clusterDNS" flag:"cluster-dns" help:"addresses on which the node answers cluster DNS; empty turns it off"`
	Domain     string   `yaml:"clusterDomain" flag:"cluster-domain" help:"the cluster's DNS domain"`
	ResolvConf string   `yaml:"resolvConf" flag:"resolv-conf" help:"file that names the resolvers for other domains"`

	Cleanup bool `yaml:"-" flag:"cleanup" help:"remove the chains, interfaces and routes that kube-proxy makes, and exit"`
}

// Default has upstream's defaults where it has one.
func Default() Config {
	return Config{
		Common: config.DefaultCommon(), MetricsAddress: "127.0.0.1:10249", HealthAddress: "0.0.0.0:10256", Mode: "iptables",
		ConntrackMaxPerCore: 32 * 1024, ConntrackMin: 128 * 1024, ConntrackEstablished: 24 * time.Hour, ConntrackCloseWait: time.Hour,
		LocalhostNodePorts: true, PodNetwork: true, CNIDir: "/etc/cni/net.d", VNI: 4096, VXLANPort: 8472,
		Domain: "cluster.local", ResolvConf: "/etc/resolv.conf",
	}
}

// Validate reports every fault.
func (c Config) Validate() field.ErrorList {
	errs := c.Client.Validate()
	at := func(name string) *field.Path { return field.NewPath(name) }
	for name, v := range map[string]string{"metricsBindAddress": c.MetricsAddress, "healthzBindAddress": c.HealthAddress} {
		if _, _, err := split(v); v != "" && err != nil {
			errs = append(errs, field.Invalid(at(name), v, "must be ADDRESS:PORT: "+err.Error()))
		}
	}
	if c.Mode != "iptables" && c.Mode != "none" {
		errs = append(errs, field.NotSupported(at("mode"), c.Mode, []string{"iptables", "none"}))
	}
	for name, list := range map[string][]string{"clusterCIDR": c.ClusterCIDR, "nodePortAddresses": c.NodePortAddresses} {
		for i, s := range list {
			if _, err := netip.ParsePrefix(s); err != nil && s != "primary" {
				errs = append(errs, field.Invalid(at(name).Index(i), s, "must be an address range such as 10.244.0.0/16"))
			}
		}
	}
	for name, n := range map[string]int64{
		"conntrackMaxPerCore": int64(c.ConntrackMaxPerCore), "conntrackMin": int64(c.ConntrackMin),
		"conntrackTCPTimeoutEstablished": int64(c.ConntrackEstablished), "conntrackTCPTimeoutCloseWait": int64(c.ConntrackCloseWait),
		"conntrackUDPTimeout": int64(c.ConntrackUDP), "conntrackUDPTimeoutStream": int64(c.ConntrackUDPStream),
	} {
		if n < 0 {
			errs = append(errs, field.Invalid(at(name), n, "must not be negative"))
		}
	}
	if c.PodNetwork && len(c.ClusterCIDR) == 0 {
		errs = append(errs, field.Required(at("clusterCIDR"), "is needed for the pod network; set --cluster-cidr, or --pod-network=false when another program makes it"))
	}
	for i, s := range c.ClusterDNS {
		if _, err := netip.ParseAddr(s); err != nil {
			errs = append(errs, field.Invalid(at("clusterDNS").Index(i), s, "must be an IP address"))
		}
	}
	if c.VNI < 1 || c.VNI >= 1<<24 {
		errs = append(errs, field.Invalid(at("vxlanID"), c.VNI, "must be from 1 to 16777215"))
	}
	if c.VXLANPort < 1 || c.VXLANPort > 65535 {
		errs = append(errs, field.Invalid(at("vxlanPort"), c.VXLANPort, "must be from 1 to 65535"))
	}
	return errs
}

func split(s string) (host string, port int, err error) {
	h, p, err := net.SplitHostPort(s)
	if err != nil {
		return "", 0, err
	}
	port, err = strconv.Atoi(p)
	return h, port, err
}

func prefixes(list []string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range list {
		if p, err := netip.ParsePrefix(strings.TrimSpace(s)); err == nil {
			out = append(out, p.Masked())
		}
	}
	return out
}

func addrs(list []string) []netip.Addr {
	var out []netip.Addr
	for _, s := range list {
		if a, err := netip.ParseAddr(s); err == nil {
			out = append(out, a)
		}
	}
	return out
}

// families are those of the cluster's pods; IPv4 where nothing is said.
func (c Config) families() []model.Family {
	has := map[model.Family]bool{}
	for _, p := range prefixes(c.ClusterCIDR) {
		if p.Addr().Is4() {
			has[model.IPv4] = true
		} else {
			has[model.IPv6] = true
		}
	}
	var out []model.Family
	for _, f := range []model.Family{model.IPv4, model.IPv6} {
		if has[f] || len(has) == 0 && f == model.IPv4 {
			out = append(out, f)
		}
	}
	return out
}

func of(f model.Family, list []netip.Prefix) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range list {
		if f.Has(p.Addr()) {
			out = append(out, p)
		}
	}
	return out
}
