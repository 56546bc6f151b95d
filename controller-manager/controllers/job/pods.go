package job

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/keelson/keelson/controller-manager/podset"
)

// deleteAll ends the active pods of a Job that has its end.
func (w *work) deleteAll() {
	w.d.Delete = append(w.d.Delete, w.active...)
	w.numbers(0, 0, int32(len(w.active)))
}

// numbers sets the status' counts of pods: active after the steps, of them ready,
// and how many more are terminating.
func (w *work) numbers(active, ready, more int32) {
	terminating := w.terminating + more
	w.s.Active, w.s.Ready, w.s.Terminating = active, &ready, &terminating
}

func readyCount(pods []*corev1.Pod) int32 {
	var n int32
	for _, p := range pods {
		if podset.Ready(p) {
			n++
		}
	}
	return n
}

// manage brings the number of active pods to what the Job wants now.
func (w *work) manage() {
	active := int32(len(w.active))
	w.numbers(active, readyCount(w.active), 0)
	if w.job.DeletionTimestamp != nil {
		return
	}
	if suspended(w.job) {
		w.remove(w.active)
	} else if surplus := w.surplus(); len(surplus) > 0 {
		w.remove(surplus)
	} else {
		w.add()
	}
	if w.complete() {
		w.end = w.condition(batchv1.JobSuccessCriteriaMet, batchv1.JobReasonCompletionsReached, "Reached expected number of succeeded pods")
		return
	}
	w.suspension()
}

func (w *work) complete() bool {
	if w.s.Active > 0 {
		return false
	}
	if w.wanted < 0 {
		return w.succeeded > 0
	}
	return w.succeeded >= w.wanted
}

// wantActive is the number of pods that should run at once.
func (w *work) wantActive() int {
	parallelism := 1
	if w.job.Spec.Parallelism != nil {
		parallelism = int(*w.job.Spec.Parallelism)
	}
	if w.wanted < 0 {
		if w.succeeded > 0 {
			return len(w.active) // one success is enough; the others run to their end
		}
		return parallelism
	}
	return max(0, min(parallelism, w.wanted-w.succeeded))
}

// surplus are the pods that must go: doubles of an index, indexes that are not
// wanted, and then as many as there are too many.
func (w *work) surplus() []*corev1.Pod {
	most := max(0, len(w.active)-w.wantActive())
	var out, rest []*corev1.Pod
	rest = w.active
	if w.indexed {
		rest = nil
		best := map[int]*corev1.Pod{}
		for _, p := range w.active {
			i := indexOf(p)
			if i < 0 || i >= w.wanted {
				out = append(out, p)
				continue
			}
			had := best[i]
			if had == nil {
				best[i] = p
			} else if podset.First(had, p, nil, w.now) < 0 {
				out, best[i] = append(out, had), p
			} else {
				out = append(out, p)
			}
		}
		for _, p := range w.active {
			if best[indexOf(p)] == p {
				rest = append(rest, p)
			}
		}
	}
	if n := most - len(out); n > 0 {
		out = append(out, podset.Surplus(rest, nil, n, w.now)...)
	}
	return out
}

// remove deletes pods that are not to count: their finalizer goes first.
func (w *work) remove(pods []*corev1.Pod) {
	for _, p := range pods {
		if tracked(p) {
			w.d.Untrack = append(w.d.Untrack, p)
		}
	}
	w.d.Delete = append(w.d.Delete, pods...)
	n := int32(len(pods))
	w.numbers(int32(len(w.active))-n, readyCount(w.active)-readyCount(pods), n)
}

// add makes the pods that are missing, unless failures ask for patience.
func (w *work) add() {
	n := w.wantActive() - len(w.active)
	if replaceOnlyFailed(w.job) {
		n -= int(w.terminating)
	}
	if n <= 0 {
		return
	}
	perIndex := w.job.Spec.BackoffLimitPerIndex != nil
	if !perIndex {
		if wait := w.d.Streak.wait(w.now); wait > 0 {
			w.d.Again = podset.Sooner(w.d.Again, w.now.Add(wait))
			return
		}
	}
	if !w.indexed {
		for range n {
			w.d.Create = append(w.d.Create, Make{Index: -1})
		}
	} else {
		taken := w.done.with(indexesOf(w.active)...)
		if replaceOnlyFailed(w.job) {
			taken = taken.with(indexesOf(slices.DeleteFunc(slices.Clone(w.pods), func(p *corev1.Pod) bool { return !podset.Terminating(p) }))...)
		}
		if w.failedIdx != nil {
			taken = taken.union(*w.failedIdx)
		}
		w.addIndexes(taken.missing(n, w.wanted), perIndex)
	}
	w.s.Active += int32(len(w.d.Create))
}

