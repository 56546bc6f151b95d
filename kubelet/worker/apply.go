package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/keelson/keelson/kubelet/cri"
	"github.com/keelson/keelson/kubelet/criconfig"
	"github.com/keelson/keelson/kubelet/pod"
	"github.com/keelson/keelson/libs/run"
)

var (
	errEnding = errors.New("the pod ends")
	errSooner = errors.New("the grace period was shortened")
)

const (
	// longCall bounds the calls that make something: a sandbox waits for the network.
	longCall   = 4 * time.Minute
	maxRetry   = 10 * time.Second
	maxPull    = 300 * time.Second
	firstPull  = 10 * time.Second
	stopMargin = 2 * time.Minute
)

// begins starts the operation of a step.
func (w *worker) begins(o *corev1.Pod, s pod.Step) {
	target := s.Target()
	if w.memory.Busy[target] {
		// Only a Kill is asked for again: with less time.
		if cancel := w.cancels[target]; cancel != nil {
			cancel(errSooner)
		}
		return
	}
	w.log.Debug("step", "step", s.String())
	failing := slog.LevelWarn
	if _, again := w.memory.Failures[target]; again && s.Do == pod.Change {
		failing = slog.LevelDebug // it was said when it failed first: what it would need is seldom there soon
	}
	ctx, cancel := context.WithCancelCause(w.ctx)
	w.memory.Busy[target] = true
	var op func() (func(*pod.Memory), error)
	look := true
	switch s.Do {
	case pod.SetUp:
		w.cancels[target] = cancel
		op = func() (func(*pod.Memory), error) { return w.setUp(ctx, o) }
		look = false
	case pod.CreateSandbox:
		op = func() (func(*pod.Memory), error) {
			err := w.createSandbox(ctx, o, s)
			w.Metrics.PodStarted(err)
			if err != nil || o.Spec.Resources == nil {
				return nil, err
			}
			return func(m *pod.Memory) { m.Applied[""] = *o.Spec.Resources.DeepCopy() }, nil
		}
	case pod.Start:
		w.cancels[target] = cancel
		key := "start/" + s.Name
		w.memory.Busy[key] = true
		seen, mounted, sandbox := w.seen, w.mounted, w.seen.Ready(o.Spec.HostNetwork)
		st, applied := w.last, w.appliedByName()
		op = func() (func(*pod.Memory), error) {
			if o.Generation > 1 { // it may have been resized since its cgroup was made
				if err := w.Cgroups.Update(pod.Wider(o, applied)); err != nil {
					w.log.Warn("resizing the pod's cgroup failed", "err", err)
				}
			}
			apply, err := w.start(ctx, o, s, seen, mounted, sandbox, st)
			w.started(o, s, err)
			return func(m *pod.Memory) {
				delete(m.Busy, key)
				if apply != nil {
					apply(m)
				}
			}, err
		}
	case pod.Kill:
		w.cancels[target] = cancel
		_, again := w.memory.Killed[s.ID]
		w.memory.Killed[s.ID] = time.Now().Add(s.Grace)
		ip := w.podIP
		op = func() (func(*pod.Memory), error) { return nil, w.kill(ctx, o, s, ip, again) }
	case pod.Change:
		running, applied := w.seen.Containers, w.appliedByName()
		op = func() (func(*pod.Memory), error) { return w.change(ctx, o, s, running, applied) }
		look = false
	case pod.RemoveContainer:
		logPath := ""
		for i := range w.seen.Containers {
			if w.seen.Containers[i].ID == s.ID {
				logPath = w.seen.Containers[i].LogPath
			}
		}
		op = func() (func(*pod.Memory), error) { return nil, w.removeContainer(ctx, o, s, logPath) }
	case pod.StopSandbox:
		op = func() (func(*pod.Memory), error) { return nil, w.stopSandbox(ctx, s.ID) }
	case pod.RemoveSandbox:
		op = func() (func(*pod.Memory), error) { return nil, w.removeSandbox(ctx, s.ID) }
	case pod.TearDown:
		op = func() (func(*pod.Memory), error) { return w.tearDown(ctx) }
		look = false
	case pod.RemoveCgroup:
		op = func() (func(*pod.Memory), error) {
			if err := w.Cgroups.Delete(w.uid); err != nil {
				return nil, err
			}
			return func(m *pod.Memory) { m.Clean = true }, nil
		}
		look = false
	case pod.Delete:
		st := w.last
		op = func() (func(*pod.Memory), error) { return w.delete(ctx, o, st) }
		look = false
	case pod.Forget:
		op = func() (func(*pod.Memory), error) { return w.forgetPod(o) }
		look = false
	}
	w.ops.Go(func() {
		defer cancel(nil)
		var apply func(*pod.Memory)
		err := run.Safely(s.String(), func() (err error) { apply, err = op(); return err })
		if err != nil && w.ctx.Err() == nil && !errors.Is(err, errEnding) && !errors.Is(err, errSooner) {
			w.log.Log(w.ctx, failing, "step failed", "step", s.String(), "err", err)
		}
		w.results <- result{target: target, look: look, apply: func(m *pod.Memory) {
			if apply != nil {
				apply(m)
			}
			w.note(m, s, err)
		}}
	})
}

