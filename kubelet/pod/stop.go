package pod

import (
	"time"

	corev1 "k8s.io/api/core/v1"
)

// minGrace is the shortest time between SIGTERM and SIGKILL, also after a deletion
// without grace. Source: upstream's kubelet gives every container two seconds.
const minGrace = 2 * time.Second

// StopGrace is how long the pod's containers may take to end, all together.
func StopGrace(p *corev1.Pod, end *End) time.Duration {
	grace := graceOf(p)
	switch {
	case end != nil && end.GracePeriodSeconds != nil:
		grace = seconds(*end.GracePeriodSeconds)
	case p.DeletionGracePeriodSeconds != nil:
		grace = seconds(*p.DeletionGracePeriodSeconds)
	}
	return max(grace, time.Second)
}

// stop decides for a pod that ends: containers, then sidecars in reverse order, then the
// sandbox and at the same time the volumes, which nothing uses any more, then the cgroup,
// then the object.
func stop(in *Input, d *Decision) {
	d.Phase = max(d.Phase, Stopping)
	if running := stopContainers(in, d); running {
		return
	}
	settingUp := in.Memory.Busy["volumes"] && in.Memory.Phase < Stopped // later it is the teardown
	if busy(in, "kill/") || in.Memory.Busy["start"] || in.Memory.Busy["sandbox"] || settingUp {
		return
	}
	d.Phase = max(d.Phase, Stopped)
	left := false
	if !in.Memory.TornDown && !in.Memory.Clean {
		left = true
		d.step(in, Step{Do: TearDown})
	}
	for _, sb := range in.Seen.Sandboxes {
		if sb.Ready {
			left = true
			d.step(in, Step{Do: StopSandbox, ID: sb.ID})
		}
	}
	if left || busy(in, "sandbox/") {
		return
	}
	if !in.Memory.Clean {
		d.step(in, Step{Do: RemoveCgroup})
		return
	}
	d.Phase = max(d.Phase, Released)
	release(in, d)
}

// release ends a pod of which only dead containers are left.
func release(in *Input, d *Decision) {
	if !in.Removed && !in.Memory.Deleted {
		if in.Pod.DeletionTimestamp != nil && !in.Static {
			d.step(in, Step{Do: Delete})
		}
		return
	}
	d.Phase = Gone
	left := false
	for i := range in.Seen.Sandboxes {
		id := in.Seen.Sandboxes[i].ID
		left = true
		d.step(in, Step{Do: RemoveSandbox, ID: id})
	}
	if left {
		return
	}
	for i := range in.Seen.Containers {
		if c := &in.Seen.Containers[i]; !c.Recalled {
			left = true
			d.step(in, Step{Do: RemoveContainer, ID: c.ID, Name: c.Name})
		}
	}
	// A late event of the watch must still find this worker, or it would make a new one.
	if !left && in.Removed {
		d.step(in, Step{Do: Forget})
	}
}

// stopContainers asks for the end of what runs and reports whether something does.
//
// Source: KEP-753: sidecars end after the ordinary containers, in reverse order of the
// spec, within the same grace period.
func stopContainers(in *Input, d *Decision) bool {
	grace := StopGrace(in.Pod, d.End)
	stopAt := in.Memory.StopAt
	if stopAt.IsZero() {
		stopAt = in.Now.Add(grace)
	}
	left := max(stopAt.Sub(in.Now), 0)
	running, mains := false, false
	var last *Container
	for i := range in.Seen.Containers {
		c := &in.Seen.Containers[i]
		if c.State == Exited || c.State == Created {
			continue
		}
		running = true
		spec, kind := Find(in.Pod, c.Name)
		if spec != nil && kind == Sidecar {
			if last == nil || initIndex(in.Pod, c.Name) > initIndex(in.Pod, last.Name) {
				last = c
			}
			continue
		}
		mains = true
		end(in, d, c, left, stopAt)
	}
	if last != nil && !mains {
		end(in, d, last, left, stopAt)
	}
	return running
}

// end asks for a kill unless one that ends early enough is under way.
func end(in *Input, d *Decision, c *Container, left time.Duration, stopAt time.Time) {
	s := Step{Do: Kill, ID: c.ID, Name: c.Name, Grace: left, Message: "Stopping container " + c.Name}
	if by, killed := in.Memory.Killed[c.ID]; killed && in.Memory.Busy[s.Target()] {
		if stopAt.Add(minGrace).Before(by) {
			d.Steps = append(d.Steps, s) // the grace period was shortened: again, sooner
		}
		return
	}
	d.step(in, s)
}

func initIndex(p *corev1.Pod, name string) int {
	for i := range p.Spec.InitContainers {
		if p.Spec.InitContainers[i].Name == name {
			return i
		}
	}
	return -1
}

func busy(in *Input, prefix string) bool {
	for t, b := range in.Memory.Busy {
		if b && len(t) > len(prefix) && t[:len(prefix)] == prefix {
			return true
		}
	}
	return false
}
