package pod

import (
	"cmp"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	lostReason  = "ContainerStatusUnknown"
	lostMessage = "The container could not be located when the pod was terminated"
	lostExit    = 137
)

// Recall adds to what is seen the containers that the last written status says existed
// and the runtime no longer has: the machine was restarted, or somebody removed them.
// Those that ran are taken to have failed with exit code 137, as upstream does.
func Recall(seen Seen, p *corev1.Pod, last *corev1.PodStatus) Seen {
	if last == nil || restartedAll(p, last) {
		return seen
	}
	var lost []Container
	for _, list := range [][]corev1.ContainerStatus{last.InitContainerStatuses, last.ContainerStatuses, last.EphemeralContainerStatuses} {
		for i := range list {
			st := &list[i]
			if seen.Newest(st.Name) != nil {
				continue
			}
			c := Container{Name: st.Name, State: Exited, RestartCount: st.RestartCount, Recalled: true,
				Image: st.Image, ImageID: st.ImageID, ID: bareID(st.ContainerID)}
			t := st.State.Terminated
			switch {
			case t != nil:
			case st.State.Running != nil:
				t = &corev1.ContainerStateTerminated{ExitCode: lostExit, Reason: lostReason, Message: lostMessage,
					StartedAt: st.State.Running.StartedAt}
			case st.LastTerminationState.Terminated != nil && st.ContainerID != "":
				t = st.LastTerminationState.Terminated
			default:
				continue
			}
			c.ExitCode, c.Reason, c.Message = t.ExitCode, t.Reason, t.Message
			c.Started, c.Finished = t.StartedAt.Time, t.FinishedAt.Time
			lost = append(lost, c)
		}
	}
	if len(lost) == 0 {
		return seen
	}
	seen.Containers = append(slices.Clone(seen.Containers), lost...)
	return seen
}

func bareID(id string) string {
	if _, after, ok := strings.Cut(id, "://"); ok {
		return after
	}
	return id
}

// Status is the pod's status as the API server is to be told.
//
// Fields and conditions that others own (readiness gates, nominatedNodeName, ...) are
// taken over from the object. Times are the runtime's; transition times are now where a
// condition's status differs from the last.
//
// Source: API reference, PodStatus; the phase and condition rules are those that upstream's
// kubelet shows.
func Status(in Input, d Decision) *corev1.PodStatus {
	p := in.Pod
	last := in.Last
	if last == nil {
		last = &corev1.PodStatus{}
	}
	now := metav1.NewTime(in.Now)
	st := &corev1.PodStatus{
		ObservedGeneration:          p.Generation,
		QOSClass:                    QOS(p),
		StartTime:                   last.StartTime,
		Reason:                      last.Reason,
		Message:                     last.Message,
		NominatedNodeName:           p.Status.NominatedNodeName,
		ResourceClaimStatuses:       p.Status.ResourceClaimStatuses,
		ExtendedResourceClaimStatus: p.Status.ExtendedResourceClaimStatus,
		Resize:                      p.Status.Resize,
	}
	if p.Status.QOSClass != "" {
		st.QOSClass = p.Status.QOSClass
	}
	if st.StartTime == nil {
		st.StartTime = &metav1.Time{Time: now.Rfc3339Copy().Time}
	}
	if e := in.Memory.End; e != nil && e.Rejected {
		// Nothing of it was ever started: there is nothing to say about containers.
		st.Phase, st.Reason, st.Message = corev1.PodFailed, e.Reason, e.Message
		setAddresses(&in, last, st)
		setConditions(&in, &d, last, st)
		return st
	}
	s := statuser{in: &in, d: &d, last: last}
	for i := range p.Spec.InitContainers {
		c := &p.Spec.InitContainers[i]
		st.InitContainerStatuses = append(st.InitContainerStatuses, s.container(c, initKind(c), statusOf(last.InitContainerStatuses, c.Name)))
	}
	for i := range p.Spec.Containers {
		c := &p.Spec.Containers[i]
		st.ContainerStatuses = append(st.ContainerStatuses, s.container(c, Main, statusOf(last.ContainerStatuses, c.Name)))
	}
	for i := range p.Spec.EphemeralContainers {
		c := (*corev1.Container)(&p.Spec.EphemeralContainers[i].EphemeralContainerCommon)
		st.EphemeralContainerStatuses = append(st.EphemeralContainerStatuses, s.container(c, Ephemeral, statusOf(last.EphemeralContainerStatuses, c.Name)))
	}
	byName := func(a, b corev1.ContainerStatus) int { return cmp.Compare(a.Name, b.Name) }
	slices.SortFunc(st.ContainerStatuses, byName)
	slices.SortFunc(st.EphemeralContainerStatuses, byName)

	setPhase(&in, &d, last, st)
	if in.Memory.Unjudged && !IsTerminal(st.Phase) {
		st.ObservedGeneration = last.ObservedGeneration
	}
	setResources(&in, st)
	setAddresses(&in, last, st)
	setConditions(&in, &d, last, st)
	return st
}

