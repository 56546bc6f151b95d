package runtime

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/keelson/keelson/deploy/config"
)

func TestConfig(t *testing.T) {
	p := config.At("")
	for _, c := range []struct {
		name  string
		facts Facts
		has   []string
		hasnt []string
	}{
		{"containerd 1 without CAP_SYS_RESOURCE", Facts{Major: 1, RestrictOOMScore: true, SandboxImage: "pause"},
			[]string{"version = 2", `sandbox_image = "pause"`, "restrict_oom_score_adj = true", "disable_apparmor = true", "SystemdCgroup = false", p.ContainerdSocket,
				`[plugins."io.containerd.grpc.v1.cri".registry]`, `config_path = "/etc/containerd/certs.d"`}, []string{"pinned_images"}},
		{"containerd 1 under systemd with AppArmor", Facts{Major: 1, SystemdCgroups: true, AppArmor: true},
			[]string{"SystemdCgroup = true"}, []string{"disable_apparmor", "restrict_oom_score_adj"}},
		{"containerd 2", Facts{Major: 2, SandboxImage: "pause"},
			[]string{"version = 3", `sandbox = "pause"`, "io.containerd.cri.v1.runtime", `[plugins."io.containerd.cri.v1.images".registry]`}, []string{"sandbox_image", "grpc.v1.cri"}},
	} {
		got := Config(p, c.facts)
		for _, w := range c.has {
			if !strings.Contains(got, w) {
				t.Errorf("%s: want %q in:\n%s", c.name, w, got)
			}
		}
		for _, w := range c.hasnt {
			if strings.Contains(got, w) {
				t.Errorf("%s: want no %q in:\n%s", c.name, w, got)
			}
		}
	}
}

// The installed containerd itself must understand the file.
func TestContainerdReadsIt(t *testing.T) {
	_, major, err := Version(t.Context())
	if err != nil {
		t.Fatalf("%v (apt-get install containerd)", err)
	}
	file := filepath.Join(t.TempDir(), "containerd.toml")
	if err := os.WriteFile(file, []byte(Config(config.At(t.TempDir()), Facts{Major: major, SandboxImage: "keelson.local/pause:1"})), 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("/usr/bin/containerd", "--config", file, "config", "dump").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "keelson.local/pause:1") {
		t.Errorf("%v:\n%s", err, out)
	}
}
