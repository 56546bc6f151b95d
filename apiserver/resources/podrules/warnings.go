package podrules

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/keelson/keelson/apiserver/resources/check"
)

// deprecatedNodeLabels and what to use instead.
var deprecatedNodeLabels = map[string]string{
	"beta.kubernetes.io/arch":                       `deprecated since v1.14; use "kubernetes.io/arch" instead`,
	"beta.kubernetes.io/os":                         `deprecated since v1.14; use "kubernetes.io/os" instead`,
	"failure-domain.beta.kubernetes.io/region":      `deprecated since v1.17; use "topology.kubernetes.io/region" instead`,
	"failure-domain.beta.kubernetes.io/zone":        `deprecated since v1.17; use "topology.kubernetes.io/zone" instead`,
	"beta.kubernetes.io/instance-type":              `deprecated since v1.17; use "node.kubernetes.io/instance-type" instead`,
	"app.kubernetes.io/created-by":                  `deprecated since v1.9`,
	"scheduler.alpha.kubernetes.io/preferAvoidPods": `deprecated since v1.22; use Taints and Tolerations instead`,
	"node-role.kubernetes.io/master":                `use "node-role.kubernetes.io/control-plane" instead`,
}

// deprecatedAnnotations do nothing any more.
var deprecatedAnnotations = []struct{ key, use string }{
	{"scheduler.alpha.kubernetes.io/critical-pod", `non-functional in v1.16+; use the "priorityClassName" field instead`},
	{"security.alpha.kubernetes.io/sysctls", `non-functional in v1.11+; use the "sysctls" field instead`},
	{"security.alpha.kubernetes.io/unsafe-sysctls", `non-functional in v1.11+; use the "sysctls" field instead`},
}

// StatusWarnings are about what is reported of a pod.
func StatusWarnings(s *corev1.PodStatus) []string {
	var w []string
	for i, ip := range s.PodIPs {
		w = append(w, validation.GetWarningsForIP(field.NewPath("status", "podIPs").Index(i).Child("ip"), ip.IP)...)
	}
	for i, ip := range s.HostIPs {
		w = append(w, validation.GetWarningsForIP(field.NewPath("status", "hostIPs").Index(i).Child("ip"), ip.IP)...)
	}
	return w
}

// warnings collects what is allowed but rarely meant.
type warnings []string

func (w *warnings) say(p fmt.Stringer, format string, args ...any) {
	*w = append(*w, p.String()+": "+fmt.Sprintf(format, args...))
}

// Warnings are about a pod (root is nil) or the template at root.
func Warnings(meta *metav1.ObjectMeta, s *corev1.PodSpec, root *field.Path) []string {
	var w warnings
	p := root.Child("spec")
	w.nodeChoice(s, p)
	for _, a := range deprecatedAnnotations {
		if _, ok := meta.Annotations[a.key]; ok {
			w.say(root.Child("metadata", "annotations").Key(a.key), "%s", a.use)
		}
	}
	w.volumes(s.Volumes, p.Child("volumes"))
	w.overlaps(s.Volumes)
	ips := check.Seen[string]{}
	for i, a := range s.HostAliases {
		if ips.Again(a.IP) {
			w.say(p.Child("hostAliases").Index(i).Child("ip"), "duplicate ip %q", a.IP)
		}
	}
	secrets := check.Seen[string]{}
	for i, ref := range s.ImagePullSecrets {
		if secrets.Again(ref.Name) {
			w.say(p.Child("imagePullSecrets").Index(i).Child("name"), "duplicate name %q", ref.Name)
		}
	}
	for i, ref := range s.ImagePullSecrets {
		if ref.Name == "" {
			w.say(p.Child("imagePullSecrets").Index(i).Child("name"), "invalid empty name %q", "")
		}
	}
	w.fractions(s.Overhead, p.Child("overhead"))
	if _, ok := meta.Annotations[seccompPod]; ok && (s.SecurityContext == nil || s.SecurityContext.SeccompProfile == nil) {
		w.say(root.Child("metadata", "annotations").Key(seccompPod), `non-functional in v1.27+; use the "seccompProfile" field instead`)
	}
	eachContainer(s, p, func(c *corev1.Container, at *field.Path) { w.container(meta, s, c, root, at) })
	w.ports(s, p)
	if g := s.TerminationGracePeriodSeconds; g != nil && *g < 0 {
		w.say(p.Child("terminationGracePeriodSeconds"), "must be >= 0; negative values are invalid and will be treated as 1")
	}
	w.affinity(s.Affinity, p.Child("affinity"))
	if s.DNSConfig != nil {
		for i, ns := range s.DNSConfig.Nameservers {
			w = append(w, validation.GetWarningsForIP(p.Child("dnsConfig", "nameservers").Index(i), ns)...)
		}
	}
	for i, a := range s.HostAliases {
		w = append(w, validation.GetWarningsForIP(p.Child("hostAliases").Index(i).Child("ip"), a.IP)...)
	}
	return w
}

