package pod

import (
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
)

const (
	firstBackoff = 10 * time.Second
	maxBackoff   = 300 * time.Second
	// defaultGraceSeconds is used where an object lacks the defaulted field.
	defaultGraceSeconds = 30
)

// Decide says what to do next for a pod.
//
// It is called after every change of the object, the runtime or the memory, and at
// Again. The steps of one decision may be carried out at the same time: where order
// matters, the later step is decided only once the earlier one's effect is seen.
func Decide(in Input) Decision {
	d := Decision{Phase: in.Memory.Phase, Waits: map[string]Wait{}}
	end, ending := ends(&in, &d)
	d.End = end
	if ending || d.Phase > Running {
		stop(&in, &d)
		return d
	}
	if !restartAll(&in, &d) {
		run(&in, &d)
	}
	return d
}

// ends reports whether the pod is to be stopped, and why if the object does not say it.
func ends(in *Input, d *Decision) (*End, bool) {
	p := in.Pod
	if e := in.Memory.End; e != nil {
		return e, true
	}
	if in.Removed || p.DeletionTimestamp != nil {
		return nil, true
	}
	if IsTerminal(p.Status.Phase) || (in.Last != nil && IsTerminal(in.Last.Phase)) {
		return nil, true
	}
	if s := p.Spec.ActiveDeadlineSeconds; s != nil && in.Last != nil && in.Last.StartTime != nil {
		deadline := in.Last.StartTime.Add(time.Duration(*s) * time.Second)
		if !in.Now.Before(deadline) {
			return &End{Reason: "DeadlineExceeded",
				Message: "Pod was active on the node longer than the specified deadline"}, true
		}
		d.again(deadline)
	}
	return nil, finished(in)
}

// finished reports whether every container has ended for good, so that only sidecars and
// the sandbox are left to stop.
func finished(in *Input) bool {
	p := in.Pod
	if len(askers(in)) > 0 {
		return false // those that have ended for good begin anew as well
	}
	for i := range p.Spec.InitContainers {
		c := &p.Spec.InitContainers[i]
		if initKind(c) != Init {
			continue
		}
		if n := in.Seen.Newest(c.Name); n != nil && n.State == Exited && n.ExitCode != 0 && !Restarts(p, c, Init, n.ExitCode) {
			return !anyRunning(in, Ephemeral)
		}
	}
	for i := range p.Spec.Containers {
		c := &p.Spec.Containers[i]
		n := in.Seen.Newest(c.Name)
		if n == nil || n.State != Exited || Restarts(p, c, Main, n.ExitCode) {
			return false
		}
	}
	return true
}

func anyRunning(in *Input, kind Kind) bool {
	for i := range in.Seen.Containers {
		c := &in.Seen.Containers[i]
		if c.State != Live {
			continue
		}
		if _, k := Find(in.Pod, c.Name); k == kind {
			return true
		}
	}
	return false
}

// run decides for a pod that wants to run: volumes, sandbox, init containers, containers.
func run(in *Input, d *Decision) {
	p := in.Pod
	if !in.Memory.Volumes {
		d.step(in, Step{Do: SetUp})
		// The sandbox is made at the same time, unless volumes are a matter of waiting: a
		// pod that cannot start should hold no address.
		if _, failed := in.Memory.Failures["volumes"]; failed {
			return
		}
	}
	sb := in.Seen.Ready(p.Spec.HostNetwork)
	if sb == nil {
		replaceSandbox(in, d)
		return
	}
	prune(in, d, sb.ID)
	if !in.Memory.Volumes {
		return
	}
	// Containers that run in an older sandbox have lost their network.
	for i := range in.Seen.Containers {
		if c := &in.Seen.Containers[i]; c.State == Live && c.Sandbox != sb.ID {
			kill(in, d, c, graceOf(p), "Stopping container "+c.Name, "")
		}
	}
	r := runner{in: in, d: d, sandbox: sb.ID}
	for i := range p.Spec.EphemeralContainers {
		c := (*corev1.Container)(&p.Spec.EphemeralContainers[i].EphemeralContainerCommon)
		if in.Seen.Newest(c.Name) == nil {
			r.start(c, nil)
		}
	}
	if !r.inits() {
		return
	}
	for i := range p.Spec.Containers {
		r.keep(&p.Spec.Containers[i], Main)
	}
	// The pod's own limits come last: those of its containers lie within them.
	if applied, known := in.Memory.Applied[""]; known && p.Spec.Resources != nil && Unlike(applied, *p.Spec.Resources) {
		d.change(in, Step{Do: Change})
	}
}

