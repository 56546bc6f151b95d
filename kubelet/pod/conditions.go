package pod

import (
	"fmt"
	"net/netip"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

type netipAddr = netip.Addr

// Owned are the conditions that only the kubelet writes.
var Owned = map[corev1.PodConditionType]bool{
	corev1.PodScheduled:              true,
	corev1.PodReady:                  true,
	corev1.PodInitialized:            true,
	corev1.ContainersReady:           true,
	corev1.PodReadyToStartContainers: true,
	corev1.PodResizePending:          true,
	corev1.PodResizeInProgress:       true,
	corev1.AllContainersRestarting:   true,
}

// setConditions fills the conditions: others' as the object has them, then the kubelet's.
func setConditions(in *Input, d *Decision, last, st *corev1.PodStatus) {
	var all []corev1.PodCondition
	for _, c := range in.Pod.Status.Conditions {
		if !Owned[c.Type] {
			all = append(all, c)
		}
	}
	if d.End != nil && IsTerminal(st.Phase) {
		for _, c := range d.End.Conditions {
			if old := condition(all, c.Type); old == nil {
				all = append(all, c)
			}
		}
	}
	if c := condition(last.Conditions, corev1.DisruptionTarget); c != nil && condition(all, c.Type) == nil {
		all = append(all, *c)
	}
	ready := in.Seen.Ready(in.Pod.Spec.HostNetwork) != nil && d.Phase < Released
	containers := containersReady(in.Pod, st)
	podReady := containers
	podReady.Type = corev1.PodReady
	if containers.Status == corev1.ConditionTrue {
		podReady = gates(in.Pod, all)
	}
	own := []corev1.PodCondition{
		{Type: corev1.PodReadyToStartContainers, Status: boolStatus(ready)},
		initialized(in.Pod, last, st),
		podReady,
		containers,
		{Type: corev1.PodScheduled, Status: corev1.ConditionTrue},
	}
	if c, has := restartingCondition(in, d, st); has {
		own = append(own, c)
	}
	if e := in.Memory.End; e != nil && e.Rejected {
		own = own[4:5]
	}
	for _, c := range resizes(in, st) {
		c.LastTransitionTime = metav1.NewTime(in.Now).Rfc3339Copy()
		c.LastProbeTime = c.LastTransitionTime
		for _, list := range [][]corev1.PodCondition{last.Conditions, in.Pod.Status.Conditions} {
			if old := condition(list, c.Type); old != nil && old.Reason == c.Reason {
				c.LastTransitionTime, c.LastProbeTime = old.LastTransitionTime, old.LastProbeTime
				break
			}
		}
		all = append(all, c)
	}
	for _, c := range own {
		c.ObservedGeneration = st.ObservedGeneration
		c.LastTransitionTime = metav1.NewTime(in.Now).Rfc3339Copy()
		for _, list := range [][]corev1.PodCondition{last.Conditions, in.Pod.Status.Conditions} {
			if old := condition(list, c.Type); old != nil && old.Status == c.Status {
				c.LastTransitionTime, c.LastProbeTime = old.LastTransitionTime, old.LastProbeTime
				break
			}
		}
		all = append(all, c)
	}
	st.Conditions = all
}

func boolStatus(b bool) corev1.ConditionStatus {
	if b {
		return corev1.ConditionTrue
	}
	return corev1.ConditionFalse
}

// containersReady is true when every ordinary container and sidecar is ready.
func containersReady(p *corev1.Pod, st *corev1.PodStatus) corev1.PodCondition {
	c := corev1.PodCondition{Type: corev1.ContainersReady, Status: corev1.ConditionFalse}
	switch st.Phase {
	case corev1.PodSucceeded:
		c.Reason = "PodCompleted"
		return c
	case corev1.PodFailed:
		c.Reason = "PodFailed"
		return c
	}
	var unready []string
	for i := range p.Spec.InitContainers {
		name := p.Spec.InitContainers[i].Name
		if initKind(&p.Spec.InitContainers[i]) == Sidecar && !statusOf(st.InitContainerStatuses, name).Ready {
			unready = append(unready, name)
		}
	}
	for i := range p.Spec.Containers {
		if name := p.Spec.Containers[i].Name; !statusOf(st.ContainerStatuses, name).Ready {
			unready = append(unready, name)
		}
	}
	if len(unready) > 0 {
		c.Reason, c.Message = "ContainersNotReady", fmt.Sprintf("containers with unready status: %s", unready)
		return c
	}
	c.Status = corev1.ConditionTrue
	return c
}

// gates is the Ready condition of a pod whose containers are ready: its readiness gates
// decide.
func gates(p *corev1.Pod, conditions []corev1.PodCondition) corev1.PodCondition {
	c := corev1.PodCondition{Type: corev1.PodReady, Status: corev1.ConditionTrue}
	var why []string
	for _, g := range p.Spec.ReadinessGates {
		gate := condition(conditions, g.ConditionType)
		switch {
		case gate == nil:
			why = append(why, fmt.Sprintf("corresponding condition of pod readiness gate %q does not exist.", string(g.ConditionType)))
		case gate.Status != corev1.ConditionTrue:
			why = append(why, fmt.Sprintf("the status of pod readiness gate %q is not \"True\", but %v", string(g.ConditionType), gate.Status))
		}
	}
	if len(why) > 0 {
		c.Status, c.Reason, c.Message = corev1.ConditionFalse, "ReadinessGatesNotReady", strings.Join(why, ", ")
	}
	return c
}

// initialized is true once the init containers have passed, and stays so.
func initialized(p *corev1.Pod, last, st *corev1.PodStatus) corev1.PodCondition {
	c := corev1.PodCondition{Type: corev1.PodInitialized, Status: corev1.ConditionTrue}
	if st.Phase == corev1.PodSucceeded {
		c.Reason = "PodCompleted"
		return c
	}
	for i := range st.ContainerStatuses {
		s := &st.ContainerStatuses[i]
		if s.State.Running != nil || s.State.Terminated != nil || s.LastTerminationState.Terminated != nil || (s.Started != nil && *s.Started) {
			return c
		}
	}
	var incomplete []string
	for i := range p.Spec.InitContainers {
		s := statusOf(st.InitContainerStatuses, p.Spec.InitContainers[i].Name)
		done := s.Ready
		if initKind(&p.Spec.InitContainers[i]) == Sidecar {
			done = s.Started != nil && *s.Started
		}
		if !done {
			incomplete = append(incomplete, s.Name)
		}
	}
	if len(incomplete) > 0 {
		c.Status, c.Reason = corev1.ConditionFalse, "ContainersNotInitialized"
		c.Message = fmt.Sprintf("containers with incomplete status: %s", incomplete)
	}
	return c
}
