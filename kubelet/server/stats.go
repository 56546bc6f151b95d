package server

import (
	"bufio"
	"context"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"

	"github.com/keelson/keelson/kubelet/cgroups"
	"github.com/keelson/keelson/kubelet/volumes"
)

// StatsOptions are where usage is read from.
type StatsOptions struct {
	NodeName string
	Root     string // the kubelet's directory
	PodLogs  string // usually /var/log/pods
	Runtime  runtimeapi.RuntimeServiceClient
	Images   runtimeapi.ImageServiceClient
	Pods     Pods
	// Volumes measures a pod's volumes. May be nil.
	Volumes func(uid types.UID) []volumes.Usage
	// Cgroups tells what the kernel counts, and which processes a pod has. May be nil.
	Cgroups *cgroups.Manager
	Log     *slog.Logger
}

// Stats measures what the node and its pods use. It works only when asked; what was
// measured less than a second ago is given again, and walking directories (volumes, logs)
// is done at most once a minute.
type Stats struct {
	o     StatsOptions
	begin time.Time

	mu       sync.Mutex // held while measuring: measurements do not overlap
	last     *statsapi.Summary
	lastTime time.Time
	cpu      map[string]cpuSample // by container ID or cgroup; "" is the node
	disk     map[types.UID]diskSample
}

type cpuSample struct {
	at    time.Time
	nanos uint64
	rate  uint64 // nanocores
}

type diskSample struct {
	at      time.Time
	volumes []volumes.Usage
	logs    map[string]uint64 // bytes by container
}

const (
	summaryMaxAge = time.Second
	diskMaxAge    = time.Minute
)

// NewStats measures nothing yet.
func NewStats(o StatsOptions) *Stats {
	return &Stats{o: o, begin: time.Now(), cpu: map[string]cpuSample{}, disk: map[types.UID]diskSample{}}
}

// Summary is what /stats/summary answers. Shared: read-only.
func (s *Stats) Summary(ctx context.Context) (*statsapi.Summary, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	if s.last != nil && now.Sub(s.lastTime) < summaryMaxAge {
		return s.last, nil
	}
	sum := &statsapi.Summary{Node: s.node(ctx, now), Pods: []statsapi.PodStats{}}
	if err := s.pods(ctx, sum, now); err != nil {
		return nil, err
	}
	s.last, s.lastTime = sum, now
	return sum, nil
}

// rate keeps a counter of CPU time and returns how fast it grows, nil at first.
func (s *Stats) rate(id string, nanos uint64, now time.Time) *uint64 {
	old, ok := s.cpu[id]
	next := cpuSample{at: now, nanos: nanos, rate: old.rate}
	if took := now.Sub(old.at); ok && took > 0 && nanos >= old.nanos {
		next.rate = uint64(float64(nanos-old.nanos) / took.Seconds())
	}
	s.cpu[id] = next
	if !ok {
		return nil
	}
	return &next.rate
}

func (s *Stats) node(ctx context.Context, now time.Time) statsapi.NodeStats {
	at := metav1.NewTime(now)
	n := statsapi.NodeStats{NodeName: s.o.NodeName, StartTime: metav1.NewTime(BootTime(s.begin))}
	if nanos, ok := machineCPU(); ok {
		n.CPU = &statsapi.CPUStats{Time: at, UsageCoreNanoSeconds: &nanos, UsageNanoCores: s.rate("", nanos, now)}
	}
	if m := meminfo(); m["MemTotal"] > 0 {
		var root cgroups.Usage
		if s.o.Cgroups != nil {
			root, _ = s.o.Cgroups.Usage("/")
		}
		n.Memory = machineMemoryUse(m, root, at)
		n.Swap = &statsapi.SwapStats{Time: at, SwapAvailableBytes: new(m["SwapFree"]), SwapUsageBytes: new(m["SwapTotal"] - m["SwapFree"])}
		n.Memory.PSI, n.IO = stalls(root.MemoryPressure), diskStalls(root.IOPressure, at)
		if n.CPU != nil {
			n.CPU.PSI = stalls(root.CPUPressure)
		}
	}
	n.SystemContainers = s.system(now)
	n.Network = machineNetwork(at)
	n.Fs = filesystem(s.o.Root, at)
	n.Rlimit = processes(at)
	ictx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if info, err := s.o.Images.ImageFsInfo(ictx, &runtimeapi.ImageFsInfoRequest{}); err == nil {
		n.Runtime = &statsapi.RuntimeStats{}
		for _, f := range info.ImageFilesystems {
			n.Runtime.ImageFs = used(filesystem(f.GetFsId().GetMountpoint(), at), f)
		}
		for _, f := range info.ContainerFilesystems {
			n.Runtime.ContainerFs = used(filesystem(f.GetFsId().GetMountpoint(), at), f)
		}
		if n.Runtime.ContainerFs == nil {
			n.Runtime.ContainerFs = n.Runtime.ImageFs
		}
	}
	return n
}

