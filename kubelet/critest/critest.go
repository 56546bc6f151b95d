// Package critest is a container runtime in memory that keeps CRI's rules.
//
// It implements the generated client interfaces, so it stands in the place of a gRPC
// connection: nothing waits on a socket, and testing/synctest can let time pass. What a
// container does is a Program, found by its image. A call that CRI forbids is an error, as a
// runtime would answer it; a call that would be a bug of the caller beyond that (two running
// containers of one name in a pod, say) is noted, see Violations.
//
// Not kept: images' contents, logs, statistics. Goroutines: one for each running container
// whose program ends by itself; Stop ends them all.
package critest

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	criroom "github.com/keelson/keelson/kubelet/cri"
)

// Program is what containers of an image do.
type Program struct {
	RunFor     time.Duration // 0: until stopped
	ExitCode   int32         // when it ends by itself
	IgnoreTerm bool          // only SIGKILL ends it
	TermAfter  time.Duration // how long it takes to end after SIGTERM
	FailStart  string        // StartContainer fails with this
}

// Runtime is the runtime. Fields may be set before its first use, and between calls while no
// call is under way.
type Runtime struct {
	cri.RuntimeServiceClient
	cri.ImageServiceClient

	Programs map[string]Program // by image
	Took     time.Duration      // how long each call that changes something takes
	// Hook, when set, is asked before each such call ("RunPodSandbox", pod name or container
	// name); its error is the call's. It may block until ctx ends.
	Hook func(ctx context.Context, call, name string) error
	// Used is the memory in bytes that each container uses.
	Used uint64
	// Answer answers ExecSync.
	Answer func(container string, cmd []string) (stdout string, code int32)

	mu         sync.Mutex
	sandboxes  map[string]*sandbox   // guarded by mu
	containers map[string]*container // guarded by mu
	next       int                   // guarded by mu
	calls      []string              // guarded by mu
	violations []string              // guarded by mu
	wg         sync.WaitGroup
}

type sandbox struct {
	id     string
	config *cri.PodSandboxConfig
	state  cri.PodSandboxState
	born   time.Time
	ip     string
}

type container struct {
	id, sandbox string
	config      *cri.ContainerConfig
	status      cri.ContainerStatus
	program     Program
	ended       chan struct{}
}

// New is an empty runtime.
func New() *Runtime {
	return &Runtime{Programs: map[string]Program{}, sandboxes: map[string]*sandbox{}, containers: map[string]*container{}}
}

// Client is the runtime as the kubelet's rooms take it.
func (r *Runtime) Client() *criroom.Client {
	return &criroom.Client{RuntimeServiceClient: r, ImageServiceClient: r}
}

// Calls are the calls that changed something, oldest first: "StartContainer app".
func (r *Runtime) Calls() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.calls)
}

// Violations are the rules that a caller has broken.
func (r *Runtime) Violations() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.violations)
}

// Running are the names of running containers, sorted.
func (r *Runtime) Running() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []string
	for _, c := range r.containers {
		if c.status.State == cri.ContainerState_CONTAINER_RUNNING {
			out = append(out, c.config.Metadata.Name)
		}
	}
	slices.Sort(out)
	return out
}

// Empty reports whether nothing is left.
func (r *Runtime) Empty() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.sandboxes) == 0 && len(r.containers) == 0
}

// Kill ends a running container of that name from outside, as a signal would.
func (r *Runtime) Kill(name string, code int32) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.containers {
		if c.config.Metadata.Name == name && c.status.State == cri.ContainerState_CONTAINER_RUNNING {
			r.end(c, code, "Error")
			return true
		}
	}
	return false
}

// Stop ends all containers and waits for their goroutines.
func (r *Runtime) Stop() {
	r.mu.Lock()
	for _, c := range r.containers {
		r.end(c, 137, "Error")
	}
	r.mu.Unlock()
	r.wg.Wait()
}

