package framework

import (
	"maps"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	podresource "k8s.io/component-helpers/resource"
)

// Amounts are quantities of resources: what a pod asks for, what a node has or has given.
type Amounts struct {
	MilliCPU       int64
	MemoryBytes    int64
	EphemeralBytes int64
	Pods           int64
	Extended       map[corev1.ResourceName]int64 // nil when there are none
}

func (a *Amounts) add(b Amounts, sign int64) {
	a.MilliCPU += sign * b.MilliCPU
	a.MemoryBytes += sign * b.MemoryBytes
	a.EphemeralBytes += sign * b.EphemeralBytes
	if len(b.Extended) > 0 {
		a.Extended = maps.Clone(a.Extended)
		if a.Extended == nil {
			a.Extended = map[corev1.ResourceName]int64{}
		}
		for name, n := range b.Extended {
			a.Extended[name] += sign * n
		}
	}
}

func amounts(list corev1.ResourceList) Amounts {
	var a Amounts
	for name, q := range list {
		switch name {
		case corev1.ResourceCPU:
			a.MilliCPU = q.MilliValue()
		case corev1.ResourceMemory:
			a.MemoryBytes = q.Value()
		case corev1.ResourceEphemeralStorage:
			a.EphemeralBytes = q.Value()
		case corev1.ResourcePods:
			a.Pods = q.Value()
		default:
			if a.Extended == nil {
				a.Extended = map[corev1.ResourceName]int64{}
			}
			a.Extended[name] = q.Value()
		}
	}
	return a
}

// What a container without a request counts for in scores, so that such pods spread too. Source:
// kube-scheduler's defaults.
const (
	presumedMilliCPU    = 100
	presumedMemoryBytes = 200 << 20
)

// HostPort is a port that a pod takes on its node.
type HostPort struct {
	IP       string // "0.0.0.0" is every address
	Protocol corev1.Protocol
	Port     int32
}

// Conflicts tells whether both ports cannot be on one node.
func (p HostPort) Conflicts(q HostPort) bool {
	return p.Port == q.Port && p.Protocol == q.Protocol && (p.IP == q.IP || p.IP == "0.0.0.0" || q.IP == "0.0.0.0")
}

// Term is one pod (anti-)affinity term, parsed.
type Term struct {
	Key         string // equal keys mean equal terms
	TopologyKey string
	Weight      int64 // 0 for a required term
	Of          Selection
}

// Selection says which pods are meant: those in the namespaces, whose labels match.
type Selection struct {
	Key        string
	Namespaces []string        // by name, sorted
	Among      labels.Selector // over labels of namespaces; nil selects none besides those by name
	Labels     labels.Selector
	Living     bool // leaves out pods that are being deleted
	// needs is a label that every matching pod has ("key=value"), "" when none is known.
	needs string
}

// Pod is a pod with what decisions need to know about it worked out once. It is not changed after NewPod.
type Pod struct {
	*corev1.Pod
	Name     types.NamespacedName
	Requests Amounts
	// Scored are the requests with presumed amounts where containers name none.
	Scored   Amounts
	Priority int32
	Ports    []HostPort
	Claims   []string // names of PersistentVolumeClaims, sorted

	Affinity, AntiAffinity                   []Term
	PreferredAffinity, PreferredAntiAffinity []Term

	// Class is equal for pods that every node-local phase treats alike. Empty for a pod on a node.
	Class string
}

