package cri

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/keelson/keelson/kubelet/criconfig"
	"github.com/keelson/keelson/kubelet/pod"
)

// callTimeout bounds the calls that only read.
const callTimeout = 10 * time.Second

// Observer turns what the runtime answers into pod.Seen.
//
// A container's detailed status is asked for only when its state has changed since the
// last look: what it says (times, exit code, image) does not change in between.
type Observer struct {
	client *Client
	// message finds the termination message of a container that has just been seen to
	// have ended; called once for each.
	message func(*cri.ContainerStatus) string

	mu    sync.Mutex
	known map[types.UID]*memory // guarded by mu
}

type memory struct {
	containers map[string]pod.Container
	sandboxes  map[string]pod.Sandbox
}

// NewObserver starts nothing.
func NewObserver(c *Client, message func(*cri.ContainerStatus) string) *Observer {
	return &Observer{client: c, message: message, known: map[types.UID]*memory{}}
}

// Forget drops what is remembered of a pod.
func (o *Observer) Forget(uid types.UID) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.known, uid)
}

// Pod asks the runtime about one pod. Calls for one pod must not overlap.
func (o *Observer) Pod(ctx context.Context, uid types.UID) (pod.Seen, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	selector := map[string]string{criconfig.LabelPodUID: string(uid)}
	sandboxes, err := o.client.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{Filter: &cri.PodSandboxFilter{LabelSelector: selector}})
	if err != nil {
		return pod.Seen{}, fmt.Errorf("list sandboxes of pod %s: %w", uid, err)
	}
	containers, err := o.client.ListContainers(ctx, &cri.ListContainersRequest{Filter: &cri.ContainerFilter{LabelSelector: selector}})
	if err != nil {
		return pod.Seen{}, fmt.Errorf("list containers of pod %s: %w", uid, err)
	}
	o.mu.Lock()
	m := o.known[uid]
	if m == nil {
		m = &memory{}
		o.known[uid] = m
	}
	o.mu.Unlock()

	next := memory{containers: map[string]pod.Container{}, sandboxes: map[string]pod.Sandbox{}}
	var seen pod.Seen
	for _, s := range sandboxes.Items {
		ready := s.State == cri.PodSandboxState_SANDBOX_READY
		old, known := m.sandboxes[s.Id]
		if !known || old.Ready != ready {
			if old, err = o.sandbox(ctx, s, old); err != nil {
				return pod.Seen{}, err
			}
		}
		next.sandboxes[s.Id] = old
		seen.Sandboxes = append(seen.Sandboxes, old)
	}
	for _, c := range containers.Containers {
		old, known := m.containers[c.Id]
		if !known || old.State != stateOf(c.State) {
			old, known, err = o.container(ctx, c.Id, c.PodSandboxId)
			if err != nil {
				return pod.Seen{}, err
			}
			if !known {
				continue // removed since the listing
			}
		}
		next.containers[c.Id] = old
		seen.Containers = append(seen.Containers, old)
	}
	o.mu.Lock()
	*m = next
	o.mu.Unlock()
	slices.SortFunc(seen.Sandboxes, func(a, b pod.Sandbox) int {
		return cmp.Or(b.Created.Compare(a.Created), cmp.Compare(b.Attempt, a.Attempt))
	})
	slices.SortFunc(seen.Containers, func(a, b pod.Container) int {
		return cmp.Or(b.Created.Compare(a.Created), cmp.Compare(b.RestartCount, a.RestartCount))
	})
	return seen, nil
}

