package kubeproxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/keelson/keelson/kube-proxy/dns"
	"github.com/keelson/keelson/kube-proxy/iptables"
	"github.com/keelson/keelson/kube-proxy/model"
	"github.com/keelson/keelson/kube-proxy/network"
	"github.com/keelson/keelson/kube-proxy/rules"
)

// setting is one kernel parameter, named by its path below /proc/sys.
type setting struct {
	name  string
	value int
	must  bool // without it Services cannot work
	least bool // a higher value stays: an administrator has chosen it
}

// forwarding is what Services and pods of a family need of the kernel.
func forwarding(f model.Family, cfg Config) []setting {
	if f == model.IPv6 {
		return []setting{{name: "net/ipv6/conf/all/forwarding", value: 1, must: true}, {name: "net/bridge/bridge-nf-call-ip6tables", value: 1}}
	}
	list := []setting{
		{name: "net/ipv4/ip_forward", value: 1, must: true},
		{name: "net/bridge/bridge-nf-call-iptables", value: 1}, // pods of one node reach each other through Services
	}
	if cfg.LocalhostNodePorts {
		list = append(list, setting{name: "net/ipv4/conf/all/route_localnet", value: 1})
	}
	return list
}

// tracking is how many connections the kernel remembers, and for how long. A connection that it forgot
// while one side still holds it open would end without the other side's knowledge: its last packets
// would not be translated back.
//
// Source: kube-proxy's configuration (v1alpha1, KubeProxyConntrackConfiguration), whose limit is at most
// 1,048,576 however many cores there are. There a higher limit of the machine is lowered; here it stays.
func tracking(cfg Config, cores int) []setting {
	var list []setting
	add := func(name string, value int, least bool) {
		if value > 0 {
			list = append(list, setting{name: "net/netfilter/nf_conntrack_" + name, value: value, least: least})
		}
	}
	if cfg.ConntrackMaxPerCore > 0 {
		add("max", min(max(cfg.ConntrackMaxPerCore*cores, cfg.ConntrackMin), 1<<20), true)
	}
	add("tcp_timeout_established", int(cfg.ConntrackEstablished/time.Second), false)
	add("tcp_timeout_close_wait", int(cfg.ConntrackCloseWait/time.Second), false)
	if cfg.ConntrackLiberal {
		add("tcp_be_liberal", 1, false)
	}
	add("udp_timeout", int(cfg.ConntrackUDP/time.Second), false)
	add("udp_timeout_stream", int(cfg.ConntrackUDPStream/time.Second), false)
	return list
}

// set makes the parameters below root (/proc/sys) so. One that cannot be set and is not so already is an
// error if Services need it, and a warning if not.
func set(root string, list []setting, log *slog.Logger) error {
	for _, s := range list {
		file := filepath.Join(root, s.name)
		text, err := os.ReadFile(file)
		if err == nil {
			have, bad := strconv.Atoi(strings.TrimSpace(string(text)))
			if bad == nil && (have == s.value || s.least && have > s.value) {
				continue
			}
			err = os.WriteFile(file, []byte(strconv.Itoa(s.value)), 0o644)
		}
		if err == nil {
			continue
		}
		if s.must {
			return fmt.Errorf("set %s to %d: %w", strings.ReplaceAll(s.name, "/", "."), s.value, err)
		}
		log.Warn("cannot set a kernel parameter; some Service traffic may not work", "name", strings.ReplaceAll(s.name, "/", "."), "want", s.value, "err", err)
	}
	return nil
}

// cleanup removes what the daemon makes in the kernel.
func cleanup(ctx context.Context, cfg Config, log *slog.Logger) error {
	var errs []error
	for _, f := range []model.Family{model.IPv4, model.IPv6} {
		k, err := iptables.New(f)
		if err != nil {
			continue // without the command there are no rules either
		}
		set := rules.Build(rules.Config{Family: f}, nil)
		if err := k.RemoveJumps(set.Jumps); err != nil {
			errs = append(errs, err)
			continue
		}
		for _, table := range []string{"nat", "filter"} {
			names, err := k.Chains(ctx, table)
			if err != nil {
				errs = append(errs, err)
				continue
			}
			fixed := set.NAT
			if table == "filter" {
				fixed = set.Filter
			}
			have := rules.Table{}
			for _, n := range names {
				if _, ours := fixed[n]; ours || rules.Owned(n) {
					have[n] = ""
				}
			}
			if text, n := rules.Diff(table, have, nil); n > 0 {
				errs = append(errs, k.Restore(ctx, text))
				log.Info("chains removed", "table", table, "family", f, "chains", n)
			}
		}
	}
	for _, name := range []string{network.Tunnel, dns.Device} {
		if l, err := netlink.LinkByName(name); err == nil {
			errs = append(errs, netlink.LinkDel(l))
		}
	}
	errs = append(errs, network.RemoveRoutes())
	if cfg.PodNetwork {
		if err := os.Remove(filepath.Join(cfg.CNIDir, "10-keelson.conflist")); err != nil && !os.IsNotExist(err) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
