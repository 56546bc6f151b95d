package probes

import (
	"time"

	corev1 "k8s.io/api/core/v1"
)

// Target is one running container whose probes are to run.
type Target struct {
	// Container is the container of the pod's spec (also of its init containers:
	// sidecars have probes).
	Container *corev1.Container
	// ID is the runtime's container ID; a new ID starts the probes from nothing.
	ID string
	// Started is when the runtime started the container; initialDelaySeconds
	// counts from there.
	Started time.Time
	// Initial is what the results are until a probe says otherwise. It is the zero
	// State for a container that this kubelet started, and what the API server was
	// last told for one adopted after the kubelet's own restart.
	Initial State
	// Terminating stops startup and liveness probes and keeps readiness probes:
	// a pod in its grace period still tells whether it can serve.
	Terminating bool
}

// State is what the probes of one container say.
type State struct {
	// Started: the startup probe has passed, or there is none.
	Started bool
	// Ready: started, and the readiness probe passes or there is none.
	Ready bool
	// Failed is set once a liveness or startup probe has failed often enough that
	// the container is to be killed. It stays set for that container ID.
	Failed *Failure
}

// Failure is why a container must be restarted.
type Failure struct {
	// Kind is "liveness" or "startup", as in upstream's messages
	// ("Container x failed liveness probe, will be restarted").
	Kind string
	// GracePeriodSeconds is the probe's own terminationGracePeriodSeconds.
	GracePeriodSeconds *int64
}