// addIndexes makes pods of indexes; an index that failed waits on its own.
func (w *work) addIndexes(list []int, perIndex bool) {
	var soonest time.Time
	for _, i := range list {
		m := Make{Index: i, NoteIndexFailure: perIndex}
		if last := w.lastOfIndex[i]; perIndex && last != nil {
			wait := Streak{Failures: int(total(last)) + 1, Last: endOf(last)}.wait(w.now)
			if wait > 0 {
				soonest = podset.Sooner(soonest, w.now.Add(wait))
				continue
			}
			m.Failures, m.FailuresIgnored = failures(last)
			if judge(w.job.Spec.PodFailurePolicy, last).counted {
				m.Failures++
			} else {
				m.FailuresIgnored++
			}
		}
		w.d.Create = append(w.d.Create, m)
	}
	w.d.Again = podset.Sooner(w.d.Again, soonest)
}

// suspension keeps the Suspended condition and the start time in step.
func (w *work) suspension() {
	want := corev1.ConditionFalse
	if suspended(w.job) {
		want = corev1.ConditionTrue
	}
	c := w.find(batchv1.JobSuspended)
	if c == nil && want == corev1.ConditionFalse || c != nil && c.Status == want {
		return
	}
	at := metav1.NewTime(w.now)
	next := batchv1.JobCondition{Type: batchv1.JobSuspended, Status: want, LastProbeTime: at, LastTransitionTime: at}
	if want == corev1.ConditionTrue {
		next.Reason, next.Message = "JobSuspended", "Job suspended"
		w.s.StartTime = nil
		w.d.Events = append(w.d.Events, Happening{corev1.EventTypeNormal, "Suspended", "Job suspended"})
	} else {
		next.Reason, next.Message = "JobResumed", "Job resumed"
		w.s.StartTime = &at
		w.d.Events = append(w.d.Events, Happening{corev1.EventTypeNormal, "Resumed", "Job resumed"})
	}
	if c == nil {
		w.s.Conditions = append(w.s.Conditions, next)
	} else {
		*c = next
	}
}

// newPod is a pod of the Job.
func newPod(j *batchv1.Job, m Make) *corev1.Pod {
	p := podset.FromTemplate(&j.Spec.Template, j, gvk)
	if !tracked(p) {
		p.Finalizers = append(p.Finalizers, batchv1.JobTrackingFinalizer)
	}
	if m.Index < 0 {
		return p
	}
	index := strconv.Itoa(m.Index)
	for _, set := range []*map[string]string{&p.Labels, &p.Annotations} {
		if *set == nil {
			*set = map[string]string{}
		}
		(*set)[batchv1.JobCompletionIndexAnnotation] = index
	}
	if m.NoteIndexFailure {
		p.Annotations[batchv1.JobIndexFailureCountAnnotation] = strconv.Itoa(int(m.Failures))
		if m.FailuresIgnored > 0 {
			p.Annotations[batchv1.JobIndexIgnoredFailureCountAnnotation] = strconv.Itoa(int(m.FailuresIgnored))
		}
	}
	p.Spec.Hostname = fmt.Sprintf("%s-%d", j.Name, m.Index)
	// 58 characters leave room for the five that the API adds.
	suffix := "-" + index + "-"
	p.GenerateName = j.Name[:min(len(j.Name), 58-len(suffix))] + suffix
	for _, list := range [][]corev1.Container{p.Spec.InitContainers, p.Spec.Containers} {
		for i := range list {
			withIndexEnv(&list[i])
		}
	}
	return p
}

func withIndexEnv(c *corev1.Container) {
	const name = "JOB_COMPLETION_INDEX"
	if slices.ContainsFunc(c.Env, func(e corev1.EnvVar) bool { return e.Name == name }) {
		return
	}
	c.Env = append(c.Env, corev1.EnvVar{Name: name, ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{
		FieldPath: fmt.Sprintf("metadata.labels['%s']", batchv1.JobCompletionIndexAnnotation),
	}}})
}

// byName orders pods for output.
func byName(a, b *corev1.Pod) int { return cmp.Compare(a.Name, b.Name) }
