package podrules

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/keelson/keelson/apiserver/resources/check"
)

func (r *specRules) validateAffinity(p *field.Path) {
	a := r.spec.Affinity
	if a == nil {
		return
	}
	if n := a.NodeAffinity; n != nil {
		at := p.Child("nodeAffinity")
		if n.RequiredDuringSchedulingIgnoredDuringExecution != nil {
			r.Add(ValidateNodeSelector(n.RequiredDuringSchedulingIgnoredDuringExecution, at.Child("requiredDuringSchedulingIgnoredDuringExecution")))
		}
		for i, t := range n.PreferredDuringSchedulingIgnoredDuringExecution {
			at := at.Child("preferredDuringSchedulingIgnoredDuringExecution").Index(i)
			r.weight(t.Weight, at)
			r.Add(ValidateNodeSelectorTerm(&t.Preference, false, at.Child("preference")))
		}
	}
	terms := func(required []corev1.PodAffinityTerm, preferred []corev1.WeightedPodAffinityTerm, p *field.Path) {
		for i := range required {
			r.validateAffinityTerm(&required[i], p.Child("requiredDuringSchedulingIgnoredDuringExecution").Index(i))
		}
		for i := range preferred {
			at := p.Child("preferredDuringSchedulingIgnoredDuringExecution").Index(i)
			r.weight(preferred[i].Weight, at)
			r.validateAffinityTerm(&preferred[i].PodAffinityTerm, at.Child("podAffinityTerm"))
		}
	}
	if x := a.PodAffinity; x != nil {
		terms(x.RequiredDuringSchedulingIgnoredDuringExecution, x.PreferredDuringSchedulingIgnoredDuringExecution, p.Child("podAffinity"))
	}
	if x := a.PodAntiAffinity; x != nil {
		terms(x.RequiredDuringSchedulingIgnoredDuringExecution, x.PreferredDuringSchedulingIgnoredDuringExecution, p.Child("podAntiAffinity"))
	}
}

func (r *specRules) weight(w int32, p *field.Path) {
	if w <= 0 || w > 100 {
		r.Invalid(p.Child("weight"), w, "must be in the range 1-100")
	}
}

func (r *specRules) validateAffinityTerm(t *corev1.PodAffinityTerm, p *field.Path) {
	r.Add(selectorFaults(t.LabelSelector, p.Child("labelSelector")))
	r.Add(selectorFaults(t.NamespaceSelector, p.Child("namespaceSelector")))
	for _, n := range t.Namespaces {
		r.Label(p.Child("namespace"), n)
	}
	r.matchKeys(t.MatchLabelKeys, t.MismatchLabelKeys, t.LabelSelector, p)
	if t.TopologyKey == "" {
		r.Required(p.Child("topologyKey"), "can not be empty")
	}
	r.LabelName(p.Child("topologyKey"), t.TopologyKey)
}

// matchKeys checks keys whose values are taken from the pod itself and joined to
// the selector. By then an expression with the key is in the selector: a second one was there before.
func (r *specRules) matchKeys(match, mismatch []string, selector *metav1.LabelSelector, p *field.Path) {
	names := func(name string, list []string) {
		if len(list) > 0 && selector == nil {
			r.Forbidden(p.Child(name), "must not be specified when labelSelector is not set")
			return
		}
		for i, k := range list {
			r.LabelName(p.Child(name).Index(i), k)
		}
	}
	names("matchLabelKeys", match)
	names("mismatchLabelKeys", mismatch)
	if selector != nil {
		seen := check.Seen[string]{}
		for k := range selector.MatchLabels {
			seen[k] = true
		}
		for _, e := range selector.MatchExpressions {
			again := seen.Again(e.Key)
			if i := lastIndex(match, e.Key); i >= 0 && again {
				r.Invalid(p.Index(i), e.Key, "exists in both matchLabelKeys and labelSelector")
			}
		}
	}
	for i, k := range match {
		if slices.Contains(mismatch, k) {
			r.Invalid(p.Child("matchLabelKeys").Index(i), k, "exists in both matchLabelKeys and mismatchLabelKeys")
		}
	}
}

func lastIndex(list []string, v string) int {
	for i := len(list) - 1; i >= 0; i-- {
		if list[i] == v {
			return i
		}
	}
	return -1
}

// ValidateNodeSelector checks node affinity wherever it stands: in pods and in volumes.
func ValidateNodeSelector(s *corev1.NodeSelector, p *field.Path) field.ErrorList {
	var f check.Faults
	if len(s.NodeSelectorTerms) == 0 {
		f.Required(p.Child("nodeSelectorTerms"), "must have at least one node selector term")
	}
	for i := range s.NodeSelectorTerms {
		f.Add(ValidateNodeSelectorTerm(&s.NodeSelectorTerms[i], true, p.Child("nodeSelectorTerms").Index(i)))
	}
	return f.List()
}