type statuser struct {
	in   *Input
	d    *Decision
	last *corev1.PodStatus
}

// container is the status of one container.
func (s *statuser) container(c *corev1.Container, kind Kind, last *corev1.ContainerStatus) corev1.ContainerStatus {
	in := s.in
	st := corev1.ContainerStatus{Name: c.Name, Image: c.Image}
	if last != nil {
		st.LastTerminationState = last.LastTerminationState
		st.RestartCount = last.RestartCount
	}
	for _, m := range c.VolumeMounts {
		v := corev1.VolumeMountStatus{Name: m.Name, MountPath: m.MountPath, ReadOnly: m.ReadOnly}
		if m.ReadOnly {
			off := corev1.RecursiveReadOnlyDisabled
			v.RecursiveReadOnly = &off
		}
		st.VolumeMounts = append(st.VolumeMounts, v)
	}
	n := in.Seen.Newest(c.Name)
	if n == nil {
		s.waiting(c, kind, &st)
		s.gone(&st, last)
		s.restarting(&st, last)
		s.readiness(c, kind, nil, &st)
		return st
	}
	st.RestartCount = n.RestartCount
	if n.Image != "" {
		st.Image = n.Image
	}
	st.ImageID = n.ImageID
	if n.ID != "" {
		st.ContainerID = in.Node.Runtime + "://" + n.ID
	}
	st.User = n.User
	if kind != Ephemeral {
		st.Resources = c.Resources.DeepCopy()
		if r, known := in.Memory.Applied[n.ID]; known && n.State == Live {
			st.Resources = r.DeepCopy()
		}
		st.AllocatedResources = c.Resources.Requests.DeepCopy()
	}
	if n.StopSignal != "" {
		sig := corev1.Signal(n.StopSignal)
		st.StopSignal = &sig
	}
	switch n.State {
	case Live:
		st.State.Running = &corev1.ContainerStateRunning{StartedAt: metav1.NewTime(n.Started)}
	case Exited:
		st.State.Terminated = s.terminated(n)
	case Unknown:
		if last != nil && last.State.Running != nil {
			st.State.Terminated = &corev1.ContainerStateTerminated{Reason: lostReason, Message: lostMessage, ExitCode: lostExit}
			break
		}
		st.State.Waiting = &corev1.ContainerStateWaiting{}
	default:
		s.waiting(c, kind, &st)
	}
	if prev := in.Seen.Previous(c.Name); prev != nil && prev.State == Exited {
		st.LastTerminationState = corev1.ContainerState{Terminated: s.terminated(prev)}
	} else if last != nil && last.State.Terminated != nil && bareID(last.ContainerID) != n.ID {
		st.LastTerminationState = last.State
	}
	if n.State == Exited && !(kind == Init && n.ExitCode == 0) && s.d.Phase == Running && Restarts(in.Pod, c, kind, n.ExitCode) {
		if w, waits := s.d.Waits[c.Name]; waits {
			st.LastTerminationState = st.State
			st.State = corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: w.Reason, Message: w.Message}}
		}
	}
	s.readiness(c, kind, n, &st)
	return st
}

func b2i(b bool) int32 {
	if b {
		return 1
	}
	return 0
}

