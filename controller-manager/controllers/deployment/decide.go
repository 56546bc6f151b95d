// Package deployment rolls out a Deployment through ReplicaSets: one for each pod
// template it has had, scaled against each other.
//
// [Decide] is the whole decision: which set to create, what to write into which
// set, which old sets to delete, and the status. It is pure. sets.go has the view
// of a Deployment's sets, rolling.go the arithmetic of rolling updates and
// proportional scaling, status.go the conditions, apply.go the writes and the row.
//
// What kubectl relies on: the revision annotation on Deployment and sets
// ("rollout history", "undo"), observedGeneration and the Progressing condition
// ("rollout status").
//
// Source: Kubernetes documentation, "Deployments"; kubectl 1.36 rollout commands.
package deployment

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/keelson/keelson/controller-manager/podset"
)

// Decision is what one pass wants done: first Create, then Write in order, then
// Delete, then the Deployment's own Revision and Status.
type Decision struct {
	Create   *appsv1.ReplicaSet
	Write    []Change
	Delete   []*appsv1.ReplicaSet
	Revision string // the Deployment's revision annotation; empty: as it is
	Status   appsv1.DeploymentStatus
	Again    time.Time
}

// Change is a set to be written; From and To are its replicas before and after.
type Change struct {
	Set      *appsv1.ReplicaSet
	From, To int32
}

// Lines are the decision's steps as text.
func (d Decision) Lines() []string {
	var l []string
	if d.Create != nil {
		l = append(l, fmt.Sprintf("create set %s with %d replicas", d.Create.Name, *d.Create.Spec.Replicas))
	}
	for _, c := range d.Write {
		if c.From != c.To {
			l = append(l, fmt.Sprintf("scale set %s from %d to %d", c.Set.Name, c.From, c.To))
		} else {
			l = append(l, "annotate set "+c.Set.Name)
		}
	}
	for _, s := range d.Delete {
		l = append(l, "delete set "+s.Name)
	}
	return l
}

// Decide compares the Deployment with its sets. livePods is the number of pods of
// each set that have not ended, deleted ones among them; only Recreate asks.
func Decide(d *appsv1.Deployment, sets []*appsv1.ReplicaSet, livePods func(*appsv1.ReplicaSet) int, now time.Time) Decision {
	v := newView(d, sets, now)
	switch {
	case v.d.DeletionTimestamp != nil:
		v.reviseNew()
		return v.finish(v.counts())
	case v.pause() || v.resized():
		v.reviseNew()
		v.resize()
		if v.d.Spec.Paused {
			v.cleanUp()
		}
		return v.finish(v.counts())
	case v.d.Spec.Strategy.Type == appsv1.RecreateDeploymentStrategyType:
		v.recreate(livePods)
	default:
		v.roll()
	}
	return v.finish(v.progress(v.counts()))
}

func (v *view) recreate(livePods func(*appsv1.ReplicaSet) int) {
	v.reviseNew()
	down := false
	for _, s := range v.old {
		if v.scale(s, 0) {
			down = true
		}
	}
	if down || v.oldRuns(livePods) {
		return
	}
	v.needNew()
	v.scale(v.current, v.want)
	v.cleanUpWhenComplete()
}

func (v *view) oldRuns(livePods func(*appsv1.ReplicaSet) int) bool {
	for _, s := range v.old {
		if s.set.Status.Replicas > 0 || livePods(s.set) > 0 {
			return true
		}
	}
	return false
}

func (v *view) roll() {
	v.reviseNew()
	v.needNew()
	if v.growNew() || v.shrinkOld() {
		return
	}
	v.cleanUpWhenComplete()
}

func (v *view) cleanUpWhenComplete() {
	if complete(v.d, &v.d.Status) {
		v.cleanUp()
	}
}

// cleanUp deletes the oldest sets beyond the history limit that are at rest at 0.
func (v *view) cleanUp() {
	limit := v.d.Spec.RevisionHistoryLimit
	if limit == nil || *limit == math.MaxInt32 {
		return
	}
	var alive []*member
	for _, s := range v.old {
		if s.set.DeletionTimestamp == nil {
			alive = append(alive, s)
		}
	}
	over := len(alive) - int(*limit)
	if over <= 0 {
		return
	}
	slices.SortStableFunc(alive, func(a, b *member) int {
		ra, erra := revision(a.set)
		rb, errb := revision(b.set)
		if erra != nil || errb != nil || ra == rb {
			return a.set.CreationTimestamp.Compare(b.set.CreationTimestamp.Time)
		}
		if ra < rb {
			return -1
		}
		return 1
	})
	for _, s := range alive[:over] {
		if s.set.Status.Replicas == 0 && s.replicas() == 0 && !s.dirty && s.set.Generation <= s.set.Status.ObservedGeneration {
			v.gone = append(v.gone, s.set)
		}
	}
}

