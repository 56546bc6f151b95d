package podrules

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
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
			r.Add(ValidateNodeSelectorTerm(&t.Preference, at.Child("preference")))
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
	keys := func(name string, list []string) {
		if len(list) > 0 && t.LabelSelector == nil {
			r.Forbidden(p.Child(name), "must not be specified when labelSelector is not set")
			return
		}
		for i, k := range list {
			r.LabelName(p.Child(name).Index(i), k)
		}
	}
	keys("matchLabelKeys", t.MatchLabelKeys)
	keys("mismatchLabelKeys", t.MismatchLabelKeys)
	for i, k := range t.MatchLabelKeys {
		if in(t.MismatchLabelKeys, k) {
			r.Invalid(p.Child("matchLabelKeys").Index(i), k, "exists in both matchLabelKeys and mismatchLabelKeys")
		}
	}
	if t.TopologyKey == "" {
		r.Required(p.Child("topologyKey"), "can not be empty")
	}
	r.LabelName(p.Child("topologyKey"), t.TopologyKey)
}

// ValidateNodeSelector checks node affinity wherever it stands: in pods and in volumes.
func ValidateNodeSelector(s *corev1.NodeSelector, p *field.Path) field.ErrorList {
	var f check.Faults
	if len(s.NodeSelectorTerms) == 0 {
		f.Required(p.Child("nodeSelectorTerms"), "must have at least one node selector term")
	}
	for i := range s.NodeSelectorTerms {
		f.Add(ValidateNodeSelectorTerm(&s.NodeSelectorTerms[i], p.Child("nodeSelectorTerms").Index(i)))
	}
	return f.List()
}

// ValidateNodeSelectorTerm checks expressions over labels and over the one selectable field, metadata.name.
func ValidateNodeSelectorTerm(t *corev1.NodeSelectorTerm, p *field.Path) field.ErrorList {
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
			f.Each(at.Child("values").Index(j), v, validation.IsValidLabelValue(v))
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
	type kind struct {
		key  string
		when corev1.UnsatisfiableConstraintAction
	}
	seen := check.Seen[kind]{}
	for i := range r.spec.TopologySpreadConstraints {
		c, at := &r.spec.TopologySpreadConstraints[i], p.Index(i)
		check.Positive(&r.Faults, at.Child("maxSkew"), c.MaxSkew)
		if c.TopologyKey == "" {
			r.Required(at.Child("topologyKey"), "can not be empty")
		}
		check.Among(&r.Faults, at.Child("whenUnsatisfiable"), c.WhenUnsatisfiable, corev1.DoNotSchedule, corev1.ScheduleAnyway)
		if seen.Again(kind{c.TopologyKey, c.WhenUnsatisfiable}) {
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
		if len(c.MatchLabelKeys) > 0 && c.LabelSelector == nil {
			r.Forbidden(at.Child("matchLabelKeys"), "must not be specified when labelSelector is not set")
		}
		for j, k := range c.MatchLabelKeys {
			r.LabelName(at.Child("matchLabelKeys").Index(j), k)
			if c.LabelSelector != nil {
				if _, both := c.LabelSelector.MatchLabels[k]; both {
					r.Invalid(at.Child("matchLabelKeys").Index(j), k, "exists in both matchLabelKeys and labelSelector")
				}
			}
		}
		r.Add(selectorFaults(c.LabelSelector, at.Child("labelSelector")))
	}
}
