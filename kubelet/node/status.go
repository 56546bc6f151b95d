package node

import (
	"fmt"
	"runtime"
	"slices"
	"sort"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/keelson/keelson/libs/nodefeatures"
)

// Facts is what was observed of the machine and its runtime.
type Facts struct {
	Name                  string
	IPs                   []string
	Capacity, Allocatable corev1.ResourceList
	Info                  corev1.NodeSystemInfo
	Port                  int32
	Images                []corev1.ContainerImage // already cut to what a status holds
	Handlers              []corev1.NodeRuntimeHandler
	Features              *corev1.NodeFeatures

	RuntimeError   string // why the runtime does not answer or is not ready
	NetworkError   string // why pods get no network
	OtherError     string
	ShutdownError  string // the machine is going down
	MemoryPressure bool
	DiskPressure   bool
	PIDPressure    bool
}

// problem is why the node is not ready, empty when it is.
func (f Facts) problem() string {
	var all []string
	for _, e := range []string{f.RuntimeError, f.networkMessage(), f.OtherError, f.ShutdownError} {
		if e != "" {
			all = append(all, e)
		}
	}
	if len(all) > 1 {
		return "[" + strings.Join(all, ", ") + "]"
	}
	return strings.Join(all, "")
}

func (f Facts) networkMessage() string {
	if f.NetworkError == "" {
		return ""
	}
	return "container runtime network not ready: NetworkReady=false " + f.NetworkError
}

func (f Facts) network() error {
	switch {
	case f.RuntimeError != "":
		return fmt.Errorf("%s", f.RuntimeError)
	case f.NetworkError != "":
		return fmt.Errorf("%s", f.NetworkError)
	}
	return nil
}

// declared are the features that this kubelet has and others may lack: schedulers and API servers ask for them
// before they let a pod use one. Sorted by name. Source: KEP-5328.
var declared = []string{
	nodefeatures.PodLevelResize,
	nodefeatures.InitContainerResize,
	nodefeatures.RestartAll,
}

// Status is the status that the facts stand for. Conditions of old that are not the
// kubelet's are not in the result's way: they are kept. Reasons and messages are those
// that users of upstream know.
func Status(f Facts, old *corev1.NodeStatus, now time.Time) corev1.NodeStatus {
	s := *old.DeepCopy()
	s.Capacity, s.Allocatable = f.Capacity, f.Allocatable
	for name, q := range old.Capacity { // extended resources belong to their publishers
		if _, mine := f.Capacity[name]; !mine && strings.Contains(string(name), "/") {
			s.Capacity = s.Capacity.DeepCopy()
			s.Capacity[name] = q
			if a, ok := old.Allocatable[name]; ok {
				s.Allocatable = s.Allocatable.DeepCopy()
				s.Allocatable[name] = a
			}
		}
	}
	s.NodeInfo = f.Info
	if f.RuntimeError != "" && f.Info.ContainerRuntimeVersion == "" { // never asked: what is known stays
		s.NodeInfo.ContainerRuntimeVersion, f.Images = old.NodeInfo.ContainerRuntimeVersion, old.Images
		f.Handlers, f.Features = old.RuntimeHandlers, old.Features
	}
	s.DaemonEndpoints.KubeletEndpoint.Port = f.Port
	s.Images = f.Images
	s.RuntimeHandlers, s.Features, s.DeclaredFeatures = f.Handlers, f.Features, slices.Clone(declared)
	s.Addresses = nil
	for _, ip := range f.IPs {
		s.Addresses = append(s.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: ip})
	}
	s.Addresses = append(s.Addresses, corev1.NodeAddress{Type: corev1.NodeHostName, Address: f.Name})

	set := func(kind corev1.NodeConditionType, yes bool, whenYes, whenNo [2]string) {
		c := corev1.NodeCondition{Type: kind, Status: corev1.ConditionFalse, Reason: whenNo[0], Message: whenNo[1]}
		if yes {
			c.Status, c.Reason, c.Message = corev1.ConditionTrue, whenYes[0], whenYes[1]
		}
		c.LastHeartbeatTime, c.LastTransitionTime = metav1.NewTime(now), metav1.NewTime(now)
		for i := range s.Conditions {
			if s.Conditions[i].Type == kind {
				if s.Conditions[i].Status == c.Status {
					c.LastTransitionTime = s.Conditions[i].LastTransitionTime
				}
				s.Conditions[i] = c
				return
			}
		}
		s.Conditions = append(s.Conditions, c)
	}
	set(corev1.NodeMemoryPressure, f.MemoryPressure,
		[2]string{"KubeletHasInsufficientMemory", "kubelet has insufficient memory available"},
		[2]string{"KubeletHasSufficientMemory", "kubelet has sufficient memory available"})
	set(corev1.NodeDiskPressure, f.DiskPressure,
		[2]string{"KubeletHasDiskPressure", "kubelet has disk pressure"},
		[2]string{"KubeletHasNoDiskPressure", "kubelet has no disk pressure"})
	set(corev1.NodePIDPressure, f.PIDPressure,
		[2]string{"KubeletHasInsufficientPID", "kubelet has insufficient PID available"},
		[2]string{"KubeletHasSufficientPID", "kubelet has sufficient PID available"})
	set(corev1.NodeReady, f.problem() == "",
		[2]string{"KubeletReady", "kubelet is posting ready status"},
		[2]string{"KubeletNotReady", f.problem()})
	return s
}