// NewPod works out what is needed. It never fails: a selector that cannot be parsed, which the API
// server would have refused, matches nothing.
func NewPod(p *corev1.Pod) *Pod {
	out := &Pod{Pod: p, Name: types.NamespacedName{Namespace: p.Namespace, Name: p.ObjectMeta.Name}}
	if p.Spec.Priority != nil {
		out.Priority = *p.Spec.Priority
	}
	out.Requests = amounts(podresource.PodRequests(p, podresource.PodResourcesOptions{UseStatusResources: true}))
	out.Scored = out.Requests
	if out.Requests.MilliCPU == 0 || out.Requests.MemoryBytes == 0 || len(p.Spec.Containers) > 1 {
		scored := amounts(podresource.PodRequests(p, podresource.PodResourcesOptions{UseStatusResources: true, NonMissingContainerRequests: presumed}))
		out.Scored.MilliCPU, out.Scored.MemoryBytes = scored.MilliCPU, scored.MemoryBytes
	}
	for i := range p.Spec.Containers {
		out.Ports = appendHostPorts(out.Ports, p.Spec.Containers[i].Ports)
	}
	for i := range p.Spec.InitContainers {
		if p.Spec.InitContainers[i].RestartPolicy != nil { // one that ends frees its ports before the others run
			out.Ports = appendHostPorts(out.Ports, p.Spec.InitContainers[i].Ports)
		}
	}
	for i := range p.Spec.Volumes {
		switch v := &p.Spec.Volumes[i]; {
		case v.PersistentVolumeClaim != nil:
			out.Claims = append(out.Claims, v.PersistentVolumeClaim.ClaimName)
		case v.Ephemeral != nil:
			out.Claims = append(out.Claims, p.ObjectMeta.Name+"-"+v.Name)
		}
	}
	slices.Sort(out.Claims)
	if a := p.Spec.Affinity; a != nil {
		if pa := a.PodAffinity; pa != nil {
			out.Affinity = required(p, pa.RequiredDuringSchedulingIgnoredDuringExecution)
			out.PreferredAffinity = preferred(p, pa.PreferredDuringSchedulingIgnoredDuringExecution)
		}
		if pa := a.PodAntiAffinity; pa != nil {
			out.AntiAffinity = required(p, pa.RequiredDuringSchedulingIgnoredDuringExecution)
			out.PreferredAntiAffinity = preferred(p, pa.PreferredDuringSchedulingIgnoredDuringExecution)
		}
	}
	if p.Spec.NodeName == "" {
		out.Class = class(p, out.Priority)
	}
	return out
}

func appendHostPorts(to []HostPort, ports []corev1.ContainerPort) []HostPort {
	for _, port := range ports {
		if port.HostPort <= 0 {
			continue
		}
		hp := HostPort{IP: port.HostIP, Protocol: port.Protocol, Port: port.HostPort}
		if hp.IP == "" {
			hp.IP = "0.0.0.0"
		}
		if hp.Protocol == "" {
			hp.Protocol = corev1.ProtocolTCP
		}
		to = append(to, hp)
	}
	return to
}

// Renew is NewPod(p) for a new state of old's pod, cheaper when nothing that counts has changed.
func (old *Pod) Renew(p *corev1.Pod) *Pod {
	if old.UID != p.UID || old.Generation == 0 || old.Generation != p.Generation || !maps.Equal(old.Labels, p.Labels) ||
		len(old.Status.ContainerStatuses) != len(p.Status.ContainerStatuses) {
		return NewPod(p)
	}
	for i := range p.Status.ContainerStatuses {
		if p.Status.ContainerStatuses[i].AllocatedResources != nil {
			return NewPod(p)
		}
	}
	renewed := *old
	renewed.Pod = p
	if p.Spec.NodeName != "" {
		renewed.Class = ""
	}
	return &renewed
}

// On is the pod as if it were bound to node already.
func (p *Pod) On(node string) *Pod {
	bound := *p
	copied := *p.Pod
	copied.Spec.NodeName = node
	bound.Pod, bound.Class = &copied, ""
	return &bound
}

var presumed = corev1.ResourceList{
	corev1.ResourceCPU:    *quantity(presumedMilliCPU, -3),
	corev1.ResourceMemory: *quantity(presumedMemoryBytes, 0),
}

// class is the wire form of all that node-local phases read of a pod.
func class(p *corev1.Pod, priority int32) string {
	spec := corev1.PodSpec{
		NodeSelector: p.Spec.NodeSelector, Tolerations: p.Spec.Tolerations, Overhead: p.Spec.Overhead,
		Resources: p.Spec.Resources, NodeName: p.Spec.NodeName, Priority: &priority,
		HostNetwork: p.Spec.HostNetwork, HostUsers: p.Spec.HostUsers,
	}
	if a := p.Spec.Affinity; a != nil && a.NodeAffinity != nil {
		spec.Affinity = &corev1.Affinity{NodeAffinity: a.NodeAffinity}
	}
	strip := func(in []corev1.Container) []corev1.Container {
		out := make([]corev1.Container, len(in))
		for i := range in {
			out[i] = corev1.Container{Image: in[i].Image, Resources: in[i].Resources, RestartPolicy: in[i].RestartPolicy, RestartPolicyRules: in[i].RestartPolicyRules}
			for _, port := range in[i].Ports {
				if port.HostPort > 0 {
					out[i].Ports = append(out[i].Ports, port)
				}
			}
		}
		return out
	}
	spec.Containers, spec.InitContainers = strip(p.Spec.Containers), strip(p.Spec.InitContainers)
	for _, v := range p.Spec.Volumes {
		if v.Image != nil {
			spec.Volumes = append(spec.Volumes, v)
		}
	}
	data, err := spec.Marshal()
	if err != nil { // cannot be written, so it is a class of its own
		return string(p.UID)
	}
	return string(data)
}