// machineMemoryUse is the machine's memory: what the kernel counts for its root cgroup, or all that is not free
// where it does not count. What it keeps for itself is not usage, as upstream's kubelet sees it.
func machineMemoryUse(info map[string]uint64, root cgroups.Usage, at metav1.Time) *statsapi.MemoryStats {
	if root.UsageBytes == 0 {
		root.UsageBytes = info["MemTotal"] - info["MemFree"]
		root.WorkingSetBytes = root.UsageBytes - min(root.UsageBytes, info["Inactive(file)"])
		root.RSSBytes = info["AnonPages"]
	}
	return &statsapi.MemoryStats{Time: at, AvailableBytes: new(info["MemTotal"] - min(info["MemTotal"], root.WorkingSetBytes)),
		UsageBytes: &root.UsageBytes, WorkingSetBytes: &root.WorkingSetBytes, RSSBytes: &root.RSSBytes,
		PageFaults: &root.Faults, MajorPageFaults: &root.MajorFaults}
}

// system are the node's parts that have cgroups of their own: all pods together, and this kubelet.
func (s *Stats) system(now time.Time) (out []statsapi.ContainerStats) {
	if s.o.Cgroups == nil {
		return nil
	}
	for _, part := range []struct {
		name, path string
		since      time.Time
	}{
		{statsapi.SystemContainerKubelet, s.o.Cgroups.Own(), s.begin},
		{statsapi.SystemContainerPods, s.o.Cgroups.All(), BootTime(s.begin)},
	} {
		u, ok := s.o.Cgroups.Usage(part.path)
		if part.path == "" || part.path == "/" || !ok {
			continue
		}
		c := statsapi.ContainerStats{Name: part.name, StartTime: metav1.NewTime(part.since)}
		c.CPU, c.Memory = s.counted(part.path, u, now)
		c.Swap, c.IO = swap(u, metav1.NewTime(now)), diskStalls(u.IOPressure, metav1.NewTime(now))
		out = append(out, c)
	}
	return out
}

// counted are the kernel's counters of a cgroup.
func (s *Stats) counted(path string, u cgroups.Usage, now time.Time) (*statsapi.CPUStats, *statsapi.MemoryStats) {
	at, nanos := metav1.NewTime(now), uint64(u.CPU)
	memory := &statsapi.MemoryStats{Time: at, UsageBytes: &u.UsageBytes, WorkingSetBytes: &u.WorkingSetBytes, RSSBytes: &u.RSSBytes,
		PageFaults: &u.Faults, MajorPageFaults: &u.MajorFaults, PSI: stalls(u.MemoryPressure)}
	if u.LimitBytes > 0 {
		memory.AvailableBytes = new(u.LimitBytes - min(u.LimitBytes, u.WorkingSetBytes))
	}
	return &statsapi.CPUStats{Time: at, UsageCoreNanoSeconds: &nanos, UsageNanoCores: s.rate(path, nanos, now), PSI: stalls(u.CPUPressure)}, memory
}

