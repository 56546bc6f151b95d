package resources

import (
	"fmt"
	"regexp"
	"slices"
	"sort"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	netutils "k8s.io/utils/net"

	"github.com/keelson/keelson/apiserver/resources/check"
	"github.com/keelson/keelson/apiserver/resources/podrules"
)

// Nodes are stored below "minions", their name of old.
var nodes = Resource[corev1.Node]{
	Group: "", Version: "v1", Kind: "Node", Plural: "nodes", WholeMeta: true, Short: []string{"no"}, Scope: Cluster, Prefix: "minions", NoGeneration: true,
	List: listOf[corev1.NodeList],
	Default: func(n *corev1.Node) {
		if len(n.Status.Allocatable) == 0 && len(n.Status.Capacity) > 0 {
			n.Status.Allocatable = n.Status.Capacity.DeepCopy()
		}
		podrules.RoundUp(n.Status.Capacity)
		podrules.RoundUp(n.Status.Allocatable)
		if r := n.Spec.PodCIDR; r != "" && (len(n.Spec.PodCIDRs) == 0 || n.Spec.PodCIDRs[0] != r) {
			n.Spec.PodCIDRs = []string{r} // clients that know one range only are believed
		}
		if len(n.Spec.PodCIDRs) > 0 {
			n.Spec.PodCIDR = n.Spec.PodCIDRs[0]
		}
	},
	Main: Part[corev1.Node]{
		// A node is created by its kubelet, which may bring its status along.
		Prepare: func(_ *Request, obj, old *corev1.Node) {
			if old != nil {
				obj.Status = old.Status
				if old.Spec.ConfigSource == nil {
					obj.Spec.ConfigSource = nil
				}
				return
			}
			obj.Spec.ConfigSource, obj.Status.Config = nil, nil
		},
		Warnings: func(_ *Request, n, _ *corev1.Node) []string {
			var out []string
			if n.Spec.ConfigSource != nil {
				out = append(out, "spec.configSource: the feature is removed")
			}
			if n.Spec.DoNotUseExternalID != "" {
				out = append(out, "spec.externalID: this field is deprecated, and is unused by Kubernetes")
			}
			for i, r := range n.Spec.PodCIDRs {
				out = append(out, validation.GetWarningsForCIDR(field.NewPath("spec", "podCIDRs").Index(i), r)...)
			}
			return out
		},
		Validate: withoutRequest(validateNode),
		Reset:    []string{"status"},
	},
	Status: &Part[corev1.Node]{
		Prepare: func(_ *Request, obj, old *corev1.Node) {
			obj.Spec = old.Spec
			if old.Status.Config == nil {
				obj.Status.Config = nil
			}
		},
		Validate: withoutRequest(validateNode),
		Reset:    []string{"spec"},
	},
	Subs: []Sub{{
		Name: "proxy", Verbs: []string{"create", "delete", "get", "patch", "update"},
		Kind: schema.GroupVersionKind{Version: "v1", Kind: "NodeProxyOptions"},
	}},
	Fields: func(n *corev1.Node) fields.Set {
		return fields.Set{"spec.unschedulable": strconv.FormatBool(n.Spec.Unschedulable)}
	},
	FieldNames: []string{"spec.unschedulable"},
	Docs: map[string]string{
		"Status":            "Whether pods can run on the node.",
		"Roles":             "The roles that its labels name.",
		"Version":           corev1.NodeSystemInfo{}.SwaggerDoc()["kubeletVersion"],
		"Internal-IP":       corev1.NodeStatus{}.SwaggerDoc()["addresses"],
		"External-IP":       corev1.NodeStatus{}.SwaggerDoc()["addresses"],
		"OS-Image":          corev1.NodeSystemInfo{}.SwaggerDoc()["osImage"],
		"Kernel-Version":    corev1.NodeSystemInfo{}.SwaggerDoc()["kernelVersion"],
		"Container-Runtime": corev1.NodeSystemInfo{}.SwaggerDoc()["containerRuntimeVersion"],
	},
	Columns: []Column[corev1.Node]{
		text("Status", nodeStatus),
		text("Roles", nodeRoles),
		ageColumn[corev1.Node](),
		text("Version", func(n *corev1.Node) string { return n.Status.NodeInfo.KubeletVersion }),
		wide(text("Internal-IP", nodeAddress(corev1.NodeInternalIP))),
		wide(text("External-IP", nodeAddress(corev1.NodeExternalIP))),
		wide(text("OS-Image", func(n *corev1.Node) string { return orUnknown(n.Status.NodeInfo.OSImage) })),
		wide(text("Kernel-Version", func(n *corev1.Node) string {
			v := orUnknown(n.Status.NodeInfo.KernelVersion)
			if a := n.Status.NodeInfo.Architecture; a != "" {
				v += " (" + a + ")"
			}
			return v
		})),
		wide(text("Container-Runtime", func(n *corev1.Node) string { return orUnknown(n.Status.NodeInfo.ContainerRuntimeVersion) })),
	},
}

func orUnknown(s string) string {
	if s == "" {
		return "<unknown>"
	}
	return s
}

func nodeStatus(n *corev1.Node) string {
	status := "Unknown"
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady {
			status = "Ready"
			if c.Status != corev1.ConditionTrue {
				status = "NotReady"
			}
		}
	}
	if n.Spec.Unschedulable {
		status += ",SchedulingDisabled"
	}
	return status
}

