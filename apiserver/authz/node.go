package authz

import (
	"context"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	resourcev1 "k8s.io/api/resource/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/selection"

	"github.com/keelson/keelson/apiserver/authn"
	"github.com/keelson/keelson/apiserver/resources"
)

// Node authorizes kubelets: the fixed rules that every kubelet needs, and
// beyond them only the secrets, config maps, claims, volumes and service
// accounts that pods bound to that node refer to.
//
// Source: Kubernetes documentation, "Using Node Authorization".
type Node struct {
	Read resources.Reader
	// Pods calls yield for the pods bound to a node until it returns false.
	Pods func(node string, yield func(*corev1.Pod) bool) error
	// Rules are what a kubelet may do to kinds that no pod refers to: the rules of system:node.
	Rules []rbacv1.PolicyRule
}

// NodeName returns the node that a user is the kubelet of.
func NodeName(u *authn.User) (string, bool) {
	name, ok := strings.CutPrefix(u.Name, "system:node:")
	return name, ok && name != "" && u.In(authn.GroupNodes)
}

// Authorize has no opinion on anybody but kubelets.
func (n *Node) Authorize(_ context.Context, a Attributes) (Decision, string, error) {
	node, ok := NodeName(a.User)
	if !ok {
		return NoOpinion, "", nil
	}
	if a.Resource {
		gr := schema.GroupResource{Group: a.Group, Resource: a.Plural}
		switch {
		case gr == grSecrets || gr == grConfigMaps:
			return n.readReferenced(node, gr, a)
		case gr == grClaims && a.Subresource == "" && a.Verb != "list":
			return n.readReferenced(node, gr, a)
		case gr == grClaims && a.Subresource == "status":
			return n.referenced(node, gr, a)
		case gr == grVolumes, gr == grResourceClaims:
			return n.readReferenced(node, gr, a)
		case gr == grAttachments && a.Verb == "get":
			return n.referenced(node, gr, a)
		case gr == grServiceAccounts && a.Subresource == "token":
			if a.Verb != "create" {
				return NoOpinion, "can only create tokens for individual service accounts", nil
			}
			return n.referenced(node, gr, a)
		case gr == grServiceAccounts && a.Verb == "get":
			return n.referenced(node, gr, a)
		case gr == grLeases:
			return own(a, node, "kube-node-lease")
		case gr == grCSINodes:
			return own(a, node, "")
		case gr == grNodes && a.Subresource == "" && reads(a.Verb):
			switch a.Name {
			case node:
				return Allow, "", nil
			case "":
				return NoOpinion, fmt.Sprintf("node '%s' cannot read all nodes, only its own Node object", node), nil
			}
			return NoOpinion, fmt.Sprintf("node '%s' cannot read '%s', only its own Node object", node, a.Name), nil
		case gr == grPods && a.Subresource == "" && reads(a.Verb):
			return n.readPods(node, gr, a)
		case gr == grSlices:
			return n.slices(node, gr, a)
		}
	}
	for i := range n.Rules {
		if Allows(&n.Rules[i], &a) {
			return Allow, "", nil
		}
	}
	return NoOpinion, "", nil
}

func reads(verb string) bool { return verb == "get" || verb == "list" || verb == "watch" }

// selects reports whether the request shows only objects whose field has the value.
func selects(a Attributes, name, value string) bool {
	for _, q := range a.Fields {
		if q.Field == name && q.Value == value && (q.Operator == selection.Equals || q.Operator == selection.DoubleEquals) {
			return true
		}
	}
	return false
}

// readPods: a kubelet sees the pods that are bound to its node.
func (n *Node) readPods(node string, gr schema.GroupResource, a Attributes) (Decision, string, error) {
	switch {
	case a.Verb != "get" && selects(a, "spec.nodeName", node):
		return Allow, "", nil
	case a.Verb == "get" || a.Name != "":
		return n.referenced(node, gr, a)
	}
	return NoOpinion, "can only list/watch pods with spec.nodeName field selector", nil
}

// slices: a kubelet publishes the devices of its own node.
func (n *Node) slices(node string, gr schema.GroupResource, a Attributes) (Decision, string, error) {
	if a.Subresource != "" {
		return NoOpinion, "cannot authorize ResourceSlice subresources", nil
	}
	switch a.Verb {
	case "create": // the node is in the body; NodeRestriction checks it
		return Allow, "", nil
	case "get", "update", "patch", "delete":
		return n.referenced(node, gr, a)
	case "list", "watch", "deletecollection":
		if selects(a, resourcev1.ResourceSliceSelectorNodeName, node) {
			return Allow, "", nil
		}
		return NoOpinion, "can only list/watch/deletecollection resourceslices with nodeName field selector", nil
	}
	return NoOpinion, "only the following verbs are allowed for a ResourceSlice: get, watch, list, create, update, patch, delete, deletecollection", nil
}