func swap(u cgroups.Usage, at metav1.Time) *statsapi.SwapStats {
	out := &statsapi.SwapStats{Time: at, SwapUsageBytes: &u.SwapBytes}
	if u.SwapLimitBytes != cgroups.NoLimit {
		out.SwapAvailableBytes = new(u.SwapLimitBytes - min(u.SwapLimitBytes, u.SwapBytes))
	}
	return out
}

// stalls has totals in microseconds, as upstream's kubelet tells them.
func stalls(p *cgroups.Pressure) *statsapi.PSIStats {
	if p == nil {
		return nil
	}
	one := func(s cgroups.Stall) statsapi.PSIData {
		return statsapi.PSIData{Total: s.TotalMicros, Avg10: s.Avg10, Avg60: s.Avg60, Avg300: s.Avg300}
	}
	return &statsapi.PSIStats{Some: one(p.Some), Full: one(p.Full)}
}

func diskStalls(p *cgroups.Pressure, at metav1.Time) *statsapi.IOStats {
	if p == nil {
		return nil
	}
	return &statsapi.IOStats{Time: at, PSI: stalls(p)}
}

// used puts what images or containers take into the stats of their file system.
func used(fs *statsapi.FsStats, f *runtimeapi.FilesystemUsage) *statsapi.FsStats {
	if fs == nil {
		return nil
	}
	if f.UsedBytes != nil {
		fs.UsedBytes = &f.UsedBytes.Value
	}
	if f.InodesUsed != nil {
		fs.InodesUsed = &f.InodesUsed.Value
	}
	return fs
}

func (s *Stats) pods(ctx context.Context, sum *statsapi.Summary, now time.Time) error {
	at := metav1.NewTime(now)
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	containers, err := s.o.Runtime.ListContainerStats(ctx, &runtimeapi.ListContainerStatsRequest{})
	if err != nil {
		return fmt.Errorf("ask the runtime for container stats: %w", err)
	}
	networks := map[string]*statsapi.NetworkStats{}
	// Some runtimes know sandboxes' networks, some do not: both are fine.
	if sandboxes, err := s.o.Runtime.ListPodSandboxStats(ctx, &runtimeapi.ListPodSandboxStatsRequest{}); err == nil {
		for _, p := range sandboxes.Stats {
			networks[p.GetAttributes().GetLabels()[labelPodUID]] = network(p.GetLinux().GetNetwork(), at)
		}
	}
	index := map[types.UID]int{}
	paths := map[string]string{} // of cgroups, by container ID
	groups := map[types.UID]string{}
	for _, p := range s.o.Pods.Pods() {
		if p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed {
			continue
		}
		stats := statsapi.PodStats{
			PodRef:     statsapi.PodReference{Name: p.Name, Namespace: p.Namespace, UID: string(p.UID)},
			StartTime:  p.CreationTimestamp,
			Containers: []statsapi.ContainerStats{},
			Network:    networks[string(p.UID)],
		}
		if p.Status.StartTime != nil {
			stats.StartTime = *p.Status.StartTime
		}
		if stats.Network == nil && !p.Spec.HostNetwork {
			stats.Network = networkStats(s.podInterfaces(p), at)
		}
		if s.o.Cgroups != nil {
			maps.Copy(paths, s.o.Cgroups.Containers(p))
			groups[p.UID] = s.o.Cgroups.Path(p)
		}
		index[p.UID] = len(sum.Pods)
		sum.Pods = append(sum.Pods, stats)
		s.measureDisk(&sum.Pods[len(sum.Pods)-1], p, now, sum.Node.Fs)
	}
	newest := map[string]*runtimeapi.ContainerStats{} // by pod and container
	for _, c := range containers.Stats {
		l := c.GetAttributes().GetLabels()
		if _, ok := index[types.UID(l[labelPodUID])]; !ok {
			continue
		}
		k := l[labelPodUID] + "/" + l[labelContainer]
		if old := newest[k]; old == nil || old.GetAttributes().GetMetadata().GetAttempt() < c.GetAttributes().GetMetadata().GetAttempt() {
			newest[k] = c
		}
	}
	live := map[string]bool{"": true}
	if s.o.Cgroups != nil {
		live[s.o.Cgroups.Own()], live[s.o.Cgroups.All()] = true, true
	}
	for _, c := range newest {
		live[c.GetAttributes().GetId()] = true
		l := c.GetAttributes().GetLabels()
		uid := types.UID(l[labelPodUID])
		pod := &sum.Pods[index[uid]]
		stats := s.container(c, s.disk[uid].logs, sum.Node.Fs, now)
		if path := paths[c.GetAttributes().GetId()]; path != "" {
			live[path] = s.kernel(&stats, path, now)
		}
		pod.Containers = append(pod.Containers, stats)
	}
	for uid := range s.disk {
		if _, ok := index[uid]; !ok {
			delete(s.disk, uid)
		}
	}
	for i := range sum.Pods {
		p := &sum.Pods[i]
		total(p, at)
		if path := groups[types.UID(p.PodRef.UID)]; path != "" {
			s.whole(p, path, now)
			live[path] = true
		}
	}
	for id := range s.cpu {
		if !live[id] {
			delete(s.cpu, id)
		}
	}
	return nil
}

