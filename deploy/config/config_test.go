package config

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func good() Settings {
	s := Default()
	s.Node, s.Address, s.Server, s.Binaries = "one", "192.0.2.1", "https://192.0.2.1:6443", "/opt/keelson"
	return s
}

func TestValidate(t *testing.T) {
	if err := good().Validate(); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name   string
		change func(*Settings)
		says   string
	}{
		{"an upper-case name", func(s *Settings) { s.Node = "One" }, "node: \"One\""},
		{"a loopback address", func(s *Settings) { s.Address = "127.0.0.1" }, "address"},
		{"overlapping ranges", func(s *Settings) { s.PodCIDR = "10.96.128.0/17" }, "podCIDR"},
		{"the machine within the pods' range", func(s *Settings) { s.Address = "10.244.1.1" }, "podCIDR"},
		{"DNS outside the services' range", func(s *Settings) { s.DNSAddress = "10.97.0.10" }, "dnsAddress"},
		{"one port twice", func(s *Settings) { s.Ports.Scheduler = s.Ports.API }, "another port than ports.api"},
		{"a port too high", func(s *Settings) { s.Ports.Kubelet = 70000 }, "ports.kubelet"},
		{"nothing to run", func(s *Settings) { s.Worker, s.ControlPlane = false, false }, "at least one"},
	} {
		s := good()
		c.change(&s)
		if err := s.Validate(); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v; want it to name %q", c.name, err, c.says)
		}
	}
	s := good()
	s.Node, s.ServiceCIDR, s.Ports.API = "", "x", 0
	if n := strings.Count(s.Validate().Error(), "\n"); n < 2 {
		t.Errorf("want every fault at once, got: %v", s.Validate())
	}
}

func TestLoadSave(t *testing.T) {
	p := At(t.TempDir())
	if _, ok, err := Load(p); ok || err != nil {
		t.Fatalf("nothing stored: %t, %v", ok, err)
	}
	s := good()
	s.Extra = map[string]map[string]string{"kubelet": {"v": "debug"}}
	if err := s.Save(p); err != nil {
		t.Fatal(err)
	}
	got, ok, err := Load(p)
	if err != nil || !ok || got.Node != "one" || got.Extra["kubelet"]["v"] != "debug" {
		t.Errorf("%+v, %t, %v", got, ok, err)
	}
	if err := os.WriteFile(p.SettingsFile(), []byte("nodee: x\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, _, err := Load(p); err == nil || !strings.Contains(err.Error(), "nodee") || !strings.Contains(err.Error(), "cluster.yaml") {
		t.Errorf("an unknown field: %v", err)
	}
}

func TestServices(t *testing.T) {
	s, p := good(), At("")
	names := func(list []Service) (out []string) {
		for _, sv := range list {
			out = append(out, sv.Name)
		}
		return out
	}
	all := Services(s, p, Machine{})
	if got := names(all); !slices.Equal(got, []string{"containerd", "apiserver", "scheduler", "controller-manager", "kubelet", "kube-proxy"}) {
		t.Errorf("services: %v", got)
	}
	known := map[string]bool{}
	for _, sv := range all {
		for _, a := range sv.After {
			if !known[a] {
				t.Errorf("%s starts after %s, which is not before it in the list", sv.Name, a)
			}
		}
		known[sv.Name] = true
	}
	s.ControlPlane = false
	joined := Services(s, p, Machine{})
	if got := names(joined); !slices.Equal(got, []string{"containerd", "kubelet", "kube-proxy"}) {
		t.Errorf("services of a worker: %v", got)
	}
	if slices.Contains(joined[1].After, APIServer) {
		t.Error("a worker's kubelet waits for an apiserver that is not there")
	}
	s.Extra = map[string]map[string]string{Kubelet: {"port": "11250", "v": "debug"}}
	cmd := strings.Join(Services(s, p, Machine{SystemdCgroups: true})[1].Command, " ")
	for _, want := range []string{"--port=11250", "--v=debug", "--cgroup-driver=systemd", "--hostname-override=one"} {
		if strings.Count(cmd, want) != 1 {
			t.Errorf("want %s once in %s", want, cmd)
		}
	}
}

func TestWriteFile(t *testing.T) {
	f := filepath.Join(t.TempDir(), "a", "b")
	for _, c := range []struct {
		text    string
		changed bool
	}{{"1", true}, {"1", false}, {"2", true}} {
		changed, err := WriteFile(f, []byte(c.text), 0o600)
		if err != nil || changed != c.changed {
			t.Errorf("write %q: changed %t, %v", c.text, changed, err)
		}
	}
}