// NodeLabelsWarnings are about a choice of nodes by labels that are no longer set. p is what they are reported at.
func NodeLabelsWarnings(selector map[string]string, p func(label string) *field.Path) []string {
	var w warnings
	for _, k := range slices.Sorted(maps.Keys(selector)) {
		if msg, ok := deprecatedNodeLabels[k]; ok {
			w.say(p(k), "%s", msg)
		}
	}
	return w
}

// NodeTermsWarnings are NodeLabelsWarnings of expressions.
func NodeTermsWarnings(terms []corev1.NodeSelectorTerm, p *field.Path) []string {
	var w warnings
	for i := range terms {
		w.term(&terms[i], p.Index(i))
	}
	return w
}

func (w *warnings) term(t *corev1.NodeSelectorTerm, p *field.Path) {
	for i, e := range t.MatchExpressions {
		if msg, ok := deprecatedNodeLabels[e.Key]; ok {
			w.say(p.Child("matchExpressions").Index(i).Child("key"), "%s is %s", e.Key, msg)
		}
	}
}

func (w *warnings) nodeChoice(s *corev1.PodSpec, p *field.Path) {
	*w = append(*w, NodeLabelsWarnings(s.NodeSelector, p.Child("nodeSelector").Key)...)
	if s.Affinity != nil && s.Affinity.NodeAffinity != nil {
		n, at := s.Affinity.NodeAffinity, p.Child("affinity", "nodeAffinity")
		if r := n.RequiredDuringSchedulingIgnoredDuringExecution; r != nil {
			*w = append(*w, NodeTermsWarnings(r.NodeSelectorTerms, at.Child("requiredDuringSchedulingIgnoredDuringExecution", "nodeSelectorTerms"))...)
		}
		for i := range n.PreferredDuringSchedulingIgnoredDuringExecution {
			t := &n.PreferredDuringSchedulingIgnoredDuringExecution[i].Preference
			at := at.Child("preferredDuringSchedulingIgnoredDuringExecution").Index(i).Child("preference")
			for j, e := range t.MatchExpressions {
				at := at.Child("matchExpressions").Index(j)
				if msg, ok := deprecatedNodeLabels[e.Key]; ok {
					w.say(at.Child("key"), "%s is %s", e.Key, msg)
				}
				for k, v := range e.Values {
					for _, msg := range validation.IsValidLabelValue(v) {
						w.say(at.Child("values").Index(k), "%s is invalid, %s", v, msg)
					}
				}
			}
		}
	}
	for i, c := range s.TopologySpreadConstraints {
		at := p.Child("topologySpreadConstraints").Index(i)
		if msg, ok := deprecatedNodeLabels[c.TopologyKey]; ok {
			w.say(at.Child("topologyKey"), "%s is %s", c.TopologyKey, msg)
		}
		w.selector(c.LabelSelector, at)
	}
}

func (w *warnings) selector(s *metav1.LabelSelector, p *field.Path) {
	if s == nil {
		w.say(p.Child("labelSelector"), "a null labelSelector results in matching no pod")
	}
}

