package node

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/tools/record"
	nodeutil "k8s.io/component-helpers/node/util"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func list(pairs ...string) corev1.ResourceList {
	l := corev1.ResourceList{}
	for i := 0; i < len(pairs); i += 2 {
		l[corev1.ResourceName(pairs[i])] = resource.MustParse(pairs[i+1])
	}
	return l
}

func TestAllocatable(t *testing.T) {
	capacity := list("cpu", "4", "memory", "8Gi", "pods", "110", "hugepages-2Mi", "1Gi")
	for name, row := range map[string]struct {
		system, kube map[string]string
		withheld     corev1.ResourceList
		want         corev1.ResourceList
		fails        string
	}{
		"huge pages are not memory": {want: list("cpu", "4", "memory", "7Gi", "pods", "110", "hugepages-2Mi", "1Gi")},
		"everything is taken off": {system: map[string]string{"cpu": "500m", "memory": "1Gi"}, kube: map[string]string{"cpu": "500m"}, withheld: list("memory", "100Mi"),
			want: list("cpu", "3", "memory", "6044Mi", "pods", "110", "hugepages-2Mi", "1Gi")},
		"never below zero": {kube: map[string]string{"cpu": "9"}, want: list("cpu", "0", "memory", "7Gi", "pods", "110", "hugepages-2Mi", "1Gi")},
		"bad quantity":     {kube: map[string]string{"cpu": "lots"}, fails: "kube-reserved: cpu=lots"},
		"negative":         {system: map[string]string{"cpu": "-1"}, fails: "must not be negative"},
	} {
		got, err := Allocatable(capacity, row.system, row.kube, row.withheld)
		if row.fails != "" {
			if err == nil || !strings.Contains(err.Error(), row.fails) {
				t.Errorf("%s: got %v, want %q", name, err, row.fails)
			}
			continue
		}
		for k, want := range row.want {
			if have := got[k]; err != nil || have.Cmp(want) != 0 {
				t.Errorf("%s: %s is %s (%v), want %s", name, k, have.String(), err, want.String())
			}
		}
	}
}

func TestStatus(t *testing.T) {
	old := &corev1.NodeStatus{
		Capacity: list("cpu", "1", "example.org/gpu", "2"), Allocatable: list("example.org/gpu", "1"),
		Conditions: []corev1.NodeCondition{{Type: "NetworkUnavailable", Status: "False", Reason: "Other"}},
	}
	begin := time.Unix(1000, 0)
	f := Facts{Name: "n", IPs: []string{"10.0.0.1"}, Capacity: list("cpu", "4"), Allocatable: list("cpu", "3"),
		NetworkError: "reason:NetworkPluginNotReady message:cni plugin not initialized"}
	down := Status(f, old, begin)
	if len(down.Conditions) != 5 || down.Conditions[0].Reason != "Other" {
		t.Errorf("conditions %+v", down.Conditions)
	}
	_, ready := nodeutil.GetNodeCondition(&down, corev1.NodeReady)
	if ready.Status != "False" || ready.Reason != "KubeletNotReady" ||
		ready.Message != "container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady message:cni plugin not initialized" {
		t.Errorf("ready %+v", ready)
	}
	if gpu := down.Allocatable["example.org/gpu"]; gpu.String() != "1" {
		t.Errorf("extended resource is lost: %v", down.Allocatable)
	}
	if got := strings.Join(down.DeclaredFeatures, " "); got != "InPlacePodLevelResourcesVerticalScaling InPlacePodVerticalScalingInitContainers RestartAllContainersOnContainerExits" {
		t.Errorf("declared features %s", got)
	}
	f.NetworkError = ""
	up := Status(f, &down, begin.Add(time.Minute))
	_, ready = nodeutil.GetNodeCondition(&up, corev1.NodeReady)
	if ready.Status != "True" || ready.Reason != "KubeletReady" || !ready.LastTransitionTime.Time.Equal(begin.Add(time.Minute)) {
		t.Errorf("ready %+v", ready)
	}
	_, memory := nodeutil.GetNodeCondition(&up, corev1.NodeMemoryPressure)
	if !memory.LastTransitionTime.Time.Equal(begin) || !memory.LastHeartbeatTime.Time.Equal(begin.Add(time.Minute)) {
		t.Errorf("memory %+v", memory)
	}
	if !Differs(&down, &up) {
		t.Error("becoming ready is no difference")
	}
	later := Status(f, &up, begin.Add(time.Hour))
	if Differs(&up, &later) {
		t.Error("a heartbeat alone is a difference")
	}
}

