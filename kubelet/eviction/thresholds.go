package eviction

import (
	"fmt"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Options are what an administrator decides. Thresholds are written as
// "memory.available<100Mi,nodefs.available<10%".
type Options struct {
	EvictionHard                     string          `yaml:"evictionHard" flag:"eviction-hard" help:"thresholds below which pods are evicted at once"`
	EvictionSoft                     string          `yaml:"evictionSoft" flag:"eviction-soft" help:"thresholds below which pods are evicted after eviction-soft-grace-period"`
	EvictionSoftGracePeriod          string          `yaml:"evictionSoftGracePeriod" flag:"eviction-soft-grace-period" help:"how long a soft threshold must be met: memory.available=1m30s,..."`
	EvictionMinimumReclaim           string          `yaml:"evictionMinimumReclaim" flag:"eviction-minimum-reclaim" help:"what must be won beyond a threshold before pressure ends: memory.available=100Mi,..."`
	EvictionMaxPodGracePeriod        int32           `yaml:"evictionMaxPodGracePeriod" flag:"eviction-max-pod-grace-period" help:"seconds that a pod gets to end when a soft threshold is met"`
	EvictionPressureTransitionPeriod metav1.Duration `yaml:"evictionPressureTransitionPeriod" flag:"eviction-pressure-transition-period" help:"how long a pressure condition stays after its cause has gone"`
}

// DefaultOptions are upstream's.
func DefaultOptions() Options {
	return Options{
		EvictionHard:                     "memory.available<100Mi,nodefs.available<10%,nodefs.inodesFree<5%,imagefs.available<15%,imagefs.inodesFree<5%",
		EvictionPressureTransitionPeriod: metav1.Duration{Duration: 5 * time.Minute},
	}
}

// Signal is something that can run out.
type Signal string

const (
	MemoryAvailable   Signal = "memory.available"
	NodeFsAvailable   Signal = "nodefs.available"
	NodeFsInodesFree  Signal = "nodefs.inodesFree"
	ImageFsAvailable  Signal = "imagefs.available"
	ImageFsInodesFree Signal = "imagefs.inodesFree"
	PIDAvailable      Signal = "pid.available"

	// AllocatableMemoryAvailable is what all pods together have left of their own limit. Nobody sets a
	// threshold for it: it has that of memory.available.
	AllocatableMemoryAvailable Signal = "allocatableMemory.available"
)

// signals says which condition a signal stands for and what users call the resource.
var signals = map[Signal]struct {
	condition corev1.NodeConditionType
	resource  corev1.ResourceName
}{
	MemoryAvailable:   {corev1.NodeMemoryPressure, corev1.ResourceMemory},
	NodeFsAvailable:   {corev1.NodeDiskPressure, corev1.ResourceEphemeralStorage},
	NodeFsInodesFree:  {corev1.NodeDiskPressure, "inodes"},
	ImageFsAvailable:  {corev1.NodeDiskPressure, corev1.ResourceEphemeralStorage},
	ImageFsInodesFree: {corev1.NodeDiskPressure, "inodes"},
	PIDAvailable:      {corev1.NodePIDPressure, "pids"},

	AllocatableMemoryAvailable: {corev1.NodeMemoryPressure, corev1.ResourceMemory},
}

// Amount is absolute, or a part of the capacity when Percent is set.
type Amount struct {
	Quantity resource.Quantity
	Percent  float64 // 0 to 100
}

// Of is the amount for a capacity.
func (a Amount) Of(capacity int64) int64 {
	if a.Percent > 0 {
		return int64(float64(capacity) * a.Percent / 100)
	}
	return a.Quantity.Value()
}

// Threshold is met while less than Least of the signal is left.
type Threshold struct {
	Signal  Signal
	Least   Amount
	Reclaim Amount        // beyond Least, before it counts as resolved
	Grace   time.Duration // zero: hard
}

// Parse reads the thresholds of the options, sorted by signal, hard ones first.
func Parse(o Options) ([]Threshold, error) {
	hard, err := parseList(o.EvictionHard, "<", "eviction-hard")
	if err != nil {
		return nil, err
	}
	soft, err := parseList(o.EvictionSoft, "<", "eviction-soft")
	if err != nil {
		return nil, err
	}
	graces, err := parseList(o.EvictionSoftGracePeriod, "=", "eviction-soft-grace-period")
	if err != nil {
		return nil, err
	}
	reclaims, err := parseList(o.EvictionMinimumReclaim, "=", "eviction-minimum-reclaim")
	if err != nil {
		return nil, err
	}
	var out []Threshold
	for _, list := range []struct {
		name string
		of   map[Signal]string
		soft bool
	}{{"eviction-hard", hard, false}, {"eviction-soft", soft, true}} {
		for signal, text := range list.of {
			t := Threshold{Signal: signal}
			if t.Least, err = parseAmount(text); err != nil {
				return nil, fmt.Errorf("%s: %s: %w", list.name, signal, err)
			}
			if text, ok := reclaims[signal]; ok {
				if t.Reclaim, err = parseAmount(text); err != nil {
					return nil, fmt.Errorf("eviction-minimum-reclaim: %s: %w", signal, err)
				}
			}
			if list.soft {
				text, ok := graces[signal]
				if !ok {
					return nil, fmt.Errorf("eviction-soft: %s has no eviction-soft-grace-period", signal)
				}
				if t.Grace, err = time.ParseDuration(text); err != nil || t.Grace <= 0 {
					return nil, fmt.Errorf("eviction-soft-grace-period: %s=%s: want a duration above zero", signal, text)
				}
			}
			if t.Least.Percent > 0 || t.Least.Quantity.Sign() > 0 { // zero turns a threshold off
				out = append(out, t)
			}
		}
	}
	sort.Slice(out, func(i, j int) bool {
		if (out[i].Grace == 0) != (out[j].Grace == 0) {
			return out[i].Grace == 0
		}
		return out[i].Signal < out[j].Signal
	})
	return out, nil
}

// Enforced adds what follows when all pods together have a limit of memory: they are evicted before they
// reach it, as before the node's memory ends. Otherwise the kernel would choose.
func Enforced(thresholds []Threshold) []Threshold {
	for _, t := range thresholds {
		if t.Signal == MemoryAvailable && t.Grace == 0 {
			t.Signal = AllocatableMemoryAvailable
			return append(slices.Clip(thresholds), t)
		}
	}
	return thresholds
}

func parseList(text, operator, name string) (map[Signal]string, error) {
	out := map[Signal]string{}
	for _, part := range strings.Split(text, ",") {
		if part = strings.TrimSpace(part); part == "" {
			continue
		}
		signal, value, ok := strings.Cut(part, operator)
		if !ok {
			return nil, fmt.Errorf("%s: %q: want signal%svalue", name, part, operator)
		}
		if _, known := signals[Signal(signal)]; !known || Signal(signal) == AllocatableMemoryAvailable {
			return nil, fmt.Errorf("%s: unknown signal %q", name, signal)
		}
		if _, double := out[Signal(signal)]; double {
			return nil, fmt.Errorf("%s: %s is given twice", name, signal)
		}
		out[Signal(signal)] = value
	}
	return out, nil
}

func parseAmount(text string) (Amount, error) {
	if number, ok := strings.CutSuffix(text, "%"); ok {
		p, err := strconv.ParseFloat(number, 64)
		if err != nil || p < 0 || p > 100 {
			return Amount{}, fmt.Errorf("%q: want a percentage from 0%% to 100%%", text)
		}
		return Amount{Percent: p}, nil
	}
	q, err := resource.ParseQuantity(text)
	if err != nil || q.Sign() < 0 {
		return Amount{}, fmt.Errorf("%q: want a quantity, or a percentage", text)
	}
	return Amount{Quantity: q}, nil
}

// Withheld is what hard thresholds keep back of the node's capacity.
func Withheld(thresholds []Threshold, capacity corev1.ResourceList) corev1.ResourceList {
	out := corev1.ResourceList{}
	for _, t := range thresholds {
		name := corev1.ResourceMemory
		if t.Signal == NodeFsAvailable {
			name = corev1.ResourceEphemeralStorage
		} else if t.Signal != MemoryAvailable {
			continue
		}
		if have, ok := capacity[name]; ok && t.Grace == 0 {
			out[name] = *resource.NewQuantity(t.Least.Of(have.Value()), resource.BinarySI)
		}
	}
	return out
}
