package quota

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	resourcev1 "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

func list(pairs ...string) corev1.ResourceList {
	out := corev1.ResourceList{}
	for i := 0; i < len(pairs); i += 2 {
		out[corev1.ResourceName(pairs[i])] = resource.MustParse(pairs[i+1])
	}
	return out
}

func podOf(requests, limits corev1.ResourceList) *corev1.Pod {
	return &corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Resources: corev1.ResourceRequirements{Requests: requests, Limits: limits}}}}}
}

func TestQOS(t *testing.T) {
	for want, p := range map[corev1.PodQOSClass]*corev1.Pod{
		corev1.PodQOSBestEffort: podOf(nil, nil),
		corev1.PodQOSBurstable:  podOf(list("cpu", "1"), nil),
		corev1.PodQOSGuaranteed: podOf(list("cpu", "1", "memory", "1Gi"), list("cpu", "1", "memory", "1Gi")),
	} {
		if got := QOS(p); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

func TestUsage(t *testing.T) {
	pods := schema.GroupResource{Resource: "pods"}
	got := Usage(around{}, pods, podOf(list("cpu", "1", "example.com/gpu", "2", "deviceclass.resource.kubernetes.io/gold", "3"), list("cpu", "2")))
	want := list("pods", "1", "count/pods", "1", "cpu", "1", "requests.cpu", "1", "limits.cpu", "2", "requests.example.com/gpu", "2", "requests.deviceclass.resource.kubernetes.io/gold", "3")
	if !Equal(got, want) {
		t.Errorf("a pod uses %v, want %v", got, want)
	}
	ended := podOf(list("cpu", "1"), nil)
	ended.Status.Phase = corev1.PodSucceeded
	if got := Usage(around{}, pods, ended); !Equal(got, list("count/pods", "1")) {
		t.Errorf("an ended pod uses %v", got)
	}
	grace, all := int64(30), list("pods", "1", "count/pods", "1", "cpu", "1", "requests.cpu", "1")
	for since, want := range map[int64]corev1.ResourceList{969: list("count/pods", "1"), 970: all} {
		going := podOf(list("cpu", "1"), nil)
		at := metav1.Unix(since, 0)
		going.DeletionTimestamp, going.DeletionGracePeriodSeconds = &at, &grace
		if got := Usage(around{}, pods, going); !Equal(got, want) {
			t.Errorf("a pod that has been going for %d s with 30 s of grace uses %v, want %v", 1000-since, got, want)
		}
	}
	svc := &corev1.Service{Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer, Ports: make([]corev1.ServicePort, 2)}}
	if got := Usage(nil, schema.GroupResource{Resource: "services"}, svc); !Equal(got, list("services", "1", "count/services", "1", "services.loadbalancers", "1", "services.nodeports", "2")) {
		t.Errorf("a load balancer uses %v", got)
	}
	claims := schema.GroupResource{Group: "resource.k8s.io", Resource: "resourceclaims"}
	claim := &resourcev1.ResourceClaim{}
	claim.Spec.Devices.Requests = []resourcev1.DeviceRequest{
		{Exactly: &resourcev1.ExactDeviceRequest{DeviceClassName: "gold", AllocationMode: "ExactCount", Count: 2}},
		{FirstAvailable: []resourcev1.DeviceSubRequest{
			{DeviceClassName: "gold", AllocationMode: "ExactCount", Count: 3}, {DeviceClassName: "gold", AllocationMode: "ExactCount", Count: 1},
			{DeviceClassName: "iron", AllocationMode: "All"}}},
	}
	if got := Usage(around{}, claims, claim); !Equal(got, list("count/resourceclaims.resource.k8s.io", "1", "gold.deviceclass.resource.k8s.io/devices", "5", "iron.deviceclass.resource.k8s.io/devices", "32",
		"requests.deviceclass.resource.kubernetes.io/gold", "5", "requests.deviceclass.resource.kubernetes.io/iron", "32")) {
		t.Errorf("a claim uses %v", got)
	}
	for name, want := range map[corev1.ResourceName][2]bool{
		"gold.deviceclass.resource.k8s.io/devices": {false, true}, "requests.example.com/gpu": {true, true},
		"requests.deviceclass.resource.kubernetes.io/gold": {true, true}, "requests.cpu": {true, false}, "example.com/gpu": {false, false},
	} {
		if got := [2]bool{Counts(pods, name), Counts(claims, name)}; got != want {
			t.Errorf("%s is counted of pods and claims: got %v, want %v", name, got, want)
		}
	}
	if got := Usage(nil, schema.GroupResource{Group: "apps", Resource: "deployments"}, nil); !Equal(got, list("count/deployments.apps", "1")) {
		t.Errorf("a deployment uses %v", got)
	}
}

func TestExceeded(t *testing.T) {
	got := Exceeded("q", list("pods", "5", "cpu", "2"), list("pods", "5", "cpu", "1"), list("pods", "1", "cpu", "1", "memory", "1Gi"))
	if want := "exceeded quota: q, requested: pods=1, used: pods=5, limited: pods=5"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := Exceeded("q", list("pods", "5"), list("pods", "7"), list("pods", "-1")); got != "" {
		t.Errorf("shrinking breaks no limit: %q", got)
	}
}

func TestScopes(t *testing.T) {
	quota := func(s corev1.ResourceQuotaScope) *corev1.ResourceQuota {
		return &corev1.ResourceQuota{Spec: corev1.ResourceQuotaSpec{Scopes: []corev1.ResourceQuotaScope{s}}}
	}
	p := podOf(nil, nil)
	if !Matches(quota(corev1.ResourceQuotaScopeBestEffort), p) || Matches(quota(corev1.ResourceQuotaScopeNotBestEffort), p) {
		t.Error("a pod without requests is best effort")
	}
	if Matches(quota(corev1.ResourceQuotaScopeTerminating), p) || !Matches(quota(corev1.ResourceQuotaScopeNotTerminating), p) {
		t.Error("a pod without a deadline is not terminating")
	}
	if Matches(quota(corev1.ResourceQuotaScopeBestEffort), &corev1.Service{}) {
		t.Error("scopes count pods only")
	}
}
