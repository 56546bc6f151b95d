package worker

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/keelson/keelson/kubelet/cri"
	"github.com/keelson/keelson/kubelet/criconfig"
	"github.com/keelson/keelson/kubelet/images"
	"github.com/keelson/keelson/kubelet/pod"
	"github.com/keelson/keelson/kubelet/volumes"
)

// startError is why a container does not run: reason and message of its waiting state.
type startError struct {
	reason, message string
	image           bool // the image could not be had
	ran             bool // the container exists and has ended
}

func (e *startError) Error() string { return e.reason + ": " + e.message }

// start brings one container from its spec to running: image, configuration, create, start,
// postStart. ctx ends when the pod does; the calls that make something are then still
// finished, so that nothing is left half made.
func (w *worker) start(ctx context.Context, o *corev1.Pod, s pod.Step, seen pod.Seen, mounted volumes.Set, sb *pod.Sandbox, st *corev1.PodStatus) (func(*pod.Memory), error) {
	c, kind := pod.Find(o, s.Name)
	if c == nil || sb == nil {
		return nil, nil
	}
	failed := func(reason string, err error) (func(*pod.Memory), error) {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		message := cri.Text(err)
		w.event(o, c.Name, corev1.EventTypeWarning, "Failed", "Error: "+message)
		return nil, &startError{reason: reason, message: message}
	}
	sandbox, err := w.sandboxConfig(o, sb.Attempt)
	if err != nil {
		return failed("CreateContainerConfigError", err)
	}
	handler, err := w.handler(ctx, o)
	if err != nil {
		return failed("CreateContainerConfigError", err)
	}
	asked := time.Now()
	image, ref, err := w.Images.Ensure(ctx, images.Want{
		Image: c.Image, Policy: c.ImagePullPolicy, Handler: handler, Sandbox: sandbox, Secrets: w.pullSecrets(ctx, o),
		Event: func(typ, reason, message string) { w.event(o, c.Name, typ, reason, message) },
	})
	if err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		var p *images.Problem
		if errors.As(err, &p) {
			w.event(o, c.Name, corev1.EventTypeWarning, "Failed", "Error: "+p.Reason)
			return nil, &startError{reason: p.Reason, message: p.Message, image: true}
		}
		return failed("ErrImagePull", err)
	}
	w.pulling.Add(int64(time.Since(asked)))
	x := criconfig.Extra{RestartCount: w.restartCount(o, s, seen), Image: ref, ImageUser: image.Username}
	switch {
	case image.Uid != nil:
		x.ImageUID = &image.Uid.Value
	case image.Username == "":
		x.ImageUID = new(int64) // an image that names no user runs as root
	}
	current := *st
	current.PodIP, current.PodIPs = pod.PodIPs(*sb, w.facts())
	if o.Spec.HostNetwork {
		current.PodIP, current.PodIPs = st.PodIP, st.PodIPs
	}
	if x.Env, err = w.env(ctx, o, c, &current, mounted); err != nil {
		return failed("CreateContainerConfigError", err)
	}
	if x.Mounts, x.Devices, err = w.mounts(ctx, o, c, x.Env, mounted, current.PodIPs); err != nil {
		return failed("CreateContainerConfigError", err)
	}
	if kind == pod.Ephemeral {
		if x.TargetID, err = target(o, c.Name, seen); err != nil {
			return failed("CreateContainerConfigError", err)
		}
	}
	config, err := criconfig.Container(*w.options.Config, o, c, x)
	if err != nil {
		return failed("CreateContainerConfigError", err)
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return w.launch(ctx, o, c, s, sb, sandbox, config, current.PodIP)
}

