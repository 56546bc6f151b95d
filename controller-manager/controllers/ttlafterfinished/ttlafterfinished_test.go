package ttlafterfinished

import (
	"context"
	"testing"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kruntime "k8s.io/apimachinery/pkg/runtime"

	"github.com/keelson/keelson/controller-manager/ctrltest"
	"github.com/keelson/keelson/controller-manager/runtime"
)

func job(name string, ttl int32, end batchv1.JobConditionType) *batchv1.Job {
	j := &batchv1.Job{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name}}
	if ttl >= 0 {
		j.Spec.TTLSecondsAfterFinished = &ttl
	}
	if end != "" {
		j.Status.Conditions = []batchv1.JobCondition{{Type: end, Status: corev1.ConditionTrue, LastTransitionTime: metav1.NewTime(time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC))}}
	}
	return j
}

func TestFinishedJobsGoInTime(t *testing.T) {
	ctrltest.Test(t, []runtime.Row{Row}, []kruntime.Object{
		job("now", 0, batchv1.JobComplete), job("minute", 60, batchv1.JobFailed), job("hour", 60, batchv1.JobComplete),
		job("keep", -1, batchv1.JobComplete), job("runs", 0, ""), job("failing", 0, batchv1.JobFailureTarget),
	}, func(t *testing.T, h *ctrltest.Harness) {
		if w := h.Writes(); w != "delete jobs now" {
			t.Errorf("at once: %q", w)
		}
		api := h.Client.BatchV1().Jobs("ns")
		j := ctrltest.Must(api.Get(context.Background(), "hour", metav1.GetOptions{}))
		longer := int32(3600)
		j.Spec.TTLSecondsAfterFinished = &longer
		ctrltest.Must(api.Update(context.Background(), j, metav1.UpdateOptions{}))
		h.Writes()
		h.After(time.Minute)
		if w := h.Writes(); w != "delete jobs minute" {
			t.Errorf("after a minute, and not the one that was prolonged: %q", w)
		}
		h.After(time.Hour)
		if w := h.Writes(); w != "delete jobs hour" {
			t.Errorf("after an hour: %q", w)
		}
	})
}