// end is called with mu held.
func (r *Runtime) end(c *container, code int32, reason string) {
	if c.status.State != cri.ContainerState_CONTAINER_RUNNING {
		return
	}
	c.status.State, c.status.ExitCode, c.status.Reason = cri.ContainerState_CONTAINER_EXITED, code, reason
	c.status.FinishedAt = time.Now().UnixNano()
	close(c.ended)
}

func notFound(kind, id string) error {
	return status.Errorf(codes.NotFound, "%s %q not found", kind, id)
}

func (r *Runtime) begin(ctx context.Context, call, name string) error {
	if r.Hook != nil {
		if err := r.Hook(ctx, call, name); err != nil {
			return err
		}
	}
	if r.Took > 0 {
		select {
		case <-time.After(r.Took):
		case <-ctx.Done():
			return status.FromContextError(ctx.Err()).Err()
		}
	}
	r.mu.Lock()
	r.calls = append(r.calls, call+" "+name)
	r.mu.Unlock()
	return nil
}

func (r *Runtime) id(prefix string) string {
	r.next++
	return fmt.Sprintf("%s%d", prefix, r.next)
}

// Version implements the CRI.
func (r *Runtime) Version(context.Context, *cri.VersionRequest, ...grpc.CallOption) (*cri.VersionResponse, error) {
	return &cri.VersionResponse{Version: "0.1.0", RuntimeName: "critest", RuntimeVersion: "1", RuntimeApiVersion: "v1"}, nil
}

// GetContainerEvents is not there: callers must list.
func (r *Runtime) GetContainerEvents(context.Context, *cri.GetEventsRequest, ...grpc.CallOption) (grpc.ServerStreamingClient[cri.ContainerEventResponse], error) {
	return nil, status.Error(codes.Unimplemented, "no events")
}

// RunPodSandbox implements the CRI: a name and attempt may exist once.
func (r *Runtime) RunPodSandbox(ctx context.Context, in *cri.RunPodSandboxRequest, _ ...grpc.CallOption) (*cri.RunPodSandboxResponse, error) {
	if err := r.begin(ctx, "RunPodSandbox", in.Config.Metadata.Name); err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range r.sandboxes {
		if s.config.Metadata.Uid == in.Config.Metadata.Uid {
			if s.config.Metadata.Attempt == in.Config.Metadata.Attempt {
				return nil, status.Errorf(codes.Unknown, "name %s_%d is reserved", in.Config.Metadata.Uid, in.Config.Metadata.Attempt)
			}
			if s.state == cri.PodSandboxState_SANDBOX_READY {
				r.violations = append(r.violations, "a second ready sandbox for pod "+in.Config.Metadata.Name)
			}
		}
	}
	s := &sandbox{id: r.id("s"), config: in.Config, born: time.Now()}
	if in.Config.GetLinux().GetSecurityContext().GetNamespaceOptions().GetNetwork() != cri.NamespaceMode_NODE {
		s.ip = fmt.Sprintf("10.0.0.%d", r.next)
	}
	r.sandboxes[s.id] = s
	return &cri.RunPodSandboxResponse{PodSandboxId: s.id}, nil
}

// StopPodSandbox implements the CRI: it stops the containers too, and may be repeated.
func (r *Runtime) StopPodSandbox(ctx context.Context, in *cri.StopPodSandboxRequest, _ ...grpc.CallOption) (*cri.StopPodSandboxResponse, error) {
	r.mu.Lock()
	s := r.sandboxes[in.PodSandboxId]
	r.mu.Unlock()
	if s == nil {
		return nil, notFound("sandbox", in.PodSandboxId)
	}
	if err := r.begin(ctx, "StopPodSandbox", s.config.Metadata.Name); err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.containers {
		if c.sandbox == s.id && c.status.State == cri.ContainerState_CONTAINER_RUNNING {
			r.violations = append(r.violations, "sandbox stopped while container "+c.config.Metadata.Name+" was running")
			r.end(c, 137, "Error")
		}
	}
	s.state = cri.PodSandboxState_SANDBOX_NOTREADY
	return &cri.StopPodSandboxResponse{}, nil
}

