package node

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// observe asks the runtime and adds what is known. It returns within a few seconds.
func (m *Manager) observe(ctx context.Context) Facts {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	f := Facts{
		Name: m.name, Capacity: m.capacity, Allocatable: m.offered, Port: m.s.Port,
		Info: m.info,
	}
	for _, ip := range m.ips {
		f.IPs = append(f.IPs, ip.String())
	}
	if m.s.Pressure != nil {
		f.MemoryPressure, f.DiskPressure, f.PIDPressure = m.s.Pressure()
	}
	if m.s.Healthy != nil {
		if err := m.s.Healthy(); err != nil {
			f.OtherError = err.Error()
		}
	}
	if m.s.ShuttingDown != nil {
		if err := m.s.ShuttingDown(); err != nil {
			f.ShutdownError = err.Error()
		}
	}
	m.mu.Lock()
	before := m.facts
	m.mu.Unlock()
	status, err := m.s.Runtime.Status(ctx, &runtimeapi.StatusRequest{})
	if err != nil {
		// What was known of the runtime is kept, so that its failure is one change, not many.
		f.RuntimeError = "container runtime is down"
		f.Info.ContainerRuntimeVersion, f.Images = before.Info.ContainerRuntimeVersion, before.Images
		f.Handlers, f.Features = before.Handlers, before.Features
		return f
	}
	f.NetworkError = "reason:NetworkPluginNotReady message:the runtime does not report its network"
	f.RuntimeError = "container runtime is down"
	for _, c := range status.GetStatus().GetConditions() {
		text := ""
		if !c.Status {
			text = fmt.Sprintf("reason:%s message:%s", c.Reason, c.Message)
		}
		switch c.Type {
		case runtimeapi.RuntimeReady:
			f.RuntimeError = ""
			if !c.Status {
				f.RuntimeError = "container runtime not ready: RuntimeReady=false " + text
			}
		case runtimeapi.NetworkReady:
			f.NetworkError = text
		}
	}
	for _, h := range status.GetRuntimeHandlers() {
		handler := corev1.NodeRuntimeHandler{Name: h.Name}
		if h.Features != nil {
			handler.Features = &corev1.NodeRuntimeHandlerFeatures{
				RecursiveReadOnlyMounts: &h.Features.RecursiveReadOnlyMounts, UserNamespaces: &h.Features.UserNamespaces,
			}
		}
		f.Handlers = append(f.Handlers, handler)
	}
	if features := status.GetFeatures(); features != nil {
		f.Features = &corev1.NodeFeatures{SupplementalGroupsPolicy: &features.SupplementalGroupsPolicy}
	}
	f.Info.ContainerRuntimeVersion = before.Info.ContainerRuntimeVersion
	if before.RuntimeError != "" || before.Name == "" { // another one may have been started
		if v, err := m.s.Runtime.Version(ctx, &runtimeapi.VersionRequest{}); err == nil {
			f.Info.ContainerRuntimeVersion = v.RuntimeName + "://" + v.RuntimeVersion
		}
	}
	f.Images = before.Images
	if list, err := m.s.Images.ListImages(ctx, &runtimeapi.ListImagesRequest{}); err == nil {
		images := make([]corev1.ContainerImage, 0, len(list.Images))
		for _, i := range list.Images {
			names := append(append([]string(nil), i.RepoDigests...), i.RepoTags...)
			if len(names) > maxNamesPerImage {
				names = names[:maxNamesPerImage]
			}
			images = append(images, corev1.ContainerImage{Names: names, SizeBytes: int64(i.Size)})
		}
		f.Images = largest(images)
	}
	return f
}

func systemInfo() corev1.NodeSystemInfo {
	info := corev1.NodeSystemInfo{
		OperatingSystem: runtime.GOOS, Architecture: runtime.GOARCH,
		BootID:     line("/proc/sys/kernel/random/boot_id"),
		SystemUUID: line("/sys/class/dmi/id/product_uuid"),
		MachineID:  line("/etc/machine-id"),
	}
	if info.MachineID == "" {
		info.MachineID = line("/var/lib/dbus/machine-id")
	}
	if info.SystemUUID == "" {
		info.SystemUUID = info.MachineID
	}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		info.KernelVersion = unix.ByteSliceToString(u.Release[:])
	}
	release, _ := os.ReadFile("/etc/os-release")
	for _, l := range strings.Split(string(release), "\n") {
		if name, ok := strings.CutPrefix(l, "PRETTY_NAME="); ok {
			info.OSImage = strings.Trim(name, `"'`)
		}
	}
	return info
}

