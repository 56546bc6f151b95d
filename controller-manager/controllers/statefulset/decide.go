// Package statefulset keeps a StatefulSet's pods: each with a number, a name and
// claims of its own, created and deleted in order unless the set allows otherwise.
//
// [Decide] walks over the pods and says what to do; it is pure. identity.go knows
// names, labels and claims; apply.go has the writes and the table row.
//
// In order (OrderedReady) a step is made only when all pods before it are ready
// and available, and a decision ends at the first pod that is not. In parallel all
// steps are made at once. Updates delete pods from the highest number down, at
// most maxUnavailable of them being unavailable; the next pass creates them anew.
//
// Source: Kubernetes documentation, "StatefulSets"; KEP-961, KEP-1847, KEP-3335.
package statefulset

import (
	"fmt"
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/keelson/keelson/controller-manager/podset"
)

// Revision is a template and the name of the revision it comes from.
type Revision struct {
	Name     string
	Template *corev1.PodTemplateSpec
}

// Verb is what a step does.
type Verb string

const (
	Create      Verb = "create pod"
	Delete      Verb = "delete pod"
	Identify    Verb = "restore pod"   // its labels or volumes are not what they should be
	CreateClaim Verb = "create claim"  // missing, of a pod that is there
	OwnClaim    Verb = "own claim"     // owner references after the retention policy
	Conflict    Verb = "foreign claim" // another controller owns it; reported only
)

// Step is one thing to do. Claim steps name the pod that the claim belongs to.
type Step struct {
	Verb  Verb
	Pod   *corev1.Pod
	Claim *corev1.PersistentVolumeClaim
	// Volumes are, when a pod is to be restored, those that it should have; nil: it has them.
	Volumes []corev1.Volume
}

func (s Step) String() string {
	if s.Claim != nil {
		return fmt.Sprintf("%s %s", s.Verb, s.Claim.Name)
	}
	return fmt.Sprintf("%s %s", s.Verb, s.Pod.Name)
}

// Decision is what one pass wants done. With InOrder the steps are made one after
// the other and the first failure ends them.
type Decision struct {
	Steps   []Step
	InOrder bool
	Status  appsv1.StatefulSetStatus
	Again   time.Time
}

// Seen is what the controller sees of a set.
type Seen struct {
	Current, Update Revision
	Collisions      int32
	Pods            []*corev1.Pod // the set's own, by name
	Claim           func(name string) *corev1.PersistentVolumeClaim
}

type work struct {
	set   *appsv1.StatefulSet
	seen  Seen
	now   time.Time
	order bool
	d     Decision
}

// Decide compares the set with its pods.
func Decide(set *appsv1.StatefulSet, seen Seen, now time.Time) Decision {
	w := &work{set: set, seen: seen, now: now, order: set.Spec.PodManagementPolicy != appsv1.ParallelPodManagement}
	w.d.InOrder = w.order
	w.d.Status = w.status()
	if set.DeletionTimestamp != nil {
		return w.d
	}
	w.walk()
	return w.d
}

func (w *work) walk() {
	first := start(w.set)
	replicas := make([]*corev1.Pod, want(w.set)) // nil: not there
	var condemned []*corev1.Pod
	for _, p := range w.seen.Pods {
		switch _, n := ordinal(p.Name); {
		case inRange(w.set, n):
			replicas[n-first] = p
		case n >= 0:
			condemned = append(condemned, p)
		}
	}
	slices.SortFunc(condemned, func(a, b *corev1.Pod) int { // highest number first
		_, na := ordinal(a.Name)
		_, nb := ordinal(b.Name)
		return nb - na
	})
	firstBad := w.firstBad(replicas, condemned)
	for i, p := range replicas {
		if w.replica(p, first+i) {
			return
		}
	}
	for _, p := range condemned {
		_, n := ordinal(p.Name)
		w.ownClaims(p, n)
	}
	for _, p := range condemned {
		if w.condemn(p, firstBad) {
			return
		}
	}
	if w.set.Spec.UpdateStrategy.Type != appsv1.OnDeleteStatefulSetStrategyType {
		w.update(replicas)
	}
}

