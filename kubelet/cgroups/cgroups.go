// Package cgroups makes the cgroups of pods and of the QoS classes, on cgroup v1 and v2.
//
// The tree is upstream's, because tools and runtimes know it:
//
//	<root>/kubepods/pod<uid>               Guaranteed
//	<root>/kubepods/burstable/pod<uid>
//	<root>/kubepods/besteffort/pod<uid>
//
// With the systemd driver the same nodes are slices: kubepods-burstable-pod<uid>.slice,
// with "_" for "-" in the UID.
//
// Verbs: Update makes or changes a pod's cgroup, Delete removes it, Prune removes all but
// the pods named. All are idempotent and work from what the file system says, so they are
// right after a restart. The package starts no goroutine. Containers' own cgroups below a
// pod's are the runtime's.
package cgroups

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	resourcehelper "k8s.io/component-helpers/resource"

	"github.com/keelson/keelson/kubelet/criconfig"
	"github.com/keelson/keelson/kubelet/metrics"
	"github.com/keelson/keelson/kubelet/pod"
)

// Options of the tree.
type Options struct {
	// Root is the cgroup below which the tree stands, "/" for the machine's.
	Root string
	// Driver is "cgroupfs" or "systemd"; the runtime must use the same.
	Driver string
	// CPUQuota: whether CPU limits become quotas, with this period.
	CPUQuota             bool
	CPUQuotaPeriodMicros int64
	// PodPids limits the processes of a pod; below 1: no limit.
	PodPids int64
	// Hugepages are the resources of the page sizes that the machine has: what a pod does not ask for of
	// them it does not get.
	Hugepages []corev1.ResourceName
	// Mount is where the hierarchies are mounted; empty: /sys/fs/cgroup.
	Mount string
	// Metrics times what is done to pods' cgroups. May be nil.
	Metrics *metrics.Metrics
}

// Manager makes cgroups.
type Manager struct {
	options Options
	v2      bool
	// roots are the mounted hierarchies: one for v2, one for each controller group for v1.
	roots []string
	// all also has hierarchies without controllers of ours, in which the runtime makes
	// cgroups of the same names: a hybrid machine's unified one.
	all     []string
	systemd systemd
}

// systemd creates and removes slices; nil with the cgroupfs driver.
type systemd interface {
	slice(name string, v Values) error
	remove(name string) error
}

// New looks at what is mounted.
func New(o Options) (*Manager, error) {
	if o.Mount == "" {
		o.Mount = "/sys/fs/cgroup"
	}
	if o.Root == "" {
		o.Root = "/"
	}
	m := &Manager{options: o}
	var st unix.Statfs_t
	if err := unix.Statfs(o.Mount, &st); err != nil {
		return nil, fmt.Errorf("cgroups at %s: %w", o.Mount, err)
	}
	if m.v2 = st.Type == unix.CGROUP2_SUPER_MAGIC; m.v2 {
		m.roots = []string{o.Mount}
	} else {
		entries, err := os.ReadDir(o.Mount)
		if err != nil {
			return nil, fmt.Errorf("cgroups at %s: %w", o.Mount, err)
		}
		for _, e := range entries {
			path := filepath.Join(o.Mount, e.Name())
			if e.Type()&fs.ModeSymlink != 0 || unix.Statfs(path, &st) != nil {
				continue
			}
			switch st.Type {
			case unix.CGROUP_SUPER_MAGIC:
				m.roots = append(m.roots, path)
			case unix.CGROUP2_SUPER_MAGIC:
				m.all = append(m.all, path)
			}
		}
		if len(m.roots) == 0 {
			return nil, fmt.Errorf("no cgroup hierarchy is mounted at %s", o.Mount)
		}
	}
	m.all = append(m.all, m.roots...)
	if o.Driver == "systemd" {
		s, err := dialSystemd(o.CPUQuotaPeriodMicros)
		if err != nil {
			return nil, fmt.Errorf("cgroup driver systemd: %w (use --cgroup-driver=cgroupfs where systemd does not run)", err)
		}
		m.systemd = s
	}
	return m, nil
}

// SwapLimits reports whether the kernel can limit how much a cgroup swaps: not every kernel is made or
// started so.
func (m *Manager) SwapLimits() bool {
	file := "memory.memsw.limit_in_bytes"
	if m.v2 {
		file = "memory.swap.max"
	}
	return slices.ContainsFunc(m.roots, func(root string) bool { return present(filepath.Join(root, m.All(), file)) })
}

