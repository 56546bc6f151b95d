package cgroups

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// hierarchy is a directory that looks like a cgroup hierarchy in which the kernel has made files.
func hierarchy(t *testing.T, files ...string) string {
	root := t.TempDir()
	dir := filepath.Join(root, "kubepods")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if err := os.WriteFile(filepath.Join(dir, f), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestEnforce(t *testing.T) {
	room := corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("1500m"), corev1.ResourceMemory: resource.MustParse("3Gi")}
	memory, cpu := hierarchy(t, "memory.limit_in_bytes"), hierarchy(t, "cpu.shares", "cpu.cfs_quota_us")
	m := &Manager{options: Options{Root: "/", Driver: "cgroupfs"}, roots: []string{memory, cpu}}
	shows := func(root, file, want string) {
		t.Helper()
		b, err := os.ReadFile(filepath.Join(root, "kubepods", file))
		if err != nil || strings.TrimSpace(string(b)) != want {
			t.Errorf("%s: %q (%v), want %q", file, b, err, want)
		}
	}
	if err := m.Enforce(room); err != nil {
		t.Fatal(err)
	}
	shows(memory, "memory.limit_in_bytes", "3221225472")
	shows(cpu, "cpu.shares", "1536")
	shows(cpu, "cpu.cfs_quota_us", "") // a weight, not a quota: what nobody needs is the pods'
	if err := m.Enforce(nil); err != nil {
		t.Fatal(err)
	}
	shows(memory, "memory.limit_in_bytes", "-1")
}
