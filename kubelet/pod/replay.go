package pod

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

// Replay runs a script against Decide and Status and returns it with the answers beneath
// each command. It is the body of `kubelet plan` and of this package's script tests.
//
// A script is a sequence of blocks: a command line, lines that belong to it, a line "----",
// the answer, an empty line. Commands:
//
//	pod                          the pod, as YAML below the command
//	sandbox ID [ready] [attempt=N] [ip=A] [host]     add or change a sandbox
//	container NAME ID SANDBOX STATE [code=N] [restarts=N] [reason=R] [hash=H]
//	gone ID                      the runtime has the container or sandbox no more
//	probe ID [started] [ready] [failed=KIND]
//	memory [volumes] [torndown] [clean] [deleted] [busy=T] [idle=T] [fail=T:REASON:DELAY] [backoff=NAME:DELAY]
//	delete GRACE | remove | evict GRACE MESSAGE
//	advance DURATION             time passes
//	decide                       answers with phase, steps and waits, and takes the phase over
//	status                       answers with the status; the next one is computed from it
func Replay(script string) (string, error) {
	r := replay{now: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)}
	r.in.Memory = Memory{Busy: map[string]bool{}, Failures: map[string]Failure{}, Backoff: map[string]Backoff{}, Probes: map[string]Probe{}, Killed: map[string]time.Time{}}
	r.in.Node = NodeFacts{HostIPs: []netip.Addr{netip.MustParseAddr("192.0.2.1")}, Runtime: "containerd"}
	r.in.Pod = &corev1.Pod{}
	var out strings.Builder
	for i, block := range blocks(script) {
		answer, err := r.command(block)
		if err != nil {
			return "", fmt.Errorf("block %d (%s): %w", i+1, strings.SplitN(block, "\n", 2)[0], err)
		}
		if i > 0 {
			out.WriteString("\n")
		}
		out.WriteString(block)
		if answer != "" {
			out.WriteString("----\n" + answer)
		}
	}
	return out.String(), nil
}

// blocks are the commands without their old answers. An empty line ends a block, unless it
// stands in the YAML of a pod.
func blocks(script string) []string {
	var out []string
	var b strings.Builder
	answer := false
	for line := range strings.Lines(script) {
		line = strings.TrimRight(line, "\n")
		switch {
		case line == "":
			if b.Len() > 0 {
				out = append(out, b.String())
			}
			b.Reset()
			answer = false
		case line == "----":
			answer = true
		case !answer:
			b.WriteString(line + "\n")
		}
	}
	if b.Len() > 0 {
		out = append(out, b.String())
	}
	return out
}

type replay struct {
	in       Input
	now      time.Time
	decision Decision
}

func (r *replay) command(block string) (string, error) {
	var answer string
	for line := range strings.Lines(block) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		f := strings.Fields(line)
		if f[0] == "pod" {
			_, body, _ := strings.Cut(block, "pod\n")
			p := &corev1.Pod{}
			if err := yaml.UnmarshalStrict([]byte(body), p); err != nil {
				return "", err
			}
			r.in.Pod = p
			return "", nil
		}
		text, err := r.line(f, line)
		if err != nil {
			return "", err
		}
		answer += text
	}
	return answer, nil
}

// line carries out one command.
func (r *replay) line(f []string, line string) (string, error) {
	options := map[string]string{}
	for _, w := range f[1:] {
		k, v, _ := strings.Cut(w, "=")
		options[k] = v
	}
	_, has := options["ready"]
	number := func(key string) int {
		n, _ := strconv.Atoi(options[key])
		return n
	}
	need := func(n int) error {
		if len(f) < n+1 {
			return fmt.Errorf("%s needs %d words", f[0], n)
		}
		return nil
	}
	switch f[0] {
	case "sandbox":
		if err := need(1); err != nil {
			return "", err
		}
		sb := Sandbox{ID: f[1], Ready: has, Created: r.now, Attempt: uint32(number("attempt"))}
		_, sb.HostNetwork = options["host"]
		if ip, err := netip.ParseAddr(options["ip"]); err == nil {
			sb.IPs = []netip.Addr{ip}
		}
		r.drop(sb.ID, &sb, nil)
		r.in.Seen.Sandboxes = append([]Sandbox{sb}, r.in.Seen.Sandboxes...)
	case "container":
		if err := need(4); err != nil {
			return "", err
		}
		c := Container{Name: f[1], ID: f[2], Sandbox: f[3], Created: r.now, Started: r.now, Reason: options["reason"],
			ExitCode: int32(number("code")), RestartCount: int32(number("restarts")), Hash: options["hash"], Image: "image", ImageID: "sha256:1"}
		c.State = map[string]State{"created": Created, "running": Live, "exited": Exited, "unknown": Unknown}[f[4]]
		if c.State == Exited {
			c.Finished = r.now
		}
		r.drop(c.ID, nil, &c)
		r.in.Seen.Containers = append([]Container{c}, r.in.Seen.Containers...)
	case "gone":
		r.drop(f[1], nil, nil)
	case "probe":
		p := Probe{Ready: has, Failed: options["failed"]}
		_, p.Started = options["started"]
		r.in.Memory.Probes[f[1]] = p
	case "memory":
		return "", r.memory(options)
	case "delete":
		grace := int64(30)
		if len(f) > 1 {
			grace, _ = strconv.ParseInt(f[1], 10, 64)
		}
		at := metav1.NewTime(r.now)
		r.in.Pod.DeletionTimestamp, r.in.Pod.DeletionGracePeriodSeconds = &at, &grace
	case "remove":
		r.in.Removed = true
	case "evict":
		grace, _ := strconv.ParseInt(f[1], 10, 64)
		r.in.Memory.End = &End{Reason: "Evicted", Message: strings.Join(f[2:], " "), GracePeriodSeconds: &grace}
	case "advance":
		d, err := time.ParseDuration(f[1])
		if err != nil {
			return "", err
		}
		r.now = r.now.Add(d)
	case "decide":
		r.decide()
		text := r.decision.String()
		if a := r.decision.Again; !a.IsZero() {
			text += fmt.Sprintf("again in %v\n", a.Sub(r.now))
		}
		return text, nil
	case "status":
		r.decide()
		in := r.in
		in.Seen = Recall(in.Seen, in.Pod, in.Last)
		st := Status(in, r.decision)
		r.in.Last = st
		return summary(st), nil
	default:
		return "", fmt.Errorf("unknown command %q", line)
	}
	return "", nil
}

