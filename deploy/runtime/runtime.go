// Package runtime knows containerd: the configuration of the one that Keelson runs for
// itself, and how to ask any CRI runtime to stop what it runs.
//
// Keelson's containerd has its own root, state and socket, so that it neither sees nor
// disturbs containers of Docker or of Debian's containerd service.
//
// Main calls: Config (pure), Version, StopAll.
package runtime

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/keelson/keelson/deploy/config"
)

// Facts are what containerd's configuration depends on.
type Facts struct {
	Major            int  // containerd's major version
	SystemdCgroups   bool // systemd owns the cgroup tree
	RestrictOOMScore bool // the process may not lower oom_score_adj
	AppArmor         bool
	SELinux          bool
	SandboxImage     string
}

// Config returns the text of containerd's configuration.
//
// Source of the keys: containerd's documentation, cri/config.md (version 2 of the file
// for containerd 1.x, version 3 for 2.x).
func Config(p config.Paths, f Facts) string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line("# Keelson's own containerd, apart from any other on this machine. Written by `keelson up`.")
	runtime, images := "io.containerd.grpc.v1.cri", "io.containerd.grpc.v1.cri"
	if f.Major >= 2 {
		line("version = 3")
		runtime, images = "io.containerd.cri.v1.runtime", "io.containerd.cri.v1.images"
	} else {
		line("version = 2")
	}
	line("root = %q", p.ContainerdRoot)
	line("state = %q", p.ContainerdState)
	line("oom_score = 0") // up sets the daemon's own; lowering it here may be forbidden
	line("")
	line("[grpc]")
	line("  address = %q", p.ContainerdSocket)
	line("")
	line("[plugins.%q]", runtime)
	if f.Major < 2 {
		line("  sandbox_image = %q", f.SandboxImage)
	}
	line("  max_container_log_line_size = 16384")
	if f.RestrictOOMScore {
		line("  # CAP_SYS_RESOURCE is missing here: without this no container would start.")
		line("  restrict_oom_score_adj = true")
	}
	if !f.AppArmor {
		line("  disable_apparmor = true")
	}
	if f.SELinux {
		line("  enable_selinux = true")
	}
	line("  # Pods may open low ports and send pings without more rights (as upstream's nodes do).")
	line("  enable_unprivileged_ports = true")
	line("  enable_unprivileged_icmp = true")
	line("")
	line("  [plugins.%q.cni]", runtime)
	line("    bin_dir = %q", p.CNIBin)
	line("    conf_dir = %q", p.CNIConf)
	line("")
	line("  [plugins.%q.containerd]", runtime)
	if f.Major < 2 {
		line("    snapshotter = \"overlayfs\"")
	}
	line("    default_runtime_name = \"runc\"")
	line("")
	line("    [plugins.%q.containerd.runtimes.runc]", runtime)
	line("      runtime_type = \"io.containerd.runc.v2\"")
	line("      [plugins.%q.containerd.runtimes.runc.options]", runtime)
	line("        SystemdCgroup = %t", f.SystemdCgroups)
	line("")
	if f.Major >= 2 {
		line("[plugins.%q]", images)
		line("  snapshotter = \"overlayfs\"")
		line("  [plugins.%q.pinned_images]", images)
		line("    sandbox = %q", f.SandboxImage)
		line("")
	}
	line("  # Mirrors and certificates of registries: see docs/registries.md.")
	line("  [plugins.%q.registry]", images)
	line("    config_path = %q", p.Registries)
	return b.String()
}

// Version asks the installed containerd: "1.6.20", 1.
func Version(ctx context.Context) (text string, major int, err error) {
	out, err := exec.CommandContext(ctx, "/usr/bin/containerd", "--version").Output()
	if err != nil {
		return "", 0, fmt.Errorf("ask containerd for its version: %w", err)
	}
	// containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u3
	for _, w := range strings.Fields(string(out)) {
		w = strings.TrimPrefix(w, "v")
		n, _, dot := strings.Cut(w, ".")
		if major, err := strconv.Atoi(n); err == nil && dot {
			text, _, _ := strings.Cut(w, "~")
			return text, major, nil
		}
	}
	return "", 0, fmt.Errorf("containerd's version is not in %q", out)
}

