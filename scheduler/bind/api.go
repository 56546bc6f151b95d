package bind

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/keelson/keelson/libs/trace"
	"github.com/keelson/keelson/scheduler/framework"
	"github.com/keelson/keelson/scheduler/plugins"
)

// binding is a decision to carry out: a pod to bind, or victims to evict for it.
type binding struct {
	pod      *framework.Pod
	node     string
	volumes  []framework.VolumeChoice
	victims  []*framework.Pod
	began    time.Time
	entered  time.Time
	attempts int
}

const requestTimeout = 30 * time.Second

// bindAll carries out decisions until ctx ends. Requests that have begun are finished.
func (s *Scheduler) bindAll(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case b := <-s.work:
			switch {
			case b.victims != nil:
				s.evict(b)
			case len(b.volumes) > 0:
				s.bindWithVolumes(ctx, b)
			default:
				s.bound(b, s.bindPod(b))
			}
		}
	}
}

func (s *Scheduler) bindPod(b binding) error {
	ctx, cancel := context.WithTimeout(context.Background(), requestTimeout)
	defer cancel()
	ctx, span := trace.Start(ctx, "bind", "pod", b.pod.Name.String(), "node", b.node)
	err := s.api.CoreV1().Pods(b.pod.Namespace).Bind(ctx, &corev1.Binding{
		ObjectMeta: metav1.ObjectMeta{Namespace: b.pod.Namespace, Name: b.pod.ObjectMeta.Name, UID: b.pod.UID},
		Target:     corev1.ObjectReference{Kind: "Node", Name: b.node},
	}, metav1.CreateOptions{})
	span.End(err)
	return err
}

// bound tells the loop how a bind ended.
func (s *Scheduler) bound(b binding, err error) {
	if err == nil {
		s.metrics.attempt("scheduled", s.cfg.SchedulerName, time.Since(b.began))
		s.metrics.scheduled(b.attempts, time.Since(b.entered))
		s.log.Debug("bound", "pod", b.pod.Name.String(), "node", b.node)
		s.events.record(b.pod.Pod, nil, corev1.EventTypeNormal, "Scheduled", "Binding",
			fmt.Sprintf("Successfully assigned %s/%s to %s", b.pod.Namespace, b.pod.ObjectMeta.Name, b.node))
	}
	s.post(func() {
		s.inFlight--
		defer s.settle()
		if err == nil {
			return
		}
		s.cache.UnchooseVolumes(b.volumes)
		s.wake(s.cache.Forget(b.pod.UID))
		if apierrors.IsNotFound(err) {
			return // the pod has gone: the watch tells, or has told
		}
		s.metrics.attempt("error", s.cfg.SchedulerName, time.Since(b.began))
		s.log.Warn("bind failed", "pod", b.pod.Name.String(), "node", b.node, "err", err)
		it := s.queue.Get(b.pod.UID)
		if it == nil {
			return
		}
		message := fmt.Sprintf("binding rejected: %v", err)
		s.queue.Failed(b.pod.UID, nil, message, time.Now())
		s.tell(it.Pod, corev1.PodReasonSchedulerError, message)
	})
}

// bindWithVolumes writes what the claims need, waits until they are bound, and binds the pod. The binder
// is not held meanwhile: provisioning takes minutes.
func (s *Scheduler) bindWithVolumes(ctx context.Context, b binding) {
	for _, ch := range b.volumes {
		if err := s.prepareClaim(ch, b.node); err != nil {
			s.bound(b, fmt.Errorf("volume for claim %s: %w", ch.Claim, err))
			return
		}
	}
	s.waitVolumes(ctx, b, time.Now().Add(volumesWithin))
}

// waitVolumes looks at the claims, and again in a moment, until all are bound.
func (s *Scheduler) waitVolumes(ctx context.Context, b binding, until time.Time) {
	all := true
	for _, ch := range b.volumes {
		ok, err := s.inputs.claimBound(ch.Claim, ch.Volume == "")
		if err != nil {
			s.bound(b, err)
			return
		}
		all = all && ok
	}
	switch {
	case all:
		s.bound(b, s.bindPod(b))
	case ctx.Err() != nil:
		s.bound(b, ctx.Err())
	case time.Now().After(until):
		s.bound(b, fmt.Errorf("volumes of pod %s were not bound within %s", b.pod.Name, volumesWithin))
	default:
		time.AfterFunc(200*time.Millisecond, func() { s.waitVolumes(ctx, b, until) })
	}
}

