package cgroups

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
)

// tree writes the files of a cgroup, by path below a new directory.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestUsage(t *testing.T) {
	want := Usage{
		Periods: 10, ThrottledPeriods: 3, Throttled: 1500 * time.Microsecond, User: 20 * time.Millisecond, System: 10 * time.Millisecond,
		RSSBytes: 100, CacheBytes: 200, MappedBytes: 50, SwapBytes: 7, UsageBytes: 300, MostBytes: 400, OOMKills: 2, Processes: 5,
		Disks: []DiskUsage{{Device: "9999:0", Reads: 1, Writes: 2, ReadBytes: 10, WrittenBytes: 20}},
	}
	v2 := tree(t, map[string]string{
		"c/cpu.stat":            "usage_usec 30000\nuser_usec 20000\nsystem_usec 10000\nnr_periods 10\nnr_throttled 3\nthrottled_usec 1500\n",
		"c/memory.stat":         "anon 100\nfile 200\nfile_mapped 50\n",
		"c/memory.current":      "300\n",
		"c/memory.peak":         "400\n",
		"c/memory.swap.current": "7\n",
		"c/memory.events":       "oom 3\noom_kill 2\n",
		"c/pids.current":        "5\n",
		"c/io.stat":             "9999:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\n",
	})
	v1 := tree(t, map[string]string{
		"cpu/c/cpu.stat":                          "nr_periods 10\nnr_throttled 3\nthrottled_time 1500000\n",
		"cpuacct/c/cpuacct.stat":                  "user 2\nsystem 1\n",
		"memory/c/memory.stat":                    "rss 1\ntotal_rss 100\ntotal_cache 200\ntotal_mapped_file 50\ntotal_swap 7\n",
		"memory/c/memory.usage_in_bytes":          "300\n",
		"memory/c/memory.max_usage_in_bytes":      "400\n",
		"memory/c/memory.oom_control":             "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
		"pids/c/pids.current":                     "5\n",
		"blkio/c/blkio.throttle.io_service_bytes": "9999:0 Read 10\n9999:0 Write 20\n9999:0 Sync 0\nTotal 30\n",
		"blkio/c/blkio.throttle.io_serviced":      "9999:0 Read 1\n9999:0 Write 2\nTotal 3\n",
	})
	var roots []string
	for _, c := range []string{"cpu", "cpuacct", "memory", "pids", "blkio"} {
		roots = append(roots, filepath.Join(v1, c))
	}
	for name, m := range map[string]*Manager{"v1": {roots: roots}, "v2": {v2: true, roots: []string{v2}}} {
		got, ok := m.Usage("/c")
		if diff := cmp.Diff(want, got); !ok || diff != "" {
			t.Errorf("%s: %v, -want +got:\n%s", name, ok, diff)
		}
		if _, ok := m.Usage("/gone"); ok {
			t.Errorf("%s: a cgroup that is not there has usage", name)
		}
	}
}

func TestContainersAreFoundByID(t *testing.T) {
	id := strings.Repeat("0a", 32)
	for driver, leaf := range map[string]string{"cgroupfs": id, "systemd": "cri-containerd-" + id + ".scope"} {
		m := &Manager{options: Options{Root: "/", Driver: driver}}
		p := &corev1.Pod{}
		p.UID, p.Status.QOSClass = "u-1", corev1.PodQOSBurstable
		m.roots = []string{tree(t, map[string]string{filepath.Join(m.Path(p), leaf, "pids.current"): "1", filepath.Join(m.Path(p), "other", "x"): ""})}
		want := map[string]string{id: filepath.Join(m.Path(p), leaf)}
		if diff := cmp.Diff(want, m.Containers(p)); diff != "" {
			t.Errorf("%s: -want +got:\n%s", driver, diff)
		}
	}
}