func TestParseTaints(t *testing.T) {
	got, err := ParseTaints([]string{"a=b:NoSchedule", "c:NoExecute"})
	if err != nil || len(got) != 2 || got[0].Value != "b" || got[1].Key != "c" {
		t.Errorf("%v %v", got, err)
	}
	for _, bad := range []string{"a", "a=b", "a=b:Sometimes", ":NoSchedule"} {
		if _, err := ParseTaints([]string{bad}); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
}

// cri is a runtime that can be down or without a network.
type cri struct {
	runtimeapi.RuntimeServiceClient
	runtimeapi.ImageServiceClient
	mu            sync.Mutex
	down, network bool
}

func (c *cri) set(down, network bool) { c.mu.Lock(); c.down, c.network = down, network; c.mu.Unlock() }

func (c *cri) Status(context.Context, *runtimeapi.StatusRequest, ...grpc.CallOption) (*runtimeapi.StatusResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.down {
		return nil, errors.New("connection refused")
	}
	return &runtimeapi.StatusResponse{Status: &runtimeapi.RuntimeStatus{Conditions: []*runtimeapi.RuntimeCondition{
		{Type: runtimeapi.RuntimeReady, Status: true}, {Type: runtimeapi.NetworkReady, Status: c.network, Reason: "R", Message: "M"},
	}}}, nil
}

func (c *cri) Version(context.Context, *runtimeapi.VersionRequest, ...grpc.CallOption) (*runtimeapi.VersionResponse, error) {
	return &runtimeapi.VersionResponse{RuntimeName: "fake", RuntimeVersion: "1.0"}, nil
}

func (c *cri) ListImages(context.Context, *runtimeapi.ListImagesRequest, ...grpc.CallOption) (*runtimeapi.ListImagesResponse, error) {
	return &runtimeapi.ListImagesResponse{Images: []*runtimeapi.Image{{RepoTags: []string{"small"}, Size: 1}, {RepoTags: []string{"big"}, Size: 9}}}, nil
}

func TestManager(t *testing.T) {
	c := &cri{network: false}
	api := fake.NewSimpleClientset()
	o := DefaultOptions()
	o.HostnameOverride, o.NodeIP, o.NodeLabels, o.RegisterWithTaints = "n1", "192.0.2.7", map[string]string{"zone": "a"}, []string{"k=v:NoSchedule"}
	start := func() (*Manager, func()) {
		m, err := New(o, Surroundings{Root: t.TempDir(), Port: 10250, Version: "v1.36.6", Client: api, Runtime: c, Images: c,
			Events: record.NewFakeRecorder(100), Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- m.Run(ctx) }()
		return m, func() { cancel(); <-done }
	}
	eventually := func(what string, ok func(*corev1.Node) bool) {
		t.Helper()
		var n *corev1.Node
		for end := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
			n, _ = api.CoreV1().Nodes().Get(t.Context(), "n1", metav1.GetOptions{})
			if n != nil && n.Name != "" && ok(n) {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("not within 10 s: %s; last seen %+v", what, n)
			}
		}
	}
	ready := func(want corev1.ConditionStatus) func(*corev1.Node) bool {
		return func(n *corev1.Node) bool {
			_, c := nodeutil.GetNodeCondition(&n.Status, corev1.NodeReady)
			return c != nil && c.Status == want
		}
	}
	m, stop := start()
	eventually("registered, not ready", ready("False"))
	c.set(false, true)
	eventually("ready", ready("True"))
	if m.NetworkReady() != nil {
		t.Error(m.NetworkReady())
	}
	eventually("the whole object", func(n *corev1.Node) bool {
		return n.Labels["zone"] == "a" && n.Labels["kubernetes.io/hostname"] == "n1" && len(n.Spec.Taints) == 1 &&
			n.Status.Addresses[0].Address == "192.0.2.7" && n.Status.NodeInfo.ContainerRuntimeVersion == "fake://1.0" &&
			n.Status.Images[0].Names[0] == "big" && n.Status.DaemonEndpoints.KubeletEndpoint.Port == 10250
	})
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if lease, err := api.CoordinationV1().Leases("kube-node-lease").Get(t.Context(), "n1", metav1.GetOptions{}); err == nil && *lease.Spec.HolderIdentity == "n1" {
			break
		}
		if time.Now().After(end) {
			t.Fatal("no lease")
		}
	}
	stop()

	// A restart finds the Node and keeps what others wrote; labels of the machine come back.
	n, _ := api.CoreV1().Nodes().Get(t.Context(), "n1", metav1.GetOptions{})
	n.Labels = map[string]string{"mine": "1"}
	n.Spec.Taints = nil
	if _, err := api.CoreV1().Nodes().Update(t.Context(), n, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	c.set(true, false)
	m, stop = start()
	eventually("the runtime is down", func(n *corev1.Node) bool {
		_, c := nodeutil.GetNodeCondition(&n.Status, corev1.NodeReady)
		return c.Status == "False" && c.Message == "container runtime is down" && n.Labels["mine"] == "1" &&
			n.Labels["kubernetes.io/os"] == "linux" && len(n.Spec.Taints) == 0
	})
	c.set(false, true)
	eventually("ready again", ready("True"))
	if err := api.CoreV1().Nodes().Delete(t.Context(), "n1", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually("registered again after deletion", ready("True"))
	_ = m
	stop()
}
