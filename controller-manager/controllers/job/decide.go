// Package job runs pods until a Job is complete, and counts each ended pod exactly
// once.
//
// # How pods are counted
//
// Every pod of a Job carries the finalizer batch.kubernetes.io/job-tracking, so
// that none vanishes uncounted. An ended pod goes through these states, each
// written before the next begins, so that a crash in between repeats a step and
// never counts twice:
//
//	ended, finalizer        seen for the first time
//	  → status: UID among uncountedTerminatedPods (or its index among completedIndexes)
//	  → finalizer removed
//	  → status: UID gone from there, and one more in succeeded or failed
//
// # How a Job ends
//
// A condition SuccessCriteriaMet or FailureTarget comes first; then active pods
// are deleted, and when all are counted and none is terminating, Complete or
// Failed follows with the same reason.
//
// [Decide] is one pass of all this and pure. indexes.go, policy.go and backoff.go
// are its arithmetic; pods.go makes and chooses pods; apply.go has the writes.
//
// Source: Kubernetes documentation, "Jobs"; KEP-2307, KEP-3329, KEP-3850, KEP-3939,
// KEP-3998, KEP-4368.
package job

import (
	"fmt"
	"slices"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/keelson/keelson/controller-manager/podset"
)

// mostUncounted bounds the UIDs that one status holds.
const mostUncounted = 500

// Make is a pod to be created: of an index (-1: none) and with the failures that
// the index has had.
type Make struct {
	Index            int
	Failures         int32
	FailuresIgnored  int32
	NoteIndexFailure bool
}

// Happening is an event to be recorded when the status has been written.
type Happening struct{ Kind, Reason, Message string }

// Decision is what one pass wants done, in this order: Untrack, Delete, Create,
// Status, Count.
type Decision struct {
	Untrack []*corev1.Pod // their finalizer goes uncounted, before they are deleted
	Delete  []*corev1.Pod
	Create  []Make
	Status  batchv1.JobStatus
	Count   []*corev1.Pod // their finalizer goes when the status is stored
	Events  []Happening
	Streak  Streak // to be remembered when the status is stored
	Again   time.Time
}

// Lines are the decision's steps as text.
func (d Decision) Lines() []string {
	var l []string
	for _, p := range d.Delete {
		l = append(l, "delete pod "+p.Name)
	}
	for _, m := range d.Create {
		if m.Index >= 0 {
			l = append(l, fmt.Sprintf("create pod of index %d", m.Index))
		} else {
			l = append(l, "create pod")
		}
	}
	for _, p := range d.Count {
		l = append(l, "count pod "+p.Name)
	}
	return l
}

type work struct {
	job  *batchv1.Job
	pods []*corev1.Pod
	now  time.Time

	active      []*corev1.Pod
	indexed     bool
	wanted      int // completions; -1 when any success completes the job
	s           batchv1.JobStatus
	d           Decision
	succeeded   int // all, counted or not
	failed      int
	doneBefore  indexes // as the status has it
	done        indexes
	failedIdx   *indexes // nil without a back-off limit per index
	lastOfIndex map[int]*corev1.Pod
	terminating int32
	end         *batchv1.JobCondition // FailureTarget or SuccessCriteriaMet, when one holds
}

// Decide compares the Job with its pods. streak is what was remembered of earlier
// failures; it may be empty after a restart.
func Decide(job *batchv1.Job, pods []*corev1.Pod, streak Streak, now time.Time) Decision {
	w := &work{job: job, pods: slices.Clone(pods), now: now, s: *job.Status.DeepCopy(), wanted: -1}
	if over(job.Status) {
		return Decision{Status: job.Status}
	}
	slices.SortFunc(w.pods, func(a, b *corev1.Pod) int {
		if c := indexOf(a) - indexOf(b); c != 0 {
			return c
		}
		return a.CreationTimestamp.Compare(b.CreationTimestamp.Time)
	})
	w.active = podset.ActiveOnly(w.pods)
	w.indexed = job.Spec.CompletionMode != nil && *job.Spec.CompletionMode == batchv1.IndexedCompletion
	if job.Spec.Completions != nil {
		w.wanted = int(*job.Spec.Completions)
	}
	if w.s.UncountedTerminatedPods == nil {
		w.s.UncountedTerminatedPods = &batchv1.UncountedTerminatedPods{}
	}
	for _, p := range w.pods {
		if podset.Terminating(p) {
			w.terminating++
		}
	}
	w.settleCounts()
	good, bad := w.newlyEnded()
	w.d.Streak = streak.after(good, bad)
	w.tally(good, bad)
	if w.s.StartTime == nil && !suspended(job) {
		w.s.StartTime = &metav1.Time{Time: now}
	}
	w.findEnd()
	if w.end != nil {
		w.deleteAll()
	} else {
		w.manage()
	}
	w.count()
	w.conclude()
	w.d.Status = w.s
	return w.d
}

