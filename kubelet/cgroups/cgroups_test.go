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
	shows(cpu, "cpu.cfs_quota_us", "")     // a weight, not a quota: what nobody needs is the pods'
	if err := m.Enforce(nil); err != nil { // capacity is not known
		t.Fatal(err)
	}
	shows(memory, "memory.limit_in_bytes", "-1")
}

// On cgroup v2 a pod's limits go into other files, in other units, and a parent has to hand its controllers on.
func TestUpdateV2(t *testing.T) {
	root := tree(t, map[string]string{
		"cgroup.controllers":              "cpuset cpu io memory hugetlb pids rdma misc\n",
		"cgroup.subtree_control":          "memory pids\n",
		"kubepods/cgroup.controllers":     "cpuset cpu io memory hugetlb pids\n",
		"kubepods/cgroup.subtree_control": "cpuset cpu io memory hugetlb pids\n",
	})
	files := []string{"cpu.weight", "cpu.max", "memory.max", "memory.min", "memory.low", "memory.high", "pids.max", "hugetlb.2MB.max", "hugetlb.2MB.rsvd.max", "hugetlb.1GB.max"}
	quantities := func(cpu, memory string) (l corev1.ResourceList) {
		l = corev1.ResourceList{}
		if cpu != "" {
			l[corev1.ResourceCPU] = resource.MustParse(cpu)
		}
		if memory != "" {
			l[corev1.ResourceMemory] = resource.MustParse(memory)
		}
		return l
	}
	withPages := quantities("", "16Mi")
	withPages["hugepages-2Mi"] = resource.MustParse("4Mi")
	m := &Manager{v2: true, roots: []string{root}, options: Options{Root: "/", Driver: "cgroupfs", CPUQuota: true, CPUQuotaPeriodMicros: 100_000,
		PodPids: 64, Hugepages: []corev1.ResourceName{"hugepages-1Gi", "hugepages-2Mi"}}}
	for _, c := range []struct {
		text, dir       string
		request, limits corev1.ResourceList
		want            string // of files, as they stand in the list
	}{
		{"guaranteed", "kubepods/podu", quantities("250m", "64Mi"), quantities("250m", "64Mi"), "10|25000 100000|67108864||||64|0|0|0"},
		{"burstable without a limit", "kubepods/burstable/podu", quantities("300m", "16Mi"), nil, "12|max 100000|max||||64|0|0|0"},
		{"burstable with huge pages", "kubepods/burstable/podu", withPages, withPages, "1|max 100000|16777216||||64|4194304|4194304|0"},
		{"best effort", "kubepods/besteffort/podu", nil, nil, "1|max 100000|max||||64|0|0|0"},
	} {
		p := &corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Resources: corev1.ResourceRequirements{Requests: c.request, Limits: c.limits}}}}}
		p.UID = "u"
		// The kernel makes the files with the directory.
		for _, at := range []string{filepath.Dir(c.dir), c.dir} {
			if err := os.MkdirAll(filepath.Join(root, at), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(root, at, "cgroup.controllers"), []byte("cpu memory hugetlb pids\n"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		for _, f := range files {
			if err := os.WriteFile(filepath.Join(root, c.dir, f), nil, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if err := m.Update(p); err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, f := range files {
			b, err := os.ReadFile(filepath.Join(root, c.dir, f))
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, string(b))
		}
		if s := strings.Join(got, "|"); s != c.want {
			t.Errorf("%s: got %s, want %s", c.text, s, c.want)
		}
	}
	// A directory keeps only what was written last: the kernel adds each word to what there is.
	if b, err := os.ReadFile(filepath.Join(root, "cgroup.subtree_control")); err != nil || string(b) != "+pids" {
		t.Errorf("the last controller handed on is %q (%v)", b, err)
	}
	if b, err := os.ReadFile(filepath.Join(root, "kubepods/cgroup.subtree_control")); err != nil || string(b) != "cpuset cpu io memory hugetlb pids\n" {
		t.Errorf("all controllers were handed on, and then %q (%v)", b, err)
	}
}