var (
	grPods            = schema.GroupResource{Resource: "pods"}
	grSlices          = schema.GroupResource{Group: "resource.k8s.io", Resource: "resourceslices"}
	grSecrets         = schema.GroupResource{Resource: "secrets"}
	grConfigMaps      = schema.GroupResource{Resource: "configmaps"}
	grClaims          = schema.GroupResource{Resource: "persistentvolumeclaims"}
	grVolumes         = schema.GroupResource{Resource: "persistentvolumes"}
	grServiceAccounts = schema.GroupResource{Resource: "serviceaccounts"}
	grNodes           = schema.GroupResource{Resource: "nodes"}
	grResourceClaims  = schema.GroupResource{Group: "resource.k8s.io", Resource: "resourceclaims"}
	grAttachments     = schema.GroupResource{Group: "storage.k8s.io", Resource: "volumeattachments"}
	grCSINodes        = schema.GroupResource{Group: "storage.k8s.io", Resource: "csinodes"}
	grLeases          = schema.GroupResource{Group: "coordination.k8s.io", Resource: "leases"}
)

// own allows a kubelet everything with the one object that has its node's name.
func own(a Attributes, node, namespace string) (Decision, string, error) {
	if a.Subresource != "" || a.Namespace != namespace {
		return NoOpinion, "", nil
	}
	switch a.Verb {
	case "create": // the name is in the body; NodeRestriction checks it
		return Allow, "", nil
	case "get", "update", "patch", "delete":
		if a.Name == node {
			return Allow, "", nil
		}
	}
	return NoOpinion, fmt.Sprintf("can only access %s with the same name as the requesting node", a.Plural), nil
}

func (n *Node) readReferenced(node string, gr schema.GroupResource, a Attributes) (Decision, string, error) {
	switch a.Verb {
	case "get", "list", "watch":
	default:
		return NoOpinion, "can only read resources of this type", nil
	}
	if a.Subresource != "" {
		return NoOpinion, "cannot read subresource", nil
	}
	return n.referenced(node, gr, a)
}

func (n *Node) referenced(node string, gr schema.GroupResource, a Attributes) (Decision, string, error) {
	if a.Name == "" {
		return NoOpinion, "No Object name found", nil
	}
	if gr == grAttachments {
		va, err := resources.Lookup[storagev1.VolumeAttachment](n.Read, gr, "", a.Name)
		if err == nil && va != nil && va.Spec.NodeName == node {
			return Allow, "", nil
		}
		return NoOpinion, noRelation(node, a), err
	}
	if gr == grSlices {
		s, err := resources.Lookup[resourcev1.ResourceSlice](n.Read, gr, "", a.Name)
		if err == nil && s != nil && s.Spec.NodeName != nil && *s.Spec.NodeName == node {
			return Allow, "", nil
		}
		return NoOpinion, noRelation(node, a), err
	}
	found := false
	var failed error
	err := n.Pods(node, func(pod *corev1.Pod) bool {
		found, failed = n.refers(pod, gr, a.Namespace, a.Name)
		return !found && failed == nil
	})
	if err == nil {
		err = failed
	}
	if found {
		return Allow, "", err
	}
	return NoOpinion, noRelation(node, a), err
}

func noRelation(node string, a Attributes) string {
	return fmt.Sprintf("no relationship found between node '%s' and this object", node)
}

// refers reports whether pod needs the object.
func (n *Node) refers(pod *corev1.Pod, gr schema.GroupResource, namespace, name string) (bool, error) {
	if gr == grVolumes {
		return n.usesVolume(pod, name)
	}
	if pod.Namespace != namespace {
		return false, nil
	}
	if gr == grPods {
		return pod.Name == name, nil
	}
	// A mirror pod exists because of the node, and proves nothing that the node may read.
	if _, mirror := pod.Annotations[corev1.MirrorPodAnnotationKey]; mirror {
		return false, nil
	}
	switch gr {
	case grServiceAccounts:
		return pod.Spec.ServiceAccountName == name, nil
	case grSecrets:
		return podUsesSecret(&pod.Spec, name) || n.volumeUsesSecret(pod, name), nil
	case grConfigMaps:
		return podUsesConfigMap(&pod.Spec, name), nil
	case grClaims:
		for i := range pod.Spec.Volumes {
			if claimName(pod, &pod.Spec.Volumes[i]) == name {
				return true, nil
			}
		}
	case grResourceClaims:
		for _, s := range pod.Status.ResourceClaimStatuses {
			if s.ResourceClaimName != nil && *s.ResourceClaimName == name {
				return true, nil
			}
		}
		for _, c := range pod.Spec.ResourceClaims {
			if c.ResourceClaimName != nil && *c.ResourceClaimName == name {
				return true, nil
			}
		}
	}
	return false, nil
}

// claimName is the claim behind a volume: named, or generated for an ephemeral volume.
func claimName(pod *corev1.Pod, v *corev1.Volume) string {
	switch {
	case v.PersistentVolumeClaim != nil:
		return v.PersistentVolumeClaim.ClaimName
	case v.Ephemeral != nil:
		return pod.Name + "-" + v.Name
	}
	return ""
}

