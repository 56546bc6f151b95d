package plugins

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/keelson/keelson/scheduler/framework"
)

var claimInUse = open("VolumeRestrictions", "node(s) unavailable due to PersistentVolumeClaim with ReadWriteOncePod access mode already in-use by another pod")

// volumeRestrictions keeps a claim of mode ReadWriteOncePod to one pod. Source: KEP-2485.
func volumeRestrictions(_ *framework.Args, p *framework.Pod, s *framework.Snapshot, _ framework.Eligible) framework.Global {
	for _, name := range p.Claims {
		key := types.NamespacedName{Namespace: p.Namespace, Name: name}
		claim := s.Volumes.Claims[key]
		if claim != nil && slices.Contains(claim.Spec.AccessModes, corev1.ReadWriteOncePod) && s.Volumes.ClaimUsers[key] > 0 {
			return framework.Global{Refuse: claimInUse}
		}
	}
	return framework.Global{}
}
