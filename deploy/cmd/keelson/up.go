package main

import (
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/keelson/keelson/deploy"
)

func upCommand(m machine) *cobra.Command {
	var c deploy.Choices
	var bundle string
	var extra []string
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Start the cluster, or what this machine is of it, and wait until it is ready",
		Long: `Starts everything: installs missing Debian packages, makes certificates, and runs
containerd, apiserver (with etcd), scheduler, controller-manager, kubelet and kube-proxy;
under systemd as units keelson-*, elsewhere under a supervisor of its own.

Choices are remembered in /etc/keelson/cluster.yaml: a later up needs none of them.`,
		Example: `  sudo keelson up
  sudo keelson up --address 192.168.1.10
  sudo keelson up --node bundle.tar     # join a cluster: see keelson node-bundle`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			mc, err := m()
			if err != nil {
				return err
			}
			c.Extra = map[string]map[string]string{}
			for _, e := range extra {
				daemon, rest, ok := strings.Cut(e, ":")
				name, value, ok2 := strings.Cut(strings.TrimPrefix(rest, "--"), "=")
				if !ok || !ok2 {
					return fmt.Errorf("--extra %q: write DAEMON:FLAG=VALUE, such as kubelet:max-pods=200", e)
				}
				if c.Extra[daemon] == nil {
					c.Extra[daemon] = map[string]string{}
				}
				c.Extra[daemon][name] = value
			}
			if bundle != "" {
				f, err := os.Open(bundle)
				if err != nil {
					return err
				}
				defer f.Close()
				if err := mc.Join(f); err != nil {
					return err
				}
			}
			return mc.Up(cmd.Context(), c)
		},
	}
	f := cmd.Flags()
	f.StringVar(&c.Node, "node-name", "", "this machine's name in the cluster (default: its host name)")
	f.StringVar(&c.Address, "address", "", "this machine's address (default: the one that packets to elsewhere come from)")
	f.StringVar(&c.ServiceCIDR, "service-cidr", "", "addresses of services (default 10.96.0.0/16)")
	f.StringVar(&c.PodCIDR, "pod-cidr", "", "addresses of pods; each node gets a part (default 10.244.0.0/16)")
	f.StringVar(&c.DNSAddress, "dns-address", "", "address of the cluster's DNS (default: the tenth of the services' range)")
	f.StringVar(&c.Domain, "cluster-domain", "", "DNS domain of the cluster (default cluster.local)")
	f.StringSliceVar(&c.ExtraNames, "api-name", nil, "further names and addresses under which the API is reached")
	f.StringVar(&c.Binaries, "binaries", "", "directory of the daemons (default: where keelson is)")
	f.StringVar(&c.CgroupRoot, "cgroup-root", "", "parent of the pods' cgroups")
	f.BoolVar(&c.ControlPlaneOnly, "control-plane-only", false, "run no pods on this machine")
	f.BoolVar(&c.SkipPackages, "no-install", false, "install no packages; fail when programs are missing")
	f.StringArrayVar(&extra, "extra", nil, "DAEMON:FLAG=VALUE: a further flag for a daemon; may be repeated")
	f.StringVar(&bundle, "node", "", "join as a worker with this bundle (made by keelson node-bundle)")
	for _, p := range []struct {
		to   *int
		name string
	}{
		{&c.Ports.API, "api"}, {&c.Ports.EtcdClient, "etcd-client"}, {&c.Ports.EtcdPeer, "etcd-peer"}, {&c.Ports.Scheduler, "scheduler"},
		{&c.Ports.ControllerManager, "controller-manager"}, {&c.Ports.Kubelet, "kubelet"}, {&c.Ports.KubeletHealth, "kubelet-health"},
		{&c.Ports.ProxyMetrics, "proxy-metrics"}, {&c.Ports.ProxyHealth, "proxy-health"},
	} {
		f.IntVar(p.to, p.name+"-port", 0, "TCP port (default: upstream's)")
	}
	_ = cmd.MarkFlagFilename("node", "tar")
	_ = cmd.MarkFlagDirname("binaries")
	return cmd
}

func downCommand(m machine) *cobra.Command {
	var grace time.Duration
	cmd := &cobra.Command{
		Use:   "down",
		Short: "Stop everything on this machine and keep the cluster's data",
		Long:  "Stops pods, daemons and containerd, and removes their mounts, interfaces, iptables chains\nand cgroups. The data stays: `keelson up` resumes the cluster.",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			mc, err := m()
			if err != nil {
				return err
			}
			return mc.Down(cmd.Context(), grace)
		},
	}
	cmd.Flags().DurationVar(&grace, "grace", 5*time.Second, "time for containers to end by themselves")
	return cmd
}

func resetCommand(m machine) *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use:   "reset",
		Short: "Stop everything on this machine and forget the cluster: all its data is lost",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			mc, err := m()
			if err != nil {
				return err
			}
			if !yes {
				fmt.Printf("This deletes the cluster's data in %s, its images and its certificates.\nType yes to go on: ", mc.Paths.Lib)
				var answer string
				if _, err := fmt.Scanln(&answer); err != nil || answer != "yes" {
					return fmt.Errorf("nothing was changed (--yes answers beforehand)")
				}
			}
			return mc.Reset(cmd.Context())
		},
	}
	cmd.Flags().BoolVar(&yes, "yes", false, "do not ask")
	return cmd
}

func statusCommand(m machine) *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Show how the services, nodes and certificates are; exit code 1 if not all is well",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			mc, err := m()
			if err != nil {
				return err
			}
			healthy, err := mc.Status(cmd.Context(), os.Stdout)
			if err == nil && !healthy {
				return errSilent
			}
			return err
		},
	}
}

func bundleCommand(m machine) *cobra.Command {
	var address, out string
	cmd := &cobra.Command{
		Use:     "node-bundle NAME",
		Short:   "Write what another machine needs to join this cluster as node NAME",
		Long:    "Writes a tar with the settings and certificates of a worker. Whoever holds it is that\nnode: carry it over a safe way, and run `keelson up --node FILE` there.",
		Example: "  sudo keelson node-bundle node-2 --address 192.168.1.11 --output node-2.tar",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			mc, err := m()
			if err != nil {
				return err
			}
			if address == "" {
				return fmt.Errorf("say --address, the other machine's address: its certificate is made for it")
			}
			if out == "" {
				out = args[0] + ".tar"
			}
			f, err := os.OpenFile(out, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
			if err != nil {
				return err
			}
			if err := mc.Bundle(f, args[0], address); err != nil {
				f.Close()
				os.Remove(out)
				return err
			}
			fmt.Printf("Wrote %s. Copy it to %s (%s) and run there: sudo keelson up --node %s\n", out, args[0], address, out)
			return f.Close()
		},
	}
	cmd.Flags().StringVar(&address, "address", "", "the other machine's address")
	cmd.Flags().StringVarP(&out, "output", "o", "", "file to write (default NAME.tar)")
	return cmd
}
