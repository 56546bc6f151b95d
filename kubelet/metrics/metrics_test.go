package metrics

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/common/expfmt"
)

func TestNamesAndLabelsAreUpstreams(t *testing.T) {
	m := New()
	fault := errors.New("no")
	m.Node("n", true)
	m.Call("run_podsandbox", time.Second, nil)
	m.Call("run_podsandbox", time.Second, fault)
	m.PodStarted(nil)
	m.PodStarted(fault)
	m.ContainerStarted("init_container", "ErrImagePull")
	m.Evicted("memory.available")
	m.Storage("kubernetes.io/empty-dir", "volume_mount", time.Second, fault)
	m.Pulled(50<<20, time.Second)
	now := time.Now()
	m.Relisted(now, now)
	m.Relisted(now.Add(time.Second), now.Add(time.Second))
	want := `
# HELP kubelet_cgroup_version Version of the control groups: 1 or 2.
# TYPE kubelet_cgroup_version gauge
kubelet_cgroup_version 2
# HELP kubelet_evictions Pods evicted, by what the node ran short of.
# TYPE kubelet_evictions counter
kubelet_evictions{eviction_signal="memory.available"} 1
# HELP kubelet_node_name Always 1; the label is the node's name.
# TYPE kubelet_node_name gauge
kubelet_node_name{node="n"} 1
# HELP kubelet_runtime_operations_errors_total Calls to the container runtime that failed.
# TYPE kubelet_runtime_operations_errors_total counter
kubelet_runtime_operations_errors_total{operation_type="run_podsandbox"} 1
# HELP kubelet_runtime_operations_total Calls to the container runtime.
# TYPE kubelet_runtime_operations_total counter
kubelet_runtime_operations_total{operation_type="run_podsandbox"} 2
# HELP kubelet_started_containers_errors_total Containers that could not be started, by kind and reason.
# TYPE kubelet_started_containers_errors_total counter
kubelet_started_containers_errors_total{code="ErrImagePull",container_type="init_container"} 1
# HELP kubelet_started_pods_errors_total Sandboxes that could not be begun.
# TYPE kubelet_started_pods_errors_total counter
kubelet_started_pods_errors_total 1
# HELP kubelet_started_pods_total Sandboxes begun.
# TYPE kubelet_started_pods_total counter
kubelet_started_pods_total 2
`
	if err := testutil.CollectAndCompare(m, strings.NewReader(want), "kubelet_cgroup_version", "kubelet_evictions", "kubelet_node_name",
		"kubelet_runtime_operations_errors_total", "kubelet_runtime_operations_total", "kubelet_started_containers_errors_total",
		"kubelet_started_pods_errors_total", "kubelet_started_pods_total"); err != nil {
		t.Error(err)
	}
	for _, name := range []string{"storage_operation_duration_seconds", "kubelet_image_pull_duration_seconds", "kubelet_pleg_relist_interval_seconds", "kubelet_runtime_operations_duration_seconds"} {
		if n := testutil.CollectAndCount(m, name); n != 1 {
			t.Errorf("%d series of %s, want 1", n, name)
		}
	}
}

func TestTheStartOfANewNodeIsMeasuredOnce(t *testing.T) {
	m := New()
	boot := time.Unix(1000, 0)
	at := func(seconds int) time.Time { return boot.Add(time.Duration(seconds) * time.Second) }
	m.Started(boot, at(10))
	m.NodeReady(at(11)) // not registered yet
	m.Registering(at(12))
	m.Registering(at(15)) // the first has failed
	m.Registered(at(16))
	m.Registered(at(20)) // somebody has deleted it
	m.NodeReady(at(24))
	m.NodeReady(at(60))
	for g, want := range map[string]struct {
		gauge prometheus.Gauge
		value float64
	}{
		"kubelet_node_startup_pre_kubelet_duration_seconds":       {m.preKubelet, 10},
		"kubelet_node_startup_pre_registration_duration_seconds":  {m.preRegistration, 2},
		"kubelet_node_startup_registration_duration_seconds":      {m.registration, 4},
		"kubelet_node_startup_post_registration_duration_seconds": {m.postRegistration, 8},
		"kubelet_node_startup_duration_seconds":                   {m.startup, 24},
	} {
		if n := testutil.CollectAndCount(m, g); n != 1 {
			t.Errorf("%d series of %s, want 1", n, g)
		}
		if got := testutil.ToFloat64(want.gauge); got != want.value {
			t.Errorf("%s is %v, want %v", g, got, want.value)
		}
	}
	old := New()
	old.Started(boot, at(10))
	old.Registering(at(12)) // the node is there already
	old.NodeReady(at(13))
	if got := testutil.ToFloat64(old.startup); got != 0 {
		t.Errorf("an old node took %v s to start, want nothing", got)
	}
}