func (w *work) step(v Verb, p *corev1.Pod, c *corev1.PersistentVolumeClaim) {
	w.d.Steps = append(w.d.Steps, Step{Verb: v, Pod: p, Claim: c})
}

// available also notes when a pod becomes so by time alone.
func (w *work) available(p *corev1.Pod) bool {
	ok, at := podset.Available(p, podset.Seconds(w.set.Spec.MinReadySeconds), w.now)
	w.d.Again = podset.Sooner(w.d.Again, at)
	return ok
}

func runningReady(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodRunning && podset.Ready(p) }

// bad says that a pod does not serve: absent, not available, or being deleted.
func (w *work) bad(p *corev1.Pod) bool {
	return p == nil || p.DeletionTimestamp != nil || !w.available(p)
}

// firstBad is the lowest-numbered pod that does not serve. It may be condemned
// though pods before it wait.
func (w *work) firstBad(replicas, condemned []*corev1.Pod) *corev1.Pod {
	for _, p := range replicas {
		if w.bad(p) {
			return p
		}
	}
	for i := len(condemned) - 1; i >= 0; i-- {
		if w.bad(condemned[i]) {
			return condemned[i]
		}
	}
	return nil
}

// replica looks after one wanted pod and says whether the walk ends here.
func (w *work) replica(p *corev1.Pod, n int) (stop bool) {
	if p == nil {
		if w.staleClaim(n) {
			return w.order
		}
		for _, c := range claims(w.set, n) {
			if w.seen.Claim(c.Name) == nil {
				w.step(CreateClaim, nil, c)
			}
		}
		w.step(Create, newPod(w.set, w.revisionFor(n), n), nil)
		return w.order
	}
	if podset.Ended(p) {
		if p.DeletionTimestamp == nil {
			w.step(Delete, p, nil)
		}
		return w.order
	}
	if p.Status.Phase == corev1.PodPending || p.Status.Phase == "" {
		for _, c := range claims(w.set, n) {
			if w.seen.Claim(c.Name) == nil {
				w.step(CreateClaim, p, c)
			}
		}
	}
	if w.order && (p.DeletionTimestamp != nil || !runningReady(p) || !w.available(p)) {
		return true
	}
	if p.DeletionTimestamp != nil {
		return false
	}
	if p.Labels[appsv1.StatefulSetPodNameLabel] != p.Name || !mounted(w.set, p, n) {
		c := p.DeepCopy()
		identify(c, n)
		s := Step{Verb: Identify, Pod: c}
		if !mounted(w.set, p, n) {
			mount(w.set, c, n)
			s.Volumes = c.Spec.Volumes
		}
		w.d.Steps = append(w.d.Steps, s)
	}
	w.ownClaims(p, n)
	return false
}

// ownClaims brings the owner references of a pod's claims in line with the policy.
func (w *work) ownClaims(p *corev1.Pod, n int) {
	for _, t := range w.set.Spec.VolumeClaimTemplates {
		c := w.seen.Claim(claimName(t.Name, w.set.Name, n))
		if c == nil {
			continue
		}
		refs, foreign, ok := claimRefs(w.set, p, c)
		if !ok || sameRefs(c.OwnerReferences, refs) {
			continue
		}
		if foreign {
			w.step(Conflict, p, c)
		}
		c = c.DeepCopy()
		c.OwnerReferences = refs
		w.step(OwnClaim, p, c)
	}
}

// staleClaim says that a claim still belongs to the pod that had this number
// before: it is about to be deleted, and the new pod must not get it.
func (w *work) staleClaim(n int) bool {
	if _, scaled := retention(w.set); !scaled {
		return false
	}
	for _, t := range w.set.Spec.VolumeClaimTemplates {
		c := w.seen.Claim(claimName(t.Name, w.set.Name, n))
		if c == nil {
			continue
		}
		for _, r := range c.OwnerReferences {
			if refersTo(r, "v1", "Pod", podName(w.set, n)) {
				return true
			}
		}
	}
	return false
}