func (s *statuser) terminated(n *Container) *corev1.ContainerStateTerminated {
	t := &corev1.ContainerStateTerminated{
		ExitCode: n.ExitCode, Reason: n.Reason, Message: n.Message,
		StartedAt: metav1.NewTime(n.Started), FinishedAt: metav1.NewTime(n.Finished),
	}
	if n.ID != "" {
		t.ContainerID = s.in.Node.Runtime + "://" + n.ID
	}
	return t
}

func (s *statuser) waiting(c *corev1.Container, kind Kind, st *corev1.ContainerStatus) {
	reason := "ContainerCreating"
	if len(s.in.Pod.Spec.InitContainers) > 0 && kind != Ephemeral {
		reason = "PodInitializing"
	}
	st.State.Waiting = &corev1.ContainerStateWaiting{Reason: reason}
	if w, waits := s.d.Waits[c.Name]; waits {
		st.State.Waiting = &corev1.ContainerStateWaiting{Reason: w.Reason, Message: w.Message}
	}
}

// gone settles a container of a pod that has ended and of which the runtime has nothing:
// it keeps a termination it had, and one that had been there is called lost.
func (s *statuser) gone(st *corev1.ContainerStatus, last *corev1.ContainerStatus) {
	if last != nil && last.State.Terminated != nil {
		st.State = last.State
		st.ContainerID, st.ImageID = last.ContainerID, last.ImageID
		return
	}
	if s.d.Phase < Released {
		return
	}
	if initialized := condition(s.last.Conditions, corev1.PodInitialized); initialized == nil || initialized.Status != corev1.ConditionTrue {
		return
	}
	st.State = corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{
		Reason: lostReason, Message: lostMessage, ExitCode: lostExit}}
}

// readiness fills ready and started.
func (s *statuser) readiness(c *corev1.Container, kind Kind, n *Container, st *corev1.ContainerStatus) {
	if kind == Ephemeral {
		return
	}
	started := false
	switch {
	case kind == Init:
		st.Ready = st.State.Terminated != nil && st.State.Terminated.ExitCode == 0
		started = st.State.Running != nil
	case st.State.Running != nil:
		probe := s.in.Memory.Probes[n.ID]
		// Before postStart has returned a container is neither started nor ready.
		hooked := c.Lifecycle == nil || c.Lifecycle.PostStart == nil || !s.in.Memory.Busy["start/"+c.Name]
		started = probe.Started && hooked
		st.Ready = probe.Ready && hooked
	}
	st.Started = &started
}

// setPhase fills phase, reason and message.
func setPhase(in *Input, d *Decision, last, st *corev1.PodStatus) {
	st.Phase = phase(in, d, st)
	terminal := func(phase corev1.PodPhase) {
		st.Phase = phase
	}
	if d.Phase >= Released && !IsTerminal(st.Phase) && !in.Static {
		terminal(corev1.PodFailed)
	}
	// What may still run has not ended: controllers replace a pod when they see that it has.
	if e := d.End; e != nil && d.Phase >= Stopped {
		terminal(corev1.PodFailed)
		st.Reason, st.Message = e.Reason, e.Message
	}
	for _, old := range []corev1.PodPhase{in.Pod.Status.Phase, last.Phase} {
		if IsTerminal(old) {
			terminal(old)
			break
		}
	}
	if st.Phase != last.Phase && d.End == nil {
		st.Reason, st.Message = "", ""
		if st.Phase == in.Pod.Status.Phase {
			st.Reason, st.Message = in.Pod.Status.Reason, in.Pod.Status.Message
		}
	}
}

