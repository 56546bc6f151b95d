package cgroups

import (
	"bufio"
	"io/fs"
	"math"
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
	CPU, User, System         time.Duration // CPU is exact, its parts may be counted in ticks

	RSSBytes, CacheBytes, MappedBytes, SwapBytes uint64
	UsageBytes, MostBytes                        uint64 // now, and at most so far
	// WorkingSetBytes is what the kernel could not take back at once.
	WorkingSetBytes uint64
	LimitBytes      uint64 // 0: none
	SwapLimitBytes  uint64 // of swap alone; NoLimit: none, or not known
	Faults          uint64 // pages that had to be brought in
	MajorFaults     uint64 // those of them that were read from disk
	OOMKills        uint64
	Threads         uint64

	// Pressure tells how long tasks had to wait; nil where the kernel does not say (cgroup v1, psi=0).
	CPUPressure, MemoryPressure, IOPressure *Pressure

	Disks []DiskUsage // by device name
}

// NoLimit stands for a limit that is not set.
const NoLimit = math.MaxUint64

// Pressure is how much work stood still for want of one resource.
//
// Source: Linux, Documentation/accounting/psi.rst.
type Pressure struct {
	Some Stall // at least one task waited
	Full Stall // all of them did
}

// Stall is the share of time, in percent, over the last seconds, and the sum of all time.
type Stall struct {
	Avg10, Avg60, Avg300 float64
	TotalMicros          uint64
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

// All is the cgroup of all pods together.
func (m *Manager) All() string { return m.qosName(corev1.PodQOSGuaranteed) }

// Own is the cgroup of this process below the hierarchies, "" where it is not known.
func (m *Manager) Own() (path string) {
	text, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(text)) {
		// "0::/path", or "4:memory:/path" (cgroups(7)).
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) == 3 && (m.v2 && f[1] == "" || slices.Contains(strings.Split(f[1], ","), "memory")) {
			path = f[2]
		}
	}
	return path
}

// Processes is how many processes a cgroup has, with those of the cgroups below it.
func (m *Manager) Processes(path string) (n uint64) {
	_ = filepath.WalkDir(filepath.Join(m.roots[0], path), func(at string, e fs.DirEntry, err error) error {
		if err == nil && e.IsDir() {
			lines(at, "cgroup.procs", func([]string) { n++ })
		}
		return nil // cgroups come and go while we look
	})
	return n
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
	u := Usage{SwapLimitBytes: NoLimit}
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
		u.Threads = max(u.Threads, number(dir, "pids.current"))
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
	u.CPU = time.Duration(cpu["usage_usec"]) * time.Microsecond
	u.User, u.System = time.Duration(cpu["user_usec"])*time.Microsecond, time.Duration(cpu["system_usec"])*time.Microsecond
	memory := pairs(dir, "memory.stat")
	u.RSSBytes, u.CacheBytes, u.MappedBytes = memory["anon"], memory["file"], memory["file_mapped"]
	u.Faults, u.MajorFaults = memory["pgfault"], memory["pgmajfault"]
	u.UsageBytes, u.MostBytes, u.SwapBytes = number(dir, "memory.current"), number(dir, "memory.peak"), number(dir, "memory.swap.current")
	if !present(filepath.Join(dir, "memory.current")) { // the root
		u.UsageBytes = memory["anon"] + memory["file"]
	}
	u.WorkingSetBytes = u.UsageBytes - min(u.UsageBytes, memory["inactive_file"])
	u.LimitBytes = number(dir, "memory.max") // "max" is no number
	if most, ok := word(dir, "memory.swap.max"); ok && most != "max" {
		u.SwapLimitBytes, _ = strconv.ParseUint(most, 10, 64)
	}
	u.OOMKills = pairs(dir, "memory.events")["oom_kill"]
	u.CPUPressure, u.MemoryPressure, u.IOPressure = pressure(dir, "cpu.pressure"), pressure(dir, "memory.pressure"), pressure(dir, "io.pressure")
	lines(dir, "io.stat", func(f []string) {
		if len(f) < 2 {
			return // a device that was never used
		}
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
	if nanos, ok := word(dir, "cpuacct.usage"); ok {
		n, _ := strconv.ParseInt(nanos, 10, 64)
		u.CPU = time.Duration(n)
	}
	if cpu := pairs(dir, "cpuacct.stat"); len(cpu) > 0 {
		u.User, u.System = time.Duration(cpu["user"])*tick, time.Duration(cpu["system"])*tick
	}
	if memory := pairs(dir, "memory.stat"); len(memory) > 0 {
		u.RSSBytes, u.CacheBytes, u.MappedBytes, u.SwapBytes = memory["total_rss"], memory["total_cache"], memory["total_mapped_file"], memory["total_swap"]
		u.Faults, u.MajorFaults = memory["total_pgfault"], memory["total_pgmajfault"]
		u.UsageBytes, u.MostBytes = number(dir, "memory.usage_in_bytes"), number(dir, "memory.max_usage_in_bytes")
		u.WorkingSetBytes = u.UsageBytes - min(u.UsageBytes, memory["total_inactive_file"])
		if limit := number(dir, "memory.limit_in_bytes"); limit < 1<<62 { // the kernel's "none" is the largest whole page
			u.LimitBytes = limit
		}
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

// word is the one word of a file that is there.
func word(dir, file string) (text string, ok bool) {
	lines(dir, file, func(f []string) { text, ok = f[0], true })
	return text, ok
}

// pressure reads "some avg10=0.00 avg60=0.00 avg300=0.00 total=0" and "full ..."; nil where there is no such
// line: reading fails while the kernel keeps no account.
func pressure(dir, file string) (p *Pressure) {
	lines(dir, file, func(f []string) {
		if p == nil {
			p = &Pressure{}
		}
		stall := &p.Some
		if f[0] == "full" {
			stall = &p.Full
		}
		for _, field := range f[1:] {
			name, value, _ := strings.Cut(field, "=")
			switch name {
			case "avg10":
				stall.Avg10, _ = strconv.ParseFloat(value, 64)
			case "avg60":
				stall.Avg60, _ = strconv.ParseFloat(value, 64)
			case "avg300":
				stall.Avg300, _ = strconv.ParseFloat(value, 64)
			case "total":
				stall.TotalMicros, _ = strconv.ParseUint(value, 10, 64)
			}
		}
	})
	return p
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