// whole is what the kernel counts for the pod: also its sandbox, and what ended containers have left behind.
func (s *Stats) whole(p *statsapi.PodStats, path string, now time.Time) {
	u, ok := s.o.Cgroups.Usage(path)
	if !ok {
		return
	}
	at := metav1.NewTime(now)
	p.CPU, p.Memory = s.counted(path, u, now)
	p.Swap, p.IO = swap(u, at), diskStalls(u.IOPressure, at)
	p.ProcessStats = &statsapi.ProcessStats{ProcessCount: new(s.o.Cgroups.Processes(path))}
}

// kernel puts what the kernel counts for a container in the place of what the runtime tells: runtimes
// differ in what they know.
func (s *Stats) kernel(c *statsapi.ContainerStats, path string, now time.Time) bool {
	u, ok := s.o.Cgroups.Usage(path)
	if !ok {
		return false
	}
	at := metav1.NewTime(now)
	c.CPU, c.Memory = s.counted(path, u, now)
	c.Swap, c.IO = swap(u, at), diskStalls(u.IOPressure, at)
	return true
}

func (s *Stats) container(c *runtimeapi.ContainerStats, logs map[string]uint64, node *statsapi.FsStats, now time.Time) statsapi.ContainerStats {
	labels := c.GetAttributes().GetLabels()
	out := statsapi.ContainerStats{Name: labels[labelContainer], StartTime: metav1.NewTime(s.begin)}
	if pod, ok := s.o.Pods.Pod(labels[labelPodNamespace], labels[labelPodName], types.UID(labels[labelPodUID])); ok {
		for _, list := range [][]corev1.ContainerStatus{pod.Status.ContainerStatuses, pod.Status.InitContainerStatuses, pod.Status.EphemeralContainerStatuses} {
			for i := range list {
				if list[i].Name == out.Name && list[i].State.Running != nil {
					out.StartTime = list[i].State.Running.StartedAt
				}
			}
		}
	}
	if cpu := c.GetCpu(); cpu.GetUsageCoreNanoSeconds() != nil {
		nanos := cpu.UsageCoreNanoSeconds.Value
		at := now
		if cpu.Timestamp > 0 {
			at = time.Unix(0, cpu.Timestamp)
		}
		rate := s.rate(c.GetAttributes().GetId(), nanos, at)
		if cpu.UsageNanoCores != nil && cpu.UsageNanoCores.Value > 0 {
			rate = &cpu.UsageNanoCores.Value
		}
		out.CPU = &statsapi.CPUStats{Time: metav1.NewTime(at), UsageCoreNanoSeconds: &nanos, UsageNanoCores: rate}
	}
	if m := c.GetMemory(); m != nil {
		out.Memory = &statsapi.MemoryStats{Time: metav1.NewTime(now)}
		set := func(to **uint64, v *runtimeapi.UInt64Value) {
			if v != nil {
				*to = &v.Value
			}
		}
		set(&out.Memory.WorkingSetBytes, m.WorkingSetBytes)
		set(&out.Memory.AvailableBytes, m.AvailableBytes)
		set(&out.Memory.UsageBytes, m.UsageBytes)
		set(&out.Memory.RSSBytes, m.RssBytes)
		set(&out.Memory.PageFaults, m.PageFaults)
		set(&out.Memory.MajorPageFaults, m.MajorPageFaults)
		if out.Memory.UsageBytes == nil {
			out.Memory.UsageBytes = out.Memory.WorkingSetBytes
		}
	}
	shares := func() *statsapi.FsStats {
		f := &statsapi.FsStats{Time: metav1.NewTime(now)}
		if node != nil {
			f.AvailableBytes, f.CapacityBytes, f.Inodes, f.InodesFree = node.AvailableBytes, node.CapacityBytes, node.Inodes, node.InodesFree
		}
		return f
	}
	out.Rootfs, out.Logs = shares(), shares()
	if w := c.GetWritableLayer(); w != nil {
		if w.UsedBytes != nil {
			out.Rootfs.UsedBytes = &w.UsedBytes.Value
		}
		if w.InodesUsed != nil {
			out.Rootfs.InodesUsed = &w.InodesUsed.Value
		}
	}
	bytes := logs[out.Name]
	out.Logs.UsedBytes = &bytes
	return out
}

