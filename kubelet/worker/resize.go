package worker

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/keelson/keelson/kubelet/cri"
	"github.com/keelson/keelson/kubelet/criconfig"
	"github.com/keelson/keelson/kubelet/pod"
)

// A resize goes through two hands. The pool's goroutine resizeAll gives: it alone compares what all pods
// ask for with the node, so that two pods never get the same room. The pod's worker then changes its
// containers, one after another.
//
//	object changes ──► pending ──room──► given ──► containers changed ──► done
//	                      └── looked at again when a pod ends or shrinks, and every three minutes

// resize is what a worker's pod has been given of what it asks for.
type resize struct {
	given   pod.Allocation
	judged  int64       // generation of the object that was last compared with the node
	pending *pod.Resize // why it is not given
	since   time.Time   // of pending
	started int64       // generation of the object that was last given; 0: none but at admission
}

// retryResizes is how often resizes that wait are looked at without a cause. Source: upstream's kubelet.
const retryResizes = 3 * time.Minute

// given is o with the resources that the pod has been given.
func (w *worker) given(o *corev1.Pod) *corev1.Pod {
	w.mu.Lock()
	defer w.mu.Unlock()
	given, _ := w.resize.given.Of(o)
	return given
}

// roomMade has the resizes looked at that wait.
func (p *Pool) roomMade() {
	select {
	case p.room <- struct{}{}:
	default:
	}
}

// resizeAll gives pods what they ask for as there is room, until ctx ends.
func (p *Pool) resizeAll(ctx context.Context) {
	tick := time.NewTicker(retryResizes)
	defer tick.Stop()
	for {
		trigger := "pods_removed" // or one has shrunk: the token does not say
		select {
		case <-ctx.Done():
			return
		case <-p.room:
		case <-tick.C:
			trigger = "periodic_retry"
		}
		p.give(trigger)
	}
}

// give looks at every resize that waits, the most urgent first. It does nothing while it is not known what
// all pods have: after the start of the kubelet others have their resources already.
func (p *Pool) give(trigger string) {
	p.admitting.Lock()
	defer p.admitting.Unlock()
	if !p.told.Load() {
		return
	}
	for _, w := range p.all() {
		if w.view.Load() == nil {
			p.hungry.Store(true)
			if w.view.Load() == nil {
				return // its first pass calls again
			}
		}
	}
	type candidate struct {
		pod.Waiting
		worker *worker
	}
	var all []candidate
	for _, w := range p.all() {
		v := w.view.Load()
		if !w.admitted.Load() || v == nil || v.phase >= pod.Stopping || pod.IsTerminal(v.pod.Status.Phase) {
			continue
		}
		w.mu.Lock()
		given, waits := w.resize.given.Of(w.want)
		c := candidate{pod.Waiting{Pod: w.want, Given: given, Since: w.resize.since}, w}
		if !waits && w.resize.pending != nil { // taken back
			w.resize.pending, w.resize.since = nil, time.Time{}
			w.signal()
		}
		w.mu.Unlock()
		if waits {
			all = append(all, c)
		}
	}
	slices.SortStableFunc(all, func(a, b candidate) int { return pod.Urgency(a.Waiting, b.Waiting) })
	for _, c := range all {
		w, o := c.worker, c.Pod
		reason, message := pod.Fits(o, p.others(w), p.Node.Node())
		w.mu.Lock()
		w.resize.judged = o.Generation
		before := w.resize.pending
		if reason == "" {
			w.resize.given, w.resize.started = pod.Allocate(o), o.Generation
			w.resize.pending, w.resize.since = nil, time.Time{}
		} else {
			w.resize.pending = &pod.Resize{Reason: corev1.PodReasonDeferred, Message: message, Generation: o.Generation}
			if before == nil {
				w.resize.since = time.Now()
			}
		}
		w.mu.Unlock()
		switch {
		case reason == "":
			if before != nil {
				w.Metrics.ResizeAfterAll(trigger)
			}
			w.log.Info("resize", "generation", o.Generation)
			w.event(o, "", corev1.EventTypeNormal, "ResizeStarted", pod.ResizeText("Pod resize started", o, o.Generation, ""))
		case before == nil || before.Generation != o.Generation:
			w.log.Info("resize waits", "generation", o.Generation, "reason", reason)
			w.event(o, "", corev1.EventTypeWarning, "ResizeDeferred", pod.ResizeText("Pod resize "+reason, o, o.Generation, message))
		}
		w.signal()
	}
}

