package volumes

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// Type is one kind of volume. It has either Content, for a directory of files that this
// room writes and keeps up to date, or Update, for anything else. Deleting and pruning
// need no row: they are done alike for all, from the disk and the mount table.
type Type struct {
	// Plugin is the directory of these volumes: "kubernetes.io~<name>", as upstream's,
	// so that a node can be taken over with its pods running.
	Plugin string
	Match  func(q *request) bool
	// Content computes the files. next is when they change by themselves.
	Content func(ctx context.Context, q *request) (p payload, next time.Time, err error)
	// InMemory keeps the files of Content off the disk.
	InMemory bool
	// Update makes the volume ready, or finds that it is.
	Update func(ctx context.Context, q *request) (Mounted, error)
}

// table holds every volume type; the first match counts.
var table = []Type{
	emptyDir,
	hostPath,
	configMap,
	secret,
	projected,
	downwardAPI,
	local,
	nfs,
	csi,
}

// request is one volume of one pod to be made ready.
type request struct {
	manager  *Manager
	state    *podState
	pod      *corev1.Pod
	volume   *corev1.Volume
	name     string // of the directory: the pod's volume, or the PersistentVolume
	dir      string // <root>/pods/<uid>/volumes/<plugin>/<name>
	pv       *corev1.PersistentVolume
	readOnly bool   // by the claim
	claim    string // name of the PersistentVolumeClaim that led to pv
	plugin   string // "kubernetes.io/empty-dir"; "N/A" until it is known
}

func typeOf(q *request) (*Type, bool) {
	for i := range table {
		if table[i].Match(q) {
			return &table[i], true
		}
	}
	return nil, false
}

// block says that the claim asks for a raw device.
func (q *request) block() bool {
	return q.pv != nil && q.pv.Spec.VolumeMode != nil && *q.pv.Spec.VolumeMode == corev1.PersistentVolumeBlock
}

// fsGroup is the group that the pod's containers share, nil when there is none.
func (q *request) fsGroup() *int64 {
	if sc := q.pod.Spec.SecurityContext; sc != nil {
		return sc.FSGroup
	}
	return nil
}

// onlyUser is the one user that all containers run as, nil when the spec names several
// or leaves it to an image. Source: KEP-1205, token files are owned by it.
func (q *request) onlyUser() *int64 {
	var common *int64
	if sc := q.pod.Spec.SecurityContext; sc != nil {
		common = sc.RunAsUser
	}
	var only *int64
	for _, list := range [][]corev1.Container{q.pod.Spec.InitContainers, q.pod.Spec.Containers} {
		for i := range list {
			user := common
			if sc := list[i].SecurityContext; sc != nil && sc.RunAsUser != nil {
				user = sc.RunAsUser
			}
			if user == nil || only != nil && *only != *user {
				return nil
			}
			only = user
		}
	}
	return only
}