// launch makes the calls that create and start a container.
func (w *worker) launch(ctx context.Context, o *corev1.Pod, c *corev1.Container, s pod.Step, sb *pod.Sandbox, sandbox *runtimeapi.PodSandboxConfig, config *runtimeapi.ContainerConfig, ip string) (func(*pod.Memory), error) {
	call, cancel := context.WithTimeout(w.ctx, longCall)
	defer cancel()
	if err := os.MkdirAll(filepath.Join(sandbox.LogDirectory, c.Name), 0o755); err != nil {
		return nil, &startError{reason: "CreateContainerError", message: err.Error()}
	}
	leave, err := w.gate.enter(call, forStart)
	if err != nil {
		return nil, err
	}
	defer func() { leave() }()
	created, err := w.Runtime.CreateContainer(call, &runtimeapi.CreateContainerRequest{PodSandboxId: sb.ID, Config: config, SandboxConfig: sandbox})
	if err != nil {
		w.event(o, c.Name, corev1.EventTypeWarning, "Failed", "Error: "+cri.Text(err))
		return nil, &startError{reason: "CreateContainerError", message: cri.Text(err)}
	}
	id := created.ContainerId
	w.event(o, c.Name, corev1.EventTypeNormal, "Created", "Container created")
	resources := *c.Resources.DeepCopy()
	apply := func(m *pod.Memory) {
		m.Applied[id] = resources
		if s.Backoff > 0 {
			m.Backoff[c.Name] = pod.Backoff{Delay: s.Backoff, Since: time.Now()}
		}
	}
	if _, err := w.Runtime.StartContainer(call, &runtimeapi.StartContainerRequest{ContainerId: id}); err != nil {
		w.event(o, c.Name, corev1.EventTypeWarning, "Failed", "Error: "+cri.Text(err))
		return apply, &startError{reason: "RunContainerError", message: cri.Text(err), ran: true}
	}
	leave()
	leave = func() {}
	w.event(o, c.Name, corev1.EventTypeNormal, "Started", "Container started")
	link := filepath.Join(w.options.SymlinkDir, criconfig.LogSymlink(o, c.Name, id))
	if err := os.Symlink(filepath.Join(sandbox.LogDirectory, config.LogPath), link); err != nil && !os.IsExist(err) {
		w.log.Warn("log symlink", "err", err)
	}
	if c.Lifecycle == nil || c.Lifecycle.PostStart == nil {
		return apply, nil
	}
	w.poke(true) // the container runs: show it while the hook does
	message, err := w.hook(ctx, o, c, id, ip, c.Lifecycle.PostStart)
	if err == nil || ctx.Err() != nil {
		return apply, nil
	}
	w.event(o, c.Name, corev1.EventTypeWarning, "FailedPostStartHook", "PostStartHook failed")
	grace := int64(30)
	if g := o.Spec.TerminationGracePeriodSeconds; g != nil {
		grace = max(*g, 2)
	}
	w.event(o, c.Name, corev1.EventTypeNormal, "Killing", "FailedPostStartHook")
	stop, done := context.WithTimeout(w.ctx, time.Duration(grace)*time.Second+stopMargin)
	defer done()
	if _, err := w.Runtime.StopContainer(stop, &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: grace}); err != nil {
		w.log.Warn("stopping a container whose postStart hook failed", "container", c.Name, "err", err)
	}
	return apply, &startError{reason: "PostStartHookError", message: message, ran: true}
}

// restartCount is the number of the new container. After a runtime has lost its state the
// log files still tell how far it had come.
func (w *worker) restartCount(o *corev1.Pod, s pod.Step, seen pod.Seen) uint32 {
	if s.Attempt > 0 || seen.Newest(s.Name) != nil {
		return s.Attempt
	}
	n := uint32(0)
	entries, _ := os.ReadDir(filepath.Join(criconfig.LogDir(w.options.Config.LogRoot, o), s.Name))
	for _, e := range entries {
		if k, err := strconv.ParseUint(strings.SplitN(e.Name(), ".", 2)[0], 10, 31); err == nil {
			n = max(n, uint32(k)+1)
		}
	}
	return n
}

func (w *worker) pullSecrets(ctx context.Context, o *corev1.Pod) []*corev1.Secret {
	var out []*corev1.Secret
	var missing []string
	for _, r := range o.Spec.ImagePullSecrets {
		if r.Name == "" || w.Objects == nil {
			continue
		}
		s, err := w.Objects.Secret(ctx, types.NamespacedName{Namespace: o.Namespace, Name: r.Name})
		if err != nil {
			missing = append(missing, r.Name)
			continue
		}
		out = append(out, s)
	}
	if len(missing) > 0 {
		w.event(o, "", corev1.EventTypeWarning, "FailedToRetrieveImagePullSecret", fmt.Sprintf(
			"Unable to retrieve some image pull secrets (%s); attempting to pull the image may not succeed.", strings.Join(missing, ", ")))
	}
	return out
}

// lookup finds what an environment refers to.
type lookup struct {
	w       *worker
	ctx     context.Context
	o       *corev1.Pod
	mounted volumes.Set
}

