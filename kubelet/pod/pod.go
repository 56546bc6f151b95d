// Package pod is the life of one pod on one node, as a pure state machine.
//
// Decide takes what is wanted (the pod's spec), what is seen (the containers that the
// runtime has) and what the worker remembers (running operations, failures, back-off),
// and returns the steps that bring the two closer. Status says the same as a PodStatus
// for the API server. Neither reads a clock, logs, or keeps anything.
//
//	Running ──► Stopping ──► Stopped ──► Released ──► Gone
//	 wants       containers   nothing     sandbox,     the API object is away:
//	 to run      are ended    runs        volumes,     containers, logs and
//	                                      cgroup away  directories follow
//
// A pod only moves to the right. A pod that has finished by itself (Succeeded, Failed)
// rests in Released until somebody deletes it; its dead containers stay for their logs.
//
// What is promised: a step is only asked for when nothing of the same target is under
// way; a container is only started in the newest ready sandbox; a pod is deleted at the
// API server only when the runtime shows no running container and no ready sandbox.
// Steps that were not carried out (a crash, an error) are decided again from what is seen.
//
// Debugging: `kubelet plan FILE` runs Decide on a file. Tests: testdata/*.txt are scripts.
package pod

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// Phase is where a pod stands on this node. It only grows.
type Phase uint8

const (
	Running Phase = iota
	Stopping
	Stopped
	Released
	Gone
)

func (p Phase) String() string {
	return [...]string{"Running", "Stopping", "Stopped", "Released", "Gone"}[p]
}

// State is the state of a container in the runtime.
type State uint8

const (
	Created State = iota
	Live          // running
	Exited
	Unknown
)

func (s State) String() string {
	return [...]string{"created", "running", "exited", "unknown"}[s]
}

// Container is one container that the runtime has, or had (see Recall).
type Container struct {
	ID, Name, Sandbox string
	State             State
	Created           time.Time
	Started, Finished time.Time
	ExitCode          int32
	Reason, Message   string
	RestartCount      int32
	Hash              string // as labelled at creation, see Hash
	Image             string // as the user named it
	ImageID           string // what status.imageID shows
	LogPath           string
	User              *corev1.ContainerUser
	StopSignal        string
	// Recalled marks a container that the runtime has lost and the last written status
	// remembers.
	Recalled bool
}

// Sandbox is one sandbox that the runtime has.
type Sandbox struct {
	ID      string
	Ready   bool
	Created time.Time
	Attempt uint32
	IPs     []netip.Addr
	// HostNetwork says that the sandbox uses the node's network and so has no IPs.
	HostNetwork bool
}

// Seen is what the runtime has of one pod; both lists are newest first.
type Seen struct {
	Sandboxes  []Sandbox
	Containers []Container
}

// Newest is the newest container of that name, in whatever sandbox; nil when none.
func (s Seen) Newest(name string) *Container {
	for i := range s.Containers {
		if s.Containers[i].Name == name {
			return &s.Containers[i]
		}
	}
	return nil
}

// Previous is the container before Newest.
func (s Seen) Previous(name string) *Container {
	n := 0
	for i := range s.Containers {
		if s.Containers[i].Name == name {
			if n++; n == 2 {
				return &s.Containers[i]
			}
		}
	}
	return nil
}

// In is the newest container of that name in that sandbox.
func (s Seen) In(sandbox, name string) *Container {
	for i := range s.Containers {
		if s.Containers[i].Name == name && s.Containers[i].Sandbox == sandbox {
			return &s.Containers[i]
		}
	}
	return nil
}

// Ready is the newest sandbox if containers can be started in it.
func (s Seen) Ready(hostNetwork bool) *Sandbox {
	if len(s.Sandboxes) == 0 {
		return nil
	}
	sb := &s.Sandboxes[0]
	if !sb.Ready || sb.HostNetwork != hostNetwork || (!hostNetwork && len(sb.IPs) == 0) {
		return nil
	}
	return sb
}

