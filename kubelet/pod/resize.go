package pod

import (
	"cmp"
	"encoding/json"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/resource"
	resourcehelper "k8s.io/component-helpers/resource"
)

// Allocation is what of the node has been given to a pod: what its containers run with, or are to run
// with. It follows the object only when there is room.
//
// Source: KEP-1287, "In-place Update of Pod Resources".
type Allocation struct {
	Pod        *corev1.ResourceRequirements           `json:"pod,omitempty"`
	Containers map[string]corev1.ResourceRequirements `json:"containers"`
}

// Allocate gives the pod all that it asks for.
func Allocate(p *corev1.Pod) Allocation {
	a := Allocation{Pod: p.Spec.Resources.DeepCopy(), Containers: map[string]corev1.ResourceRequirements{}}
	for _, list := range [][]corev1.Container{p.Spec.InitContainers, p.Spec.Containers} {
		for i := range list {
			a.Containers[list[i].Name] = *list[i].Resources.DeepCopy()
		}
	}
	return a
}

// Of is the pod with the resources that it has been given. It is p itself where they are those that p
// asks for; pending says that they are not. The zero Allocation gives everything.
func (a Allocation) Of(p *corev1.Pod) (given *corev1.Pod, pending bool) {
	if a.Containers == nil {
		return p, false
	}
	given = p
	change := func() {
		if given == p {
			given = p.DeepCopy()
		}
	}
	if !apiequality.Semantic.DeepEqual(p.Spec.Resources, a.Pod) {
		change()
		given.Spec.Resources = a.Pod.DeepCopy()
	}
	lists := func(s *corev1.PodSpec) [][]corev1.Container {
		return [][]corev1.Container{s.InitContainers, s.Containers}
	}
	for i, list := range lists(&p.Spec) {
		for j := range list {
			if r, known := a.Containers[list[j].Name]; known && !apiequality.Semantic.DeepEqual(list[j].Resources, r) {
				change()
				lists(&given.Spec)[i][j].Resources = *r.DeepCopy()
			}
		}
	}
	return given, given != p
}

// Resize is a resize that waits for room, or one under way.
type Resize struct {
	Reason, Message string
	Generation      int64 // of the object that asks for it
}

// Fits is why the node has no room for what the pod asks for, "" when it has. others are the other pods,
// with what they have been given.
func Fits(p *corev1.Pod, others []*corev1.Pod, node *corev1.Node) (reason, message string) {
	if node == nil {
		return "InvalidNodeInfo", "Kubelet cannot get node info."
	}
	if lacks := shortages(p, others, node); len(lacks) > 0 {
		e := lacks[0].reject()
		return e.Reason, e.Message[len(rejected):]
	}
	return "", ""
}

// Waiting is a pod whose resize waits, and what it has been given so far.
type Waiting struct {
	Pod   *corev1.Pod
	Given *corev1.Pod
	Since time.Time // zero: not yet looked at
}

// Urgency orders resizes: those that take nothing, then by priority, then guaranteed pods, then those that
// wait longest. Source: upstream's kubelet.
func Urgency(a, b Waiting) int {
	taking := func(w Waiting) int {
		was := requests(w.Given)
		is := requests(w.Pod)
		return b2int(is.Cpu().Cmp(*was.Cpu()) > 0 || is.Memory().Cmp(*was.Memory()) > 0)
	}
	priority := func(w Waiting) int32 {
		if w.Pod.Spec.Priority == nil {
			return 0
		}
		return *w.Pod.Spec.Priority
	}
	since := func(w Waiting) int64 {
		if w.Since.IsZero() {
			return 1<<63 - 1
		}
		return w.Since.UnixNano()
	}
	return cmp.Or(cmp.Compare(taking(a), taking(b)), cmp.Compare(priority(b), priority(a)),
		cmp.Compare(b2int(QOS(a.Pod) != corev1.PodQOSGuaranteed), b2int(QOS(b.Pod) != corev1.PodQOSGuaranteed)),
		cmp.Compare(since(a), since(b)))
}

func b2int(b bool) int {
	if b {
		return 1
	}
	return 0
}

// Wider is the pod with the larger of what each container runs with and what it is to run with: the limits
// of the pod's cgroup while its containers are being changed one by one. applied is by container name, and
// for the pod itself under "".
func Wider(p *corev1.Pod, applied map[string]corev1.ResourceRequirements) *corev1.Pod {
	out := p.DeepCopy()
	widen := func(name string, r *corev1.ResourceRequirements) {
		was, known := applied[name]
		if !known || r == nil {
			return
		}
		for name, q := range was.Requests {
			if have, set := r.Requests[name]; !set || have.Cmp(q) < 0 {
				if r.Requests == nil {
					r.Requests = corev1.ResourceList{}
				}
				r.Requests[name] = q
			}
		}
		for name, q := range r.Limits {
			switch old, limited := was.Limits[name]; {
			case !limited:
				delete(r.Limits, name) // without a limit so far
			case old.Cmp(q) > 0:
				r.Limits[name] = old
			}
		}
	}
	widen("", out.Spec.Resources)
	for _, list := range [][]corev1.Container{out.Spec.InitContainers, out.Spec.Containers} {
		for i := range list {
			widen(list[i].Name, &list[i].Resources)
		}
	}
	return out
}

// Unlike reports whether two sets of resources differ in what can be changed while a container runs.
func Unlike(a, b corev1.ResourceRequirements) bool {
	for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
		for _, pair := range [][2]corev1.ResourceList{{a.Requests, b.Requests}, {a.Limits, b.Limits}} {
			x, y := pair[0][name], pair[1][name]
			if x.Cmp(y) != 0 {
				return true
			}
		}
	}
	return false
}

