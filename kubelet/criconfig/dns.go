package criconfig

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// NodeDNS is what the node's configuration says about name resolution.
type NodeDNS struct {
	ClusterServers []string // --cluster-dns
	ClusterDomain  string   // --cluster-domain
	// Host is the node's own resolv.conf, read by ParseResolvConf.
	Host Resolv
}

// Resolv is the content of a resolv.conf.
type Resolv struct {
	Servers, Searches, Options []string
}

// Limits of resolv.conf. Source: Kubernetes concepts, "DNS for Services and Pods".
const (
	maxNameservers    = 3
	maxSearches       = 32
	maxSearchesLength = 2048
)

// DNS is the content of the pod's resolv.conf.
//
// Source: Kubernetes concepts, "Pod's DNS Policy" and "Pod's DNS Config".
func DNS(n NodeDNS, p *corev1.Pod) *cri.DNSConfig {
	policy := p.Spec.DNSPolicy
	if policy == corev1.DNSClusterFirst && p.Spec.HostNetwork {
		policy = corev1.DNSDefault
	}
	if (policy == corev1.DNSClusterFirst || policy == corev1.DNSClusterFirstWithHostNet) && len(n.ClusterServers) == 0 {
		policy = corev1.DNSDefault
	}
	out := &cri.DNSConfig{}
	switch policy {
	case corev1.DNSNone:
	case corev1.DNSDefault:
		out.Servers = slices.Clone(n.Host.Servers)
		out.Searches = slices.Clone(n.Host.Searches)
		out.Options = slices.Clone(n.Host.Options)
	default:
		out.Servers = slices.Clone(n.ClusterServers)
		if d := n.ClusterDomain; d != "" {
			out.Searches = []string{p.Namespace + ".svc." + d, "svc." + d, d}
		}
		out.Searches = append(out.Searches, n.Host.Searches...)
		out.Options = []string{"ndots:5"}
	}
	if c := p.Spec.DNSConfig; c != nil {
		out.Servers = append(out.Servers, c.Nameservers...)
		out.Searches = append(out.Searches, c.Searches...)
		out.Options = mergeOptions(out.Options, c.Options)
	}
	out.Servers = unique(out.Servers)
	out.Searches = unique(out.Searches)
	if len(out.Servers) > maxNameservers {
		out.Servers = out.Servers[:maxNameservers]
	}
	if len(out.Searches) > maxSearches {
		out.Searches = out.Searches[:maxSearches]
	}
	for len(strings.Join(out.Searches, " ")) > maxSearchesLength {
		out.Searches = out.Searches[:len(out.Searches)-1]
	}
	return out
}

func unique(list []string) []string {
	var out []string
	for _, s := range list {
		if !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}

// mergeOptions lets the pod's options replace the policy's of the same name.
func mergeOptions(base []string, own []corev1.PodDNSConfigOption) []string {
	var out []string
	named := map[string]bool{}
	for _, o := range own {
		named[o.Name] = true
	}
	for _, o := range base {
		name, _, _ := strings.Cut(o, ":")
		if !named[name] {
			out = append(out, o)
		}
	}
	for _, o := range own {
		if o.Value != nil && *o.Value != "" {
			out = append(out, o.Name+":"+*o.Value)
		} else {
			out = append(out, o.Name)
		}
	}
	return out
}

// ParseResolvConf reads a resolv.conf (man 5 resolv.conf). The last search line counts.
func ParseResolvConf(text string) Resolv {
	var c Resolv
	for line := range strings.Lines(text) {
		f := strings.Fields(strings.SplitN(strings.SplitN(line, "#", 2)[0], ";", 2)[0])
		if len(f) < 2 {
			continue
		}
		switch f[0] {
		case "nameserver":
			c.Servers = append(c.Servers, f[1])
		case "search":
			c.Searches = nil
			for _, s := range f[1:] {
				if s != "." {
					s = strings.TrimSuffix(s, ".")
				}
				c.Searches = append(c.Searches, s)
			}
		case "options":
			c.Options = append(c.Options, f[1:]...)
		}
	}
	return c
}

// Hosts is the text of the pod's /etc/hosts. host is the node's own file, which a pod on the
// host's network starts from.
//
// Source: Kubernetes tasks, "Adding entries to Pod /etc/hosts with HostAliases".
func Hosts(n Node, p *corev1.Pod, ips []corev1.PodIP, host string) string {
	var b strings.Builder
	if p.Spec.HostNetwork {
		b.WriteString("# Kubernetes-managed hosts file (host network).\n")
		b.WriteString(host)
		if host != "" && !strings.HasSuffix(host, "\n") {
			b.WriteString("\n")
		}
	} else {
		b.WriteString("# Kubernetes-managed hosts file.\n")
		b.WriteString("127.0.0.1\tlocalhost\n")
		b.WriteString("::1\tlocalhost ip6-localhost ip6-loopback\n")
		b.WriteString("fe00::0\tip6-localnet\n")
		b.WriteString("fe00::0\tip6-mcastprefix\n")
		b.WriteString("fe00::1\tip6-allnodes\n")
		b.WriteString("fe00::2\tip6-allrouters\n")
		name, domain := HostnameAndDomain(n, p)
		for _, ip := range ips {
			if domain != "" {
				fmt.Fprintf(&b, "%s\t%s.%s\t%s\n", ip.IP, name, domain, name)
			} else {
				fmt.Fprintf(&b, "%s\t%s\n", ip.IP, name)
			}
		}
	}
	if len(p.Spec.HostAliases) > 0 {
		b.WriteString("\n# Entries added by HostAliases.\n")
		for _, a := range p.Spec.HostAliases {
			fmt.Fprintf(&b, "%s\t%s\n", a.IP, strings.Join(a.Hostnames, "\t"))
		}
	}
	return b.String()
}
