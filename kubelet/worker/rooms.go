// Package worker runs one goroutine per pod: observe, decide, apply, wait.
package worker

import (
	"context"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/keelson/keelson/kubelet/probes"
	"github.com/keelson/keelson/kubelet/volumes"
)

// Volumes is what a worker needs from the volumes room. Calls for one pod never
// overlap; calls for different pods do, and one that hangs must hang only its own.
type Volumes interface {
	// Setup makes every volume of the pod ready and returns them by name. It is
	// called at the pod's start, again on each retry and after a restart of the
	// kubelet, and does nothing for what is already there. While the pod lives
	// the room keeps contents that change (configMap, secret, projected, downward
	// API) up to date by itself.
	//
	// The error's text becomes the FailedMount event; it names every volume that
	// is not ready.
	Setup(ctx context.Context, pod *corev1.Pod) (volumes.Set, error)

	// Changed tells that the pod object itself has changed (labels and annotations
	// are downward API contents). It returns at once.
	Changed(pod *corev1.Pod)

	// SubPath returns a host path for one subPath (already expanded, relative, no
	// "..") of a volume, made so that a container cannot swap it for a symlink out
	// of the volume (bind mount of an opened file). It creates a missing directory.
	// mount is the index in the container's volumeMounts.
	SubPath(ctx context.Context, pod *corev1.Pod, container string, mount int, volume volumes.Mounted, subPath string) (string, error)

	// Teardown unmounts and removes all that Setup and SubPath made for the pod, from
	// what disk and mount table say (so it also works after a restart). The runtime
	// has confirmed that no container is left. Nothing there is no error.
	Teardown(ctx context.Context, uid types.UID) error

	// Prune tears down the pods on disk that are not in keep.
	Prune(ctx context.Context, keep map[types.UID]bool) error
}

// Probes is what a worker needs from the probes room.
type Probes interface {
	// Set declares all containers of the pod that are to be probed now, replacing
	// what was declared before; no targets ends the pod's probes. pod carries the
	// current podIPs in its status. It returns at once.
	Set(pod *corev1.Pod, targets []probes.Target)

	// State is the current result for a container ID. A container without probes is
	// Started and Ready; one that was never declared is the zero State.
	State(containerID string) probes.State
}

// Node is what a worker needs to know of the node it runs on.
type Node interface {
	// Node is the newest Node object seen, nil before registration. Shared: read-only.
	Node() *corev1.Node
	// HostIPs are the node's addresses, at most one of each family, primary first.
	HostIPs() []netip.Addr
	// NetworkReady is nil once the runtime reports NetworkReady; its text otherwise
	// is the reason and message of the runtime's condition.
	NetworkReady() error
}