// Observe finds the facts of this machine.
func Observe(ctx context.Context, sandboxImage string) (Facts, string, error) {
	version, major, err := Version(ctx)
	if err != nil {
		return Facts{}, "", err
	}
	f := Facts{Major: major, SandboxImage: sandboxImage, SystemdCgroups: SystemdCgroups(), RestrictOOMScore: !hasSysResource()}
	if b, err := os.ReadFile("/sys/module/apparmor/parameters/enabled"); err == nil && strings.TrimSpace(string(b)) == "Y" {
		_, err := exec.LookPath("apparmor_parser")
		f.AppArmor = err == nil
	}
	if b, err := os.ReadFile("/sys/fs/selinux/enforce"); err == nil && strings.TrimSpace(string(b)) == "1" {
		f.SELinux = true
	}
	return f, version, nil
}

// SystemdCgroups reports whether systemd is this machine's init and owns its cgroups:
// then the pods' cgroups are made through it, else directly.
func SystemdCgroups() bool {
	_, err := os.Stat("/run/systemd/system")
	return err == nil
}

// hasSysResource reports whether this process has CAP_SYS_RESOURCE (bit 24 of CapEff,
// proc(5) and capabilities(7)).
func hasSysResource() bool {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return false
	}
	for line := range strings.SplitSeq(string(b), "\n") {
		if hex, ok := strings.CutPrefix(line, "CapEff:"); ok {
			caps, err := strconv.ParseUint(strings.TrimSpace(hex), 16, 64)
			return err == nil && caps&(1<<24) != 0
		}
	}
	return false
}

// Dial connects to a runtime's socket. It does not wait for it.
func Dial(socket string) (*grpc.ClientConn, error) {
	return grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
}

// StopAll stops every pod of the runtime: first the containers, all at once and with at
// most grace to end by themselves, then the sandboxes, which takes their network down.
// The stopped containers stay, so that the next up continues their restart counts.
// Every pod is tried; the error joins what failed.
func StopAll(ctx context.Context, socket string, grace time.Duration) (stopped int, err error) {
	conn, err := Dial(socket)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	c := cri.NewRuntimeServiceClient(conn)
	containers, err := c.ListContainers(ctx, &cri.ListContainersRequest{Filter: &cri.ContainerFilter{
		State: &cri.ContainerStateValue{State: cri.ContainerState_CONTAINER_RUNNING}}})
	if err != nil {
		return 0, fmt.Errorf("list containers: %w", err)
	}
	// Most of them wait for their grace to end, all at the same time.
	err = each(len(containers.Containers), 256, func(i int) error {
		id := containers.Containers[i].Id
		_, err := c.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: id, Timeout: int64(grace.Seconds())})
		if err != nil {
			return fmt.Errorf("stop container %.12s: %w", id, err)
		}
		return nil
	})
	sandboxes, lerr := c.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{})
	if lerr != nil {
		return 0, errors.Join(err, fmt.Errorf("list sandboxes: %w", lerr))
	}
	serr := each(len(sandboxes.Items), 16, func(i int) error {
		id := sandboxes.Items[i].Id
		if _, err := c.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: id}); err != nil {
			return fmt.Errorf("stop sandbox %.12s: %w", id, err)
		}
		return nil
	})
	return len(sandboxes.Items), errors.Join(err, serr)
}

// each runs f for 0..n-1, at most so many at a time.
func each(n, atOnce int, f func(int) error) error {
	errs := make([]error, n)
	var wg sync.WaitGroup
	slots := make(chan struct{}, atOnce)
	for i := range n {
		wg.Add(1)
		slots <- struct{}{}
		go func() {
			defer wg.Done()
			errs[i] = f(i)
			<-slots
		}()
	}
	wg.Wait()
	return errors.Join(errs...)
}
