package criconfig

import (
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	resourcehelper "k8s.io/component-helpers/resource"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/keelson/keelson/kubelet/pod"
)

const (
	minShares     = 2
	maxShares     = 262144
	minQuotaMicro = 1000
)

// Shares turns a CPU request into cgroup v1 cpu.shares: 1024 a core, 2 at least.
func Shares(milli int64) int64 {
	return min(max(milli*1024/1000, minShares), maxShares)
}

// Quota turns a CPU limit into microseconds per period; -1 without a limit.
func Quota(milli, periodMicros int64) int64 {
	if milli <= 0 {
		return -1
	}
	return max(milli*periodMicros/1000, minQuotaMicro)
}

// Weight turns cpu.shares into the cpu.weight of a pod's cgroup: a straight line from 2 → 1 to
// 262144 → 10000, so that pods share a busy processor as their requests stand to each other.
// Containers' own weights are the runtime's affair: it is given shares.
//
// Source: KEP-2254, "Phase 1: Convert from cgroups v1 settings to v2".
func Weight(shares int64) int64 {
	shares = min(max(shares, minShares), maxShares)
	return 1 + (shares-minShares)*9999/(maxShares-minShares)
}

// Resources are the limits of one container.
func Resources(n Node, p *corev1.Pod, c *corev1.Container) *cri.LinuxContainerResources {
	request, limit := c.Resources.Requests, c.Resources.Limits
	milli, limitMilli := request.Cpu().MilliValue(), limit.Cpu().MilliValue()
	if _, asked := request[corev1.ResourceCPU]; !asked {
		milli = limitMilli
	}
	r := &cri.LinuxContainerResources{
		CpuShares:          Shares(milli),
		MemoryLimitInBytes: limit.Memory().Value(),
		OomScoreAdj:        pod.OOMScore(p, c, n.MemoryBytes),
	}
	if r.MemoryLimitInBytes == 0 && p.Spec.Resources != nil {
		r.MemoryLimitInBytes = p.Spec.Resources.Limits.Memory().Value()
	}
	if n.CPUQuota {
		if limitMilli == 0 && p.Spec.Resources != nil {
			limitMilli = p.Spec.Resources.Limits.Cpu().MilliValue()
		}
		if limitMilli > 0 {
			r.CpuPeriod, r.CpuQuota = n.CPUQuotaPeriodMicros, Quota(limitMilli, n.CPUQuotaPeriodMicros)
		}
	}
	switch {
	case !n.SwapLimits:
	case n.CgroupV2:
		r.Unified = map[string]string{"memory.swap.max": "0"}
	default: // memory and swap together are the memory limit
		r.MemorySwapLimitInBytes = r.MemoryLimitInBytes
	}
	if n.CgroupV2 && !n.SingleProcessOOMKill {
		if r.Unified == nil {
			r.Unified = map[string]string{}
		}
		r.Unified["memory.oom.group"] = "1"
	}
	if p.Spec.Resources != nil {
		r.HugepageLimits = hugepages(n, limit, p.Spec.Resources.Limits)
	} else {
		r.HugepageLimits = hugepages(n, limit)
	}
	return r
}

// hugepages limits each page size that the node has: to what the first of the lists says that names it,
// else to none.
func hugepages(n Node, limits ...corev1.ResourceList) (out []*cri.HugepageLimit) {
	for _, name := range HugepageResources(n.Capacity) {
		one := &cri.HugepageLimit{PageSize: HugepageSize(name)}
		for _, list := range limits {
			if q, ok := list[name]; ok {
				one.Limit = uint64(q.Value())
				break
			}
		}
		out = append(out, one)
	}
	return out
}

// HugepageResources are the huge pages in a list, sorted by name.
func HugepageResources(list corev1.ResourceList) (names []corev1.ResourceName) {
	for name := range list {
		if strings.HasPrefix(string(name), corev1.ResourceHugePagesPrefix) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// HugepageSize is the kernel's name of a page size: hugepages-2Mi is its 2MB.
func HugepageSize(name corev1.ResourceName) string {
	return strings.TrimSuffix(strings.TrimPrefix(string(name), corev1.ResourceHugePagesPrefix), "i") + "B"
}

// podResources are the sums over the pod, for runtimes that size the sandbox by them.
func podResources(n Node, p *corev1.Pod) *cri.LinuxContainerResources {
	requests := resourcehelper.PodRequests(p, resourcehelper.PodResourcesOptions{ExcludeOverhead: true})
	limits := resourcehelper.PodLimits(p, resourcehelper.PodResourcesOptions{ExcludeOverhead: true})
	return sums(n, requests, limits)
}

func overhead(n Node, p *corev1.Pod) *cri.LinuxContainerResources {
	if len(p.Spec.Overhead) == 0 {
		return &cri.LinuxContainerResources{}
	}
	return sums(n, p.Spec.Overhead, p.Spec.Overhead)
}

func sums(n Node, requests, limits corev1.ResourceList) *cri.LinuxContainerResources {
	r := &cri.LinuxContainerResources{
		CpuShares:          Shares(requests.Cpu().MilliValue()),
		MemoryLimitInBytes: limits.Memory().Value(),
	}
	if m := limits.Cpu().MilliValue(); m > 0 && n.CPUQuota {
		r.CpuPeriod, r.CpuQuota = n.CPUQuotaPeriodMicros, Quota(m, n.CPUQuotaPeriodMicros)
	}
	return r
}