// measureDisk adds what the pod's volumes and logs take.
func (s *Stats) measureDisk(stats *statsapi.PodStats, pod *corev1.Pod, now time.Time, node *statsapi.FsStats) {
	d, ok := s.disk[pod.UID]
	if !ok || now.Sub(d.at) > diskMaxAge {
		d = diskSample{at: now, logs: map[string]uint64{}}
		if s.o.Volumes != nil {
			d.volumes = s.o.Volumes(pod.UID)
		}
		dir := filepath.Join(s.o.PodLogs, pod.Namespace+"_"+pod.Name+"_"+string(pod.UID))
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			d.logs[e.Name()] = treeBytes(filepath.Join(dir, e.Name()))
		}
		s.disk[pod.UID] = d
	}
	at := metav1.NewTime(d.at)
	ephemeral := uint64(0)
	for _, bytes := range d.logs {
		ephemeral += bytes
	}
	for i := range d.volumes {
		u := &d.volumes[i]
		v := statsapi.VolumeStats{Name: u.Name, FsStats: statsapi.FsStats{Time: at,
			AvailableBytes: &u.AvailableBytes, CapacityBytes: &u.CapacityBytes, UsedBytes: &u.UsedBytes,
			InodesUsed: &u.InodesUsed, InodesFree: &u.InodesFree, Inodes: &u.Inodes}}
		if u.Claim != "" {
			v.PVCRef = &statsapi.PVCReference{Name: u.Claim, Namespace: pod.Namespace}
		}
		stats.VolumeStats = append(stats.VolumeStats, v)
		if !u.Memory && (u.Plugin == "empty-dir" || u.Plugin == "configmap" || u.Plugin == "downward-api") {
			ephemeral += u.UsedBytes
		}
	}
	stats.EphemeralStorage = &statsapi.FsStats{Time: at, UsedBytes: &ephemeral}
	if node != nil {
		stats.EphemeralStorage.AvailableBytes, stats.EphemeralStorage.CapacityBytes = node.AvailableBytes, node.CapacityBytes
		stats.EphemeralStorage.Inodes, stats.EphemeralStorage.InodesFree = node.Inodes, node.InodesFree
	}
}

