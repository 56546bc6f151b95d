package server

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"

	"github.com/keelson/keelson/kubelet/cgroups"
)

// The numbers were seen on Debian 12 with cgroup v2 and 3 GiB.
func TestMachineMemory(t *testing.T) {
	at := metav1.Now()
	info := map[string]uint64{"MemTotal": 3060559872, "MemFree": 1991122944, "Inactive(file)": 299950080, "AnonPages": 240983040}
	for says, c := range map[string]struct {
		root cgroups.Usage
		want statsapi.MemoryStats
	}{
		"what the kernel counts for all cgroups": {
			cgroups.Usage{UsageBytes: 907100160, WorkingSetBytes: 607121408, RSSBytes: 241102848, Faults: 741717, MajorFaults: 478},
			statsapi.MemoryStats{Time: at, UsageBytes: new(uint64(907100160)), WorkingSetBytes: new(uint64(607121408)), AvailableBytes: new(uint64(2453438464)),
				RSSBytes: new(uint64(241102848)), PageFaults: new(uint64(741717)), MajorPageFaults: new(uint64(478))},
		},
		"or what is not free": {
			cgroups.Usage{},
			statsapi.MemoryStats{Time: at, UsageBytes: new(uint64(1069436928)), WorkingSetBytes: new(uint64(769486848)), AvailableBytes: new(uint64(2291073024)),
				RSSBytes: new(uint64(240983040)), PageFaults: new(uint64(0)), MajorPageFaults: new(uint64(0))},
		},
	} {
		if diff := cmp.Diff(&c.want, machineMemoryUse(info, c.root, at)); diff != "" {
			t.Errorf("%s: -want +got:\n%s", says, diff)
		}
	}
}

func TestCountedByTheKernel(t *testing.T) {
	s := NewStats(StatsOptions{})
	begin := time.Now()
	u := cgroups.Usage{CPU: 10 * time.Second, UsageBytes: 409600, WorkingSetBytes: 400000, LimitBytes: 67108864, SwapLimitBytes: cgroups.NoLimit,
		CPUPressure: &cgroups.Pressure{Some: cgroups.Stall{Avg10: 1.5, TotalMicros: 7}, Full: cgroups.Stall{Avg300: 0.25, TotalMicros: 5}}}
	cpu, memory := s.counted("/kubepods/podx", u, begin)
	if cpu.UsageNanoCores != nil || *cpu.UsageCoreNanoSeconds != 10e9 {
		t.Errorf("at first: %+v", cpu)
	}
	if want := (statsapi.PSIStats{Some: statsapi.PSIData{Avg10: 1.5, Total: 7}, Full: statsapi.PSIData{Avg300: 0.25, Total: 5}}); *cpu.PSI != want || memory.PSI != nil {
		t.Errorf("pressure %+v, %+v; want %+v", cpu.PSI, memory.PSI, want)
	}
	if *memory.AvailableBytes != 67108864-400000 {
		t.Errorf("with a limit %d is available", *memory.AvailableBytes)
	}
	if sw := swap(u, metav1.NewTime(begin)); sw.SwapAvailableBytes != nil || *sw.SwapUsageBytes != 0 {
		t.Errorf("swap %+v", sw)
	}
	u.CPU, u.LimitBytes, u.SwapLimitBytes = 11*time.Second, 0, 0
	cpu, memory = s.counted("/kubepods/podx", u, begin.Add(2*time.Second))
	if *cpu.UsageNanoCores != 5e8 || memory.AvailableBytes != nil {
		t.Errorf("two seconds later: %d nanocores, %v available", *cpu.UsageNanoCores, memory.AvailableBytes)
	}
	if sw := swap(u, metav1.NewTime(begin)); *sw.SwapAvailableBytes != 0 {
		t.Errorf("where no swap is allowed: %+v", sw)
	}
}