// reviseNew gives the set of the current template the newest revision and what it
// takes over from the Deployment.
func (v *view) reviseNew() {
	if v.current == nil {
		return
	}
	s := v.current
	before := s.set
	c := before.DeepCopy()
	changed := annotate(c, v.d, v.nextRevision(), true)
	if c.Spec.MinReadySeconds != v.d.Spec.MinReadySeconds {
		c.Spec.MinReadySeconds = v.d.Spec.MinReadySeconds
		changed = true
	}
	if changed {
		s.set, s.dirty = c, true
	}
	if r := s.set.Annotations[RevisionAnnotation]; r != "" {
		v.revision = r
	}
	if hasDeadline(v.d) && condition(v.d.Status, appsv1.DeploymentProgressing) == nil {
		setCondition(&v.d.Status, v.condition(appsv1.DeploymentProgressing, corev1.ConditionTrue, "FoundNewReplicaSet",
			fmt.Sprintf("Found new replica set %q", s.set.Name)))
	}
}

// needNew makes the set of the current template if there is none.
func (v *view) needNew() {
	if v.current != nil {
		return
	}
	hash := podset.Hash(&v.d.Spec.Template, v.d.Status.CollisionCount)
	template := v.d.Spec.Template.DeepCopy()
	if template.Labels == nil {
		template.Labels = map[string]string{}
	}
	template.Labels[appsv1.DefaultDeploymentUniqueLabelKey] = hash
	selector := v.d.Spec.Selector.DeepCopy()
	if selector.MatchLabels == nil {
		selector.MatchLabels = map[string]string{}
	}
	selector.MatchLabels[appsv1.DefaultDeploymentUniqueLabelKey] = hash
	labels := map[string]string{}
	for k, val := range template.Labels {
		labels[k] = val
	}
	name := v.d.Name
	if most := 253 - 1 - len(hash); len(name) > most {
		name = name[:most]
	}
	set := &appsv1.ReplicaSet{
		ObjectMeta: metav1.ObjectMeta{
			Name: name + "-" + hash, Namespace: v.d.Namespace, Labels: labels,
			OwnerReferences: []metav1.OwnerReference{*podset.Ref(v.d, gvk)},
		},
		Spec: appsv1.ReplicaSetSpec{Replicas: new(int32), MinReadySeconds: v.d.Spec.MinReadySeconds, Selector: selector, Template: *template},
	}
	v.current = &member{set: set}
	*set.Spec.Replicas = v.newReplicas()
	rev := v.nextRevision()
	annotate(set, v.d, rev, false)
	v.created, v.revision = set, strconv.FormatInt(rev, 10)
	if hasDeadline(v.d) {
		setCondition(&v.d.Status, v.condition(appsv1.DeploymentProgressing, corev1.ConditionTrue, "NewReplicaSetCreated",
			fmt.Sprintf("Created new replica set %q", set.Name)))
	}
}

// pause keeps the Progressing condition in step with spec.paused and returns it.
func (v *view) pause() bool {
	if !hasDeadline(v.d) {
		return v.d.Spec.Paused
	}
	c := condition(v.d.Status, appsv1.DeploymentProgressing)
	if c != nil && c.Reason == reasonTimedOut {
		return v.d.Spec.Paused
	}
	shown := c != nil && c.Reason == "DeploymentPaused"
	switch {
	case v.d.Spec.Paused && !shown:
		setCondition(&v.d.Status, v.condition(appsv1.DeploymentProgressing, corev1.ConditionUnknown, "DeploymentPaused", "Deployment is paused"))
	case !v.d.Spec.Paused && shown:
		setCondition(&v.d.Status, v.condition(appsv1.DeploymentProgressing, corev1.ConditionUnknown, "DeploymentResumed", "Deployment is resumed"))
	}
	return v.d.Spec.Paused
}

func (v *view) finish(status appsv1.DeploymentStatus) Decision {
	d := Decision{Create: v.created, Delete: v.gone, Revision: v.revision, Status: status, Again: v.again}
	for _, s := range v.all() {
		if s.dirty && s.set != v.created {
			d.Write = append(d.Write, Change{Set: s.set, From: s.from, To: s.replicas()})
		}
	}
	return d
}