// Probe is what the probes say about one container ID.
type Probe struct {
	Started, Ready bool
	// Failed is "liveness" or "startup" once the container is to be restarted.
	Failed             string
	GracePeriodSeconds *int64
}

// Backoff is the delay before the next start of a container that keeps ending.
type Backoff struct {
	Delay time.Duration
	Since time.Time // when Delay was set; it is forgotten some time after
}

// Failure is why the last operation on a target did not succeed.
type Failure struct {
	Reason, Message string
	Until           time.Time     // not tried again before
	Delay           time.Duration // what Until was made of
	Image           bool          // a pull failed: shown as ImagePullBackOff while waiting
}

// End is a reason to end a pod that is not in its object.
type End struct {
	Reason, Message    string
	GracePeriodSeconds *int64
	Rejected           bool // never admitted: nothing of it was started
	Conditions         []corev1.PodCondition
}

// Memory is what the worker knows beyond the object and the runtime. All of it may be
// lost with the process: the zero value is right after a restart.
type Memory struct {
	Phase   Phase
	Busy    map[string]bool // targets (Step.Target) of operations under way
	Volumes bool            // all volumes are set up
	// TornDown: the volumes are unmounted. Clean: the cgroup is removed as well.
	TornDown, Clean bool
	Deleted         bool // the API server has confirmed the deletion (or never knew the pod)
	// Failures are kept by target; a failed Start by "start/" and the container's name.
	Failures map[string]Failure
	Backoff  map[string]Backoff // by container name
	Probes   map[string]Probe   // by container ID
	Killed   map[string]time.Time
	End      *End
	// StopAt is when the grace period is over, zero before Stopping.
	StopAt time.Time
	// Applied is the resources in force, by container ID, where they are known; those of the pod itself, where
	// it has any, under "".
	Applied map[string]corev1.ResourceRequirements
	// Pending is why the pod has not been given the resources that its object asks for; nil when it has.
	Pending *Resize
	// Unjudged: what the object asks for has not been compared with the node yet. Until it is, its generation is not observed:
	// who waits for that looks then at what the pod has.
	Unjudged bool
	// Resizing is the resize under way; nil when the containers run with what the pod has been given.
	Resizing *Resize
}

// Input is everything Decide and Status look at.
type Input struct {
	// Pod has the resources that it has been given, see Allocation.
	Pod    *corev1.Pod
	Static bool
	// Removed: the source has no such pod any more.
	Removed bool
	// Last is the status as this kubelet last computed it, or the API server's at start.
	Last   *corev1.PodStatus
	Seen   Seen
	Memory Memory
	Node   NodeFacts
	Now    time.Time
}

// NodeFacts is what Status needs of the node.
type NodeFacts struct {
	HostIPs []netip.Addr
	Runtime string // scheme of containerID, "containerd"
	// MaxBackoff bounds the crash-loop and pull delays; 0 is 300 s.
	MaxBackoff time.Duration
}

// Verb is what a step does.
type Verb uint8

const (
	SetUp           Verb = iota // mount the volumes
	CreateSandbox               // cgroup, log directory, sandbox
	Start                       // pull, create, start, postStart
	Kill                        // preStop, stop
	Change                      // give a running container, or without a name the pod itself, other resources
	RemoveContainer             // forget a dead one
	StopSandbox                 //
	RemoveSandbox               // with all containers in it
	TearDown                    // unmount the volumes
	RemoveCgroup                //
	Delete                      // delete at the API server
	Forget                      // remove directories and logs; the worker ends
)

