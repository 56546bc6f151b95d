// Package daemonset keeps one pod of a DaemonSet on every node that fits it.
//
// Pods are made for a node by node affinity on its name and are bound by the
// scheduler. [Decide] is pure: which nodes need a pod, which pods go, what a
// rolling update replaces next. nodes.go knows which nodes fit; apply.go has the
// writes and the table row.
//
// A pass either repairs (missing, doubled, failed, misplaced pods) or, when there
// is nothing to repair, rolls the update on.
//
// Source: Kubernetes documentation, "DaemonSet"; KEP-1591 (surge).
package daemonset

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/keelson/keelson/controller-manager/podset"
)

// Seen is what the controller sees of a set.
type Seen struct {
	Nodes []*corev1.Node
	Pods  []*corev1.Pod // the set's own
	Hash  string        // of the present template
	// Wait is how long a failed pod on a node must still be left alone, so that a
	// pod that always fails does not make pods come and go at full speed.
	Wait func(node string) time.Duration
}

// Decision is what one pass wants done.
type Decision struct {
	Create []string // names of nodes
	Delete []*corev1.Pod
	Failed []*corev1.Pod // those of Delete that had failed
	Ended  []*corev1.Pod // those of Delete that had succeeded
	Status appsv1.DaemonSetStatus
	Again  time.Time
}

// Lines are the decision's steps as text.
func (d Decision) Lines() []string {
	var l []string
	for _, n := range d.Create {
		l = append(l, "create pod on "+n)
	}
	for _, p := range d.Delete {
		l = append(l, fmt.Sprintf("delete pod %s on %s", p.Name, target(p)))
	}
	return l
}

type work struct {
	set    *appsv1.DaemonSet
	seen   Seen
	now    time.Time
	fits   map[string]fit
	byNode map[string][]*corev1.Pod // sorted: running first, then oldest first
	d      Decision
}

// Decide compares the set with nodes and pods.
func Decide(set *appsv1.DaemonSet, seen Seen, now time.Time) Decision {
	w := &work{set: set, seen: seen, now: now, byNode: map[string][]*corev1.Pod{}}
	slices.SortFunc(w.seen.Nodes, func(a, b *corev1.Node) int { return cmp.Compare(a.Name, b.Name) })
	w.fits = fits(set, w.seen.Nodes)
	for _, p := range seen.Pods {
		if podset.Ended(p) && p.DeletionTimestamp != nil {
			continue
		}
		if n := target(p); n != "" {
			w.byNode[n] = append(w.byNode[n], p)
		}
	}
	for _, list := range w.byNode {
		slices.SortFunc(list, first)
	}
	w.repair()
	if len(w.d.Create) == 0 && len(w.d.Delete) == 0 && set.Spec.UpdateStrategy.Type == appsv1.RollingUpdateDaemonSetStrategyType {
		w.roll()
	}
	w.d.Status = w.status()
	return w.d
}

// first orders the pods of one node: assigned ones, then the oldest.
func first(a, b *corev1.Pod) int {
	if (a.Spec.NodeName == "") != (b.Spec.NodeName == "") {
		if a.Spec.NodeName != "" {
			return -1
		}
		return 1
	}
	return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(a.Name, b.Name))
}

func (w *work) available(p *corev1.Pod) bool {
	ok, at := podset.Available(p, podset.Seconds(w.set.Spec.MinReadySeconds), w.now)
	w.d.Again = podset.Sooner(w.d.Again, at)
	return ok
}

func (w *work) updated(p *corev1.Pod) bool { return isUpdated(w.set, p, w.seen.Hash) }

func (w *work) drop(pods ...*corev1.Pod) { w.d.Delete = append(w.d.Delete, pods...) }

// repair makes every fitting node have its pod and no other node have one.
func (w *work) repair() {
	for _, n := range w.seen.Nodes {
		f, pods := w.fits[n.Name], w.byNode[n.Name]
		switch {
		case f.run && len(pods) == 0:
			w.d.Create = append(w.d.Create, n.Name)
		case f.stay:
			w.repairNode(n.Name, f, pods)
		default:
			for _, p := range pods {
				if p.DeletionTimestamp == nil {
					w.drop(p)
				}
			}
		}
	}
	// Pods that wait for a node that is no more.
	for _, name := range sortedKeys(w.byNode) {
		if _, ok := w.fits[name]; ok {
			continue
		}
		for _, p := range w.byNode[name] {
			if p.Spec.NodeName == "" && p.DeletionTimestamp == nil {
				w.drop(p)
			}
		}
	}
}

func (w *work) repairNode(node string, f fit, pods []*corev1.Pod) {
	var live []*corev1.Pod
	for _, p := range pods {
		switch {
		case p.DeletionTimestamp != nil:
		case p.Status.Phase == corev1.PodFailed:
			if wait := w.seen.Wait(node); wait > 0 {
				w.d.Again = podset.Sooner(w.d.Again, w.now.Add(wait))
				continue
			}
			w.d.Failed = append(w.d.Failed, p)
			w.drop(p)
		case p.Status.Phase == corev1.PodSucceeded:
			w.d.Ended = append(w.d.Ended, p)
			w.drop(p)
		default:
			live = append(live, p)
		}
	}
	surge, _ := w.limits()
	if surge == 0 {
		if len(live) > 1 {
			w.drop(live[1:]...)
		}
		return
	}
	if len(live) <= 1 {
		if len(live) == 0 && f.run {
			w.d.Create = append(w.d.Create, node)
		}
		return
	}
	// One old and one new pod may stand beside each other.
	var fresh, old *corev1.Pod
	for _, p := range live {
		switch {
		case w.hasHash(p) && fresh == nil:
			fresh = p
		case !w.hasHash(p) && old == nil:
			old = p
		default:
			w.drop(p)
		}
	}
	if fresh != nil && old != nil && (!podset.Ready(old) || w.available(fresh)) {
		w.drop(old)
	}
}