func (o *Observer) sandbox(ctx context.Context, s *cri.PodSandbox, old pod.Sandbox) (pod.Sandbox, error) {
	out := pod.Sandbox{ID: s.Id, Created: time.Unix(0, s.CreatedAt), Attempt: s.GetMetadata().GetAttempt(),
		Ready: s.State == cri.PodSandboxState_SANDBOX_READY, IPs: old.IPs, HostNetwork: old.HostNetwork}
	answer, err := o.client.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: s.Id})
	if IsNotFound(err) {
		out.Ready = false
		return out, nil
	}
	if err != nil {
		return out, fmt.Errorf("status of sandbox %s: %w", s.Id, err)
	}
	st := answer.Status
	out.Ready = st.State == cri.PodSandboxState_SANDBOX_READY
	out.HostNetwork = st.GetLinux().GetNamespaces().GetOptions().GetNetwork() == cri.NamespaceMode_NODE
	if ips := addresses(st); len(ips) > 0 {
		out.IPs = ips
	}
	return out, nil
}

func addresses(st *cri.PodSandboxStatus) []netip.Addr {
	var out []netip.Addr
	add := func(text string) {
		if ip, err := netip.ParseAddr(text); err == nil {
			out = append(out, ip)
		}
	}
	add(st.GetNetwork().GetIp())
	for _, ip := range st.GetNetwork().GetAdditionalIps() {
		add(ip.Ip)
	}
	return out
}

func (o *Observer) container(ctx context.Context, id, sandbox string) (pod.Container, bool, error) {
	answer, err := o.client.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: id})
	if IsNotFound(err) {
		return pod.Container{}, false, nil
	}
	if err != nil {
		return pod.Container{}, false, fmt.Errorf("status of container %s: %w", id, err)
	}
	s := answer.Status
	c := pod.Container{
		ID: s.Id, Sandbox: sandbox, Name: s.GetMetadata().GetName(), State: stateOf(s.State),
		Created: time.Unix(0, s.CreatedAt), ExitCode: s.ExitCode, Reason: s.Reason, Message: s.Message,
		Image: s.GetImage().GetUserSpecifiedImage(), ImageID: s.ImageRef, LogPath: s.LogPath,
		Hash: s.Annotations[criconfig.AnnotationHash],
	}
	if c.Image == "" {
		c.Image = s.GetImage().GetImage()
	}
	if s.StartedAt > 0 {
		c.Started = time.Unix(0, s.StartedAt)
	}
	if s.FinishedAt > 0 {
		c.Finished = time.Unix(0, s.FinishedAt)
	}
	if n, err := strconv.ParseInt(s.Annotations[criconfig.AnnotationRestartCount], 10, 32); err == nil {
		c.RestartCount = int32(n)
	}
	if u := s.GetUser().GetLinux(); u != nil {
		c.User = &corev1.ContainerUser{Linux: &corev1.LinuxContainerUser{UID: u.Uid, GID: u.Gid, SupplementalGroups: u.SupplementalGroups}}
	}
	if s.StopSignal != cri.Signal_RUNTIME_DEFAULT {
		c.StopSignal = s.StopSignal.String()
	}
	if c.State == pod.Exited && o.message != nil {
		if text := o.message(s); text != "" {
			c.Message = text
		}
	}
	return c, true, nil
}

func stateOf(s cri.ContainerState) pod.State {
	switch s {
	case cri.ContainerState_CONTAINER_CREATED:
		return pod.Created
	case cri.ContainerState_CONTAINER_RUNNING:
		return pod.Live
	case cri.ContainerState_CONTAINER_EXITED:
		return pod.Exited
	default:
		return pod.Unknown
	}
}

// IsNotFound reports whether the runtime says that it has no such object.
func IsNotFound(err error) bool { return status.Code(err) == codes.NotFound }

// Text is the message of a runtime's error without gRPC's framing, as users see it in
// events.
func Text(err error) string {
	if s, ok := status.FromError(err); ok {
		return s.Message()
	}
	return err.Error()
}

// Deadline turns a runtime's "took too long" into context.DeadlineExceeded.
func Deadline(err error) error {
	if status.Code(err) == codes.DeadlineExceeded {
		return fmt.Errorf("%s: %w", Text(err), context.DeadlineExceeded)
	}
	return err
}
