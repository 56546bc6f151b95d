package cases

import (
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// Story 1: the first minutes with a new cluster.
func TestNewcomer(t *testing.T) {
	s := begin(t, "newcomer", 3*time.Minute)
	s.everyNode(30 * time.Second)
	t.Logf("keelson up took %s", cluster.UpTook)

	out := s.kubectl("get", "nodes,pods", "-A", "-o", "wide")
	s.says(out, "node/node-1", "node/node-2", "Ready", "v1.36", cluster.Nodes[0].Address, cluster.Nodes[1].Address, "containerd://")
	s.says(s.kubectl("get", "nodes"), "NAME", "STATUS", "ROLES", "AGE", "VERSION", "control-plane")
	s.says(s.kubectl("describe", "node", "node-1"), "Name:", "Conditions:", "MemoryPressure", "Capacity:", "Allocatable:", "PodCIDR:", "System Info:", "Non-terminated Pods:", "Allocated resources:")
	explained := s.kubectl("explain", "pod.spec", "--recursive")
	s.says(explained, "KIND:", "FIELD: spec", "containers", "livenessProbe", "topologySpreadConstraints")
	if n := strings.Count(explained, "\n"); n < 500 {
		t.Errorf("explain pod.spec --recursive printed %d lines; want the whole schema", n)
	}
	s.says(s.kubectl("explain", "deployment.spec.strategy.rollingUpdate.maxSurge"), "maxSurge", "IntOrString", "DESCRIPTION")
	s.says(s.kubectl("api-resources"), "deployments", "deploy", "apps/v1", "StatefulSet", "endpointslices", "discovery.k8s.io/v1", "NetworkPolicy")
	s.says(s.kubectl("api-versions"), "v1\n", "apps/v1", "batch/v1", "rbac.authorization.k8s.io/v1", "networking.k8s.io/v1")
	s.says(s.kubectl("version"), "Client Version: v1.36", "Server Version: v1.36")
	s.says(s.kubectl("cluster-info"), "control plane", "is running at")
	s.says(s.kubectl("get", "--raw", "/readyz?verbose"), "[+]ping ok", "readyz check passed")
	s.says(s.kubectl("get", "--raw", "/livez"), "ok")
	s.says(s.kubectl("get", "namespaces"), "default", "kube-system", "kube-public", "kube-node-lease")
	s.says(s.kubectl("get", "svc", "-n", "default"), "kubernetes", "443/TCP")
	s.says(s.kubectl("get", "svc", "-n", "kube-system"), "kube-dns", "10.96.0.10", "53/UDP,53/TCP")

	// status is well when all is well.
	if out, err := cluster.Nodes[0].Keelson(s.ctx, "status"); err != nil {
		t.Errorf("keelson status: %v", err)
	} else {
		s.says(out, "apiserver", "scheduler", "controller-manager", "kubelet", "kube-proxy", "containerd", "ready", "node-2")
	}
	for _, n := range []string{"node-1", "node-2"} {
		phase := s.kubectl("get", "node", n, "-o", `jsonpath={.status.conditions[?(@.type=="Ready")].status}`)
		if phase != string(corev1.ConditionTrue) {
			t.Errorf("node %s Ready is %q", n, phase)
		}
	}
}
