// Package units runs a machine's services under systemd.
//
// Main calls: Render (pure: services → unit files) and Apply, which installs the units,
// reloads systemd, and starts what is not running or has changed. The units belong to
// keelson.target, so that one name stops all of them.
//
// Units are checked with `systemd-analyze verify` by this package's test.
package units

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/keelson/keelson/deploy/config"
	daemonconfig "github.com/keelson/keelson/libs/config"
)

// Dir is where the administrator's units lie (systemd.unit(5)).
const Dir = "/etc/systemd/system"

// Target is the unit that holds all of ours.
const Target = "keelson.target"

// Name is the unit of a service. containerd's is not Debian's.
func Name(service string) string { return "keelson-" + service + ".service" }

// Here reports whether systemd runs this machine (sd_booted(3)).
func Here() bool {
	info, err := os.Stat("/run/systemd/system")
	return err == nil && info.IsDir()
}

// hardening is what each service can do without. The reasons are with the lines.
//
// containerd, kubelet and kube-proxy get none of the mount options: what they mount must
// appear on the machine (ProtectSystem and its like give a unit a mount namespace of
// its own, in which a pod's volumes would be invisible to containerd).
func hardening(service string, p config.Paths) []string {
	switch service {
	case config.APIServer:
		return []string{
			"NoNewPrivileges=yes", "ProtectSystem=strict", "ReadWritePaths=" + p.Lib,
			"ProtectHome=read-only", "PrivateTmp=yes", "PrivateDevices=yes",
			"ProtectKernelTunables=yes", "ProtectKernelModules=yes", "ProtectKernelLogs=yes", "ProtectControlGroups=yes", "ProtectClock=yes",
			"RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK", "RestrictNamespaces=yes", "RestrictRealtime=yes", "RestrictSUIDSGID=yes",
			"LockPersonality=yes", "MemoryDenyWriteExecute=yes", "SystemCallArchitectures=native", "SystemCallFilter=@system-service",
			"CapabilityBoundingSet=CAP_NET_BIND_SERVICE CAP_DAC_OVERRIDE",
		}
	case config.Scheduler, config.ControllerManager:
		return []string{
			"NoNewPrivileges=yes", "ProtectSystem=strict", "ProtectHome=read-only", "PrivateTmp=yes", "PrivateDevices=yes",
			"ProtectKernelTunables=yes", "ProtectKernelModules=yes", "ProtectKernelLogs=yes", "ProtectControlGroups=yes", "ProtectClock=yes",
			"RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK", "RestrictNamespaces=yes", "RestrictRealtime=yes", "RestrictSUIDSGID=yes",
			"LockPersonality=yes", "MemoryDenyWriteExecute=yes", "SystemCallArchitectures=native", "SystemCallFilter=@system-service",
			"CapabilityBoundingSet=CAP_NET_BIND_SERVICE CAP_DAC_READ_SEARCH",
		}
	case config.KubeProxy:
		return []string{ // changes the network and kernel settings, runs iptables; no more
			"ProtectHome=read-only", "ProtectClock=yes", "ProtectKernelLogs=yes", "RestrictRealtime=yes", "RestrictSUIDSGID=yes", "LockPersonality=yes",
			"SystemCallArchitectures=native",
		}
	case config.Kubelet:
		return []string{"SystemCallArchitectures=native", "LockPersonality=yes", "RestrictRealtime=yes"}
	}
	return []string{ // containerd: containers inherit its limits; its shims and cgroups are its own affair
		"Delegate=yes", "TasksMax=infinity", "LimitCORE=infinity", "SystemCallArchitectures=native",
	}
}

