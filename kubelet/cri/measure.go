package cri

import (
	"context"
	"strings"
	"time"

	"google.golang.org/grpc"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/keelson/keelson/kubelet/metrics"
)

// operations are upstream's labels for the calls of CRI.
//
// Source: kubelet 1.36, label operation_type of kubelet_runtime_operations_total.
var operations = map[string]string{
	"Version": "version", "Status": "status", "RuntimeConfig": "runtime_config", "UpdateRuntimeConfig": "update_runtime_config",
	"RunPodSandbox": "run_podsandbox", "StopPodSandbox": "stop_podsandbox", "RemovePodSandbox": "remove_podsandbox",
	"PodSandboxStatus": "podsandbox_status", "ListPodSandbox": "list_podsandbox", "UpdatePodSandboxResources": "update_podsandbox_resources",
	"CreateContainer": "create_container", "StartContainer": "start_container", "StopContainer": "stop_container", "RemoveContainer": "remove_container",
	"ListContainers": "list_containers", "ContainerStatus": "container_status", "UpdateContainerResources": "update_container",
	"ReopenContainerLog": "reopen_container_log", "ExecSync": "exec_sync", "Exec": "exec", "Attach": "attach", "PortForward": "port_forward",
	"ContainerStats": "container_stats", "ListContainerStats": "list_container_stats", "PodSandboxStats": "podsandbox_stats",
	"ListPodSandboxStats": "list_podsandbox_stats", "CheckpointContainer": "checkpoint_container",
	"ListMetricDescriptors": "list_metric_descriptors", "ListPodSandboxMetrics": "list_podsandbox_metrics",
	"ListImages": "list_images", "ImageStatus": "image_status", "PullImage": "pull_image", "RemoveImage": "remove_image", "ImageFsInfo": "image_fs_info",
}

// measured counts and times every call.
func measured(m *metrics.Metrics) grpc.UnaryClientInterceptor {
	return func(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, call grpc.UnaryInvoker, opts ...grpc.CallOption) error {
		began := time.Now()
		err := call(ctx, method, req, reply, conn, opts...)
		took := time.Since(began)
		if name, ok := operations[method[strings.LastIndexByte(method, '/')+1:]]; ok {
			m.Call(name, took, err)
		}
		if r, ok := req.(*cri.RunPodSandboxRequest); ok {
			m.Sandbox(r.RuntimeHandler, took, err)
		}
		return err
	}
}
