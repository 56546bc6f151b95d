package admission

import (
	"context"
	"fmt"
	"strings"

	authenticationv1 "k8s.io/api/authentication/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	storagev1 "k8s.io/api/storage/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/keelson/keelson/apiserver/resources"
)

// nodeRestriction keeps a kubelet from changing anything but its own node and
// the pods bound to it, so that one stolen machine is not the whole cluster.
//
// Source: Kubernetes documentation, "NodeRestriction".
func nodeRestriction(cfg Config) Plugin {
	return Plugin{Name: "NodeRestriction", Mutate: func(_ context.Context, a *Attributes) error {
		if a.User == nil || !a.User.In("system:nodes") {
			return nil
		}
		node, ok := a.kubelet()
		if !ok {
			return forbid(a, fmt.Errorf("could not determine node from user %q", a.User.Name))
		}
		switch a.Row.GR() {
		case grPods:
			return nodePod(cfg, a, node)
		case grNodes:
			return nodeNode(a, node)
		case grClaims:
			return nodeClaim(a)
		case grServiceAccounts:
			if a.Subresource == "token" {
				return nodeToken(cfg, a, node)
			}
		case grLeases:
			return nodeNamed(a, node, "lease", "kube-node-lease")
		case grCSINodes:
			return nodeNamed(a, node, "CSINode", "")
		}
		return nil
	}}
}

func nodePod(cfg Config, a *Attributes, node string) error {
	live := func() (*corev1.Pod, error) {
		if old, ok := a.Old.(*corev1.Pod); ok && old != nil {
			return old, nil
		}
		return resources.Lookup[corev1.Pod](cfg.Read, grPods, a.Namespace, a.Name)
	}
	mine := func(verb string) error {
		pod, err := live()
		if err != nil {
			return err
		}
		if pod == nil {
			return nil // the verb itself answers 404
		}
		if pod.Spec.NodeName != node {
			return forbid(a, fmt.Errorf("node %q can only %s pods with spec.nodeName set to itself", node, verb))
		}
		return nil
	}
	switch a.Subresource {
	case "":
		switch a.Operation {
		case Create:
			return nodeMirrorPod(cfg, a, node)
		case Delete:
			return mine("delete")
		}
		return forbid(a, fmt.Errorf("unexpected operation %q, node %q can only create and delete mirror pods", a.Operation, node))
	case "status":
		if a.Operation != Update {
			return forbid(a, fmt.Errorf("unexpected operation %q", a.Operation))
		}
		if err := mine("update status for"); err != nil {
			return err
		}
		pod, ok := a.Object.(*corev1.Pod)
		old, okOld := a.Old.(*corev1.Pod)
		if ok && okOld && !apiequality.Semantic.DeepEqual(pod.Labels, old.Labels) {
			return forbid(a, fmt.Errorf("node %q cannot update labels through pod status", node))
		}
		if ok && okOld && !apiequality.Semantic.DeepEqual(pod.Status.ResourceClaimStatuses, old.Status.ResourceClaimStatuses) {
			return forbid(a, fmt.Errorf("node %q cannot update resource claim statuses", node))
		}
		return nil
	case "eviction":
		ev, ok := a.Object.(*policyv1.Eviction)
		if !ok {
			return forbid(a, fmt.Errorf("unexpected type %T", a.Object))
		}
		name := a.Name
		if name == "" {
			name = ev.Name
		}
		pod, err := resources.Lookup[corev1.Pod](cfg.Read, grPods, a.Namespace, name)
		if err != nil {
			return err
		}
		if pod != nil && pod.Spec.NodeName != node {
			return forbid(a, fmt.Errorf("node %s can only evict pods with spec.nodeName set to itself", node))
		}
		return nil
	}
	return forbid(a, fmt.Errorf("unexpected pod subresource %q, only 'status' and 'eviction' are allowed", a.Subresource))
}