// replaceSandbox stops what is left of the old sandbox and asks for a new one.
func replaceSandbox(in *Input, d *Decision) {
	left := false
	for i := range in.Seen.Containers {
		c := &in.Seen.Containers[i]
		if c.State == Live {
			left = true
			kill(in, d, c, graceOf(in.Pod), "Stopping container "+c.Name, "")
		}
	}
	if left || in.Memory.Busy["start"] {
		return
	}
	attempt := uint32(0)
	for _, sb := range in.Seen.Sandboxes {
		attempt = max(attempt, sb.Attempt+1)
		if sb.Ready {
			left = true
			d.step(in, Step{Do: StopSandbox, ID: sb.ID})
		}
	}
	if !left {
		d.step(in, Step{Do: CreateSandbox, Attempt: attempt})
	}
}

// prune removes what nobody asks for any more: all but the two newest containers of a
// name, and sandboxes of the past with no container left in them.
func prune(in *Input, d *Decision, current string) {
	count := map[string]int{}
	used := map[string]bool{current: true}
	for i := range in.Seen.Containers {
		c := &in.Seen.Containers[i]
		count[c.Name]++
		switch {
		case c.Recalled:
		case count[c.Name] > 2 && (c.State == Exited || c.State == Created):
			d.step(in, Step{Do: RemoveContainer, ID: c.ID, Name: c.Name})
			used[c.Sandbox] = true
		default:
			used[c.Sandbox] = true
		}
	}
	for _, sb := range in.Seen.Sandboxes {
		if !used[sb.ID] {
			if sb.Ready {
				d.step(in, Step{Do: StopSandbox, ID: sb.ID})
			} else {
				d.step(in, Step{Do: RemoveSandbox, ID: sb.ID})
			}
		}
	}
}

// runner decides on containers in a ready sandbox. taken is set by the first start: one
// pass starts one container.
type runner struct {
	in      *Input
	d       *Decision
	sandbox string
	taken   bool
}

// inits takes the init containers a step further and reports whether the ordinary ones
// may run.
func (r *runner) inits() bool {
	p := r.in.Pod
	initialized := false
	for i := range p.Spec.Containers {
		if r.in.Seen.In(r.sandbox, p.Spec.Containers[i].Name) != nil {
			initialized = true
		}
	}
	for i := range p.Spec.InitContainers {
		c := &p.Spec.InitContainers[i]
		kind := initKind(c)
		n := r.in.Seen.In(r.sandbox, c.Name)
		if initialized {
			if kind == Sidecar {
				r.keep(c, Sidecar)
			}
			continue
		}
		if kind == Sidecar {
			r.keep(c, Sidecar)
			if n == nil || n.State != Live || !r.in.Memory.Probes[n.ID].Started || r.in.Memory.Busy["start"] {
				return false
			}
			continue
		}
		switch {
		case n == nil:
			r.start(c, r.in.Seen.Newest(c.Name))
			return false
		case n.State == Exited && n.ExitCode == 0:
			continue
		default:
			r.keep(c, Init)
			return false
		}
	}
	return true
}

// keep sees to one container: running it stays, ended it is started again if its policy
// says so.
func (r *runner) keep(c *corev1.Container, kind Kind) {
	in, p := r.in, r.in.Pod
	n := in.Seen.Newest(c.Name)
	if n == nil {
		r.start(c, nil)
		return
	}
	switch n.State {
	case Live:
		r.check(c, n, kind)
	case Created:
		// Nobody is starting it any more: the kubelet or the runtime went away between
		// the two calls.
		if !in.Memory.Busy["start"] {
			r.d.step(in, Step{Do: RemoveContainer, ID: n.ID, Name: n.Name})
		}
	case Unknown:
		kill(in, r.d, n, graceOf(p), fmt.Sprintf("Container %s is in unknown state, try killing it before restart", c.Name), "")
	case Exited:
		if Restarts(p, c, kind, n.ExitCode) {
			r.start(c, n)
		}
	}
}

// check decides whether a running container must go.
func (r *runner) check(c *corev1.Container, n *Container, kind Kind) {
	in, p := r.in, r.in.Pod
	probe := in.Memory.Probes[n.ID]
	switch {
	case n.Sandbox != r.sandbox: // killed by run
	case n.Hash != "" && n.Hash != Hash(c):
		kill(in, r.d, n, graceOf(p), fmt.Sprintf("Container %s definition changed", c.Name), "")
	case probe.Failed != "":
		grace := graceOf(p)
		if probe.GracePeriodSeconds != nil {
			grace = seconds(*probe.GracePeriodSeconds)
		}
		message := fmt.Sprintf("Container %s failed %s probe", c.Name, probe.Failed)
		if Restarts(p, c, kind, 137) {
			message += ", will be restarted"
		}
		kill(in, r.d, n, grace, message, probe.Failed)
	default:
		applied, known := in.Memory.Applied[n.ID]
		if !known || !Unlike(applied, c.Resources) {
			return
		}
		if resizeRestarts(c, applied) {
			kill(in, r.d, n, graceOf(p), fmt.Sprintf("Container %s resize requires restart", c.Name), "")
			return
		}
		r.d.change(in, Step{Do: Change, ID: n.ID, Name: c.Name})
	}
}

