package kubeproxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"

	"github.com/keelson/keelson/kube-proxy/dns"
	"github.com/keelson/keelson/kube-proxy/iptables"
	"github.com/keelson/keelson/kube-proxy/model"
	"github.com/keelson/keelson/kube-proxy/network"
	"github.com/keelson/keelson/kube-proxy/rules"
)

// sysctls sets what Services and pods need of the kernel. What cannot be set and
// is not so already is an error for forwarding, and a warning for the rest.
func sysctls(f model.Family, cfg Config, log *slog.Logger) error {
	type setting struct {
		name, value string
		must        bool
	}
	list := []setting{
		{"net/ipv4/ip_forward", "1", true},
		{"net/bridge/bridge-nf-call-iptables", "1", false}, // pods of one node reach each other through Services
	}
	if cfg.LocalhostNodePorts {
		list = append(list, setting{"net/ipv4/conf/all/route_localnet", "1", false})
	}
	if f == model.IPv6 {
		list = []setting{{"net/ipv6/conf/all/forwarding", "1", true}, {"net/bridge/bridge-nf-call-ip6tables", "1", false}}
	}
	for _, s := range list {
		file := filepath.Join("/proc/sys", s.name)
		have, err := os.ReadFile(file)
		if err == nil && strings.TrimSpace(string(have)) == s.value {
			continue
		}
		if err == nil {
			err = os.WriteFile(file, []byte(s.value), 0o644)
		}
		if err == nil {
			continue
		}
		if s.must {
			return fmt.Errorf("set %s to %s: %w", strings.ReplaceAll(s.name, "/", "."), s.value, err)
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