func (w *warnings) affinity(a *corev1.Affinity, p *field.Path) {
	terms := func(required []corev1.PodAffinityTerm, preferred []corev1.WeightedPodAffinityTerm, p *field.Path) {
		for i := range required {
			w.selector(required[i].LabelSelector, p.Child("requiredDuringSchedulingIgnoredDuringExecution").Index(i))
		}
		for i := range preferred {
			w.selector(preferred[i].PodAffinityTerm.LabelSelector, p.Child("preferredDuringSchedulingIgnoredDuringExecution").Index(i).Child("podAffinityTerm"))
		}
	}
	if a != nil && a.PodAffinity != nil {
		terms(a.PodAffinity.RequiredDuringSchedulingIgnoredDuringExecution, a.PodAffinity.PreferredDuringSchedulingIgnoredDuringExecution, p.Child("podAffinity"))
	}
	if a != nil && a.PodAntiAffinity != nil {
		terms(a.PodAntiAffinity.RequiredDuringSchedulingIgnoredDuringExecution, a.PodAntiAffinity.PreferredDuringSchedulingIgnoredDuringExecution, p.Child("podAntiAffinity"))
	}
}

const (
	goneIn116 = "deprecated in v1.11, non-functional in v1.16+"
	goneIn122 = "deprecated in v1.16, non-functional in v1.22+"
	goneIn125 = "deprecated in v1.22, non-functional in v1.25+"
	goneIn126 = "deprecated in v1.25, non-functional in v1.26+"
	goneIn131 = "deprecated in v1.28, non-functional in v1.31+"
)

func (w *warnings) volumes(list []corev1.Volume, p *field.Path) {
	for i := range list {
		v, at := &list[i], p.Index(i)
		for _, old := range []struct {
			given
			since string
		}{
			{given{"photonPersistentDisk", v.PhotonPersistentDisk != nil}, goneIn116},
			{given{"gitRepo", v.GitRepo != nil}, "deprecated in v1.11, and disabled by default in v1.33+"},
			{given{"scaleIO", v.ScaleIO != nil}, goneIn122},
			{given{"flocker", v.Flocker != nil}, goneIn125},
			{given{"storageOS", v.StorageOS != nil}, goneIn125},
			{given{"quobyte", v.Quobyte != nil}, goneIn125},
			{given{"glusterfs", v.Glusterfs != nil}, goneIn126},
			{given{"cephfs", v.CephFS != nil}, goneIn131},
			{given{"rbd", v.RBD != nil}, goneIn131},
		} {
			if old.set {
				w.say(at.Child(old.name), "%s", old.since)
			}
		}
		if v.Ephemeral != nil && v.Ephemeral.VolumeClaimTemplate != nil {
			*w = append(*w, ClaimWarnings(&v.Ephemeral.VolumeClaimTemplate.Spec, at.Child("ephemeral", "volumeClaimTemplate", "spec"))...)
		}
	}
}

// VolumeWarnings are about the types of persistent volumes that nothing mounts any more.
func VolumeWarnings(s *corev1.PersistentVolumeSource, p *field.Path) []string {
	var w warnings
	for _, old := range []struct {
		given
		since string
	}{
		{given{"cephfs", s.CephFS != nil}, goneIn131},
		{given{"photonPersistentDisk", s.PhotonPersistentDisk != nil}, goneIn116},
		{given{"scaleIO", s.ScaleIO != nil}, goneIn122},
		{given{"storageOS", s.StorageOS != nil}, goneIn125},
		{given{"glusterfs", s.Glusterfs != nil}, goneIn126},
		{given{"rbd", s.RBD != nil}, goneIn131},
	} {
		if old.set {
			w.say(p.Child(old.name), "%s", old.since)
		}
	}
	return w
}

