package worker

import (
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"

	"github.com/keelson/keelson/kubelet/pod"
)

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, labels, nil)
}

var (
	runningPods       = desc("kubelet_running_pods", "Pods that have a sandbox that runs.")
	runningContainers = desc("kubelet_running_containers", "Containers that the runtime has, by state.", "container_state")
	desiredPods       = desc("kubelet_desired_pods", "Pods that the sources want, by whether they are static.", "static")
	activePods        = desc("kubelet_active_pods", "Pods that hold resources of the node: admitted, and not ended.", "static")
	mirrorPods        = desc("kubelet_mirror_pods", "Static pods that the API server shows.")
	workingPods       = desc("kubelet_working_pods", "Pods that the kubelet works on, by how far they are, whether a source wants them, and whether they are static.", "lifecycle", "config", "static")
	pendingResizes    = desc("kubelet_pod_pending_resizes", "Resizes that wait for room, by reason.", "reason")
	runningResizes    = desc("kubelet_pod_in_progress_resizes", "Resizes under way.")
	ephemerals        = desc("kubelet_managed_ephemeral_containers", "Ephemeral containers of the pods that the sources want.")
)

// Describe is prometheus.Collector's.
func (p *Pool) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{runningPods, runningContainers, desiredPods, activePods, mirrorPods, ephemerals, workingPods, pendingResizes, runningResizes} {
		ch <- d
	}
}

// Collect counts the pods that there are now.
func (p *Pool) Collect(ch chan<- prometheus.Metric) {
	running, mirrors, ephemeral := 0, 0, 0
	working, pending, resizing := map[[3]string]int{}, map[string]int{}, 0
	containers := map[string]int{}
	desired, active := map[string]int{"": 0, "true": 0}, map[string]int{"": 0, "true": 0}
	for _, w := range p.all() {
		o, v := w.object(), w.view.Load()
		static := ""
		if pod.IsStatic(o) {
			static = "true"
			if p.Mirror != nil && p.Mirror(o) != nil {
				mirrors++
			}
		}
		if !w.isRemoved() {
			desired[static]++
			ephemeral += len(o.Spec.EphemeralContainers)
		}
		if v == nil {
			continue
		}
		lifecycle, config := "sync", "desired"
		switch {
		case v.phase >= pod.Stopped:
			lifecycle = "terminated"
		case v.phase == pod.Stopping:
			lifecycle = "terminating"
		}
		if w.isRemoved() {
			config = "orphan"
		}
		working[[3]string{lifecycle, config, static}]++
		for _, c := range v.pod.Status.Conditions {
			switch c.Type {
			case corev1.PodResizePending:
				pending[strings.ToLower(c.Reason)]++
			case corev1.PodResizeInProgress:
				resizing++
			}
		}
		if w.admitted.Load() && v.phase < pod.Stopped && v.pod.Status.Phase != corev1.PodSucceeded && v.pod.Status.Phase != corev1.PodFailed {
			active[static]++
		}
		for i := range v.seen.Sandboxes {
			if v.seen.Sandboxes[i].Ready {
				running++
				break
			}
		}
		for i := range v.seen.Containers {
			if c := &v.seen.Containers[i]; !c.Recalled {
				containers[c.State.String()]++
			}
		}
	}
	gauge := func(d *prometheus.Desc, n int, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(n), labels...)
	}
	gauge(runningPods, running)
	for state, n := range containers {
		gauge(runningContainers, n, state)
	}
	for static, n := range desired {
		gauge(desiredPods, n, static)
	}
	for static, n := range active {
		gauge(activePods, n, static)
	}
	for labels, n := range working {
		gauge(workingPods, n, labels[:]...)
	}
	for reason, n := range pending {
		gauge(pendingResizes, n, reason)
	}
	gauge(runningResizes, resizing)
	gauge(mirrorPods, mirrors)
	gauge(ephemerals, ephemeral)
}
