package server

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Pods is what the server needs to know of the pods on this node. Implemented by
// worker.Pool.
type Pods interface {
	// Pods returns every pod the node works on (static ones too), each with the
	// status this kubelet last computed. Shared: read-only.
	Pods() []*corev1.Pod

	// Pod finds a pod by name, with the status this kubelet last computed. uid may
	// be empty; a mirror pod's UID finds its static pod.
	Pod(namespace, name string, uid types.UID) (*corev1.Pod, bool)

	// Container finds the newest container of that name (ordinary, init or
	// ephemeral) in the runtime. With previous, the one before it.
	Container(uid types.UID, container string, previous bool) (Container, bool)

	// Sandbox is the ID of the pod's ready sandbox.
	Sandbox(uid types.UID) (string, bool)
}

// Container is one container as the runtime knows it.
type Container struct {
	ID      string
	Running bool
	// LogPath is the newest log file, absolute; rotated ones lie beside it with
	// ".<time>" or ".<time>.gz" appended.
	LogPath string
}