func (r *replay) decide() {
	r.in.Now = r.now
	in := r.in
	in.Seen = Recall(in.Seen, in.Pod, in.Last)
	r.decision = Decide(in)
	r.in.Memory.Phase = r.decision.Phase
	if r.in.Memory.Phase >= Stopping && r.in.Memory.StopAt.IsZero() {
		r.in.Memory.StopAt = r.now.Add(StopGrace(in.Pod, r.decision.End))
	}
	if r.in.Memory.End == nil {
		r.in.Memory.End = r.decision.End
	}
}

func (r *replay) memory(options map[string]string) error {
	m := &r.in.Memory
	for k, v := range options {
		parts := strings.Split(v, ":")
		switch k {
		case "volumes":
			m.Volumes = true
		case "clean":
			m.Clean = true
		case "torndown":
			m.TornDown = true
		case "deleted":
			m.Deleted = true
		case "busy":
			m.Busy[v] = true
		case "idle":
			delete(m.Busy, v)
		case "fail":
			d, err := time.ParseDuration(parts[len(parts)-1])
			if err != nil {
				return err
			}
			m.Failures[parts[0]] = Failure{Reason: parts[1], Message: "failed", Until: r.now.Add(d), Delay: d, Image: parts[1] == "ErrImagePull"}
		case "backoff":
			d, err := time.ParseDuration(parts[1])
			if err != nil {
				return err
			}
			m.Backoff[parts[0]] = Backoff{Delay: d, Since: r.now}
		default:
			return fmt.Errorf("memory: unknown %q", k)
		}
	}
	return nil
}

// drop removes what has the ID; a replacement keeps the old one's birth.
func (r *replay) drop(id string, sb *Sandbox, c *Container) {
	for i, old := range r.in.Seen.Sandboxes {
		if old.ID == id {
			r.in.Seen.Sandboxes = append(r.in.Seen.Sandboxes[:i:i], r.in.Seen.Sandboxes[i+1:]...)
			if sb != nil {
				sb.Created, sb.Attempt = old.Created, old.Attempt
			}
			break
		}
	}
	for i, old := range r.in.Seen.Containers {
		if old.ID == id {
			r.in.Seen.Containers = append(r.in.Seen.Containers[:i:i], r.in.Seen.Containers[i+1:]...)
			if c != nil {
				c.Created, c.Started, c.RestartCount, c.Hash = old.Created, old.Started, old.RestartCount, old.Hash
			}
			break
		}
	}
}

// summary is a status in a form that is easily read and compared.
func summary(st *corev1.PodStatus) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s", st.Phase)
	if st.Reason != "" {
		fmt.Fprintf(&b, " (%s: %s)", st.Reason, st.Message)
	}
	fmt.Fprintf(&b, " ip=%s\n", st.PodIP)
	for _, list := range [][]corev1.ContainerStatus{st.InitContainerStatuses, st.ContainerStatuses, st.EphemeralContainerStatuses} {
		for _, c := range list {
			fmt.Fprintf(&b, "  %s: %s", c.Name, stateText(c.State))
			if c.Ready {
				b.WriteString(" ready")
			}
			if c.Started != nil && *c.Started {
				b.WriteString(" started")
			}
			if c.RestartCount > 0 {
				fmt.Fprintf(&b, " restarts=%d", c.RestartCount)
			}
			if c.LastTerminationState.Terminated != nil {
				fmt.Fprintf(&b, " last=(%s)", stateText(c.LastTerminationState))
			}
			b.WriteString("\n")
		}
	}
	for _, c := range st.Conditions {
		fmt.Fprintf(&b, "  %s=%s", c.Type, c.Status)
		if c.Reason != "" {
			fmt.Fprintf(&b, " %s", c.Reason)
		}
		if c.Message != "" {
			fmt.Fprintf(&b, ": %s", c.Message)
		}
		b.WriteString("\n")
	}
	return b.String()
}

func stateText(s corev1.ContainerState) string {
	switch {
	case s.Running != nil:
		return "running"
	case s.Terminated != nil:
		return strings.TrimSpace(fmt.Sprintf("terminated %d %s", s.Terminated.ExitCode, s.Terminated.Reason))
	case s.Waiting != nil:
		if s.Waiting.Message != "" {
			return s.Waiting.Reason + ": " + s.Waiting.Message
		}
		return s.Waiting.Reason
	}
	return "nothing"
}
