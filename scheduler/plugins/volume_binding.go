package plugins

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"

	"github.com/keelson/keelson/scheduler/framework"
)

const volumeBindingName = "VolumeBinding"

var (
	volumeElsewhere = final(volumeBindingName, "node(s) didn't match PersistentVolume's node affinity")
	volumeWrongZone = final("VolumeZone", "node(s) had no available volume zone")
	volumeNone      = final(volumeBindingName, "node(s) didn't find available persistent volumes to bind")
	volumeMissing   = final(volumeBindingName, "node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)")
	volumeUnbound   = final(volumeBindingName, "pod has unbound immediate PersistentVolumeClaims")
)

// annotationSelectedNode tells the provisioner for which node to make a volume; annotationBindCompleted
// is on claims that the volume binder has finished with.
const (
	AnnotationSelectedNode  = "volume.kubernetes.io/selected-node"
	annotationBindCompleted = "pv.kubernetes.io/bind-completed"
	noProvisioner           = "kubernetes.io/no-provisioner"
)

// volumeBinding obeys where volumes are. A bound claim: nodes that its volume's node affinity (and zone
// labels) admit. A claim that waits for its first consumer: nodes for which a volume exists or can be
// made. A claim that should have been bound at once and is not: no node.
//
// Choose, called for the node that was picked, gives what has to be written before the pod is bound.
func volumeBinding(_ *framework.Args, p *framework.Pod, s *framework.Snapshot, _ framework.Eligible) framework.Global {
	if len(p.Claims) == 0 {
		return framework.Global{}
	}
	bound, waiting, refusal := sortClaims(p, s)
	if refusal != nil {
		return framework.Global{Refuse: refusal}
	}
	return framework.Global{Filter: func(n *framework.Node) *framework.Refusal {
		for _, claim := range bound {
			volume := s.Volumes.Volumes[claim.Spec.VolumeName]
			switch {
			case volume == nil:
				return volumeMissing
			case !volumeReaches(volume, n.Node):
				return volumeElsewhere
			case !zoneMatches(volume, n.Node):
				return volumeWrongZone
			}
		}
		if _, ok := choose(waiting, s, n.Node); !ok {
			return volumeNone
		}
		return nil
	}}
}

// Choose gives what is to be written so that the pod's waiting claims are bound on the node.
func Choose(p *framework.Pod, s *framework.Snapshot, n *framework.Node) []framework.VolumeChoice {
	if len(p.Claims) == 0 {
		return nil
	}
	_, waiting, refusal := sortClaims(p, s)
	if refusal != nil || len(waiting) == 0 {
		return nil
	}
	choices, _ := choose(waiting, s, n.Node)
	return choices
}

func sortClaims(p *framework.Pod, s *framework.Snapshot) (bound, waiting []*corev1.PersistentVolumeClaim, refusal *framework.Refusal) {
	for _, name := range p.Claims {
		key := types.NamespacedName{Namespace: p.Namespace, Name: name}
		claim := s.Volumes.Claims[key]
		switch {
		case claim == nil:
			return nil, nil, final(volumeBindingName, fmt.Sprintf("persistentvolumeclaim %q not found", name))
		case claim.Status.Phase == corev1.ClaimLost:
			return nil, nil, final(volumeBindingName, fmt.Sprintf("persistentvolumeclaim %q bound to non-existent persistentvolume %q", name, claim.Spec.VolumeName))
		case claim.DeletionTimestamp != nil:
			return nil, nil, final(volumeBindingName, fmt.Sprintf("persistentvolumeclaim %q is being deleted", name))
		case claim.Spec.VolumeName != "" && claim.Annotations[annotationBindCompleted] != "":
			bound = append(bound, claim)
		case waits(claim, s) && claim.Spec.VolumeName == "":
			waiting = append(waiting, claim)
		default:
			return nil, nil, volumeUnbound
		}
	}
	return bound, waiting, nil
}

// waits tells whether the claim is bound only when a pod uses it.
func waits(claim *corev1.PersistentVolumeClaim, s *framework.Snapshot) bool {
	if claim.Spec.StorageClassName == nil || *claim.Spec.StorageClassName == "" {
		return false
	}
	class := s.Volumes.Classes[*claim.Spec.StorageClassName]
	return class != nil && class.VolumeBindingMode != nil && *class.VolumeBindingMode == storagev1.VolumeBindingWaitForFirstConsumer
}

// volumeReaches tells whether the volume can be used on the node.
func volumeReaches(v *corev1.PersistentVolume, n *corev1.Node) bool {
	if v.Spec.NodeAffinity == nil || v.Spec.NodeAffinity.Required == nil {
		return true
	}
	ok, err := nodeaffinity.NewLazyErrorNodeSelector(v.Spec.NodeAffinity.Required).Match(n)
	return ok && err == nil
}

