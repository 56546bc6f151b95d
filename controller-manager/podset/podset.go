// Package podset knows what all owners of pods have in common: which pods are
// theirs, in what state a pod counts, how a pod is made from a template, which
// pods go first when there are too many, and how a template is named by a hash.
//
// Everything here is pure: time comes in as an argument, objects are not changed.
// Start reading at [Claim], [Count] and [Surplus].
package podset

import (
	"encoding/json"
	"fmt"
	"hash/fnv"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/rand"
	"k8s.io/apimachinery/pkg/util/validation"
)

// Ended says that no container of the pod will ever run again.
func Ended(p *corev1.Pod) bool {
	return p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
}

// Active says that the pod counts as a replica: not ended, not being deleted.
func Active(p *corev1.Pod) bool { return !Ended(p) && p.DeletionTimestamp == nil }

// Terminating says that the pod is being deleted and has not ended yet.
func Terminating(p *corev1.Pod) bool { return !Ended(p) && p.DeletionTimestamp != nil }

// ActiveOnly returns the active pods, in the given order.
func ActiveOnly(pods []*corev1.Pod) []*corev1.Pod {
	some := make([]*corev1.Pod, 0, len(pods))
	for _, p := range pods {
		if Active(p) {
			some = append(some, p)
		}
	}
	return some
}

// ReadyCondition returns the pod's Ready condition or nil.
func ReadyCondition(p *corev1.Pod) *corev1.PodCondition {
	for i := range p.Status.Conditions {
		if p.Status.Conditions[i].Type == corev1.PodReady {
			return &p.Status.Conditions[i]
		}
	}
	return nil
}

// Ready says that the Ready condition is true.
func Ready(p *corev1.Pod) bool {
	c := ReadyCondition(p)
	return c != nil && c.Status == corev1.ConditionTrue
}

// Available says that the pod has been ready for minReady. When only time is
// missing, at is when it will be; otherwise at is zero.
func Available(p *corev1.Pod, minReady time.Duration, now time.Time) (ok bool, at time.Time) {
	c := ReadyCondition(p)
	if c == nil || c.Status != corev1.ConditionTrue {
		return false, time.Time{}
	}
	if minReady == 0 {
		return true, time.Time{}
	}
	if c.LastTransitionTime.IsZero() {
		return false, time.Time{}
	}
	at = c.LastTransitionTime.Add(minReady)
	if !at.After(now) {
		return true, time.Time{}
	}
	return false, at
}

// Counts are the numbers of a workload's status.
type Counts struct {
	Replicas     int32 // active pods
	FullyLabeled int32 // of them, those with all labels of the template
	Ready        int32
	Available    int32
	Terminating  int32
	Next         time.Time // when Available changes by time alone; zero: never
}

// Count counts pods, active and terminating ones.
func Count(pods []*corev1.Pod, template map[string]string, minReady time.Duration, now time.Time) Counts {
	var c Counts
	all := labels.SelectorFromSet(template)
	for _, p := range pods {
		if Terminating(p) {
			c.Terminating++
		}
		if !Active(p) {
			continue
		}
		c.Replicas++
		if all.Matches(labels.Set(p.Labels)) {
			c.FullyLabeled++
		}
		if !Ready(p) {
			continue
		}
		c.Ready++
		if ok, at := Available(p, minReady, now); ok {
			c.Available++
		} else {
			c.Next = Sooner(c.Next, at)
		}
	}
	return c
}

// Sooner returns the earlier of two times, where zero means never.
func Sooner(a, b time.Time) time.Time {
	switch {
	case a.IsZero():
		return b
	case b.IsZero() || a.Before(b):
		return a
	}
	return b
}

// Seconds is a number of seconds as a duration.
func Seconds(n int32) time.Duration { return time.Duration(n) * time.Second }

// Claims is the answer of [Claim].
type Claims[T metav1.Object] struct {
	Mine    []T // owned already and selected
	Adopt   []T // selected, without an owner
	Release []T // owned, no longer selected
}