// phase counts containers. Source: Kubernetes concepts, "Pod phase"; the treatment of
// sidecars is KEP-753's.
func phase(in *Input, d *Decision, st *corev1.PodStatus) corev1.PodPhase {
	p := in.Pod
	pendingInit, pendingSidecar := false, false
	running, waiting, stopped, final, succeeded := 0, 0, 0, 0, 0
	begun := false
	for i := range st.ContainerStatuses {
		s := &st.ContainerStatuses[i].State
		begun = begun || s.Running != nil || s.Terminated != nil || st.ContainerStatuses[i].LastTerminationState.Terminated != nil
	}
	for i := range p.Spec.InitContainers {
		c := &p.Spec.InitContainers[i]
		s := statusOf(st.InitContainerStatuses, c.Name)
		t := s.State.Terminated
		if t == nil && s.State.Waiting != nil {
			t = s.LastTerminationState.Terminated
		}
		if initKind(c) == Sidecar {
			switch {
			case s.State.Running != nil:
				running++
				pendingSidecar = pendingSidecar || !*s.Started
			case t == nil:
				pendingSidecar = true
				waiting++
			}
			continue
		}
		switch {
		case t == nil:
			pendingInit = true
		case t.ExitCode != 0 && t.Reason != restartingAll && !d.RestartsAll && !Restarts(p, c, Init, t.ExitCode):
			return corev1.PodFailed
		case t.ExitCode != 0 && !begun:
			pendingInit = true
		}
	}
	for i := range p.Spec.Containers {
		c := &p.Spec.Containers[i]
		s := statusOf(st.ContainerStatuses, c.Name)
		t := s.State.Terminated
		if t == nil && s.State.Waiting != nil {
			t = s.LastTerminationState.Terminated
		}
		switch {
		case s.State.Running != nil:
			running++
		case t != nil:
			stopped++
			if t.Reason != restartingAll && !d.RestartsAll && !Restarts(p, c, Main, t.ExitCode) {
				final++
			}
			if t.ExitCode == 0 && s.State.Terminated != nil {
				succeeded++
			}
		default:
			waiting++
		}
	}
	switch {
	case pendingInit && !begun, pendingSidecar && !begun, waiting > 0:
		return corev1.PodPending
	case running > 0:
		return corev1.PodRunning
	case stopped == 0:
		return corev1.PodPending
	case d.Phase >= Released && !in.Static, stopped == final:
		if stopped == succeeded {
			return corev1.PodSucceeded
		}
		return corev1.PodFailed
	default:
		return corev1.PodRunning
	}
}

// setAddresses fills hostIP(s) and podIP(s). A pod that has ended keeps its addresses.
func setAddresses(in *Input, last, st *corev1.PodStatus) {
	for i, ip := range in.Node.HostIPs {
		if i == 0 {
			st.HostIP = ip.String()
		}
		st.HostIPs = append(st.HostIPs, corev1.HostIP{IP: ip.String()})
	}
	if st.HostIP == "" {
		st.HostIP, st.HostIPs = last.HostIP, last.HostIPs
	}
	switch {
	case in.Memory.End != nil && in.Memory.End.Rejected:
		return
	case in.Pod.Spec.HostNetwork:
		if st.PodIP = last.PodIP; st.PodIP != "" {
			st.PodIPs = slices.Clone(last.PodIPs)
			return
		}
		st.PodIP = st.HostIP
		for _, ip := range st.HostIPs {
			st.PodIPs = append(st.PodIPs, corev1.PodIP{IP: ip.IP})
		}
		return
	case len(in.Seen.Sandboxes) > 0 && len(in.Seen.Sandboxes[0].IPs) > 0:
		st.PodIP, st.PodIPs = PodIPs(in.Seen.Sandboxes[0], in.Node)
	case d0(in):
		st.PodIP, st.PodIPs = last.PodIP, last.PodIPs
	}
}

// d0 reports whether old addresses still say something: the sandbox is not being replaced.
func d0(in *Input) bool { return in.Memory.Phase > Running || len(in.Seen.Sandboxes) > 0 }

// PodIPs are the sandbox's addresses, the node's primary family first.
func PodIPs(sb Sandbox, node NodeFacts) (string, []corev1.PodIP) {
	ips := slices.Clone(sb.IPs)
	if len(node.HostIPs) > 0 {
		want4 := node.HostIPs[0].Is4()
		slices.SortStableFunc(ips, func(a, b netipAddr) int {
			return cmp.Compare(b2i(a.Is4() != want4), b2i(b.Is4() != want4))
		})
	}
	var out []corev1.PodIP
	for _, ip := range ips {
		out = append(out, corev1.PodIP{IP: ip.String()})
	}
	if len(out) == 0 {
		return "", nil
	}
	return out[0].IP, out
}