// nodeMirrorPod lets a kubelet show a static pod: bound to itself, owned by its
// node, and without anything that would give it rights.
func nodeMirrorPod(cfg Config, a *Attributes, node string) error {
	pod, ok := a.Object.(*corev1.Pod)
	if !ok {
		return forbid(a, fmt.Errorf("unexpected type %T", a.Object))
	}
	if _, mirror := pod.Annotations[corev1.MirrorPodAnnotationKey]; !mirror {
		return forbid(a, fmt.Errorf("pod does not have %q annotation, node %q can only create mirror pods", corev1.MirrorPodAnnotationKey, node))
	}
	if pod.Spec.NodeName != node {
		return forbid(a, fmt.Errorf("node %q can only create pods with spec.nodeName set to itself", node))
	}
	if len(pod.OwnerReferences) > 1 {
		return forbid(a, fmt.Errorf("node %q can only create pods with a single owner reference set to itself", node))
	}
	if len(pod.OwnerReferences) == 0 {
		return forbid(a, fmt.Errorf("node %q can only create pods with an owner reference set to itself", node))
	}
	o := pod.OwnerReferences[0]
	if o.APIVersion != "v1" || o.Kind != "Node" || o.Name != node || o.Controller == nil || !*o.Controller || o.BlockOwnerDeletion != nil && *o.BlockOwnerDeletion {
		return forbid(a, fmt.Errorf("node %q can only create pods with a controller owner reference to its own v1 Node that does not block deletion", node))
	}
	n, err := resources.Lookup[corev1.Node](cfg.Read, grNodes, "", node)
	if err != nil {
		return err
	}
	if n == nil || n.UID != o.UID {
		return forbid(a, fmt.Errorf("node %s UID mismatch: expected the UID of the Node object, got %s", node, o.UID))
	}
	if pod.Spec.ServiceAccountName != "" {
		return forbid(a, fmt.Errorf("node %q can not create pods that reference a service account", node))
	}
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		if v.Secret != nil || v.ConfigMap != nil || v.PersistentVolumeClaim != nil || v.Ephemeral != nil || v.Projected != nil && projectsToken(v.Projected) {
			return forbid(a, fmt.Errorf("node %q can not create pods that reference secrets, configmaps, persistentvolumeclaims or service account tokens (volume %q)", node, v.Name))
		}
	}
	if len(pod.Spec.ResourceClaims) > 0 {
		return forbid(a, fmt.Errorf("node %q can not create pods that reference resource claims", node))
	}
	return nil
}

// nodeMayLabel tells the labels that a kubelet may set on its own node.
//
// Source: Kubernetes documentation, "Node labels" (NodeRestriction).
func nodeMayLabel(key string) bool {
	domain, _, ok := strings.Cut(key, "/")
	if !ok {
		return true
	}
	kubernetes := domain == "kubernetes.io" || strings.HasSuffix(domain, ".kubernetes.io") || domain == "k8s.io" || strings.HasSuffix(domain, ".k8s.io")
	if !kubernetes {
		return true
	}
	switch key {
	case corev1.LabelHostname, corev1.LabelArchStable, corev1.LabelOSStable, corev1.LabelInstanceType, corev1.LabelInstanceTypeStable,
		corev1.LabelFailureDomainBetaRegion, corev1.LabelFailureDomainBetaZone, corev1.LabelTopologyRegion, corev1.LabelTopologyZone,
		"beta.kubernetes.io/arch", "beta.kubernetes.io/os", "node.kubernetes.io/windows-build":
		return true
	}
	for _, d := range []string{"kubelet.kubernetes.io", "node.kubernetes.io"} {
		if domain == d || strings.HasSuffix(domain, "."+d) {
			return true
		}
	}
	// Outside node-restriction.kubernetes.io unknown labels of these domains are refused too.
	return false
}

func nodeNode(a *Attributes, node string) error {
	name := a.Name
	obj, _ := a.Object.(*corev1.Node)
	if name == "" && obj != nil {
		name = obj.Name
	}
	if name != node {
		return forbid(a, fmt.Errorf("node %q is not allowed to modify node %q", node, name))
	}
	old, _ := a.Old.(*corev1.Node)
	switch {
	case a.Operation == Delete:
		return forbid(a, fmt.Errorf("node %q is not allowed to delete itself", node))
	case obj == nil:
		return nil
	case a.Operation == Create:
		if obj.Spec.ConfigSource != nil {
			return forbid(a, fmt.Errorf("node %q is not allowed to create pods with a non-nil configSource", node))
		}
		return labelsAllowed(a, node, nil, obj.Labels)
	case a.Operation == Update && old != nil:
		if a.Subresource == "" && !apiequality.Semantic.DeepEqual(old.Spec.Taints, obj.Spec.Taints) {
			return forbid(a, fmt.Errorf("node %q is not allowed to modify taints", node))
		}
		if !apiequality.Semantic.DeepEqual(old.OwnerReferences, obj.OwnerReferences) && len(obj.OwnerReferences) > 0 {
			return forbid(a, fmt.Errorf("node %q is not allowed to modify ownerReferences", node))
		}
		return labelsAllowed(a, node, old.Labels, obj.Labels)
	}
	return nil
}

