package cgroups

import (
	"bufio"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// Usage is what the kernel has counted for one cgroup.
type Usage struct {
	// Periods in which the cgroup ran, those in which its quota was used up, and how long it then stood
	// still. All are zero without a quota.
	Periods, ThrottledPeriods uint64
	Throttled                 time.Duration
	User, System              time.Duration

	RSSBytes, CacheBytes, MappedBytes, SwapBytes uint64
	UsageBytes, MostBytes                        uint64 // now, and at most so far
	OOMKills                                     uint64
	Processes                                    uint64 // threads count as well

	Disks []DiskUsage // by device name
}

// DiskUsage is what one block device has been asked for.
type DiskUsage struct {
	Device                                 string // "/dev/sda"
	Reads, Writes, ReadBytes, WrittenBytes uint64
}

// Path is the pod's cgroup below the hierarchies, as /proc/<pid>/cgroup shows it.
func (m *Manager) Path(p *corev1.Pod) string { return m.name(p.UID, class(p)) }

// scope is how runtimes name a container's cgroup: its ID, with systemd between a prefix of theirs and ".scope".
var scope = regexp.MustCompile(`^(?:[a-z-]+-)?([0-9a-f]{64})(?:\.scope)?$`)

// Containers are the cgroups below the pod's, by the runtime's ID.
func (m *Manager) Containers(p *corev1.Pod) map[string]string {
	out := map[string]string{}
	path := m.Path(p)
	entries, _ := os.ReadDir(filepath.Join(m.roots[0], path))
	for _, e := range entries {
		if id := scope.FindStringSubmatch(e.Name()); id != nil && e.IsDir() {
			out[id[1]] = filepath.Join(path, e.Name())
		}
	}
	return out
}

// Process is one of the pod's processes, 0 when there is none: all of them are in its network.
func (m *Manager) Process(p *corev1.Pod) (pid int) {
	path := m.Path(p)
	entries, _ := os.ReadDir(filepath.Join(m.roots[0], path))
	for _, e := range entries {
		if !e.IsDir() || !scope.MatchString(e.Name()) {
			continue
		}
		lines(filepath.Join(m.roots[0], path, e.Name()), "cgroup.procs", func(f []string) {
			if n, err := strconv.Atoi(f[0]); err == nil && pid == 0 {
				pid = n
			}
		})
		if pid != 0 {
			break
		}
	}
	return pid
}

// Usage reads a cgroup's counters; false when there is no such cgroup.
//
// Source: Linux, Documentation/admin-guide/cgroup-v1 and cgroup-v2.rst.
func (m *Manager) Usage(path string) (Usage, bool) {
	var u Usage
	dirs := make([]string, 0, len(m.roots))
	for _, root := range m.roots {
		if dir := filepath.Join(root, path); present(dir) {
			dirs = append(dirs, dir)
		}
	}
	if len(dirs) == 0 {
		return u, false
	}
	disks := map[string]*DiskUsage{}
	disk := func(device string) *DiskUsage {
		d := disks[device]
		if d == nil {
			d = &DiskUsage{Device: deviceName(device)}
			disks[device] = d
		}
		return d
	}
	for _, dir := range dirs {
		if m.v2 {
			u.readV2(dir, disk)
		} else {
			u.readV1(dir, disk)
		}
		u.Processes = max(u.Processes, number(dir, "pids.current"))
	}
	for _, d := range disks {
		u.Disks = append(u.Disks, *d)
	}
	slices.SortFunc(u.Disks, func(a, b DiskUsage) int { return strings.Compare(a.Device, b.Device) })
	return u, true
}

func (u *Usage) readV2(dir string, disk func(string) *DiskUsage) {
	cpu := pairs(dir, "cpu.stat")
	u.Periods, u.ThrottledPeriods = cpu["nr_periods"], cpu["nr_throttled"]
	u.Throttled = time.Duration(cpu["throttled_usec"]) * time.Microsecond
	u.User, u.System = time.Duration(cpu["user_usec"])*time.Microsecond, time.Duration(cpu["system_usec"])*time.Microsecond
	memory := pairs(dir, "memory.stat")
	u.RSSBytes, u.CacheBytes, u.MappedBytes = memory["anon"], memory["file"], memory["file_mapped"]
	u.UsageBytes, u.MostBytes, u.SwapBytes = number(dir, "memory.current"), number(dir, "memory.peak"), number(dir, "memory.swap.current")
	u.OOMKills = pairs(dir, "memory.events")["oom_kill"]
	lines(dir, "io.stat", func(f []string) {
		d := disk(f[0])
		for _, field := range f[1:] {
			name, value, _ := strings.Cut(field, "=")
			n, _ := strconv.ParseUint(value, 10, 64)
			switch name {
			case "rbytes":
				d.ReadBytes = n
			case "wbytes":
				d.WrittenBytes = n
			case "rios":
				d.Reads = n
			case "wios":
				d.Writes = n
			}
		}
	})
}

// readV1 finds only the files of one controller in each hierarchy.
func (u *Usage) readV1(dir string, disk func(string) *DiskUsage) {
	const tick = time.Second / 100 // USER_HZ is 100 wherever Linux runs
	if cpu := pairs(dir, "cpu.stat"); len(cpu) > 0 {
		u.Periods, u.ThrottledPeriods, u.Throttled = cpu["nr_periods"], cpu["nr_throttled"], time.Duration(cpu["throttled_time"])
	}
	if cpu := pairs(dir, "cpuacct.stat"); len(cpu) > 0 {
		u.User, u.System = time.Duration(cpu["user"])*tick, time.Duration(cpu["system"])*tick
	}
	if memory := pairs(dir, "memory.stat"); len(memory) > 0 {
		u.RSSBytes, u.CacheBytes, u.MappedBytes, u.SwapBytes = memory["total_rss"], memory["total_cache"], memory["total_mapped_file"], memory["total_swap"]
		u.UsageBytes, u.MostBytes = number(dir, "memory.usage_in_bytes"), number(dir, "memory.max_usage_in_bytes")
		u.OOMKills = pairs(dir, "memory.oom_control")["oom_kill"]
	}
	count := func(file string, read, write func(*DiskUsage) *uint64) {
		lines(dir, file, func(f []string) {
			if len(f) < 3 {
				return // the total
			}
			n, _ := strconv.ParseUint(f[2], 10, 64)
			switch f[1] {
			case "Read":
				*read(disk(f[0])) = n
			case "Write":
				*write(disk(f[0])) = n
			}
		})
	}
	count("blkio.throttle.io_service_bytes", func(d *DiskUsage) *uint64 { return &d.ReadBytes }, func(d *DiskUsage) *uint64 { return &d.WrittenBytes })
	count("blkio.throttle.io_serviced", func(d *DiskUsage) *uint64 { return &d.Reads }, func(d *DiskUsage) *uint64 { return &d.Writes })
}

func present(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// lines calls f with the fields of every line of a file that is there.
func lines(dir, file string, f func(fields []string)) {
	in, err := os.Open(filepath.Join(dir, file))
	if err != nil {
		return
	}
	defer in.Close()
	for s := bufio.NewScanner(in); s.Scan(); {
		if fields := strings.Fields(s.Text()); len(fields) > 0 {
			f(fields)
		}
	}
}

// pairs reads lines of a name and a number.
func pairs(dir, file string) map[string]uint64 {
	out := map[string]uint64{}
	lines(dir, file, func(f []string) {
		if len(f) == 2 {
			if n, err := strconv.ParseUint(f[1], 10, 64); err == nil {
				out[f[0]] = n
			}
		}
	})
	return out
}

func number(dir, file string) (n uint64) {
	lines(dir, file, func(f []string) { n, _ = strconv.ParseUint(f[0], 10, 64) })
	return n
}

// deviceName is the name in /dev of "8:0"; the numbers themselves where the kernel tells none.
func deviceName(numbers string) string {
	name := numbers
	lines(filepath.Join("/sys/dev/block", numbers), "uevent", func(f []string) {
		if v, ok := strings.CutPrefix(f[0], "DEVNAME="); ok {
			name = "/dev/" + v
		}
	})
	return name
}