// Render returns the text of every unit by file name. It is pure.
func Render(services []config.Service, p config.Paths) map[string][]byte {
	out := map[string][]byte{}
	var target bytes.Buffer
	fmt.Fprintf(&target, "# Written by `keelson up`.\n[Unit]\nDescription=Keelson: all Kubernetes services of this machine\n")
	fmt.Fprintf(&target, "\n[Install]\nWantedBy=multi-user.target\n")
	out[Target] = target.Bytes()
	for _, sv := range services {
		var b bytes.Buffer
		line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
		line("# Written by `keelson up`; changes are lost at the next one. Own settings belong into")
		line("# %s/%s.d/ (systemd.unit(5), drop-ins).", Dir, Name(sv.Name))
		line("[Unit]")
		line("Description=%s", sv.Description)
		line("PartOf=%s", Target)
		after := []string{"network-online.target"}
		for _, a := range sv.After {
			after = append(after, Name(a))
		}
		line("After=%s", strings.Join(after, " "))
		line("Wants=network-online.target")
		// Starting again has no limit: a node must come back by itself, however long its
		// disk or network was away. The pause grows no further than RestartSec.
		line("StartLimitIntervalSec=0")
		line("")
		line("[Service]")
		line("Type=notify")
		line("NotifyAccess=main")
		if len(sv.Prepare) > 0 {
			line("ExecStartPre=%s", commandLine(sv.Prepare))
		}
		line("ExecStart=%s", commandLine(sv.Command))
		if len(sv.Env) > 0 {
			quoted := make([]string, len(sv.Env))
			for i, e := range sv.Env {
				quoted[i] = quote(e)
			}
			line("Environment=%s", strings.Join(quoted, " "))
		}
		line("Restart=always")
		line("RestartSec=1s")
		line("# Wrong settings do not mend themselves.")
		line("RestartPreventExitStatus=%d", daemonconfig.ExitUsage)
		line("TimeoutStartSec=120s")
		line("TimeoutStopSec=%ds", int(sv.StopWithin.Seconds()))
		if sv.Watchdog > 0 {
			line("WatchdogSec=%ds", int(sv.Watchdog.Seconds()))
		}
		// Pods must outlive the daemons that started them.
		line("KillMode=%s", map[bool]string{true: "process", false: "mixed"}[sv.Name == config.Containerd || sv.Name == config.Kubelet])
		line("OOMScoreAdjust=%d", sv.OOMScore)
		line("LimitNOFILE=1048576")
		for _, h := range hardening(sv.Name, p) {
			line("%s", h)
		}
		line("")
		line("[Install]")
		line("WantedBy=%s", Target)
		out[Name(sv.Name)] = b.Bytes()
	}
	return out
}

func commandLine(words []string) string {
	out := make([]string, len(words))
	for i, w := range words {
		out[i] = quote(w)
	}
	return strings.Join(out, " \\\n  ")
}

// quote writes one word as systemd.service(5) reads it: % and $ are special.
func quote(w string) string {
	w = strings.ReplaceAll(w, "%", "%%")
	w = strings.ReplaceAll(w, "$", "$$")
	if strings.ContainsAny(w, " \t\"'\\;") || w == "" {
		w = `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(w) + `"`
	}
	return w
}

// Install writes the units to dir and removes ours that are no longer wanted. changed
// are the services whose unit differs from before.
func Install(dir string, services []config.Service, p config.Paths) (changed []string, err error) {
	want := Render(services, p)
	old, err := filepath.Glob(filepath.Join(dir, "keelson-*.service"))
	if err != nil {
		return nil, err
	}
	for _, f := range old {
		if _, ok := want[filepath.Base(f)]; !ok {
			if err := os.Remove(f); err != nil {
				return nil, err
			}
		}
	}
	for name, text := range want {
		differs, err := config.WriteFile(filepath.Join(dir, name), text, 0o644)
		if err != nil {
			return nil, err
		}
		if differs && name != Target {
			changed = append(changed, name)
		}
	}
	return changed, nil
}

// Apply installs the units and has systemd run them. It returns when systemd has been
// told; WaitReady in the caller watches the result.
func Apply(ctx context.Context, services []config.Service, p config.Paths, restart []string) error {
	changed, err := Install(Dir, services, p)
	if err != nil {
		return fmt.Errorf("install units: %w", err)
	}
	if err := systemctl(ctx, "daemon-reload"); err != nil {
		return err
	}
	names := []string{Target}
	for _, sv := range services {
		names = append(names, Name(sv.Name))
	}
	if err := systemctl(ctx, append([]string{"enable", "--quiet"}, names...)...); err != nil {
		return err
	}
	for _, s := range restart {
		changed = append(changed, Name(s))
	}
	if len(changed) > 0 {
		// try-restart leaves alone what does not run: start does that next.
		if err := systemctl(ctx, append([]string{"try-restart", "--no-block"}, changed...)...); err != nil {
			return err
		}
	}
	return systemctl(ctx, append([]string{"start", "--no-block"}, names...)...)
}

