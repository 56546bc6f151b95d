package pod

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
)

// A container whose rule says RestartAllContainers takes all others along when it ends: those that run are
// killed, all are removed, those that asked for it last of all (so that a kubelet that is restarted in between
// goes on), and the pod begins anew in its sandbox, with its volumes.
//
// Source: API reference, Container.restartPolicyRules; reasons, messages and the condition are upstream's.
// Unlike there, a container that asks for it again and again waits as in a crash loop.
const (
	restartingAll        = "RestartingAllContainers"
	restartingAllMessage = "The container is removed because RestartAllContainers in place"
)

// rule is the first of a container's rules that an exit code matches, nil when none does.
func rule(c *corev1.Container, exitCode int32) *corev1.ContainerRestartRule {
	for i := range c.RestartPolicyRules {
		r := &c.RestartPolicyRules[i]
		if r.ExitCodes == nil {
			continue
		}
		listed := slices.Contains(r.ExitCodes.Values, exitCode)
		if listed == (r.ExitCodes.Operator == corev1.ContainerRestartRuleOnExitCodesOpIn) {
			return r
		}
	}
	return nil
}

// restartsAll reports whether a container that has ended with the exit code takes all others along.
func restartsAll(c *corev1.Container, exitCode int32) bool {
	r := rule(c, exitCode)
	return r != nil && r.Action == corev1.ContainerRestartRuleActionRestartAllContainers
}

// mayRestartAll reports whether a container has such a rule.
func mayRestartAll(c *corev1.Container) bool {
	return slices.ContainsFunc(c.RestartPolicyRules, func(r corev1.ContainerRestartRule) bool {
		return r.Action == corev1.ContainerRestartRuleActionRestartAllContainers
	})
}

// lasting are the containers that the pod's spec has, without ephemeral ones.
func lasting(p *corev1.Pod) []*corev1.Container {
	var out []*corev1.Container
	for _, list := range [][]corev1.Container{p.Spec.InitContainers, p.Spec.Containers} {
		for i := range list {
			out = append(out, &list[i])
		}
	}
	return out
}

// askers are the containers that have ended and take all others along.
func askers(in *Input) (out []*Container) {
	for _, c := range lasting(in.Pod) {
		if n := in.Seen.Newest(c.Name); n != nil && n.State == Exited && !n.Recalled && restartsAll(c, n.ExitCode) {
			out = append(out, n)
		}
	}
	return out
}

// restartAll asks for the next steps of such a restart; false when there is none, or when it has to wait.
func restartAll(in *Input, d *Decision) bool {
	asking := askers(in)
	ready := false
	for _, a := range asking {
		until, _ := restartDelay(in, a.Name, a.Finished)
		ready = ready || !in.Now.Before(until)
	}
	if !ready {
		return false
	}
	d.RestartsAll = true
	running, left := false, false
	var others []*Container
	for i := range in.Seen.Containers {
		c := &in.Seen.Containers[i]
		if _, kind := Find(in.Pod, c.Name); c.Recalled || kind == Ephemeral || slices.Contains(asking, c) {
			continue
		}
		if c.State == Live || c.State == Unknown {
			running = true
			kill(in, d, c, 0, "killing", "")
		}
		others = append(others, c)
	}
	if running || in.Memory.Busy["start"] {
		return true
	}
	for _, list := range [][]*Container{others, asking} {
		for _, c := range list {
			left = true
			d.step(in, Step{Do: RemoveContainer, ID: c.ID, Name: c.Name, KeepLog: true})
		}
		if left {
			break
		}
	}
	return true
}

// restartedAll reports whether a status is that of a pod whose containers were being removed in order to start
// anew: what it says of them is over.
func restartedAll(p *corev1.Pod, last *corev1.PodStatus) bool {
	if last == nil || IsTerminal(last.Phase) {
		return false
	}
	return slices.ContainsFunc(lasting(p), func(c *corev1.Container) bool {
		st := LastStatus(last, c.Name)
		return st != nil && st.State.Terminated != nil && restartsAll(c, st.State.Terminated.ExitCode)
	})
}

// attempt is how many times a container of which the runtime has nothing was started before.
func attempt(in *Input, name string) uint32 {
	st := LastStatus(in.Last, name)
	switch {
	case st == nil:
		return 0
	case st.State.Waiting == nil && restartedAll(in.Pod, in.Last):
		return uint32(st.RestartCount) + 1
	default:
		return uint32(st.RestartCount)
	}
}

// LastStatus is what a status says of a container, nil when nothing.
func LastStatus(st *corev1.PodStatus, name string) *corev1.ContainerStatus {
	if st == nil {
		return nil
	}
	if s := statusOf(st.InitContainerStatuses, name); s != nil {
		return s
	}
	return statusOf(st.ContainerStatuses, name)
}

// restarting fills the status of a container that was removed in order to start anew.
func (s *statuser) restarting(st, last *corev1.ContainerStatus) {
	if s.d.Phase > Running || last == nil {
		return
	}
	if last.State.Waiting == nil && restartedAll(s.in.Pod, s.last) {
		st.RestartCount, st.ContainerID, st.ImageID = last.RestartCount+1, "", ""
		st.LastTerminationState = corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{
			Reason: restartingAll, Message: restartingAllMessage, ExitCode: lostExit}}
	} else if last.State.Waiting == nil || last.State.Waiting.Reason != restartingAll {
		return
	}
	if _, waits := s.d.Waits[st.Name]; !waits {
		st.State = corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: restartingAll, Message: restartingAllMessage}}
	}
}

// restartingCondition is the condition of pods that have such a rule.
func restartingCondition(in *Input, d *Decision, st *corev1.PodStatus) (c corev1.PodCondition, has bool) {
	if !slices.ContainsFunc(lasting(in.Pod), mayRestartAll) {
		return c, false
	}
	c = corev1.PodCondition{Type: corev1.AllContainersRestarting, Status: corev1.ConditionFalse}
	switch {
	case st.Phase == corev1.PodFailed:
		c.Reason = "PodFailed"
	case d.RestartsAll:
		c.Status, c.Reason, c.Message = corev1.ConditionTrue, "RestartAllContainersStarted", "container exited with restart policy rule"
	}
	return c, true
}