func labelsAllowed(a *Attributes, node string, old, now map[string]string) error {
	var bad []string
	check := func(k string) {
		if !nodeMayLabel(k) {
			bad = append(bad, k)
		}
	}
	for k, v := range now {
		if was, ok := old[k]; !ok || was != v {
			check(k)
		}
	}
	for k := range old {
		if _, ok := now[k]; !ok {
			check(k)
		}
	}
	if len(bad) > 0 {
		return forbid(a, fmt.Errorf("is not allowed to modify labels: %s", strings.Join(bad, ", ")))
	}
	return nil
}

// nodeClaim lets a kubelet report the progress of a volume's growth, nothing else.
func nodeClaim(a *Attributes) error {
	if a.Operation != Update || a.Subresource != "status" {
		return forbid(a, fmt.Errorf("unexpected operation %q on %q, may only update PVC status", a.Operation, a.Subresource))
	}
	pvc, ok := a.Object.(*corev1.PersistentVolumeClaim)
	old, okOld := a.Old.(*corev1.PersistentVolumeClaim)
	if !ok || !okOld {
		return forbid(a, fmt.Errorf("unexpected type %T", a.Object))
	}
	was, now := old.DeepCopy(), pvc.DeepCopy()
	for _, p := range []*corev1.PersistentVolumeClaim{was, now} {
		p.ResourceVersion, p.ManagedFields = "", nil
		p.Status.Capacity, p.Status.Conditions, p.Status.AllocatedResources, p.Status.AllocatedResourceStatuses = nil, nil, nil, nil
		p.Status.ModifyVolumeStatus, p.Status.CurrentVolumeAttributesClassName = nil, nil
	}
	if !apiequality.Semantic.DeepEqual(was, now) {
		return forbid(a, fmt.Errorf("node is not allowed to update fields other than status.capacity, status.conditions and the resize status"))
	}
	return nil
}

// nodeToken lets a kubelet ask for tokens of the accounts of its pods, bound to those pods.
func nodeToken(cfg Config, a *Attributes, node string) error {
	tr, ok := a.Object.(*authenticationv1.TokenRequest)
	if !ok {
		return forbid(a, fmt.Errorf("unexpected type %T", a.Object))
	}
	ref := tr.Spec.BoundObjectRef
	if ref == nil || ref.Kind != "Pod" || ref.APIVersion != "v1" || ref.Name == "" {
		return forbid(a, fmt.Errorf("node requested token not bound to a pod"))
	}
	if ref.UID == "" {
		return forbid(a, fmt.Errorf("node requested token with a pod binding without a uid"))
	}
	pod, err := resources.Lookup[corev1.Pod](cfg.Read, grPods, a.Namespace, ref.Name)
	if err != nil {
		return err
	}
	if pod == nil {
		return forbid(a, fmt.Errorf("node requested token bound to a pod that does not exist"))
	}
	if pod.UID != ref.UID {
		return forbid(a, fmt.Errorf("the UID in the bound object reference (%s) does not match the UID in record. The object might have been deleted and then recreated", ref.UID))
	}
	if pod.Spec.NodeName != node {
		return forbid(a, fmt.Errorf("node requested token bound to a pod scheduled on a different node"))
	}
	return nil
}

func nodeNamed(a *Attributes, node, kind, namespace string) error {
	if namespace != "" && a.Namespace != namespace {
		return forbid(a, fmt.Errorf("can only access leases in the %q system namespace", namespace))
	}
	name := a.Name
	if name == "" {
		switch o := a.Object.(type) {
		case *coordinationv1.Lease:
			name = o.Name
		case *storagev1.CSINode:
			name = o.Name
		case metav1.Object:
			name = o.GetName()
		}
	}
	if name != node {
		return forbid(a, fmt.Errorf("can only access node %s with the same name as the requesting node", kind))
	}
	return nil
}