// zoneMatches compares the volume's zone and region labels with the node's. A label may list several
// values, joined by "__". A node without the label is not held back.
func zoneMatches(v *corev1.PersistentVolume, n *corev1.Node) bool {
	for _, key := range []string{corev1.LabelTopologyZone, corev1.LabelTopologyRegion, corev1.LabelFailureDomainBetaZone, corev1.LabelFailureDomainBetaRegion} {
		want, ok := v.Labels[key]
		if !ok {
			continue
		}
		have, ok := n.Labels[key]
		if ok && !slices.Contains(strings.Split(want, "__"), have) {
			return false
		}
	}
	return true
}

// choose finds a volume for each waiting claim that the node can use, the smallest that is large enough,
// or leaves it to the class's provisioner. ok is false when one of them can have neither.
func choose(waiting []*corev1.PersistentVolumeClaim, s *framework.Snapshot, n *corev1.Node) (choices []framework.VolumeChoice, ok bool) {
	taken := map[string]bool{}
	for _, claim := range waiting {
		key := types.NamespacedName{Namespace: claim.Namespace, Name: claim.Name}
		var best *corev1.PersistentVolume
		// A provisioner that has been asked already is waited for, on the node that it was told.
		if asked := claim.Annotations[AnnotationSelectedNode]; asked != "" {
			if asked != n.Name {
				return nil, false
			}
			choices = append(choices, framework.VolumeChoice{Claim: key})
			continue
		}
		for _, v := range s.Volumes.Volumes {
			if taken[v.Name] || !suits(v, claim) || !volumeReaches(v, n) {
				continue
			}
			if by, chosen := s.Volumes.Chosen[v.Name]; chosen && by != key {
				continue
			}
			if best == nil || smaller(v, best) {
				best = v
			}
		}
		if best != nil {
			taken[best.Name] = true
			choices = append(choices, framework.VolumeChoice{Claim: key, Volume: best.Name})
			continue
		}
		class := s.Volumes.Classes[*claim.Spec.StorageClassName]
		if class.Provisioner == "" || class.Provisioner == noProvisioner || !topologyAllowed(class, n) {
			return nil, false
		}
		choices = append(choices, framework.VolumeChoice{Claim: key})
	}
	return choices, true
}

func smaller(a, b *corev1.PersistentVolume) bool {
	qa, qb := a.Spec.Capacity[corev1.ResourceStorage], b.Spec.Capacity[corev1.ResourceStorage]
	if c := qa.Cmp(qb); c != 0 {
		return c < 0
	}
	return a.Name < b.Name
}

// suits tells whether the volume is what the claim asks for, and free or kept for it.
func suits(v *corev1.PersistentVolume, claim *corev1.PersistentVolumeClaim) bool {
	if ref := v.Spec.ClaimRef; ref != nil {
		return ref.Namespace == claim.Namespace && ref.Name == claim.Name && (ref.UID == "" || ref.UID == claim.UID)
	}
	if v.DeletionTimestamp != nil || v.Spec.StorageClassName != *claim.Spec.StorageClassName ||
		v.Status.Phase != corev1.VolumeAvailable && v.Status.Phase != "" {
		return false
	}
	have, want := v.Spec.Capacity[corev1.ResourceStorage], claim.Spec.Resources.Requests[corev1.ResourceStorage]
	if have.Cmp(want) < 0 {
		return false
	}
	for _, mode := range claim.Spec.AccessModes {
		if !slices.Contains(v.Spec.AccessModes, mode) {
			return false
		}
	}
	mode := func(m *corev1.PersistentVolumeMode) corev1.PersistentVolumeMode {
		if m == nil {
			return corev1.PersistentVolumeFilesystem
		}
		return *m
	}
	if mode(v.Spec.VolumeMode) != mode(claim.Spec.VolumeMode) {
		return false
	}
	if claim.Spec.Selector != nil {
		of := framework.NewSelection(nil, nil, claim.Spec.Selector, false)
		return of.Labels.Matches(labels.Set(v.Labels))
	}
	return true
}

// topologyAllowed obeys the class's allowedTopologies.
func topologyAllowed(class *storagev1.StorageClass, n *corev1.Node) bool {
	if len(class.AllowedTopologies) == 0 {
		return true
	}
	return slices.ContainsFunc(class.AllowedTopologies, func(t corev1.TopologySelectorTerm) bool {
		return !slices.ContainsFunc(t.MatchLabelExpressions, func(r corev1.TopologySelectorLabelRequirement) bool {
			return !slices.Contains(r.Values, n.Labels[r.Key])
		})
	})
}