// ClaimWarnings are about sizes that are no whole bytes.
func ClaimWarnings(s *corev1.PersistentVolumeClaimSpec, p *field.Path) []string {
	var w warnings
	w.fraction(corev1.ResourceStorage, s.Resources.Requests, p.Child("resources", "requests"))
	w.fraction(corev1.ResourceStorage, s.Resources.Limits, p.Child("resources", "limits"))
	return w
}

func (w *warnings) fraction(n corev1.ResourceName, l corev1.ResourceList, p *field.Path) {
	if q, ok := l[n]; ok && q.MilliValue()%1000 != 0 {
		w.say(p.Key(string(n)), "fractional byte value %q is invalid, must be an integer", q.String())
	}
}

func (w *warnings) fractions(l corev1.ResourceList, p *field.Path) {
	w.fraction(corev1.ResourceMemory, l, p)
	w.fraction(corev1.ResourceEphemeralStorage, l, p)
}

func (w *warnings) container(meta *metav1.ObjectMeta, s *corev1.PodSpec, c *corev1.Container, root, p *field.Path) {
	annotations := root.Child("metadata", "annotations")
	key := seccompContainer + c.Name
	if _, ok := meta.Annotations[key]; ok && (c.SecurityContext == nil || c.SecurityContext.SeccompProfile == nil) {
		w.say(annotations.Key(key), `non-functional in v1.27+; use the "seccompProfile" field instead`)
	}
	if root != nil && (c.SecurityContext == nil || c.SecurityContext.AppArmorProfile == nil) {
		key := corev1.DeprecatedAppArmorBetaContainerAnnotationKeyPrefix + c.Name
		if v, ok := meta.Annotations[key]; ok && !sameProfile(podAppArmor(s), annotatedAppArmor(v)) {
			w.say(annotations.Key(key), appArmorIsAField)
		}
	}
	for _, n := range []corev1.ResourceName{corev1.ResourceMemory, corev1.ResourceEphemeralStorage} {
		w.fraction(n, c.Resources.Limits, p.Child("resources", "limits"))
		w.fraction(n, c.Resources.Requests, p.Child("resources", "requests"))
	}
	names := check.Seen[string]{}
	for i, e := range c.Env {
		// A second definition is fine when it extends the first.
		first := "$(" + e.Name + ")"
		if names.Again(e.Name) && (e.ValueFrom != nil || e.Value == first || !strings.Contains(e.Value, first)) {
			w.say(p.Child("env").Index(i), "hides previous definition of %q, which may be dropped when using apply", e.Name)
		}
	}
}

// ports that differ only in what is left to chance, and names that mean two ports.
func (w *warnings) ports(s *corev1.PodSpec, p *field.Path) {
	type place struct {
		at *field.Path
		corev1.ContainerPort
	}
	same := map[string][]place{}
	eachContainer(s, p, func(c *corev1.Container, at *field.Path) {
		for i, port := range c.Ports {
			at := at.Child("ports").Index(i)
			if port.HostIP != "" && port.HostPort == 0 {
				w.say(at, "hostIP set without hostPort: %+v", port)
			}
			key := fmt.Sprintf("%d/%s", port.ContainerPort, port.Protocol)
			for _, o := range same[key] {
				switch {
				case port.HostIP == o.HostIP && port.HostPort == o.HostPort:
					w.say(at, "duplicate port definition with %s", o.at)
				case port.HostPort == 0 || o.HostPort == 0:
					w.say(at, "overlapping port definition with %s", o.at)
				case port.HostPort == o.HostPort && (port.HostIP == "" || o.HostIP == ""):
					w.say(at, "dangerously ambiguous port definition with %s", o.at)
				}
			}
			same[key] = append(same[key], place{at, port})
		}
	})
	named := map[string]*field.Path{}
	eachContainer(s, p, func(c *corev1.Container, at *field.Path) {
		for i, port := range c.Ports {
			at := at.Child("ports").Index(i)
			if first := named[port.Name]; first != nil {
				w.say(at, "duplicate port name %q with %s, services and probes that select ports by name will use %s", port.Name, first, first)
			} else if port.Name != "" {
				named[port.Name] = at
			}
		}
	})
}
