package statefulset

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/keelson/keelson/controller-manager/podset"
)

// ordinal takes a pod's name apart: "web-3" is 3 of web. A name of another form
// gives -1.
func ordinal(name string) (set string, n int) {
	i := strings.LastIndexByte(name, '-')
	if i < 0 {
		return "", -1
	}
	v, err := strconv.ParseUint(name[i+1:], 10, 31)
	if err != nil {
		return "", -1
	}
	return name[:i], int(v)
}

func podName(set *appsv1.StatefulSet, n int) string { return fmt.Sprintf("%s-%d", set.Name, n) }

func claimName(template, set string, n int) string { return fmt.Sprintf("%s-%s-%d", template, set, n) }

func start(set *appsv1.StatefulSet) int {
	if set.Spec.Ordinals != nil {
		return int(set.Spec.Ordinals.Start)
	}
	return 0
}

func want(set *appsv1.StatefulSet) int {
	if set.Spec.Replicas == nil {
		return 1
	}
	return int(*set.Spec.Replicas)
}

func inRange(set *appsv1.StatefulSet, n int) bool { return n >= start(set) && n < start(set)+want(set) }

func podRevision(p *corev1.Pod) string { return p.Labels[appsv1.StatefulSetRevisionLabel] }

// newPod is the pod of an ordinal, of the given revision.
func newPod(set *appsv1.StatefulSet, r Revision, n int) *corev1.Pod {
	p := podset.FromTemplate(r.Template, set, gvk)
	p.GenerateName, p.Name = "", podName(set, n)
	identify(p, n)
	p.Labels[appsv1.StatefulSetRevisionLabel] = r.Name
	p.Spec.Hostname, p.Spec.Subdomain = p.Name, set.Spec.ServiceName
	mount(set, p, n)
	return p
}

// identify gives a pod the labels of its place in the set.
func identify(p *corev1.Pod, n int) {
	if p.Labels == nil {
		p.Labels = map[string]string{}
	}
	p.Labels[appsv1.StatefulSetPodNameLabel] = p.Name
	p.Labels[appsv1.PodIndexLabel] = strconv.Itoa(n)
}

// mount makes the pod's volumes of the claim templates' names refer to its claims.
func mount(set *appsv1.StatefulSet, p *corev1.Pod, n int) {
	var volumes []corev1.Volume
	ours := map[string]bool{}
	for _, t := range set.Spec.VolumeClaimTemplates {
		ours[t.Name] = true
		volumes = append(volumes, corev1.Volume{Name: t.Name, VolumeSource: corev1.VolumeSource{
			PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claimName(t.Name, set.Name, n)},
		}})
	}
	for _, v := range p.Spec.Volumes {
		if !ours[v.Name] {
			volumes = append(volumes, v)
		}
	}
	p.Spec.Volumes = volumes
}

func mounted(set *appsv1.StatefulSet, p *corev1.Pod, n int) bool {
	for _, t := range set.Spec.VolumeClaimTemplates {
		i := slices.IndexFunc(p.Spec.Volumes, func(v corev1.Volume) bool { return v.Name == t.Name })
		if i < 0 || p.Spec.Volumes[i].PersistentVolumeClaim == nil || p.Spec.Volumes[i].PersistentVolumeClaim.ClaimName != claimName(t.Name, set.Name, n) {
			return false
		}
	}
	return true
}

// claims are the claims that a pod's ordinal should have.
func claims(set *appsv1.StatefulSet, n int) []*corev1.PersistentVolumeClaim {
	var list []*corev1.PersistentVolumeClaim
	for _, t := range set.Spec.VolumeClaimTemplates {
		c := t.DeepCopy()
		c.Name, c.Namespace = claimName(t.Name, set.Name, n), set.Namespace
		if c.Labels == nil {
			c.Labels = map[string]string{}
		}
		if set.Spec.Selector != nil {
			maps.Copy(c.Labels, set.Spec.Selector.MatchLabels)
		}
		list = append(list, c)
	}
	return list
}

// retention is the policy for claims, with its defaults.
func retention(set *appsv1.StatefulSet) (deleted, scaled bool) {
	p := set.Spec.PersistentVolumeClaimRetentionPolicy
	if p == nil {
		return false, false
	}
	return p.WhenDeleted == appsv1.DeletePersistentVolumeClaimRetentionPolicyType, p.WhenScaled == appsv1.DeletePersistentVolumeClaimRetentionPolicyType
}

var podGVK = corev1.SchemeGroupVersion.WithKind("Pod")

func refersTo(r metav1.OwnerReference, apiVersion, kind, name string) bool {
	return r.APIVersion == apiVersion && r.Kind == kind && r.Name == name
}

// claimRefs says which owner references a claim should have so that the garbage
// collector deletes it when the policy wants that: with the set when it is deleted,
// with the pod when the set is scaled down below it. ok is false when the claim is
// to be left alone: it refers to an earlier set or pod of the same name. foreign
// tells that another controller owns the claim, so that the policy is not applied.
//
// Source: KEP-1847.
func claimRefs(set *appsv1.StatefulSet, pod *corev1.Pod, c *corev1.PersistentVolumeClaim) (refs []metav1.OwnerReference, foreign, ok bool) {
	deleted, scaled := retention(set)
	had := c.OwnerReferences
	var rest []metav1.OwnerReference
	for _, r := range had {
		isSet := refersTo(r, "apps/v1", "StatefulSet", set.Name)
		isPod := refersTo(r, "v1", "Pod", pod.Name)
		if isSet && r.UID != set.UID || isPod && r.UID != pod.UID {
			return had, deleted || scaled, false
		}
		if isSet || isPod {
			continue
		}
		if r.Controller != nil && *r.Controller && (deleted || scaled) {
			foreign = true
		}
		rest = append(rest, r)
	}
	if foreign {
		return rest, true, true
	}
	_, n := ordinal(pod.Name)
	condemned := !inRange(set, n)
	if deleted && !(scaled && condemned) {
		rest = append(rest, *metav1.NewControllerRef(set, gvk))
	}
	if scaled && condemned {
		rest = append(rest, *metav1.NewControllerRef(pod, podGVK))
	}
	return rest, false, true
}

// sameRefs compares references by what matters here, in any order.
func sameRefs(a, b []metav1.OwnerReference) bool {
	if len(a) != len(b) {
		return false
	}
	for _, r := range a {
		if !slices.ContainsFunc(b, func(o metav1.OwnerReference) bool {
			return o.UID == r.UID && (o.Controller != nil && *o.Controller) == (r.Controller != nil && *r.Controller)
		}) {
			return false
		}
	}
	return true
}
