package worker

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/strategicpatch"

	"github.com/keelson/keelson/kubelet/pod"
)

// statusWriter brings a pod's status to the API server: at once when nothing is being
// written, and the newest one as soon as the write before it is done. A write that fails is
// repeated with growing delay until it succeeds or the pod is gone.
//
// What only says that a pod has come a step nearer to its start (it has a sandbox and
// addresses) waits for a moment: mostly the next is that it runs, and one write says both.
type statusWriter struct {
	worker *worker

	mu      sync.Mutex
	newest  *corev1.PodStatus // to be written; guarded by mu
	writing bool              // guarded by mu
	told    *corev1.PodStatus // the last that was taken to be written; guarded by mu
	hurry   chan struct{}     // closed when newest should not wait, nil when it does not; guarded by mu

	lane  sync.Mutex  // held for a write
	known *corev1.Pod // what the last write returned; guarded by lane
}

// publish asks for the status to be written.
func (s *statusWriter) publish(o *corev1.Pod, st *corev1.PodStatus) {
	if s.worker.Client == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.newest = st
	if s.hurry != nil && !step(s.told, st) {
		close(s.hurry)
		s.hurry = nil
	}
	if s.writing {
		return
	}
	s.writing = true
	s.worker.ops.Go(s.drain)
}

// stepWait is how long a step on the way to the start waits for the next.
const stepWait = time.Second

// step tells whether a status says no more than that the pod has come nearer to its start.
func step(told, st *corev1.PodStatus) bool {
	return told != nil && told.Phase == corev1.PodPending && st.Phase == corev1.PodPending && told.Reason == st.Reason &&
		equality.Semantic.DeepEqual(told.InitContainerStatuses, st.InitContainerStatuses) &&
		equality.Semantic.DeepEqual(told.ContainerStatuses, st.ContainerStatuses)
}

// next takes the status to be written, nil when there is none. It waits with what is a
// step until something else comes, or the time is over.
func (s *statusWriter) next() *corev1.PodStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.newest != nil && step(s.told, s.newest) {
		hurry := make(chan struct{})
		s.hurry = hurry
		s.mu.Unlock()
		select {
		case <-hurry:
		case <-time.After(stepWait):
		case <-s.worker.gone:
		case <-s.worker.ctx.Done():
		}
		s.mu.Lock()
		s.hurry = nil
	}
	st := s.newest
	s.newest = nil
	if st == nil || s.worker.ctx.Err() != nil {
		s.writing = false
		return nil
	}
	s.told = st
	return st
}

func (s *statusWriter) drain() {
	delay := 200 * time.Millisecond
	for {
		st := s.next()
		if st == nil {
			return
		}
		err := s.write(s.worker.ctx, st)
		if err == nil {
			delay = 200 * time.Millisecond
			continue
		}
		s.worker.log.Warn("writing pod status failed", "err", err)
		select {
		case <-s.worker.ctx.Done():
		case <-s.worker.gone:
			return
		case <-time.After(delay):
		}
		delay = min(2*delay, 10*time.Second)
		s.mu.Lock()
		s.told = nil
		if s.newest == nil {
			s.newest = st
		}
		s.mu.Unlock()
	}
}

// write patches the difference between what the API server has and st. A pod that is gone,
// or has been replaced by another of its name, is no error.
func (s *statusWriter) write(ctx context.Context, st *corev1.PodStatus) error {
	s.lane.Lock()
	defer s.lane.Unlock()
	w := s.worker
	target := w.object()
	if pod.IsStatic(target) {
		if target = w.Mirror(target); target == nil {
			return nil
		}
	}
	base := target
	if s.known != nil && s.known.UID == target.UID && newer(s.known.ResourceVersion, base.ResourceVersion) {
		base = s.known
	}
	if pod.IsTerminal(base.Status.Phase) && !pod.IsTerminal(st.Phase) {
		return nil // a phase never goes back
	}
	patch, err := difference(base, st)
	if err != nil || patch == nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	began := time.Now()
	got, err := w.Client.CoreV1().Pods(target.Namespace).Patch(ctx, target.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status")
	switch {
	case apierrors.IsNotFound(err), apierrors.IsConflict(err):
		return nil // the watch tells the rest
	case err != nil:
		return fmt.Errorf("patch status of pod %s/%s: %w", target.Namespace, target.Name, err)
	}
	w.Metrics.StatusWritten(time.Since(began))
	s.known = got
	return nil
}

// difference is the patch that turns base's status into st; nil when there is none. It
// carries the UID, so that it cannot hit another pod of the same name.
func difference(base *corev1.Pod, st *corev1.PodStatus) ([]byte, error) {
	if equality.Semantic.DeepEqual(base.Status, *st) {
		return nil, nil // most of the time, and much sooner found out so
	}
	from, err := json.Marshal(corev1.Pod{Status: base.Status})
	if err != nil {
		return nil, err
	}
	to, err := json.Marshal(corev1.Pod{Status: *st})
	if err != nil {
		return nil, err
	}
	patch, err := strategicpatch.CreateTwoWayMergePatch(from, to, corev1.Pod{})
	if err != nil {
		return nil, fmt.Errorf("status patch: %w", err)
	}
	if string(patch) == "{}" {
		return nil, nil
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(patch, &fields); err != nil {
		return nil, err
	}
	delete(fields, "metadata")
	fields["metadata"], _ = json.Marshal(map[string]types.UID{"uid": base.UID})
	return json.Marshal(fields)
}

// newer compares resource versions, which are numbers that only grow.
func newer(a, b string) bool {
	if len(a) != len(b) {
		return len(a) > len(b)
	}
	return strings.Compare(a, b) > 0
}

func bare(id string) string {
	if _, after, ok := strings.Cut(id, "://"); ok {
		return after
	}
	return id
}