// RemovePodSandbox implements the CRI: it removes the containers too.
func (r *Runtime) RemovePodSandbox(ctx context.Context, in *cri.RemovePodSandboxRequest, _ ...grpc.CallOption) (*cri.RemovePodSandboxResponse, error) {
	r.mu.Lock()
	s := r.sandboxes[in.PodSandboxId]
	r.mu.Unlock()
	if s == nil {
		return &cri.RemovePodSandboxResponse{}, nil
	}
	if err := r.begin(ctx, "RemovePodSandbox", s.config.Metadata.Name); err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for id, c := range r.containers {
		if c.sandbox == s.id {
			r.end(c, 137, "Error")
			delete(r.containers, id)
		}
	}
	delete(r.sandboxes, s.id)
	return &cri.RemovePodSandboxResponse{}, nil
}

func matches(selector, labels map[string]string) bool {
	for k, v := range selector {
		if labels[k] != v {
			return false
		}
	}
	return true
}

// ListPodSandbox implements the CRI.
func (r *Runtime) ListPodSandbox(_ context.Context, in *cri.ListPodSandboxRequest, _ ...grpc.CallOption) (*cri.ListPodSandboxResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := &cri.ListPodSandboxResponse{}
	for _, s := range r.sandboxes {
		if matches(in.GetFilter().GetLabelSelector(), s.config.Labels) {
			out.Items = append(out.Items, &cri.PodSandbox{Id: s.id, Metadata: s.config.Metadata, State: s.state,
				CreatedAt: s.born.UnixNano(), Labels: s.config.Labels, Annotations: s.config.Annotations})
		}
	}
	return out, nil
}

// PodSandboxStatus implements the CRI.
func (r *Runtime) PodSandboxStatus(_ context.Context, in *cri.PodSandboxStatusRequest, _ ...grpc.CallOption) (*cri.PodSandboxStatusResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.sandboxes[in.PodSandboxId]
	if s == nil {
		return nil, notFound("sandbox", in.PodSandboxId)
	}
	return &cri.PodSandboxStatusResponse{Status: &cri.PodSandboxStatus{Id: s.id, Metadata: s.config.Metadata, State: s.state,
		CreatedAt: s.born.UnixNano(), Network: &cri.PodSandboxNetworkStatus{Ip: s.ip}, Labels: s.config.Labels,
		Linux: &cri.LinuxPodSandboxStatus{Namespaces: &cri.Namespace{Options: s.config.GetLinux().GetSecurityContext().GetNamespaceOptions()}}}}, nil
}

// CreateContainer implements the CRI: the sandbox must be ready, a name and attempt may
// exist once in it.
func (r *Runtime) CreateContainer(ctx context.Context, in *cri.CreateContainerRequest, _ ...grpc.CallOption) (*cri.CreateContainerResponse, error) {
	name := in.Config.Metadata.Name
	if err := r.begin(ctx, "CreateContainer", name); err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.sandboxes[in.PodSandboxId]
	if s == nil {
		return nil, notFound("sandbox", in.PodSandboxId)
	}
	if s.state != cri.PodSandboxState_SANDBOX_READY {
		return nil, status.Errorf(codes.Unknown, "sandbox %s is not running", s.id)
	}
	for _, c := range r.containers {
		if c.sandbox == s.id && c.config.Metadata.Name == name && c.config.Metadata.Attempt == in.Config.Metadata.Attempt {
			return nil, status.Errorf(codes.Unknown, "failed to reserve container name %s_%d", name, in.Config.Metadata.Attempt)
		}
	}
	c := &container{id: r.id("c"), sandbox: s.id, config: in.Config, program: r.Programs[in.Config.Image.UserSpecifiedImage], ended: make(chan struct{})}
	c.status = cri.ContainerStatus{Id: c.id, Metadata: in.Config.Metadata, State: cri.ContainerState_CONTAINER_CREATED, CreatedAt: time.Now().UnixNano(),
		Image: in.Config.Image, ImageRef: "sha256:" + in.Config.Image.UserSpecifiedImage, Labels: in.Config.Labels, Annotations: in.Config.Annotations}
	r.containers[c.id] = c
	return &cri.CreateContainerResponse{ContainerId: c.id}, nil
}

