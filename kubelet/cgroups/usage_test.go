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
		CPU:      30 * time.Millisecond,
		RSSBytes: 100, CacheBytes: 200, MappedBytes: 50, SwapBytes: 7, UsageBytes: 300, MostBytes: 400, WorkingSetBytes: 180, LimitBytes: 4096,
		SwapLimitBytes: NoLimit, Faults: 11, MajorFaults: 1, OOMKills: 2, Threads: 5,
		Disks: []DiskUsage{{Device: "9999:0", Reads: 1, Writes: 2, ReadBytes: 10, WrittenBytes: 20}},
	}
	v2 := tree(t, map[string]string{
		"c/cpu.stat":            "usage_usec 30000\nuser_usec 20000\nsystem_usec 10000\nnr_periods 10\nnr_throttled 3\nthrottled_usec 1500\n",
		"c/memory.stat":         "anon 100\nfile 200\nfile_mapped 50\ninactive_file 120\npgfault 11\npgmajfault 1\n",
		"c/memory.current":      "300\n",
		"c/memory.peak":         "400\n",
		"c/memory.max":          "4096\n",
		"c/memory.swap.max":     "max\n",
		"c/memory.swap.current": "7\n",
		"c/memory.events":       "oom 3\noom_kill 2\n",
		"c/pids.current":        "5\n",
		"c/io.stat":             "9999:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\n",
	})
	v1 := tree(t, map[string]string{
		"cpu/c/cpu.stat":                          "nr_periods 10\nnr_throttled 3\nthrottled_time 1500000\n",
		"cpuacct/c/cpuacct.usage":                 "30000000\n",
		"memory/c/memory.limit_in_bytes":          "4096\n",
		"cpuacct/c/cpuacct.stat":                  "user 2\nsystem 1\n",
		"memory/c/memory.stat":                    "rss 1\ntotal_rss 100\ntotal_cache 200\ntotal_mapped_file 50\ntotal_swap 7\ntotal_inactive_file 120\ntotal_pgfault 11\ntotal_pgmajfault 1\n",
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

// The files are those of Debian 12 (Linux 6.1) with systemd.
func TestUsageOfRecordedV2(t *testing.T) {
	m := &Manager{v2: true, roots: []string{tree(t, map[string]string{
		"cgroup.procs":    "1\n2\n",
		"cpu.stat":        "usage_usec 1534180000\nuser_usec 622076000\nsystem_usec 912104000\nnr_periods 0\nnr_throttled 0\nthrottled_usec 0\nnr_bursts 0\nburst_usec 0\n",
		"memory.stat":     "anon 285212672\nfile 667242496\nkernel 43532288\nshmem 1757184\nfile_mapped 215760896\ninactive_anon 303960064\nactive_anon 1183744\ninactive_file 257601536\nactive_file 407883776\npgfault 741717\npgmajfault 478\n",
		"io.stat":         "7:7 \n9999:0 rbytes=106558464 wbytes=895971328 rios=2124 wios=15231 dbytes=0 dios=0\n",
		"cpu.pressure":    "some avg10=81.71 avg60=90.20 avg300=77.64 total=585889445\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n",
		"memory.pressure": "some avg10=0.00 avg60=0.00 avg300=0.00 total=11817\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=6333\n",

		"p.slice/cgroup.procs":         "",
		"p.slice/cpu.stat":             "usage_usec 12004220\nuser_usec 10004220\nsystem_usec 2000000\nnr_periods 2421\nnr_throttled 2380\nthrottled_usec 258741172\nnr_bursts 0\nburst_usec 0\n",
		"p.slice/memory.stat":          "anon 2322432\nfile 16384\ninactive_anon 2318336\nactive_anon 4096\ninactive_file 12288\nactive_file 4096\npgfault 859\npgmajfault 0\n",
		"p.slice/memory.current":       "2666496\n",
		"p.slice/memory.peak":          "6897664\n",
		"p.slice/memory.max":           "max\n",
		"p.slice/memory.swap.max":      "0\n",
		"p.slice/memory.swap.current":  "0\n",
		"p.slice/memory.events":        "low 0\nhigh 0\nmax 4\noom 1\noom_kill 3\noom_group_kill 1\n",
		"p.slice/pids.current":         "5\n",
		"p.slice/io.stat":              "",
		"p.slice/c.scope/cgroup.procs": "7\n8\n9\n",
	})}}
	for path, want := range map[string]Usage{
		"/": { // it has neither memory.current nor limits
			CPU: 1534180 * time.Millisecond, User: 622076 * time.Millisecond, System: 912104 * time.Millisecond,
			RSSBytes: 285212672, CacheBytes: 667242496, MappedBytes: 215760896, UsageBytes: 285212672 + 667242496,
			WorkingSetBytes: 285212672 + 667242496 - 257601536, SwapLimitBytes: NoLimit, Faults: 741717, MajorFaults: 478,
			CPUPressure:    &Pressure{Some: Stall{81.71, 90.20, 77.64, 585889445}},
			MemoryPressure: &Pressure{Some: Stall{TotalMicros: 11817}, Full: Stall{TotalMicros: 6333}},
			Disks:          []DiskUsage{{Device: "9999:0", Reads: 2124, Writes: 15231, ReadBytes: 106558464, WrittenBytes: 895971328}},
		},
		"/p.slice": { // psi=0: there is no account of pressure
			Periods: 2421, ThrottledPeriods: 2380, Throttled: 258741172 * time.Microsecond,
			CPU: 12004220 * time.Microsecond, User: 10004220 * time.Microsecond, System: 2 * time.Second,
			RSSBytes: 2322432, CacheBytes: 16384, UsageBytes: 2666496, MostBytes: 6897664, WorkingSetBytes: 2666496 - 12288,
			Faults: 859, OOMKills: 3, Threads: 5,
		},
	} {
		got, ok := m.Usage(path)
		if diff := cmp.Diff(want, got); !ok || diff != "" {
			t.Errorf("%s: %v, -want +got:\n%s", path, ok, diff)
		}
	}
	if n := m.Processes("/p.slice"); n != 3 {
		t.Errorf("%d processes below the slice, want 3", n)
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