func (w *work) condemn(p, firstBad *corev1.Pod) (stop bool) {
	if p.DeletionTimestamp != nil {
		return w.order
	}
	if w.order && p != firstBad && (!runningReady(p) || !w.available(p)) {
		return true
	}
	w.step(Delete, p, nil)
	return w.order
}

// revisionFor is the revision of a pod that has to be made: below the partition
// the current one, else the updated one.
func (w *work) revisionFor(n int) Revision {
	u := w.set.Spec.UpdateStrategy
	if u.Type == appsv1.RollingUpdateStatefulSetStrategyType {
		below := int(w.set.Status.CurrentReplicas)
		if u.RollingUpdate != nil {
			below = partition(w.set)
		}
		if n < start(w.set)+below {
			return w.seen.Current
		}
	}
	return w.seen.Update
}

func partition(set *appsv1.StatefulSet) int {
	if r := set.Spec.UpdateStrategy.RollingUpdate; r != nil && r.Partition != nil {
		return int(*r.Partition)
	}
	return 0
}

func maxUnavailable(set *appsv1.StatefulSet) int {
	if r := set.Spec.UpdateStrategy.RollingUpdate; r != nil && r.MaxUnavailable != nil {
		n, err := intstr.GetScaledValueFromIntOrPercent(r.MaxUnavailable, want(set), false)
		if err == nil && n > 1 {
			return n
		}
	}
	return 1
}

// update deletes pods of other revisions, from the top down to the partition. A
// pod that does not serve takes one of the places that maxUnavailable gives.
func (w *work) update(replicas []*corev1.Pod) {
	left := maxUnavailable(w.set)
	for i := len(replicas) - 1; i >= partition(w.set) && left > 0; i-- {
		p := replicas[i]
		if w.bad(p) {
			left--
		} else if podRevision(p) != w.seen.Update.Name {
			left--
		}
		if p != nil && p.DeletionTimestamp == nil && podRevision(p) != w.seen.Update.Name && !w.deleting(p) {
			w.step(Delete, p, nil)
		}
	}
}

func (w *work) deleting(p *corev1.Pod) bool {
	return slices.ContainsFunc(w.d.Steps, func(s Step) bool { return s.Verb == Delete && s.Pod == p })
}

// status counts what is there now, before the steps.
func (w *work) status() appsv1.StatefulSetStatus {
	s := appsv1.StatefulSetStatus{
		ObservedGeneration: w.set.Generation,
		CurrentRevision:    w.seen.Current.Name,
		UpdateRevision:     w.seen.Update.Name,
		CollisionCount:     &w.seen.Collisions,
		Conditions:         w.set.Status.Conditions,
	}
	for _, p := range w.seen.Pods {
		if p.Status.Phase == "" {
			continue
		}
		s.Replicas++
		if runningReady(p) {
			s.ReadyReplicas++
			if w.available(p) {
				s.AvailableReplicas++
			}
		}
		if p.DeletionTimestamp != nil {
			continue
		}
		if podRevision(p) == w.seen.Current.Name {
			s.CurrentReplicas++
		}
		if podRevision(p) == w.seen.Update.Name {
			s.UpdatedReplicas++
		}
	}
	n := int32(want(w.set))
	if w.set.Spec.UpdateStrategy.Type == appsv1.RollingUpdateStatefulSetStrategyType && s.UpdatedReplicas == n && s.ReadyReplicas == n && s.Replicas == n {
		s.CurrentReplicas, s.CurrentRevision = s.UpdatedReplicas, s.UpdateRevision
	}
	return s
}

// mine keeps the pods whose names are of the set's form.
func mine(set metav1.Object, pods []*corev1.Pod) []*corev1.Pod {
	return slices.DeleteFunc(pods, func(p *corev1.Pod) bool {
		name, n := ordinal(p.Name)
		return name != set.GetName() || n < 0
	})
}