func nodeRoles(n *corev1.Node) string {
	var roles []string
	for k, v := range n.Labels {
		role, ok := strings.CutPrefix(k, "node-role.kubernetes.io/")
		if k == "kubernetes.io/role" {
			role, ok = v, true
		}
		if ok && role != "" && !slices.Contains(roles, role) {
			roles = append(roles, role)
		}
	}
	sort.Strings(roles)
	return joinOr(roles, "<none>")
}

func nodeAddress(t corev1.NodeAddressType) func(*corev1.Node) string {
	return func(n *corev1.Node) string {
		for _, a := range n.Status.Addresses {
			if a.Type == t {
				return a.Address
			}
		}
		return "<none>"
	}
}

func validateNode(n, old *corev1.Node) field.ErrorList {
	var f check.Faults
	spec, status := field.NewPath("spec"), field.NewPath("status")
	taints := validateTaints(n.Spec.Taints, field.NewPath("metadata", "taints"))
	if f.Add(taints); old != nil {
		f.Add(taints) // upstream looks at them once for the node and once for the change
	}
	for name, q := range n.Status.Capacity {
		f.Add(podrules.ValidateQuantity(name, q, status.Child("capacity", string(name))))
	}
	for name, q := range n.Status.Allocatable {
		f.Add(podrules.ValidateQuantity(name, q, status.Child("allocatable", string(name))))
	}
	f.Add(validatePodRanges(n.Spec.PodCIDRs, spec.Child("podCIDRs")))
	f.Add(validateFeatures(n.Status.DeclaredFeatures, status.Child("declaredFeatures")))
	if old == nil {
		return f.List()
	}
	addresses := check.Seen[corev1.NodeAddress]{} // of a node that is made upstream takes doubles
	for i, a := range n.Status.Addresses {
		if addresses.Again(a) {
			f.Duplicate(status.Child("addresses").Index(i), check.Shown(a))
		}
	}
	if len(old.Spec.PodCIDRs) > 0 && !slices.Equal(old.Spec.PodCIDRs, n.Spec.PodCIDRs) {
		f.Forbidden(spec.Child("podCIDRs"), "node updates may not change podCIDR except from \"\" to valid")
	}
	if old.Spec.ProviderID != "" && old.Spec.ProviderID != n.Spec.ProviderID {
		f.Forbidden(spec.Child("providerID"), "node updates may not change providerID except from \"\" to valid")
	}
	if old.Spec.DoNotUseExternalID != n.Spec.DoNotUseExternalID {
		f.Forbidden(spec.Child("externalID"), "may not be updated")
	}
	return f.List()
}

// validatePodRanges: one range, or one of each family.
func validatePodRanges(ranges []string, p *field.Path) field.ErrorList {
	var f check.Faults
	families := map[bool]int{}
	var bad error
	for i, r := range ranges {
		f.CIDR(p.Index(i), r)
		_, parsed, err := netutils.ParseCIDRSloppy(r)
		switch {
		case err == nil:
			families[parsed.IP.To4() != nil]++
		case bad == nil:
			bad = fmt.Errorf("invalid CIDR[%d]: %v (%v)", i, parsed, err)
		}
	}
	if len(ranges) < 2 {
		return f.List()
	}
	if bad != nil {
		f.Internal(p, fmt.Errorf("invalid PodCIDRs. failed to check with dual stack with error:%w", bad))
	}
	if bad != nil || len(ranges) > 2 || families[true] != 1 {
		f.Invalid(p, ranges, "may specify no more than one CIDR for each IP family")
	}
	return f.List()
}

// featureName is "Feature" or "Feature/part". Source: KEP-5328.
var featureName = regexp.MustCompile(`^[A-Z][a-zA-Z0-9]*(/[a-zA-Z][a-zA-Z0-9]*)*$`)

// validateFeatures: what a node says it can do is a sorted list without repetition.
func validateFeatures(list []string, p *field.Path) field.ErrorList {
	var f check.Faults
	for i, name := range list {
		switch at := p.Index(i); {
		case len(name) > validation.DNS1123SubdomainMaxLength:
			f.Invalid(at, name, fmt.Sprintf("invalid feature name %q: must be no more than %d characters", name, validation.DNS1123SubdomainMaxLength))
		case !featureName.MatchString(name):
			f.Invalid(at, name, fmt.Sprintf("invalid feature name %q: must start with an UpperCamelCase segment, with subsequent segments separated by '/' "+
				"(e.g., MyFeature or MyFeature/mySubFeature), and contain only alphanumeric characters and slashes", name))
		}
		if i == 0 {
			continue
		}
		switch before := list[i-1]; {
		case name == before:
			f.Duplicate(p.Index(i), name)
		case name < before:
			f.Invalid(p.Index(i), name, "list must be sorted alphabetically")
		}
	}
	return f.List()
}

func validateTaints(taints []corev1.Taint, p *field.Path) field.ErrorList {
	var f check.Faults
	seen := check.Seen[string]{}
	for i, t := range taints {
		at := p.Index(i)
		f.LabelName(at.Child("key"), t.Key)
		if msgs := validation.IsValidLabelValue(t.Value); len(msgs) > 0 {
			f.Invalid(at.Child("value"), t.Value, strings.Join(msgs, ";"))
		}
		if t.Effect == "" {
			f.Required(at.Child("effect"), "")
		} else {
			check.Listed(&f, at.Child("effect"), t.Effect, corev1.TaintEffectNoSchedule, corev1.TaintEffectPreferNoSchedule, corev1.TaintEffectNoExecute)
		}
		if seen.Again(t.Key + ":" + string(t.Effect)) {
			e := field.Duplicate(at, check.Shown(t))
			e.Detail = "taints must be unique by key and effect pair"
			f.Add(field.ErrorList{e})
		}
	}
	return f.List()
}
