package shutdown

import (
	"cmp"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Period is how long pods of a priority and above get to end. Source: kubelet configuration reference,
// ShutdownGracePeriodByPodPriority.
type Period struct {
	Priority                   int32 `yaml:"priority" json:"priority"`
	ShutdownGracePeriodSeconds int64 `yaml:"shutdownGracePeriodSeconds" json:"shutdownGracePeriodSeconds"`
}

// Options are what an administrator decides. All zero: the machine's end is not waited for.
type Options struct {
	ShutdownGracePeriod              metav1.Duration `yaml:"shutdownGracePeriod" flag:"shutdown-grace-period" help:"how long the machine's shutdown is held up so that pods can end; 0: it is not"`
	ShutdownGracePeriodCriticalPods  metav1.Duration `yaml:"shutdownGracePeriodCriticalPods" flag:"shutdown-grace-period-critical-pods" help:"part of the shutdown grace period kept for critical pods, which end last"`
	ShutdownGracePeriodByPodPriority []Period        `yaml:"shutdownGracePeriodByPodPriority"`
}

// Validate reports every fault.
func (o Options) Validate() field.ErrorList {
	var errs field.ErrorList
	for _, d := range []struct {
		name  string
		value time.Duration
	}{{"shutdownGracePeriod", o.ShutdownGracePeriod.Duration}, {"shutdownGracePeriodCriticalPods", o.ShutdownGracePeriodCriticalPods.Duration}} {
		if d.value != 0 && d.value < time.Second {
			errs = append(errs, field.Invalid(field.NewPath(d.name), d.value.String(), "must be 0, or at least 1s"))
		}
	}
	if o.ShutdownGracePeriodCriticalPods.Duration > o.ShutdownGracePeriod.Duration {
		errs = append(errs, field.Invalid(field.NewPath("shutdownGracePeriodCriticalPods"), o.ShutdownGracePeriodCriticalPods.Duration.String(), "must not be longer than shutdownGracePeriod"))
	}
	list := field.NewPath("shutdownGracePeriodByPodPriority")
	if len(o.ShutdownGracePeriodByPodPriority) > 0 && (o.ShutdownGracePeriod.Duration > 0 || o.ShutdownGracePeriodCriticalPods.Duration > 0) {
		errs = append(errs, field.Forbidden(list, "must not be set together with shutdownGracePeriod"))
	}
	seen := map[int32]bool{}
	for i, p := range o.ShutdownGracePeriodByPodPriority {
		if p.ShutdownGracePeriodSeconds < 0 {
			errs = append(errs, field.Invalid(list.Index(i).Child("shutdownGracePeriodSeconds"), p.ShutdownGracePeriodSeconds, "must not be negative"))
		}
		if seen[p.Priority] {
			errs = append(errs, field.Duplicate(list.Index(i).Child("priority"), p.Priority))
		}
		seen[p.Priority] = true
	}
	return errs
}

// criticalPriority is the lowest of the system's priority classes.
const criticalPriority = 2000000000

// Periods are the options as periods, the lowest priority first: pods end in this order.
func Periods(o Options) []Period {
	out := slices.Clone(o.ShutdownGracePeriodByPodPriority)
	if all, critical := o.ShutdownGracePeriod.Duration, o.ShutdownGracePeriodCriticalPods.Duration; len(out) == 0 && all > 0 && critical <= all {
		out = []Period{{0, int64((all - critical) / time.Second)}, {criticalPriority, int64(critical / time.Second)}}
	}
	slices.SortFunc(out, func(a, b Period) int { return cmp.Compare(a.Priority, b.Priority) })
	return out
}

// Total is how long all periods take together.
func Total(periods []Period) time.Duration {
	sum := time.Duration(0)
	for _, p := range periods {
		sum += time.Duration(p.ShutdownGracePeriodSeconds) * time.Second
	}
	return sum
}

// Ending is a pod with the seconds that it gets.
type Ending struct {
	Pod          *corev1.Pod
	GraceSeconds int64
}

// Group are pods that end at the same time.
type Group struct {
	Period
	Pods []Ending
}

// Order puts the pods that still run into groups, in the order in which they are to end. A pod belongs to the
// highest period that is not above its priority, or to the lowest; groups without pods are left out. No pod
// gets more than its own grace period.
func Order(periods []Period, pods []*corev1.Pod) []Group {
	groups := make([]Group, len(periods))
	for i, p := range periods {
		groups[i].Period = p
	}
	for _, p := range pods {
		if len(groups) == 0 || p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed {
			continue
		}
		priority := int32(0)
		if p.Spec.Priority != nil {
			priority = *p.Spec.Priority
		}
		at := 0
		for i := range groups {
			if groups[i].Priority <= priority {
				at = i
			}
		}
		grace := groups[at].ShutdownGracePeriodSeconds
		if own := p.Spec.TerminationGracePeriodSeconds; own != nil {
			grace = min(grace, *own)
		}
		groups[at].Pods = append(groups[at].Pods, Ending{p, grace})
	}
	return slices.DeleteFunc(groups, func(g Group) bool { return len(g.Pods) == 0 })
}