func required(p *corev1.Pod, in []corev1.PodAffinityTerm) []Term {
	out := make([]Term, len(in))
	for i := range in {
		out[i] = newTerm(p, &in[i], 0)
	}
	return out
}

func preferred(p *corev1.Pod, in []corev1.WeightedPodAffinityTerm) []Term {
	out := make([]Term, len(in))
	for i := range in {
		out[i] = newTerm(p, &in[i].PodAffinityTerm, int64(in[i].Weight))
	}
	return out
}

func newTerm(p *corev1.Pod, t *corev1.PodAffinityTerm, weight int64) Term {
	namespaces := slices.Clone(t.Namespaces)
	var among labels.Selector
	switch {
	case t.NamespaceSelector != nil:
		among = selector(t.NamespaceSelector)
	case len(namespaces) == 0:
		namespaces = []string{p.Namespace}
	}
	slices.Sort(namespaces)
	of := NewSelection(namespaces, among, narrowed(t.LabelSelector, p.Labels, t.MatchLabelKeys, t.MismatchLabelKeys), false)
	return Term{
		TopologyKey: t.TopologyKey, Weight: weight, Of: of,
		Key: t.TopologyKey + "\x00" + strconv.FormatInt(weight, 10) + "\x00" + of.Key,
	}
}

// narrowed is a label selector with the pod's own values of some keys added: KEP-3633 and KEP-3243.
// The API server adds them to stored pods too; adding them twice changes nothing.
func narrowed(s *metav1.LabelSelector, own map[string]string, match, mismatch []string) *metav1.LabelSelector {
	if s == nil || len(match)+len(mismatch) == 0 {
		return s
	}
	s = s.DeepCopy()
	add := func(keys []string, op metav1.LabelSelectorOperator) {
		for _, k := range keys {
			if v, ok := own[k]; ok {
				s.MatchExpressions = append(s.MatchExpressions, metav1.LabelSelectorRequirement{Key: k, Operator: op, Values: []string{v}})
			}
		}
	}
	add(match, metav1.LabelSelectorOpIn)
	add(mismatch, metav1.LabelSelectorOpNotIn)
	return s
}

func selector(s *metav1.LabelSelector) labels.Selector {
	out, err := metav1.LabelSelectorAsSelector(s)
	if err != nil {
		return labels.Nothing()
	}
	return out
}

// NewSelection parses s. A nil s selects no pod, an empty one every pod.
func NewSelection(namespaces []string, among labels.Selector, s *metav1.LabelSelector, living bool) Selection {
	out := Selection{Namespaces: namespaces, Among: among, Labels: selector(s), Living: living}
	out.index()
	return out
}

// Everything selects by a parsed selector in one namespace.
func Everything(namespace string, s labels.Selector, living bool) Selection {
	out := Selection{Namespaces: []string{namespace}, Labels: s, Living: living}
	out.index()
	return out
}

func (s *Selection) index() {
	var b strings.Builder
	b.WriteString(strings.Join(s.Namespaces, ","))
	b.WriteByte(0)
	if s.Among != nil {
		b.WriteString("*" + s.Among.String())
	}
	b.WriteByte(0)
	if s.Labels.Empty() {
		b.WriteByte('*')
	} else if requirements, selectable := s.Labels.Requirements(); selectable {
		b.WriteString(s.Labels.String())
		for _, r := range requirements {
			if v := r.ValuesUnsorted(); len(v) == 1 && (r.Operator() == "=" || r.Operator() == "==" || r.Operator() == "in") {
				s.needs = r.Key() + "=" + v[0]
				break
			}
		}
	} else {
		b.WriteByte('-')
	}
	if s.Living {
		b.WriteString("\x00living")
	}
	s.Key = b.String()
}

// Matches tells whether the pod is meant. namespaces gives the labels of a namespace.
func (s *Selection) Matches(p *corev1.Pod, namespaces func(string) labels.Set) bool {
	if s.Living && p.DeletionTimestamp != nil {
		return false
	}
	if !slices.Contains(s.Namespaces, p.Namespace) && (s.Among == nil || !s.Among.Matches(namespaces(p.Namespace))) {
		return false
	}
	return s.Labels.Matches(labels.Set(p.Labels))
}

// SpreadSelection is what a topology spread constraint of p counts.
func SpreadSelection(p *corev1.Pod, c *corev1.TopologySpreadConstraint) Selection {
	return NewSelection([]string{p.Namespace}, nil, narrowed(c.LabelSelector, p.Labels, c.MatchLabelKeys, nil), true)
}