// V2 reports whether the machine uses the unified hierarchy.
func (m *Manager) V2() bool { return m.v2 }

// Parent is the pod's cgroup in the form that the runtime takes as cgroup parent.
func (m *Manager) Parent(p *corev1.Pod) string {
	name := m.name(p.UID, class(p))
	if m.options.Driver == "systemd" {
		return filepath.Base(name)
	}
	return name
}

func class(p *corev1.Pod) corev1.PodQOSClass {
	if p.Status.QOSClass != "" {
		return p.Status.QOSClass
	}
	return pod.QOS(p)
}

// name is the pod's cgroup below the hierarchies.
func (m *Manager) name(uid types.UID, qos corev1.PodQOSClass) string {
	leaf := "pod" + string(uid)
	if m.options.Driver == "systemd" {
		leaf = strings.TrimSuffix(filepath.Base(m.qosName(qos)), ".slice") + "-pod" + strings.ReplaceAll(string(uid), "-", "_") + ".slice"
	}
	return filepath.Join(m.qosName(qos), leaf)
}

// qosName is the cgroup of a QoS class; Guaranteed pods stand directly in kubepods.
func (m *Manager) qosName(qos corev1.PodQOSClass) string {
	parts := []string{"kubepods"}
	switch qos {
	case corev1.PodQOSBurstable:
		parts = append(parts, "burstable")
	case corev1.PodQOSBestEffort:
		parts = append(parts, "besteffort")
	}
	if m.options.Driver != "systemd" {
		return filepath.Join(append([]string{m.options.Root}, parts...)...)
	}
	path, prefix := m.options.Root, ""
	for _, part := range parts {
		prefix = strings.TrimPrefix(prefix+"-"+part, "-")
		path = filepath.Join(path, prefix+".slice")
	}
	return path
}

// Values are the limits of one cgroup; a zero field is left as it is.
type Values struct {
	Shares      int64 // v1 scale, 1024 a core
	QuotaMicros int64 // -1: none
	MemoryBytes int64 // -1: none
	Pids        int64
	Hugepages   map[string]int64 // bytes by the kernel's size name, "2MB"
}

// Init makes the cgroups of the classes.
func (m *Manager) Init() error {
	if err := m.set(m.qosName(corev1.PodQOSGuaranteed), Values{}); err != nil {
		return err
	}
	if err := m.set(m.qosName(corev1.PodQOSBurstable), Values{}); err != nil {
		return err
	}
	return m.set(m.qosName(corev1.PodQOSBestEffort), Values{Shares: 2})
}

// Enforce limits all pods together to room: memory as a limit, CPU as a weight against the
// machine's other processes.
//
// Source: Kubernetes documentation, "Reserve Compute Resources for System Daemons": room is the
// capacity, without what is reserved where that is to be enforced; eviction thresholds stay
// inside, or nothing could reach them.
func (m *Manager) Enforce(room corev1.ResourceList) error {
	v := Values{MemoryBytes: -1}
	if q, ok := room[corev1.ResourceMemory]; ok {
		v.MemoryBytes = q.Value()
	}
	if q, ok := room[corev1.ResourceCPU]; ok {
		v.Shares = criconfig.Shares(q.MilliValue())
	}
	return m.set(m.qosName(corev1.PodQOSGuaranteed), v)
}

// Burstable sets the weight of the burstable class: the sum of its pods' CPU requests.
func (m *Manager) Burstable(cpuMillis int64) error {
	return m.set(m.qosName(corev1.PodQOSBurstable), Values{Shares: criconfig.Shares(cpuMillis)})
}

// Update makes the pod's cgroup with the limits of its spec.
func (m *Manager) Update(p *corev1.Pod) error {
	name, operation, began := m.name(p.UID, class(p)), "create", time.Now()
	if m.exists(name) {
		operation = "update"
	}
	err := m.set(name, m.PodValues(p))
	m.options.Metrics.Cgroup(operation, time.Since(began))
	return err
}