func resizeRestarts(c *corev1.Container, applied corev1.ResourceRequirements) bool {
	for _, rule := range c.ResizePolicy {
		if rule.RestartPolicy != corev1.RestartContainer {
			continue
		}
		for _, pair := range [][2]corev1.ResourceList{{applied.Requests, c.Resources.Requests}, {applied.Limits, c.Resources.Limits}} {
			was, is := pair[0][rule.ResourceName], pair[1][rule.ResourceName]
			if was.Cmp(is) != 0 {
				return true
			}
		}
	}
	return false
}

// start asks for a start of the container, or says what it waits for. last is the newest
// container of that name, nil before the first.
func (r *runner) start(c *corev1.Container, last *Container) {
	in := r.in
	step := Step{Do: Start, Name: c.Name}
	switch {
	case last != nil:
		step.Attempt = uint32(last.RestartCount) + 1
		if last.State == Exited && !r.backoff(c, last, &step) {
			return
		}
	default:
		step.Attempt = attempt(in, c.Name)
		if step.Attempt > 0 && mayRestartAll(c) {
			_, step.Backoff = restartDelay(in, c.Name, in.Now)
		}
	}
	if f, failed := in.Memory.Failures["start/"+c.Name]; failed {
		r.d.Waits[c.Name] = f.wait(in.Now, c.Image)
		if in.Now.Before(f.Until) {
			r.d.again(f.Until)
			if flip := f.Until.Add(failureShown - f.Delay); f.Image && in.Now.Before(flip) {
				r.d.again(flip)
			}
			return
		}
	}
	if !r.taken {
		r.taken = true
		r.d.step(in, step)
	}
}

// backoff reports whether the container may be started now, after last has ended, and
// sets the delay that follows.
func (r *runner) backoff(c *corev1.Container, last *Container, step *Step) bool {
	in := r.in
	until, next := restartDelay(in, c.Name, last.Finished)
	if in.Now.Before(until) {
		r.d.Waits[c.Name] = Wait{Reason: "CrashLoopBackOff", Message: fmt.Sprintf(
			"back-off %s restarting failed container=%s pod=%s", in.Memory.Backoff[c.Name].Delay, c.Name, Full(in.Pod))}
		r.d.again(until)
		return false
	}
	step.Backoff = next
	return true
}

// restartDelay is when a container that has ended may start again, and the delay before the start after that.
//
// Source: upstream's flowcontrol.Backoff as its kubelet uses it: the first restart is
// immediate, the delay then doubles from 10 s to 300 s counted from the end of the
// container, and is forgotten when it was not renewed for twice the maximum.
func restartDelay(in *Input, name string, finished time.Time) (until time.Time, next time.Duration) {
	limit := maxBackoff
	if m := in.Node.MaxBackoff; m > 0 {
		limit = m
	}
	b, known := in.Memory.Backoff[name]
	if !known || finished.Sub(b.Since) > 2*limit {
		return time.Time{}, min(firstBackoff, limit)
	}
	return finished.Add(b.Delay), min(2*b.Delay, limit)
}

// wait is how a failed start shows in the container's status.
func (f Failure) wait(now time.Time, image string) Wait {
	if f.Image && now.Before(f.Until) && f.Reason != "ErrImageNeverPull" && f.Reason != "InvalidImageName" {
		if !now.Before(f.Until.Add(failureShown - f.Delay)) {
			return Wait{Reason: "ImagePullBackOff",
				Message: fmt.Sprintf("Back-off pulling image %q: %s: %s", image, f.Reason, f.Message)}
		}
	}
	return Wait{Reason: f.Reason, Message: f.Message}
}

// failureShown is how long a fresh pull failure is shown as such (ErrImagePull) before it
// becomes ImagePullBackOff.
const failureShown = 2 * time.Second

func kill(in *Input, d *Decision, c *Container, grace time.Duration, message, reason string) {
	d.step(in, Step{Do: Kill, ID: c.ID, Name: c.Name, Grace: grace, Message: message, Reason: reason})
}

func graceOf(p *corev1.Pod) time.Duration {
	if s := p.Spec.TerminationGracePeriodSeconds; s != nil {
		return seconds(*s)
	}
	return seconds(defaultGraceSeconds)
}

func seconds(s int64) time.Duration { return time.Duration(s) * time.Second }