// ValidateNodeSelectorTerm checks expressions over labels and over the one selectable field, metadata.name. Only
// a strict one asks that values are possible: a preference for others never comes true, and does no harm.
func ValidateNodeSelectorTerm(t *corev1.NodeSelectorTerm, strict bool, p *field.Path) field.ErrorList {
	var f check.Faults
	for i, e := range t.MatchExpressions {
		at := p.Child("matchExpressions").Index(i)
		switch e.Operator {
		case corev1.NodeSelectorOpIn, corev1.NodeSelectorOpNotIn:
			if len(e.Values) == 0 {
				f.Required(at.Child("values"), "must be specified when `operator` is 'In' or 'NotIn'")
			}
		case corev1.NodeSelectorOpExists, corev1.NodeSelectorOpDoesNotExist:
			if len(e.Values) > 0 {
				f.Forbidden(at.Child("values"), "may not be specified when `operator` is 'Exists' or 'DoesNotExist'")
			}
		case corev1.NodeSelectorOpGt, corev1.NodeSelectorOpLt:
			if len(e.Values) != 1 {
				f.Required(at.Child("values"), "must be specified single value when `operator` is 'Lt' or 'Gt'")
			}
		default:
			f.Invalid(at.Child("operator"), e.Operator, "not a valid selector operator")
		}
		f.LabelName(at.Child("key"), e.Key)
		for j, v := range e.Values {
			if strict {
				f.Each(at.Child("values").Index(j), v, validation.IsValidLabelValue(v))
			}
		}
	}
	for i, e := range t.MatchFields {
		at := p.Child("matchFields").Index(i)
		switch e.Operator {
		case corev1.NodeSelectorOpIn, corev1.NodeSelectorOpNotIn:
			if len(e.Values) != 1 {
				f.Required(at.Child("values"), "must be only one value when `operator` is 'In' or 'NotIn' for node field selector")
			}
		default:
			f.Invalid(at.Child("operator"), e.Operator, "not a valid selector operator")
		}
		if e.Key != "metadata.name" {
			f.Invalid(at.Child("key"), e.Key, "not a valid field selector key")
			continue
		}
		for j, v := range e.Values {
			f.Subdomain(at.Child("values").Index(j), v)
		}
	}
	return f.List()
}

func (r *specRules) validateSpread(p *field.Path) {
	for i := range r.spec.TopologySpreadConstraints {
		c, at := &r.spec.TopologySpreadConstraints[i], p.Index(i)
		check.Positive(&r.Faults, at.Child("maxSkew"), c.MaxSkew)
		if c.TopologyKey == "" {
			r.Required(at.Child("topologyKey"), "can not be empty")
		}
		check.Among(&r.Faults, at.Child("whenUnsatisfiable"), c.WhenUnsatisfiable, corev1.DoNotSchedule, corev1.ScheduleAnyway)
		if slices.ContainsFunc(r.spec.TopologySpreadConstraints[i+1:], func(o corev1.TopologySpreadConstraint) bool {
			return o.TopologyKey == c.TopologyKey && o.WhenUnsatisfiable == c.WhenUnsatisfiable
		}) {
			r.Duplicate(at.Child("{topologyKey, whenUnsatisfiable}"), fmt.Sprintf("{%v, %v}", c.TopologyKey, c.WhenUnsatisfiable))
		}
		if c.MinDomains != nil {
			check.Positive(&r.Faults, at.Child("minDomains"), *c.MinDomains)
			if c.WhenUnsatisfiable != corev1.DoNotSchedule {
				r.Invalid(at.Child("minDomains"), *c.MinDomains, fmt.Sprintf("can only use minDomains if whenUnsatisfiable=%s, not %s", corev1.DoNotSchedule, c.WhenUnsatisfiable))
			}
		}
		check.AmongPtr(&r.Faults, at.Child("nodeAffinityPolicy"), c.NodeAffinityPolicy, corev1.NodeInclusionPolicyIgnore, corev1.NodeInclusionPolicyHonor)
		check.AmongPtr(&r.Faults, at.Child("nodeTaintsPolicy"), c.NodeTaintsPolicy, corev1.NodeInclusionPolicyIgnore, corev1.NodeInclusionPolicyHonor)
		r.matchKeys(c.MatchLabelKeys, nil, c.LabelSelector, at)
		r.Add(selectorFaults(c.LabelSelector, at.Child("labelSelector")))
	}
}

// ValidateTolerations checks tolerations wherever they stand: in pods and in runtime classes.
func ValidateTolerations(list []corev1.Toleration, p *field.Path) field.ErrorList {
	var f check.Faults
	for i, t := range list {
		at := p.Index(i)
		if t.Key != "" {
			f.LabelName(at.Child("key"), t.Key)
		} else if t.Operator != corev1.TolerationOpExists {
			f.Invalid(at.Child("operator"), t.Operator, "operator must be Exists when `key` is empty, which means \"match all values and all keys\"")
		}
		if t.TolerationSeconds != nil && t.Effect != corev1.TaintEffectNoExecute {
			f.Invalid(at.Child("effect"), t.Effect, "effect must be 'NoExecute' when `tolerationSeconds` is set")
		}
		switch t.Operator {
		case "", corev1.TolerationOpEqual:
			if msgs := validation.IsValidLabelValue(t.Value); len(msgs) > 0 {
				f.Invalid(at.Child("operator"), t.Value, strings.Join(msgs, ";"))
			}
		case corev1.TolerationOpExists:
			if t.Value != "" {
				f.Invalid(at.Child("operator"), t.Value, "value must be empty when `operator` is 'Exists'")
			}
		case corev1.TolerationOpLt, corev1.TolerationOpGt: // KEP-5471, off by default in 1.36
			f.Add(field.ErrorList{field.NotSupported(at.Child("operator"), t.Operator,
				[]corev1.TolerationOperator{corev1.TolerationOpEqual, corev1.TolerationOpExists, corev1.TolerationOpLt, corev1.TolerationOpGt})})
		default:
			check.Listed(&f, at.Child("operator"), t.Operator, corev1.TolerationOpEqual, corev1.TolerationOpExists)
		}
		if t.Effect != "" {
			check.Listed(&f, at.Child("effect"), t.Effect, corev1.TaintEffectNoSchedule, corev1.TaintEffectPreferNoSchedule, corev1.TaintEffectNoExecute)
		}
	}
	return f.List()
}