// started counts an attempt to start a container.
func (w *worker) started(o *corev1.Pod, s pod.Step, err error) {
	reason := ""
	var f *startError
	switch {
	case errors.As(err, &f):
		reason = f.reason
	case err != nil:
		reason = "CreateContainerError"
	}
	w.Metrics.ContainerStarted(containerType(o, s.Name), reason)
}

// note remembers the failure of a step, or that it succeeded.
func (w *worker) note(m *pod.Memory, s pod.Step, err error) {
	key := s.Target()
	if s.Do == pod.Start {
		key += "/" + s.Name
		var f *startError
		if !errors.As(err, &f) {
			if err == nil {
				delete(m.Failures, key)
				return
			}
			f = &startError{reason: "CreateContainerError", message: err.Error()}
		}
		if errors.Is(err, errEnding) {
			return
		}
		old := m.Failures[key]
		next := pod.Failure{Reason: f.reason, Message: f.message, Image: f.image}
		switch {
		case f.ran:
			// The container is there and has ended: its back-off counts.
		case f.image:
			next.Delay = firstPull
			if old.Image {
				next.Delay = min(2*old.Delay, w.maxPull())
			}
			next.Delay = min(next.Delay, w.maxPull())
		default:
			next.Delay = min(max(2*old.Delay, w.options.Retry), maxRetry)
		}
		next.Until = time.Now().Add(next.Delay)
		m.Failures[key] = next
		return
	}
	if err == nil || errors.Is(err, errSooner) || errors.Is(err, errEnding) {
		delete(m.Failures, key)
		return
	}
	delay := min(max(2*m.Failures[key].Delay, w.options.Retry/2), maxRetry)
	m.Failures[key] = pod.Failure{Message: err.Error(), Delay: delay, Until: time.Now().Add(delay)}
}

func (w *worker) maxPull() time.Duration {
	if w.options.MaxBackoff > 0 {
		return w.options.MaxBackoff
	}
	return maxPull
}

// event records an event on a container of the pod.
func (w *worker) event(o *corev1.Pod, container, typ, reason, message string) {
	ref := &corev1.ObjectReference{Kind: "Pod", APIVersion: "v1", Namespace: o.Namespace, Name: o.Name, UID: o.UID, ResourceVersion: o.ResourceVersion}
	if container != "" {
		_, kind := pod.Find(o, container)
		field := map[pod.Kind]string{pod.Main: "containers", pod.Init: "initContainers", pod.Sidecar: "initContainers", pod.Ephemeral: "ephemeralContainers"}[kind]
		ref.FieldPath = "spec." + field + "{" + container + "}"
	}
	if o.Name == "" {
		return // left-overs without a name
	}
	w.Events.Event(ref, typ, reason, message)
}

func (w *worker) setUp(ctx context.Context, o *corev1.Pod) (func(*pod.Memory), error) {
	if err := os.MkdirAll(filepath.Join(w.PodDir(w.uid), "volumes"), 0o750); err != nil {
		w.event(o, "", corev1.EventTypeWarning, "Failed", "error making pod data directories: "+err.Error())
		return nil, err
	}
	set, err := w.Volumes.Setup(ctx, o)
	if err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		w.event(o, "", corev1.EventTypeWarning, "FailedMount", err.Error())
		return nil, fmt.Errorf("set up volumes: %w", err)
	}
	return func(m *pod.Memory) { m.Volumes = true; w.mounted = set }, nil
}