// total adds up a pod's containers.
func total(p *statsapi.PodStats, at metav1.Time) {
	cpu := statsapi.CPUStats{Time: at}
	memory := statsapi.MemoryStats{Time: at}
	add := func(to **uint64, v *uint64) {
		if v != nil {
			sum := *v
			if *to != nil {
				sum += **to
			}
			*to = &sum
		}
	}
	for _, c := range p.Containers {
		if c.CPU != nil {
			add(&cpu.UsageNanoCores, c.CPU.UsageNanoCores)
			add(&cpu.UsageCoreNanoSeconds, c.CPU.UsageCoreNanoSeconds)
		}
		if c.Memory != nil {
			add(&memory.UsageBytes, c.Memory.UsageBytes)
			add(&memory.WorkingSetBytes, c.Memory.WorkingSetBytes)
			add(&memory.RSSBytes, c.Memory.RSSBytes)
			add(&memory.PageFaults, c.Memory.PageFaults)
			add(&memory.MajorPageFaults, c.Memory.MajorPageFaults)
		}
		if c.Rootfs != nil && p.EphemeralStorage != nil {
			add(&p.EphemeralStorage.UsedBytes, c.Rootfs.UsedBytes)
		}
	}
	if len(p.Containers) > 0 {
		p.CPU, p.Memory = &cpu, &memory
	}
}

func network(u *runtimeapi.NetworkUsage, at metav1.Time) *statsapi.NetworkStats {
	one := func(i *runtimeapi.NetworkInterfaceUsage) statsapi.InterfaceStats {
		rx, tx := i.GetRxBytes().GetValue(), i.GetTxBytes().GetValue()
		rxErrors, txErrors := i.GetRxErrors().GetValue(), i.GetTxErrors().GetValue()
		return statsapi.InterfaceStats{Name: i.Name, RxBytes: &rx, TxBytes: &tx, RxErrors: &rxErrors, TxErrors: &txErrors}
	}
	if u.GetDefaultInterface() == nil {
		return nil
	}
	n := &statsapi.NetworkStats{Time: at, InterfaceStats: one(u.DefaultInterface)}
	n.Interfaces = append(n.Interfaces, n.InterfaceStats)
	for _, i := range u.Interfaces {
		if i.Name != u.DefaultInterface.Name {
			n.Interfaces = append(n.Interfaces, one(i))
		}
	}
	return n
}

// treeBytes is what the files below a directory take on disk.
func treeBytes(dir string) (bytes uint64) {
	_ = filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return nil // files come and go while we look
		}
		if info, err := e.Info(); err == nil {
			bytes += uint64(info.Size())
		}
		return nil
	})
	return bytes
}

// filesystem is the state of the file system that holds path, nil if it is not there.
func filesystem(path string, at metav1.Time) *statsapi.FsStats {
	var s unix.Statfs_t
	if path == "" || unix.Statfs(path, &s) != nil {
		return nil
	}
	block := uint64(s.Bsize)
	available, capacity, used := s.Bavail*block, s.Blocks*block, (s.Blocks-s.Bfree)*block
	inodes, free := s.Files, s.Ffree
	inodesUsed := inodes - free
	return &statsapi.FsStats{Time: at, AvailableBytes: &available, CapacityBytes: &capacity, UsedBytes: &used,
		Inodes: &inodes, InodesFree: &free, InodesUsed: &inodesUsed}
}

// eachLine calls f with the fields of every line of a file of /proc.
func eachLine(path string, f func(fields []string)) {
	file, err := os.Open(path)
	if err != nil {
		return
	}
	defer file.Close()
	for s := bufio.NewScanner(file); s.Scan(); {
		f(strings.Fields(s.Text()))
	}
}

// meminfo is /proc/meminfo in bytes.
func meminfo() map[string]uint64 {
	m := map[string]uint64{}
	eachLine("/proc/meminfo", func(fields []string) {
		if len(fields) >= 2 {
			if kib, err := strconv.ParseUint(fields[1], 10, 64); err == nil {
				m[strings.TrimSuffix(fields[0], ":")] = kib << 10
			}
		}
	})
	return m
}