// resizing brings the memory of resizes up to date before a decision, and asks the pool for what is new.
// o is what the pod has been given.
func (w *worker) resizing(o *corev1.Pod, seen pod.Seen) {
	w.mu.Lock()
	_, waits := w.resize.given.Of(w.want)
	unjudged := waits && w.resize.judged != w.want.Generation
	fresh := unjudged || !waits && w.resize.pending != nil
	w.memory.Pending = w.resize.pending
	w.memory.Unjudged = unjudged && w.memory.Phase == pod.Running
	started := w.resize.started
	w.resize.started = 0
	w.mu.Unlock()
	if fresh && w.memory.Phase == pod.Running {
		w.roomMade()
	}
	if started != 0 {
		w.memory.Resizing = &pod.Resize{Generation: started}
		delete(w.memory.Failures, (pod.Step{Do: pod.Change}).Target())
	}
	switch under := pod.Changing(o, seen, w.memory.Applied); {
	case under && w.memory.Resizing == nil:
		w.memory.Resizing = &pod.Resize{Generation: o.Generation}
	case !under && w.memory.Resizing != nil:
		w.event(o, "", corev1.EventTypeNormal, "ResizeCompleted", pod.ResizeText("Pod resize completed", o, w.memory.Resizing.Generation, ""))
		w.memory.Resizing = nil
		w.roomMade() // it may have shrunk
	}
}

// appliedByName is what the running containers have, by name, and the pod itself under "".
func (w *worker) appliedByName() map[string]corev1.ResourceRequirements {
	out := map[string]corev1.ResourceRequirements{}
	if r, known := w.memory.Applied[""]; known {
		out[""] = r
	}
	for i := range w.seen.Containers {
		c := &w.seen.Containers[i]
		if r, known := w.memory.Applied[c.ID]; known && c.State == pod.Live {
			out[c.Name] = r
		}
	}
	return out
}

// change gives a running container the resources of its spec. The pod's own limits are widened before and
// narrowed after the last, so that they never stand in the way of a container's.
func (w *worker) change(ctx context.Context, o *corev1.Pod, s pod.Step, running []pod.Container, applied map[string]corev1.ResourceRequirements) (func(*pod.Memory), error) {
	spec, _ := pod.Find(o, s.Name)
	if spec == nil && s.Name != "" {
		return nil, nil
	}
	began := time.Now()
	fail := func(err error) (func(*pod.Memory), error) {
		w.Metrics.Resized(time.Since(began), err)
		text := cri.Text(err)
		return func(m *pod.Memory) {
			generation := o.Generation
			if r := m.Resizing; r != nil {
				if r.Message == text {
					return
				}
				generation = r.Generation
			}
			m.Resizing = &pod.Resize{Reason: corev1.PodReasonError, Message: text, Generation: generation}
			w.event(o, "", corev1.EventTypeWarning, "ResizeError", pod.ResizeText("Pod resize error", o, generation, text))
		}, fmt.Errorf("%s: %w", s, err)
	}
	if s.Name == "" {
		if err := w.changePod(ctx, o, running, applied); err != nil {
			return fail(err)
		}
		w.Metrics.Resized(time.Since(began), nil)
		return func(m *pod.Memory) { m.Applied[""] = *o.Spec.Resources.DeepCopy() }, nil
	}
	if err := w.decreasable(ctx, s.ID, spec, applied[s.Name]); err != nil {
		return fail(err)
	}
	if err := w.Cgroups.Update(pod.Wider(o, applied)); err != nil {
		return fail(err)
	}
	if _, err := w.Runtime.UpdateContainerResources(ctx, &runtimeapi.UpdateContainerResourcesRequest{
		ContainerId: s.ID, Linux: criconfig.Resources(*w.options.Config, o, spec)}); err != nil {
		return fail(err)
	}
	resources := *spec.Resources.DeepCopy()
	applied[s.Name] = resources
	if err := w.Cgroups.Update(pod.Wider(o, applied)); err != nil {
		return fail(err)
	}
	w.Metrics.Resized(time.Since(began), nil)
	return func(m *pod.Memory) { m.Applied[s.ID] = resources }, nil
}

// changePod gives the pod itself the resources of its spec, and its containers: where they have no limits of
// their own, theirs are the pod's.
func (w *worker) changePod(ctx context.Context, o *corev1.Pod, running []pod.Container, applied map[string]corev1.ResourceRequirements) error {
	if limit := o.Spec.Resources.Limits.Memory().Value(); lowers(limit, applied[""]) {
		sum := uint64(0)
		for i := range running {
			if running[i].State == pod.Live {
				used, err := w.memoryOf(ctx, running[i].ID)
				if err != nil {
					return fmt.Errorf("cannot decrease memory limits: missing pod memory usage: %w", err)
				}
				sum += used
			}
		}
		if sum >= uint64(limit) {
			return fmt.Errorf("cannot decrease memory limits: attempting to set pod memory limit (%d) below current usage (%d)", limit, sum)
		}
	}
	if err := w.Cgroups.Update(pod.Wider(o, applied)); err != nil {
		return err
	}
	for i := range running {
		spec, _ := pod.Find(o, running[i].Name)
		if spec == nil || running[i].State != pod.Live {
			continue
		}
		if _, err := w.Runtime.UpdateContainerResources(ctx, &runtimeapi.UpdateContainerResourcesRequest{
			ContainerId: running[i].ID, Linux: criconfig.Resources(*w.options.Config, o, spec)}); err != nil {
			return err
		}
	}
	return w.Cgroups.Update(o)
}

