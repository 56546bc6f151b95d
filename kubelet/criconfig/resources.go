package criconfig

import (
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

// Weight turns cpu.shares into cgroup v2 cpu.weight, as runc does (log curve: 2 → 1,
// 1024 → 100, 262144 → 10000). Source: opencontainers/cgroups, ConvertCPUSharesToCgroupV2Value.
func Weight(shares int64) int64 {
	switch {
	case shares <= minShares:
		return 1
	case shares >= maxShares:
		return 10000
	}
	return weightOf(shares)
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
	// No swap: memory and swap together are the memory limit.
	if r.MemoryLimitInBytes > 0 {
		r.MemorySwapLimitInBytes = r.MemoryLimitInBytes
	}
	if n.CgroupV2 {
		r.Unified = map[string]string{"memory.oom.group": "1"}
		if r.MemoryLimitInBytes > 0 {
			r.Unified["memory.swap.max"] = "0"
			r.MemorySwapLimitInBytes = 0
		}
	}
	r.HugepageLimits = hugepages(limit)
	return r
}

// hugepages sets a limit, 0 where none is asked, for each page size that is named.
func hugepages(limit corev1.ResourceList) []*cri.HugepageLimit {
	var out []*cri.HugepageLimit
	for name, q := range limit {
		size, ok := strings.CutPrefix(string(name), corev1.ResourceHugePagesPrefix)
		if !ok {
			continue
		}
		// hugepages-2Mi is the kernel's 2MB.
		size = strings.TrimSuffix(size, "i") + "B"
		out = append(out, &cri.HugepageLimit{PageSize: size, Limit: uint64(q.Value())})
	}
	return out
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