// sandboxConfig is the sandbox as it was, or will be, created.
func (w *worker) sandboxConfig(o *corev1.Pod, attempt uint32) (*runtimeapi.PodSandboxConfig, error) {
	if o.Spec.HostUsers != nil && !*o.Spec.HostUsers {
		return nil, errors.New("can't set `spec.hostUsers: false`, runtime does not support user namespaces")
	}
	return criconfig.Sandbox(*w.options.Config, o, attempt, w.Cgroups.Parent(o), nil)
}

func (w *worker) createSandbox(ctx context.Context, o *corev1.Pod, s pod.Step) error {
	ctx, cancel := context.WithTimeout(ctx, longCall)
	defer cancel()
	if s.Attempt > 0 {
		w.event(o, "", corev1.EventTypeNormal, "SandboxChanged", "Pod sandbox changed, it will be killed and re-created.")
	}
	if err := w.Node.NetworkReady(); err != nil && !o.Spec.HostNetwork {
		w.event(o, "", corev1.EventTypeWarning, "NetworkNotReady", "network is not ready: "+err.Error())
		return fmt.Errorf("network is not ready: %w", err)
	}
	fail := func(err error) error {
		w.event(o, "", corev1.EventTypeWarning, "FailedCreatePodSandBox", "Failed to create pod sandbox: "+err.Error())
		return fmt.Errorf("create sandbox: %w", err)
	}
	if err := w.Cgroups.Update(o); err != nil {
		w.event(o, "", corev1.EventTypeWarning, "FailedCreatePodContainer", "unable to ensure pod container exists: "+err.Error())
		return fmt.Errorf("cgroup of the pod: %w", err)
	}
	config, err := w.sandboxConfig(o, s.Attempt)
	if err != nil {
		return fail(err)
	}
	if err := os.MkdirAll(config.LogDirectory, 0o755); err != nil {
		return fail(err)
	}
	handler, err := w.handler(ctx, o)
	if err != nil {
		return fail(err)
	}
	leave, err := w.gate.enter(ctx, forSandbox)
	if err != nil {
		return err
	}
	defer leave()
	if _, err := w.Runtime.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: config, RuntimeHandler: handler}); err != nil {
		return fail(err)
	}
	return nil
}

func (w *worker) handler(ctx context.Context, o *corev1.Pod) (string, error) {
	if o.Spec.RuntimeClassName == nil || *o.Spec.RuntimeClassName == "" {
		return "", nil
	}
	return w.Handler(ctx, *o.Spec.RuntimeClassName)
}

// kill ends one container: preStop hook, stop signal, and SIGKILL at the end of the grace
// period. Hook and signal share the period; the signal has two seconds at least.
func (w *worker) kill(ctx context.Context, o *corev1.Pod, s pod.Step, ip string, again bool) error {
	if !again {
		w.event(o, s.Name, corev1.EventTypeNormal, "Killing", s.Message)
	}
	deadline := time.Now().Add(s.Grace)
	spec, _ := pod.Find(o, s.Name)
	if !again && spec != nil && spec.Lifecycle != nil && spec.Lifecycle.PreStop != nil && s.Grace > 0 {
		hook, cancel := context.WithDeadline(ctx, deadline)
		if _, err := w.hook(hook, o, spec, s.ID, ip, spec.Lifecycle.PreStop); err != nil && ctx.Err() == nil {
			w.event(o, s.Name, corev1.EventTypeWarning, "FailedPreStopHook", "PreStopHook failed")
			w.log.Warn("preStop hook failed", "container", s.Name, "err", err)
		}
		cancel()
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
	leave, err := w.gate.enter(ctx, forStop)
	if err != nil {
		return err
	}
	defer leave()
	grace := int64(max(time.Until(deadline), 2*time.Second).Round(time.Second) / time.Second)
	call, cancel := context.WithTimeout(ctx, time.Duration(grace)*time.Second+stopMargin)
	defer cancel()
	_, err = w.Runtime.StopContainer(call, &runtimeapi.StopContainerRequest{ContainerId: s.ID, Timeout: grace})
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil && !cri.IsNotFound(err) {
		w.event(o, "", corev1.EventTypeWarning, "FailedKillPod", "error killing pod: "+cri.Text(err))
		return fmt.Errorf("stop container %s: %w", s.Name, err)
	}
	return nil
}

func (w *worker) removeContainer(ctx context.Context, o *corev1.Pod, s pod.Step, logPath string) error {
	_, err := w.Runtime.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: s.ID})
	if err != nil && !cri.IsNotFound(err) {
		return fmt.Errorf("remove container %s: %w", s.Name, err)
	}
	if logPath != "" && !s.KeepLog {
		old, _ := filepath.Glob(logPath + ".*")
		for _, f := range append(old, logPath) {
			os.Remove(f)
		}
	}
	os.Remove(filepath.Join(w.options.SymlinkDir, criconfig.LogSymlink(o, s.Name, s.ID)))
	return nil
}