// StartContainer implements the CRI: only a created container can be started.
func (r *Runtime) StartContainer(ctx context.Context, in *cri.StartContainerRequest, _ ...grpc.CallOption) (*cri.StartContainerResponse, error) {
	r.mu.Lock()
	c := r.containers[in.ContainerId]
	r.mu.Unlock()
	if c == nil {
		return nil, notFound("container", in.ContainerId)
	}
	if err := r.begin(ctx, "StartContainer", c.config.Metadata.Name); err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if c.status.State != cri.ContainerState_CONTAINER_CREATED {
		return nil, status.Errorf(codes.Unknown, "container %s is in state %s", c.id, c.status.State)
	}
	if why := c.program.FailStart; why != "" {
		c.status.State, c.status.ExitCode, c.status.Reason = cri.ContainerState_CONTAINER_EXITED, 128, "StartError"
		c.status.FinishedAt = time.Now().UnixNano()
		return nil, status.Error(codes.Unknown, why)
	}
	for _, o := range r.containers {
		if o != c && o.config.Metadata.Name == c.config.Metadata.Name && o.status.State == cri.ContainerState_CONTAINER_RUNNING &&
			o.config.Labels["io.kubernetes.pod.uid"] == c.config.Labels["io.kubernetes.pod.uid"] {
			r.violations = append(r.violations, "two running containers "+c.config.Metadata.Name+" in one pod")
		}
	}
	c.status.State, c.status.StartedAt = cri.ContainerState_CONTAINER_RUNNING, time.Now().UnixNano()
	if c.program.RunFor > 0 {
		r.wg.Go(func() {
			select {
			case <-time.After(c.program.RunFor):
			case <-c.ended:
				return
			}
			r.mu.Lock()
			defer r.mu.Unlock()
			reason := "Completed"
			if c.program.ExitCode != 0 {
				reason = "Error"
			}
			r.end(c, c.program.ExitCode, reason)
		})
	}
	return &cri.StartContainerResponse{}, nil
}