// Asked is one change of a container's resources that an update asks for.
type Asked struct{ Resource, Requirement, Operation string }

// AsksFor lists what an update of the object changes of its containers' resources.
func AsksFor(old, next *corev1.Pod) []Asked {
	var out []Asked
	for _, lists := range [][2][]corev1.Container{{old.Spec.InitContainers, next.Spec.InitContainers}, {old.Spec.Containers, next.Spec.Containers}} {
		for i := range min(len(lists[0]), len(lists[1])) {
			was, is := lists[0][i].Resources, lists[1][i].Resources
			for _, name := range []corev1.ResourceName{corev1.ResourceMemory, corev1.ResourceCPU} {
				for _, r := range []struct {
					name    string
					was, is corev1.ResourceList
				}{{"requests", was.Requests, is.Requests}, {"limits", was.Limits, is.Limits}} {
					before, after := r.was[name], r.is[name]
					operation := ""
					switch {
					case before.Cmp(after) == 0:
						continue
					case before.IsZero():
						operation = "add"
					case after.IsZero():
						operation = "remove"
					case before.Cmp(after) < 0:
						operation = "increase"
					default:
						operation = "decrease"
					}
					out = append(out, Asked{string(name), r.name, operation})
				}
			}
		}
	}
	return out
}

// Changing reports whether the pod, or a container of it, runs with other resources than it has been given.
func Changing(given *corev1.Pod, seen Seen, applied map[string]corev1.ResourceRequirements) bool {
	if r, known := applied[""]; known && given.Spec.Resources != nil && Unlike(r, *given.Spec.Resources) {
		return true
	}
	for i := range seen.Containers {
		n := &seen.Containers[i]
		if n.State != Live {
			continue
		}
		c, kind := Find(given, n.Name)
		if c == nil || (kind != Main && kind != Sidecar) {
			continue
		}
		if r, known := applied[n.ID]; known && Unlike(r, c.Resources) {
			return true
		}
	}
	return false
}

// ResizeText is the message of an event about a resize: what the containers are to have, as JSON.
// Source: upstream's events ResizeStarted, ResizeCompleted, ResizeDeferred and ResizeError.
func ResizeText(what string, p *corev1.Pod, generation int64, why string) string {
	type container struct {
		Name      string                      `json:"name"`
		Resources corev1.ResourceRequirements `json:"resources"`
	}
	summary := struct {
		InitContainers []container `json:"initContainers,omitempty"`
		Containers     []container `json:"containers,omitempty"`
		Generation     int64       `json:"generation"`
		Error          string      `json:"error,omitempty"`
	}{Generation: generation, Error: why}
	for i := range p.Spec.InitContainers {
		summary.InitContainers = append(summary.InitContainers, container{p.Spec.InitContainers[i].Name, p.Spec.InitContainers[i].Resources})
	}
	for i := range p.Spec.Containers {
		summary.Containers = append(summary.Containers, container{p.Spec.Containers[i].Name, p.Spec.Containers[i].Resources})
	}
	text, err := json.Marshal(summary)
	if err != nil {
		return what // quantities always marshal
	}
	return what + ": " + string(text)
}

// resizes are the conditions that tell of a resize; none once the pod has ended.
func resizes(in *Input, st *corev1.PodStatus) []corev1.PodCondition {
	if IsTerminal(st.Phase) {
		return nil
	}
	var out []corev1.PodCondition
	for _, r := range []struct {
		kind corev1.PodConditionType
		is   *Resize
	}{{corev1.PodResizePending, in.Memory.Pending}, {corev1.PodResizeInProgress, in.Memory.Resizing}} {
		if r.is != nil {
			out = append(out, corev1.PodCondition{Type: r.kind, Status: corev1.ConditionTrue,
				Reason: r.is.Reason, Message: r.is.Message, ObservedGeneration: r.is.Generation})
		}
	}
	return slices.Clip(out)
}

// setResources fills what the pod as a whole has been given, and what it runs with.
//
// Source: API reference, PodStatus.allocatedResources and resources (feature InPlacePodLevelResourcesVerticalScaling).
func setResources(in *Input, st *corev1.PodStatus) {
	p := in.Pod
	st.AllocatedResources = resourcehelper.PodRequests(p, resourcehelper.PodResourcesOptions{})
	if r, known := in.Memory.Applied[""]; known && p.Spec.Resources != nil {
		p = p.DeepCopy()
		p.Spec.Resources = &r
	}
	// A limit holds for the pod only where each container has one, or the pod itself.
	limited := map[corev1.ResourceName]bool{corev1.ResourceCPU: true, corev1.ResourceMemory: true}
	limits := resourcehelper.PodLimits(p, resourcehelper.PodResourcesOptions{ContainerFn: func(list corev1.ResourceList, _ resourcehelper.ContainerType) {
		for name := range limited {
			q := list[name]
			limited[name] = limited[name] && !q.IsZero()
		}
	}})
	for name, all := range limited {
		if !all && (p.Spec.Resources == nil || p.Spec.Resources.Limits.Name(name, resource.DecimalSI).IsZero()) && st.Phase == corev1.PodRunning {
			delete(limits, name)
		}
	}
	st.Resources = &corev1.ResourceRequirements{Requests: resourcehelper.PodRequests(p, resourcehelper.PodResourcesOptions{}), Limits: limits}
}