func over(s batchv1.JobStatus) bool {
	for _, c := range s.Conditions {
		if (c.Type == batchv1.JobComplete || c.Type == batchv1.JobFailed) && c.Status == corev1.ConditionTrue {
			return true
		}
	}
	return false
}

func suspended(j *batchv1.Job) bool { return j.Spec.Suspend != nil && *j.Spec.Suspend }

func tracked(p *corev1.Pod) bool { return slices.Contains(p.Finalizers, batchv1.JobTrackingFinalizer) }

// replaceOnlyFailed says that a terminating pod is waited for, not replaced.
func replaceOnlyFailed(j *batchv1.Job) bool {
	if r := j.Spec.PodReplacementPolicy; r != nil {
		return *r == batchv1.Failed
	}
	return j.Spec.PodFailurePolicy != nil
}

// hasFailed says that a pod counts as failed: it ended so, or it is being deleted
// and is not waited for.
func hasFailed(j *batchv1.Job, p *corev1.Pod) bool {
	if p.Status.Phase == corev1.PodFailed {
		return true
	}
	return !replaceOnlyFailed(j) && p.DeletionTimestamp != nil && p.Status.Phase != corev1.PodSucceeded
}

// settleCounts moves UIDs whose pods have lost their finalizer to the counters.
func (w *work) settleCounts() {
	still := map[types.UID]bool{}
	for _, p := range w.pods {
		if tracked(p) {
			still[p.UID] = true
		}
	}
	settle := func(list *[]types.UID, counter *int32) {
		var left []types.UID
		for _, uid := range *list {
			if still[uid] {
				left = append(left, uid)
			} else {
				*counter++
			}
		}
		*list = left
	}
	var ignore int32
	succeeded := &w.s.Succeeded
	if w.indexed {
		succeeded = &ignore // indexes are counted by completedIndexes
	}
	settle(&w.s.UncountedTerminatedPods.Succeeded, succeeded)
	settle(&w.s.UncountedTerminatedPods.Failed, &w.s.Failed)
}

// valid says that a pod takes part: it is tracked and, in an indexed job, has an
// index that is wanted.
func (w *work) valid(p *corev1.Pod) bool {
	if !tracked(p) {
		return false
	}
	i := indexOf(p)
	return !w.indexed || i >= 0 && i < w.wanted
}

func (w *work) newlyEnded() (good, bad []*corev1.Pod) {
	u := w.s.UncountedTerminatedPods
	for _, p := range w.pods {
		switch {
		case !w.valid(p):
		case p.Status.Phase == corev1.PodSucceeded:
			if !slices.Contains(u.Succeeded, p.UID) {
				good = append(good, p)
			}
		case hasFailed(w.job, p) && !slices.Contains(u.Failed, p.UID):
			bad = append(bad, p)
		}
	}
	return good, bad
}

// tally adds up successes and failures, counted or not yet.
func (w *work) tally(good, bad []*corev1.Pod) {
	u := w.s.UncountedTerminatedPods
	w.succeeded = int(w.s.Succeeded) + len(u.Succeeded) + len(good)
	w.failed = int(w.s.Failed) + len(u.Failed)
	for _, p := range bad {
		if judge(w.job.Spec.PodFailurePolicy, p).counted {
			w.failed++
		}
	}
	if !w.indexed {
		return
	}
	w.doneBefore = parseIndexes(w.s.CompletedIndexes, w.wanted)
	w.done = w.doneBefore
	for _, p := range w.pods {
		if w.valid(p) && p.Status.Phase == corev1.PodSucceeded {
			w.done = w.done.with(indexOf(p))
		}
	}
	w.succeeded = w.done.count()
	if w.job.Spec.BackoffLimitPerIndex != nil {
		w.tallyIndexes()
	}
}