// StopContainer implements the CRI: SIGTERM, and SIGKILL after the timeout. It may be
// repeated.
func (r *Runtime) StopContainer(ctx context.Context, in *cri.StopContainerRequest, _ ...grpc.CallOption) (*cri.StopContainerResponse, error) {
	r.mu.Lock()
	c := r.containers[in.ContainerId]
	r.mu.Unlock()
	if c == nil {
		return &cri.StopContainerResponse{}, nil
	}
	if err := r.begin(ctx, "StopContainer", c.config.Metadata.Name); err != nil {
		return nil, err
	}
	timeout := time.Duration(in.Timeout) * time.Second
	code, wait := int32(143), c.program.TermAfter
	if c.program.IgnoreTerm || wait > timeout {
		code, wait = 137, timeout
	}
	if wait > 0 {
		select {
		case <-time.After(wait):
		case <-c.ended:
		case <-ctx.Done():
			return nil, status.FromContextError(ctx.Err()).Err()
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.end(c, code, "Error")
	return &cri.StopContainerResponse{}, nil
}

// RemoveContainer implements the CRI: a running container is killed first.
func (r *Runtime) RemoveContainer(ctx context.Context, in *cri.RemoveContainerRequest, _ ...grpc.CallOption) (*cri.RemoveContainerResponse, error) {
	r.mu.Lock()
	c := r.containers[in.ContainerId]
	r.mu.Unlock()
	if c == nil {
		return &cri.RemoveContainerResponse{}, nil
	}
	if err := r.begin(ctx, "RemoveContainer", c.config.Metadata.Name); err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if c.status.State == cri.ContainerState_CONTAINER_RUNNING {
		r.violations = append(r.violations, "running container "+c.config.Metadata.Name+" removed")
	}
	r.end(c, 137, "Error")
	delete(r.containers, c.id)
	return &cri.RemoveContainerResponse{}, nil
}

// ListContainers implements the CRI.
func (r *Runtime) ListContainers(_ context.Context, in *cri.ListContainersRequest, _ ...grpc.CallOption) (*cri.ListContainersResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := &cri.ListContainersResponse{}
	for _, c := range r.containers {
		if !matches(in.GetFilter().GetLabelSelector(), c.config.Labels) {
			continue
		}
		if s := in.GetFilter().GetState(); s != nil && s.State != c.status.State {
			continue
		}
		out.Containers = append(out.Containers, &cri.Container{Id: c.id, PodSandboxId: c.sandbox, Metadata: c.config.Metadata, State: c.status.State,
			CreatedAt: c.status.CreatedAt, Labels: c.config.Labels, Annotations: c.config.Annotations})
	}
	return out, nil
}

// ContainerStatus implements the CRI.
func (r *Runtime) ContainerStatus(_ context.Context, in *cri.ContainerStatusRequest, _ ...grpc.CallOption) (*cri.ContainerStatusResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.containers[in.ContainerId]
	if c == nil {
		return nil, notFound("container", in.ContainerId)
	}
	s := &c.status
	return &cri.ContainerStatusResponse{Status: &cri.ContainerStatus{Id: s.Id, Metadata: s.Metadata, State: s.State, CreatedAt: s.CreatedAt,
		StartedAt: s.StartedAt, FinishedAt: s.FinishedAt, ExitCode: s.ExitCode, Image: s.Image, ImageRef: s.ImageRef, Reason: s.Reason,
		Labels: s.Labels, Annotations: s.Annotations}}, nil
}

// UpdateContainerResources implements the CRI.
func (r *Runtime) UpdateContainerResources(ctx context.Context, in *cri.UpdateContainerResourcesRequest, _ ...grpc.CallOption) (*cri.UpdateContainerResourcesResponse, error) {
	if err := r.begin(ctx, "UpdateContainerResources", in.ContainerId); err != nil {
		return nil, err
	}
	return &cri.UpdateContainerResourcesResponse{}, nil
}

// ContainerStats implements the CRI.
func (r *Runtime) ContainerStats(_ context.Context, in *cri.ContainerStatsRequest, _ ...grpc.CallOption) (*cri.ContainerStatsResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.containers[in.ContainerId] == nil {
		return nil, notFound("container", in.ContainerId)
	}
	return &cri.ContainerStatsResponse{Stats: &cri.ContainerStats{Memory: &cri.MemoryUsage{UsageBytes: &cri.UInt64Value{Value: r.Used}}}}, nil
}

// ExecSync implements the CRI.
func (r *Runtime) ExecSync(ctx context.Context, in *cri.ExecSyncRequest, _ ...grpc.CallOption) (*cri.ExecSyncResponse, error) {
	r.mu.Lock()
	c := r.containers[in.ContainerId]
	r.mu.Unlock()
	if c == nil || r.Answer == nil {
		return nil, notFound("container", in.ContainerId)
	}
	if err := r.begin(ctx, "ExecSync", c.config.Metadata.Name); err != nil {
		return nil, err
	}
	out, code := r.Answer(c.config.Metadata.Name, in.Cmd)
	return &cri.ExecSyncResponse{Stdout: []byte(out), ExitCode: code}, nil
}

// ImageStatus implements the CRI: every image is there.
func (r *Runtime) ImageStatus(_ context.Context, in *cri.ImageStatusRequest, _ ...grpc.CallOption) (*cri.ImageStatusResponse, error) {
	return &cri.ImageStatusResponse{Image: &cri.Image{Id: "sha256:" + in.Image.Image, RepoTags: []string{in.Image.Image}}}, nil
}