// decreasable refuses a memory limit below what the container uses: the kernel would end it.
func (w *worker) decreasable(ctx context.Context, id string, spec *corev1.Container, applied corev1.ResourceRequirements) error {
	limit := spec.Resources.Limits.Memory().Value()
	if !lowers(limit, applied) {
		return nil
	}
	used, err := w.memoryOf(ctx, id)
	if err != nil {
		return fmt.Errorf("cannot decrease memory limits: missing container %q memory usage: %w", spec.Name, err)
	}
	if used >= uint64(limit) {
		return fmt.Errorf("cannot decrease memory limits: attempting to set container %q memory limit (%d) below current usage (%d)",
			spec.Name, limit, used)
	}
	return nil
}

// lowers reports whether a memory limit in bytes, 0 for none, is below what is in force.
func lowers(limit int64, applied corev1.ResourceRequirements) bool {
	old := applied.Limits.Memory().Value()
	return limit > 0 && (old == 0 || limit < old)
}

// memoryOf is what a container uses, in bytes.
func (w *worker) memoryOf(ctx context.Context, id string) (uint64, error) {
	answer, err := w.Runtime.ContainerStats(ctx, &runtimeapi.ContainerStatsRequest{ContainerId: id})
	if err != nil {
		return 0, err
	}
	memory := answer.GetStats().GetMemory()
	return max(memory.GetUsageBytes().GetValue(), memory.GetWorkingSetBytes().GetValue()), nil
}

// kept is what stays on disk of a pod's resources: a kubelet that starts has to know what it has given
// and what the containers run with, also where the object has changed in the meantime.
type kept struct {
	Given   pod.Allocation                         `json:"given"`
	Applied map[string]corev1.ResourceRequirements `json:"applied,omitempty"` // by container ID
}

func (w *worker) recordFile() string { return filepath.Join(w.PodDir(w.uid), "resources.json") }

// record writes the record if it has changed. The directory is made, and removed, with the pod.
func (w *worker) record() error {
	if w.memory.Phase > pod.Running || w.isRemoved() {
		return nil
	}
	w.mu.Lock()
	r := kept{Given: w.resize.given, Applied: map[string]corev1.ResourceRequirements{}}
	w.mu.Unlock()
	if r.Given.Containers == nil {
		return nil
	}
	if a, known := w.memory.Applied[""]; known {
		r.Applied[""] = a
	}
	for i := range w.seen.Containers {
		if id := w.seen.Containers[i].ID; w.seen.Containers[i].State != pod.Exited {
			if a, known := w.memory.Applied[id]; known {
				r.Applied[id] = a
			}
		}
	}
	text, err := json.Marshal(r)
	if err != nil || bytes.Equal(text, w.saved) {
		return err
	}
	file := w.recordFile()
	if err := os.MkdirAll(filepath.Dir(file), 0o750); err != nil {
		return err
	}
	if err := os.WriteFile(file+".new", text, 0o600); err != nil {
		return err
	}
	if err := os.Rename(file+".new", file); err != nil {
		return err
	}
	w.saved = text
	return nil
}

// recall reads the record of a pod that an earlier kubelet has run. Without one the pod has what it asks for.
func (w *worker) recall(o *corev1.Pod) {
	var r kept
	text, err := os.ReadFile(w.recordFile())
	if err == nil {
		err = json.Unmarshal(text, &r)
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		w.log.Warn("the record of the pod's resources is of no use", "err", err)
	}
	if err != nil || r.Given.Containers == nil {
		r = kept{Given: pod.Allocate(o)}
	}
	for id, a := range r.Applied {
		w.memory.Applied[id] = a
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.resize.given = r.Given
	for _, c := range o.Status.Conditions {
		if c.Type == corev1.PodResizePending && c.Status == corev1.ConditionTrue {
			w.resize.pending = &pod.Resize{Reason: c.Reason, Message: c.Message, Generation: c.ObservedGeneration}
			w.resize.since = c.LastTransitionTime.Time
		}
	}
}
