package units

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/keelson/keelson/deploy/config"
)

func services() []config.Service {
	s := config.Default()
	s.Node, s.Address, s.Server, s.Binaries = "one", "192.0.2.1", "https://192.0.2.1:6443", "/usr/bin"
	return config.Services(s, config.At(""), config.Machine{SystemdCgroups: true, ResolvConf: "/etc/resolv.conf", Proxy: []string{"NO_PROXY=a b%c"}})
}

// systemd itself judges the units; the programs stand in as /bin/true, which exists.
func TestVerify(t *testing.T) {
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Fatal("systemd-analyze is needed to check the units: apt-get install systemd")
	}
	dir := t.TempDir()
	list := services()
	for i := range list {
		list[i].Command[0] = "/bin/true"
		if len(list[i].Prepare) > 0 {
			list[i].Prepare[0] = "/bin/true"
		}
	}
	if _, err := Install(dir, list, config.At("")); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(dir, "keelson*"))
	if err != nil || len(files) != len(list)+1 {
		t.Fatalf("units: %v, %v", files, err)
	}
	out, err := exec.Command(analyze, append([]string{"verify", "--man=no"}, files...)...).CombinedOutput()
	for line := range strings.SplitSeq(string(out), "\n") {
		if strings.Contains(line, "keelson") { // it also grumbles about the machine's other units
			t.Errorf("systemd-analyze: %s", line)
		}
	}
	if err != nil && strings.Contains(string(out), "keelson") {
		t.Errorf("%v:\n%s", err, out)
	}
}

func TestInstall(t *testing.T) {
	dir, p := t.TempDir(), config.At("")
	old := filepath.Join(dir, "keelson-former.service")
	if err := os.WriteFile(old, []byte("[Unit]\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	list := services()
	if changed, err := Install(dir, list, p); err != nil || len(changed) != len(list) {
		t.Fatalf("first: %v, %v", changed, err)
	}
	if _, err := os.Stat(old); err == nil {
		t.Error("a unit that nobody wants is still there")
	}
	if changed, err := Install(dir, list, p); err != nil || len(changed) != 0 {
		t.Errorf("again: %v, %v", changed, err)
	}
	list[1].Command = append(list[1].Command, "--v=debug")
	if changed, err := Install(dir, list, p); err != nil || len(changed) != 1 || changed[0] != "keelson-apiserver.service" {
		t.Errorf("one changed: %v, %v", changed, err)
	}
}

// What mounts for pods must not be shut into a mount namespace of its own.
func TestNodeUnitsShareTheMachinesMounts(t *testing.T) {
	for name, text := range Render(services(), config.At("")) {
		switch name {
		case Name(config.Containerd), Name(config.Kubelet):
			for _, line := range strings.Split(string(text), "\n") {
				for _, bad := range []string{"ProtectSystem", "PrivateTmp", "PrivateDevices", "ProtectHome", "ReadWritePaths", "PrivateMounts", "ProtectKernelTunables", "ProtectControlGroups"} {
					if strings.HasPrefix(line, bad) {
						t.Errorf("%s: %s gives it its own mounts", name, line)
					}
				}
			}
			if !strings.Contains(string(text), "KillMode=process") {
				t.Errorf("%s: stopping it would kill pods", name)
			}
		}
	}
}

func TestParseState(t *testing.T) {
	for _, c := range []struct {
		text string
		want State
	}{
		{"ActiveState=active\nSubState=running\nMainPID=7\nNRestarts=2\nExecMainCode=0\nExecMainStatus=0\nStateChangeTimestamp=@1700000000\n",
			State{Active: "active", Sub: "running", PID: 7, Restarts: 2, Since: time.Unix(1700000000, 0)}},
		{"ActiveState=failed\nSubState=failed\nMainPID=0\nNRestarts=0\nExecMainCode=1\nExecMainStatus=78\n", State{Active: "failed", Sub: "failed", Exit: "exit status 78"}},
		{"ActiveState=activating\nSubState=auto-restart\nNRestarts=1\nExecMainCode=2\nExecMainStatus=9\n", State{Active: "activating", Sub: "auto-restart", Restarts: 1, Exit: "signal 9"}},
		{"ActiveState=inactive\nStateChangeTimestamp=\n", State{Active: "inactive"}},
	} {
		if got := parseState(c.text); got != c.want {
			t.Errorf("%q: got %+v, want %+v", c.text, got, c.want)
		}
	}
}

func TestQuote(t *testing.T) {
	for in, want := range map[string]string{"a": "a", "a b": `"a b"`, "100%": "100%%", "$x": "$$x", `q"q`: `"q\"q"`, "": `""`} {
		if got := quote(in); got != want {
			t.Errorf("quote(%q) = %s, want %s", in, got, want)
		}
	}
}
