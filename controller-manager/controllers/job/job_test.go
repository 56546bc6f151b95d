package job

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kruntime "k8s.io/apimachinery/pkg/runtime"
	"k8s.io/utils/ptr"
	"pgregory.net/rapid"

	"github.com/keelson/keelson/controller-manager/ctrltest"
	"github.com/keelson/keelson/controller-manager/runtime"
)

func newJob(completions, parallelism int32, change ...func(*batchv1.Job)) *batchv1.Job {
	l := map[string]string{"job": "j"}
	j := &batchv1.Job{
		ObjectMeta: metav1.ObjectMeta{Name: "j", Namespace: "ns", UID: "job"},
		Spec: batchv1.JobSpec{
			Completions: &completions, Parallelism: &parallelism, BackoffLimit: ptr.To(int32(6)), Selector: &metav1.LabelSelector{MatchLabels: l},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: l}, Spec: corev1.PodSpec{RestartPolicy: corev1.RestartPolicyNever, Containers: []corev1.Container{{Name: "c"}}}},
		},
	}
	for _, f := range change {
		f(j)
	}
	return j
}

func indexed(j *batchv1.Job) { j.Spec.CompletionMode = ptr.To(batchv1.IndexedCompletion) }

func get(h *ctrltest.Harness) *batchv1.Job {
	return ctrltest.Must(h.Client.BatchV1().Jobs("ns").Get(context.Background(), "j", metav1.GetOptions{}))
}

// state is what users look at: "active 2 succeeded 1 failed 0 SuccessCriteriaMet/CompletionsReached …".
func state(h *ctrltest.Harness) string {
	s := get(h).Status
	text := fmt.Sprintf("active %d succeeded %d failed %d", s.Active, s.Succeeded, s.Failed)
	if s.CompletedIndexes != "" {
		text += " done " + s.CompletedIndexes
	}
	if s.FailedIndexes != nil && *s.FailedIndexes != "" {
		text += " lost " + *s.FailedIndexes
	}
	for _, c := range s.Conditions {
		if c.Status == corev1.ConditionTrue {
			text += fmt.Sprintf(" %s/%s", c.Type, c.Reason)
		}
	}
	return text
}

func expect(t *testing.T, h *ctrltest.Harness, want, why string) {
	t.Helper()
	if got := state(h); got != want {
		t.Errorf("%s:\nwant %s\ngot  %s", why, want, got)
	}
}

// end ends active pods; n < 0 all of them.
func end(h *ctrltest.Harness, phase corev1.PodPhase, n int) {
	for _, p := range h.Pods("ns") {
		if n == 0 {
			break
		}
		if p.Status.Phase == corev1.PodPending || p.Status.Phase == corev1.PodRunning {
			h.Phase(p, phase)
			n--
		}
	}
	h.Rest()
}

func trackedPods(h *ctrltest.Harness) int {
	n := 0
	for _, p := range h.Pods("ns") {
		if tracked(p) {
			n++
		}
	}
	return n
}

func TestCompletion(t *testing.T) {
	ctrltest.Test(t, []runtime.Row{Row}, []kruntime.Object{newJob(5, 2)}, func(t *testing.T, h *ctrltest.Harness) {
		expect(t, h, "active 2 succeeded 0 failed 0", "two at once")
		end(h, corev1.PodSucceeded, 2)
		expect(t, h, "active 2 succeeded 2 failed 0", "two more")
		end(h, corev1.PodSucceeded, 2)
		expect(t, h, "active 1 succeeded 4 failed 0", "one is missing")
		end(h, corev1.PodSucceeded, 1)
		expect(t, h, "active 0 succeeded 5 failed 0 SuccessCriteriaMet/CompletionsReached Complete/CompletionsReached", "done")
		if n := trackedPods(h); n != 0 || len(h.Pods("ns")) != 5 {
			t.Errorf("%d pods keep the finalizer; pods: %s", n, h.Names("ns"))
		}
		if get(h).Status.CompletionTime == nil {
			t.Error("no completion time")
		}
	})
}

func TestBackoffAndLimit(t *testing.T) {
	ctrltest.Test(t, []runtime.Row{Row}, []kruntime.Object{newJob(1, 1, func(j *batchv1.Job) { j.Spec.BackoffLimit = ptr.To(int32(1)) })}, func(t *testing.T, h *ctrltest.Harness) {
		end(h, corev1.PodFailed, 1)
		expect(t, h, "active 0 succeeded 0 failed 1", "no new pod at once after a failure")
		h.After(10 * time.Second)
		expect(t, h, "active 1 succeeded 0 failed 1", "but after ten seconds")
		end(h, corev1.PodFailed, 1)
		expect(t, h, "active 0 succeeded 0 failed 2 FailureTarget/BackoffLimitExceeded Failed/BackoffLimitExceeded", "the limit")
		if n := trackedPods(h); n != 0 {
			t.Errorf("%d pods keep the finalizer", n)
		}
	})
}