// Step is one thing to do. Fields beyond Do are set where the verb uses them.
type Step struct {
	Do      Verb
	Name    string // container
	ID      string // container or sandbox
	Attempt uint32 // CreateSandbox: attempt; Start: restart count
	// Grace is the time a Kill has in whole, with its preStop hook.
	Grace   time.Duration
	Message string        // Kill: the event's
	Reason  string        // Kill: "" or "StartupProbe", "LivenessProbe"
	Backoff time.Duration // Start: the delay before the start after this one
	KeepLog bool          // RemoveContainer: its log stays until the pod goes
}

// Target names what the step works on; one operation per target runs at a time. All
// Starts share one: containers of a pod start one after another, in the spec's order,
// and a postStart hook holds up those behind it, as users rely on. All Changes share one
// as well, so that the pod's own limits hold throughout.
func (s Step) Target() string {
	switch s.Do {
	case SetUp, TearDown:
		return "volumes"
	case Start:
		return "start"
	case Kill:
		return "kill/" + s.ID
	case Change:
		return "resize"
	case RemoveContainer:
		return "remove/" + s.ID
	case RemoveCgroup:
		return "cgroup"
	case CreateSandbox:
		return "sandbox"
	case StopSandbox, RemoveSandbox:
		return "sandbox/" + s.ID
	default:
		return "pod"
	}
}

func (s Step) String() string {
	switch s.Do {
	case SetUp:
		return "set up volumes"
	case CreateSandbox:
		return fmt.Sprintf("create sandbox attempt=%d", s.Attempt)
	case Start:
		t := fmt.Sprintf("start %s restart=%d", s.Name, s.Attempt)
		if s.Backoff > 0 {
			t += fmt.Sprintf(" backoff=%v", s.Backoff)
		}
		return t
	case Kill:
		return fmt.Sprintf("kill %s id=%s grace=%v: %s", s.Name, s.ID, s.Grace, s.Message)
	case Change:
		if s.Name == "" {
			return "resize pod"
		}
		return fmt.Sprintf("resize %s id=%s", s.Name, s.ID)
	case RemoveContainer:
		return fmt.Sprintf("remove container %s id=%s", s.Name, s.ID)
	case StopSandbox:
		return "stop sandbox " + s.ID
	case RemoveSandbox:
		return "remove sandbox " + s.ID
	case TearDown:
		return "tear down volumes"
	case RemoveCgroup:
		return "remove cgroup"
	case Delete:
		return "delete pod"
	default:
		return "forget pod"
	}
}

// Wait is why a container that should run does not: state.waiting of its status.
type Wait struct {
	Reason, Message string
}

// Decision is what one pass wants done.
type Decision struct {
	Phase Phase
	Steps []Step
	// Waits, by container name.
	Waits map[string]Wait
	// End is the reason the pod ends, when it is not the object's deletion.
	End *End
	// RestartsAll: all containers are being removed in order to start anew.
	RestartsAll bool
	// Again is when the answer would change with no new event; zero: only by one.
	Again time.Time
}

func (d Decision) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "phase %s\n", d.Phase)
	for _, s := range d.Steps {
		fmt.Fprintf(&b, "%s\n", s)
	}
	for _, name := range sortedKeys(d.Waits) {
		fmt.Fprintf(&b, "%s waits: %s: %s\n", name, d.Waits[name].Reason, d.Waits[name].Message)
	}
	return b.String()
}

// step asks for s unless something of its target is under way or has failed a moment ago.
func (d *Decision) step(in *Input, s Step) {
	if in.Memory.Busy[s.Target()] {
		return
	}
	if f, failed := in.Memory.Failures[s.Target()]; failed && in.Now.Before(f.Until) {
		d.again(f.Until)
		return
	}
	d.Steps = append(d.Steps, s)
}

// change asks for s unless this decision changes another container already.
func (d *Decision) change(in *Input, s Step) {
	for i := range d.Steps {
		if d.Steps[i].Do == Change {
			return
		}
	}
	d.step(in, s)
}

func (d *Decision) again(t time.Time) {
	if d.Again.IsZero() || t.Before(d.Again) {
		d.Again = t
	}
}