// PodValues are the limits of the pod's cgroup: sums over its containers. A limit holds for
// the pod only when every container has one.
func (m *Manager) PodValues(p *corev1.Pod) Values {
	requests := resourcehelper.PodRequests(p, resourcehelper.PodResourcesOptions{})
	cpuLimited, memoryLimited := true, true
	limits := resourcehelper.PodLimits(p, resourcehelper.PodResourcesOptions{ContainerFn: func(list corev1.ResourceList, _ resourcehelper.ContainerType) {
		cpuLimited = cpuLimited && !list.Cpu().IsZero()
		memoryLimited = memoryLimited && !list.Memory().IsZero()
	}})
	if r := p.Spec.Resources; r != nil {
		cpuLimited = cpuLimited || !r.Limits.Cpu().IsZero()
		memoryLimited = memoryLimited || !r.Limits.Memory().IsZero()
	}
	v := Values{Shares: criconfig.Shares(requests.Cpu().MilliValue()), QuotaMicros: -1, MemoryBytes: -1, Pids: m.options.PodPids}
	if cpuLimited && m.options.CPUQuota {
		v.QuotaMicros = criconfig.Quota(limits.Cpu().MilliValue(), m.options.CPUQuotaPeriodMicros)
	}
	if memoryLimited {
		v.MemoryBytes = limits.Memory().Value()
	}
	if len(m.options.Hugepages) > 0 {
		v.Hugepages = map[string]int64{}
	}
	for _, name := range m.options.Hugepages {
		q := limits[name]
		v.Hugepages[criconfig.HugepageSize(name)] = q.Value()
	}
	return v
}

// Delete removes the pod's cgroup in whatever class it stands. Processes that are still in
// it are killed; a cgroup that stays busy is an error and tried again by the caller.
func (m *Manager) Delete(uid types.UID) error {
	began := time.Now()
	defer func() { m.options.Metrics.Cgroup("destroy", time.Since(began)) }()
	var errs []error
	for _, qos := range []corev1.PodQOSClass{corev1.PodQOSGuaranteed, corev1.PodQOSBurstable, corev1.PodQOSBestEffort} {
		name := m.name(uid, qos)
		if m.systemd != nil && m.exists(name) {
			errs = append(errs, m.systemd.remove(filepath.Base(name)))
		}
		for _, root := range m.all {
			errs = append(errs, removeTree(filepath.Join(root, name)))
		}
	}
	return errors.Join(errs...)
}

// Prune removes the cgroups of pods that are not in keep.
func (m *Manager) Prune(keep map[types.UID]bool) error {
	found := map[types.UID]bool{}
	for _, qos := range []corev1.PodQOSClass{corev1.PodQOSGuaranteed, corev1.PodQOSBurstable, corev1.PodQOSBestEffort} {
		for _, root := range m.all {
			entries, err := os.ReadDir(filepath.Join(root, m.qosName(qos)))
			if err != nil {
				continue
			}
			for _, e := range entries {
				name := strings.TrimSuffix(e.Name(), ".slice")
				if i := strings.LastIndex(name, "pod"); e.IsDir() && i >= 0 && !strings.HasSuffix(name, "kubepods") {
					found[types.UID(strings.ReplaceAll(name[i+3:], "_", "-"))] = true
				}
			}
		}
	}
	var errs []error
	for uid := range found {
		// "kubepods-burstable" itself ends so that its rest is no UID.
		if !keep[uid] && len(uid) >= 32 {
			errs = append(errs, m.Delete(uid))
		}
	}
	return errors.Join(errs...)
}

func (m *Manager) exists(name string) bool {
	_, err := os.Stat(filepath.Join(m.roots[0], name))
	return err == nil
}

func (m *Manager) set(name string, v Values) error {
	if m.systemd != nil {
		if err := m.systemd.slice(filepath.Base(name), v); err != nil {
			return fmt.Errorf("slice %s: %w", filepath.Base(name), err)
		}
	}
	for _, root := range m.roots {
		dir := filepath.Join(root, name)
		if m.v2 {
			if err := delegate(root, name); err != nil {
				return err
			}
		}
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("cgroup %s: %w", dir, err)
		}
		if filepath.Base(root) == "cpuset" {
			if err := inheritCpuset(root, name); err != nil {
				return err
			}
		}
		for file, value := range m.files(v) {
			path := filepath.Join(dir, file)
			if _, err := os.Stat(path); err != nil {
				continue // another controller's hierarchy, or one that the kernel lacks
			}
			if err := write(path, value); err != nil {
				return err
			}
		}
	}
	return nil
}