func TestWhatHappensToPodsIsCounted(t *testing.T) {
	m := New()
	m.WorkerStarts(time.Millisecond, 2)
	m.PodStarts(5*time.Second, 2*time.Second)
	m.ContainerEnded("container", 137, "OOMKilled")
	m.ResizeAsked("cpu", "limits", "increase")
	m.ResizeAfterAll("pods_removed")
	m.Resized(20*time.Millisecond, nil)
	m.ImageWanted("IfNotPresent", "true", false)
	m.Orphan()
	m.PlainHook()
	m.Shutdown(time.Unix(100, 0), time.Time{})
	for name, want := range map[string]string{
		"kubelet_terminated_containers_total":               `kubelet_terminated_containers_total{container_type="container",exit_code="137",reason="OOMKilled"} 1`,
		"kubelet_container_requested_resizes_total":         `kubelet_container_requested_resizes_total{operation="increase",requirement="limits",resource="cpu"} 1`,
		"kubelet_pod_deferred_accepted_resizes_total":       `kubelet_pod_deferred_accepted_resizes_total{retry_trigger="pods_removed"} 1`,
		"kubelet_image_manager_ensure_image_requests_total": `kubelet_image_manager_ensure_image_requests_total{present_locally="true",pull_policy="ifnotpresent",pull_required="false"} 1`,
		"kubelet_orphaned_runtime_pods_total":               "kubelet_orphaned_runtime_pods_total 1",
		"kubelet_lifecycle_handler_http_fallbacks_total":    "kubelet_lifecycle_handler_http_fallbacks_total 1",
		"kubelet_graceful_shutdown_start_time_seconds":      "kubelet_graceful_shutdown_start_time_seconds 100",
		"kubelet_graceful_shutdown_end_time_seconds":        "kubelet_graceful_shutdown_end_time_seconds 0",
		"kubelet_pod_start_sli_duration_seconds":            "kubelet_pod_start_sli_duration_seconds_sum 3",
		"kubelet_pod_start_total_duration_seconds":          "kubelet_pod_start_total_duration_seconds_sum 5",
		"kubelet_containers_per_pod_count":                  "kubelet_containers_per_pod_count_sum 2",
		"kubelet_pod_worker_start_duration_seconds":         "kubelet_pod_worker_start_duration_seconds_count 1",
		"kubelet_pod_resize_duration_milliseconds":          `kubelet_pod_resize_duration_milliseconds_sum{success="true"} 20`,
	} {
		text, err := testutil.CollectAndFormat(m, expfmt.TypeTextPlain, name)
		if err != nil || !strings.Contains(string(text), "\n"+want+"\n") {
			t.Errorf("want %s in (%v):\n%s", want, err, text)
		}
	}
}

func TestNilCountsNothing(t *testing.T) {
	var m *Metrics
	m.Node("n", false)
	m.Call("x", 0, nil)
	m.Relisted(time.Now(), time.Now())
	m.Pulled(1, 0)
	m.WorkerStarts(0, 1)
	m.Shutdown(time.Now(), time.Now())
}

func TestSizeClass(t *testing.T) {
	for bytes, want := range map[uint64]string{0: "N/A", 1: "0-10MB", 10 << 20: "0-10MB", 10<<20 + 1: "10MB-100MB", 3 << 30: "1GB-5GB", 1 << 40: "GT100GB"} {
		if got := sizeClass(bytes); got != want {
			t.Errorf("%d bytes: %s, want %s", bytes, got, want)
		}
	}
}