func (w *work) hasHash(p *corev1.Pod) bool {
	return p.Labels[appsv1.ControllerRevisionHashLabelKey] == w.seen.Hash
}

// wanted is the number of nodes that should run a pod.
func (w *work) wanted() int {
	n := 0
	for _, f := range w.fits {
		if f.run {
			n++
		}
	}
	return n
}

// limits are how many nodes may have a second, new pod, and on how many nodes the
// pod may be missing. Both 0 would block updates: then one may be missing.
func (w *work) limits() (surge, unavailable int) {
	r := w.set.Spec.UpdateStrategy.RollingUpdate
	if w.set.Spec.UpdateStrategy.Type != appsv1.RollingUpdateDaemonSetStrategyType {
		return 0, 0
	}
	n := w.wanted()
	if r != nil && r.MaxSurge != nil {
		surge, _ = intstr.GetScaledValueFromIntOrPercent(r.MaxSurge, n, true)
	}
	unavailable = 1
	if r != nil && r.MaxUnavailable != nil {
		unavailable, _ = intstr.GetScaledValueFromIntOrPercent(r.MaxUnavailable, n, true)
	}
	if n > 0 && surge == 0 && unavailable == 0 {
		unavailable = 1
	}
	return surge, unavailable
}

// pair finds the new and the old pod of a node; ok is false when there are more.
func (w *work) pair(pods []*corev1.Pod) (fresh, old *corev1.Pod, ok bool) {
	for _, p := range pods {
		if p.DeletionTimestamp != nil {
			continue
		}
		at := &old
		if w.updated(p) {
			at = &fresh
		}
		if *at != nil {
			return nil, nil, false
		}
		*at = p
	}
	return fresh, old, true
}

func (w *work) roll() {
	nodes := w.byNode
	for name, f := range w.fits {
		if _, ok := nodes[name]; !ok && f.run {
			nodes[name] = nil
		}
	}
	surge, unavailable := w.limits()
	if surge > 0 {
		w.rollBySurge(surge)
		return
	}
	missing := 0
	var sick, candidates []*corev1.Pod
	for _, name := range sortedKeys(nodes) {
		fresh, old, ok := w.pair(nodes[name])
		switch {
		case !ok, (fresh == nil) == (old == nil):
			missing++
		case fresh != nil:
			if !w.available(fresh) {
				missing++
			}
		case !w.available(old):
			// Replacing what does not serve costs nothing.
			sick = append(sick, old)
			missing++
		default:
			candidates = append(candidates, old)
		}
	}
	w.drop(sick...)
	w.drop(candidates[:min(len(candidates), max(0, unavailable-missing))]...)
}

func (w *work) rollBySurge(surge int) {
	surging, serving := 0, 0
	var candidates []string
	var misplaced []*corev1.Pod
	for _, name := range sortedKeys(w.byNode) {
		fresh, old, ok := w.pair(w.byNode[name])
		if !ok {
			surging++
			continue
		}
		if p := cmp.Or(old, fresh); p != nil && w.available(p) {
			serving++
		}
		switch {
		case old == nil:
		case fresh == nil && !w.available(old):
			if w.fits[name].run {
				w.d.Create = append(w.d.Create, name)
			} else {
				w.drop(old)
			}
		case fresh == nil && !w.fits[name].run:
			misplaced = append(misplaced, old)
		case fresh == nil:
			candidates = append(candidates, name)
		case !w.available(fresh):
			surging++
		default:
			w.drop(old)
		}
	}
	w.drop(misplaced[:min(len(misplaced), max(0, serving-w.wanted()))]...)
	w.d.Create = append(w.d.Create, candidates[:min(len(candidates), max(0, surge-surging))]...)
}

func (w *work) status() appsv1.DaemonSetStatus {
	s := appsv1.DaemonSetStatus{
		ObservedGeneration: w.set.Generation,
		CollisionCount:     w.set.Status.CollisionCount,
		Conditions:         w.set.Status.Conditions,
	}
	for _, n := range w.seen.Nodes {
		pods := w.byNode[n.Name]
		if !w.fits[n.Name].run {
			if len(pods) > 0 {
				s.NumberMisscheduled++
			}
			continue
		}
		s.DesiredNumberScheduled++
		if len(pods) == 0 {
			continue
		}
		s.CurrentNumberScheduled++
		p := pods[0]
		if podset.Ready(p) {
			s.NumberReady++
			if w.available(p) {
				s.NumberAvailable++
			}
		}
		if w.updated(p) {
			s.UpdatedNumberScheduled++
		}
	}
	s.NumberUnavailable = s.DesiredNumberScheduled - s.NumberAvailable
	return s
}
