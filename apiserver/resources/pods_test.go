package resources

import (
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func pod(change func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{
		TypeMeta:   metav1.TypeMeta{Kind: "Pod", APIVersion: "v1"},
		ObjectMeta: metav1.ObjectMeta{Name: "a", Namespace: "d"},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}},
		Status:     corev1.PodStatus{Phase: corev1.PodRunning},
	}
	if change != nil {
		change(p)
	}
	return p
}

func TestPodLineSaysWhatMatters(t *testing.T) {
	waiting := func(reason string) corev1.ContainerState {
		return corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason}}
	}
	ended := func(reason string, code int32) corev1.ContainerState {
		return corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{Reason: reason, ExitCode: code}}
	}
	running := corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}
	always := corev1.ContainerRestartPolicyAlways
	for _, c := range []struct {
		want   string
		change func(*corev1.Pod)
	}{
		{"0/1 Pending 0", func(p *corev1.Pod) { p.Status.Phase = corev1.PodPending }},
		{"1/1 Running 2", func(p *corev1.Pod) {
			p.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "c", State: running, Ready: true, RestartCount: 2}}
		}},
		{"0/1 CrashLoopBackOff 7", func(p *corev1.Pod) {
			p.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "c", State: waiting("CrashLoopBackOff"), RestartCount: 7}}
		}},
		{"0/1 Completed 0", func(p *corev1.Pod) {
			p.Status.Phase = corev1.PodSucceeded
			p.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "c", State: ended("Completed", 0)}}
		}},
		{"0/1 ExitCode:3 0", func(p *corev1.Pod) {
			p.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "c", State: ended("", 3)}}
		}},
		{"0/1 Init:0/1 0", func(p *corev1.Pod) {
			p.Spec.InitContainers = []corev1.Container{{Name: "x"}}
			p.Status.InitContainerStatuses = []corev1.ContainerStatus{{Name: "x", State: running}}
		}},
		{"0/1 Init:Error 1", func(p *corev1.Pod) {
			p.Spec.InitContainers = []corev1.Container{{Name: "x"}}
			p.Status.InitContainerStatuses = []corev1.ContainerStatus{{Name: "x", State: ended("Error", 1), RestartCount: 1}}
		}},
		{"2/2 Running 0", func(p *corev1.Pod) {
			p.Spec.InitContainers = []corev1.Container{{Name: "x", RestartPolicy: &always}}
			p.Status.InitContainerStatuses = []corev1.ContainerStatus{{Name: "x", State: running, Ready: true, Started: ptr(true)}}
			p.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "c", State: running, Ready: true}}
		}},
		{"1/1 Terminating 0", func(p *corev1.Pod) {
			p.DeletionTimestamp = &metav1.Time{Time: time.Unix(1, 0)}
			p.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "c", State: running, Ready: true}}
		}},
		{"0/1 SchedulingGated 0", func(p *corev1.Pod) {
			p.Status.Phase = corev1.PodPending
			p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodScheduled, Reason: corev1.PodReasonSchedulingGated}}
		}},
		{"0/1 Evicted 0", func(p *corev1.Pod) { p.Status.Phase, p.Status.Reason = corev1.PodFailed, "Evicted" }},
	} {
		l := podLine(pod(c.change))
		if got := l.ready + " " + l.status + " " + decimal(int32(l.restarts)); got != c.want {
			t.Errorf("got %q, want %q", got, c.want)
		}
	}
}