func (w *worker) stopSandbox(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(ctx, longCall)
	defer cancel()
	leave, err := w.gate.enter(ctx, forStopSandbox)
	if err != nil {
		return err
	}
	defer leave()
	_, err = w.Runtime.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: id})
	if err != nil && !cri.IsNotFound(err) {
		return fmt.Errorf("stop sandbox: %w", err)
	}
	return nil
}

func (w *worker) removeSandbox(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(ctx, longCall)
	defer cancel()
	leave, err := w.gate.enter(ctx, forRemoval)
	if err != nil {
		return err
	}
	defer leave()
	_, err = w.Runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: id})
	if err != nil && !cri.IsNotFound(err) {
		return fmt.Errorf("remove sandbox: %w", err)
	}
	return nil
}

func (w *worker) tearDown(ctx context.Context) (func(*pod.Memory), error) {
	if err := w.Volumes.Teardown(ctx, w.uid); err != nil {
		return nil, fmt.Errorf("tear down volumes: %w", err)
	}
	return func(m *pod.Memory) { m.TornDown = true }, nil
}

// delete writes the last status and deletes the object, of this UID only, without grace:
// the node has nothing of the pod that could still run.
func (w *worker) delete(ctx context.Context, o *corev1.Pod, st *corev1.PodStatus) (func(*pod.Memory), error) {
	if w.Client == nil {
		return func(m *pod.Memory) { m.Deleted = true }, nil
	}
	if err := w.status.write(ctx, st); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	zero := int64(0)
	err := w.Client.CoreV1().Pods(o.Namespace).Delete(ctx, o.Name, metav1.DeleteOptions{
		GracePeriodSeconds: &zero, Preconditions: &metav1.Preconditions{UID: &o.UID}})
	if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
		return nil, fmt.Errorf("delete pod: %w", err)
	}
	w.log.Info("pod ended and deleted")
	return func(m *pod.Memory) { m.Deleted = true }, nil
}

// forgetPod removes the pod's directories and logs and ends the worker.
func (w *worker) forgetPod(o *corev1.Pod) (func(*pod.Memory), error) {
	if o.Name != "" {
		logs := criconfig.LogDir(w.options.Config.LogRoot, o)
		links, _ := filepath.Glob(filepath.Join(w.options.SymlinkDir, o.Name+"_"+o.Namespace+"_*.log"))
		for _, link := range links {
			if to, err := os.Readlink(link); err == nil && strings.HasPrefix(to, logs+"/") {
				os.Remove(link)
			}
		}
		if err := os.RemoveAll(logs); err != nil {
			return nil, fmt.Errorf("remove logs: %w", err)
		}
	}
	if err := removePodDir(w.PodDir(w.uid)); err != nil {
		return nil, err
	}
	return func(*pod.Memory) { w.Pool.forget(w) }, nil
}

// removePodDir removes a pod's directory unless something is still mounted below it: what
// is mounted is not the kubelet's to delete.
func removePodDir(dir string) error {
	if _, err := os.Stat(dir); os.IsNotExist(err) {
		return nil
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], dir+"/") {
			return fmt.Errorf("%s is still mounted", f[4])
		}
	}
	return os.RemoveAll(dir)
}