// tallyIndexes finds the indexes that have failed for good, and for every other
// index without an active pod the failed pod that the next one replaces: it keeps
// its finalizer until then, for it alone knows how often the index has failed.
func (w *work) tallyIndexes() {
	var f indexes
	if w.s.FailedIndexes != nil {
		f = parseIndexes(*w.s.FailedIndexes, w.wanted)
	}
	for _, p := range w.pods {
		if !w.valid(p) || !hasFailed(w.job, p) {
			continue
		}
		v := judge(w.job.Spec.PodFailurePolicy, p)
		n, _ := failures(p)
		if v.action == batchv1.PodFailurePolicyActionFailIndex || v.counted && n >= *w.job.Spec.BackoffLimitPerIndex {
			f = f.with(indexOf(p))
		}
	}
	w.failedIdx = &f
	running := indexes(nil).with(indexesOf(w.active)...)
	w.lastOfIndex = map[int]*corev1.Pod{}
	for _, p := range w.pods {
		i := indexOf(p)
		if !w.valid(p) || !hasFailed(w.job, p) || w.done.has(i) || f.has(i) || running.has(i) {
			continue
		}
		if had := w.lastOfIndex[i]; had == nil || total(had) <= total(p) && !endOf(p).Before(endOf(had)) {
			w.lastOfIndex[i] = p
		}
	}
}

func total(p *corev1.Pod) int32 { a, b := failures(p); return a + b }

func (w *work) find(t batchv1.JobConditionType) *batchv1.JobCondition {
	for i := range w.s.Conditions {
		if w.s.Conditions[i].Type == t {
			return &w.s.Conditions[i]
		}
	}
	return nil
}

func (w *work) condition(t batchv1.JobConditionType, reason, message string) *batchv1.JobCondition {
	at := metav1.NewTime(w.now)
	return &batchv1.JobCondition{Type: t, Status: corev1.ConditionTrue, Reason: reason, Message: message, LastProbeTime: at, LastTransitionTime: at}
}

// findEnd says whether the Job is to end, and why.
func (w *work) findEnd() {
	for _, t := range []batchv1.JobConditionType{batchv1.JobSuccessCriteriaMet, batchv1.JobFailureTarget} {
		if c := w.find(t); c != nil && c.Status == corev1.ConditionTrue {
			w.end = c.DeepCopy()
			return
		}
	}
	fail := func(reason, message string) { w.end = w.condition(batchv1.JobFailureTarget, reason, message) }
	for _, p := range w.pods {
		if hasFailed(w.job, p) {
			if v := judge(w.job.Spec.PodFailurePolicy, p); v.message != "" {
				fail(batchv1.JobReasonPodFailurePolicy, v.message)
				return
			}
		}
	}
	limit := 6
	if w.job.Spec.BackoffLimit != nil {
		limit = int(*w.job.Spec.BackoffLimit)
	}
	if w.failed > limit || w.restartsExceed(limit) {
		fail(batchv1.JobReasonBackoffLimitExceeded, "Job has reached the specified backoff limit")
		return
	}
	if a := w.job.Spec.ActiveDeadlineSeconds; a != nil && !suspended(w.job) {
		at := w.s.StartTime.Add(time.Duration(*a) * time.Second)
		if !w.now.Before(at) {
			fail(batchv1.JobReasonDeadlineExceeded, "Job was active longer than specified deadline")
			return
		}
		w.d.Again = podset.Sooner(w.d.Again, at)
	}
	if !w.indexed {
		return
	}
	if f := w.failedIdx; f != nil {
		switch n := f.count(); {
		case w.job.Spec.MaxFailedIndexes != nil && n > int(*w.job.Spec.MaxFailedIndexes):
			fail(batchv1.JobReasonMaxFailedIndexesExceeded, "Job has exceeded the specified maximal number of failed indexes")
			return
		case n > 0 && n+w.done.count() >= w.wanted:
			fail(batchv1.JobReasonFailedIndexes, "Job has failed indexes")
			return
		}
	}
	if message, met := success(w.job.Spec.SuccessPolicy, w.wanted, w.done); met {
		w.end = w.condition(batchv1.JobSuccessCriteriaMet, batchv1.JobReasonSuccessPolicy, message)
	}
}