func (l lookup) ConfigMap(name string) (*corev1.ConfigMap, error) {
	if l.w.Objects == nil {
		return nil, fmt.Errorf("couldn't get configMap %v/%v, there is no API server", l.o.Namespace, name)
	}
	return l.w.Objects.ConfigMap(l.ctx, types.NamespacedName{Namespace: l.o.Namespace, Name: name})
}

func (l lookup) Secret(name string) (*corev1.Secret, error) {
	if l.w.Objects == nil {
		return nil, fmt.Errorf("couldn't get secret %v/%v, there is no API server", l.o.Namespace, name)
	}
	return l.w.Objects.Secret(l.ctx, types.NamespacedName{Namespace: l.o.Namespace, Name: name})
}

func (l lookup) NotFound(err error) bool { return apierrors.IsNotFound(err) }

// File reads KEY=VALUE lines. The path cannot leave the volume.
func (l lookup) File(volume, path, key string) (string, bool, error) {
	m, ok := l.mounted[volume]
	if !ok {
		return "", false, fmt.Errorf("cannot find the volume %q referenced by FileKeyRef", volume)
	}
	root, err := os.OpenRoot(m.HostPath)
	if err != nil {
		return "", false, err
	}
	defer root.Close()
	f, err := root.Open(filepath.Clean(path))
	if err != nil {
		if os.IsNotExist(err) {
			return "", false, nil
		}
		return "", false, fmt.Errorf("couldn't parse env file: %w", err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		line := strings.TrimSpace(lines.Text())
		k, v, ok := strings.Cut(line, "=")
		if ok && !strings.HasPrefix(line, "#") && strings.TrimSpace(k) == key {
			return strings.Trim(strings.TrimSpace(v), `"'`), true, nil
		}
	}
	return "", false, lines.Err()
}

func (w *worker) env(ctx context.Context, o *corev1.Pod, c *corev1.Container, st *corev1.PodStatus, mounted volumes.Set) ([]criconfig.EnvVar, error) {
	services, ok := w.Services(o.Namespace)
	if !ok && !pod.IsStatic(o) {
		return nil, errors.New("services have not yet been read at least once, cannot construct envvars")
	}
	return criconfig.Env(*w.options.Config, o, c, st, services, lookup{w, ctx, o, mounted})
}

// mounts are the container's mounts: its volumes, then /etc/hosts and the termination log
// unless a volume covers them.
func (w *worker) mounts(ctx context.Context, o *corev1.Pod, c *corev1.Container, env []criconfig.EnvVar, mounted volumes.Set, ips []corev1.PodIP) ([]*criconfig.Mount, []*runtimeapi.Device, error) {
	vars := make(map[string]string, len(env))
	for _, e := range env {
		vars[e.Name] = e.Value
	}
	var out []*criconfig.Mount
	covered := map[string]bool{}
	for i, m := range c.VolumeMounts {
		covered[filepath.Clean(m.MountPath)] = true
		mount, err := w.mount(ctx, o, c, i, vars, mounted)
		if err != nil {
			return nil, nil, err
		}
		out = append(out, mount)
	}
	var devices []*runtimeapi.Device
	for _, d := range c.VolumeDevices {
		v, ok := mounted[d.Name]
		if !ok || !v.Block {
			return nil, nil, fmt.Errorf("cannot find volume %q to pass into container %q", d.Name, c.Name)
		}
		permissions := "mrw"
		if v.ReadOnly {
			permissions = "mr"
		}
		devices = append(devices, &runtimeapi.Device{HostPath: v.HostPath, ContainerPath: d.DevicePath, Permissions: permissions})
	}
	if !covered["/etc/hosts"] {
		path, err := w.hosts(o, ips)
		if err != nil {
			return nil, nil, err
		}
		out = append(out, &criconfig.Mount{ContainerPath: "/etc/hosts", HostPath: path})
	}
	if p := c.TerminationMessagePath; p != "" && !covered[filepath.Clean(p)] {
		// A file of its own for each container that is created: an old message must not
		// show up as the next one's.
		dir := filepath.Join(w.PodDir(o.UID), "containers", c.Name)
		if err := os.MkdirAll(dir, 0o750); err != nil {
			return nil, nil, err
		}
		name := make([]byte, 4)
		_, _ = rand.Read(name)
		path := filepath.Join(dir, hex.EncodeToString(name))
		if err := os.WriteFile(path, nil, 0o666); err != nil {
			return nil, nil, err
		}
		// Written by whatever user the container runs as, whatever the umask was.
		if err := os.Chmod(path, 0o666); err != nil {
			return nil, nil, err
		}
		out = append(out, &criconfig.Mount{ContainerPath: p, HostPath: path})
	}
	return out, devices, nil
}

// mount is one of the container's volumeMounts.
func (w *worker) mount(ctx context.Context, o *corev1.Pod, c *corev1.Container, i int, vars map[string]string, mounted volumes.Set) (*criconfig.Mount, error) {
	m := c.VolumeMounts[i]
	out := &criconfig.Mount{ContainerPath: m.MountPath, Readonly: m.ReadOnly}
	if !filepath.IsAbs(out.ContainerPath) {
		out.ContainerPath = "/" + out.ContainerPath
	}
	if m.MountPropagation != nil {
		switch *m.MountPropagation {
		case corev1.MountPropagationHostToContainer:
			out.Propagation = runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER
		case corev1.MountPropagationBidirectional:
			out.Propagation = runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL
		}
	}
	for j := range o.Spec.Volumes {
		v := &o.Spec.Volumes[j]
		if v.Name != m.Name || v.Image == nil {
			continue
		}
		_, ref, err := w.Images.Ensure(ctx, images.Want{Image: v.Image.Reference, Policy: imagePolicy(v.Image), Secrets: w.pullSecrets(ctx, o),
			Event: func(typ, reason, message string) { w.event(o, c.Name, typ, reason, message) }})
		if err != nil {
			return nil, err
		}
		out.Image, out.ImageSubPath, out.Readonly = ref, m.SubPath, true
		return out, nil
	}
	v, ok := mounted[m.Name]
	if !ok {
		return nil, fmt.Errorf("cannot find volume %q to mount into container %q", m.Name, c.Name)
	}
	out.HostPath = v.HostPath
	out.Readonly = out.Readonly || v.ReadOnly
	sub := m.SubPath
	if m.SubPathExpr != "" {
		sub = criconfig.Expand(m.SubPathExpr, vars)
		if strings.Contains(sub, "$(") {
			return nil, fmt.Errorf("missing value for %s", m.SubPathExpr)
		}
	}
	if sub == "" {
		return out, nil
	}
	if filepath.IsAbs(sub) {
		return nil, fmt.Errorf("error SubPath `%s` must not be an absolute path", sub)
	}
	for _, part := range strings.Split(sub, "/") {
		if part == ".." {
			return nil, fmt.Errorf("unable to provision SubPath `%s`: must not contain '..'", sub)
		}
	}
	path, err := w.Volumes.SubPath(ctx, o, c.Name, i, v, sub)
	if err != nil {
		return nil, fmt.Errorf("failed to prepare subPath for volumeMount %q of container %q: %w", m.Name, c.Name, err)
	}
	out.HostPath = path
	return out, nil
}

func imagePolicy(v *corev1.ImageVolumeSource) corev1.PullPolicy {
	if v.PullPolicy != "" {
		return v.PullPolicy
	}
	if strings.HasSuffix(v.Reference, ":latest") {
		return corev1.PullAlways
	}
	return corev1.PullIfNotPresent
}

// hosts writes the pod's /etc/hosts. All containers of the pod share the file; it is written
// again for each, since the pod's addresses may be new.
func (w *worker) hosts(o *corev1.Pod, ips []corev1.PodIP) (string, error) {
	path := filepath.Join(w.PodDir(o.UID), "etc-hosts")
	host := ""
	if o.Spec.HostNetwork {
		text, err := os.ReadFile(w.options.HostsFile)
		if err != nil && !os.IsNotExist(err) {
			return "", err
		}
		host = string(text)
	}
	text := criconfig.Hosts(*w.options.Config, o, ips, host)
	if old, err := os.ReadFile(path); err == nil && string(old) == text {
		return path, nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return "", err
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		return "", err
	}
	return path, os.Chmod(path, 0o644)
}

// target is the container whose processes an ephemeral container wants to see.
func target(o *corev1.Pod, name string, seen pod.Seen) (string, error) {
	for i := range o.Spec.EphemeralContainers {
		e := &o.Spec.EphemeralContainers[i]
		if e.Name != name || e.TargetContainerName == "" {
			continue
		}
		c := seen.Newest(e.TargetContainerName)
		if c == nil || c.State != pod.Live {
			return "", fmt.Errorf("unable to find target container %v", e.TargetContainerName)
		}
		return c.ID, nil
	}
	return "", nil
}