func TestPodChanges(t *testing.T) {
	row := pods(DefaultConfig()).Row()
	for _, c := range []struct {
		name   string
		part   string
		change func(*corev1.Pod)
		want   string // "" is allowed
	}{
		{"image", "", func(p *corev1.Pod) { p.Spec.Containers[0].Image = "j" }, ""},
		{"command", "", func(p *corev1.Pod) { p.Spec.Containers[0].Command = []string{"x"} }, "spec: Forbidden: pod updates may not change fields other than `spec.containers[*].image`"},
		{"another container", "", func(p *corev1.Pod) {
			p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Name: "e", Image: "i"})
		}, "spec.containers: Forbidden: pod updates may not add or remove containers"},
		{"one toleration more", "", func(p *corev1.Pod) {
			p.Spec.Tolerations = append(p.Spec.Tolerations, corev1.Toleration{Key: "b", Operator: "Exists"})
		}, ""},
		{"one toleration less", "", func(p *corev1.Pod) { p.Spec.Tolerations = nil }, "spec.tolerations: Forbidden: existing toleration can not be modified except its tolerationSeconds"},
		{"deadline set", "", func(p *corev1.Pod) { p.Spec.ActiveDeadlineSeconds = ptr[int64](5) }, ""},
		{"debug container", "ephemeralcontainers", func(p *corev1.Pod) {
			p.Spec.EphemeralContainers = []corev1.EphemeralContainer{{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "dbg", Image: "i"}, TargetContainerName: "c"}}
		}, ""},
		{"debug container of nothing", "ephemeralcontainers", func(p *corev1.Pod) {
			p.Spec.EphemeralContainers = []corev1.EphemeralContainer{{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "dbg", Image: "i"}, TargetContainerName: "z"}}
		}, "spec.ephemeralContainers[0].targetContainerName: Not found: \"z\""},
		{"debug container with a signal that is not there yet", "ephemeralcontainers", func(p *corev1.Pod) {
			p.Spec.EphemeralContainers = []corev1.EphemeralContainer{{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "dbg", Image: "i", Lifecycle: &corev1.Lifecycle{StopSignal: ptr(corev1.SIGTERM)}}}}
		}, ""},
		{"status with a time of deletion", "status", func(p *corev1.Pod) { p.DeletionTimestamp = &metav1.Time{} }, ""},
		{"status", "status", func(p *corev1.Pod) { p.Status.Phase = corev1.PodRunning }, ""},
		{"status of another class", "status", func(p *corev1.Pod) { p.Status.QOSClass = corev1.PodQOSGuaranteed }, "status.qosClass: Invalid value: \"Guaranteed\": field is immutable"},
	} {
		t.Run(c.name, func(t *testing.T) {
			old := pod(func(p *corev1.Pod) { p.Spec.Tolerations = []corev1.Toleration{{Key: "a", Operator: "Exists"}} })
			if faults := create(row, old, request()); len(faults) > 0 {
				t.Fatal(faults)
			}
			obj := old.DeepCopy()
			c.change(obj)
			row.Default(obj)
			part := row.Main
			if c.part != "" {
				part = row.Parts[c.part]
			}
			part.Prepare(request(), obj, old)
			errs := part.Validate(request(), obj, old)
			if obj.DeletionTimestamp != nil {
				t.Errorf("deleted at %v", obj.DeletionTimestamp)
			}
			switch {
			case c.want == "" && len(errs) > 0:
				t.Errorf("refused: %v", errs)
			case c.want != "" && !strings.Contains(errs.ToAggregate().Error(), c.want):
				t.Errorf("want %q, got %v", c.want, errs)
			}
		})
	}
}

// What changes the containers of a running pod changes nothing else: not even labels.
func TestPartsOfPodsLeaveMetadata(t *testing.T) {
	row := pods(DefaultConfig()).Row()
	for _, part := range []string{"ephemeralcontainers", "resize"} {
		old := pod(func(p *corev1.Pod) { p.Labels = map[string]string{"a": "b"} })
		if faults := create(row, old, request()); len(faults) > 0 {
			t.Fatal(faults)
		}
		obj := old.DeepCopy()
		obj.Labels, obj.Annotations, obj.Finalizers = map[string]string{"c": "d"}, map[string]string{"c": "d"}, []string{"x.io/y"}
		row.Parts[part].Prepare(request(), obj, old)
		if len(obj.Labels) != 1 || obj.Labels["a"] != "b" || obj.Annotations["c"] != "" || len(obj.Finalizers) != 0 {
			t.Errorf("%s wrote metadata: %+v", part, obj.ObjectMeta)
		}
	}
}

// Selectors may name status.podIPs, as upstream's, though no pod has a value of it: it is for status.podIP.
func TestSelectorOfAddresses(t *testing.T) {
	row := pods(DefaultConfig()).Row()
	p := pod(func(p *corev1.Pod) { p.Status.PodIPs = []corev1.PodIP{{IP: "10.0.0.1"}} })
	if set := row.Fields(p); !slices.Contains(row.FieldNames, "status.podIPs") || set.Has("status.podIPs") || set["status.podIP"] != "10.0.0.1" {
		t.Errorf("%q: %v", row.FieldNames, set)
	}
}