func TestIndexedWithLimitPerIndex(t *testing.T) {
	ctrltest.Test(t, []runtime.Row{Row}, []kruntime.Object{newJob(3, 3, indexed, func(j *batchv1.Job) { j.Spec.BackoffLimitPerIndex = ptr.To(int32(1)) })}, func(t *testing.T, h *ctrltest.Harness) {
		for _, p := range h.Pods("ns") {
			if p.Labels[batchv1.JobCompletionIndexAnnotation] == "" || p.Spec.Hostname != "j-"+p.Annotations[batchv1.JobCompletionIndexAnnotation] {
				t.Errorf("identity of %s: %v %s", p.Name, p.Labels, p.Spec.Hostname)
			}
			if indexOf(p) == 1 {
				h.Phase(p, corev1.PodFailed)
			} else {
				h.Phase(p, corev1.PodSucceeded)
			}
		}
		h.Rest()
		expect(t, h, "active 0 succeeded 2 failed 0 done 0,2", "index 1 waits; its pod still holds the number of failures")
		h.After(10 * time.Second)
		expect(t, h, "active 1 succeeded 2 failed 1 done 0,2", "a second try of index 1")
		end(h, corev1.PodFailed, 1)
		expect(t, h, "active 0 succeeded 2 failed 2 done 0,2 lost 1 FailureTarget/FailedIndexes Failed/FailedIndexes", "index 1 is lost")
	})
}

func TestSuccessPolicy(t *testing.T) {
	ctrltest.Test(t, []runtime.Row{Row}, []kruntime.Object{newJob(4, 4, indexed, func(j *batchv1.Job) {
		j.Spec.SuccessPolicy = &batchv1.SuccessPolicy{Rules: []batchv1.SuccessPolicyRule{{SucceededIndexes: ptr.To("1-2"), SucceededCount: ptr.To(int32(1))}}}
	})}, func(t *testing.T, h *ctrltest.Harness) {
		for _, p := range h.Pods("ns") {
			h.Bind(p, "node")
			if indexOf(p) == 2 {
				h.Phase(p, corev1.PodSucceeded)
			} else {
				h.Phase(p, corev1.PodRunning)
			}
		}
		h.Rest()
		expect(t, h, "active 0 succeeded 1 failed 0 done 2 SuccessCriteriaMet/SuccessPolicy", "not complete while pods terminate")
		h.Kill("ns")
		h.Rest()
		expect(t, h, "active 0 succeeded 1 failed 0 done 2 SuccessCriteriaMet/SuccessPolicy Complete/SuccessPolicy", "complete when they are gone")
	})
}

func TestFailurePolicy(t *testing.T) {
	policy := func(j *batchv1.Job) {
		j.Spec.PodFailurePolicy = &batchv1.PodFailurePolicy{Rules: []batchv1.PodFailurePolicyRule{
			{Action: batchv1.PodFailurePolicyActionIgnore, OnPodConditions: []batchv1.PodFailurePolicyOnPodConditionsPattern{{Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue}}},
			{Action: batchv1.PodFailurePolicyActionFailJob, OnExitCodes: &batchv1.PodFailurePolicyOnExitCodesRequirement{Operator: batchv1.PodFailurePolicyOnExitCodesOpIn, Values: []int32{42}}},
		}}
	}
	fail := func(h *ctrltest.Harness, code int32, conditions ...corev1.PodCondition) {
		for _, p := range h.Pods("ns") {
			if p.Status.Phase != corev1.PodPending {
				continue
			}
			p.ResourceVersion = ""
			p.Status.Phase, p.Status.Conditions = corev1.PodFailed, conditions
			p.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "c", State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: code, FinishedAt: metav1.Now()}}}}
			ctrltest.Must(h.Client.CoreV1().Pods("ns").UpdateStatus(context.Background(), p, metav1.UpdateOptions{}))
		}
		h.Rest()
	}
	ctrltest.Test(t, []runtime.Row{Row}, []kruntime.Object{newJob(1, 1, policy, func(j *batchv1.Job) { j.Spec.BackoffLimit = ptr.To(int32(0)) })}, func(t *testing.T, h *ctrltest.Harness) {
		fail(h, 137, corev1.PodCondition{Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue})
		h.After(10 * time.Second)
		expect(t, h, "active 1 succeeded 0 failed 0", "a disruption is not counted")
		fail(h, 42)
		expect(t, h, "active 0 succeeded 0 failed 1 FailureTarget/PodFailurePolicy Failed/PodFailurePolicy", "exit code 42 ends the job")
	})
}