// Stop stops services (all when none is named) and waits for them. What systemd does not
// know is stopped already.
func Stop(ctx context.Context, services ...string) error {
	names := make([]string, len(services))
	for i, s := range services {
		names[i] = Name(s)
	}
	if len(services) == 0 {
		names = []string{Target, "keelson-*.service"}
	}
	var errs []error
	for _, n := range names {
		if err := systemctl(ctx, "stop", n); err != nil && !errors.Is(err, errNotLoaded) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// StopSlices stops the slices of pods, with what is in them: systemd would keep them as
// units when only their cgroups went.
func StopSlices(ctx context.Context) error {
	err := systemctl(ctx, "stop", "kubepods.slice", "kubepods-*.slice")
	if errors.Is(err, errNotLoaded) {
		return nil
	}
	return err
}

// Remove disables and deletes our units.
func Remove(ctx context.Context) error {
	old, err := filepath.Glob(filepath.Join(Dir, "keelson-*.service"))
	if err != nil {
		return err
	}
	var errs []error
	for _, f := range append(old, filepath.Join(Dir, Target)) {
		if _, err := os.Stat(f); err != nil {
			continue
		}
		errs = append(errs, systemctl(ctx, "disable", "--quiet", filepath.Base(f)), os.Remove(f))
	}
	if len(errs) == 0 {
		return nil
	}
	// Also forget that one of them once failed.
	errs = append(errs, systemctl(ctx, "daemon-reload"))
	_ = systemctl(ctx, "reset-failed", "keelson-*") // where none did it has nothing to do
	return errors.Join(errs...)
}

// State is what systemd knows of a service.
type State struct {
	Active   string // "active", "activating", "failed", …
	Sub      string // within it: "running", "auto-restart", …
	PID      int    // of the main process; 0: none
	Restarts int
	Exit     string // how the main process last ended, "exit status 1" or "signal 9"; "" while it runs
	Since    time.Time
}

// Show asks systemd for the state of a service.
func Show(ctx context.Context, service string) (State, error) {
	out, err := exec.CommandContext(ctx, "systemctl", "show", "--timestamp=unix",
		"--property=ActiveState,SubState,MainPID,NRestarts,ExecMainCode,ExecMainStatus,StateChangeTimestamp", Name(service)).Output()
	if err != nil {
		return State{}, fmt.Errorf("systemctl show %s: %w", Name(service), err)
	}
	return parseState(string(out)), nil
}

// parseState reads the lines NAME=VALUE of systemctl show. ExecMainCode is si_code of
// waitid(2): 1 for an exit, 2 and 3 for signals.
func parseState(text string) State {
	var s State
	values := map[string]string{}
	for line := range strings.SplitSeq(text, "\n") {
		if name, v, ok := strings.Cut(line, "="); ok {
			values[name] = v
		}
	}
	s.Active, s.Sub = values["ActiveState"], values["SubState"]
	s.PID, _ = strconv.Atoi(values["MainPID"])
	s.Restarts, _ = strconv.Atoi(values["NRestarts"])
	switch values["ExecMainCode"] {
	case "1":
		s.Exit = "exit status " + values["ExecMainStatus"]
	case "2", "3":
		s.Exit = "signal " + values["ExecMainStatus"]
	}
	if n, err := strconv.ParseInt(strings.TrimPrefix(values["StateChangeTimestamp"], "@"), 10, 64); err == nil && n > 0 {
		s.Since = time.Unix(n, 0)
	}
	return s
}

// Log returns the last n lines of a service's journal, as text or as why there is none.
func Log(ctx context.Context, service string, n int) string {
	out, err := exec.CommandContext(ctx, "journalctl", "--no-pager", "--quiet", "--output=cat", fmt.Sprintf("--lines=%d", n), "--unit="+Name(service)).CombinedOutput()
	if err != nil {
		return err.Error() + ": " + string(out)
	}
	return string(out)
}

var errNotLoaded = errors.New("no such unit")

func systemctl(ctx context.Context, args ...string) error {
	out, err := exec.CommandContext(ctx, "systemctl", args...).CombinedOutput()
	text := strings.TrimSpace(string(out))
	// Exit code 5, and this text, as systemctl(1) has no other way to tell.
	if err != nil && strings.Contains(text, "not loaded") {
		err = errNotLoaded
	}
	if err != nil {
		return fmt.Errorf("systemctl %s: %w: %s", args[0], err, text)
	}
	return nil
}