func line(path string) string {
	data, _ := os.ReadFile(path)
	first, _, _ := strings.Cut(string(data), "\n")
	return strings.TrimSpace(first)
}

// capacity reads what the machine has.
func capacity(root string, pods int32) (corev1.ResourceList, error) {
	memory, err := memoryBytes()
	if err != nil {
		return nil, err
	}
	var s unix.Statfs_t
	at := root
	for unix.Statfs(at, &s) != nil { // the directory may not have been made yet
		if at == "/" || at == "." {
			return nil, fmt.Errorf("measure the file system of %s", root)
		}
		at = filepath.Dir(at)
	}
	list := corev1.ResourceList{
		corev1.ResourceCPU:              *resource.NewQuantity(int64(cpus()), resource.DecimalSI),
		corev1.ResourceMemory:           *resource.NewQuantity(memory, resource.BinarySI),
		corev1.ResourcePods:             *resource.NewQuantity(int64(pods), resource.DecimalSI),
		corev1.ResourceEphemeralStorage: *resource.NewQuantity(int64(s.Blocks)*s.Bsize, resource.BinarySI),
	}
	sizes, _ := filepath.Glob("/sys/kernel/mm/hugepages/hugepages-*kB")
	for _, dir := range sizes {
		kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimPrefix(filepath.Base(dir), "hugepages-"), "kB"), 10, 64)
		if err != nil {
			continue
		}
		count, _ := strconv.ParseInt(line(filepath.Join(dir, "nr_hugepages")), 10, 64)
		name := corev1.ResourceHugePagesPrefix + resource.NewQuantity(kib<<10, resource.BinarySI).String()
		list[corev1.ResourceName(name)] = *resource.NewQuantity(kib<<10*count, resource.BinarySI)
	}
	return list, nil
}

// cpus is the number of processors that are online: what the machine has, not what this
// process may use.
func cpus() int {
	n := 0
	for _, part := range strings.Split(line("/sys/devices/system/cpu/online"), ",") {
		low, high, ranged := strings.Cut(part, "-")
		a, errA := strconv.Atoi(low)
		b := a
		var errB error
		if ranged {
			b, errB = strconv.Atoi(high)
		}
		if errA != nil || errB != nil {
			return runtime.NumCPU()
		}
		n += b - a + 1
	}
	return n
}

func memoryBytes() (int64, error) {
	f, err := os.Open("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if rest, ok := strings.CutPrefix(s.Text(), "MemTotal:"); ok {
			kib, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 10, 64)
			return kib << 10, err
		}
	}
	return 0, fmt.Errorf("/proc/meminfo has no MemTotal")
}

// swapSpaces are the partitions and files that memory is swapped out to.
func swapSpaces() (names []string) {
	data, _ := os.ReadFile("/proc/swaps")
	for i, l := range strings.Split(string(data), "\n") {
		if fields := strings.Fields(l); i > 0 && len(fields) > 0 && !strings.HasPrefix(fields[0], "/dev/zram") {
			names = append(names, fields[0])
		}
	}
	return names
}

// addresses are those that were given, or the one that the default route goes out from.
func addresses(given string) ([]netip.Addr, error) {
	var out []netip.Addr
	for _, text := range strings.Split(given, ",") {
		if text == "" {
			continue
		}
		ip, err := netip.ParseAddr(strings.TrimSpace(text))
		if err != nil {
			return nil, fmt.Errorf("node-ip: %w", err)
		}
		if !ip.IsUnspecified() {
			out = append(out, ip.Unmap())
		}
	}
	if len(out) == 2 && out[0].Is4() == out[1].Is4() || len(out) > 2 {
		return nil, fmt.Errorf("node-ip: %s: want one address, or one of each family", given)
	}
	if len(out) > 0 {
		return out, nil
	}
	// No packet is sent: connecting a datagram socket only picks route and source.
	for _, probe := range []string{"192.0.2.1:9", "[2001:db8::1]:9"} {
		conn, err := net.Dial("udp", probe)
		if err != nil {
			continue
		}
		ip := conn.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap()
		conn.Close()
		return []netip.Addr{ip.WithZone("")}, nil
	}
	faces, err := net.InterfaceAddrs()
	if err != nil {
		return nil, err
	}
	for _, a := range faces {
		if prefix, err := netip.ParsePrefix(a.String()); err == nil && prefix.Addr().IsGlobalUnicast() {
			return []netip.Addr{prefix.Addr()}, nil
		}
	}
	return nil, fmt.Errorf("the machine has no default route and no address: say which with --node-ip")
}
