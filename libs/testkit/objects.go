// Package testkit is what tests share: builders of objects, golden files, scripts and waiting.
//
// The main calls are [Pod], [Node] and their siblings, [Golden], [Script] and [Eventually].
//
// Builders promise objects that a v1.36 API server would have accepted and defaulted as far as tests
// usually care: names, UIDs that follow from kind and name, a container, restart policy. The same call
// gives an equal object each time, and options are applied in order. Golden files and scripts are
// rewritten by the test flag -update. Eventually waits for a level, never for an edge.
package testkit

import (
	"fmt"
	"hash/fnv"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// UID is the UID that the builders give an object of this kind and key.
func UID(kind, key string) types.UID {
	h := fnv.New128a()
	h.Write([]byte(kind + " " + key))
	s := h.Sum(nil)
	return types.UID(fmt.Sprintf("%x-%x-%x-%x-%x", s[0:4], s[4:6], s[6:8], s[8:10], s[10:16]))
}

// Meta splits "namespace/name"; without a slash the namespace is "default" (or none, for clusterWide).
func Meta(kind, key string, clusterWide bool) metav1.ObjectMeta {
	namespace, name, ok := strings.Cut(key, "/")
	if !ok {
		namespace, name = metav1.NamespaceDefault, key
		if clusterWide {
			namespace = ""
		}
	}
	return metav1.ObjectMeta{Namespace: namespace, Name: name, UID: UID(kind, key), ResourceVersion: "1"}
}

// PodOption changes a pod that Pod makes.
type PodOption func(*corev1.Pod)

// Pod is a pending pod with one container "main" of image "image".
func Pod(key string, opts ...PodOption) *corev1.Pod {
	p := &corev1.Pod{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: Meta("Pod", key, false),
		Spec: corev1.PodSpec{
			Containers:    []corev1.Container{{Name: "main", Image: "image"}},
			RestartPolicy: corev1.RestartPolicyAlways,
			SchedulerName: corev1.DefaultSchedulerName,
		},
		Status: corev1.PodStatus{Phase: corev1.PodPending},
	}
	for _, o := range opts {
		o(p)
	}
	return p
}

// Labels sets labels given as "key=value,key=value".
func Labels(s string) map[string]string {
	out := map[string]string{}
	for pair := range strings.SplitSeq(s, ",") {
		if k, v, _ := strings.Cut(strings.TrimSpace(pair), "="); k != "" {
			out[k] = v
		}
	}
	return out
}

// WithLabels sets the pod's labels.
func WithLabels(s string) PodOption { return func(p *corev1.Pod) { p.Labels = Labels(s) } }

// On binds the pod to a node.
func On(node string) PodOption { return func(p *corev1.Pod) { p.Spec.NodeName = node } }

// Phase sets the pod's phase.
func Phase(ph corev1.PodPhase) PodOption { return func(p *corev1.Pod) { p.Status.Phase = ph } }

// Requests sets what the first container asks for: "cpu=100m,memory=1Gi".
func Requests(s string) PodOption {
	return func(p *corev1.Pod) { p.Spec.Containers[0].Resources.Requests = Resources(s) }
}

// Limits sets the first container's limits.
func Limits(s string) PodOption {
	return func(p *corev1.Pod) { p.Spec.Containers[0].Resources.Limits = Resources(s) }
}

// Resources reads "cpu=100m,memory=1Gi".
func Resources(s string) corev1.ResourceList {
	out := corev1.ResourceList{}
	for k, v := range Labels(s) {
		out[corev1.ResourceName(k)] = resource.MustParse(v)
	}
	return out
}

// Priority sets the pod's priority.
func Priority(n int32) PodOption { return func(p *corev1.Pod) { p.Spec.Priority = &n } }

// OwnedBy makes the pod belong to a controller.
func OwnedBy(kind, name string) PodOption {
	return func(p *corev1.Pod) { p.OwnerReferences = []metav1.OwnerReference{Owner(kind, name)} }
}

// Owner is a controller reference to an object that a builder made in namespace "default".
func Owner(kind, name string) metav1.OwnerReference {
	yes, version := true, "apps/v1"
	switch kind {
	case "Job", "CronJob":
		version = "batch/v1"
	case "ReplicationController", "Node":
		version = "v1"
	}
	return metav1.OwnerReference{APIVersion: version, Kind: kind, Name: name, UID: UID(kind, name), Controller: &yes, BlockOwnerDeletion: &yes}
}

// Ready gives the pod the conditions, phase and address of one that runs and serves.
func Ready(ip string) PodOption {
	return func(p *corev1.Pod) {
		p.Status.Phase, p.Status.PodIP = corev1.PodRunning, ip
		p.Status.PodIPs = []corev1.PodIP{{IP: ip}}
		for _, t := range []corev1.PodConditionType{corev1.PodScheduled, corev1.PodInitialized, corev1.ContainersReady, corev1.PodReady} {
			p.Status.Conditions = append(p.Status.Conditions, corev1.PodCondition{Type: t, Status: corev1.ConditionTrue})
		}
	}
}

// NodeOption changes a node that Node makes.
type NodeOption func(*corev1.Node)

// Node is a ready node with 4 CPUs, 16 GiB and room for 110 pods.
func Node(name string, opts ...NodeOption) *corev1.Node {
	n := &corev1.Node{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Node"},
		ObjectMeta: Meta("Node", name, true),
		Status: corev1.NodeStatus{
			Capacity:   Resources("cpu=4,memory=16Gi,pods=110,ephemeral-storage=100Gi"),
			Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "KubeletReady"}},
		},
	}
	n.Labels = map[string]string{corev1.LabelHostname: name}
	for _, o := range opts {
		o(n)
	}
	if n.Status.Allocatable == nil {
		n.Status.Allocatable = n.Status.Capacity.DeepCopy()
	}
	return n
}