// Claim sorts candidates by whose they are. Candidates are what refers to owner
// and what has no owner in its namespace; others are ignored. An owner that is
// being deleted neither adopts nor releases.
func Claim[T metav1.Object](owner metav1.Object, selector labels.Selector, candidates []T) Claims[T] {
	var c Claims[T]
	going := owner.GetDeletionTimestamp() != nil
	for _, o := range candidates {
		if ref := metav1.GetControllerOfNoCopy(o); ref != nil {
			switch {
			case ref.UID != owner.GetUID():
			case selector.Matches(labels.Set(o.GetLabels())):
				c.Mine = append(c.Mine, o)
			case !going:
				c.Release = append(c.Release, o)
			}
			continue
		}
		if !going && o.GetDeletionTimestamp() == nil && o.GetNamespace() == owner.GetNamespace() && selector.Matches(labels.Set(o.GetLabels())) {
			c.Adopt = append(c.Adopt, o)
		}
	}
	return c
}

// Ref is the controlling owner reference that a workload puts on what it makes.
func Ref(owner metav1.Object, gvk schema.GroupVersionKind) *metav1.OwnerReference {
	return metav1.NewControllerRef(owner, gvk)
}

// With returns refs with ref in place of any reference to the same UID.
func With(refs []metav1.OwnerReference, ref metav1.OwnerReference) []metav1.OwnerReference {
	return append(Without(refs, ref.UID), ref)
}

// Without returns refs without those to uid.
func Without(refs []metav1.OwnerReference, uid types.UID) []metav1.OwnerReference {
	some := make([]metav1.OwnerReference, 0, len(refs)+1)
	for _, r := range refs {
		if r.UID != uid {
			some = append(some, r)
		}
	}
	return some
}

// FromTemplate makes a pod of the template, owned by owner and with a generated
// name after it. The template's maps are copied.
func FromTemplate(t *corev1.PodTemplateSpec, owner metav1.Object, gvk schema.GroupVersionKind) *corev1.Pod {
	t = t.DeepCopy()
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			GenerateName:    Prefix(owner.GetName()),
			Namespace:       owner.GetNamespace(),
			Labels:          t.Labels,
			Annotations:     t.Annotations,
			Finalizers:      t.Finalizers,
			OwnerReferences: []metav1.OwnerReference{*Ref(owner, gvk)},
		},
		Spec: t.Spec,
	}
}

// Prefix is the generateName for pods of an owner. An owner whose name cannot
// start a pod's name with a dash lends it without one.
func Prefix(owner string) string {
	// A trailing dash is masked as the generated suffix will follow it.
	if len(validation.IsDNS1123Subdomain(owner+"-x")) == 0 {
		return owner + "-"
	}
	return owner
}

// Hash names a template. The same template and collision count give the same
// hash in every process and release: the input is the template's JSON. The
// result has only letters and digits that cannot form words.
func Hash(t *corev1.PodTemplateSpec, collisions *int32) string {
	h := fnv.New32a()
	data, err := json.Marshal(t)
	if err != nil {
		panic(fmt.Sprintf("a pod template that was decoded cannot be encoded: %v", err))
	}
	_, _ = h.Write(data)
	if collisions != nil {
		fmt.Fprintf(h, "%d", *collisions)
	}
	return rand.SafeEncodeString(fmt.Sprint(h.Sum32()))
}

// HashBytes is Hash for data that has its encoding already.
func HashBytes(data []byte, collisions *int32) string {
	h := fnv.New32a()
	_, _ = h.Write(data)
	if collisions != nil {
		fmt.Fprintf(h, "%d", *collisions)
	}
	return rand.SafeEncodeString(fmt.Sprint(h.Sum32()))
}

// ByAge sorts objects, oldest first; the name decides between equals.
func ByAge[T metav1.Object](list []T) []T {
	slices.SortFunc(list, func(a, b T) int {
		at, bt := a.GetCreationTimestamp(), b.GetCreationTimestamp()
		if c := at.Time.Compare(bt.Time); c != 0 {
			return c
		}
		if a.GetName() < b.GetName() {
			return -1
		}
		if a.GetName() > b.GetName() {
			return 1
		}
		return 0
	})
	return list
}