// prepareClaim gives an existing volume to the claim, or asks the provisioner for one on the node.
func (s *Scheduler) prepareClaim(ch framework.VolumeChoice, node string) error {
	ctx, cancel := context.WithTimeout(context.Background(), requestTimeout)
	defer cancel()
	claims := s.api.CoreV1().PersistentVolumeClaims(ch.Claim.Namespace)
	claim, err := claims.Get(ctx, ch.Claim.Name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	if ch.Volume == "" {
		if claim.Annotations[plugins.AnnotationSelectedNode] == node {
			return nil
		}
		claim = claim.DeepCopy()
		if claim.Annotations == nil {
			claim.Annotations = map[string]string{}
		}
		claim.Annotations[plugins.AnnotationSelectedNode] = node
		if claim, err = claims.Update(ctx, claim, metav1.UpdateOptions{}); err != nil {
			return err
		}
		return s.inputs.claims.WaitFor(ctx, revOf(claim))
	}
	volumes := s.api.CoreV1().PersistentVolumes()
	volume, err := volumes.Get(ctx, ch.Volume, metav1.GetOptions{})
	if err != nil {
		return err
	}
	if ref := volume.Spec.ClaimRef; ref != nil && ref.UID == claim.UID {
		return nil
	} else if ref != nil && (ref.Namespace != claim.Namespace || ref.Name != claim.Name || ref.UID != "") {
		return fmt.Errorf("persistentvolume %q has been given to claim %s/%s", volume.Name, ref.Namespace, ref.Name)
	}
	volume = volume.DeepCopy()
	volume.Spec.ClaimRef = &corev1.ObjectReference{Kind: "PersistentVolumeClaim", APIVersion: "v1", Namespace: claim.Namespace, Name: claim.Name, UID: claim.UID, ResourceVersion: claim.ResourceVersion}
	if volume.Annotations == nil {
		volume.Annotations = map[string]string{}
	}
	volume.Annotations["pv.kubernetes.io/bound-by-controller"] = "yes"
	_, err = volumes.Update(ctx, volume, metav1.UpdateOptions{})
	return err
}

// evict deletes the victims of a preemption, each with the condition that says why.
func (s *Scheduler) evict(b binding) {
	failed := false
	for _, v := range b.victims {
		if err := s.evictOne(b, v); err != nil && !apierrors.IsNotFound(err) {
			failed = true
			s.log.Warn("preemption failed", "pod", b.pod.Name.String(), "victim", v.Name.String(), "node", b.node, "err", err)
		}
	}
	s.post(func() {
		s.inFlight--
		defer s.settle()
		if !failed {
			return
		}
		delete(s.evicting, b.pod.UID)
		s.cache.Unnominate(b.pod.UID)
		s.queue.WakeAll(time.Now())
	})
}

func (s *Scheduler) evictOne(b binding, v *framework.Pod) error {
	ctx, cancel := context.WithTimeout(context.Background(), requestTimeout)
	defer cancel()
	pods := s.api.CoreV1().Pods(v.Namespace)
	if v.DeletionTimestamp == nil {
		patch, err := statusPatch(v.UID, corev1.PodCondition{
			Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, Reason: corev1.PodReasonPreemptionByScheduler, ObservedGeneration: v.Generation,
			Message: s.cfg.SchedulerName + ": preempting to accommodate a higher priority pod", LastTransitionTime: metav1.Now(),
		}, nil)
		if err != nil {
			return err
		}
		if _, err := pods.Patch(ctx, v.ObjectMeta.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status"); err != nil {
			return err
		}
		if err := pods.Delete(ctx, v.ObjectMeta.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &v.UID}}); err != nil {
			return err
		}
	}
	s.events.record(v.Pod, b.pod.Pod, corev1.EventTypeNormal, "Preempted", "Preempting", fmt.Sprintf("Preempted by pod %s on node %s", b.pod.UID, b.node))
	return nil
}

// statusPatch is a strategic merge patch of one condition and, when it is not nil, of the nomination.
func statusPatch(uid types.UID, c corev1.PodCondition, nominated *string) ([]byte, error) {
	status := map[string]any{}
	if c.Type != "" {
		status["conditions"] = []corev1.PodCondition{c}
	}
	if nominated != nil {
		status["nominatedNodeName"] = nil
		if *nominated != "" {
			status["nominatedNodeName"] = *nominated
		}
	}
	return json.Marshal(map[string]any{"metadata": map[string]any{"uid": uid}, "status": status})
}