// NodeLabels adds labels to the node's.
func NodeLabels(s string) NodeOption {
	return func(n *corev1.Node) {
		for k, v := range Labels(s) {
			n.Labels[k] = v
		}
	}
}

// Capacity sets capacity and allocatable.
func Capacity(s string) NodeOption {
	return func(n *corev1.Node) { n.Status.Capacity, n.Status.Allocatable = Resources(s), Resources(s) }
}

// Taint adds a taint.
func Taint(key, value string, effect corev1.TaintEffect) NodeOption {
	return func(n *corev1.Node) {
		n.Spec.Taints = append(n.Spec.Taints, corev1.Taint{Key: key, Value: value, Effect: effect})
	}
}

// Unschedulable cordons the node.
func Unschedulable() NodeOption { return func(n *corev1.Node) { n.Spec.Unschedulable = true } }

// Template is a pod template with these labels.
func Template(labels string) corev1.PodTemplateSpec {
	return corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: Labels(labels)}, Spec: Pod("template").Spec}
}

// Selector matches these labels.
func Selector(labels string) *metav1.LabelSelector {
	return &metav1.LabelSelector{MatchLabels: Labels(labels)}
}

// Deployment has the label app=<name> and the defaults of the API: 25 % surge and unavailable.
func Deployment(key string, replicas int32, opts ...func(*appsv1.Deployment)) *appsv1.Deployment {
	m := Meta("Deployment", key, false)
	history, deadline := int32(10), int32(600)
	d := &appsv1.Deployment{
		TypeMeta: metav1.TypeMeta{APIVersion: "apps/v1", Kind: "Deployment"}, ObjectMeta: m,
		Spec: appsv1.DeploymentSpec{
			Replicas: &replicas, Selector: Selector("app=" + m.Name), Template: Template("app=" + m.Name),
			Strategy:             appsv1.DeploymentStrategy{Type: appsv1.RollingUpdateDeploymentStrategyType, RollingUpdate: rolling()},
			RevisionHistoryLimit: &history, ProgressDeadlineSeconds: &deadline,
		},
	}
	d.Generation = 1
	for _, o := range opts {
		o(d)
	}
	return d
}

// ReplicaSet has the label app=<name>.
func ReplicaSet(key string, replicas int32, opts ...func(*appsv1.ReplicaSet)) *appsv1.ReplicaSet {
	m := Meta("ReplicaSet", key, false)
	r := &appsv1.ReplicaSet{
		TypeMeta: metav1.TypeMeta{APIVersion: "apps/v1", Kind: "ReplicaSet"}, ObjectMeta: m,
		Spec: appsv1.ReplicaSetSpec{Replicas: &replicas, Selector: Selector("app=" + m.Name), Template: Template("app=" + m.Name)},
	}
	r.Generation = 1
	for _, o := range opts {
		o(r)
	}
	return r
}

// Job runs one pod once.
func Job(key string, opts ...func(*batchv1.Job)) *batchv1.Job {
	m := Meta("Job", key, false)
	one, limit := int32(1), int32(6)
	t := Template("job-name=" + m.Name)
	t.Spec.RestartPolicy = corev1.RestartPolicyNever
	j := &batchv1.Job{
		TypeMeta: metav1.TypeMeta{APIVersion: "batch/v1", Kind: "Job"}, ObjectMeta: m,
		Spec: batchv1.JobSpec{Parallelism: &one, Completions: &one, BackoffLimit: &limit, Template: t, Selector: Selector("job-name=" + m.Name)},
	}
	for _, o := range opts {
		o(j)
	}
	return j
}

// Service has selector app=<name>, one TCP port 80 and this cluster IP.
func Service(key, clusterIP string, opts ...func(*corev1.Service)) *corev1.Service {
	m := Meta("Service", key, false)
	s := &corev1.Service{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Service"}, ObjectMeta: m,
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeClusterIP, ClusterIP: clusterIP, ClusterIPs: []string{clusterIP},
			Selector: Labels("app=" + m.Name), SessionAffinity: corev1.ServiceAffinityNone,
			Ports: []corev1.ServicePort{{Name: "http", Protocol: corev1.ProtocolTCP, Port: 80, TargetPort: port(80)}},
		},
	}
	for _, o := range opts {
		o(s)
	}
	return s
}