// restartsExceed counts restarts in place, where pods restart their containers.
func (w *work) restartsExceed(limit int) bool {
	if w.job.Spec.Template.Spec.RestartPolicy != corev1.RestartPolicyOnFailure {
		return false
	}
	n := 0
	for _, p := range w.pods {
		if p.Status.Phase != corev1.PodRunning && p.Status.Phase != corev1.PodPending {
			continue
		}
		for _, s := range slices.Concat(p.Status.InitContainerStatuses, p.Status.ContainerStatuses) {
			n += int(s.RestartCount)
		}
	}
	if limit == 0 {
		return n > 0
	}
	return n >= limit
}

// count puts ended pods into the status and lets their finalizers go.
func (w *work) count() {
	u := w.s.UncountedTerminatedPods
	var newDone []int
	deleting := map[types.UID]bool{}
	for _, p := range w.d.Untrack {
		deleting[p.UID] = true
	}
	for _, p := range w.pods {
		if !tracked(p) || deleting[p.UID] {
			continue
		}
		bad := hasFailed(w.job, p)
		if !w.mayCount(p, bad) {
			continue
		}
		if len(newDone)+len(u.Succeeded)+len(u.Failed) >= mostUncounted {
			w.d.Again = w.now
			break
		}
		w.d.Count = append(w.d.Count, p)
		known := slices.Contains(u.Failed, p.UID)
		i := indexOf(p)
		counts := !w.indexed || i >= 0 && i < w.wanted
		switch {
		case p.Status.Phase == corev1.PodSucceeded && !known:
			if w.indexed {
				if counts && !w.doneBefore.has(i) {
					newDone = append(newDone, i)
				}
			} else if !slices.Contains(u.Succeeded, p.UID) {
				u.Succeeded = append(u.Succeeded, p.UID)
			}
		case (bad || w.end != nil && w.end.Type == batchv1.JobFailureTarget) && !known && counts:
			if judge(w.job.Spec.PodFailurePolicy, p).counted {
				u.Failed = append(u.Failed, p.UID)
			}
		}
	}
	if w.indexed {
		done := w.doneBefore.with(newDone...)
		w.s.Succeeded, w.s.CompletedIndexes = int32(done.count()), done.String()
		w.s.FailedIndexes = nil
		if w.failedIdx != nil {
			text := w.failedIdx.String()
			w.s.FailedIndexes = &text
		}
	}
}

func (w *work) mayCount(p *corev1.Pod, bad bool) bool {
	if w.job.DeletionTimestamp != nil || w.end != nil || p.Status.Phase == corev1.PodSucceeded {
		return true
	}
	if !bad {
		return false
	}
	last := w.lastOfIndex[indexOf(p)]
	return last == nil || last.UID != p.UID
}

// conclude writes what is true at the end of the pass: the announcing condition,
// and the final one when everything is counted and gone.
func (w *work) conclude() {
	if w.end == nil {
		return
	}
	announced := w.find(w.end.Type)
	if announced == nil {
		w.s.Conditions = append(w.s.Conditions, *w.end)
	}
	u := w.s.UncountedTerminatedPods
	if announced == nil || len(w.d.Count) > 0 || len(u.Succeeded)+len(u.Failed) > 0 || w.terminating > 0 || len(w.d.Delete) > 0 {
		return
	}
	if w.end.Type == batchv1.JobFailureTarget {
		c := w.condition(batchv1.JobFailed, w.end.Reason, w.end.Message)
		w.s.Conditions = append(w.s.Conditions, *c)
		w.d.Events = append(w.d.Events, Happening{corev1.EventTypeWarning, c.Reason, c.Message})
		return
	}
	c := w.condition(batchv1.JobComplete, w.end.Reason, w.end.Message)
	w.s.Conditions = append(w.s.Conditions, *c)
	w.s.CompletionTime = &c.LastTransitionTime
	if w.wanted >= 0 && int(w.s.Succeeded) > w.wanted {
		w.d.Events = append(w.d.Events, Happening{corev1.EventTypeWarning, "TooManySucceededPods", "Too many succeeded pods running after completion count reached"})
	}
	w.d.Events = append(w.d.Events, Happening{corev1.EventTypeNormal, "Completed", "Job completed"})
}