// Differs says that a status is worth sending before its time: heartbeats alone are not.
func Differs(old, next *corev1.NodeStatus) bool {
	a, b := old.DeepCopy(), next.DeepCopy()
	for _, s := range []*corev1.NodeStatus{a, b} {
		for i := range s.Conditions {
			s.Conditions[i].LastHeartbeatTime = metav1.Time{}
			s.Conditions[i].LastTransitionTime = metav1.Time{}
		}
	}
	return !equality.Semantic.DeepEqual(a, b)
}

// Allocatable is capacity without what is reserved for the system, for Kubernetes, and by
// eviction thresholds; pre-allocated huge pages are not memory. Source: Kubernetes
// documentation, "Reserve Compute Resources for System Daemons".
func Allocatable(capacity corev1.ResourceList, system, kube map[string]string, withheld corev1.ResourceList) (corev1.ResourceList, error) {
	out := capacity.DeepCopy()
	take := func(name corev1.ResourceName, q resource.Quantity) {
		if have, ok := out[name]; ok {
			have.Sub(q)
			if have.Sign() < 0 {
				have = *resource.NewQuantity(0, have.Format)
			}
			out[name] = have
		}
	}
	for what, list := range map[string]map[string]string{"system-reserved": system, "kube-reserved": kube} {
		for name, text := range list {
			q, err := resource.ParseQuantity(text)
			if err != nil {
				return nil, fmt.Errorf("%s: %s=%s: %w", what, name, text, err)
			}
			if q.Sign() < 0 {
				return nil, fmt.Errorf("%s: %s=%s: must not be negative", what, name, text)
			}
			take(corev1.ResourceName(name), q)
		}
	}
	for name, q := range withheld {
		take(name, q)
	}
	for name, q := range capacity {
		if strings.HasPrefix(string(name), corev1.ResourceHugePagesPrefix) {
			take(corev1.ResourceMemory, q)
		}
	}
	return out, nil
}

// labels are those that describe the machine, and the administrator's.
func labels(name string, more map[string]string) map[string]string {
	out := make(map[string]string, 5+len(more))
	for k, v := range more {
		out[k] = v
	}
	out[corev1.LabelHostname] = name
	out[corev1.LabelOSStable], out["beta.kubernetes.io/os"] = runtime.GOOS, runtime.GOOS
	out[corev1.LabelArchStable], out["beta.kubernetes.io/arch"] = runtime.GOARCH, runtime.GOARCH
	return out
}

// Bounds of the image list in a status: it is sent to every scheduler.
const (
	maxImages        = 50
	maxNamesPerImage = 5
)

// largest cuts the list of images to what a status holds.
func largest(images []corev1.ContainerImage) []corev1.ContainerImage {
	sort.SliceStable(images, func(i, j int) bool {
		if images[i].SizeBytes != images[j].SizeBytes {
			return images[i].SizeBytes > images[j].SizeBytes
		}
		return strings.Join(images[i].Names, " ") < strings.Join(images[j].Names, " ")
	})
	if len(images) > maxImages {
		images = images[:maxImages]
	}
	return images
}
