package schedtest_test

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/keelson/keelson/libs/nodefeatures"
	"github.com/keelson/keelson/libs/testkit"
	"github.com/keelson/keelson/scheduler/schedtest"
)

func condition(p *corev1.Pod, kind corev1.PodConditionType) corev1.PodCondition {
	for _, c := range p.Status.Conditions {
		if c.Type == kind {
			return c
		}
	}
	return corev1.PodCondition{}
}

func TestAPodIsBoundAndTheUserIsTold(t *testing.T) {
	schedtest.Run(t, []runtime.Object{testkit.Node("a")}, func(c *schedtest.Cluster) {
		c.Create(testkit.Pod("p"))
		c.Create(testkit.Pod("other", func(p *corev1.Pod) { p.Spec.SchedulerName = "somebody-else" }))
		c.Settle()
		want := []string{"bind p to a", "event p Scheduled: Successfully assigned default/p to a"}
		if got := c.Writes(); !slices.Equal(got, want) {
			t.Errorf("wrote\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	})
}

func TestARefusedPodIsExplainedAndTriedAgainWhenANodeComes(t *testing.T) {
	schedtest.Run(t, []runtime.Object{testkit.Node("a", testkit.Capacity("cpu=1,memory=1Gi,pods=10"))}, func(c *schedtest.Cluster) {
		c.Create(testkit.Pod("p", testkit.Requests("cpu=2")))
		c.Settle()
		const message = "0/1 nodes are available: 1 Insufficient cpu. preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling."
		got := condition(c.Pod("p"), corev1.PodScheduled)
		if got.Status != corev1.ConditionFalse || got.Reason != "Unschedulable" || got.Message != message {
			t.Errorf("condition %+v", got)
		}
		if !slices.Contains(c.Writes(), "event p FailedScheduling: "+message) {
			t.Errorf("no event in %v", c.Writes())
		}
		if _, err := c.API.CoreV1().Nodes().Create(context.Background(), testkit.Node("b"), metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		c.Settle()
		if c.Node("p") != "" {
			t.Error("bound before its back-off was over")
		}
		c.Pass(1100 * time.Millisecond)
		if c.Node("p") != "b" {
			t.Errorf("on %q, want b", c.Node("p"))
		}
	})
}

// Pods that differ in what they need of a kubelet are told apart, and a kubelet may learn.
func TestAPodWaitsUntilANodeDeclaresWhatItNeeds(t *testing.T) {
	schedtest.Run(t, []runtime.Object{testkit.Node("a")}, func(c *schedtest.Cluster) {
		c.Create(testkit.Pod("plain"))
		c.Create(testkit.Pod("p", func(p *corev1.Pod) {
			p.Spec.Containers[0].RestartPolicyRules = []corev1.ContainerRestartRule{{Action: corev1.ContainerRestartRuleActionRestartAllContainers}}
		}))
		c.Settle()
		if c.Node("plain") != "a" || c.Node("p") != "" {
			t.Fatalf("plain on %q, p on %q", c.Node("plain"), c.Node("p"))
		}
		c.Pass(1100 * time.Millisecond) // its back-off
		n := testkit.Node("a")
		n.Status.DeclaredFeatures = []string{nodefeatures.RestartAll}
		if _, err := c.API.CoreV1().Nodes().Update(context.Background(), n, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		c.Settle()
		if c.Node("p") != "a" {
			t.Error("not bound when the node declared the feature")
		}
	})
}

func TestAFailedBindIsForgottenAndRetried(t *testing.T) {
	schedtest.Run(t, []runtime.Object{testkit.Node("a", testkit.Capacity("cpu=1,memory=1Gi,pods=10"))}, func(c *schedtest.Cluster) {
		c.FailBinds("p", 2)
		c.Create(testkit.Pod("p", testkit.Requests("cpu=1")))
		c.Settle()
		if got := condition(c.Pod("p"), corev1.PodScheduled); got.Reason != "SchedulerError" || !strings.Contains(got.Message, "no quorum") {
			t.Errorf("condition %+v", got)
		}
		c.Pass(3500 * time.Millisecond) // back-offs of 1 s and 2 s
		if c.Node("p") != "a" {
			t.Errorf("on %q; wrote %v", c.Node("p"), c.Writes())
		}
	})
}

func TestPreemptionEvictsMarksAndThenBinds(t *testing.T) {
	low := testkit.Pod("low", testkit.On("a"), testkit.Requests("cpu=4"), testkit.Priority(1))
	schedtest.Run(t, []runtime.Object{testkit.Node("a"), low}, func(c *schedtest.Cluster) {
		c.Create(testkit.Pod("high", testkit.Requests("cpu=4"), testkit.Priority(10)))
		c.Settle()
		writes := strings.Join(c.Writes(), "\n")
		for _, want := range []string{"delete low", "patch low/status", "event low Preempted: Preempted by pod " + string(testkit.UID("Pod", "high")) + " on node a", "bind high to a"} {
			if !strings.Contains(writes, want) {
				t.Errorf("no %q in\n%s", want, writes)
			}
		}
		if c.Node("high") != "a" {
			t.Errorf("high is on %q", c.Node("high"))
		}
	})
}

func TestAGateHoldsAPodBackUntilItIsRemoved(t *testing.T) {
	schedtest.Run(t, []runtime.Object{testkit.Node("a")}, func(c *schedtest.Cluster) {
		c.Create(testkit.Pod("p", func(p *corev1.Pod) { p.Spec.SchedulingGates = []corev1.PodSchedulingGate{{Name: "x"}} }))
		c.Settle()
		if got := condition(c.Pod("p"), corev1.PodScheduled); got.Reason != "SchedulingGated" || c.Node("p") != "" {
			t.Errorf("node %q, condition %+v", c.Node("p"), got)
		}
		p := c.Pod("p").DeepCopy()
		p.Spec.SchedulingGates = nil
		if _, err := c.API.CoreV1().Pods("default").Update(context.Background(), p, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		c.Settle()
		if c.Node("p") != "a" {
			t.Errorf("on %q", c.Node("p"))
		}
	})
}

func TestAClaimThatWaitsIsProvisionedForTheChosenNode(t *testing.T) {
	wait, name := storagev1.VolumeBindingWaitForFirstConsumer, "fast"
	class := &storagev1.StorageClass{ObjectMeta: testkit.Meta("StorageClass", name, true), Provisioner: "example.com/disk", VolumeBindingMode: &wait}
	claim := &corev1.PersistentVolumeClaim{ObjectMeta: testkit.Meta("PersistentVolumeClaim", "data", false), Spec: corev1.PersistentVolumeClaimSpec{StorageClassName: &name}}
	schedtest.Run(t, []runtime.Object{testkit.Node("a"), class, claim}, func(c *schedtest.Cluster) {
		c.Create(testkit.Pod("p", func(p *corev1.Pod) {
			p.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "data"}}}}
		}))
		c.Settle()
		claims := c.API.CoreV1().PersistentVolumeClaims("default")
		got, err := claims.Get(context.Background(), "data", metav1.GetOptions{})
		if err != nil || got.Annotations["volume.kubernetes.io/selected-node"] != "a" || c.Node("p") != "" {
			t.Fatalf("annotations %v, node %q, %v", got.Annotations, c.Node("p"), err)
		}
		got = got.DeepCopy()
		got.Spec.VolumeName = "made"
		got.Annotations["pv.kubernetes.io/bind-completed"] = "yes"
		if _, err := claims.Update(context.Background(), got, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		c.Settle()
		c.Pass(1100 * time.Millisecond)
		if c.Node("p") != "a" {
			t.Errorf("on %q", c.Node("p"))
		}
	})
}

func TestManyPodsFillTheClusterAndNoMore(t *testing.T) {
	var objects []runtime.Object
	for _, n := range []string{"a", "b", "c"} {
		objects = append(objects, testkit.Node(n, testkit.Capacity("cpu=10,memory=10Gi,pods=110")))
	}
	schedtest.Run(t, objects, func(c *schedtest.Cluster) {
		for i := range 35 {
			c.Create(testkit.Pod("p"+string(rune('A'+i)), testkit.Requests("cpu=1")))
		}
		c.Settle()
		perNode := map[string]int{}
		for i := range 35 {
			perNode[c.Node("p"+string(rune('A'+i)))]++
		}
		if perNode["a"] != 10 || perNode["b"] != 10 || perNode["c"] != 10 || perNode[""] != 5 {
			t.Errorf("placed %v", perNode)
		}
	})
}

func TestMetricsSayWhatHappened(t *testing.T) {
	schedtest.Run(t, []runtime.Object{testkit.Node("a", testkit.Capacity("cpu=1,memory=1Gi,pods=10"))}, func(c *schedtest.Cluster) {
		c.Create(testkit.Pod("fits", testkit.Requests("cpu=1")))
		c.Settle()
		c.Create(testkit.Pod("does-not", testkit.Requests("cpu=1")))
		c.Settle()
		want := `
# HELP scheduler_cache_size Objects in the scheduler's cache.
# TYPE scheduler_cache_size gauge
scheduler_cache_size{type="assumed_pods"} 0
scheduler_cache_size{type="nodes"} 1
scheduler_cache_size{type="pods"} 1
# HELP scheduler_pending_pods Pods that wait, by queue: active, backoff, unschedulable, gated.
# TYPE scheduler_pending_pods gauge
scheduler_pending_pods{queue="active"} 0
scheduler_pending_pods{queue="backoff"} 0
scheduler_pending_pods{queue="gated"} 0
scheduler_pending_pods{queue="unschedulable"} 1
# HELP scheduler_queue_incoming_pods_total Pods that came to a queue, by queue and by what moved them.
# TYPE scheduler_queue_incoming_pods_total counter
scheduler_queue_incoming_pods_total{event="ScheduleAttemptFailure",queue="unschedulable"} 1
scheduler_queue_incoming_pods_total{event="UnschedulablePodAdd",queue="active"} 2
# HELP scheduler_unschedulable_pods Unschedulable pods by each plugin that refused them: a pod counts once for every one of them.
# TYPE scheduler_unschedulable_pods gauge
scheduler_unschedulable_pods{plugin="NodeResourcesFit",profile="default-scheduler"} 1
`
		if err := testutil.GatherAndCompare(c.Metrics, strings.NewReader(want), "scheduler_cache_size", "scheduler_pending_pods", "scheduler_queue_incoming_pods_total", "scheduler_unschedulable_pods"); err != nil {
			t.Error(err)
		}
		if n, err := testutil.GatherAndCount(c.Metrics, "scheduler_framework_extension_point_duration_seconds"); err != nil || n == 0 {
			t.Errorf("%d extension points: %v", n, err)
		}
	})
}