// volumes calls yield for the persistent volumes bound to the pod's claims.
func (n *Node) volumes(pod *corev1.Pod, yield func(*corev1.PersistentVolume) bool) error {
	for i := range pod.Spec.Volumes {
		claim := claimName(pod, &pod.Spec.Volumes[i])
		if claim == "" {
			continue
		}
		pvc, err := resources.Lookup[corev1.PersistentVolumeClaim](n.Read, grClaims, pod.Namespace, claim)
		if err != nil || pvc == nil || pvc.Spec.VolumeName == "" {
			if err != nil {
				return err
			}
			continue
		}
		pv, err := resources.Lookup[corev1.PersistentVolume](n.Read, grVolumes, "", pvc.Spec.VolumeName)
		if err != nil {
			return err
		}
		if pv != nil && !yield(pv) {
			return nil
		}
	}
	return nil
}

func (n *Node) usesVolume(pod *corev1.Pod, name string) (found bool, err error) {
	err = n.volumes(pod, func(pv *corev1.PersistentVolume) bool {
		found = pv.Name == name
		return !found
	})
	return found, err
}

// volumeUsesSecret finds secrets that a CSI volume's node plugin needs.
func (n *Node) volumeUsesSecret(pod *corev1.Pod, name string) (found bool) {
	_ = n.volumes(pod, func(pv *corev1.PersistentVolume) bool {
		if csi := pv.Spec.CSI; csi != nil {
			for _, ref := range []*corev1.SecretReference{csi.NodePublishSecretRef, csi.NodeStageSecretRef, csi.NodeExpandSecretRef} {
				found = found || ref != nil && ref.Namespace == pod.Namespace && ref.Name == name
			}
		}
		return !found
	})
	return found
}

// eachContainer calls yield with the environment of every container of the pod.
func eachContainer(spec *corev1.PodSpec, yield func(env []corev1.EnvVar, from []corev1.EnvFromSource) bool) bool {
	for _, list := range [][]corev1.Container{spec.InitContainers, spec.Containers} {
		for i := range list {
			if !yield(list[i].Env, list[i].EnvFrom) {
				return false
			}
		}
	}
	for i := range spec.EphemeralContainers {
		if !yield(spec.EphemeralContainers[i].Env, spec.EphemeralContainers[i].EnvFrom) {
			return false
		}
	}
	return true
}

func podUsesSecret(spec *corev1.PodSpec, name string) bool {
	for _, ref := range spec.ImagePullSecrets {
		if ref.Name == name {
			return true
		}
	}
	used := !eachContainer(spec, func(env []corev1.EnvVar, from []corev1.EnvFromSource) bool {
		for i := range env {
			if f := env[i].ValueFrom; f != nil && f.SecretKeyRef != nil && f.SecretKeyRef.Name == name {
				return false
			}
		}
		for i := range from {
			if s := from[i].SecretRef; s != nil && s.Name == name {
				return false
			}
		}
		return true
	})
	if used {
		return true
	}
	for i := range spec.Volumes {
		v := &spec.Volumes[i]
		switch {
		case v.Secret != nil && v.Secret.SecretName == name,
			v.CSI != nil && v.CSI.NodePublishSecretRef != nil && v.CSI.NodePublishSecretRef.Name == name,
			v.ISCSI != nil && v.ISCSI.SecretRef != nil && v.ISCSI.SecretRef.Name == name,
			v.RBD != nil && v.RBD.SecretRef != nil && v.RBD.SecretRef.Name == name,
			v.CephFS != nil && v.CephFS.SecretRef != nil && v.CephFS.SecretRef.Name == name,
			v.FlexVolume != nil && v.FlexVolume.SecretRef != nil && v.FlexVolume.SecretRef.Name == name,
			v.ScaleIO != nil && v.ScaleIO.SecretRef != nil && v.ScaleIO.SecretRef.Name == name,
			v.StorageOS != nil && v.StorageOS.SecretRef != nil && v.StorageOS.SecretRef.Name == name,
			v.AzureFile != nil && v.AzureFile.SecretName == name:
			return true
		}
		if v.Projected != nil {
			for _, s := range v.Projected.Sources {
				if s.Secret != nil && s.Secret.Name == name {
					return true
				}
			}
		}
	}
	return false
}

func podUsesConfigMap(spec *corev1.PodSpec, name string) bool {
	used := !eachContainer(spec, func(env []corev1.EnvVar, from []corev1.EnvFromSource) bool {
		for i := range env {
			if f := env[i].ValueFrom; f != nil && f.ConfigMapKeyRef != nil && f.ConfigMapKeyRef.Name == name {
				return false
			}
		}
		for i := range from {
			if s := from[i].ConfigMapRef; s != nil && s.Name == name {
				return false
			}
		}
		return true
	})
	if used {
		return true
	}
	for i := range spec.Volumes {
		v := &spec.Volumes[i]
		if v.ConfigMap != nil && v.ConfigMap.Name == name {
			return true
		}
		if v.Projected != nil {
			for _, s := range v.Projected.Sources {
				if s.ConfigMap != nil && s.ConfigMap.Name == name {
					return true
				}
			}
		}
	}
	return false
}
