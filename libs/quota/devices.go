package quota

import (
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	resourcev1 "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Cluster is what counts take from elsewhere: the time, and for a resource claim the names that device
// classes have for pods, and what a pod is counted for already. nil stands for what there is not.
type Cluster interface {
	Now() time.Time
	DeviceClass(name string) *resourcev1.DeviceClass
	Pod(namespace, name string) *corev1.Pod
	// Owned are the claims that the pod controls.
	Owned(pod *corev1.Pod) []*resourcev1.ResourceClaim
}

// deviceSuffix follows a device class: "gold.deviceclass.resource.k8s.io/devices".
const deviceSuffix = corev1.ResourceClaimsPerClass

// deviceUsage counts, by class, the most devices that a claim may be given. They count also under the
// names by which pods ask for them: of the class itself, and the extended resource that it serves. What
// its pod asks for by those names counts with the pod.
//
// Source: KEP-4840 and KEP-5004; "all" counts as the most that one claim can hold.
func deviceUsage(c Cluster, claim *resourcev1.ResourceClaim) corev1.ResourceList {
	use := corev1.ResourceList{"count/resourceclaims.resource.k8s.io": one()}
	for _, r := range claim.Spec.Devices.Requests {
		most := map[corev1.ResourceName]int64{} // of the alternatives, one is taken
		note := func(class string, mode resourcev1.DeviceAllocationMode, n int64) {
			switch mode {
			case resourcev1.DeviceAllocationModeExactCount:
			case resourcev1.DeviceAllocationModeAll:
				n = resourcev1.AllocationResultsMaxSize
			default:
				n = 0
			}
			for _, name := range deviceNames(c, class) {
				most[name] = max(most[name], n)
			}
		}
		if e := r.Exactly; e != nil {
			note(e.DeviceClassName, e.AllocationMode, e.Count)
		}
		for _, sub := range r.FirstAvailable {
			note(sub.DeviceClassName, sub.AllocationMode, sub.Count)
		}
		for name, n := range most {
			sum := use[name]
			sum.Add(*resource.NewQuantity(n, resource.DecimalSI))
			use[name] = sum
		}
	}
	for name, q := range podShare(c, claim) {
		if rest, ok := use[name]; ok && strings.HasPrefix(string(name), requests) {
			if rest.Sub(q); rest.Sign() < 0 {
				rest = *resource.NewQuantity(0, resource.DecimalSI)
			}
			use[name] = rest
		}
	}
	return use
}

// deviceNames are the names under which quotas limit the devices of a class.
func deviceNames(c Cluster, class string) []corev1.ResourceName {
	names := []corev1.ResourceName{corev1.ResourceName(class + deviceSuffix), corev1.ResourceName(corev1.ResourceImplicitExtendedClaimsPerClass + class)}
	if d := c.DeviceClass(class); d != nil && d.Spec.ExtendedResourceName != nil {
		names = append(names, requests+corev1.ResourceName(*d.Spec.ExtendedResourceName))
	}
	return names
}

// podShare is what counts with the pod for whose extended resources the scheduler has made the claim.
// Such a pod has one claim: until its status says which, the first that there was.
func podShare(c Cluster, claim *resourcev1.ResourceClaim) corev1.ResourceList {
	owner := madeFor(claim)
	if owner == nil {
		return nil
	}
	pod := c.Pod(claim.Namespace, owner.Name)
	if pod == nil || pod.UID != owner.UID {
		return nil
	}
	if s := pod.Status.ExtendedResourceClaimStatus; s != nil {
		if s.ResourceClaimName != claim.Name {
			return nil
		}
		return podUsage(pod, c.Now())
	}
	for _, other := range c.Owned(pod) {
		if madeFor(other) != nil && precedes(other, claim) {
			return nil
		}
	}
	return podUsage(pod, c.Now())
}

// madeFor is the pod that a claim for extended resources was made for, nil for other claims.
func madeFor(claim *resourcev1.ResourceClaim) *metav1.OwnerReference {
	if claim.Annotations[resourcev1.ExtendedResourceClaimAnnotation] != "true" {
		return nil
	}
	if o := metav1.GetControllerOfNoCopy(claim); o != nil && o.Kind == "Pod" && o.APIVersion == "v1" {
		return o
	}
	return nil
}

func precedes(a, b *resourcev1.ResourceClaim) bool {
	if !a.CreationTimestamp.Equal(&b.CreationTimestamp) {
		return a.CreationTimestamp.Before(&b.CreationTimestamp)
	}
	return a.Name < b.Name
}