// machineCPU is the time that all processors have worked since the machine started.
func machineCPU() (nanos uint64, ok bool) {
	const perTick = uint64(time.Second / 100) // USER_HZ is 100 wherever Linux runs
	eachLine("/proc/stat", func(fields []string) {
		if len(fields) < 9 || fields[0] != "cpu" {
			return
		}
		for i, text := range fields[1:9] {
			if i == 3 || i == 4 { // idle, iowait
				continue
			}
			ticks, err := strconv.ParseUint(text, 10, 64)
			if err != nil {
				return
			}
			nanos += ticks * perTick
		}
		ok = true
	})
	return nanos, ok
}

// BootTime is when the machine was started, to the second.
func BootTime(otherwise time.Time) time.Time {
	at := otherwise
	eachLine("/proc/stat", func(fields []string) {
		if len(fields) == 2 && fields[0] == "btime" {
			if s, err := strconv.ParseInt(fields[1], 10, 64); err == nil {
				at = time.Unix(s, 0)
			}
		}
	})
	return at
}

// Counters of an interface, in the order of podInterfaces.
const (
	rxBytes = iota
	rxPackets
	rxErrors
	rxDropped
	txBytes
	txPackets
	txErrors
	txDropped
	netCounters
)

// netInterface is a line of /proc/net/dev.
type netInterface struct {
	name   string
	counts [netCounters]uint64
}

// interfaces reads the counters of a network namespace, without its loopback.
func interfaces(path string) (all []netInterface) {
	eachLine(path, func(fields []string) {
		if len(fields) < 13 {
			return
		}
		name, ok := strings.CutSuffix(fields[0], ":")
		if !ok || name == "lo" {
			return
		}
		i := netInterface{name: name}
		for which, column := range [netCounters]int{rxBytes: 1, rxPackets: 2, rxErrors: 3, rxDropped: 4, txBytes: 9, txPackets: 10, txErrors: 11, txDropped: 12} {
			i.counts[which], _ = strconv.ParseUint(fields[column], 10, 64)
		}
		all = append(all, i)
	})
	return all
}

// podInterfaces are those of the pod's network, as one of its processes sees them.
func (s *Stats) podInterfaces(pod *corev1.Pod) []netInterface {
	if s.o.Cgroups == nil {
		return nil
	}
	if pid := s.o.Cgroups.Process(pod); pid > 0 {
		return interfaces(fmt.Sprintf("/proc/%d/net/dev", pid))
	}
	return nil
}

// machineNetwork reads the node's own interfaces.
func machineNetwork(at metav1.Time) *statsapi.NetworkStats {
	all := slices.DeleteFunc(interfaces("/proc/net/dev"), func(i netInterface) bool { return strings.HasPrefix(i.name, "veth") })
	return networkStats(all, at)
}

// networkStats puts interfaces into the form of the summary; the first is the default one.
func networkStats(all []netInterface, at metav1.Time) *statsapi.NetworkStats {
	if len(all) == 0 {
		return nil
	}
	n := &statsapi.NetworkStats{Time: at}
	for i := range all {
		c := &all[i].counts
		n.Interfaces = append(n.Interfaces, statsapi.InterfaceStats{Name: all[i].name,
			RxBytes: &c[rxBytes], RxErrors: &c[rxErrors], TxBytes: &c[txBytes], TxErrors: &c[txErrors]})
	}
	n.InterfaceStats = n.Interfaces[0]
	return n
}

// processes is how many threads there are, and may be.
func processes(at metav1.Time) *statsapi.RlimitStats {
	data, err := os.ReadFile("/proc/sys/kernel/pid_max")
	if err != nil {
		return nil
	}
	most, err := strconv.ParseInt(strings.TrimSpace(string(data)), 10, 64)
	if err != nil {
		return nil
	}
	r := &statsapi.RlimitStats{Time: at, MaxPID: &most}
	eachLine("/proc/loadavg", func(fields []string) {
		if len(fields) < 4 {
			return
		}
		_, all, _ := strings.Cut(fields[3], "/")
		if n, err := strconv.ParseInt(all, 10, 64); err == nil {
			r.NumOfRunningProcesses = &n
		}
	})
	return r
}

// processors is how many the machine has.
func processors() int { return runtime.NumCPU() }
