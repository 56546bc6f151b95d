package quota

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	resourcev1 "k8s.io/api/resource/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// around is a cluster of one pod, its claims, and classes by the extended resource that they serve.
type around struct {
	classes map[string]string
	pod     *corev1.Pod
	claims  []*resourcev1.ResourceClaim
}

func (a around) DeviceClass(name string) *resourcev1.DeviceClass {
	r, ok := a.classes[name]
	if !ok {
		return nil
	}
	d := &resourcev1.DeviceClass{ObjectMeta: metav1.ObjectMeta{Name: name}}
	if r != "" {
		d.Spec.ExtendedResourceName = &r
	}
	return d
}

func (a around) Pod(string, string) *corev1.Pod { return a.pod }

func (a around) Now() time.Time { return time.Unix(1000, 0) }

func (a around) Owned(*corev1.Pod) []*resourcev1.ResourceClaim { return a.claims }

const (
	devices = ".deviceclass.resource.k8s.io/devices"
	byClass = "requests.deviceclass.resource.kubernetes.io/"
)

func exactly(class string, n int64) resourcev1.DeviceRequest {
	return resourcev1.DeviceRequest{Exactly: &resourcev1.ExactDeviceRequest{DeviceClassName: class, AllocationMode: "ExactCount", Count: n}}
}

func either(subs ...resourcev1.DeviceRequest) (r resourcev1.DeviceRequest) {
	for _, s := range subs {
		r.FirstAvailable = append(r.FirstAvailable, resourcev1.DeviceSubRequest{DeviceClassName: s.Exactly.DeviceClassName, AllocationMode: s.Exactly.AllocationMode, Count: s.Exactly.Count})
	}
	return r
}

func claimOf(name string, requests ...resourcev1.DeviceRequest) *resourcev1.ResourceClaim {
	return &resourcev1.ResourceClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name}, Spec: resourcev1.ResourceClaimSpec{Devices: resourcev1.DeviceClaim{Requests: requests}}}
}

// implicit is a claim that the scheduler has made for the pod p.
func implicit(name string, requests ...resourcev1.DeviceRequest) *resourcev1.ResourceClaim {
	c, yes := claimOf(name, requests...), true
	c.Annotations = map[string]string{resourcev1.ExtendedResourceClaimAnnotation: "true"}
	c.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "Pod", Name: "p", UID: "u", Controller: &yes}}
	c.CreationTimestamp = metav1.NewTime(time.Unix(1e9, 0))
	return c
}

func asking(pairs ...string) *corev1.Pod {
	p := podOf(list(pairs...), nil)
	p.ObjectMeta = metav1.ObjectMeta{Namespace: "ns", Name: "p", UID: "u"}
	return p
}

func TestDevicesOfClasses(t *testing.T) {
	a := around{classes: map[string]string{"gold": "example.com/gpu", "new": "example.com/gpu", "iron": ""}}
	for name, c := range map[string]struct {
		claim *resourcev1.ResourceClaim
		want  corev1.ResourceList
	}{
		"a class with an extended resource": {claimOf("c", exactly("gold", 2)), list("gold"+devices, "2", byClass+"gold", "2", "requests.example.com/gpu", "2")},
		"a class without one":               {claimOf("c", exactly("iron", 2)), list("iron"+devices, "2", byClass+"iron", "2")},
		"a class that there is not":         {claimOf("c", exactly("none", 2)), list("none"+devices, "2", byClass+"none", "2")},
		"two classes of one resource": {claimOf("c", exactly("gold", 2), exactly("new", 1)),
			list("gold"+devices, "2", byClass+"gold", "2", "new"+devices, "1", byClass+"new", "1", "requests.example.com/gpu", "3")},
		"alternatives of one resource": {claimOf("c", either(exactly("gold", 2), exactly("new", 1))),
			list("gold"+devices, "2", byClass+"gold", "2", "new"+devices, "1", byClass+"new", "1", "requests.example.com/gpu", "2")},
	} {
		c.want["count/resourceclaims.resource.k8s.io"] = one()
		if got := deviceUsage(a, c.claim); !Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

// What the pod asks for is counted once, with the pod or with its claim.
func TestClaimOfAPod(t *testing.T) {
	in := func(change func(*corev1.Pod)) *corev1.Pod {
		p := asking("example.com/gpu", "2")
		change(p)
		return p
	}
	names := func(claim string) *corev1.Pod {
		return in(func(p *corev1.Pod) {
			p.Status.ExtendedResourceClaimStatus = &corev1.PodExtendedResourceClaimStatus{ResourceClaimName: claim}
		})
	}
	later := implicit("a", exactly("gold", 2))
	later.CreationTimestamp = metav1.NewTime(later.CreationTimestamp.Add(time.Second))
	earlier := implicit("z", exactly("gold", 2))
	earlier.CreationTimestamp = metav1.NewTime(earlier.CreationTimestamp.Add(-time.Second))
	strange := implicit("c", exactly("gold", 2))
	strange.OwnerReferences[0].APIVersion = "example.com/v1"
	plain := implicit("c", exactly("gold", 2))
	plain.Annotations = nil
	own := implicit("c", exactly("gold", 2))
	full := [2]string{"2", "2"} // by the class, by the resource
	for name, c := range map[string]struct {
		pod   *corev1.Pod
		claim *resourcev1.ResourceClaim
		also  []*resourcev1.ResourceClaim
		want  [2]string
	}{
		"no pod":                               {nil, own, nil, full},
		"its status names the claim":           {names("c"), own, []*resourcev1.ResourceClaim{earlier}, [2]string{"2", "0"}},
		"its status names another":             {names("d"), own, nil, full},
		"the first claim":                      {asking("example.com/gpu", "2"), own, []*resourcev1.ResourceClaim{own, later}, [2]string{"2", "0"}},
		"not the first":                        {asking("example.com/gpu", "2"), own, []*resourcev1.ResourceClaim{earlier, own}, full},
		"of two in a second, by name":          {asking("example.com/gpu", "2"), own, []*resourcev1.ResourceClaim{implicit("b")}, full},
		"an earlier one not for resources":     {asking("example.com/gpu", "2"), own, []*resourcev1.ResourceClaim{claimOf("a")}, [2]string{"2", "0"}},
		"the pod asks for less":                {asking("example.com/gpu", "1"), own, nil, [2]string{"2", "1"}},
		"the pod asks for more":                {asking("example.com/gpu", "5"), own, nil, [2]string{"2", "0"}},
		"the pod asks by the class":            {asking(byClass[len("requests."):]+"gold", "1"), own, nil, [2]string{"1", "2"}},
		"the pod has ended":                    {in(func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed }), own, nil, full},
		"another pod of the name":              {in(func(p *corev1.Pod) { p.UID = "v" }), own, nil, full},
		"an owner that is no pod":              {asking("example.com/gpu", "2"), strange, nil, full},
		"a claim that the user made for a pod": {asking("example.com/gpu", "2"), plain, nil, full},
	} {
		a := around{map[string]string{"gold": "example.com/gpu"}, c.pod, c.also}
		want := list("count/resourceclaims.resource.k8s.io", "1", "gold"+devices, "2", byClass+"gold", c.want[0], "requests.example.com/gpu", c.want[1])
		if got := Usage(a, schema.GroupResource{Group: "resource.k8s.io", Resource: "resourceclaims"}, c.claim); !Equal(got, want) {
			t.Errorf("%s: %v, want %v", name, got, want)
		}
	}
}
