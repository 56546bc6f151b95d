package bind

import (
	"cmp"
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
	pod       *framework.Pod
	node      string
	volumes   []framework.VolumeChoice
	victims   []*framework.Pod
	began     time.Time
	entered   time.Time
	attempts  int
	preparing time.Time // when the writing of what volumes need began
	prepared  bool      // what volumes need has been written
	asked     []uint64  // for each of volumes, the revision at which a provisioner was told the node; 0: none was
	until     time.Time // how long to wait for volumes
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
			case len(b.volumes) > 0 && !b.prepared:
				s.prepareVolumes(b)
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
	began := time.Now()
	err := s.api.CoreV1().Pods(b.pod.Namespace).Bind(ctx, &corev1.Binding{
		ObjectMeta: metav1.ObjectMeta{Namespace: b.pod.Namespace, Name: b.pod.ObjectMeta.Name, UID: b.pod.UID},
		Target:     corev1.ObjectReference{Kind: "Node", Name: b.node},
	}, metav1.CreateOptions{})
	s.metrics.point("Bind", statusOf(err), s.cfg.SchedulerName, time.Since(began))
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
		if err != nil {
			s.failed(b, err)
		}
		s.settle()
	})
}

// failed takes a decision back that could not be carried out, and has the pod tried again.
func (s *Scheduler) failed(b binding, err error) {
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
}

// prepareVolumes writes what the claims need. The pod then waits in the loop, and no binder is held:
// provisioning takes minutes.
func (s *Scheduler) prepareVolumes(b binding) {
	b.preparing = time.Now()
	for _, ch := range b.volumes {
		rev, err := s.prepareClaim(ch, b.node)
		if err != nil {
			s.metrics.point("PreBind", statusOf(err), s.cfg.SchedulerName, time.Since(b.preparing))
			s.bound(b, fmt.Errorf("volume for claim %s: %w", ch.Claim, err))
			return
		}
		b.asked = append(b.asked, rev)
	}
	b.prepared, b.until = true, time.Now().Add(volumesWithin)
	s.post(func() {
		s.inFlight--
		s.waiting = append(s.waiting, b)
		s.settle()
	})
}

// lookAtVolumes hands on the pods whose claims are all bound, and gives up on those that waited too long.
func (s *Scheduler) lookAtVolumes(now time.Time) {
	still := s.waiting[:0]
	for _, b := range s.waiting {
		all, err := true, error(nil)
		for i, ch := range b.volumes {
			ok, e := s.inputs.claimBound(ch.Claim, b.asked[i])
			all = all && ok
			err = cmp.Or(err, e)
		}
		if err == nil && !all && now.After(b.until) {
			err = fmt.Errorf("volumes of pod %s were not bound within %s", b.pod.Name, volumesWithin)
		}
		switch {
		case err != nil:
			s.metrics.point("PreBind", statusOf(err), s.cfg.SchedulerName, now.Sub(b.preparing))
			s.failed(b, err)
		case all && s.inFlight < s.cfg.Binders:
			s.metrics.point("PreBind", statusOf(nil), s.cfg.SchedulerName, now.Sub(b.preparing))
			s.inFlight++
			s.work <- b
		default:
			still = append(still, b)
		}
	}
	clear(s.waiting[len(still):])
	s.waiting = still
}

// prepareClaim gives an existing volume to the claim, or asks the provisioner for one on the node.
func (s *Scheduler) prepareClaim(ch framework.VolumeChoice, node string) (asked uint64, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), requestTimeout)
	defer cancel()
	claims := s.api.CoreV1().PersistentVolumeClaims(ch.Claim.Namespace)
	claim, err := claims.Get(ctx, ch.Claim.Name, metav1.GetOptions{})
	if err != nil {
		return 0, err
	}
	if ch.Volume == "" {
		if claim.Annotations[plugins.AnnotationSelectedNode] == node {
			return revOf(claim), nil
		}
		claim = claim.DeepCopy()
		if claim.Annotations == nil {
			claim.Annotations = map[string]string{}
		}
		claim.Annotations[plugins.AnnotationSelectedNode] = node
		if claim, err = claims.Update(ctx, claim, metav1.UpdateOptions{}); err != nil {
			return 0, err
		}
		return revOf(claim), nil
	}
	volumes := s.api.CoreV1().PersistentVolumes()
	volume, err := volumes.Get(ctx, ch.Volume, metav1.GetOptions{})
	if err != nil {
		return 0, err
	}
	if ref := volume.Spec.ClaimRef; ref != nil && ref.UID == claim.UID {
		return 0, nil
	} else if ref != nil && (ref.Namespace != claim.Namespace || ref.Name != claim.Name || ref.UID != "") {
		return 0, fmt.Errorf("persistentvolume %q has been given to claim %s/%s", volume.Name, ref.Namespace, ref.Name)
	}
	volume = volume.DeepCopy()
	volume.Spec.ClaimRef = &corev1.ObjectReference{Kind: "PersistentVolumeClaim", APIVersion: "v1", Namespace: claim.Namespace, Name: claim.Name, UID: claim.UID, ResourceVersion: claim.ResourceVersion}
	if volume.Annotations == nil {
		volume.Annotations = map[string]string{}
	}
	volume.Annotations["pv.kubernetes.io/bound-by-controller"] = "yes"
	_, err = volumes.Update(ctx, volume, metav1.UpdateOptions{})
	return 0, err
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
