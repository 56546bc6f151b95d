package podrules

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// DropClosed removes the fields whose feature gate is closed in 1.36 unless it
// is opened: cluster trust bundles and pod certificates in projected volumes, stop
// signals, scheduling groups. What old already has stays; old is nil for a creation.
// Source: the feature gates page of the Kubernetes documentation.
func DropClosed(s, old *corev1.PodSpec) {
	if old == nil {
		old = &corev1.PodSpec{}
	}
	source := func(s *corev1.PodSpec, f func(*corev1.VolumeProjection) bool) bool {
		for i := range s.Volumes {
			if p := s.Volumes[i].Projected; p != nil {
				for j := range p.Sources {
					if f(&p.Sources[j]) {
						return true
					}
				}
			}
		}
		return false
	}
	if !source(old, func(p *corev1.VolumeProjection) bool { return p.ClusterTrustBundle != nil }) {
		source(s, func(p *corev1.VolumeProjection) bool { p.ClusterTrustBundle = nil; return false })
	}
	if !source(old, func(p *corev1.VolumeProjection) bool { return p.PodCertificate != nil }) {
		source(s, func(p *corev1.VolumeProjection) bool { p.PodCertificate = nil; return false })
	}
	if old.SchedulingGroup == nil {
		s.SchedulingGroup = nil
	}
	signals := false
	eachContainer(old, nil, func(c *corev1.Container, _ *field.Path) {
		signals = signals || c.Lifecycle != nil && c.Lifecycle.StopSignal != nil
	})
	if !signals {
		eachContainer(s, nil, func(c *corev1.Container, _ *field.Path) {
			if c.Lifecycle == nil || c.Lifecycle.StopSignal == nil {
				return
			}
			c.Lifecycle.StopSignal = nil
			if *c.Lifecycle == (corev1.Lifecycle{}) {
				c.Lifecycle = nil
			}
		})
	}
}

// DropClosedStatus is DropClosed for what is reported of a pod: digests of image
// volumes, and claims for what nodes themselves have.
func DropClosedStatus(s, old *corev1.PodStatus) {
	mounts := func(s *corev1.PodStatus, f func(*corev1.VolumeMountStatus)) {
		for _, list := range [][]corev1.ContainerStatus{s.ContainerStatuses, s.InitContainerStatuses, s.EphemeralContainerStatuses} {
			for i := range list {
				for j := range list[i].VolumeMounts {
					f(&list[i].VolumeMounts[j])
				}
			}
		}
	}
	used := false
	mounts(old, func(m *corev1.VolumeMountStatus) { used = used || m.VolumeStatus != nil })
	if !used {
		mounts(s, func(m *corev1.VolumeMountStatus) { m.VolumeStatus = nil })
	}
	if len(old.NodeAllocatableResourceClaimStatuses) == 0 {
		s.NodeAllocatableResourceClaimStatuses = nil
	}
}