// files are the limits as the kernel's files take them.
func (m *Manager) files(v Values) map[string]string {
	f := map[string]string{}
	num := func(n int64) string { return strconv.FormatInt(n, 10) }
	period := num(max(m.options.CPUQuotaPeriodMicros, 1000))
	if m.v2 {
		if v.Shares > 0 {
			f["cpu.weight"] = num(criconfig.Weight(v.Shares))
		}
		switch {
		case v.QuotaMicros > 0:
			f["cpu.max"] = num(v.QuotaMicros) + " " + period
		case v.QuotaMicros < 0:
			f["cpu.max"] = "max " + period
		}
		switch {
		case v.MemoryBytes > 0:
			f["memory.max"] = num(v.MemoryBytes)
		case v.MemoryBytes < 0:
			f["memory.max"] = "max"
		}
	} else {
		if v.Shares > 0 {
			f["cpu.shares"] = num(v.Shares)
		}
		if v.QuotaMicros > 0 {
			f["cpu.cfs_period_us"] = period
		}
		if v.QuotaMicros != 0 {
			f["cpu.cfs_quota_us"] = num(v.QuotaMicros)
		}
		if v.MemoryBytes != 0 {
			f["memory.limit_in_bytes"] = num(v.MemoryBytes)
		}
	}
	if v.Pids > 0 {
		f["pids.max"] = num(v.Pids)
	}
	for size, bytes := range v.Hugepages {
		file := ".limit_in_bytes"
		if m.v2 {
			file = ".max"
		}
		// Pages that are reserved count apart from those that are used.
		f["hugetlb."+size+file], f["hugetlb."+size+".rsvd"+file] = num(bytes), num(bytes)
	}
	return f
}

// write sets a file unless it already says so.
func write(path, value string) error {
	if old, err := os.ReadFile(path); err == nil && strings.TrimSpace(string(old)) == value {
		return nil
	}
	if err := os.WriteFile(path, []byte(value), 0o644); err != nil {
		return fmt.Errorf("set %s to %s: %w", path, value, err)
	}
	return nil
}

// delegate makes the controllers available below each parent of name (cgroup v2).
func delegate(root, name string) error {
	dir := root
	for _, part := range strings.Split(strings.Trim(name, "/"), "/") {
		have, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
		if err != nil {
			return fmt.Errorf("cgroup %s: %w", dir, err)
		}
		on, _ := os.ReadFile(filepath.Join(dir, "cgroup.subtree_control"))
		for _, c := range strings.Fields(string(have)) {
			if slices.Contains([]string{"cpu", "memory", "pids", "cpuset", "hugetlb", "io"}, c) && !slices.Contains(strings.Fields(string(on)), c) {
				if err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+c), 0o644); err != nil {
					return fmt.Errorf("enable cgroup controller %s below %s: %w", c, dir, err)
				}
			}
		}
		dir = filepath.Join(dir, part)
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("cgroup %s: %w", dir, err)
		}
	}
	return nil
}

// inheritCpuset fills cpus and mems from the parent on the way down: an empty cpuset takes
// no process (cgroup v1).
func inheritCpuset(root, name string) error {
	dir := root
	for _, part := range strings.Split(strings.Trim(name, "/"), "/") {
		parent := dir
		dir = filepath.Join(dir, part)
		for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
			own, err := os.ReadFile(filepath.Join(dir, file))
			if err != nil || strings.TrimSpace(string(own)) != "" {
				continue
			}
			above, err := os.ReadFile(filepath.Join(parent, file))
			if err != nil {
				return fmt.Errorf("cgroup %s: %w", dir, err)
			}
			if err := write(filepath.Join(dir, file), strings.TrimSpace(string(above))); err != nil {
				return err
			}
		}
	}
	return nil
}

// removeTree removes a cgroup from its leaves up, killing what is left in it.
func removeTree(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeTree(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	err = unix.Rmdir(dir)
	if err == unix.EBUSY {
		if text, rerr := os.ReadFile(filepath.Join(dir, "cgroup.procs")); rerr == nil {
			for _, line := range strings.Fields(string(text)) {
				if pid, perr := strconv.Atoi(line); perr == nil && pid > 1 {
					_ = unix.Kill(pid, unix.SIGKILL)
				}
			}
		}
		err = unix.Rmdir(dir)
	}
	if err == nil || err == unix.ENOENT {
		return nil
	}
	return fmt.Errorf("remove cgroup %s: %w", dir, err)
}