func TestSuspendAndDeadline(t *testing.T) {
	ctrltest.Test(t, []runtime.Row{Row}, []kruntime.Object{newJob(2, 2, func(j *batchv1.Job) { j.Spec.ActiveDeadlineSeconds = ptr.To(int64(60)) })}, func(t *testing.T, h *ctrltest.Harness) {
		suspend := func(yes bool) {
			j := get(h)
			j.Spec.Suspend = &yes
			ctrltest.Must(h.Client.BatchV1().Jobs("ns").Update(context.Background(), j, metav1.UpdateOptions{}))
			h.Rest()
		}
		suspend(true)
		expect(t, h, "active 0 succeeded 0 failed 0 Suspended/JobSuspended", "suspended: pods go and are not counted")
		if len(h.Pods("ns")) != 0 {
			t.Errorf("pods of a suspended job: %s", h.Names("ns"))
		}
		h.After(2 * time.Minute)
		suspend(false)
		expect(t, h, "active 2 succeeded 0 failed 0", "resumed; the deadline counts anew")
		h.After(time.Minute)
		expect(t, h, "active 0 succeeded 0 failed 2 FailureTarget/DeadlineExceeded Failed/DeadlineExceeded", "the deadline")
	})
}

func TestFinalizersOfLeftPods(t *testing.T) {
	ctrltest.Test(t, []runtime.Row{Row}, []kruntime.Object{newJob(2, 2)}, func(t *testing.T, h *ctrltest.Harness) {
		for _, p := range h.Pods("ns") {
			h.Bind(p, "node")
		}
		if err := h.Client.BatchV1().Jobs("ns").Delete(context.Background(), "j", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		h.Rest()
		h.Kill("ns")
		h.Rest()
		if n := h.Names("ns"); n != "" {
			t.Errorf("pods of a deleted job stay: %s", n)
		}
	})
}

func TestManagedByOthers(t *testing.T) {
	ctrltest.Test(t, []runtime.Row{Row}, []kruntime.Object{newJob(1, 1, func(j *batchv1.Job) { j.Spec.ManagedBy = ptr.To("example.com/other") })}, func(t *testing.T, h *ctrltest.Harness) {
		if w := h.Writes(true); w != "" {
			t.Errorf("writes to a job that is managed by others:\n%s", w)
		}
	})
}

// Failing writes at any point never make a pod count twice or not at all.
func TestCountedExactlyOnce(t *testing.T) {
	for seed := range 20 {
		ctrltest.Test(t, []runtime.Row{Row}, []kruntime.Object{newJob(6, 3, func(j *batchv1.Job) { j.Spec.BackoffLimit = ptr.To(int32(100)) })}, func(t *testing.T, h *ctrltest.Harness) {
			n := seed
			h.API.Refuse(func(verb, resource string) error {
				if n = n*1103515245 + 12345; verb != "create" && n>>16&3 == 0 {
					return errors.New("refused")
				}
				return nil
			})
			good, bad := 0, 0
			for round := 0; good < 6 && round < 100; round++ {
				for _, p := range h.Pods("ns") {
					if p.Status.Phase != corev1.PodPending {
						continue
					}
					h.API.Refuse(nil)
					if (round+seed)%3 == 0 {
						h.Phase(p, corev1.PodFailed)
						bad++
					} else {
						h.Phase(p, corev1.PodSucceeded)
						good++
					}
				}
				h.API.Refuse(func(verb, resource string) error {
					if n = n*1103515245 + 12345; verb != "create" && n>>16&3 == 0 {
						return errors.New("refused")
					}
					return nil
				})
				h.After(11 * time.Minute)
			}
			h.API.Refuse(nil)
			h.After(11 * time.Minute)
			if s := get(h).Status; int(s.Succeeded) != good || int(s.Failed) != bad || !over(s) {
				t.Errorf("seed %d: %d succeeded and %d failed, counted %s", seed, good, bad, state(h))
			}
		})
	}
}

// The fast form of index sets agrees with an ordinary set.
func TestIndexes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a := rapid.SliceOfN(rapid.IntRange(0, 30), 0, 20).Draw(t, "a")
		b := rapid.SliceOfN(rapid.IntRange(0, 30), 0, 20).Draw(t, "b")
		s := indexes(nil).with(slices.Clone(a)...).with(slices.Clone(b)...)
		both := map[int]bool{}
		for _, i := range slices.Concat(a, b) {
			both[i] = true
		}
		for i := range 32 {
			if s.has(i) != both[i] {
				t.Fatalf("%s: has(%d) is %v", s, i, s.has(i))
			}
		}
		if s.count() != len(both) || parseIndexes(s.String(), 31).String() != s.String() {
			t.Fatalf("%s: %d members, read back %s", s, s.count(), parseIndexes(s.String(), 31))
		}
		for _, i := range s.missing(100, 31) {
			if both[i] {
				t.Fatalf("%s: %d is not missing", s, i)
			}
		}
		if got := len(s.missing(100, 31)); got != 31-len(both) {
			t.Fatalf("%s: %d missing of 31", s, got)
		}
	})
}
